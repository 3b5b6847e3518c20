package store_test

import (
	"context"
	"database/sql"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// stormFor is how long a storm lasts.
const stormFor = 2 * time.Second

// storm has everybody who changes a delivery do so at once: acceptances of fallbacks and others, two relays, workers of whom
// some are lost or late, services that answer anything, receipts, those who cancel, choose, are erased, pause and resume.
type storm struct {
	*store.Store
	t       *testing.T
	ctx     context.Context // ends with the storm
	running sync.WaitGroup

	db *sql.DB

	mu    sync.Mutex
	all   []*core.Acceptance
	ended map[core.ID]int // and how, as watch saw it last
}

// The routes of a storm, and one that the configuration does not have any more.
var stormRoutes = []string{"in_app", "push", "sms"}

const strayRoute = "old"

// one is any of some.
func one[T any](some []T) T { return some[rand.IntN(len(some))] }

// check takes what may not go wrong; a caller may leave as the storm ends, and what is looked for be gone.
func (w *storm) check(what string, err error) {
	if err != nil && !errors.Is(err, core.ErrNotFound) && !errors.Is(err, context.DeadlineExceeded) {
		w.t.Errorf("%s: %v", what, err)
	}
}

// accept records a notification of some steps, or of deliveries that know nothing of each other.
func (w *storm) accept() {
	a := acceptance(w.Store, 1+rand.IntN(4))
	n, person, climbs := &a.Notification, one([]string{"", "ann", "bob", "cyd"}), rand.IntN(3) > 0
	n.Mode, n.FallbackAfter = core.ModeFallback, time.Second
	for i := range a.Deliveries {
		d := &a.Deliveries[i]
		d.Route, d.Recipient, d.MaxUnknown = one(stormRoutes), person, 2
		if rand.IntN(10) == 0 {
			d.Route = strayRoute
		}
		d.Channel, d.ExpiresAt = d.Route, n.SendAt.Add(time.Duration(1000+rand.IntN(3000))*time.Millisecond)
		if climbs {
			d.Ladder, d.Step = a.Deliveries[0].ID, (i+1)/2
		}
		if d.Step > 0 {
			d.Held, d.DueAt = core.HeldFallback, n.SendAt.Add(time.Duration(d.Step)*n.FallbackAfter)
		}
	}
	_, err := w.Record(w.ctx, a)
	w.check("record", err)
	if err == nil {
		w.mu.Lock()
		w.all = append(w.all, a)
		w.mu.Unlock()
	}
}

// some is a delivery that was recorded; nil is none.
func (w *storm) some() *core.Delivery {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.all) == 0 {
		return nil
	}
	a := one(w.all)
	return &a.Deliveries[rand.IntN(len(a.Deliveries))]
}

// deliver has workers take what is due, and settle it some time later; one in ten is lost.
func (w *storm) deliver() {
	var taken []*core.Round
	for _, route := range stormRoutes {
		wakes, err := w.Due(w.t.Context(), route, providers.Normal, 10, nil)
		w.check("take what is due", err)
		for _, wake := range wakes {
			r, err := w.Claim(w.t.Context(), wake, "w", time.Duration(1+rand.IntN(200))*time.Millisecond)
			w.check("claim", err)
			if r != nil && rand.IntN(10) > 0 {
				taken = append(taken, r)
			}
		}
	}
	for _, r := range taken {
		w.settle(r)
	}
}

// watch looks whether anything that has ended changes.
func (w *storm) watch() {
	w.mu.Lock()
	defer w.mu.Unlock()
	now, err := over(w.t.Context(), w.db)
	if err != nil {
		w.t.Error(err)
		return
	}
	for id, state := range w.ended {
		if now[id] != state {
			w.t.Errorf("delivery %s was %s and is %s", id, core.State(state), core.State(now[id]))
		}
	}
	w.ended = now
}

// settle settles a round in which the services say anything. Some of what an earlier attempt may have brought is
// acknowledged before.
func (w *storm) settle(r *core.Round) {
	for _, d := range r.Deliveries {
		if d.Unknowns > 0 && rand.IntN(2) == 0 {
			_, err := w.Receipt(w.t.Context(), d.Route, providers.Receipt{ID: d.ID.String(), Event: providers.EventDelivered})
			w.check("acknowledge", err)
			w.watch()
		}
	}
	policy := core.Policy{MaxAttempts: 4, MaxUnknown: 3, Min: time.Millisecond, Max: 1500 * time.Millisecond, MaxAfter: time.Minute}
	st := &core.Settlement{Batch: r.Batch, Worker: "w", At: r.Now}
	for _, d := range r.Deliveries {
		res := providers.Result{Outcome: providers.Outcome(1 + rand.IntN(8)), ProviderID: "p" + d.ID.String()}
		v := d.Apply(res, policy, st.At, rand.Float64())
		st.Verdicts = append(st.Verdicts, v)
		st.Results = append(st.Results, core.Attempt{Delivery: d.ID, Outcome: res.Outcome, State: v.Delivery.State})
	}
	st.Split(st.At, rand.IntN(2) == 0)
	_, err := w.Settle(w.t.Context(), st)
	w.check("settle", err)
}

// relay settles what lapsed, and what waits in vain.
func (w *storm) relay() {
	lapsed, err := w.Lapsed(w.t.Context(), 10, 200*time.Millisecond)
	w.check("take what lapsed", err)
	strays, _, err := w.Strays(w.t.Context(), stormRoutes, 10, 100*time.Millisecond, 200*time.Millisecond)
	w.check("take strays", err)
	for _, r := range append(lapsed, strays...) {
		w.settle(r)
	}
}

// hear has a service or a client say something of a delivery.
func (w *storm) hear() {
	if d := w.some(); d != nil {
		e := one([]providers.Event{providers.EventDelivered, providers.EventFailed, providers.EventBounced, providers.EventSeen})
		_, err := w.Receipt(w.ctx, d.Route, providers.Receipt{ID: d.ID.String(), Event: e})
		w.check("receipt", err)
	}
}

// meddle has somebody cancel, choose, be erased or pause.
func (w *storm) meddle() {
	person, route := one([]string{"ann", "bob", "cyd"}), one(stormRoutes)
	switch d := w.some(); rand.IntN(20) {
	case 0:
		w.check("erase", w.DeleteRecipient(w.ctx, "shop", person))
	case 1:
		w.check("choose", w.PutPreferences(w.ctx, "shop", person, core.Preferences{"*": {route: rand.IntN(2) == 0}}, &core.Rules{}))
	case 2:
		w.check("pause", w.PauseRoute(w.t.Context(), route, true))
		w.check("resume", w.PauseRoute(w.t.Context(), route, false))
	case 3:
		_, err := w.Requeue(w.ctx)
		w.check("requeue", err)
	default:
		if d != nil {
			_, err := w.Cancel(w.ctx, "shop", d.Notification)
			w.check("cancel", err)
		}
	}
}

// over are the deliveries that have ended, and how.
func over(ctx context.Context, db *sql.DB) (map[core.ID]int, error) {
	rows, err := db.QueryContext(ctx, "SELECT id, state FROM deliveries WHERE state > 2")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[core.ID]int{}
	for rows.Next() {
		var id []byte
		var state int
		if err := rows.Scan(&id, &state); err != nil {
			return nil, err
		}
		out[core.ID(id)] = state
	}
	return out, rows.Err()
}

// TestStorm: whatever happens at once, all that was accepted comes to an end, in an open batch until then, nothing that has
// ended changes, and no batch is left over.
func TestStorm(t *testing.T) {
	t.Parallel()
	bothStores(t, func(t *testing.T, url string) {
		ctx, cancel := context.WithTimeout(t.Context(), stormFor)
		defer cancel()
		w := &storm{t: t, ctx: ctx, Store: open(t, store.Options{URL: url, MaxBatch: func(string) int { return 7 }, Room: func(core.Wake) int { return rand.IntN(2) }})}
		db := raw(t, url)
		w.db = db
		for _, do := range []func(){w.accept, w.accept, w.accept, w.deliver, w.deliver, w.relay, w.relay, w.hear, w.hear, w.hear, w.meddle, w.watch} {
			w.running.Go(func() {
				for ctx.Err() == nil {
					do()
				}
			})
		}
		w.running.Wait()
		n := count(t, db, "SELECT count(*) FROM deliveries")
		const lost = "SELECT count(*) FROM deliveries d LEFT JOIN batches b ON b.id = d.batch_id WHERE d.state = 1 AND coalesce(b.state, 4) > 3"
		for end := time.Now().Add(time.Minute); count(t, db, "SELECT count(*) FROM batches WHERE state < 4") > 0; w.watch() {
			w.deliver()
			w.relay()
			if n := count(t, db, lost); n > 0 || time.Now().After(end) {
				t.Fatalf("%d are pending in batches that are done, and %d batches open", n, count(t, db, "SELECT count(*) FROM batches WHERE state < 4"))
			}
		}
		for _, a := range w.all {
			n -= len(a.Deliveries)
		}
		for q, want := range map[string]int{"deliveries WHERE state = 1": 0,
			"batches b WHERE NOT EXISTS (SELECT 1 FROM deliveries WHERE batch_id = b.id) AND NOT EXISTS (SELECT 1 FROM batches c WHERE c.parent = b.id)": 0} {
			if got := count(t, db, "SELECT count(*) FROM "+q); got != want {
				t.Errorf("%d %s, want %d", got, q, want)
			}
		}
		if n < 0 {
			t.Errorf("%d deliveries less than were accepted", -n)
		}
		t.Logf("%d notifications", len(w.all))
	})
}
