package websocket_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/centrifugal/centrifuge"
	ws "github.com/coder/websocket"
	"github.com/google/uuid"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
	"github.com/carillon-notify/carillon/providers/websocket"
)

// crowdVariable is the environment that makes the test binary a crowd of clients: where they connect.
const crowdVariable = "CARILLON_CROWD"

func TestMain(m *testing.M) {
	if url := os.Getenv(crowdVariable); url != "" {
		if err := beCrowd(url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// BenchmarkCrowd publishes one message to each of 5,000 connected clients, through Deliver in batches of
// 100 and, in turn, through a bare centrifuge node that is handed ready-made data with the same history
// and idempotency. The clients are in processes of their own. A round ends when every client has its
// message: vs_bare is the rate of ours divided by that of the bare node.
func BenchmarkCrowd(b *testing.B) {
	const clients = 5000
	s := open(b, func(s *websocket.Settings) { s.PingInterval = websocket.Duration(10 * time.Minute) })
	node, bareURL := bareNode(b)
	batch := make([]providers.Message, clients)
	tokens, users := make([]string, clients), make([]string, clients)
	for i := range batch {
		users[i] = fmt.Sprint("u", i)
		tokens[i] = token(b, "shop", users[i])
		batch[i] = message("shop", users[i], "Your order has left the house")
		batch[i].Body = "It is on its way and will be with you tomorrow between 9 and 12."
		batch[i].URL, batch[i].Category, batch[i].Data = "https://example.com/orders/7", "orders", json.RawMessage(`{"screen":"order","order":7}`)
	}
	ready := []byte(`{"id":"0199aaaa-0000-7000-8000-000000000000","title":"Your order has left the house","body":"It is on its way and will be with you tomorrow between 9 and 12.","url":"https://example.com/orders/7","data":{"screen":"order","order":7},"category":"orders","created_at":"2026-11-24T12:00:00Z"}`)
	bare, ours := gather(b, bareURL, users), gather(b, s.url, tokens)

	sides := []func(){func() {
		for at := 0; at < clients; at += 100 {
			if err := s.Deliver(context.Background(), batch[at:at+100], func(providers.Result) {}); err != nil {
				b.Error(err)
			}
		}
		ours.wait(b, clients)
	}, func() {
		for i := range batch {
			if _, err := node.Publish("user:"+users[i], ready, centrifuge.WithHistory(100, time.Hour), centrifuge.WithIdempotencyKey(batch[i].ID)); err != nil {
				b.Error(err)
			}
		}
		bare.wait(b, clients)
	}}
	var took [2]time.Duration
	rounds := 0
	for b.Loop() {
		for range 2 { // each side begins once
			rounds++
			for i := range batch {
				batch[i].ID = uuid.NewString()
			}
			for _, side := range []int{rounds % 2, 1 - rounds%2} {
				began := time.Now()
				sides[side]()
				took[side] += time.Since(began)
			}
		}
	}
	n := float64(rounds * clients)
	b.ReportMetric(n/took[0].Seconds(), "msg/s")
	b.ReportMetric(n/took[1].Seconds(), "bare_msg/s")
	b.ReportMetric(took[1].Seconds()/took[0].Seconds(), "vs_bare")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkIdleConnection reports what an idle connection takes of heap and stacks, here and on a bare
// centrifuge node, and the ratio. Each is alone in a process: the second in one would find the first one's
// cast-off stacks.
func BenchmarkIdleConnection(b *testing.B) {
	const clients = 5000
	var taken [2]float64
	for b.Loop() {
		for side, name := range []string{"ours", "bare"} {
			tokens := make([]string, clients)
			for i := range tokens {
				if tokens[i] = fmt.Sprint("u", i); name == "ours" {
					tokens[i] = token(b, "shop", tokens[i])
				}
			}
			gateway := start(b, gatewayVariable+"="+name, "-test.run=^TestGatewayApart$")
			var url string
			var before, after int64
			for _, err := fmt.Sscanf(gateway.hear(b), "at %s %d", &url, &before); err != nil; { // go test says things, too
				_, err = fmt.Sscanf(gateway.hear(b), "at %s %d", &url, &before)
			}
			gather(b, url, tokens)
			fmt.Fprintln(gateway.in)
			if _, err := fmt.Sscan(gateway.hear(b), &after); err != nil {
				b.Fatal(err)
			}
			taken[side] += float64(after-before) / clients / 1024
		}
	}
	b.ReportMetric(taken[0]/float64(b.N), "KB/conn")
	b.ReportMetric(taken[1]/float64(b.N), "bare_KB/conn")
	b.ReportMetric(taken[0]/taken[1], "mem-ratio")
	b.ReportMetric(0, "ns/op")
}

// gatewayVariable is the environment that makes TestGatewayApart be a gateway: ours or bare.
const gatewayVariable = "CARILLON_GATEWAY"

// TestGatewayApart is the other process of BenchmarkIdleConnection, and no test.
func TestGatewayApart(t *testing.T) {
	url := ""
	switch os.Getenv(gatewayVariable) {
	case "ours":
		url = open(t, func(s *websocket.Settings) { s.PingInterval = websocket.Duration(10 * time.Minute) }).url
	case "bare":
		_, url = bareNode(t)
	default:
		t.Skip("it serves a benchmark")
	}
	fmt.Println("at", url, memory())
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	fmt.Println(memory())
	_, _ = io.Copy(io.Discard, os.Stdin) // until the benchmark ends
}

// memory is what the heap and the stacks hold after some collections: each halves the stacks of those who
// need no more than a quarter.
func memory() int64 {
	for range 6 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// other is another process of this binary.
type other struct {
	in  io.Writer
	out *bufio.Scanner
}

// crowd is a process of connected clients.
type crowd struct {
	*other
	awaited int
}

// gather has a client connect with each token.
func gather(b *testing.B, url string, tokens []string) *crowd {
	b.Helper()
	c := &crowd{other: start(b, crowdVariable+"="+url)}
	fmt.Fprintf(c.in, "%s\n.\n", strings.Join(tokens, "\n"))
	c.hear(b)
	return c
}

// start starts another process, until the benchmark ends.
func start(b *testing.B, variable string, args ...string) *other {
	b.Helper()
	cmd := sandboxtest.Again(b, args...)
	cmd.Env = append(os.Environ(), variable)
	in, out := sandboxtest.StartChild(b, cmd)
	return &other{in: in, out: bufio.NewScanner(out)}
}

// hear is what it says next.
func (o *other) hear(b *testing.B) string {
	b.Helper()
	if !o.out.Scan() {
		b.Fatal("the other process is gone")
	}
	return o.out.Text()
}

// wait waits until the clients have received n messages more.
func (c *crowd) wait(b *testing.B, n int) {
	b.Helper()
	c.awaited += n
	fmt.Fprintln(c.in, c.awaited)
	c.hear(b)
}

// beCrowd connects a client for each token on standard input, up to a dot, and says so. Each number that
// follows is answered when the clients have received so many messages in all.
func beCrowd(url string) error {
	lines := bufio.NewScanner(os.Stdin)
	var got atomic.Int64
	some := make(chan struct{}, 1)
	var joining sync.WaitGroup
	errs := make(chan error, 1)
	slots := make(chan struct{}, 64)
	for lines.Scan() && lines.Text() != "." {
		tok := lines.Text()
		slots <- struct{}{}
		joining.Go(func() {
			defer func() { <-slots }()
			if err := follow(url, tok, func(n int) {
				got.Add(int64(n))
				select {
				case some <- struct{}{}:
				default:
				}
			}); err != nil {
				select {
				case errs <- err:
				default:
				}
			}
		})
	}
	joining.Wait()
	select {
	case err := <-errs:
		return err
	default:
	}
	fmt.Println("connected")
	for lines.Scan() {
		var n int64
		if _, err := fmt.Sscan(lines.Text(), &n); err != nil {
			return err
		}
		for got.Load() < n {
			<-some
		}
		fmt.Println(n)
	}
	return nil
}

// follow connects a client and has its publications counted.
func follow(url, tok string, count func(n int)) error {
	ctx := context.Background()
	c, _, err := ws.Dial(ctx, strings.Replace(url, "http", "ws", 1)+"/connection/websocket", nil)
	if err != nil {
		return err
	}
	if err := c.Write(ctx, ws.MessageText, []byte(`{"id":1,"connect":`+connectBody(tok)+`}`)); err != nil {
		return err
	}
	if _, _, err := c.Read(ctx); err != nil {
		return err
	}
	go func() {
		for {
			_, frame, err := c.Read(ctx)
			if err != nil {
				return
			}
			count(strings.Count(string(frame), `"pub":`))
		}
	}()
	return nil
}
