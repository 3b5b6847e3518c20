package store_test

import (
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// climbing is a notification whose first step goes by a route, and whose second is a mail that waits.
func climbing(s *store.Store, route string) *core.Acceptance {
	a := acceptance(s, 2)
	n, first, second := &a.Notification, &a.Deliveries[0], &a.Deliveries[1]
	n.Mode, n.FallbackAfter = core.ModeFallback, time.Minute
	first.Ladder, first.Route, second.Ladder, second.Step, second.Held = first.ID, route, first.ID, 1, core.HeldFallback
	second.DueAt = n.SendAt.Add(n.FallbackAfter)
	return a
}

// TestFallbacksWithoutDeadlock: many fallbacks end, by what is heard of their first step, and many go on, by rounds that are
// settled, all at once. Their second steps share batches, which several committers change; none waits for another in a
// circle, which would cost PostgreSQL a second each time to find out.
func TestFallbacksWithoutDeadlock(t *testing.T) {
	t.Parallel()
	url := coretest.Postgres(t)
	s := open(t, store.Options{URL: url})
	for range 4 {
		var all, heard []*core.Acceptance
		failing := map[core.ID]bool{} // batches
		for range 300 {
			a := climbing(s, "push")
			all, heard = append(all, a, climbing(s, "sms")), append(heard, a)
		}
		recordTogether(t, s, all)
		sentOnce := map[core.ID]bool{}
		for _, a := range all {
			switch d := &a.Deliveries[0]; {
			case d.Route == "sms":
				failing[d.Batch] = true
			case !sentOnce[d.Batch]:
				sentOnce[d.Batch] = true
				perform(t, s, core.Wake{Batch: d.Batch, Fence: 1, Route: d.Route}, sent)
			}
		}
		var wg sync.WaitGroup
		for b := range failing {
			wg.Go(func() {
				perform(t, s, core.Wake{Batch: b, Fence: 1, Route: "sms"}, func(core.Delivery) providers.Result { return providers.Result{Outcome: providers.Rejected} })
			})
		}
		for _, e := range []providers.Event{providers.EventDelivered, providers.EventSeen} {
			for _, a := range heard {
				wg.Go(func() {
					if _, err := s.Receipt(t.Context(), "push", providers.Receipt{ID: a.Deliveries[0].ID.String(), Event: e}); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
	}
	db := raw(t, url)
	if n := count(t, db, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"); n > 0 {
		t.Errorf("%d deadlocks", n)
	}
	if n := count(t, db, "SELECT count(*) FROM deliveries WHERE route = 'mail' AND state = 6 AND code = 'acknowledged'"); n != 4*300 {
		t.Errorf("%d fallbacks ended, want %d", n, 4*300)
	}
}
