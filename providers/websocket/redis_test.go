package websocket_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/porttest"
	"github.com/carillon-notify/carillon/providers/websocket"
)

const redisPassword = "hunter2-of-redis"

func redisURL(port int) string { return fmt.Sprintf("redis://:%s@127.0.0.1:%d/2", redisPassword, port) }

// startRedis starts a redis-server of the test's own and returns what stops it.
func startRedis(t testing.TB, port int) (stop func()) {
	t.Helper()
	cmd := exec.Command(program(t, "redis-server"), "--port", strconv.Itoa(port), "--bind", "127.0.0.1",
		"--save", "", "--appendonly", "no", "--dir", t.TempDir(), "--requirepass", redisPassword)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(stop)
	eventually(t, "redis-server answers", func() bool {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
		if err != nil {
			return false
		}
		defer func() { _ = c.Close() }()
		if _, err := fmt.Fprintf(c, "AUTH %s\r\nPING\r\n", redisPassword); err != nil {
			return false
		}
		lines := bufio.NewReader(c)
		_, _ = lines.ReadString('\n')
		answer, _ := lines.ReadString('\n')
		return strings.HasPrefix(answer, "+PONG")
	})
	return stop
}

func onRedis(port int) func(*websocket.Settings) {
	return func(s *websocket.Settings) { s.Redis = redisURL(port) }
}

func TestGatewaysOverRedis(t *testing.T) {
	t.Parallel()
	program(t, "redis-server")
	port := porttest.Free(t)
	startRedis(t, port)
	one, two := open(t, onRedis(port)), open(t, onRedis(port))
	worker := open(t, onRedis(port), func(s *websocket.Settings) { s.Serve, s.Secret = false, "" })
	tok := token(t, "shop", "u")
	// Each starts on its own; a message waits for the first try.
	for _, s := range []*site{one, two, worker} {
		if got := outcome(t, s, message("shop", "nobody", "")); got != providers.Absent {
			t.Fatalf("with nobody there: %v", got)
		}
	}
	if resp, err := http.Get(worker.url + "/connection/websocket"); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("the worker's handler: %v %v", resp.Status, err)
	}
	c := connect(t, two, tok)
	foreign := connect(t, two, token(t, "other", "u"))
	// The worker and the other gateway know of the client by its presence alone; a batch keeps one
	// recipient's order, and brings everybody their own.
	var batch []providers.Message
	for i := range 100 {
		app := "shop"
		if i%2 == 1 {
			app = "other"
		}
		batch = append(batch, message(app, "u", fmt.Sprintf("%s %d", app, i)))
	}
	for i, r := range deliver(t, worker, batch...) {
		if r.Outcome != providers.Accepted {
			t.Fatalf("message %d of the worker's batch: %+v", i, r)
		}
	}
	for i := range 100 {
		from := c
		if i%2 == 1 {
			from = foreign
		}
		if got := from.pub().Title; got != batch[i].Title {
			t.Errorf("got %q, want %q", got, batch[i].Title)
		}
	}
	again := batch[0]
	again.Attempt = 2
	if got := deliver(t, one, again, message("shop", "u", "after")); got[0].Outcome != providers.Accepted {
		t.Errorf("second attempt at another gateway: %v", got[0])
	}
	if got := c.pub().Title; got != "after" {
		t.Errorf("shown again at another gateway: %q", got)
	}
	from := position{channel: c.at.channel, epoch: c.at.epoch, offset: c.at.offset + 51}
	c.cut()
	gone(t, one)
	for _, title := range []string{"one", "two", "three"} {
		if got := outcome(t, worker, message("shop", "u", title)); got != providers.Absent {
			t.Errorf("%s: %v, want absent", title, got)
		}
	}
	c = connect(t, one, tok, from) // at the other gateway
	if diff := cmp.Diff([]string{"one", "two", "three"}, c.recovered()); diff != "" || !c.sub.Recovered {
		t.Errorf("recovered %v at the other gateway (-want +got):\n%s", c.sub.Recovered, diff)
	}
	acks := receive(t, one, keep)
	stream, r := stream(t, one, "sse", connectBody(tok))
	stream.connected(r)
	// An SSE client's commands may reach another gateway than its stream does.
	eventually(t, "the gateways know each other", func() bool {
		return emulate(two, r, `{"id":9,"rpc":{"method":"ack","data":{"ids":["`+again.ID+`"]}}}`) == nil
	})
	select {
	case got := <-acks:
		if got.ID != again.ID || got.Address != "u" || got.App != "shop" {
			t.Errorf("receipt %+v", got)
		}
	case <-time.After(waiting):
		t.Error("the ack through the other gateway got lost")
	}
}

func TestRedisComesAndGoes(t *testing.T) {
	t.Parallel()
	program(t, "redis-server")
	port := porttest.Free(t)
	s := open(t, onRedis(port))
	r := deliver(t, s, message("shop", "u", "early"))[0]
	if r.Outcome != providers.Deferred {
		t.Errorf("with no Redis: %+v, want deferred", r)
	}
	h := s.Health(t.Context())
	if h.Status != providers.HealthDown || !strings.HasPrefix(h.Reason, "Redis: ") || strings.Contains(h.Reason, redisPassword) {
		t.Errorf("with no Redis: health %+v", h)
	}
	if _, err := dial(t, s.url, nil); err == nil || !strings.Contains(err.Error(), "status 503") {
		t.Errorf("with no Redis a client gets %v", err)
	}
	stop := startRedis(t, port)
	eventually(t, "Redis is found", func() bool { return s.Health(t.Context()).Status == providers.HealthOK })
	c := connect(t, s, token(t, "shop", "u"))
	if got := outcome(t, s, message("shop", "u", "up")); got != providers.Accepted {
		t.Errorf("with Redis: %v", got)
	}
	if got := c.pub().Title; got != "up" {
		t.Errorf("got %q", got)
	}
	stop()
	deliver(t, s, message("shop", "u", probe)) // finds out, deferred or unknown
	m := message("shop", "u", "down")
	r = deliver(t, s, m)[0]
	if r.Outcome != providers.Deferred || strings.Contains(r.Reason, redisPassword) || strings.Contains(r.Reason, "u/") {
		t.Errorf("with Redis gone: %+v, want deferred", r)
	}
	if h := s.Health(t.Context()); h.Status != providers.HealthDegraded {
		t.Errorf("with Redis gone: health %+v", h)
	}
	startRedis(t, port)
	m.Attempt = 2
	eventually(t, "Redis is found again", func() bool { return outcome(t, s, m) != providers.Deferred })
	if h := s.Health(t.Context()); h.Status != providers.HealthOK {
		t.Errorf("with Redis back: health %+v", h)
	}
}

// TestDeliverEndsWithItsContext delivers through a Redis that takes everything and answers nothing.
func TestDeliverEndsWithItsContext(t *testing.T) {
	t.Parallel()
	program(t, "redis-server")
	port := porttest.Free(t)
	startRedis(t, port)
	proxy, hang, end := hangingProxy(t, fmt.Sprintf("127.0.0.1:%d", port))
	s := open(t, func(s *websocket.Settings) {
		s.Redis = strings.Replace(redisURL(port), strconv.Itoa(port), strconv.Itoa(proxy), 1)
	})
	if got := outcome(t, s, message("shop", "u", "")); got != providers.Absent {
		t.Fatalf("before: %v", got)
	}
	close(hang)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	first, second, other := message("shop", "u", "1"), message("shop", "u", "2"), message("shop", "v", "3")
	got := map[string]providers.Outcome{}
	start := time.Now()
	if err := s.Deliver(ctx, []providers.Message{first, second, other}, func(r providers.Result) { got[r.ID] = r.Outcome }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("of messages without a result the error says %v", err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("Deliver returned %v after its context ended", took)
	}
	// The first and the other are on their way, nobody knows how far; the second waited for the first.
	if diff := cmp.Diff(map[string]providers.Outcome{second.ID: providers.Deferred}, got); diff != "" {
		t.Errorf("reported (-want +got):\n%s", diff)
	}
	end() // else Close waits as long as it may for the commands on their way
}

// hangingProxy forwards to addr until hang is closed, and from then on only takes; end cuts everything.
func hangingProxy(t *testing.T, addr string) (port int, hang chan struct{}, end func()) {
	t.Helper()
	hang = make(chan struct{})
	var mu sync.Mutex
	var conns []net.Conn
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	end = func() {
		_ = l.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			_ = c.Close()
		}
	}
	t.Cleanup(end)
	forward := func(from, to net.Conn) {
		defer func() { _ = from.Close(); _ = to.Close() }()
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			select {
			case <-hang:
				continue
			default:
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", addr)
			if err != nil {
				_ = c.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, c, up)
			mu.Unlock()
			go forward(c, up)
			go forward(up, c)
		}
	}()
	return l.Addr().(*net.TCPAddr).Port, hang, end
}
