package dispatch_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/dispatch"
	"github.com/carillon-notify/carillon/providers"
)

// window is a queue with so much room for each app, in front of a store in memory. It notes when the
// relay looks, and what it says of the apps.
type window struct {
	*memory
	mu      sync.Mutex
	room    map[string]int
	behind  map[string]bool
	woken   map[string]int
	looks   []time.Time
	strays  int // how often it looks for them
	drained map[core.RouteLane]bool
}

func (w *window) Overdue(ctx context.Context) (due, unclaimed bool, err error) {
	w.mu.Lock()
	w.looks = append(w.looks, time.Now())
	w.mu.Unlock()
	return w.memory.Overdue(ctx)
}

func (w *window) Strays(ctx context.Context, routes []string, limit int, until, lease time.Duration) ([]*core.Round, int, error) {
	w.mu.Lock()
	w.strays++
	w.mu.Unlock()
	return w.memory.Strays(ctx, routes, limit, until, lease)
}

func (w *window) Refill(app, _ string, _ core.Lane) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.room[app]
}

func (w *window) Room(core.Wake) int { return 0 }

func (w *window) Drained(_ context.Context, of []core.RouteLane) ([]core.RouteLane, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(of), func(on core.RouteLane) bool { return !w.drained[on] }), nil
}

func (w *window) Behind(app, _ string, _ core.Lane, is bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.behind[app] = is
}

func (w *window) Wake(_ context.Context, wakes ...core.Wake) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range wakes {
		w.woken[wakes[i].App]++
		w.room[wakes[i].App]--
	}
	return nil
}

// gaps are the times between the relay's looks since the n-th.
func (w *window) gaps(n int) (out []time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := n + 1; i < len(w.looks); i++ {
		out = append(out, w.looks[i].Sub(w.looks[i-1])/time.Millisecond)
	}
	return out
}

// TestRelayRoom tells that the relay brings of each app in what there is room for, says which app is
// behind and when it is not any more, and how often it looks meanwhile: soon while there is more than
// room, seldom if that comes to nothing.
func TestRelayRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(func(format string, args ...any) { t.Errorf(format, args...) })
		w := &window{memory: m, room: map[string]int{"flood": 10, "lone": 10}, behind: map[string]bool{}, woken: map[string]int{}}
		now := time.Now()
		for i := range 32 {
			b := core.Batch{ID: core.NewID(now), App: "flood", Route: "r", Lane: "normal", State: core.BatchPending, Fence: 1, DueAt: now, RunAt: now}
			if i == 20 {
				b.App = "lone"
			}
			w.put([]core.Delivery{{ID: core.NewID(now), Batch: b.ID, App: b.App, Route: "r", State: core.Pending}}, b)
		}
		d := dispatch.New(dispatch.Options{Store: w, Queue: w, Logger: slog.New(slog.DiscardHandler)})
		relay := dispatch.NewRelay(dispatch.RelayOptions{Overdue: w, Dispatcher: d, Routes: []string{"r"}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go relay.Run(ctx)
		check := func(flood, lone int, behind bool) {
			t.Helper()
			w.mu.Lock()
			defer w.mu.Unlock()
			if diff := cmp.Diff(map[string]int{"flood": flood, "lone": lone}, w.woken); diff != "" {
				t.Error("woken: " + diff)
			}
			if diff := cmp.Diff(map[string]bool{"flood": behind, "lone": false}, w.behind); diff != "" {
				t.Error("behind: " + diff)
			}
		}
		synctest.Wait()
		check(10, 1, true)
		time.Sleep(5 * time.Second) // before the alarm clocks behind the wakes ring
		check(10, 1, true)
		if diff := cmp.Diff([]time.Duration{25, 25, 50, 100, 200, 250, 250}, w.gaps(0)[:7]); diff != "" {
			t.Error("looks while there is no room: " + diff)
		}
		w.mu.Lock()
		w.room["flood"], w.behind = 10, map[string]bool{"lone": false}
		n := len(w.looks)
		w.mu.Unlock()
		time.Sleep(300 * time.Millisecond)
		check(20, 1, true)
		if diff := cmp.Diff([]time.Duration{25, 25, 50}, w.gaps(n)[:3]); diff != "" {
			t.Error("looks when there is room again: " + diff)
		}
		w.mu.Lock()
		w.room["flood"], n = 100, len(w.looks)
		w.mu.Unlock()
		time.Sleep(3 * time.Second)
		check(31, 1, false)
		if diff := cmp.Diff([]time.Duration{25, 250, 250}, w.gaps(n)[:3]); diff != "" {
			t.Error("looks when nothing is left: " + diff)
		}
		cancel()
		close(m.end)
		synctest.Wait()
	})
}

// TestRelayStandby tells that a relay that does not lead looks once a second, takes what is due all the
// same and leaves strays to the leader, and looks at once when it leads again.
func TestRelayStandby(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(func(format string, args ...any) { t.Errorf(format, args...) })
		w := &window{memory: m, room: map[string]int{"a": 10}, behind: map[string]bool{}, woken: map[string]int{}}
		d := dispatch.New(dispatch.Options{Store: w, Queue: w, Logger: slog.New(slog.DiscardHandler)})
		relay := dispatch.NewRelay(dispatch.RelayOptions{Overdue: w, Dispatcher: d, Routes: []string{"r"}})
		relay.Lead(false)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go relay.Run(ctx)
		time.Sleep(3500 * time.Millisecond)
		if diff := cmp.Diff([]time.Duration{1000, 1000, 1000}, w.gaps(0)); diff != "" {
			t.Error("looks in standby: " + diff)
		}
		now := time.Now()
		b := core.Batch{ID: core.NewID(now), App: "a", Route: "r", Lane: "normal", State: core.BatchPending, Fence: 1, DueAt: now, RunAt: now}
		w.put([]core.Delivery{{ID: core.NewID(now), Batch: b.ID, App: b.App, Route: "r", State: core.Pending}}, b)
		time.Sleep(time.Second)
		w.mu.Lock()
		if w.woken["a"] != 1 {
			t.Error("what is due was left to a leader that may be dead")
		}
		if w.strays != 0 {
			t.Error("it looks for strays too, which the leader does")
		}
		n := len(w.looks)
		w.mu.Unlock()
		relay.Lead(true)
		time.Sleep(600 * time.Millisecond)
		if diff := cmp.Diff([]time.Duration{250, 250}, w.gaps(n)); diff != "" {
			t.Error("looks as the leader: " + diff)
		}
		w.mu.Lock()
		if w.strays != 1 {
			t.Errorf("the leader looked for strays %d times in a second", w.strays)
		}
		w.mu.Unlock()
		cancel()
		close(m.end)
		synctest.Wait()
	})
}

// TestRelayUnclaimed tells that a wake which the queue has not, and nobody has claimed, is made anew long
// before its alarm clock rings; that one which waits in its queue is not; and that each is made anew once in
// that time, however often the relay looks.
func TestRelayUnclaimed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(func(format string, args ...any) { t.Errorf(format, args...) })
		w := &window{memory: m, room: map[string]int{"lost": 100, "waits": 100}, behind: map[string]bool{}, woken: map[string]int{}, drained: map[core.RouteLane]bool{
			{Route: "r", Lane: "normal"}: true, {Route: "r", Lane: "critical"}: true, {Route: "s", Lane: "normal"}: true,
		}}
		now := time.Now()
		for app, lane := range map[string]core.Lane{"lost": "normal", "waits": "bulk"} {
			b := core.Batch{ID: core.NewID(now), App: app, Route: "r", Lane: lane, State: core.BatchQueued, Fence: 1, DueAt: now, RunAt: now.Add(core.DispatchTimeout)}
			w.put([]core.Delivery{{ID: core.NewID(now), Batch: b.ID, App: app, Route: "r", State: core.Pending}}, b)
		}
		d := dispatch.New(dispatch.Options{Store: w, Queue: w, Logger: slog.New(slog.DiscardHandler)})
		relay := dispatch.NewRelay(dispatch.RelayOptions{Overdue: w, Dispatcher: d, Routes: []string{"r", "s"}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go relay.Run(ctx)
		check := func(when time.Duration, lost, waits int) {
			t.Helper()
			time.Sleep(when - time.Since(now)) // synctest's clock
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.woken["lost"] != lost || w.woken["waits"] != waits {
				t.Errorf("after %v %v are woken, want %d and %d", when, w.woken, lost, waits)
			}
		}
		check(1900*time.Millisecond, 0, 0)
		check(2600*time.Millisecond, 1, 0)
		check(6*time.Second, 1, 0) // whoever is only slow has twice the time
		check(9900*time.Millisecond, 2, 0)
		check(10100*time.Millisecond, 2, 1) // by its alarm clock
		cancel()
		close(m.end)
		synctest.Wait()
	})
}

// lapsing is a store of which one route's settlements fail, and a queue that fails for another's wakes. It notes what
// the relay does about lapsed rounds.
type lapsing struct {
	*window
	away, full string // these routes
	trying     sync.Mutex
	tried      []string
	told       []string
	repaired   int
	nudged     int
}

func (l *lapsing) Room(core.Wake) int { return 10 }

func (l *lapsing) Wake(_ context.Context, wakes ...core.Wake) error {
	l.trying.Lock()
	defer l.trying.Unlock()
	for _, w := range wakes {
		l.tried = append(l.tried, w.Route)
		if w.Route == l.full {
			return errDown
		}
	}
	return nil
}

// routesTried are the routes that there were wakes for.
func (l *lapsing) routesTried() []string {
	l.trying.Lock()
	defer l.trying.Unlock()
	return slices.Clone(l.tried)
}

func (l *lapsing) SettleAll(ctx context.Context, all []*core.Settlement) ([]bool, []error) {
	l.mishap = func(op string, batch core.ID) mishap {
		return mishap{refused: op == "settle" && l.batches[batch].Route == l.away}
	}
	stale, errs := l.memory.SettleAll(ctx, all)
	for i := range all {
		if errs[i] == nil {
			all[i].Advanced = 1
		}
	}
	return stale, errs
}

func (l *lapsing) Settled(route string, _ core.Lane, _ *core.Settlement, _ time.Duration) {
	l.told = append(l.told, route)
}
func (l *lapsing) Stale(string)                           {}
func (l *lapsing) Repaired(_ string, n int)               { l.repaired += n }
func (l *lapsing) Received(string, providers.Event, bool) {}

// TestRelayGivesUpAll tells that of the lapsed rounds one that cannot be settled, and one whose wake fails, concern
// themselves alone: the others are told of, and what they hold is woken.
func TestRelayGivesUpAll(t *testing.T) {
	t.Parallel()
	all := []string{"r0", "r1", "r2", "r3"}
	for name, tc := range map[string]struct {
		away, full  string
		tried, told []string
	}{
		"all is well":                 {tried: all, told: all},
		"the first wake fails":        {full: "r0", tried: all, told: all},
		"the first cannot be settled": {away: "r0", tried: all[1:], told: all[1:]},
		"both":                        {away: "r0", full: "r1", tried: all[1:], told: all[1:]},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m := newMemory(func(format string, args ...any) { t.Errorf(format, args...) })
				l := &lapsing{window: &window{memory: m, room: map[string]int{}, behind: map[string]bool{}, woken: map[string]int{}}, away: tc.away, full: tc.full}
				now := time.Now()
				for i, route := range all {
					b := core.Batch{ID: core.NewID(now), Route: route, Lane: "normal", State: core.BatchSending, Fence: 1, DueAt: now, RunAt: now.Add(time.Duration(i-10) * time.Millisecond)}
					l.put([]core.Delivery{{ID: core.NewID(now), Batch: b.ID, Route: route, State: core.Pending, MaxUnknown: 9, ExpiresAt: now.Add(time.Hour)}}, b)
				}
				d := dispatch.New(dispatch.Options{Store: l, Queue: l, Routes: elsewhere{core.DefaultPolicy}, Observer: l, Logger: slog.New(slog.DiscardHandler), Nudge: func() { l.nudged++ }})
				relay := dispatch.NewRelay(dispatch.RelayOptions{Overdue: l, Dispatcher: d, Routes: all, Logger: slog.New(slog.DiscardHandler)})
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() { relay.Run(ctx); close(ended) }()
				synctest.Wait() // for one look
				cancel()
				<-ended
				if diff := cmp.Diff([][]string{tc.tried, tc.told}, [][]string{l.tried, l.told}); diff != "" {
					t.Error("tried to wake, and told: " + diff)
				}
				if n := len(tc.told); l.repaired != n || l.nudged != n {
					t.Errorf("%d are repaired, %d fallbacks go on, want %d", l.repaired, l.nudged, n)
				}
				close(m.end)
			})
		})
	}
}

// elsewhere are the routes of a process that delivers nothing itself.
type elsewhere struct{ policy core.Policy }

func (e elsewhere) Provider(string) (providers.Provider, dispatch.Limits, bool) {
	return nil, dispatch.Limits{}, false
}

func (e elsewhere) Policy(string) core.Policy { return e.policy }

// TestRelayKeepsPolicy tells that what a lost worker held is tried again as its route says, by a relay whose own
// process delivers nothing too.
func TestRelayKeepsPolicy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(func(format string, args ...any) { t.Errorf(format, args...) })
		w := &window{memory: m, room: map[string]int{}, behind: map[string]bool{}, woken: map[string]int{}}
		now := time.Now()
		b := core.Batch{ID: core.NewID(now), Route: "r", Lane: "normal", State: core.BatchSending, Fence: 1, DueAt: now, RunAt: now.Add(time.Second)}
		lost := core.Delivery{ID: core.NewID(now), Batch: b.ID, Route: "r", State: core.Pending, Unknowns: 8, MaxUnknown: 1000, ExpiresAt: now.Add(time.Hour)}
		w.put([]core.Delivery{lost}, b)
		d := dispatch.New(dispatch.Options{Store: w, Queue: w, Logger: slog.New(slog.DiscardHandler),
			Routes: elsewhere{core.Policy{MaxAttempts: 10, MaxUnknown: 1000, Min: 200 * time.Millisecond, Max: time.Second}}})
		relay := dispatch.NewRelay(dispatch.RelayOptions{Overdue: w, Dispatcher: d, Routes: []string{"r"}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go relay.Run(ctx)
		time.Sleep(1500 * time.Millisecond) // synctest's clock
		m.mu.Lock()
		got := m.deliveries[lost.ID]
		due := m.batches[got.Batch].DueAt
		m.mu.Unlock()
		if wait := due.Sub(now); got.Unknowns != 9 || wait > 3*time.Second {
			t.Errorf("%d unknown attempts, due %v after its beginning, want 9 and at most a second and a bit after its lease", got.Unknowns, wait)
		}
		cancel()
		close(m.end)
		synctest.Wait()
	})
}

// TestRelayStrays tells that what waits for a route that is not there any more expires in its time, that what has time is
// not woken meanwhile, for nobody takes such wakes out of the queue, and that it is when the route is back. So it is with
// what a lost worker held.
func TestRelayStrays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(func(format string, args ...any) { t.Errorf(format, args...) })
		l := &lapsing{window: &window{memory: m, room: map[string]int{"": 10}, behind: map[string]bool{}, woken: map[string]int{}}}
		now := time.Now()
		put := func(state core.BatchState, lives ...time.Duration) (ids []core.ID) {
			b := core.Batch{ID: core.NewID(now), Route: "gone", Lane: "normal", State: state, Fence: 1, DueAt: now, RunAt: now}
			var ds []core.Delivery
			for _, life := range lives {
				d := core.Delivery{ID: core.NewID(now), Batch: b.ID, Route: b.Route, State: core.Pending, MaxUnknown: 9, ExpiresAt: now.Add(life)}
				ds, ids = append(ds, d), append(ids, d.ID)
			}
			m.put(ds, b)
			return ids
		}
		waits := put(core.BatchPending, 90*time.Second, time.Hour)
		lost := put(core.BatchSending, time.Hour)
		d := dispatch.New(dispatch.Options{Store: l, Queue: l, Routes: elsewhere{core.DefaultPolicy}, Observer: l, Logger: slog.New(slog.DiscardHandler)})
		relay := dispatch.NewRelay(dispatch.RelayOptions{Overdue: l, Dispatcher: d, Routes: []string{"r"}, Logger: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go relay.Run(ctx)
		time.Sleep(90*time.Second + 2*time.Minute) // synctest's clock
		got := []string{}
		for _, id := range slices.Concat(waits, lost) {
			d := m.get(id)
			got = append(got, d.State.String()+" "+d.Code)
		}
		if diff := cmp.Diff([]string{"expired expired", "pending no_route", "pending outcome_unknown"}, got); diff != "" {
			t.Error(diff)
		}
		if woken := l.routesTried(); len(woken) != 0 {
			t.Errorf("woken for %v", woken)
		}
		relay.SetRoutes([]string{"r", "gone"})
		time.Sleep(2 * time.Minute)
		if !slices.Contains(l.routesTried(), "gone") {
			t.Error("the route is back, and nothing is woken")
		}
		cancel()
		close(m.end)
		synctest.Wait()
	})
}

// TestRelayStraysNothingUnknown tells that what a relay took of a route that is not there any more, and died with, does
// not count as unknown: nothing of it was sent, also where it may be sent once at the most.
func TestRelayStraysNothingUnknown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(func(format string, args ...any) { t.Errorf(format, args...) })
		l := &lapsing{window: &window{memory: m, room: map[string]int{"": 10}, behind: map[string]bool{}, woken: map[string]int{}}}
		now, taken := time.Now(), false
		m.mishap = func(op string, _ core.ID) mishap {
			dies := op == "strays" && !taken
			taken = taken || dies
			return mishap{diesAfter: dies}
		}
		b := core.Batch{ID: core.NewID(now), Route: "gone", Lane: "normal", State: core.BatchQueued, Fence: 1, DueAt: now, RunAt: now}
		over := core.Delivery{ID: core.NewID(now), Batch: b.ID, Route: b.Route, State: core.Pending, ExpiresAt: now}
		once := core.Delivery{ID: core.NewID(now), Batch: b.ID, Route: b.Route, State: core.Pending, ExpiresAt: now.Add(time.Hour)}
		m.put([]core.Delivery{over, once}, b)
		d := dispatch.New(dispatch.Options{Store: l, Queue: l, Routes: elsewhere{core.DefaultPolicy}, Observer: l, Logger: slog.New(slog.DiscardHandler)})
		relay := dispatch.NewRelay(dispatch.RelayOptions{Overdue: l, Dispatcher: d, Routes: []string{"r"}, Logger: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go relay.Run(ctx)
		time.Sleep(15 * time.Second) // synctest's clock
		got := []string{}
		for _, id := range []core.ID{over.ID, once.ID} {
			d := m.get(id)
			got = append(got, fmt.Sprintf("%s %s, %d unknown", d.State, d.Code, d.Unknowns))
		}
		if diff := cmp.Diff([]string{"expired expired, 0 unknown", "pending worker_stopped, 0 unknown"}, got); !taken || diff != "" {
			t.Errorf("the first taken: %t; %s", taken, diff)
		}
		cancel()
		close(m.end)
		synctest.Wait()
	})
}
