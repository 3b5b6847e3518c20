package lead_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/lead"
	"github.com/carillon-notify/carillon/core/store"
)

const ttl = 15 * time.Second

// cut is the store with a connection that can be cut.
type cut struct {
	*store.Store
	off atomic.Bool
}

func (c *cut) Renew(ctx context.Context, l core.Lease, ttl time.Duration) (core.Lease, error) {
	if c.off.Load() {
		<-ctx.Done()
		return l, ctx.Err()
	}
	return c.Store.Renew(ctx, l, ttl)
}

func (c *cut) Acquire(ctx context.Context, name, holder string, ttl time.Duration) (core.Lease, bool, error) {
	if c.off.Load() {
		return core.Lease{}, false, errors.New("no connection")
	}
	return c.Store.Acquire(ctx, name, holder, ttl)
}

// term is one time of leading.
type term struct {
	who   string
	fence int64
}

// world is some candidates on one store, in virtual time.
type world struct {
	t     *testing.T
	store *store.Store
	began chan term
	ended chan term
	busy  atomic.Int64
}

func play(t *testing.T, test func(*world)) {
	synctest.Test(t, func(t *testing.T) {
		s, err := store.Open(t.Context(), store.Options{URL: "sqlite:" + filepath.Join(t.TempDir(), "x.db")})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		test(&world{t: t, store: s, began: make(chan term, 100), ended: make(chan term, 100)})
	})
}

// candidate runs for the work until the stop that it returns, which waits for its end.
func (w *world) candidate(who string, leases lead.Leases, work func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		o := lead.Options{Leases: leases, Name: "work", Holder: who, TTL: ttl, Logger: slog.New(slog.DiscardHandler)}
		lead.Run(ctx, o, func(ctx context.Context, l core.Lease) {
			if w.busy.Add(1) > 1 {
				w.t.Error("two lead at a time")
			}
			w.began <- term{who, l.Fence}
			work(ctx)
			w.busy.Add(-1)
			w.ended <- term{who, l.Fence}
		})
	}()
	return func() { cancel(); <-done }
}

func untilDone(ctx context.Context) { <-ctx.Done() }

// within is the next of some events, which has to come within a time.
func (w *world) within(limit time.Duration, events chan term) term {
	w.t.Helper()
	select {
	case e := <-events:
		return e
	case <-time.After(limit):
		w.t.Fatalf("nothing within %s", limit)
		return term{}
	}
}

// TestOneLeads: of two one leads for as long as it runs, and the other as soon as that one stops.
func TestOneLeads(t *testing.T) {
	t.Parallel()
	play(t, func(w *world) {
		stop := map[string]func(){"a": w.candidate("a", w.store, untilDone), "b": w.candidate("b", w.store, untilDone)}
		first := w.within(time.Second, w.began)
		time.Sleep(time.Hour)
		if len(w.began)+len(w.ended) > 0 {
			t.Error("the leader changed though it lives")
		}
		stop[first.who]()
		delete(stop, first.who)
		second := w.within(ttl/3+time.Second, w.began)
		if second.who == first.who || second.fence <= first.fence {
			t.Errorf("after %+v came %+v", first, second)
		}
		stop[second.who]()
	})
}

// TestCutOff: a leader that the store does not answer stops leading before anybody else can begin.
func TestCutOff(t *testing.T) {
	t.Parallel()
	play(t, func(w *world) {
		shaky := &cut{Store: w.store}
		stop := w.candidate("shaky", shaky, untilDone)
		defer stop()
		first := w.within(time.Second, w.began)
		defer w.candidate("other", w.store, untilDone)()
		time.Sleep(time.Minute)
		shaky.off.Store(true)
		if e := w.within(ttl+time.Second, w.ended); e != first {
			t.Errorf("%+v ended", e)
		}
		if e := w.within(ttl/3+time.Second, w.began); e.who != "other" {
			t.Errorf("%+v began", e)
		}
	})
}

// TestLost: a leader whose lease somebody else has learns it at its next renewal.
func TestLost(t *testing.T) {
	t.Parallel()
	play(t, func(w *world) {
		defer w.candidate("a", w.store, untilDone)()
		first := w.within(time.Second, w.began)
		// As if it had been stopped in its tracks for long.
		if err := w.store.Release(w.t.Context(), core.Lease{Name: "work", Fence: first.fence}); err != nil {
			t.Fatal(err)
		}
		if _, ok, err := w.store.Acquire(w.t.Context(), "work", "b", time.Minute); err != nil || !ok {
			t.Fatal(ok, err)
		}
		if e := w.within(ttl/3+time.Second, w.ended); e != first {
			t.Errorf("%+v ended", e)
		}
		if e := w.within(2*time.Minute, w.began); e.fence <= first.fence {
			t.Errorf("it leads again as %+v", e)
		}
	})
}

// TestWorkEnds: work that returns by itself is begun again.
func TestWorkEnds(t *testing.T) {
	t.Parallel()
	play(t, func(w *world) {
		defer w.candidate("a", w.store, func(context.Context) {})()
		first := w.within(time.Second, w.began)
		if again := w.within(ttl, w.began); again.fence <= first.fence {
			t.Errorf("%+v after %+v", again, first)
		}
	})
}
