package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

// ledgers are the three accounts that must agree: what was acknowledged to the client, what the world
// received, what the store says.
type ledgers struct {
	c     *caller
	world *sandbox.Sandbox
	mu    sync.Mutex
	acked []string
}

func deadToken(i int) string { return fmt.Sprintf("dead%060x", i) }

// hexToken is a live device's.
func hexToken(i int) string { return fmt.Sprintf("a%063x", i) }

// oneIn says whether i is among the n percent, spread evenly.
func percent(i, n int) bool { return i*n/100 != (i-1)*n/100 }

// putRecipients stores the recipients with an address of every kind; 2 % of the devices are dead.
func (l *ledgers) putRecipients(t *testing.T, n int) {
	t.Helper()
	var wg sync.WaitGroup
	next := atomic.Int64{}
	for range 32 {
		wg.Go(func() {
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				apns, fcm := hexToken(i), fmt.Sprintf("fcm-token-of-phone-%d", i)
				if percent(i, 2) {
					apns, fcm = deadToken(i), fmt.Sprintf("dead-fcm-token-of-phone-%d", i)
				}
				body := fmt.Sprintf(`{"endpoints":[{"kind":"apns","address":%q},{"kind":"fcm","address":%q},{"kind":"email","address":"u%d@example.com"}]}`, apns, fcm, i)
				if status, err := l.c.do(t.Context(), http.MethodPut, fmt.Sprintf("/v1/recipients/u_%d", i), body, nil); err != nil || status >= 300 {
					t.Errorf("put recipient %d: %d, %v", i, status, err)
				}
			}
		})
	}
	wg.Wait()
}

// send asks for notifications first+1 to last from several clients, half of them in a bulk stream, and
// notes each id that was acknowledged. A refused or broken request is asked again under the same key.
func (l *ledgers) send(ctx context.Context, t *testing.T, first, last int, base func() string) {
	var wg sync.WaitGroup
	next := atomic.Int64{}
	next.Store(int64(first))
	for range 32 {
		wg.Go(func() {
			for i := int(next.Add(1)); i <= last && ctx.Err() == nil; i = int(next.Add(1)) {
				l.sendOne(ctx, t, i, base)
			}
		})
	}
	wg.Wait()
}

func (l *ledgers) sendOne(ctx context.Context, t *testing.T, i int, base func() string) {
	body := fmt.Sprintf(`{"to":[{"recipient":"u_%d"}],"content":{"title":"Message %d","body":"of the fault test"},"metadata":{"n":%d}}`, i, i, i)
	for ctx.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, base()+"/v1/notifications", strings.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		req.Header.Set("Authorization", "Bearer "+testKey)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", fmt.Sprintf("fault-%d", i))
		resp, err := l.c.http.Do(req)
		if err != nil {
			pause(ctx, 50*time.Millisecond)
			continue
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		var got accepted
		if err == nil && resp.StatusCode == http.StatusAccepted && json.Unmarshal(text, &got) == nil {
			l.mu.Lock()
			l.acked = append(l.acked, got.ID)
			l.mu.Unlock()
			return
		}
		if resp.StatusCode == http.StatusUnprocessableEntity || resp.StatusCode == http.StatusUnauthorized {
			t.Errorf("notification %d was refused: %d %s", i, resp.StatusCode, text)
			return
		}
		pause(ctx, 50*time.Millisecond)
	}
}

// pause is a client's wait before it asks again.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// script sets the faults of the issue: 10 % transient errors, 1 % dropped connections; 2 % of the
// addresses are dead by their name.
func script(t *testing.T, world *sandbox.Sandbox) {
	t.Helper()
	for service, errors := range map[sandbox.Service]map[string]float64{
		sandbox.APNs: {"ServiceUnavailable": 0.05, "InternalServerError": 0.05},
		sandbox.FCM:  {"UNAVAILABLE": 0.05, "INTERNAL": 0.05},
		sandbox.SMTP: {"451 4.7.1": 0.05, "421 4.3.2": 0.05},
	} {
		if err := world.Script(service, sandbox.Script{Errors: errors, DropBefore: 0.005, DropAfter: 0.005, Latency: time.Millisecond, Jitter: 4 * time.Millisecond}); err != nil {
			t.Fatal(err)
		}
	}
}

var serviceOf = map[string]sandbox.Service{"apns": sandbox.APNs, "fcm": sandbox.FCM, "email": sandbox.SMTP}

// compare waits until everything acknowledged is terminal and compares the ledgers.
func (l *ledgers) compare(t *testing.T, n int) {
	t.Helper()
	l.mu.Lock()
	acked := l.acked
	l.mu.Unlock()
	if len(acked) != n {
		t.Fatalf("%d of %d were acknowledged", len(acked), n)
	}
	distinct := map[string]bool{}
	taken := map[sandbox.Service]map[string]int{}
	for _, s := range serviceOf {
		taken[s] = map[string]int{}
	}
	var sent, failed, duplicates, unknowns int
	known := map[string]bool{}
	for _, id := range acked {
		if distinct[id] {
			t.Errorf("%s was acknowledged for two requests", id)
		}
		distinct[id] = true
		eventually(t, 3*time.Minute, "every delivery of "+id+" terminal", func() bool {
			var v notification
			l.c.must(http.MethodGet, "/v1/notifications/"+id, nil, &v, http.StatusOK)
			return v.Counts.Pending == 0
		})
	}
	for _, s := range serviceOf {
		taken[s] = l.world.IDs(s)
	}
	for _, id := range acked {
		ds := l.c.deliveries(id)
		if len(ds) != 4 {
			t.Errorf("%s has %d deliveries, want 4", id, len(ds))
		}
		for _, d := range ds {
			known[d.ID] = true
			unknowns += d.Unknown
			copies := taken[serviceOf[d.Route]][d.ID]
			switch {
			case d.State == "sent" && copies == 0 && d.Route != "websocket":
				t.Errorf("lost: delivery %s of %s is sent and never arrived", d.ID, d.Route)
			case copies > 1+d.Unknown:
				t.Errorf("delivery %s of %s arrived %d times with %d unknown attempts on record", d.ID, d.Route, copies, d.Unknown)
			case d.State == "failed" && d.Code == "":
				t.Errorf("delivery %s of %s failed without a code", d.ID, d.Route)
			}
			switch d.State {
			case "sent", "delivered":
				sent++
			case "failed":
				failed++
			default:
				t.Errorf("delivery %s of %s ended as %s (%s)", d.ID, d.Route, d.State, d.Code)
			}
			duplicates += max(0, copies-1)
		}
	}
	for s, ids := range taken {
		for id := range ids {
			if !known[id] {
				t.Errorf("%s received %s, which belongs to nothing that was acknowledged", s, id)
			}
		}
	}
	t.Logf("%d notifications: %d deliveries sent, %d failed, %d duplicates, %d unknown attempts on record", n, sent, failed, duplicates, unknowns)
	if want := 2 * n * 2 / 100; failed < want {
		t.Errorf("%d failed, want the %d to dead devices at least", failed, want)
	}
}

// deadEndpoints checks that dead devices are gone from their recipients, and only they.
func (l *ledgers) deadEndpoints(t *testing.T, n int) {
	t.Helper()
	for i := 1; i <= n; i++ {
		var r struct {
			Endpoints []struct {
				Kind         string
				RegisteredAt time.Time `json:"registered_at"`
			}
		}
		l.c.must(http.MethodGet, fmt.Sprintf("/v1/recipients/u_%d", i), nil, &r, http.StatusOK)
		want := 3
		if percent(i, 2) {
			want = 1
		}
		if len(r.Endpoints) != want {
			var list struct{ Data []notification }
			l.c.must(http.MethodGet, fmt.Sprintf("/v1/notifications?recipient=u_%d", i), nil, &list, http.StatusOK)
			var steps json.RawMessage
			for _, n := range list.Data {
				l.c.must(http.MethodGet, "/v1/notifications/"+n.ID+"/timeline", nil, &steps, http.StatusOK)
			}
			t.Errorf("recipient %d has %d endpoints, want %d: %v; its timeline: %s", i, len(r.Endpoints), want, r.Endpoints, steps)
		}
	}
}

// TestFaultProviders: transient errors, dead devices and dropped connections lose nothing and double
// nothing that is not on record.
func TestFaultProviders(t *testing.T) {
	t.Parallel()
	world := startSandbox(t)
	script(t, world)
	p := startProcess(t, "orchestrator", []string{"-config", writeConfig(t, world, "data: "+t.TempDir())}, nil)
	l := &ledgers{c: newCaller(t, p.base), world: world}
	l.putRecipients(t, *faultN)
	l.send(t.Context(), t, 0, *faultN, func() string { return p.base })
	l.compare(t, *faultN)
	l.deadEndpoints(t, *faultN)
}
