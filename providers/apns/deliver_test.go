package apns_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/porttest"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

const token = "00fc13adff785122b4ad28809a3420982341241421348097878e577c991de8f0"

func id(i int) string { return fmt.Sprintf("0190b5a2-3f4c-7d01-8a6b-%012d", i) }

func batch(n int) []providers.Message {
	out := make([]providers.Message, n)
	for i := range out {
		out[i] = providers.Message{ID: id(i), Address: token, Title: "Hello", Body: "World", Priority: providers.Normal, ExpiresAt: time.Now().Add(time.Hour)}
	}
	return out
}

// deliver delivers a batch and checks the contract: each message is reported at most once, and none
// after Deliver returned.
func deliver(t testing.TB, ctx context.Context, p providers.Provider, b []providers.Message) (map[string]providers.Result, error) {
	t.Helper()
	got, err := sandboxtest.Deliver(ctx, t, p, b...)
	if err != nil && strings.Contains(err.Error(), token) {
		t.Errorf("the error holds the device token: %v", err)
	}
	for _, r := range got {
		if strings.Contains(r.Reason, token) {
			t.Errorf("the reason holds the device token: %s", r.Reason)
		}
	}
	if (err != nil) != (len(got) < len(b)) {
		t.Errorf("%d of %d reported, error %v", len(got), len(b), err)
	}
	return got, err
}

func outcomes(got map[string]providers.Result) map[string]int {
	out := map[string]int{}
	for _, r := range got {
		out[strings.TrimSpace(r.Outcome.String()+" "+r.Code)]++
	}
	return out
}

func wantOutcomes(t testing.TB, got map[string]providers.Result, want map[string]int) {
	t.Helper()
	if d := cmp.Diff(want, outcomes(got)); d != "" {
		t.Fatalf("outcomes (-want +got):\n%s", d)
	}
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestDeliverAsksAsAppleWants(t *testing.T) {
	t.Parallel()
	p := newPeer(t, (*peerConn).ok)
	pr := p.open(t, nil)
	expires := time.Now().Add(90 * time.Second)
	got, err := deliver(t, within(t, 5*time.Second), pr, []providers.Message{{
		ID: strings.ToUpper(id(7)), Address: token, Title: "Hello", Body: `"World" <&>`, URL: "https://example.com/?a=1&b=2",
		Data: json.RawMessage(`{"order": 12345678901234567890, "items": [1, 2]}`), Priority: providers.Normal, CollapseKey: "order-1", ExpiresAt: expires,
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := providers.Result{ID: strings.ToUpper(id(7)), Outcome: providers.Accepted, ProviderID: id(7), Reason: "taken by APNs"}
	if d := cmp.Diff(want, got[strings.ToUpper(id(7))]); d != "" {
		t.Errorf("result (-want +got):\n%s", d)
	}
	r := p.requests()[0]
	if !strings.HasPrefix(r.header["authorization"], "bearer ey") {
		t.Errorf("authorization is %.10q", r.header["authorization"])
	}
	for _, name := range []string{"authorization", "user-agent", "content-type", "content-length", ":authority"} {
		delete(r.header, name)
	}
	wantHeader := map[string]string{
		":method": "POST", ":scheme": "https", ":path": "/3/device/" + token,
		"apns-id": id(7), "apns-expiration": strconv.FormatInt(expires.Unix(), 10), "apns-priority": "10", "apns-push-type": "alert",
		"apns-topic": "com.example.app", "apns-collapse-id": "order-1",
	}
	if d := cmp.Diff(wantHeader, r.header); d != "" {
		t.Errorf("header (-want +got):\n%s", d)
	}
	wantBody := `{"aps":{"alert":{"title":"Hello","body":"\"World\" \u003c\u0026\u003e"}},"url":"https://example.com/?a=1\u0026b=2","delivery_id":"` +
		strings.ToUpper(id(7)) + `","items":[1,2],"order":12345678901234567890}`
	if d := cmp.Diff(wantBody, string(r.body)); d != "" {
		t.Errorf("payload (-want +got):\n%s", d)
	}
}

func TestDeliverWithinThePeersStreamLimit(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		streams uint32
		conns   int
	}{{1, 4}, {5, 4}, {100, 1}, {0, 1}} {
		t.Run(fmt.Sprint(tt.streams), func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, (*peerConn).ok)
			p.streams = tt.streams
			pr := p.open(t, nil)
			for range 5 {
				got, err := deliver(t, within(t, 10*time.Second), pr, batch(100))
				if err != nil {
					t.Fatal(err)
				}
				wantOutcomes(t, got, map[string]int{"accepted": 100})
			}
			conns, requests, most := p.counts()
			if conns > tt.conns || requests != 500 || tt.streams > 0 && most > int(tt.streams) {
				t.Errorf("%d connections, %d requests, at most %d streams", conns, requests, most)
			}
		})
	}
}

// APNs may announce one stream until it has seen a valid provider token.
func TestDeliverFollowsALimitThatRises(t *testing.T) {
	t.Parallel()
	waiting := make(chan *peerRequest, 100)
	p := newPeer(t, func(c *peerConn, r *peerRequest) {
		if c.requests == 1 {
			c.settings(50)
			c.ok(r)
			return
		}
		waiting <- r
		if len(waiting) == 50 { // all that the new limit allows are here at once
			for range 50 {
				c.ok(<-waiting)
			}
		}
	})
	p.streams = 1
	pr := p.open(t, map[string]any{"pool": map[string]any{"max": 1}})
	got, err := deliver(t, within(t, 10*time.Second), pr, batch(1))
	if err != nil {
		t.Fatal(err)
	}
	wantOutcomes(t, got, map[string]int{"accepted": 1})
	if got, err = deliver(t, within(t, 10*time.Second), pr, batch(50)); err != nil {
		t.Fatal(err)
	}
	wantOutcomes(t, got, map[string]int{"accepted": 50})
}

func TestDeliverRetriesWhatWasNotProcessed(t *testing.T) {
	t.Parallel()
	var refused sync.Map // apns-id: each message at most once, or the unlucky one runs out of tries
	for name, onRequest := range map[string]func(c *peerConn, r *peerRequest){
		"GOAWAY above the last stream": func(c *peerConn, r *peerRequest) {
			if c.n == 1 {
				if c.requests == 10 {
					c.goAway(5, http2.ErrCodeNo)
				}
				if r.stream <= 5 {
					c.ok(r)
				}
				return
			}
			c.ok(r)
		},
		"graceful GOAWAY every 10 requests": func(c *peerConn, r *peerRequest) {
			if c.requests == 10 {
				c.goAway(1<<31-1, http2.ErrCodeNo)
			}
			c.ok(r)
		},
		"GOAWAY with an error": func(c *peerConn, r *peerRequest) {
			if c.n == 1 {
				c.goAway(0, http2.ErrCodeInternal)
				return
			}
			c.ok(r)
		},
		"REFUSED_STREAM": func(c *peerConn, r *peerRequest) {
			if c.n == 1 && c.requests%3 == 0 {
				if _, again := refused.LoadOrStore(r.header["apns-id"], true); !again {
					c.reset(r, http2.ErrCodeRefusedStream)
					return
				}
			}
			c.ok(r)
		},
		"IdleTimeout": func(c *peerConn, r *peerRequest) {
			if c.n == 1 {
				c.answer(r, 400, `{"reason":"IdleTimeout"}`)
				return
			}
			c.ok(r)
		},
		"Shutdown": func(c *peerConn, r *peerRequest) {
			if c.n == 1 {
				c.answer(r, 503, `{"reason":"Shutdown"}`)
				return
			}
			c.ok(r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, onRequest)
			pr := p.open(t, nil)
			got, err := deliver(t, within(t, 10*time.Second), pr, batch(40))
			if err != nil {
				t.Fatal(err)
			}
			wantOutcomes(t, got, map[string]int{"accepted": 40})
		})
	}
}

func TestDeliverGivesUpFreeRetries(t *testing.T) {
	t.Parallel()
	p := newPeer(t, func(c *peerConn, r *peerRequest) { c.reset(r, http2.ErrCodeRefusedStream) })
	got, err := deliver(t, within(t, 10*time.Second), p.open(t, nil), batch(1))
	if err != nil {
		t.Fatal(err)
	}
	wantOutcomes(t, got, map[string]int{"deferred not_processed": 1})
	if _, requests, _ := p.counts(); requests != 4 {
		t.Errorf("%d requests, want 4", requests)
	}
}

// What was handed over and got no answer is nobody's to report.
func TestDeliverLeavesTheUnknownUnreported(t *testing.T) {
	t.Parallel()
	for name, onRequest := range map[string]func(c *peerConn, r *peerRequest){
		"connection dropped":       func(c *peerConn, _ *peerRequest) { _ = c.nc.Close() },
		"GOAWAY, then dropped":     func(c *peerConn, r *peerRequest) { c.goAway(r.stream, http2.ErrCodeNo); _ = c.nc.Close() },
		"stream reset":             func(c *peerConn, r *peerRequest) { c.reset(r, http2.ErrCodeInternal) },
		"no answer within timeout": func(*peerConn, *peerRequest) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, onRequest)
			timeout := "20s"
			if name == "no answer within timeout" {
				timeout = "2s" // in which a busy machine connects
			}
			pr := p.open(t, map[string]any{"timeout": timeout})
			got, err := deliver(t, within(t, 10*time.Second), pr, batch(1))
			if err == nil || len(got) > 0 {
				t.Fatalf("got %v, error %v", got, err)
			}
			if _, requests, _ := p.counts(); requests != 1 {
				t.Errorf("%d requests: an unknown one was sent again", requests)
			}
		})
	}
}

func TestDeliverWhenTheContextEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p := newPeer(t, func(*peerConn, *peerRequest) {})
	p.streams = 3
	pr := p.open(t, map[string]any{"pool": map[string]any{"max": 1}})
	go func() { // three are handed over, the others wait in line for a stream
		await(t, func() bool {
			_, requests, _ := p.counts()
			return requests == 3 && pr.Health(t.Context()).Pool.Waiting == 7
		})
		cancel()
	}()
	got, err := deliver(t, ctx, pr, batch(10))
	if err == nil {
		t.Error("no error for the messages without an answer")
	}
	wantOutcomes(t, got, map[string]int{"deferred timeout": 7})
	got, err = deliver(t, ctx, pr, batch(5))
	if err != nil {
		t.Fatal(err)
	}
	wantOutcomes(t, got, map[string]int{"deferred timeout": 5})
}

func TestDeliverReconnects(t *testing.T) {
	t.Parallel()
	p := newPeer(t, (*peerConn).ok)
	pr := p.open(t, map[string]any{"pool": map[string]any{"streams": 20}})
	for i := range 3 {
		got, err := deliver(t, within(t, 5*time.Second), pr, batch(10))
		if err != nil {
			t.Fatal(err)
		}
		wantOutcomes(t, got, map[string]int{"accepted": 10})
		conns, _, _ := p.counts()
		if conns != i+1 {
			t.Fatalf("%d connections in round %d", conns, i)
		}
		p.mu.Lock()
		if c := p.conns[i]; i == 0 {
			_ = c.nc.Close()
		} else {
			c.goAway(1<<31-1, http2.ErrCodeNo)
		}
		p.mu.Unlock()
		await(t, func() bool { return pr.Health(t.Context()).Pool.Open == 0 })
	}
}

// await waits for a condition that no event announces.
func await(t testing.TB, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ctx := within(t, 10*time.Second); !done(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Error("waited in vain")
			return
		}
	}
}

func TestDeliverUnreachable(t *testing.T) {
	t.Parallel()
	p := newPeer(t, (*peerConn).ok)
	closed := porttest.Addr(t)
	for name, tt := range map[string]struct {
		settings map[string]any
		want     string
	}{
		"refused":         {map[string]any{"endpoint": "https://" + closed}, "connection refused"},
		"wrong authority": {map[string]any{"ca_file": nil}, "certificate"},
		"no such host":    {map[string]any{"endpoint": "https://no-such-host.invalid"}, "connect to APNs"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pr := p.open(t, tt.settings)
			if h := pr.Health(t.Context()); h.Status != providers.HealthOK {
				t.Errorf("health before anything was tried: %+v", h)
			}
			got, err := deliver(t, within(t, 10*time.Second), pr, batch(5))
			if err != nil {
				t.Fatal(err)
			}
			wantOutcomes(t, got, map[string]int{"deferred unreachable": 5})
			if r := got[id(0)]; !strings.Contains(r.Reason, tt.want) || r.After <= 0 {
				t.Errorf("result %+v, want a reason with %q", r, tt.want)
			}
			if h := pr.Health(t.Context()); h.Status != providers.HealthDown || !strings.Contains(h.Reason, tt.want) {
				t.Errorf("health %+v", h)
			}
		})
	}
}

func TestDeliverRefusesOnItsOwn(t *testing.T) {
	t.Parallel()
	p := newPeer(t, (*peerConn).ok)
	pr := p.open(t, nil)
	change := func(i int, f func(*providers.Message)) providers.Message {
		m := batch(i + 1)[i]
		f(&m)
		return m
	}
	got, err := deliver(t, within(t, 5*time.Second), pr, []providers.Message{
		change(0, func(m *providers.Message) { m.ExpiresAt = time.Now().Add(-time.Second) }),
		change(1, func(m *providers.Message) { m.Address = "../" + token }),
		change(2, func(m *providers.Message) { m.Address = "dead" }),
		change(3, func(m *providers.Message) { m.Body = strings.Repeat("x", 5000) }),
		change(4, func(m *providers.Message) { m.Content = json.RawMessage(`{"apns":{"headers":{"apns-id":"x"}}}`) }),
		change(5, func(m *providers.Message) { m.Test = true }),
		change(6, func(m *providers.Message) { m.Test, m.Data = true, json.RawMessage(`[]`) }),
	})
	if err != nil {
		t.Fatal(err)
	}
	codes := map[string]string{}
	for i := range 7 {
		codes[id(i)] = got[id(i)].Outcome.String() + " " + got[id(i)].Code
	}
	want := map[string]string{id(0): "rejected expired", id(1): "rejected bad_address", id(2): "rejected bad_address", id(3): "rejected too_large",
		id(4): "rejected bad_content", id(5): "accepted test", id(6): "rejected bad_content"}
	if d := cmp.Diff(want, codes); d != "" {
		t.Errorf("results (-want +got):\n%s", d)
	}
	if _, requests, _ := p.counts(); requests != 0 {
		t.Errorf("%d requests were made", requests)
	}
}

func TestDeliverWithACertificate(t *testing.T) {
	t.Parallel()
	seen := make(chan string, 1)
	p := newPeer(t, func(c *peerConn, r *peerRequest) {
		seen <- r.header["authorization"] + "|" + r.header["apns-topic"]
		c.ok(r)
	})
	cert := map[string]any{"cert_file": p.files["cert_file"], "key_file": nil, "key_id": nil, "team_id": nil, "topic": nil}
	pr := p.open(t, cert)
	got, err := deliver(t, within(t, 5*time.Second), pr, batch(1))
	if err != nil {
		t.Fatal(err)
	}
	wantOutcomes(t, got, map[string]int{"accepted": 1})
	if s := <-seen; s != "|com.example.cert" {
		t.Errorf("authorization and topic are %q", s)
	}
	for file, want := range map[string]providers.HealthStatus{"cert_file": providers.HealthOK, "cert_soon": providers.HealthDegraded, "cert_past": providers.HealthDown} {
		cert["cert_file"] = p.files[file]
		if h := p.open(t, cert).Health(t.Context()); h.Status != want {
			t.Errorf("%s: health %+v, want %s", file, h, want)
		}
	}
}

func TestCloseLetsAnswersCome(t *testing.T) {
	t.Parallel()
	here := make(chan *peerRequest, 1)
	p := newPeer(t, func(c *peerConn, r *peerRequest) {
		if r.header["apns-id"] == id(0) {
			here <- r
			return
		}
		c.ok(r)
	})
	pr := p.open(t, nil)
	results := make(chan map[string]providers.Result, 1)
	go func() {
		got, _ := deliver(t, context.Background(), pr, batch(1))
		results <- got
	}()
	r := <-here
	closed := make(chan error, 1)
	go func() { closed <- pr.Close(context.Background()) }()
	await(t, func() bool { // the pool is closing: it takes no more
		got, _ := deliver(t, context.Background(), pr, batch(2)[1:])
		return got[id(1)].Code == "unreachable"
	})
	p.conns[0].ok(r)
	wantOutcomes(t, <-results, map[string]int{"accepted": 1})
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
}

// TestDeliverLeavesADeafConnection has a connection whose server answers PINGs and nothing else, as one
// does whose process behind the proxy hangs: the messages after the first go elsewhere.
func TestDeliverLeavesADeafConnection(t *testing.T) {
	t.Parallel()
	p := newPeer(t, func(c *peerConn, r *peerRequest) {
		if c.n > 1 {
			c.ok(r)
		}
	})
	pr := p.open(t, map[string]any{"timeout": "2s"})
	if got, err := deliver(t, within(t, 10*time.Second), pr, batch(1)); err == nil {
		t.Errorf("the first was answered: %v", got)
	}
	for range 3 {
		got, err := deliver(t, within(t, 5*time.Second), pr, batch(1))
		if err != nil {
			t.Error(err)
		}
		wantOutcomes(t, got, map[string]int{"accepted": 1})
	}
	if conns, _, _ := p.counts(); conns != 2 {
		t.Errorf("%d connections were opened", conns)
	}
}
