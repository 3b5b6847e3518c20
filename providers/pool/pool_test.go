package pool_test

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/pool"
)

func TestConfigJSON(t *testing.T) {
	t.Parallel()
	base := pool.Config{Max: 4, Idle: 2, IdleTimeout: 90 * time.Second, MaxLifetime: time.Hour, OpenTimeout: time.Second, Streams: 500}
	with := func(f func(*pool.Config)) pool.Config { c := base; f(&c); return c }
	for _, tt := range []struct {
		name, in string
		want     pool.Config
		err      string
	}{
		{"empty", `{}`, base, ""},
		{"null", `null`, base, ""},
		{"all", `{"max":8,"idle":3,"idle_timeout":"5m","max_lifetime":"0s","health_every":"1s","open_timeout":"2s","max_uses":7,"streams":9}`,
			pool.Config{Max: 8, Idle: 3, IdleTimeout: 5 * time.Minute, HealthEvery: time.Second, OpenTimeout: 2 * time.Second, MaxUses: 7, Streams: 9}, ""},
		{"idle none", `{"idle":0}`, with(func(c *pool.Config) { c.Idle = 0 }), ""},
		{"fewer than the default idle", `{"max":1}`, with(func(c *pool.Config) { c.Max, c.Idle = 1, 1 }), ""},
		{"unknown", `{"maximum":8}`, base, "pool.maximum is not a setting; there are max, idle,"},
		{"not an object", `[1]`, base, "pool must be an object"},
		{"max zero", `{"max":0}`, base, "pool.max: is 0 and must be from 1 to 1000"},
		{"max text", `{"max":"4"}`, base, "pool.max: must be a whole number"},
		{"max fraction", `{"max":1.5}`, base, "pool.max: must be a whole number"},
		{"idle above max", `{"max":2,"idle":3}`, base, "pool.idle is 3 and must not be more than pool.max, which is 2"},
		{"duration number", `{"idle_timeout":90}`, base, "pool.idle_timeout: must be a duration in a string"},
		{"duration nonsense", `{"idle_timeout":"soon"}`, base, `pool.idle_timeout: "soon" is not a duration`},
		{"duration negative", `{"max_lifetime":"-1s"}`, base, "pool.max_lifetime: is -1s and must be from 0s to 168h"},
		{"streams", `{"streams":0}`, base, "pool.streams: is 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := base
			err := json.Unmarshal([]byte(tt.in), &got)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("config (-want +got):\n%s", d)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	got := map[string]string{}
	for _, s := range pool.Settings(pool.Defaults(pool.Config{Idle: 1, Streams: 500})) {
		got[s.Name] = string(s.Type) + " " + s.Default
	}
	want := map[string]string{
		"pool.max": "int 4", "pool.idle": "int 1", "pool.idle_timeout": "duration 1m30s", "pool.max_lifetime": "duration 1h",
		"pool.health_every": "duration 30s", "pool.open_timeout": "duration 10s", "pool.max_uses": "int 0", "pool.streams": "int 500",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("settings (-want +got):\n%s", d)
	}
	for _, s := range pool.Settings(pool.Defaults(pool.Config{})) {
		if s.Name == "pool.streams" {
			t.Error("pool.streams is offered for a pool without streams")
		}
	}
}

// service counts the connections of a pretended service.
type service struct {
	mu       sync.Mutex
	open     int
	most     int
	next     int
	closed   []int
	err      error
	slowness time.Duration
}

func (s *service) dial(ctx context.Context) (int, error) {
	s.mu.Lock()
	slow := s.slowness
	s.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	s.next++
	s.open++
	s.most = max(s.most, s.open)
	return s.next, nil
}

func (s *service) hangUp(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	s.closed = append(s.closed, n)
}

func (s *service) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *service) opened() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next
}

func mustLease(t *testing.T, p *pool.Exclusive[int]) *pool.Lease[int] {
	t.Helper()
	l, err := p.Acquire(t.Context())
	if err != nil {
		t.Fatalf("Acquire: %v", err)
	}
	return l
}

func wantStats(t *testing.T, got, want providers.PoolStats) {
	t.Helper()
	synctest.Wait()
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("stats (-want +got):\n%s", d)
	}
}

func TestExclusiveReusesAndReleasesIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &service{}
		p := pool.NewExclusive(pool.Config{Max: 3, Idle: 1, IdleTimeout: time.Minute}, s.dial, s.hangUp, nil)
		a, b, c := mustLease(t, p), mustLease(t, p), mustLease(t, p)
		wantStats(t, p.Stats(), providers.PoolStats{Max: 3, Open: 3, InUse: 3, Opened: 3})
		a.Release()
		time.Sleep(time.Second)
		b.Release()
		time.Sleep(time.Second)
		c.Release()
		c.Release() // does nothing
		c.Destroy() // neither
		if l := mustLease(t, p); l.Value() != c.Value() || l.Uses() != 2 {
			t.Fatalf("got connection %d, use %d; want the last used, %d, use 2", l.Value(), l.Uses(), c.Value())
		} else {
			l.Release()
		}
		time.Sleep(58500 * time.Millisecond)
		synctest.Wait()
		wantStats(t, p.Stats(), providers.PoolStats{Max: 3, Open: 2, Idle: 2, Opened: 3, Closed: 1, Reused: 1})
		time.Sleep(time.Hour)
		synctest.Wait()
		wantStats(t, p.Stats(), providers.PoolStats{Max: 3, Open: 1, Idle: 1, Opened: 3, Closed: 2, Reused: 1})
		if d := cmp.Diff([]int{a.Value(), b.Value()}, s.closed); d != "" {
			t.Fatalf("closed (-want +got):\n%s", d)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s.open != 0 {
			t.Fatalf("%d connections left open", s.open)
		}
		if _, err := p.Acquire(t.Context()); !errors.Is(err, pool.ErrClosed) {
			t.Fatalf("Acquire after Close: %v", err)
		}
	})
}

func TestExclusiveWaitsAtMax(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &service{}
		p := pool.NewExclusive(pool.Config{Max: 1}, s.dial, s.hangUp, nil)
		l := mustLease(t, p)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.Acquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Acquire of a full pool: %v", err)
		}
		got := make(chan int)
		go func() {
			l := mustLease(t, p)
			got <- l.Value()
			l.Release()
		}()
		synctest.Wait()
		wantStats(t, p.Stats(), providers.PoolStats{Max: 1, Open: 1, InUse: 1, Waiting: 1, Opened: 1})
		l.Destroy() // broken: the one who waits gets a new one, and never two are open
		if n := <-got; n != 2 {
			t.Fatalf("got connection %d, want a new one", n)
		}
		if s.most != 1 {
			t.Fatalf("%d connections were open at once", s.most)
		}
		l = mustLease(t, p)
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Close with a lease out: %v", err)
		}
		l.Release()
		synctest.Wait()
		if s.open != 0 {
			t.Fatalf("%d connections left open", s.open)
		}
	})
}

func TestExclusiveEndsOldUsedAndSickOnes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &service{}
		sick := errors.New("sick")
		var checks []int
		check := func(_ context.Context, n int) error {
			checks = append(checks, n)
			if n == 2 {
				return sick
			}
			return nil
		}
		p := pool.NewExclusive(pool.Config{Max: 2, MaxUses: 3, MaxLifetime: time.Hour, HealthEvery: time.Minute}, s.dial, s.hangUp, check)
		for range 4 {
			mustLease(t, p).Release()
			synctest.Wait()
		}
		if s.next != 2 { // the fourth use is the first of the second connection
			t.Fatalf("%d connections for 4 uses of at most 3 each", s.next)
		}
		if len(checks) > 0 {
			t.Fatalf("connections in steady use were checked: %v", checks)
		}
		time.Sleep(2 * time.Minute)
		if l := mustLease(t, p); l.Value() != 3 {
			t.Fatalf("got connection %d, want the third: the second is sick", l.Value())
		} else {
			l.Release()
		}
		time.Sleep(2 * time.Minute)
		if l := mustLease(t, p); l.Value() != 3 {
			t.Fatalf("got connection %d, want the third, which is well", l.Value())
		} else {
			l.Release()
		}
		if d := cmp.Diff([]int{2, 3}, checks); d != "" {
			t.Fatalf("checked (-want +got):\n%s", d)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if s.open != 0 {
			t.Fatal("the connection outlived its life")
		}
	})
}

func TestExclusiveBacksOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		down := errors.New("down")
		s := &service{err: down}
		dials := 0
		p := pool.NewExclusive(pool.Config{Max: 2}, func(ctx context.Context) (int, error) { dials++; return s.dial(ctx) }, s.hangUp, nil)
		var pause time.Duration
		for i := range 12 {
			_, err := p.Acquire(t.Context())
			var oe *pool.OpenError
			if !errors.As(err, &oe) || !errors.Is(err, down) || oe.RetryIn <= 0 || oe.RetryIn > 10*time.Second {
				t.Fatalf("try %d: %v", i, err)
			}
			if _, err := p.Acquire(t.Context()); !errors.As(err, &oe) || dials != i+1 {
				t.Fatalf("try %d: dialled %d times (%v)", i, dials, err)
			}
			if pause = oe.RetryIn; i == 11 && pause < 8*time.Second {
				t.Fatalf("the pause after 12 failures is only %v", pause)
			}
			time.Sleep(pause)
		}
		s.fail(nil)
		mustLease(t, p).Release()
		if got := p.Stats(); got.Failed != 12 || got.Opened != 1 {
			t.Fatalf("stats %+v", got)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// TestExclusiveBacksOffOnce tells that openings which fail side by side count as one failure, and so does
// each later round of them.
func TestExclusiveBacksOffOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const many = 16
		down := errors.New("down")
		failing := true
		p := pool.NewExclusive(pool.Config{Max: many}, func(context.Context) (int, error) {
			time.Sleep(10 * time.Millisecond) // synctest's clock
			if failing {
				return 0, down
			}
			return 1, nil
		}, func(int) {}, nil)
		for round, most := range []time.Duration{100, 200, 400} {
			var wg sync.WaitGroup
			for range many {
				wg.Go(func() {
					_, err := p.Acquire(t.Context())
					var oe *pool.OpenError
					if !errors.As(err, &oe) || oe.RetryIn <= 0 || oe.RetryIn > most*time.Millisecond {
						t.Errorf("round %d: %v, to be tried again in %v, at most %dms", round, err, oe.RetryIn, most)
					}
				})
			}
			wg.Wait()
			time.Sleep(most * time.Millisecond)
		}
		failing = false
		mustLease(t, p).Release()
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestExclusiveOpensForTheNextWhenTheCallerLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &service{slowness: 3 * time.Second}
		p := pool.NewExclusive(pool.Config{Max: 1, IdleTimeout: time.Minute, OpenTimeout: 5 * time.Second}, s.dial, s.hangUp, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.Acquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		mustLease(t, p).Release()
		if s.opened() != 1 {
			t.Fatal("the connection that was being opened went to waste")
		}
		time.Sleep(2 * time.Minute)
		s.mu.Lock()
		s.slowness = time.Minute
		s.mu.Unlock()
		if _, err := p.Acquire(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("opening longer than open_timeout: %v", err)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestExclusiveStress(t *testing.T) {
	t.Parallel()
	s := &service{}
	p := pool.NewExclusive(pool.Config{Max: 5, Idle: 1, IdleTimeout: time.Millisecond, MaxLifetime: 5 * time.Millisecond, MaxUses: 20}, s.dial, s.hangUp,
		func(context.Context, int) error { return nil })
	var busy [1 << 16]atomic.Bool
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			for range 500 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+r.IntN(2000))*time.Microsecond)
				l, err := p.Acquire(ctx)
				cancel()
				if err != nil {
					continue
				}
				if !busy[l.Value()].CompareAndSwap(false, true) {
					t.Errorf("connection %d has two users", l.Value())
				}
				busy[l.Value()].Store(false)
				if r.IntN(10) == 0 {
					l.Destroy()
				} else {
					l.Release()
				}
			}
		})
	}
	wg.Wait()
	if err := p.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if s.open != 0 || s.most > 5 {
		t.Fatalf("%d left open, at most %d at once", s.open, s.most)
	}
	if got := p.Stats(); got.Opened != uint64(s.next) || got.Closed != got.Opened || got.Open != 0 {
		t.Fatalf("stats %+v, opened %d", got, s.next)
	}
}
