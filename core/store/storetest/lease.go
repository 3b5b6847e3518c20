package storetest

import (
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
)

// leases: one holder at a time, a fence that only grows, and nothing for whoever lost it.
func leases(t *testing.T, s *store.Store) {
	take := func(holder string, ttl time.Duration) (core.Lease, bool) {
		t.Helper()
		l, ok, err := s.Acquire(t.Context(), "work", holder, ttl)
		if err != nil {
			t.Fatal(err)
		}
		return l, ok
	}
	a, ok := take("a", time.Hour)
	if !ok || a.Holder != "a" || a.Name != "work" || a.Fence <= 0 || time.Until(a.Until) < 50*time.Minute {
		t.Fatalf("the first: %+v %v", a, ok)
	}
	for _, holder := range []string{"b", "a"} {
		if l, ok := take(holder, time.Hour); ok || l != (core.Lease{}) {
			t.Errorf("%s took what is held: %+v", holder, l)
		}
	}
	if _, ok, err := s.Acquire(t.Context(), "other work", "b", time.Hour); err != nil || !ok {
		t.Errorf("another name: %v %v", ok, err)
	}
	longer, err := s.Renew(t.Context(), a, 2*time.Hour)
	if err != nil || longer.Fence != a.Fence || !longer.Until.After(a.Until) {
		t.Errorf("renewed: %+v %v", longer, err)
	}
	if err := s.Release(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Renew(t.Context(), a, time.Hour); !errors.Is(err, core.ErrLeaseLost) {
		t.Errorf("what was given back was renewed: %v", err)
	}
	b, ok := take("b", time.Millisecond)
	if !ok || b.Fence <= a.Fence {
		t.Fatalf("after it was given back: %+v %v", b, ok)
	}
	if err := s.Release(t.Context(), a); err != nil { // a's is long lost
		t.Fatal(err)
	}
	b, err = s.Renew(t.Context(), b, time.Millisecond)
	if err != nil {
		t.Fatalf("its time was over, but nobody took it: %v", err)
	}
	until(t, "the lease's end", func() bool { return s.Now().After(b.Until) })
	c, ok := take("c", time.Hour)
	if !ok || c.Fence <= b.Fence {
		t.Fatalf("after its end: %+v %v, before: %+v", c, ok, b)
	}
	if _, err := s.Renew(t.Context(), b, time.Hour); !errors.Is(err, core.ErrLeaseLost) {
		t.Errorf("a lost lease was renewed: %v", err)
	}
	if err := s.Release(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if _, ok := take("d", time.Hour); ok {
		t.Error("who lost a lease gave back the next one's")
	}
}

// leaseRace: of many who ask at once, one gets it, each time.
func leaseRace(t *testing.T, s *store.Store) {
	var last int64
	for range 5 {
		var won atomic.Int64
		var got core.Lease
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				l, ok, err := s.Acquire(t.Context(), "raced", "p"+strconv.Itoa(i), time.Hour)
				if err != nil {
					t.Error(err)
				}
				if ok && won.Add(1) == 1 {
					got = l
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 || got.Fence <= last {
			t.Fatalf("%d won, with fence %d after %d", won.Load(), got.Fence, last)
		}
		last = got.Fence
		if err := s.Release(t.Context(), got); err != nil {
			t.Fatal(err)
		}
	}
}
