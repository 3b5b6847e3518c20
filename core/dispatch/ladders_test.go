package dispatch_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/dispatch"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// ladders is a world of fallbacks over the real SQLite store, in virtual time: the rules of a fallback are the store's,
// and the simulation's memory does not know them. Two processes share it, and all goes wrong that the seed says.
type ladders struct {
	*stage
	ds     []*dispatch.Dispatcher
	seed   uint64
	calmAt time.Time

	dice  sync.Mutex
	rolls map[string]uint64
	of    map[string]rung // by delivery
}

// rung is a delivery of a fallback and what the world knows of it.
type rung struct {
	a      *tale
	i      int
	taken  int  // how often the service took it over
	absent bool // it said that nobody is there
}

// tale is one fallback.
type tale struct {
	*core.Acceptance
	after time.Duration
	acked time.Time // when it was acknowledged, or cancelled
	from  int       // of the channels from there on nothing new goes then
}

var ladder = []string{"in_app", "push", "email"}

const ladderTimeout = 3 * time.Second

func (w *ladders) calm() bool { return !time.Now().Before(w.calmAt) }

// roll is a source of its own for the n-th decision of a sort.
func (w *ladders) roll(what string) *rand.Rand {
	w.dice.Lock()
	defer w.dice.Unlock()
	w.rolls[what]++
	h := fnv.New64a()
	_, _ = fmt.Fprint(h, what, w.rolls[what])
	return rand.New(rand.NewPCG(w.seed, h.Sum64()))
}

// shaky is the store as the processes see it.
type shaky struct {
	*store.Store
	w *ladders
}

// call does a transaction with whatever goes wrong about it.
func (s shaky) call(op string, tx func() error) error {
	if s.w.calm() {
		return tx()
	}
	r := s.w.roll(op)
	how := r.IntN(24)
	switch how {
	case 0:
		return errAway
	case 1: // the worker died
		return errDown
	case 2: // stopped in its tracks
		time.Sleep(within(r, 30*time.Second))
	}
	err := tx()
	switch {
	case err != nil:
	case how == 3:
		return errAway
	case how == 4:
		return errDown
	case how == 5:
		time.Sleep(within(r, 30*time.Second))
	}
	return err
}

func (s shaky) Claim(ctx context.Context, wake core.Wake, worker string, lease time.Duration) (r *core.Round, err error) {
	err = s.call("claim", func() (err error) {
		r, err = s.Store.Claim(ctx, wake, worker, lease)
		return err
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (s shaky) Settle(ctx context.Context, x *core.Settlement) (stale bool, err error) {
	err = s.call("settle", func() (err error) {
		stale, err = s.Store.Settle(ctx, x)
		return err
	})
	return stale && err == nil, err
}

func (s shaky) Lapsed(ctx context.Context, limit int, lease time.Duration) (rs []*core.Round, err error) {
	err = s.call("lapsed", func() (err error) {
		rs, err = s.Store.Lapsed(ctx, limit, lease)
		return err
	})
	if err != nil {
		return nil, err
	}
	return rs, nil
}

// Wake loses wakes, doubles and delays them; either process may get one.
func (w *ladders) Wake(_ context.Context, wakes ...core.Wake) error {
	for _, wake := range wakes {
		copies, delay := 1, time.Duration(0)
		if r := w.roll("wake"); !w.calm() {
			switch r.IntN(8) {
			case 0:
				copies = 0
			case 1:
				copies = 2
			case 2:
				delay = within(r, 10*time.Second)
			case 3:
				return errDown
			}
		}
		for range copies {
			w.later(time.Until(wake.At)+delay, func() { _ = w.ds[w.roll("process").IntN(len(w.ds))].Deliver(w.ctx, wake) })
		}
	}
	return nil
}

func (w *ladders) later(wait time.Duration, f func()) {
	w.wakes.Go(func() {
		if waited(w.ctx, wait) {
			f()
		}
	})
}

// Admit is the gate's: it holds back, by rate, by a circuit, by what it has.
func (w *ladders) Admit(_ context.Context, route string, _ core.Lane, n int) (int, time.Duration, string) {
	if r := w.roll("admit " + route); !w.calm() {
		switch r.IntN(8) {
		case 0:
			return 0, within(r, 5*time.Second), core.CodeRate
		case 1:
			return 0, within(r, 5*time.Second), core.CodeCircuitOpen
		}
	}
	return n, 0, ""
}

func (w *ladders) Provider(string) (providers.Provider, dispatch.Limits, bool) {
	return provider{deliver: w.deliver}, dispatch.Limits{Timeout: ladderTimeout, Policy: w.Policy("")}, true
}

func (w *ladders) Policy(string) core.Policy {
	return core.Policy{MaxAttempts: 6, MaxUnknown: 3, Min: time.Second, Max: 8 * time.Second, MaxAfter: 10 * time.Second}
}

func (w *ladders) deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	for i := range batch {
		m := &batch[i]
		w.look(m)
		r, how := w.roll("message "+m.ID), 13
		if !w.calm() {
			how = r.IntN(14)
		}
		res := providers.Result{ID: m.ID, Outcome: providers.Accepted, After: within(r, 4*time.Second)}
		switch {
		case how < 5:
			res.Outcome = []providers.Outcome{providers.Deferred, providers.Throttled, providers.Rejected, providers.Gone, providers.Absent}[how]
		case how == 5: // stalls
			<-ctx.Done()
			return ctx.Err()
		case how == 6: // lost on the way
			continue
		}
		w.took(m.ID, res.Outcome)
		if how != 7 { // else the answer is lost
			report(res)
		}
	}
	return nil
}

func (w *ladders) took(id string, o providers.Outcome) {
	w.dice.Lock()
	defer w.dice.Unlock()
	g := w.of[id]
	g.absent = g.absent || o == providers.Absent
	if o == providers.Accepted || o == providers.Absent {
		g.taken++
	}
	w.of[id] = g
}

// look holds what is sent against the rules of a fallback: each channel before it that may still reach somebody has had
// its time, and nobody has acknowledged or cancelled the whole, but for what was in a round then.
func (w *ladders) look(m *providers.Message) {
	w.dice.Lock()
	g := w.of[m.ID]
	var absent []bool
	for j := range g.a.Deliveries {
		absent = append(absent, w.of[g.a.Deliveries[j].ID.String()].absent)
	}
	acked, from := g.a.acked, g.a.from
	w.dice.Unlock()
	ds, _, err := w.s.Deliveries(context.WithoutCancel(w.ctx), "a", g.a.Notification.ID, core.Page{})
	if err != nil {
		w.violation("read deliveries: %v", err)
		return
	}
	before := 0
	for j := range g.i {
		if ds[j].State != core.Failed && !absent[j] {
			before++
		}
	}
	if early := g.a.Notification.SendAt.Add(time.Duration(before) * g.a.after).Sub(w.s.Now()); early > time.Millisecond {
		w.violation("%s went %v early, with %d before it: %s", ladder[g.i], early, before, w.states(g.a.Acceptance))
	}
	if late := w.s.Now().Sub(acked); !acked.IsZero() && g.i >= from && late > ladderTimeout+core.LeaseSlack {
		w.violation("%s went %v after all was done: %s", ladder[g.i], late, w.states(g.a.Acceptance))
	}
}

func (w *ladders) violation(format string, args ...any) {
	w.t.Errorf("seed %d, after %s: %s", w.seed, w.at(), fmt.Sprintf(format, args...))
}

// act tells of one fallback, and acknowledges or cancels it, or does not.
func (w *ladders) act(r *rand.Rand) *tale {
	after := 2*time.Second + within(r, 40*time.Second)
	a := &tale{Acceptance: w.compose(nobody, after, ladder...), after: after}
	w.dice.Lock()
	for i := range a.Deliveries {
		w.of[a.Deliveries[i].ID.String()] = rung{a: a, i: i}
	}
	w.dice.Unlock()
	got, err := w.s.Record(w.ctx, a.Acceptance)
	if err != nil {
		w.t.Fatal(err)
	}
	_ = w.Wake(w.ctx, got.Wakes...)
	do, at, which := r.IntN(3), within(r, 90*time.Second), r.IntN(len(ladder))
	w.later(at, func() {
		var err error
		switch do {
		case 0:
			return
		case 1:
			d := &a.Deliveries[which]
			_, err = w.s.Receipt(w.ctx, d.Route, providers.Receipt{ID: d.ID.String(), Event: providers.EventDelivered})
		case 2:
			_, err = w.s.Cancel(w.ctx, "a", a.Notification.ID)
		}
		if err != nil {
			w.violation("acknowledge or cancel: %v", err)
			return
		}
		w.dice.Lock()
		defer w.dice.Unlock()
		if a.acked = w.s.Now(); do == 1 {
			a.from = which + 1 // what came before may go on
		}
	})
	return a
}

// climb runs one seed.
func climb(t *testing.T, seed uint64) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := &ladders{stage: &stage{t: t, ctx: ctx, began: time.Now(), told: map[string]int{}}, seed: seed, calmAt: time.Now().Add(90 * time.Second), rolls: map[string]uint64{}, of: map[string]rung{}}
		s, err := store.Open(ctx, store.Options{URL: "sqlite:" + filepath.Join(dir, "a.db"), Room: func(core.Wake) int { return 10 }})
		if err != nil {
			t.Fatal(err)
		}
		w.s = s
		quiet := slog.New(slog.DiscardHandler)
		var relays []*dispatch.Relay
		nudge := func() {
			for _, r := range relays {
				r.Nudge()
			}
		}
		for i := range 2 {
			w.ds = append(w.ds, dispatch.New(dispatch.Options{Store: shaky{s, w}, Queue: w, Gate: w, Routes: w, Observer: w, Logger: quiet, Worker: fmt.Sprint("w", i), Nudge: nudge}))
			relays = append(relays, dispatch.NewRelay(dispatch.RelayOptions{Overdue: shaky{s, w}, Dispatcher: w.ds[i], Routes: ladder, Logger: quiet}))
		}
		for _, r := range relays {
			w.later(0, func() { r.Run(ctx) })
		}
		r := rand.New(rand.NewPCG(seed, 0))
		var tales []*tale
		for range 1 + r.IntN(4) {
			tales = append(tales, w.act(r))
		}
		for end := time.Now().Add(20 * time.Minute); time.Now().Before(end) && w.open(tales); {
			time.Sleep(5 * time.Second)
		}
		w.reckon(tales)
		cancel()
		w.wakes.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		t.Errorf("CARILLON_SEED=%d go test ./core/dispatch -run 'TestSimulatedFallbacks$' repeats its faults", seed)
	}
}

func (w *ladders) open(tales []*tale) bool {
	for _, a := range tales {
		if strings.Contains(w.states(a.Acceptance), core.Pending.String()) {
			return true
		}
	}
	return false
}

// reckon compares what is on record with what arrived.
func (w *ladders) reckon(tales []*tale) {
	for _, a := range tales {
		ds, _, err := w.s.Deliveries(w.ctx, "a", a.Notification.ID, core.Page{})
		if err != nil || len(ds) != len(ladder) {
			w.violation("a fallback has %d deliveries, %v", len(ds), err)
		}
		for i := range ds {
			d := &ds[i]
			taken := w.of[d.ID.String()].taken
			switch {
			case d.State == core.Pending:
				w.violation("%s is never done: %s", ladder[i], w.states(a.Acceptance))
			case d.State == core.Sent && taken == 0:
				w.violation("lost: %s is sent and never arrived", ladder[i])
			case taken > d.Unknowns+1:
				w.violation("%s arrived %d times, with %d unknown attempts on record", ladder[i], taken, d.Unknowns)
			}
		}
	}
}

// TestSimulatedFallbacks is the simulation of what the store decides of fallbacks, acknowledgements and cancels.
// CARILLON_SEED and CARILLON_SEEDS are as for TestSimulation.
func TestSimulatedFallbacks(t *testing.T) {
	t.Parallel()
	if one, ok := fromEnvironment(t, "CARILLON_SEED"); ok {
		climb(t, one)
		return
	}
	seeds, ok := fromEnvironment(t, "CARILLON_SEEDS")
	if !ok {
		seeds = 60
	}
	for seed := uint64(0); seed < seeds && !t.Failed(); seed++ {
		climb(t, seed)
	}
}
