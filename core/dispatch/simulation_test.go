package dispatch_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
)

// fill records what is to be delivered: some at once, some later, some with little time, some at most
// once, some to be cancelled on the way. It also says when routes are paused and the queue is wiped.
func (w *world) fill() {
	r := rand.New(rand.NewPCG(w.seed, 0))
	now := w.now()
	var root core.ID
	binary.BigEndian.PutUint64(root[8:], w.seed)
	ids := 0
	id := func() core.ID {
		ids++
		return root.Derived(now, 0, ids)
	}
	for range 1 + r.IntN(5) {
		b := core.Batch{ID: id(), App: "a", Route: []string{"r", "s"}[r.IntN(2)], Lane: core.Lanes[r.IntN(3)], Fence: 1, DueAt: now.Add(within(r, 20*time.Second))}
		if r.IntN(2) == 0 {
			b.DueAt = now
		}
		var ds []core.Delivery
		for range 1 + r.IntN(8) {
			d := core.Delivery{ID: id(), Batch: b.ID, App: "a", Route: b.Route, Address: strconv.Itoa(len(w.labels)), State: core.Pending, CreatedAt: now,
				MaxUnknown: r.IntN(4), ExpiresAt: b.DueAt.Add(10 * time.Minute)}
			w.labels[d.ID] = len(w.labels)
			if r.IntN(6) == 0 {
				d.ExpiresAt = b.DueAt.Add(within(r, 10*time.Second))
			}
			ds = append(ds, d)
			if r.IntN(6) == 0 {
				w.later(within(r, 30*time.Second), func() { w.cancel(d.ID) })
			}
		}
		wake, woken := b.Schedule(now, r.IntN(3) > 0)
		w.put(ds, b)
		if woken {
			_ = w.Wake(w.ctx, wake)
		}
	}
	for _, route := range []string{"r", "s"} {
		if r.IntN(3) > 0 {
			continue
		}
		from := within(r, 40*time.Second)
		w.later(from, func() { w.pauseRoute(route, true) })
		w.later(from+within(r, 20*time.Second), func() {
			w.pauseRoute(route, false)
			w.nudge()
		})
	}
	for range r.IntN(3) {
		told := r.IntN(2) == 0
		w.later(within(r, 40*time.Second), func() { w.flush(told) })
	}
}

// simulate runs one seed until everything is terminal, and returns its steps if they are traced.
//
// The four rules of docs/architecture.md are looked at on the way: that every write is under the fence and fences only grow
// (memory.Settle, memory.look), that a round is on record before its provider is called, and each
// attempt counted (memory.sending, memory.burnt, and the end of this function), that whatever is not
// terminal has an alarm clock (memory.look), and that what is terminal stays so and nothing is lost
// (memory.verdicts, and the end of this function).
func simulate(t *testing.T, seed uint64, traced bool) (trace []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w := newWorld(ctx, t, seed, traced)
		w.fill()
		for _, relay := range w.relays {
			w.later(0, func() { relay.Run(ctx) })
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
				t.Errorf("seed %d: delivery d%d is %s and was handed over %d times, with %d unknown attempts on record and %d allowed", seed, w.labels[id], d.State, n, d.Unknowns, d.MaxUnknown)
			}
		}
		for id, n := range w.names {
			w.trace = append(w.trace, fmt.Sprintf("b%d is %s", n, id))
		}
		slices.Sort(w.trace[len(w.trace)-len(w.names):])
		trace = w.trace
	})
	if t.Failed() && !traced {
		t.Errorf("CARILLON_SEED=%d go test ./core/dispatch -run 'TestSimulation$' prints each of its steps", seed)
	}
	return trace
}

// TestSimulation asserts the four rules under everything that may go wrong. CARILLON_SEED=n runs
// one seed alone and prints its steps, CARILLON_SEEDS=n runs that many.
func TestSimulation(t *testing.T) {
	t.Parallel()
	if one, ok := fromEnvironment(t, "CARILLON_SEED"); ok {
		trace := simulate(t, one, true)
		t.Logf("seed %d:\n%s", one, strings.Join(trace, "\n"))
		return
	}
	seeds, ok := fromEnvironment(t, "CARILLON_SEEDS")
	if !ok {
		seeds = 1000
	}
	const parts = 4
	for part := range uint64(parts) {
		t.Run(fmt.Sprint("part ", part), func(t *testing.T) {
			t.Parallel()
			for seed := part; seed < seeds && !t.Failed(); seed += parts {
				simulate(t, seed, false)
			}
		})
	}
}

func fromEnvironment(t *testing.T, name string) (n uint64, ok bool) {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n, true
}

// TestSimulationReplays: a seed is the same to the nanosecond each time, so that what it found can be
// looked at; another seed is another story.
func TestSimulationReplays(t *testing.T) {
	t.Parallel()
	stories := map[string]uint64{}
	for seed := range uint64(100) {
		first := simulate(t, seed, true)
		if d := cmp.Diff(first, simulate(t, seed, true)); d != "" {
			t.Fatalf("seed %d went another way the second time (-first +second):\n%s", seed, d)
		}
		story := strings.Join(first, "\n")
		if other, known := stories[story]; known || len(first) == 0 {
			t.Errorf("seeds %d and %d went the same way, in %d steps", seed, other, len(first))
		}
		stories[story] = seed
	}
}
