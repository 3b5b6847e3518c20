package fcm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/fcm"
	"github.com/carillon-notify/carillon/providers/porttest"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

func TestDeliver(t *testing.T) {
	t.Parallel()
	g := startGoogle(t)
	p := g.open(nil)
	batch := batchOf(100)
	results, err := sandboxtest.Deliver(t.Context(), t, p, batch...)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]request{}
	for _, r := range g.got() {
		got[r.id] = r
	}
	for _, m := range batch {
		r := got[m.ID]
		if r.message["token"] != m.Address || r.proto != "HTTP/2.0" || r.dryRun || !strings.HasPrefix(r.header.Get("Authorization"), "Bearer access-") {
			t.Errorf("%s arrived as %+v", m.ID, r)
		}
		if res := results[m.ID]; res.Outcome != providers.Accepted || res.ProviderID != fmt.Sprintf("projects/acme/messages/%d", r.n) {
			t.Errorf("%s: %+v", m.ID, res)
		}
	}
	if n := g.granted(); n != 1 {
		t.Errorf("%d access tokens were fetched for one batch, want 1", n)
	}
	h := p.Health(t.Context())
	if h.Status != providers.HealthOK || h.Pool.Opened == 0 || h.Pool.Max != 4 || int64(h.Pool.Opened)+1 != g.conns.Load() {
		t.Errorf("health is %+v; the server saw %d connections, one of them for the access token", h, g.conns.Load())
	}
}

// Each answer over the wire: one request, and the library's own retries stay out of it.
func TestOneRequestEach(t *testing.T) {
	t.Parallel()
	for _, row := range answerRows {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			g := startGoogle(t)
			g.answers(func(w http.ResponseWriter, _ request) {
				if row.retryAfter != "" {
					w.Header().Set("Retry-After", row.retryAfter)
				}
				w.Header().Set("Location", g.URL+"/v1/projects/acme/messages:send")
				w.WriteHeader(row.status)
				fmt.Fprint(w, row.body)
			})
			batch := batchOf(2)
			start := time.Now()
			results, err := sandboxtest.Deliver(t.Context(), t, g.open(nil), batch...)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range batch {
				want := row.want
				want.ID = m.ID
				ignore := []string{"Reason"}
				if strings.HasSuffix(row.retryAfter, "GMT") {
					ignore = append(ignore, "After") // counted from now
				}
				if diff := cmp.Diff(want, results[m.ID], cmpopts.IgnoreFields(providers.Result{}, ignore...)); diff != "" {
					t.Errorf("result (-want +got):\n%s", diff)
				}
			}
			want := len(batch)
			if row.status == http.StatusUnauthorized && row.want.Outcome == providers.Denied {
				want *= 2 // once more with a fresh access token
			}
			if n := len(g.got()); n != want {
				t.Errorf("%d requests arrived, want %d", n, want)
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("it took %v: who waited?", d)
			}
		})
	}
}

func TestLostAnswerIsUnknown(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(http.ResponseWriter, request){
		"connection dropped": func(_ http.ResponseWriter, r request) { _ = r.conn.Close(); <-r.ctx.Done() },
		"stream reset":       func(http.ResponseWriter, request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := startGoogle(t)
			g.answers(answer)
			p := g.open(nil)
			m := batchOf(1)[0]
			results, err := sandboxtest.Deliver(t.Context(), t, p, m)
			if err == nil || len(results) != 0 {
				t.Fatalf("results %v, error %v; want none and one", results, err)
			}
			if strings.Contains(err.Error(), m.Address) {
				t.Errorf("the error names the address: %v", err)
			}
			if n := len(g.got()); n != 1 {
				t.Fatalf("%d requests arrived, want 1", n)
			}
			g.answers(func(w http.ResponseWriter, _ request) { fmt.Fprint(w, `{"name":"n"}`) })
			results, err = sandboxtest.Deliver(t.Context(), t, p, m)
			if err != nil || results[m.ID].Outcome != providers.Accepted {
				t.Errorf("the next attempt: %v, %v", results, err)
			}
		})
	}
}

func TestManyLostAnswersAreCounted(t *testing.T) {
	t.Parallel()
	g := startGoogle(t)
	g.answers(func(w http.ResponseWriter, r request) {
		if r.id[len(r.id)-1]%2 == 0 {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprint(w, `{}`)
	})
	results, err := sandboxtest.Deliver(t.Context(), t, g.open(nil), batchOf(10)...)
	if len(results) != 5 || err == nil || !strings.Contains(err.Error(), "5 of 10") {
		t.Errorf("%d results, error %v", len(results), err)
	}
}

func TestContextEnds(t *testing.T) {
	t.Parallel()
	g := startGoogle(t)
	arrived := make(chan struct{})
	g.answers(func(_ http.ResponseWriter, r request) {
		close(arrived)
		<-r.ctx.Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	results, err := sandboxtest.Deliver(ctx, t, g.open(nil), batchOf(1)...)
	if len(results) != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("handed over and not answered: results %v, error %v", results, err)
	}
	// Nothing can be handed over any more.
	results, err = sandboxtest.Deliver(ctx, t, g.open(nil), batchOf(3)...)
	if err != nil || len(results) != 3 {
		t.Errorf("%d results, error %v", len(results), err)
	}
	for _, r := range results {
		if r.Outcome != providers.Deferred {
			t.Errorf("not handed over: %+v", r)
		}
	}
}

func TestTimeoutSetting(t *testing.T) {
	t.Parallel()
	g := startGoogle(t)
	p := g.open(map[string]any{"timeout": "1s"})
	// The token and the connection, so that the time is spent on the answer.
	if _, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(1)...); err != nil {
		t.Fatal(err)
	}
	g.answers(func(_ http.ResponseWriter, r request) { <-r.ctx.Done() })
	results, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(1)...)
	if len(results) != 0 || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("results %v, error %v", results, err)
	}
}

// TestDeafConnection has a connection whose server answers PINGs and nothing else: the next message goes
// to another one.
func TestDeafConnection(t *testing.T) {
	t.Parallel()
	g := startGoogle(t)
	p := g.open(map[string]any{"timeout": "1s"})
	if _, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(1)...); err != nil {
		t.Fatal(err)
	}
	deaf := g.got()[0].conn
	g.answers(func(w http.ResponseWriter, r request) {
		if r.conn == deaf {
			<-r.ctx.Done()
			return
		}
		fmt.Fprint(w, `{"name":"n"}`)
	})
	if results, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(1)...); len(results) != 0 || err == nil {
		t.Errorf("results %v, error %v", results, err)
	}
	if results, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(1)...); len(results) != 1 || err != nil {
		t.Errorf("the next one: results %v, error %v", results, err)
	}
}

func TestNobodyThere(t *testing.T) {
	t.Parallel()
	g := startGoogle(t)
	p := g.open(map[string]any{"endpoint": "https://" + porttest.Addr(t)})
	results, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(3)...)
	if err != nil || len(results) != 3 {
		t.Fatalf("%d results, error %v", len(results), err)
	}
	for _, r := range results {
		if r.Outcome != providers.Deferred || r.Code != "connect" {
			t.Errorf("%+v", r)
		}
	}
	if h := p.Health(t.Context()); h.Status != providers.HealthDown || h.Pool.Failed == 0 {
		t.Errorf("health is %+v", h)
	}
}

func TestDryRun(t *testing.T) {
	t.Parallel()
	g := startGoogle(t)
	m := batchOf(1)[0]
	m.Test = true
	if _, err := sandboxtest.Deliver(t.Context(), t, g.open(nil), m); err != nil {
		t.Fatal(err)
	}
	if got := g.got(); len(got) != 1 || !got[0].dryRun {
		t.Errorf("validate_only is not set: %+v", got)
	}
}

func TestUnbuildableIsRejected(t *testing.T) {
	t.Parallel()
	g := startGoogle(t)
	batch := batchOf(3)
	batch[0].Content = json.RawMessage(`{"fcm":{"topic":"all"}}`)
	batch[1].Content = json.RawMessage(`{"fcm":{"android":{"priority":"secret words"}}}`)
	results, err := sandboxtest.Deliver(t.Context(), t, g.open(nil), batch...)
	if err != nil || len(g.got()) != 1 {
		t.Fatalf("%d requests, error %v", len(g.got()), err)
	}
	for i, want := range []providers.Outcome{providers.Rejected, providers.Rejected, providers.Accepted} {
		if r := results[batch[i].ID]; r.Outcome != want || strings.Contains(r.Reason, "secret") {
			t.Errorf("%d: %+v", i, r)
		}
	}
}

func TestConnectionsByLoad(t *testing.T) {
	t.Parallel()
	g := startGoogle(t)
	var all sync.WaitGroup
	all.Add(40)
	var first sync.Map
	g.answers(func(w http.ResponseWriter, r request) {
		if _, again := first.LoadOrStore(r.conn, true); again { // a connection starts with one alone
			all.Done()
			all.Wait() // all of them at once, or never
		}
		fmt.Fprint(w, `{}`)
	})
	p := g.open(map[string]any{"pool": map[string]any{"max": 4, "streams": 10}})
	results, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(44)...)
	if err != nil || len(results) != 44 {
		t.Fatalf("%d results, error %v", len(results), err)
	}
	if s := p.Health(t.Context()).Pool; s.Opened != 4 || s.Open != 4 || s.InUse != 0 || s.Reused != 40 {
		t.Errorf("pool is %+v, want 4 connections for 44 uses", s)
	}
}

func TestPeersStreamLimit(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1, 5} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			g := startGoogleWith(t, func(s *http.Server) { s.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: limit} })
			p := g.open(map[string]any{"pool": map[string]any{"max": 2}})
			for range 3 {
				results, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(100)...)
				if err != nil || len(results) != 100 {
					t.Fatalf("%d results, error %v", len(results), err)
				}
				for _, r := range results {
					if r.Outcome != providers.Accepted {
						t.Fatalf("%+v", r)
					}
				}
			}
			if n := len(g.got()); n != 300 {
				t.Errorf("%d requests, want 300", n)
			}
		})
	}
}

func TestCloseWaitsForAnswers(t *testing.T) {
	t.Parallel()
	g := startGoogle(t)
	arrived, goOn := make(chan struct{}), make(chan struct{})
	g.answers(func(w http.ResponseWriter, _ request) {
		close(arrived)
		<-goOn
		fmt.Fprint(w, `{}`)
	})
	p, err := fcm.Kind().Open(t.Context(), g.settings(nil))
	if err != nil {
		t.Fatal(err)
	}
	closed, delivered := make(chan error, 1), make(chan error, 1)
	m := batchOf(1)[0]
	go func() {
		_, err := sandboxtest.Deliver(t.Context(), t, p, m)
		delivered <- err
	}()
	<-arrived
	go func() { closed <- p.Close(t.Context()) }()
	sandboxtest.Eventually(t, func() bool { return isClosed(t, p) })
	select {
	case err := <-closed:
		t.Errorf("closed (%v) before the answer came", err)
	default:
	}
	close(goOn)
	if err := <-delivered; err != nil {
		t.Errorf("the message in flight: %v", err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// isClosed says whether p takes no more messages.
func isClosed(t *testing.T, p providers.Provider) bool {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	closed := false
	_ = p.Deliver(ctx, batchOf(1), func(r providers.Result) { closed = r.Reason == "the provider is closed" })
	return closed
}

// A server that goes away after each answer loses nothing and sees nothing twice: what it did not look
// at is sent again on another connection.
func TestGoAway(t *testing.T) {
	t.Parallel()
	g := startGoogle(t)
	g.answers(func(w http.ResponseWriter, r request) {
		if r.n%20 == 0 {
			w.Header().Set("Connection", "close") // net/http's server says GOAWAY
		}
		fmt.Fprint(w, `{}`)
	})
	p := g.open(nil)
	for range 5 {
		batch := batchOf(100)
		results, err := sandboxtest.Deliver(t.Context(), t, p, batch...)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range batch {
			if r := results[m.ID]; r.Outcome != providers.Accepted {
				t.Fatalf("%+v", r)
			}
		}
	}
	if n := len(g.got()); n != 500 {
		t.Errorf("%d requests for 500 messages", n)
	}
	if s := p.Health(t.Context()).Pool; s.Closed == 0 {
		t.Errorf("no connection was replaced: %+v", s)
	}
}
