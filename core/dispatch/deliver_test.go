package dispatch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/dispatch"
	"github.com/carillon-notify/carillon/providers"
)

const timeout = 10 * time.Second

// bench is a Dispatcher's surroundings: one batch, one provider.
type bench struct {
	round    *core.Round
	settled  *core.Settlement
	granted  int
	admit    time.Duration // that the gate takes
	admitted int           // that the gate was asked for
	// returned is how much of that was given back.
	returned   int
	believe    bool
	cancelling func() []core.ID // nil: nothing
	away       map[string]int   // how often the store is away before it does something
	lost       int              // how many claims are kept and their answers lost
	unread     error            // why the contents of a claimed round cannot be read
	sending    bool             // a round is under way
	log        *slog.Logger
	deliver    func(ctx context.Context, batch []providers.Message, report func(providers.Result)) error
}

func newBench(n int) *bench {
	now := time.Now()
	b := &bench{granted: 1000, believe: true, away: map[string]int{}, log: slog.New(slog.DiscardHandler), round: &core.Round{Batch: core.Batch{ID: core.NewID(now), App: "a", Route: "r", Lane: providers.Normal, Fence: 3, DueAt: now, State: core.BatchSending},
		Now: now, Contents: map[core.ContentRef]*core.Content{{}: {Title: "T"}}}}
	for _, id := range core.NewIDs(now, n) {
		b.round.Deliveries = append(b.round.Deliveries, core.Delivery{ID: id, App: "a", Route: "r", Kind: "k", Address: "x", State: core.Pending, MaxUnknown: 3, ExpiresAt: now.Add(time.Hour)})
	}
	return b
}

// Claim is as the real one: a batch is given out once, until it is settled.
func (b *bench) Claim(context.Context, core.Wake, string, time.Duration) (*core.Round, error) {
	if err := b.absent("claim"); err != nil || b.sending {
		return nil, err
	}
	b.sending = true
	if b.lost--; b.lost >= 0 {
		return nil, errAway
	}
	return b.round, b.unread
}

// absent says that the store is away, as often as it is to be.
func (b *bench) absent(what string) error {
	if b.away[what]--; b.away[what] >= 0 {
		return fmt.Errorf("%w: no connection", core.ErrUnavailable)
	}
	return nil
}

func (b *bench) Settle(_ context.Context, s *core.Settlement) (bool, error) {
	err := b.absent("settle")
	if err == nil {
		b.settled, b.sending = s, false
	}
	return false, err
}

func (b *bench) Cancelling(context.Context, core.ID) ([]core.ID, error) {
	if b.cancelling == nil {
		return nil, nil
	}
	return b.cancelling(), nil
}

func (b *bench) Wake(context.Context, ...core.Wake) error { return nil }
func (b *bench) Room(core.Wake) int                       { return 10 }
func (b *bench) Refill(string, string, core.Lane) int     { return 10 }
func (b *bench) Behind(string, string, core.Lane, bool)   {}

func (b *bench) Drained(context.Context, []core.RouteLane) ([]core.RouteLane, error) { return nil, nil }

// waited waits, and reports false if ctx ended before. A wait for nothing has no timer: in a bubble of testing/synctest
// receivers of timers that are due already share one context of the race detector, which ends the process where two of
// them meet (go.dev/issue/78156).
func waited(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func (b *bench) Admit(_ context.Context, _ string, _ core.Lane, n int) (int, time.Duration, string) {
	time.Sleep(b.admit)
	b.admitted += n
	return min(n, b.granted), time.Minute, core.CodeRate
}

func (b *bench) Return(_ string, n int) { b.returned += n }

func (b *bench) Report(string, []providers.Result) bool { return b.believe }

func (b *bench) Provider(string) (providers.Provider, dispatch.Limits, bool) {
	return b, dispatch.Limits{Timeout: timeout, Policy: core.DefaultPolicy}, true
}

func (b *bench) Policy(string) core.Policy { return core.DefaultPolicy }

func (b *bench) Deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	return b.deliver(ctx, batch, report)
}

func (b *bench) Health(context.Context) providers.Health { return providers.Health{} }
func (b *bench) Close(context.Context) error             { return nil }

// dispatch is one pass.
func (b *bench) dispatch(ctx context.Context) error {
	d := dispatch.New(dispatch.Options{Store: b, Queue: b, Gate: b, Routes: b, Logger: b.log, Worker: "w"})
	return d.Deliver(ctx, core.Wake{Batch: b.round.ID, Fence: 3, Route: "r", Lane: providers.Normal})
}

func (b *bench) run(t *testing.T) map[core.State]int {
	t.Helper()
	if err := b.dispatch(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b.states(t)
}

// states counts what the deliveries were settled as.
func (b *bench) states(t *testing.T) map[core.State]int {
	t.Helper()
	if b.settled == nil || len(b.settled.Verdicts) != len(b.round.Deliveries) {
		t.Fatalf("settled %+v, want one verdict for each of %d deliveries", b.settled, len(b.round.Deliveries))
	}
	states := map[core.State]int{}
	for i := range b.settled.Verdicts {
		states[b.settled.Verdicts[i].Delivery.State]++
	}
	return states
}

func all(o providers.Outcome) func(context.Context, []providers.Message, func(providers.Result)) error {
	return func(_ context.Context, batch []providers.Message, report func(providers.Result)) error {
		for _, m := range batch {
			report(providers.Result{ID: m.ID, Outcome: o})
		}
		return nil
	}
}

func TestDeliver(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*bench)
		want   map[core.State]int
		check  func(*testing.T, *bench)
	}{
		"accepted":              {func(b *bench) { b.deliver = all(providers.Accepted) }, map[core.State]int{core.Sent: 10}, nil},
		"the gate grants three": {func(b *bench) { b.deliver, b.granted = all(providers.Accepted), 3 }, map[core.State]int{core.Sent: 3, core.Pending: 7}, nil},
		"paused": {func(b *bench) {
			b.round.Paused = true
			b.deliver = func(context.Context, []providers.Message, func(providers.Result)) error { panic("called") }
		}, map[core.State]int{core.Pending: 10}, nil},
		"expired": {func(b *bench) {
			b.deliver = all(providers.Accepted)
			for i := range 4 {
				b.round.Deliveries[i].ExpiresAt = b.round.Now
			}
		}, map[core.State]int{core.Expired: 4, core.Sent: 6}, nil},
		"no answers": {func(b *bench) {
			b.deliver = func(context.Context, []providers.Message, func(providers.Result)) error { return errors.New("x") }
		}, map[core.State]int{core.Pending: 10}, func(t *testing.T, b *bench) {
			for _, v := range b.settled.Verdicts {
				if v.Delivery.Unknowns != 1 || v.Delivery.Attempts != 0 {
					t.Errorf("%d unknowns, %d attempts; want 1 and 0", v.Delivery.Unknowns, v.Delivery.Attempts)
				}
			}
		}},
		"panic": {func(b *bench) {
			b.deliver = func(context.Context, []providers.Message, func(providers.Result)) error { panic("secret") }
		}, map[core.State]int{core.Pending: 10}, nil},
		"two answers and foreign ids": {func(b *bench) {
			b.deliver = func(_ context.Context, batch []providers.Message, report func(providers.Result)) error {
				report(providers.Result{ID: core.NewID(time.Now()).String(), Outcome: providers.Rejected})
				for _, m := range batch {
					report(providers.Result{ID: m.ID, Outcome: providers.Accepted})
					report(providers.Result{ID: m.ID, Outcome: providers.Rejected})
				}
				return nil
			}
		}, map[core.State]int{core.Sent: 10}, nil},
		"gone and believed": {func(b *bench) { b.deliver = all(providers.Gone) }, map[core.State]int{core.Failed: 10}, func(t *testing.T, b *bench) {
			if b.settled.Verdicts[0].Gone == nil {
				t.Error("no endpoint is dropped")
			}
		}},
		"gone and not believed": {func(b *bench) { b.deliver, b.believe = all(providers.Gone), false }, map[core.State]int{core.Pending: 10}, func(t *testing.T, b *bench) {
			for _, v := range b.settled.Verdicts {
				if v.Gone != nil || !v.Held || v.Delivery.Attempts != 0 {
					t.Errorf("%+v: want it held, nothing dropped, no attempt burnt", v)
				}
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(10)
			tc.change(b)
			got := b.run(t)
			for state, n := range tc.want {
				if got[state] != n {
					t.Errorf("%d are %s, want %d (all: %v)", got[state], state, n, got)
				}
			}
			if tc.check != nil {
				tc.check(t, b)
			}
		})
	}
}

// TestRateExpiresNobody: what waits for its route's rate is not given up because the whole round would have to wait for
// longer than it has: it may be among the first. What is past its time is.
func TestRateExpiresNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(3)
		b.granted = 0 // for a minute
		now := time.Now()
		b.round.Deliveries[0].ExpiresAt = now.Add(30 * time.Second)
		b.round.Deliveries[1].ExpiresAt = now.Add(time.Second)
		if diff := cmp.Diff(map[core.State]int{core.Pending: 2, core.Expired: 1}, b.run(t)); diff != "" {
			t.Fatal(diff)
		}
		var due []time.Duration
		for _, v := range b.settled.Verdicts {
			if v.Held {
				due = append(due, v.DueAt.Sub(now))
			}
		}
		if diff := cmp.Diff([]time.Duration{15 * time.Second, time.Minute}, due); diff != "" {
			t.Error("due: " + diff)
		}
	})
}

// TestPausedRests: what a paused route holds has no wake, which would make it a round again and again until the route
// is resumed.
func TestPausedRests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(2)
		b.round.Paused = true
		b.run(t)
		if got := b.settled.Stay; got.State != core.BatchPending || !got.RunAt.Equal(got.DueAt) || !got.DueAt.After(time.Now()) {
			t.Errorf("%+v", got)
		}
	})
}

// TestCallEndsBeforeLease: a provider's context ends a margin before the lease does, and one that
// ignores it does not hold the settlement up.
func TestCallEndsBeforeLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(2)
		began := time.Now()
		b.deliver = func(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
			deadline, ok := ctx.Deadline()
			if !ok || deadline.After(began.Add(timeout+core.LeaseSlack-time.Second)) {
				t.Errorf("the call ends at %s, too late", deadline.Sub(began))
			}
			report(providers.Result{ID: batch[0].ID, Outcome: providers.Accepted})
			<-ctx.Done()
			<-time.After(2 * time.Second) // it overstays
			report(providers.Result{ID: batch[1].ID, Outcome: providers.Accepted})
			return nil
		}
		got := b.run(t)
		if got[core.Sent] != 1 || got[core.Pending] != 1 {
			t.Errorf("%v, want one sent and one held as unknown", got)
		}
		if took := b.settled.At.Sub(began); took > timeout+core.LeaseSlack {
			t.Errorf("settled after %s, past the lease", took)
		}
	})
}

// TestLeaveGivenBack: what the gate let through and was not sent is given back, or a half-open circuit waits
// for answers that never come.
func TestLeaveGivenBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(3)
		b.deliver = all(providers.Accepted)
		b.admit = timeout // all that the call was to have; one of the messages expires meanwhile
		b.round.Deliveries[0].ExpiresAt = time.Now().Add(timeout / 2)
		if got := b.run(t); got[core.Sent] != 2 || b.returned != 1 {
			t.Errorf("%v, and leave for %d was given back, not for one", got, b.returned)
		}
		b.returned, b.admit = 0, timeout+core.LeaseSlack
		if got := b.run(t); got[core.Sent] != 0 || b.returned != 3 {
			t.Errorf("stopped beyond its lease: %v, and leave for %d was given back, not for three", got, b.returned)
		}
	})
}

// TestStoreAway: what the service answered outlives a store that is away for a moment, and a wake does too.
func TestStoreAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(2)
		b.deliver = all(providers.Accepted)
		b.away["claim"], b.away["settle"] = 3, 4
		began := time.Now()
		if got := b.run(t); got[core.Sent] != 2 {
			t.Errorf("%v", got)
		}
		if took := time.Since(began); took < 2*time.Second || took > 2*core.LeaseSlack {
			t.Errorf("the store was asked seven times too often within %v", took)
		}
		b.away["settle"] = 100
		began = time.Now()
		if err := b.dispatch(t.Context()); !errors.Is(err, core.ErrUnavailable) {
			t.Errorf("a store that is away for good: %v", err)
		}
		if took := time.Since(began); took > core.LeaseSlack+time.Second {
			t.Errorf("it was given up after %v", took)
		}
	})
}

// TestUnread: a round whose contents cannot be read is held and settled: nothing of it is sent or counts as
// unknown. That the process is told to stop meanwhile changes nothing.
func TestUnread(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		stopped bool
		unread  error
		code    string
	}{
		"the store is away":       {false, errAway, core.CodeStoreAway},
		"the process is to stop":  {true, context.Canceled, core.CodeStopped},
		"the read took too long":  {false, context.DeadlineExceeded, core.CodeStoreAway},
		"whatever else was wrong": {false, errors.New("permission denied"), core.CodeStoreAway},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(3)
				b.unread, b.away["settle"] = tc.unread, 2
				b.deliver = func(context.Context, []providers.Message, func(providers.Result)) error { panic("called") }
				b.round.Deliveries[2].ExpiresAt = time.Now().Add(time.Second)
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				if tc.stopped {
					stop()
				}
				if err := b.dispatch(ctx); !errors.Is(err, tc.unread) {
					t.Errorf("%v, want %v", err, tc.unread)
				}
				if got := b.states(t); got[core.Pending] != 2 || got[core.Expired] != 1 {
					t.Errorf("%v", got)
				}
				for i := range b.settled.Verdicts {
					d, a := &b.settled.Verdicts[i].Delivery, &b.settled.Results[i]
					if d.Attempts+d.Unknowns > 0 || !a.None || d.State == core.Pending && d.Code != tc.code {
						t.Errorf("%s with %d attempts, %d unknown: %+v", d.Code, d.Attempts, d.Unknowns, a)
					}
				}
				if b.settled.Stay.Fence != 4 || b.settled.Stay.State != core.BatchQueued {
					t.Errorf("the batch stays as %+v", b.settled.Stay)
				}
			})
		})
	}
}

// TestNoContent: what there is nothing to send of is never sent as an empty message. The first time it is held,
// for the settlement cancels what was erased; what comes back so has failed. It burns nothing of the gate.
func TestNoContent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(3)
		b.deliver = func(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
			for _, m := range batch {
				if m.Title != "T" {
					t.Errorf("an empty message was sent: %+v", m)
				}
			}
			return all(providers.Accepted)(ctx, batch, report)
		}
		b.round.Deliveries[1].Content = core.ContentRef{Slot: 9}
		if got := b.run(t); got[core.Sent] != 2 || got[core.Pending] != 1 || b.admitted != 2 {
			t.Errorf("%v, and leave was asked for %d", got, b.admitted)
		}
		held := b.settled.Verdicts[0]
		if d := held.Delivery; !held.Held || d.Code != core.CodeNoContent || d.Attempts+d.Unknowns > 0 || !b.settled.Results[0].None {
			t.Errorf("%+v, %+v", held, b.settled.Results[0])
		}
		b.round.Deliveries, b.admitted = []core.Delivery{held.Delivery}, 0
		if got := b.run(t); got[core.Failed] != 1 || b.admitted != 0 {
			t.Errorf("%v, and leave was asked for %d", got, b.admitted)
		}
		if d := b.settled.Verdicts[0].Delivery; d.Code != core.CodeNoContent || d.Attempts+d.Unknowns > 0 || !b.settled.Results[0].None {
			t.Errorf("%+v", d)
		}
	})
}

// TestClaimLost: that a claim may have been kept and its answer lost is said, once a minute; a wake that is
// stale is no matter.
func TestClaimLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for name, tc := range map[string]struct {
			change func(*bench)
			want   int
		}{
			"stale": {func(b *bench) { b.sending = true }, 0},
			"lost":  {func(b *bench) { b.lost = 1 }, 1},
		} {
			var said bytes.Buffer
			b := newBench(1)
			b.log = slog.New(slog.NewTextHandler(&said, nil))
			tc.change(b)
			d := dispatch.New(dispatch.Options{Store: b, Queue: b, Gate: b, Routes: b, Logger: b.log, Worker: "w"})
			for range 3 {
				if err := d.Deliver(t.Context(), core.Wake{Batch: b.round.ID, Fence: 3, Route: "r", Lane: providers.Normal}); err != nil || b.settled != nil {
					t.Errorf("%s: %v, settled %+v", name, err, b.settled)
				}
				if tc.want > 0 { // once more
					b.sending, b.lost = false, 1
				}
			}
			if n := strings.Count(said.String(), "level=WARN"); n != tc.want || n > 0 && !strings.Contains(said.String(), b.round.ID.String()) {
				t.Errorf("%s: %d lines, want %d:\n%s", name, n, tc.want, said.String())
			}
		}
	})
}

// TestEarlyWake: a wake less than a second early waits for its time.
func TestEarlyWake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(1)
		due := time.Now().Add(800 * time.Millisecond)
		b.round.DueAt = due
		b.deliver = func(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
			if time.Now().Before(due) {
				t.Errorf("sent %s early", time.Until(due))
			}
			return all(providers.Accepted)(ctx, batch, report)
		}
		if got := b.run(t); got[core.Sent] != 1 {
			t.Errorf("%v", got)
		}
	})
}

// TestReceiptBeforeItsRound: a receipt by the service's own id that is faster than the settlement of its
// round is looked up once more; one by our id is not waited for.
func TestReceiptBeforeItsRound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		asked := 0
		store := receipts(func(rc providers.Receipt) bool {
			asked++
			return rc.ProviderID == "p-1" && asked > 1
		})
		p := provider{receive: func(_ context.Context, report func(providers.Receipt) error) error {
			began := time.Now()
			if err := report(providers.Receipt{ProviderID: "p-1", Event: providers.EventDelivered}); err != nil || asked != 2 || time.Since(began) == 0 {
				t.Errorf("asked %d times in %s: %v", asked, time.Since(began), err)
			}
			began = time.Now()
			if err := report(providers.Receipt{ID: "x", Event: providers.EventDelivered}); err != nil || asked != 3 || time.Since(began) != 0 {
				t.Errorf("asked %d times in %s: %v", asked, time.Since(began), err)
			}
			cancel()
			return nil
		}}
		dispatch.New(dispatch.Options{}).Receive(ctx, store, "sms", p)
	})
}

type receipts func(providers.Receipt) bool

func (r receipts) Receipt(_ context.Context, _ string, rc providers.Receipt) (bool, error) {
	return r(rc), nil
}

// TestUnsubscribe: a mail of a category to a stored recipient carries a link, and nothing else does.
func TestUnsubscribe(t *testing.T) {
	t.Parallel()
	b := newBench(5)
	news, plain := core.ContentRef{Slot: 1}, core.ContentRef{Slot: 2}
	b.round.Contents = map[core.ContentRef]*core.Content{news: {Title: "T", Category: "news"}, plain: {Title: "T"}}
	for i, d := range []core.Delivery{
		{Channel: "email", Recipient: "u1", Content: news}, {Channel: "email", Content: news}, {Channel: "email", Recipient: "u1", Content: plain},
		{Channel: "push", Recipient: "u1", Content: news}, {Channel: "email", Recipient: "u2", Content: news},
	} {
		to := &b.round.Deliveries[i]
		to.Channel, to.Recipient, to.Content = d.Channel, d.Recipient, d.Content
	}
	var links []string
	b.deliver = func(_ context.Context, batch []providers.Message, _ func(providers.Result)) error {
		for i := range batch {
			links = append(links, batch[i].Unsubscribe)
		}
		return nil
	}
	d := dispatch.New(dispatch.Options{Store: b, Queue: b, Gate: b, Routes: b, Logger: slog.New(slog.DiscardHandler), Worker: "w",
		Unsubscribe: func(u core.Unsubscription) string { return fmt.Sprint(u) }})
	if err := d.Deliver(t.Context(), core.Wake{Batch: b.round.ID, Fence: 3, Route: "r", Lane: providers.Normal}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"{a u1 news email}", "", "", "", "{a u2 news email}"}, links); diff != "" {
		t.Error(diff)
	}
}
