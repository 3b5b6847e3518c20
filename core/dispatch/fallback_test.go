package dispatch_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	_ "time/tzdata" // the tests' own copy: a bare system has none

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/dispatch"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// stage is the real dispatcher, relay and SQLite store in virtual time, with a provider for all routes that
// answers as it is told and says what it got when.
type stage struct {
	t      *testing.T
	s      *store.Store
	d      *dispatch.Dispatcher
	ctx    context.Context
	began  time.Time
	wakes  sync.WaitGroup
	script map[string]providers.Outcome // by route; Accepted where nothing is said

	mu     sync.Mutex
	log    []string
	forget int            // how many settlements are kept without an answer
	told   map[string]int // what the dispatcher said of settlements, by route
}

// play runs a test on a stage. The virtual clock begins at midnight UTC on 2000-01-01.
func play(t *testing.T, act func(*stage)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		g := &stage{t: t, ctx: ctx, began: time.Now(), script: map[string]providers.Outcome{}, told: map[string]int{}}
		s, err := store.Open(ctx, store.Options{URL: "sqlite:" + filepath.Join(dir, "a.db"), Room: func(core.Wake) int { return 10 }})
		if err != nil {
			t.Fatal(err)
		}
		g.s = s
		var relay *dispatch.Relay
		quiet := slog.New(slog.DiscardHandler)
		g.d = dispatch.New(dispatch.Options{Store: forgetful{s, g}, Queue: g, Gate: g, Routes: g, Observer: g, Logger: quiet, Worker: "w", Nudge: func() { relay.Nudge() }})
		relay = dispatch.NewRelay(dispatch.RelayOptions{Overdue: s, Dispatcher: g.d, Routes: []string{"in_app", "push", "email"}, Logger: quiet})
		g.wakes.Go(func() { relay.Run(ctx) })
		act(g)
		cancel()
		g.wakes.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// at is the time since the beginning.
func (g *stage) at() time.Duration { return time.Since(g.began).Truncate(100 * time.Millisecond) }

// Wake implements dispatch.Queue.
func (g *stage) Wake(_ context.Context, wakes ...core.Wake) error {
	for _, w := range wakes {
		g.wakes.Go(func() {
			if !waited(g.ctx, time.Until(w.At)) {
				return
			}
			if err := g.d.Deliver(g.ctx, w); err != nil && g.ctx.Err() == nil {
				g.t.Error(err)
			}
		})
	}
	return nil
}

func (g *stage) Room(core.Wake) int                                                  { return 10 }
func (g *stage) Refill(string, string, core.Lane) int                                { return 10 }
func (g *stage) Drained(context.Context, []core.RouteLane) ([]core.RouteLane, error) { return nil, nil }

func (g *stage) Behind(string, string, core.Lane, bool) {
}

func (g *stage) Admit(_ context.Context, _ string, _ core.Lane, n int) (int, time.Duration, string) {
	return n, 0, ""
}
func (g *stage) Return(string, int) {}

func (g *stage) Report(string, []providers.Result) bool { return true }

func (g *stage) Provider(route string) (providers.Provider, dispatch.Limits, bool) {
	return player{g, route}, dispatch.Limits{Timeout: timeout, Policy: core.DefaultPolicy}, true
}

func (g *stage) Policy(string) core.Policy { return core.DefaultPolicy }

// player is one route's provider.
type player struct {
	*stage
	route string
}

func (p player) Deliver(_ context.Context, batch []providers.Message, report func(providers.Result)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range batch {
		p.log = append(p.log, fmt.Sprintf("%s %s", p.at(), p.route))
		o, ok := p.script[p.route]
		if !ok {
			o = providers.Accepted
		}
		report(providers.Result{ID: batch[i].ID, Outcome: o, After: time.Minute})
	}
	return nil
}
func (p player) Health(context.Context) providers.Health { return providers.Health{} }
func (p player) Close(context.Context) error             { return nil }

// tell accepts a notification by fallback over channels, to a recipient.
func (g *stage) tell(rec *core.Recipient, after time.Duration, channels ...string) *core.Acceptance {
	g.t.Helper()
	a := g.compose(rec, after, channels...)
	got, err := g.s.Record(g.ctx, a)
	if err != nil {
		g.t.Fatal(err)
	}
	if err := g.Wake(g.ctx, got.Wakes...); err != nil {
		g.t.Fatal(err)
	}
	return a
}

func (g *stage) compose(rec *core.Recipient, after time.Duration, channels ...string) *core.Acceptance {
	now := g.s.Now()
	n := core.Notification{ID: core.NewID(now), App: "a", CreatedAt: now, SendAt: now, ExpiresAt: now.Add(72 * time.Hour), Priority: providers.Normal,
		Mode: core.ModeFallback, FallbackAfter: after, Unknown: core.RetryUnknown}
	a := &core.Acceptance{Notification: n, Contents: []core.Content{{Title: "T"}}}
	climb := core.NewClimb(&n)
	rules := core.Rules{}
	ids := core.NewIDs(now, len(channels))
	for i, c := range channels {
		choice := rules.Decide(rec, &n, c, climb.DueAt())
		d := core.Delivery{ID: ids[i], Notification: n.ID, App: "a", Channel: c, Kind: c, Route: c, Recipient: "u1", Address: "x", State: core.Pending, MaxUnknown: 3,
			CreatedAt: now, UpdatedAt: now, ExpiresAt: n.ExpiresAt, Ladder: ids[0]}
		climb.Place(&d, &choice)
		climb.Next(&choice)
		a.Deliveries = append(a.Deliveries, d)
	}
	return a
}

// until waits until a time since the beginning.
func (g *stage) until(d time.Duration) {
	time.Sleep(time.Until(g.began.Add(d)))
	synctest.Wait()
}

func (g *stage) acknowledge(a *core.Acceptance, i int) {
	g.t.Helper()
	d := &a.Deliveries[i]
	if found, err := g.s.Receipt(g.ctx, d.Route, providers.Receipt{ID: d.ID.String(), Event: providers.EventDelivered}); err != nil || !found {
		g.t.Fatalf("acknowledge: %v, %v", found, err)
	}
}

// went holds what the provider got, and when, against what is wanted.
func (g *stage) went(want ...string) {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if diff := cmp.Diff(want, g.log); diff != "" {
		g.t.Errorf("what went when: %s", diff)
	}
}

func (g *stage) states(a *core.Acceptance) string {
	g.t.Helper()
	ds, _, err := g.s.Deliveries(g.ctx, "a", a.Notification.ID, core.Page{})
	if err != nil {
		g.t.Fatal(err)
	}
	var out []string
	for _, d := range ds {
		out = append(out, d.State.String())
	}
	return strings.Join(out, " ")
}

var nobody = &core.Recipient{ID: "u1"}

func TestFallbackInTime(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		script map[string]providers.Outcome
		ack    time.Duration // of the first channel; 0: never
		went   []string
		states string
	}{
		"nobody acknowledges": {nil, 0, []string{"0s in_app", "30s push", "1m0s email"}, "sent sent sent"},
		"in time":             {nil, 20 * time.Second, []string{"0s in_app"}, "delivered cancelled cancelled"},
		"late":                {nil, 40 * time.Second, []string{"0s in_app", "30s push"}, "delivered sent cancelled"},
		"nobody is there":     {map[string]providers.Outcome{"in_app": providers.Absent}, 0, []string{"0s in_app", "0s push", "30s email"}, "sent sent sent"},
		"there after all":     {map[string]providers.Outcome{"in_app": providers.Absent}, 10 * time.Second, []string{"0s in_app", "0s push"}, "delivered sent cancelled"},
		"gone, and gone":      {map[string]providers.Outcome{"in_app": providers.Rejected, "push": providers.Gone}, 0, []string{"0s in_app", "0s push", "0s email"}, "failed failed sent"},
		"the push is gone":    {map[string]providers.Outcome{"push": providers.Gone}, 0, []string{"0s in_app", "30s push", "30s email"}, "sent failed sent"},
		// The push is tried again and again, and does not hold up the mail.
		"the push has its troubles": {map[string]providers.Outcome{"push": providers.Deferred}, 80 * time.Second, []string{"0s in_app", "30s push", "1m0s email"}, "delivered cancelled sent"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			play(t, func(g *stage) {
				if tc.script != nil {
					g.script = tc.script
				}
				a := g.tell(nobody, 30*time.Second, "in_app", "push", "email")
				if tc.ack > 0 {
					g.until(tc.ack)
					g.acknowledge(a, 0)
				}
				g.until(85 * time.Second)
				g.went(tc.went...)
				if got := g.states(a); got != tc.states {
					t.Errorf("states are %q, want %q", got, tc.states)
				}
			})
		})
	}
}

// TestFallbackLasts: a fallback whose next step lies beyond what the queue takes ahead.
func TestFallbackLasts(t *testing.T) {
	t.Parallel()
	play(t, func(g *stage) {
		a := g.tell(nobody, 6*time.Minute, "in_app", "push", "email")
		g.until(7 * time.Minute)
		g.acknowledge(a, 0)
		g.until(15 * time.Minute)
		g.went("0s in_app", "6m0s push")
	})
}

// TestQuietHoursInTime: it is midnight, and quiet until ten past by the clock of Lisbon, which is UTC in winter.
func TestQuietHoursInTime(t *testing.T) {
	t.Parallel()
	sleeper := &core.Recipient{ID: "u1", Timezone: "Europe/Lisbon", QuietHours: &core.QuietHours{From: "23:55", To: "00:10", Channels: []string{"push"}}}
	for name, tc := range map[string]struct {
		script map[string]providers.Outcome
		went   []string
	}{
		"the push waits for the morning, the mail for the push": {nil, []string{"0s in_app", "10m0s push", "10m30s email"}},
		"an early turn wakes nobody":                            {map[string]providers.Outcome{"in_app": providers.Absent}, []string{"0s in_app", "10m0s push", "10m30s email"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			play(t, func(g *stage) {
				if tc.script != nil {
					g.script = tc.script
				}
				g.tell(sleeper, 30*time.Second, "in_app", "push", "email")
				g.until(12 * time.Minute)
				g.went(tc.went...)
			})
		})
	}
	t.Run("a retry keeps out of them", func(t *testing.T) {
		t.Parallel()
		play(t, func(g *stage) {
			g.until(90 * time.Second)
			g.script["push"] = providers.Throttled // tried again after a minute: in quiet hours
			g.tell(&core.Recipient{ID: "u1", QuietHours: &core.QuietHours{From: "00:02", To: "00:20"}}, time.Hour, "push")
			g.until(2 * time.Minute)
			delete(g.script, "push")
			g.until(25 * time.Minute)
			g.went("1m30s push", "20m0s push")
		})
	})
}
