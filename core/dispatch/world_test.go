package dispatch_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/dispatch"
	"github.com/carillon-notify/carillon/providers"
)

// world is one run: a store, a queue, a gate and a provider that fail as the seed says, in virtual time.
//
// A seed replays to the letter. Ids follow from the seed and from each other, the back-off's jitter from
// the ids; each decision comes from the seed, what it is about and how often it came up. And no two
// things begin at one instant (see stagger), so that their order is that of their times and never the
// scheduler's.
type world struct {
	*memory
	seed    uint64
	ctx     context.Context
	began   time.Time
	calmAt  time.Time              // faults cease then, so that all can come to an end
	ds      []*dispatch.Dispatcher // of the processes, any of which may get a wake
	relays  []*dispatch.Relay
	workers sync.WaitGroup

	dice      sync.Mutex
	staggered time.Duration
	rolls     map[string]uint64
	labels    map[core.ID]int // of the deliveries
	names     map[core.ID]int // of the batches, as they are first spoken of
	handed    map[string]int  // by delivery: how often the service took it over
	tried     map[string]bool // delivery, batch and fence
	flushes   int             // how often the queue lost all it held
	trace     []string
}

func newWorld(ctx context.Context, t *testing.T, seed uint64, traced bool) *world {
	now := time.Now()
	w := &world{seed: seed, ctx: ctx, began: now, calmAt: now.Add(time.Minute), rolls: map[string]uint64{}, labels: map[core.ID]int{}, names: map[core.ID]int{},
		handed: map[string]int{}, tried: map[string]bool{}}
	w.memory = newMemory(func(format string, args ...any) {
		t.Errorf("seed %d, after %s: %s", seed, time.Since(w.began), fmt.Sprintf(format, args...))
	})
	w.mishap = w.storeMishap
	if traced {
		w.note = w.write
	}
	log := slog.New(slog.DiscardHandler)
	for i := range 1 + seed%3 { // any number of processes may run, and of relays
		w.ds = append(w.ds, dispatch.New(dispatch.Options{Store: w, Queue: w, Gate: w, Routes: w, Logger: log, Worker: "w" + strconv.FormatUint(i, 10)}))
		w.relays = append(w.relays, dispatch.NewRelay(dispatch.RelayOptions{Overdue: w, Dispatcher: w.ds[i], Routes: []string{"r", "s"}, Logger: log}))
	}
	// The machine that the store is on may be right, and those of the processes not.
	w.ahead = []time.Duration{0, 0, 2 * time.Hour, -2 * time.Hour, 1500 * time.Millisecond, -1500 * time.Millisecond}[w.roll("clock", "").IntN(6)]
	return w
}

// write adds a step to the trace, until nothing is left to do: what ends then ends in no order.
func (w *world) write(format string, args ...any) {
	w.dice.Lock()
	defer w.dice.Unlock()
	select {
	case <-w.idle:
		return
	default:
	}
	for i, a := range args {
		if id, ok := a.(core.ID); ok {
			args[i] = w.name(id)
		}
	}
	w.trace = append(w.trace, fmt.Sprintf("%14s ", time.Since(w.began))+fmt.Sprintf(format, args...))
}

// name is what people call a delivery (d3), a batch (b5), or the store as a whole.
func (w *world) name(id core.ID) string {
	if id.IsZero() {
		return "-"
	}
	if n, ok := w.labels[id]; ok {
		return "d" + strconv.Itoa(n)
	}
	if _, ok := w.names[id]; !ok {
		w.names[id] = len(w.names)
	}
	return "b" + strconv.Itoa(w.names[id])
}

// stagger is a time that nothing else was given: what is put off by it begins alone.
func (w *world) stagger() time.Duration {
	w.dice.Lock()
	defer w.dice.Unlock()
	w.staggered += 13 * time.Nanosecond
	return w.staggered
}

// later runs f after a wait.
func (w *world) later(wait time.Duration, f func()) {
	wait = max(wait, 0) + w.stagger()
	w.workers.Go(func() {
		w.pause(wait)
		if w.ctx.Err() == nil {
			f()
		}
	})
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

// within is a random time below a bound.
func within(r *rand.Rand, bound time.Duration) time.Duration {
	return time.Duration(r.Int64N(int64(bound)))
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

// storeMishap is what goes wrong with a call of the store: a database that is slow or away, a reply that
// is lost, a worker that dies or is stopped between claim and settlement.
func (w *world) storeMishap(op string, batch core.ID) (m mishap) {
	if w.calm() {
		return m
	}
	r := w.roll(op, w.label(batch))
	if r.IntN(4) == 0 {
		m.before, m.after = within(r, 2*time.Second), within(r, 2*time.Second)
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
		m.after = within(r, 30*time.Second)
	case n < 12:
		m.unread = op == "claim"
	}
	return m
}

// Wake is the queue's: wakes get lost, doubled, delayed and hurried, and all of them wiped.
func (w *world) Wake(_ context.Context, wakes ...core.Wake) error {
	for _, wake := range wakes {
		copies, delay := 1, time.Duration(0)
		if b := w.batch(wake.Batch); wake.Fence > b.Fence { // a batch that is not there panics
			w.violation("a wake with fence %d of a batch at %d", wake.Fence, b.Fence)
		}
		if !w.calm() {
			r := w.roll("wake", w.label(wake.Batch))
			switch r.IntN(10) {
			case 0:
				copies = 0
			case 1:
				copies = 2 + r.IntN(2)
			case 2:
				delay = within(r, 20*time.Second)
			case 3, 4:
				delay = -within(r, 3*time.Second)
			case 5:
				w.note("wake %v with fence %d: the queue is away", wake.Batch, wake.Fence)
				return errDown
			}
		}
		w.note("wake %v with fence %d: %d copies, moved by %s", wake.Batch, wake.Fence, copies, delay)
		// asynq's due times are whole seconds, truncated.
		wait, held := wake.At.Truncate(time.Second).Sub(w.now())+delay, w.wiped()
		for range copies {
			w.later(wait, func() {
				if w.wiped() == held {
					_ = w.ds[w.roll("process", w.label(wake.Batch)).IntN(len(w.ds))].Deliver(w.ctx, wake)
				}
			})
		}
	}
	return nil
}

// wiped is how often the queue lost what it held.
func (w *world) wiped() int {
	w.dice.Lock()
	defer w.dice.Unlock()
	return w.flushes
}

// flush is FLUSHALL: every wake under way is gone. The relay may be told.
func (w *world) flush(told bool) {
	w.note("all wakes are gone, the relay is told: %t", told)
	w.dice.Lock()
	w.flushes++
	w.dice.Unlock()
	if told {
		w.nudge()
	}
}

func (w *world) nudge() {
	for _, r := range w.relays {
		w.later(0, r.Nudge)
	}
}

func (w *world) Room(like core.Wake) int { return w.Refill(like.App, like.Route, like.Lane) }

// Drained says anything, for whatever it says has to be borne: it may be wrong by then.
func (w *world) Drained(_ context.Context, of []core.RouteLane) ([]core.RouteLane, error) {
	if w.calm() {
		return of, nil
	}
	r := w.roll("drained", "")
	if r.IntN(8) == 0 {
		return nil, errDown
	}
	return slices.DeleteFunc(slices.Clone(of), func(core.RouteLane) bool { return r.IntN(2) == 0 }), nil
}

func (w *world) Behind(string, string, core.Lane, bool) {}

func (w *world) Refill(_, route string, lane core.Lane) int {
	if w.calm() {
		return 100
	}
	return w.roll("room", route+string(lane)).IntN(4)
}

// Admit is the gate's.
func (w *world) Admit(ctx context.Context, route string, lane core.Lane, n int) (int, time.Duration, string) {
	if w.calm() {
		return n, 0, ""
	}
	r := w.roll("admit", route)
	if r.IntN(4) == 0 {
		select {
		case <-time.After(within(r, 5*time.Second)):
		case <-ctx.Done():
		}
	}
	switch r.IntN(6) {
	case 0:
		return 0, within(r, 10*time.Second), core.CodeCircuitOpen
	case 1:
		return r.IntN(n + 1), within(r, 3*time.Second), core.CodeRate
	case 2:
		return n + 3, -time.Second, "" // a gate that cannot count
	}
	return n, 0, ""
}

func (w *world) Return(string, int) {}

func (w *world) Report(route string, results []providers.Result) bool {
	if len(results) == 0 {
		w.violation("a report of nothing")
	}
	return w.calm() || w.roll("report", route).IntN(3) > 0
}

func (w *world) Provider(route string) (providers.Provider, dispatch.Limits, bool) {
	return provider{deliver: w.service}, dispatch.Limits{Timeout: 3 * time.Second, Policy: w.Policy(route)}, route != "gone"
}

func (w *world) Policy(string) core.Policy {
	return core.Policy{MaxAttempts: 6, MaxUnknown: 3, Min: time.Second, Max: 8 * time.Second, MaxAfter: 10 * time.Second}
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
		if a, ok := w.message(&batch[i]); ok {
			answers = append(answers, a)
		}
	}
	w.note("call of %d with d%s first: of sort %d, %d answers", len(batch), batch[0].Address, how, len(answers))
	// These report beside whoever reports too: first come what they say alike, so that it does not matter.
	aside := func(wait time.Duration) {
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
		aside(time.Second)
		return nil
	case 2:
		return errors.New("connection lost at " + batch[0].Address)
	case 3: // stalls
		<-ctx.Done()
		return ctx.Err()
	case 4: // overstays, and answers then
		w.pause(3*time.Second + within(mood, 20*time.Second))
	case 5: // from many goroutines, twice, and of messages of others
		for range 3 {
			aside(0)
		}
		report(providers.Result{ID: "nobody's", Outcome: providers.Accepted})
		report(providers.Result{ID: core.NewID(time.Now()).String(), Outcome: providers.Rejected})
	case 6:
		w.pause(within(mood, 3*time.Second))
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
	b := w.sending(m)
	w.dice.Lock()
	defer w.dice.Unlock()
	if key := fmt.Sprint(m.ID, b.ID, b.Fence); w.tried[key] {
		w.violation("delivery d%s was sent twice under fence %d of one batch", m.Address, b.Fence)
	} else {
		w.tried[key] = true
	}
	n := r.IntN(16)
	if w.calm() {
		n = 15
	}
	a = providers.Result{ID: m.ID, After: within(r, 4*time.Second) - time.Second}
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
