package dispatch_test

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/dispatch"
)

// TestRelayPages tells that the relay takes page after page of whatever there is more of than one holds: after an outage
// nothing waits for its next look, four times a second, or for the next minute's.
func TestRelayPages(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		route string
		state core.BatchState
		n     int
		done  func(w *window) int
	}{
		"rounds of lost workers": {"r", core.BatchSending, 350, func(w *window) int {
			return count(w, func(d *core.Delivery) bool { return d.Unknowns == 1 })
		}},
		"batches that are due": {"r", core.BatchPending, 1700, func(w *window) int { return w.woken["a"] }},
		"what expired on a route that is gone": {"gone", core.BatchPending, 1700, func(w *window) int {
			return count(w, func(d *core.Delivery) bool { return d.State == core.Expired })
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m := newMemory(func(format string, args ...any) { t.Errorf(format, args...) })
				w := &window{memory: m, room: map[string]int{"a": 10_000}, behind: map[string]bool{}, woken: map[string]int{}}
				now := time.Now()
				for i := range tc.n {
					b := core.Batch{ID: core.NewID(now), App: "a", Route: tc.route, Lane: "normal", State: tc.state, Fence: 1, DueAt: now, RunAt: now}
					if i == 0 && b.Route == "r" { // another route has little
						b.Route = "s"
					}
					d := core.Delivery{ID: core.NewID(now), Batch: b.ID, App: "a", Route: b.Route, State: core.Pending, MaxUnknown: 9, ExpiresAt: now.Add(time.Hour)}
					if tc.route == "gone" {
						d.ExpiresAt = now.Add(-time.Duration(i))
					}
					m.put([]core.Delivery{d}, b)
				}
				d := dispatch.New(dispatch.Options{Store: w, Queue: w, Routes: elsewhere{core.DefaultPolicy}, Logger: slog.New(slog.DiscardHandler)})
				relay := dispatch.NewRelay(dispatch.RelayOptions{Overdue: w, Dispatcher: d, Routes: []string{"r", "s"}, Logger: slog.New(slog.DiscardHandler)})
				ctx, cancel := context.WithCancel(t.Context())
				go relay.Run(ctx)
				synctest.Wait() // no time passes
				w.mu.Lock()
				if n := tc.done(w); n != tc.n {
					t.Errorf("%d of %d at once", n, tc.n)
				}
				w.mu.Unlock()
				cancel()
				close(m.end)
				synctest.Wait()
			})
		})
	}
}

// count is how many deliveries are like that.
func count(w *window, like func(*core.Delivery) bool) (n int) {
	w.memory.mu.Lock()
	defer w.memory.mu.Unlock()
	for _, d := range w.deliveries {
		if like(d) {
			n++
		}
	}
	return n
}

// stopping is a store whose relay is told to stop as it settles.
type stopping struct {
	*window
	stop func()
	left time.Duration // that the settlements have
	why  error         // that they have none
}

func (s *stopping) SettleAll(ctx context.Context, all []*core.Settlement) ([]bool, []error) {
	s.stop()
	synctest.Wait()
	at, _ := ctx.Deadline()
	s.left, s.why = time.Until(at), ctx.Err()
	if s.why != nil {
		return make([]bool, len(all)), slices.Repeat([]error{s.why}, len(all))
	}
	return s.memory.SettleAll(ctx, all)
}

// TestRelayStops tells that a relay which is told to stop settles what it has taken, for nobody else could until its lease
// is over; and that it does not try for longer than that.
func TestRelayStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(func(format string, args ...any) { t.Errorf(format, args...) })
		ctx, cancel := context.WithCancel(t.Context())
		s := &stopping{window: &window{memory: m, room: map[string]int{}, behind: map[string]bool{}, woken: map[string]int{}}, stop: cancel}
		now := time.Now()
		b := core.Batch{ID: core.NewID(now), Route: "r", Lane: "normal", State: core.BatchSending, Fence: 1, DueAt: now, RunAt: now}
		lost := core.Delivery{ID: core.NewID(now), Batch: b.ID, Route: "r", State: core.Pending, MaxUnknown: 9, ExpiresAt: now.Add(time.Hour)}
		m.put([]core.Delivery{lost}, b)
		d := dispatch.New(dispatch.Options{Store: s, Queue: s, Routes: elsewhere{core.DefaultPolicy}, Logger: slog.New(slog.DiscardHandler)})
		dispatch.NewRelay(dispatch.RelayOptions{Overdue: s, Dispatcher: d, Routes: []string{"r"}, Logger: slog.New(slog.DiscardHandler)}).Run(ctx)
		if s.why != nil || s.left != core.LeaseSlack {
			t.Errorf("the settlements have %v, %v", s.left, s.why)
		}
		if got := m.get(lost.ID); got.Unknowns != 1 {
			t.Errorf("it is left to the end of its lease: %+v", got)
		}
		close(m.end)
	})
}

// noting is a queue that notes when it was asked what waits in it, and when wakes came.
type noting struct {
	*window
	began        time.Time
	silent       bool // it does not say what waits in it
	asked, wakes []time.Duration
	lanes        []core.Lane // of the wakes
}

func (n *noting) Drained(ctx context.Context, of []core.RouteLane) ([]core.RouteLane, error) {
	n.mu.Lock()
	n.asked = append(n.asked, time.Since(n.began))
	n.mu.Unlock()
	if n.silent {
		return nil, errDown
	}
	return n.window.Drained(ctx, of)
}

func (n *noting) Wake(ctx context.Context, wakes ...core.Wake) error {
	n.mu.Lock()
	n.wakes = append(n.wakes, time.Since(n.began))
	for i := range wakes {
		n.lanes = append(n.lanes, wakes[i].Lane)
	}
	n.mu.Unlock()
	return n.window.Wake(ctx, wakes...)
}

// seen is what it noted since the last call.
func (n *noting) seen() (asked, wakes []time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	asked, wakes, n.asked, n.wakes = n.asked, n.wakes, nil, nil
	return asked, wakes
}

// TestRelayUnclaimedAgain tells how soon a lost wake is made anew, in the look that finds it, also long after another
// was; and that the queues are not asked at each look for one that waits in them.
func TestRelayUnclaimedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(func(format string, args ...any) { t.Errorf(format, args...) })
		q := &noting{began: time.Now(), window: &window{memory: m, room: map[string]int{"lost": 100, "waits": 100}, behind: map[string]bool{}, woken: map[string]int{},
			drained: map[core.RouteLane]bool{{Route: "r", Lane: "normal"}: true}}}
		put := func(app string, lane core.Lane) core.ID {
			now := time.Now()
			b := core.Batch{ID: core.NewID(now), App: app, Route: "r", Lane: lane, State: core.BatchQueued, Fence: 1, DueAt: now, RunAt: now.Add(core.DispatchTimeout)}
			m.put([]core.Delivery{{ID: core.NewID(now), Batch: b.ID, App: app, Route: "r", State: core.Pending}}, b)
			return b.ID
		}
		d := dispatch.New(dispatch.Options{Store: q, Queue: q, Logger: slog.New(slog.DiscardHandler)})
		relay := dispatch.NewRelay(dispatch.RelayOptions{Overdue: q, Dispatcher: d, Routes: []string{"r"}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go relay.Run(ctx)
		// The second is not lost: its worker is slow.
		for _, taken := range []time.Duration{3 * time.Second, 1500 * time.Millisecond, 3 * time.Second} {
			time.Sleep(100 * time.Millisecond) // synctest's clock: it is between two looks
			began, id := time.Since(q.began), put("lost", "normal")
			time.Sleep(taken)
			_, wakes := q.seen()
			for i := range wakes {
				wakes[i] -= began
			}
			lost := taken == 3*time.Second
			if lost && (len(wakes) != 1 || wakes[0] < 2*time.Second || wakes[0] > 2250*time.Millisecond) || !lost && len(wakes) > 0 {
				t.Errorf("taken after %v, made anew after %v", taken, wakes)
			}
			m.mu.Lock() // a worker takes it
			b := m.batches[id]
			for _, d := range m.pending(id) {
				m.deliveries[d.ID].State = core.Sent
			}
			b.State, b.Fence = core.BatchDone, b.Fence+1
			m.open--
			m.mu.Unlock()
			time.Sleep(2 * core.DispatchTimeout)
		}
		q.seen()
		put("waits", "bulk")
		time.Sleep(core.DispatchTimeout - time.Second)
		if asked, _ := q.seen(); len(asked) < 10 || len(asked) > 20 {
			t.Errorf("asked in %v, want twice a second: %v", core.DispatchTimeout-time.Second, asked)
		}
		cancel()
		close(m.end)
		synctest.Wait()
	})
}

// TestRelayUrgentFirst tells that of what is due the urgent is woken first.
func TestRelayUrgentFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(func(format string, args ...any) { t.Errorf(format, args...) })
		q := &noting{began: time.Now(), window: &window{memory: m, room: map[string]int{"": 10}, behind: map[string]bool{}, woken: map[string]int{}}}
		now := time.Now()
		for i, lane := range core.Lanes {
			for _, route := range []string{"r", "s"} { // the least urgent for longest
				b := core.Batch{ID: core.NewID(now), Route: route, Lane: lane, State: core.BatchPending, Fence: 1, DueAt: now, RunAt: now.Add(-time.Duration(i) * time.Second)}
				m.put([]core.Delivery{{ID: core.NewID(now), Batch: b.ID, Route: route, State: core.Pending}}, b)
			}
		}
		d := dispatch.New(dispatch.Options{Store: q, Queue: q, Logger: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		dispatch.NewRelay(dispatch.RelayOptions{Overdue: q, Dispatcher: d, Routes: []string{"r", "s"}}).Run(ctx)
		want := []core.Lane{"critical", "critical", "normal", "normal", "bulk", "bulk"}
		if diff := cmp.Diff(want, q.lanes); diff != "" {
			t.Error(diff)
		}
		close(m.end)
	})
}

// TestRelaySilentQueue tells that a queue which does not say what waits in it is no reason to leave what is due, which may be
// of another one: lost wakes are made anew by their alarm clocks.
func TestRelaySilentQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(func(format string, args ...any) { t.Errorf(format, args...) })
		q := &noting{began: time.Now(), silent: true, window: &window{memory: m, room: map[string]int{"lost": 1, "due": 1}, behind: map[string]bool{}, woken: map[string]int{}}}
		now := time.Now()
		due := now.Add(3 * time.Second)
		for _, b := range []core.Batch{
			{App: "lost", State: core.BatchQueued, DueAt: now, RunAt: now.Add(core.DispatchTimeout)},
			{App: "due", State: core.BatchPending, DueAt: due, RunAt: due},
		} {
			b.ID, b.Route, b.Lane, b.Fence = core.NewID(now), "r", "normal", 1
			m.put([]core.Delivery{{ID: core.NewID(now), Batch: b.ID, App: b.App, Route: "r", State: core.Pending}}, b)
		}
		var log bytes.Buffer
		d := dispatch.New(dispatch.Options{Store: q, Queue: q, Logger: slog.New(slog.DiscardHandler)})
		relay := dispatch.NewRelay(dispatch.RelayOptions{Overdue: q, Dispatcher: d, Routes: []string{"r"}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		ctx, cancel := context.WithTimeout(t.Context(), core.DispatchTimeout+time.Second)
		defer cancel()
		relay.Run(ctx)
		asked, wakes := q.seen()
		if len(wakes) != 2 || wakes[0] > 3250*time.Millisecond || wakes[1] > core.DispatchTimeout+250*time.Millisecond || len(asked) == 0 || log.Len() > 0 {
			t.Errorf("woken at %v, asked at %v; %s", wakes, asked, log.String())
		}
		close(m.end)
	})
}

// TestRelayComplains tells that the relay says in its log, once per outage, what it could not settle or wake, and looks less
// often until it can.
func TestRelayComplains(t *testing.T) {
	t.Parallel()
	for what, l := range map[string]*lapsing{"settle overdue rounds, 1 failed": {away: "r"}, "wake what overdue rounds hold, 1 failed": {full: "r"}} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m := newMemory(func(format string, args ...any) { t.Errorf(format, args...) })
				l.window = &window{memory: m, room: map[string]int{}, behind: map[string]bool{}, woken: map[string]int{}}
				now := time.Now()
				for i := range 3 { // one after the other
					b := core.Batch{ID: core.NewID(now), Route: "r", Lane: "normal", State: core.BatchSending, Fence: 1, DueAt: now, RunAt: now.Add(time.Duration(i) * time.Second)}
					m.put([]core.Delivery{{ID: core.NewID(now), Batch: b.ID, Route: "r", State: core.Pending, MaxUnknown: 9, ExpiresAt: now.Add(time.Hour)}}, b)
				}
				var log bytes.Buffer
				d := dispatch.New(dispatch.Options{Store: l, Queue: l, Routes: elsewhere{core.DefaultPolicy}, Observer: l, Logger: slog.New(slog.DiscardHandler)})
				relay := dispatch.NewRelay(dispatch.RelayOptions{Overdue: l, Dispatcher: d, Routes: []string{"r"}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				relay.Run(ctx)
				if n := strings.Count(log.String(), "level=ERROR"); n != 1 || !strings.Contains(log.String(), what) {
					t.Errorf("%d errors: %s", n, log.String())
				}
				if diff := cmp.Diff([]time.Duration{2000}, l.gaps(0)); diff != "" {
					t.Error("looks in three seconds: " + diff)
				}
				close(m.end)
			})
		})
	}
}
