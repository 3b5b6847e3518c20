package dispatch_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/dispatch"
	"github.com/carillon-notify/carillon/providers"
)

// bounds is a bench that notes until when gate and provider are given time, and whose gate and store may be unruly.
type bounds struct {
	*bench
	mu              sync.Mutex
	began           time.Time
	admit, call     time.Duration // deadlines, from the beginning
	takes           time.Duration // by the gate, whatever its deadline
	grants          int           // by the gate at once; 0: all
	reported        func([]providers.Result)
	settle          func(ctx context.Context) error
	settledInTime   chan struct{}
	deliverMessages []providers.Message
}

func newBounds(n int) *bounds {
	return &bounds{bench: newBench(n), began: time.Now(), settledInTime: make(chan struct{})}
}

func (b *bounds) Admit(ctx context.Context, _ string, _ core.Lane, n int) (int, time.Duration, string) {
	if at, ok := ctx.Deadline(); ok {
		b.admit = at.Sub(b.began)
	}
	time.Sleep(b.takes)
	if b.grants > 0 {
		n = min(n, b.grants)
	}
	return n, 0, ""
}

func (b *bounds) Report(_ string, results []providers.Result) bool {
	if b.reported != nil {
		b.reported(results)
	}
	return true
}

func (b *bounds) Settle(ctx context.Context, s *core.Settlement) (bool, error) {
	if b.settle != nil {
		return false, b.settle(ctx)
	}
	close(b.settledInTime)
	return b.bench.Settle(ctx, s)
}

func (b *bounds) Provider(string) (providers.Provider, dispatch.Limits, bool) {
	return b, dispatch.Limits{Timeout: timeout, Policy: core.DefaultPolicy}, true
}

func (b *bounds) Deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	b.mu.Lock()
	if at, ok := ctx.Deadline(); ok {
		b.call = at.Sub(b.began)
	}
	b.deliverMessages = batch
	b.mu.Unlock()
	return b.deliver(ctx, batch, report)
}

func (b *bounds) play() error { return b.playAs(b) }

// ports are those of a bounds, or of a test's own that is one.
type ports interface {
	dispatch.Store
	dispatch.Queue
	dispatch.Gate
	dispatch.Routes
}

func (b *bounds) playAs(p ports) error {
	d := dispatch.New(dispatch.Options{Store: p, Queue: p, Gate: p, Routes: p, Logger: b.log, Worker: "w"})
	return d.Deliver(context.Background(), core.Wake{Batch: b.round.ID, Fence: 3, Route: "r", Lane: providers.Normal})
}

// TestDeadlines: a gate may wait only as long as leaves the call its time, a call has its timeout, and no call goes on in
// the lease's last second, however long the gate took.
func TestDeadlines(t *testing.T) {
	t.Parallel()
	const margin = time.Second
	for name, c := range map[string]struct{ takes, call time.Duration }{
		"at once":           {0, timeout},
		"a gate that waits": {core.LeaseSlack - margin, core.LeaseSlack - margin + timeout},
		"an unruly gate":    {core.LeaseSlack + time.Second, core.LeaseSlack + timeout - margin},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBounds(1)
				b.takes, b.deliver = c.takes, all(providers.Accepted)
				if err := b.play(); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff([]time.Duration{core.LeaseSlack - margin, c.call}, []time.Duration{b.admit, b.call}); diff != "" {
					t.Errorf("until when the gate and the call have time: %s", diff)
				}
			})
		})
	}
}

// TestOverstayed: a provider that does not return holds up its worker and not the settlement, and what it answers after it
// was given up is not heard.
func TestOverstayed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBounds(1)
		asked, answered := make(chan struct{}), make(chan struct{})
		b.reported = func(results []providers.Result) {
			close(asked)
			<-answered
			if len(results) != 1 || results[0].Outcome != providers.Unknown {
				t.Errorf("the gate hears of %+v", results)
			}
		}
		ended := false
		b.deliver = func(_ context.Context, batch []providers.Message, report func(providers.Result)) error {
			<-asked
			report(providers.Result{ID: batch[0].ID, Outcome: providers.Accepted})
			close(answered)
			<-b.settledInTime
			ended = true
			return nil
		}
		if err := b.play(); err != nil {
			t.Fatal(err)
		}
		if !ended {
			t.Error("the worker is free before the provider has returned")
		}
		if got := b.settled.Verdicts[0].Delivery; got.State != core.Pending || got.Unknowns != 1 {
			t.Errorf("%+v", got)
		}
	})
}

// TestOverstayedFirst: a provider that does not return from one of a round's calls holds up no settlement either where another
// of them fails after that, and what was answered to a third counts.
func TestOverstayedFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBounds(3)
		b.grants, b.takes = 1, time.Second
		b.deliver = func(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
			switch batch[0].ID {
			case b.round.Deliveries[0].ID.String():
				select {
				case <-b.settledInTime:
				case <-time.After(time.Hour):
					t.Error("the settlement waits for it")
				}
				return nil
			case b.round.Deliveries[1].ID.String():
				<-ctx.Done() // after the first was given up
				return ctx.Err()
			}
			report(providers.Result{ID: batch[0].ID, Outcome: providers.Accepted})
			return nil
		}
		if err := b.play(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[core.State]int{core.Pending: 2, core.Sent: 1}, b.states(t)); diff != "" {
			t.Error(diff)
		}
	})
}

// TestClaimAgain: the lease of a claim that the store was away for at first begins with the one that it took, so that gate
// and call have all their time.
func TestClaimAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBounds(1)
		b.deliver, b.away["claim"] = all(providers.Accepted), 4
		if err := b.play(); err != nil {
			t.Fatal(err)
		}
		const asking = 1500 * time.Millisecond // 100 ms, 200, 400 and 800 between the five
		if diff := cmp.Diff([]time.Duration{asking + core.LeaseSlack - time.Second, asking + timeout}, []time.Duration{b.admit, b.call}); diff != "" {
			t.Errorf("until when the gate and the call have time: %s", diff)
		}
	})
}

// TestSettlingEnds: a store that hangs has a settlement for as long as the slack of a lease.
func TestSettlingEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBounds(1)
		b.deliver = all(providers.Accepted)
		b.settle = func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}
		if err := b.play(); err == nil {
			t.Error("it says that it is settled")
		}
		if took := time.Since(b.began); took != core.LeaseSlack {
			t.Errorf("it took %v", took)
		}
	})
}

// TestSuppressedAddress: nothing is sent to an address that is suppressed, and the timeline says why.
func TestSuppressedAddress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBounds(2)
		b.deliver = all(providers.Accepted)
		b.round.Deliveries[0].Suppressed = "bounced"
		if err := b.play(); err != nil {
			t.Fatal(err)
		}
		if len(b.deliverMessages) != 1 || b.deliverMessages[0].ID != b.round.Deliveries[1].ID.String() {
			t.Errorf("sent: %+v", b.deliverMessages)
		}
		if diff := cmp.Diff(map[core.State]int{core.Suppressed: 1, core.Sent: 1}, b.states(t)); diff != "" {
			t.Error(diff)
		}
		if got := b.settled.Results[0]; !got.None || got.Reason != "bounced" {
			t.Errorf("the timeline has %+v", got)
		}
	})
}

// TestReceiverPanics: a receiver that panics is begun again.
func TestReceiverPanics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		turns := 0
		p := provider{receive: func(ctx context.Context, _ func(providers.Receipt) error) error {
			if turns++; turns == 1 {
				panic("a stranger's code")
			}
			<-ctx.Done()
			return ctx.Err()
		}}
		dispatch.New(dispatch.Options{}).Receive(ctx, receipts(func(providers.Receipt) bool { return true }), "r", p)
		if turns != 2 {
			t.Errorf("it was begun %d times", turns)
		}
	})
}
