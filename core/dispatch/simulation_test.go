package dispatch_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/dispatch"
	"github.com/carillon-notify/carillon/providers"
)

// world is one run: a store, a queue, a gate and a provider that fail as the seed says, in virtual
// time. Each decision comes from the seed, what it is about and how often it came up, so that a seed
// repeats its faults; ids and the jitter of the back-off are not the seed's.
type world struct {
	*memory
	seed    uint64
	ctx     context.Context
	calmAt  time.Time // faults cease then, so that all can come to an end
	d       *dispatch.Dispatcher
	workers sync.WaitGroup

	dice   sync.Mutex
	rolls  map[string]uint64
	labels map[core.ID]int
	handed map[string]int // by delivery: how often the service took it over
	tries  map[string]int
}

// roll is a source of its own for the n-th decision of a sort about something.
func (w *world) roll(what string, about any) *rand.Rand {
	w.dice.Lock()
	defer w.dice.Unlock()
	key := fmt.Sprint(what, about)
	w.rolls[key]++
	h := fnv.New64a()
	_, _ = fmt.Fprint(h, key, w.rolls[key])
	return rand.New(rand.NewPCG(w.seed, h.Sum64()))
}

func (w *world) calm() bool { return !time.Now().Before(w.calmAt) }

// label names a batch by its first delivery, which every run of a seed has.
func (w *world) label(batch core.ID) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	least := -1
	for id, d := range w.deliveries {
		if d.Batch == batch && (least < 0 || w.labels[id] < least) {
			least = w.labels[id]
		}
	}
	return least
}

func (w *world) storeMishap(op string, batch core.ID) (m mishap) {
	if w.calm() {
		return m
	}
	r := w.roll(op, w.label(batch))
	if r.IntN(4) == 0 {
		m.before = time.Duration(r.Int64N(int64(2 * time.Second)))
		m.after = time.Duration(r.Int64N(int64(2 * time.Second)))
	}
	switch n := r.IntN(40); {
	case n < 2:
		m.refused = true
	case n < 4:
		m.lost = true
	case op != "claim" && op != "settle": // the relay is not a worker: it does not die here
	case n < 6:
		m.diesBefore = true
	case n < 8:
		m.diesAfter = true
	case n < 10: // stopped in its tracks, beyond its lease
		m.after = time.Duration(r.Int64N(int64(30 * time.Second)))
	}
	return m
}

// Wake is the queue's: wakes get lost, doubled and delayed.
func (w *world) Wake(_ context.Context, wakes ...core.Wake) error {
	for _, wake := range wakes {
		copies, delay := 1, time.Duration(0)
		if b := w.batch(wake.Batch); wake.Fence > b.Fence { // a batch that is not there panics
			w.violation("a wake with fence %d of a batch at %d", wake.Fence, b.Fence)
		}
		if !w.calm() {
			r := w.roll("wake", w.label(wake.Batch))
			switch r.IntN(8) {
			case 0:
				copies = 0
			case 1:
				copies = 2 + r.IntN(2)
			case 2:
				delay = time.Duration(r.Int64N(int64(20 * time.Second)))
			case 3:
				return errDown
			}
		}
		// asynq's due times are whole seconds, truncated.
		wait := time.Until(wake.At.Truncate(time.Second)) + delay
		for range copies {
			w.workers.Go(func() {
				w.pause(wait)
				if w.ctx.Err() == nil {
					_ = w.d.Deliver(w.ctx, wake)
				}
			})
		}
	}
	return nil
}

func (w *world) Room(like core.Wake) int { return w.Refill(like.App, like.Route, like.Lane) }

func (w *world) Behind(string, string, core.Lane, bool) {}

func (w *world) Refill(_, route string, lane core.Lane) int {
	if w.calm() {
		return 100
	}
	return w.roll("room", route+string(lane)).IntN(4)
}

// Admit is the gate's.
func (w *world) Admit(ctx context.Context, route string, n int) (int, time.Duration, string) {
	if w.calm() {
		return n, 0, ""
	}
	r := w.roll("admit", route)
	if r.IntN(4) == 0 {
		select {
		case <-time.After(time.Duration(r.Int64N(int64(5 * time.Second)))):
		case <-ctx.Done():
		}
	}
	switch r.IntN(6) {
	case 0:
		return 0, time.Duration(r.Int64N(int64(10 * time.Second))), core.CodeCircuitOpen
	case 1:
		return r.IntN(n + 1), time.Duration(r.Int64N(int64(3 * time.Second))), core.CodeRate
	case 2:
		return n + 3, -time.Second, "" // a gate that cannot count
	}
	return n, 0, ""
}

func (w *world) Report(route string, results []providers.Result) bool {
	if len(results) == 0 {
		w.violation("a report of nothing")
	}
	return w.calm() || w.roll("report", route).IntN(3) > 0
}

func (w *world) Provider(route string) (providers.Provider, dispatch.Limits, bool) {
	l := dispatch.Limits{Timeout: 3 * time.Second, Policy: core.Policy{MaxAttempts: 6, MaxUnknown: 3, Min: time.Second, Max: 8 * time.Second, MaxAfter: 10 * time.Second}}
	return provider{deliver: w.service}, l, route != "gone"
}

// service plays a provider and the service behind it.
func (w *world) service(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	if ctx.Err() != nil {
		w.violation("the provider was called after the call's time was over")
	}
	mood := w.roll("call", batch[0].Address)
	how := mood.IntN(12)
	if w.calm() {
		how = 11
	}
	var answers []providers.Result
	for i := range batch {
		if !w.inRound(batch[i].ID) {
			w.violation("a message was sent outside of a round on record")
		}
		if a, ok := w.message(&batch[i]); ok {
			answers = append(answers, a)
		}
	}
	late := func(wait time.Duration) {
		w.workers.Go(func() {
			w.pause(wait)
			for _, a := range answers {
				report(a)
			}
		})
	}
	switch how {
	case 0:
		panic(batch[0].Address)
	case 1: // answers after it returned
		late(time.Second)
		return nil
	case 2:
		return errors.New("connection lost at " + batch[0].Address)
	case 3: // stalls
		<-ctx.Done()
		return ctx.Err()
	case 4: // overstays, and answers then
		w.pause(3*time.Second + time.Duration(mood.Int64N(int64(20*time.Second))))
	case 5: // from many goroutines, twice, and of messages of others
		for range 3 {
			late(0)
		}
		report(providers.Result{ID: "nobody's", Outcome: providers.Accepted})
		report(providers.Result{ID: core.NewID(time.Now()).String(), Outcome: providers.Rejected})
	case 6:
		w.pause(time.Duration(mood.Int64N(int64(3 * time.Second))))
	}
	for _, a := range answers {
		report(a)
		report(providers.Result{ID: a.ID, Outcome: providers.Rejected, Code: "second answer"})
	}
	return nil
}

// message is what the service makes of one message; ok is false if it says nothing.
func (w *world) message(m *providers.Message) (a providers.Result, ok bool) {
	r := w.roll("message", m.Address)
	w.dice.Lock()
	defer w.dice.Unlock()
	if w.tries[m.ID]++; m.Attempt < 1 {
		w.violation("attempt %d", m.Attempt)
	}
	n := r.IntN(16)
	if w.calm() {
		n = 15
	}
	a = providers.Result{ID: m.ID, After: time.Duration(r.Int64N(int64(4*time.Second))) - time.Second}
	outcomes := [...]providers.Outcome{providers.Deferred, providers.Throttled, providers.Denied, providers.Rejected, providers.Gone, providers.Absent, 200, providers.Unknown}
	switch {
	case n < len(outcomes):
		a.Outcome = outcomes[n]
	case n < 10: // lost on the way
		return a, false
	case n < 12: // taken, and the answer lost
		w.handed[m.ID]++
		return a, false
	default:
		a.Outcome = providers.Accepted
	}
	if a.Outcome == providers.Accepted || a.Outcome == providers.Absent {
		w.handed[m.ID]++
	}
	return a, true
}

// fill records what is to be delivered: some at once, some later, some with little time, some at most
// once.
func (w *world) fill() {
	r := rand.New(rand.NewPCG(w.seed, 0))
	now := time.Now()
	for range 1 + r.IntN(5) {
		b := core.Batch{ID: core.NewID(now), App: "a", Route: []string{"r", "s"}[r.IntN(2)], Lane: core.Lanes[r.IntN(3)], Fence: 1, DueAt: now.Add(time.Duration(r.Int64N(int64(20 * time.Second))))}
		if r.IntN(2) == 0 {
			b.DueAt = now
		}
		var ds []core.Delivery
		for _, id := range core.NewIDs(now, 1+r.IntN(8)) {
			w.mu.Lock()
			w.labels[id] = len(w.labels)
			w.mu.Unlock()
			d := core.Delivery{ID: id, Batch: b.ID, App: "a", Route: b.Route, Address: strconv.Itoa(w.labels[id]), State: core.Pending, CreatedAt: now,
				MaxUnknown: r.IntN(4), ExpiresAt: b.DueAt.Add(10 * time.Minute)}
			if r.IntN(6) == 0 {
				d.ExpiresAt = b.DueAt.Add(time.Duration(r.Int64N(int64(10 * time.Second))))
			}
			ds = append(ds, d)
			if r.IntN(6) == 0 {
				at := time.Duration(r.Int64N(int64(30 * time.Second)))
				w.workers.Go(func() { w.pause(at); w.cancel(id) })
			}
		}
		wake, woken := b.Schedule(now, r.IntN(3) > 0)
		w.put(ds, b)
		if woken {
			_ = w.Wake(w.ctx, wake)
		}
	}
}

// simulate runs one seed until everything is terminal.
func simulate(t *testing.T, seed uint64) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w := &world{seed: seed, ctx: ctx, calmAt: time.Now().Add(time.Minute), rolls: map[string]uint64{}, labels: map[core.ID]int{}, handed: map[string]int{}, tries: map[string]int{}}
		w.memory = newMemory(func(format string, args ...any) {
			t.Errorf("seed %d, after %s: %s", seed, time.Since(w.calmAt.Add(-time.Minute)), fmt.Sprintf(format, args...))
		})
		w.mishap = w.storeMishap
		log := slog.New(slog.DiscardHandler)
		w.d = dispatch.New(dispatch.Options{Store: w, Queue: w, Gate: w, Routes: w, Logger: log, Worker: "w"})
		w.fill()
		for range 1 + seed%2 { // any number of relays may run
			relay := dispatch.NewRelay(dispatch.RelayOptions{Overdue: w, Dispatcher: w.d, Routes: []string{"r", "s"}, Logger: log})
			w.workers.Go(func() { relay.Run(ctx) })
		}
		select {
		case <-w.idle:
		case <-time.After(20 * time.Minute):
			t.Errorf("seed %d: after 20 minutes there are %+v", seed, w.states())
		}
		total := w.states()
		cancel()
		close(w.end)
		w.workers.Wait()
		if after := w.states(); after != total || after.Total() != len(w.labels) {
			t.Errorf("seed %d: %d accepted, %+v in the end, %+v after that", seed, len(w.labels), total, after)
		}
		for id := range w.labels {
			d, most := w.get(id), 0
			if d.State == core.Sent {
				most = 1
			}
			if n := w.handed[id.String()]; n > d.Unknowns+most || n > d.MaxUnknown+1 || d.State == core.Sent && n == 0 {
				t.Errorf("seed %d: delivery %d is %s and was handed over %d times, with %d unknown attempts on record and %d allowed", seed, w.labels[id], d.State, n, d.Unknowns, d.MaxUnknown)
			}
		}
	})
}

// TestSimulation asserts DESIGN's four rules under everything that may go wrong. CARILLON_SEED=n runs
// one seed alone, CARILLON_SEEDS=n that many.
func TestSimulation(t *testing.T) {
	t.Parallel()
	if one := os.Getenv("CARILLON_SEED"); one != "" {
		seed, err := strconv.ParseUint(one, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		simulate(t, seed)
		return
	}
	seeds := uint64(400)
	if many := os.Getenv("CARILLON_SEEDS"); many != "" {
		n, err := strconv.ParseUint(many, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = n
	}
	const parts = 4
	for part := range uint64(parts) {
		t.Run(fmt.Sprint("part ", part), func(t *testing.T) {
			t.Parallel()
			for seed := part; seed < seeds && !t.Failed(); seed += parts {
				simulate(t, seed)
			}
		})
	}
}
