package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	ws "github.com/coder/websocket"

	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/websocket"
)

// gatewayBound is how soon after a dead node's slots have another owner every live client hears again what any gateway
// publishes: a client that stayed, which has to connect anew where its channel was in that node, and one that is new.
const gatewayBound = 15 * time.Second

// TestGatewaysOutliveClusterNode has two gateways on a Redis Cluster lose each of its nodes in turn, with clients in all
// of them: whoever has a channel, and whoever the gateways listen to, is among them.
func TestGatewaysOutliveClusterNode(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]struct {
		dead int
		lose func(*coretest.RedisServer)
	}{
		"killed 0": {0, (*coretest.RedisServer).Kill}, "killed 1": {1, (*coretest.RedisServer).Kill}, "killed 2": {2, (*coretest.RedisServer).Kill},
		"hangs": {0, (*coretest.RedisServer).Pause},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodes := coretest.StartRedisCluster(t, "--cluster-node-timeout", "500")
			var addrs []string
			for _, n := range nodes {
				addrs = append(addrs, n.Addr)
			}
			one, two := openGateway(t, addrs), openGateway(t, addrs)
			var hear []func(title string, within time.Duration) error
			for i := range 12 { // as good as surely of all nodes
				hear = append(hear, one.client(t, two, fmt.Sprintf("u%d", i)))
			}
			for _, h := range hear {
				if err := h("before", gatewayBound); err != nil {
					t.Fatal(err)
				}
			}
			coretest.LoseNode(t, nodes, how.dead, how.lose)
			from := time.Now()
			for _, h := range hear {
				if err := h("after", gatewayBound-time.Since(from)); err != nil {
					t.Error(err)
				}
			}
			t.Logf("%s after the slots had another owner all heard again", time.Since(from).Round(time.Millisecond))
		})
	}
}

type liveGateway struct {
	*websocket.Gateway
	tokens *websocket.Tokens
	url    string
}

func openGateway(t *testing.T, addrs []string) *liveGateway {
	t.Helper()
	s := websocket.DefaultSettings()
	s.Secret, s.Redis = strings.Repeat("a secret ", 5), "redis-cluster://"+strings.Join(addrs, ",")
	g, err := websocket.New(s)
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := websocket.NewTokens(s.Secret)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(g.Handler())
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		_ = g.Close(ctx) // a dead node may be waited for
		server.CloseClientConnections()
		server.Close()
	})
	return &liveGateway{g, tokens, server.URL}
}

// client is a recipient's client at this gateway, which connects again where it is told to, as the SDKs do. It hears what
// another gateway publishes, as many times as that takes.
func (g *liveGateway) client(t *testing.T, other *liveGateway, who string) func(title string, within time.Duration) error {
	t.Helper()
	token, _, err := g.tokens.Mint("shop", who, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	titles := make(chan string, 1000)
	go func() {
		for t.Context().Err() == nil {
			g.listen(t.Context(), token, titles)
		}
	}()
	n := 0
	return func(title string, within time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		var last providers.Result
		for {
			n++
			m := providers.Message{ID: fmt.Sprintf("%s-%d", who, n), App: "shop", Address: who, Title: title, Attempt: 1, CreatedAt: time.Now()}
			if err := other.Deliver(ctx, []providers.Message{m}, func(r providers.Result) { last = r }); err != nil && ctx.Err() == nil {
				return err
			}
			for waiting := true; waiting; {
				select {
				case got := <-titles:
					if got == title {
						return nil
					}
				case <-tick.C:
					waiting = false
				case <-ctx.Done():
					return fmt.Errorf("%s heard no %q within %s; the last result was %+v", who, title, within, last)
				}
			}
		}
	}
}

// listen hands over the titles of what a client gets, until its connection ends.
func (g *liveGateway) listen(ctx context.Context, token string, titles chan<- string) {
	c, _, err := ws.Dial(ctx, strings.Replace(g.url, "http", "ws", 1)+"/connection/websocket", nil)
	if err != nil {
		return
	}
	defer c.CloseNow()
	if err := c.Write(ctx, ws.MessageText, fmt.Appendf(nil, `{"id":1,"connect":{"token":%q}}`, token)); err != nil {
		return
	}
	for {
		_, text, err := c.Read(ctx)
		if err != nil {
			return
		}
		for line := range strings.SplitSeq(string(text), "\n") {
			var reply struct {
				Push struct {
					Pub struct{ Data struct{ Title string } }
				}
			}
			_ = json.Unmarshal([]byte(line), &reply)
			switch title := reply.Push.Pub.Data.Title; {
			case line == "{}":
				_ = c.Write(ctx, ws.MessageText, []byte("{}"))
			case title != "":
				titles <- title
			}
		}
	}
}
