package websocket_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/centrifugal/centrifuge"
	ws "github.com/coder/websocket"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/websocket"
)

// BenchmarkDeliver publishes one message to each of 1,000 recipients, through Deliver in batches of 100
// and, in turn, through a bare centrifuge node that is handed ready-made data with the same history and
// idempotency. With clients, a round ends when every client has its message. The metric vs_bare is the
// rate of ours divided by that of the bare node.
func BenchmarkDeliver(b *testing.B) {
	const recipients = 1000
	for _, clients := range []int{0, recipients} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			s := open(b, func(s *websocket.Settings) { s.PingInterval = websocket.Duration(10 * time.Minute) })
			node, bareURL := bareNode(b)
			ours, bare := &counter{reached: make(chan struct{}, 1)}, &counter{reached: make(chan struct{}, 1)}
			for i := range clients {
				user := fmt.Sprint("u", i)
				benchClient(b, s.url, token(b, "shop", user), ours)
				benchClient(b, bareURL, user, bare)
			}
			batch := make([]providers.Message, recipients)
			for i := range batch {
				batch[i] = message("shop", fmt.Sprint("u", i), "Your order has left the house")
				batch[i].Body = "It is on its way and will be with you tomorrow between 9 and 12."
				batch[i].URL, batch[i].Category, batch[i].Data = "https://example.com/orders/7", "orders", json.RawMessage(`{"screen":"order","order":7}`)
			}
			ready := []byte(`{"id":"0199aaaa-0000-7000-8000-000000000000","title":"Your order has left the house","body":"It is on its way and will be with you tomorrow between 9 and 12.","url":"https://example.com/orders/7","data":{"screen":"order","order":7},"category":"orders","created_at":"2026-11-24T12:00:00Z"}`)
			var oursTook, bareTook time.Duration
			round := 0
			b.ResetTimer()
			for b.Loop() {
				round++
				for i := range batch {
					batch[i].ID = uuid.NewString()
				}
				turns := []func(){func() {
					ours.expect(clients)
					start := time.Now()
					for at := 0; at < recipients; at += 100 {
						if err := s.Deliver(context.Background(), batch[at:at+100], func(providers.Result) {}); err != nil {
							b.Error(err)
						}
					}
					ours.wait(clients)
					oursTook += time.Since(start)
				}, func() {
					bare.expect(clients)
					start := time.Now()
					for i := range batch {
						if _, err := node.Publish("user:"+batch[i].Address, ready, centrifuge.WithHistory(100, time.Hour), centrifuge.WithIdempotencyKey(batch[i].ID)); err != nil {
							b.Error(err)
						}
					}
					bare.wait(clients)
					bareTook += time.Since(start)
				}}
				turns[round%2]()
				turns[1-round%2]()
			}
			n := float64(round * recipients)
			b.ReportMetric(n/oursTook.Seconds(), "msg/s")
			b.ReportMetric(n/bareTook.Seconds(), "bare_msg/s")
			b.ReportMetric(bareTook.Seconds()/oursTook.Seconds(), "vs_bare")
		})
	}
}

// counter counts the publications of a round.
type counter struct {
	missing atomic.Int64
	reached chan struct{}
}

func (c *counter) expect(n int) { c.missing.Store(int64(n)) }

func (c *counter) count(n int) {
	if c.missing.Add(-int64(n)) == 0 && n > 0 {
		c.reached <- struct{}{}
	}
}

func (c *counter) wait(n int) {
	if n > 0 {
		<-c.reached
	}
}

// bareNode is centrifuge with nothing of ours.
func bareNode(b testing.TB) (node *centrifuge.Node, url string) {
	b.Helper()
	node, err := centrifuge.New(centrifuge.Config{Metrics: centrifuge.MetricsConfig{RegistererGatherer: prometheus.NewRegistry()}})
	if err != nil {
		b.Fatal(err)
	}
	node.OnConnecting(func(_ context.Context, e centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		return centrifuge.ConnectReply{
			Credentials:   &centrifuge.Credentials{UserID: e.Token},
			Subscriptions: map[string]centrifuge.SubscribeOptions{"user:" + e.Token: {EnableRecovery: true}},
		}, nil
	})
	node.OnConnect(func(*centrifuge.Client) {})
	if err := node.Run(); err != nil {
		b.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/connection/websocket", centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{
		CheckOrigin:    func(*http.Request) bool { return true },
		PingPongConfig: centrifuge.PingPongConfig{PingInterval: 10 * time.Minute},
	}))
	server := httptest.NewServer(mux)
	b.Cleanup(func() { _ = node.Shutdown(context.Background()); server.Close() })
	return node, server.URL
}

// benchClient connects and counts its publications.
func benchClient(b *testing.B, url, tok string, got *counter) {
	b.Helper()
	ctx := context.Background()
	c, _, err := ws.Dial(ctx, strings.Replace(url, "http", "ws", 1)+"/connection/websocket", nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.CloseNow() })
	if err := c.Write(ctx, ws.MessageText, []byte(`{"id":1,"connect":`+connectBody(tok)+`}`)); err != nil {
		b.Fatal(err)
	}
	if _, _, err := c.Read(ctx); err != nil {
		b.Fatal(err)
	}
	go func() {
		for {
			_, frame, err := c.Read(ctx)
			if err != nil {
				return
			}
			got.count(strings.Count(string(frame), `"pub":`))
		}
	}()
}
