package dispatch_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/dispatch"
	"github.com/carillon-notify/carillon/core/gate"
	"github.com/carillon-notify/carillon/providers"
)

// TestRateOfRoute: a round sends at the route's rate, not all that it was granted in one burst, and what it does not
// get to goes on without a gap.
func TestRateOfRoute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n, rate = 100, 10
		g := gate.New(map[string]gate.Config{"r": {Rate: rate}})
		var mu sync.Mutex
		var sent []time.Time
		b := newBench(n)
		b.deliver = func(_ context.Context, batch []providers.Message, report func(providers.Result)) error {
			mu.Lock()
			for range batch {
				sent = append(sent, time.Now())
			}
			mu.Unlock()
			time.Sleep(300 * time.Millisecond) // the service's answer, longer than a token takes
			for _, m := range batch {
				report(providers.Result{ID: m.ID, Outcome: providers.Accepted})
			}
			return nil
		}
		d := dispatch.New(dispatch.Options{Store: b, Queue: b, Gate: g, Routes: b, Logger: slog.New(slog.DiscardHandler), Worker: "w"})
		began := time.Now()
		for len(b.round.Deliveries) > 0 {
			b.round.Now = time.Now()
			if err := d.Deliver(t.Context(), core.Wake{Batch: b.round.ID, Fence: 3, Route: "r", Lane: providers.Normal}); err != nil {
				t.Fatal(err)
			}
			var held []core.Delivery
			for _, v := range b.settled.Verdicts {
				if v.Held {
					held, b.round.DueAt = append(held, v.Delivery), v.DueAt
				}
			}
			b.round.Deliveries = held
			if time.Sleep(time.Until(b.round.DueAt)); time.Since(began) > time.Minute {
				t.Fatalf("after a minute %d of %d are sent", len(sent), n)
			}
		}
		if len(sent) != n {
			t.Errorf("%d messages were sent, not %d", len(sent), n)
		}
		for i := range sent {
			if j := i + rate + 1; j < len(sent) && sent[j].Sub(sent[i]) < time.Second {
				t.Errorf("more than %d within %v, from %v on", rate+1, sent[j].Sub(sent[i]), sent[i].Sub(began))
				break
			}
		}
		if took := sent[n-1].Sub(began); took > n/rate*time.Second*11/10 {
			t.Errorf("%d messages at %d a second took %v", n, rate, took)
		}
	})
}

// TestCancelledWhileWaiting: what is cancelled while its round waits for the route's rate is not sent any more.
func TestCancelledWhileWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(30)
		b.deliver = all(providers.Accepted)
		g := gate.New(map[string]gate.Config{"r": {Rate: 10}})
		d := dispatch.New(dispatch.Options{Store: b, Queue: b, Gate: g, Routes: b, Logger: slog.New(slog.DiscardHandler), Worker: "w"})
		began := time.Now()
		var late []core.ID
		for i := range b.round.Deliveries[10:] {
			late = append(late, b.round.Deliveries[10+i].ID)
		}
		b.cancelling = func() []core.ID {
			if time.Since(began) < 950*time.Millisecond { // ten are sent
				return nil
			}
			return late
		}
		if err := d.Deliver(t.Context(), core.Wake{Batch: b.round.ID, Fence: 3, Route: "r", Lane: providers.Normal}); err != nil {
			t.Fatal(err)
		}
		sent, held := 0, 0
		for _, v := range b.settled.Verdicts {
			switch {
			case v.Held:
				held++
			case v.Delivery.State == core.Sent:
				sent++
			}
		}
		if sent != 10 || held != 20 {
			t.Errorf("%d are sent and %d held, not 10 and 20", sent, held)
		}
	})
}
