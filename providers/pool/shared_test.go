package pool_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/pool"
)

func newShared(s *service, cfg pool.Config) *pool.Shared[int] {
	return pool.NewShared(cfg, func(ctx context.Context, _ *pool.Conn[int]) (int, error) { return s.dial(ctx) }, s.hangUp)
}

func mustUse(t *testing.T, p *pool.Shared[int]) *pool.Conn[int] {
	t.Helper()
	c, err := p.Acquire(t.Context())
	if err != nil {
		t.Fatalf("Acquire: %v", err)
	}
	return c
}

func TestSharedOpensOnlyWhenAllAreFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &service{}
		p := newShared(s, pool.Config{Max: 2, Streams: 3})
		var uses []*pool.Conn[int]
		var at []int
		for range 6 {
			c := mustUse(t, p)
			uses, at = append(uses, c), append(at, c.Value())
		}
		if d := cmp.Diff([]int{1, 1, 1, 2, 2, 2}, at); d != "" {
			t.Fatalf("connections (-want +got):\n%s", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.Acquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Acquire of a full pool: %v", err)
		}
		uses[0].Release()
		uses[1].Release()
		uses[3].Release()
		if c := mustUse(t, p); c.Value() != 1 {
			t.Fatalf("got connection %d, want the least loaded", c.Value())
		}
		wantStats(t, p.Stats(), providers.PoolStats{Max: 2, Open: 2, InUse: 2, Opened: 2, Reused: 5})
		for _, c := range []*pool.Conn[int]{uses[0], uses[2], uses[4], uses[5]} {
			c.Release()
		}
		wantStats(t, p.Stats(), providers.PoolStats{Max: 2, Open: 2, Idle: 2, Opened: 2, Reused: 5})
		if err := p.Close(t.Context()); err != nil || s.open != 0 {
			t.Fatalf("Close: %v, %d left", err, s.open)
		}
		if _, err := p.Acquire(t.Context()); !errors.Is(err, pool.ErrClosed) {
			t.Fatalf("Acquire after Close: %v", err)
		}
	})
}

func TestSharedOpensOnceForMany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &service{slowness: time.Second}
		p := newShared(s, pool.Config{Max: 4, Streams: 10})
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { mustUse(t, p) })
		}
		synctest.Wait()
		if got := p.Stats(); got.Waiting != 10 {
			t.Fatalf("%d wait, want 10", got.Waiting)
		}
		wg.Wait()
		if s.next != 1 {
			t.Fatalf("%d connections opened for what one carries", s.next)
		}
	})
}

func TestSharedServesInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &service{}
		p := newShared(s, pool.Config{Max: 1, Streams: 1})
		first := mustUse(t, p)
		var got []int
		var wg sync.WaitGroup
		impatient, cancel := context.WithCancel(t.Context())
		for i := range 5 {
			ctx := t.Context()
			if i == 2 {
				ctx = impatient
			}
			wg.Go(func() {
				c, err := p.Acquire(ctx)
				if err != nil {
					return
				}
				got = append(got, i) // one stream: nobody else is here
				c.Release()
			})
			synctest.Wait()
		}
		cancel()
		synctest.Wait()
		first.Release()
		wg.Wait()
		if d := cmp.Diff([]int{0, 1, 3, 4}, got); d != "" {
			t.Fatalf("order (-want +got):\n%s", d)
		}
	})
}

func TestSharedFollowsThePeersLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &service{}
		p := pool.NewShared(pool.Config{Max: 1, Streams: 5}, func(ctx context.Context, c *pool.Conn[int]) (int, error) {
			c.SetStreams(1)
			return s.dial(ctx)
		}, s.hangUp)
		c := mustUse(t, p)
		var wg sync.WaitGroup
		for range 9 {
			wg.Go(func() { mustUse(t, p) })
		}
		synctest.Wait()
		for _, step := range []struct{ announced, streams, waiting int }{{1, 1, 9}, {3, 3, 7}, {2, 2, 7}, {100, 5, 5}} {
			c.SetStreams(step.announced)
			synctest.Wait()
			if got := p.Stats().Waiting; got != step.waiting || c.Streams() != step.streams {
				t.Fatalf("announced %d: %d wait, limit %d; want %+v", step.announced, got, c.Streams(), step)
			}
		}
		for range 10 {
			c.Release()
		}
		wg.Wait()
	})
}

func TestSharedRetires(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &service{}
		p := newShared(s, pool.Config{Max: 1, Streams: 2})
		a := mustUse(t, p)
		mustUse(t, p)
		var b *pool.Conn[int]
		var wg sync.WaitGroup
		wg.Go(func() { b = mustUse(t, p) })
		synctest.Wait()
		a.Retire()
		a.Retire()
		wg.Wait()
		if b.Value() != 2 || s.open != 2 {
			t.Fatalf("got connection %d of %d open; want a new one beside the draining one", b.Value(), s.open)
		}
		a.Release()
		if s.open != 2 {
			t.Fatal("the draining connection ended under its user")
		}
		a.Release()
		if d := cmp.Diff([]int{1}, s.closed); d != "" {
			t.Fatalf("closed (-want +got):\n%s", d)
		}
		b.Release()
		b.Retire()
		wantStats(t, p.Stats(), providers.PoolStats{Max: 1, Opened: 2, Closed: 2, Reused: 1})
	})
}

func TestSharedReleasesIdleAndOld(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &service{}
		p := newShared(s, pool.Config{Max: 3, Idle: 1, Streams: 1, IdleTimeout: time.Minute, MaxLifetime: time.Hour})
		uses := []*pool.Conn[int]{mustUse(t, p), mustUse(t, p), mustUse(t, p)}
		for _, c := range uses {
			c.Release()
		}
		// One request every 20 s keeps one connection busy; the others go, and the last one stays.
		for range 6 {
			time.Sleep(20 * time.Second)
			mustUse(t, p).Release()
		}
		synctest.Wait()
		if got := p.Stats(); got.Open != 1 || got.Closed != 2 {
			t.Fatalf("after two minutes of little load: %+v", got)
		}
		time.Sleep(30 * time.Minute)
		old := mustUse(t, p)
		if got := p.Stats(); got.Opened != 3 {
			t.Fatalf("the last idle connection was not kept: %+v", got)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if s.open != 1 {
			t.Fatal("the old connection ended under its user")
		}
		young := mustUse(t, p)
		if young.Value() == old.Value() {
			t.Fatal("a connection past its life took another use")
		}
		old.Release()
		young.Release()
		if s.open != 1 {
			t.Fatalf("%d open, want 1", s.open)
		}
		if err := p.Close(t.Context()); err != nil || s.open != 0 {
			t.Fatalf("Close: %v, %d left", err, s.open)
		}
	})
}

func TestSharedMaxUses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &service{}
		p := newShared(s, pool.Config{Max: 1, Streams: 10, MaxUses: 4})
		for range 10 {
			mustUse(t, p).Release()
		}
		if d := cmp.Diff([]int{1, 2}, s.closed); d != "" {
			t.Fatalf("closed (-want +got):\n%s", d)
		}
	})
}

func TestSharedBacksOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		down := errors.New("down")
		s := &service{err: down, slowness: time.Second}
		p := newShared(s, pool.Config{Max: 2, Streams: 1})
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				var oe *pool.OpenError
				if _, err := p.Acquire(t.Context()); !errors.As(err, &oe) || !errors.Is(err, down) {
					t.Errorf("Acquire: %v", err)
				}
			})
		}
		wg.Wait()
		if _, err := p.Acquire(t.Context()); !errors.Is(err, down) || p.Stats().Failed != 1 {
			t.Fatalf("in the pause: %v, %+v", err, p.Stats())
		}
		time.Sleep(time.Second)
		s.fail(nil)
		c := mustUse(t, p)

		// With one open and full, who waits is not told of the failure: there will be room.
		s.fail(down)
		got := make(chan int)
		go func() { got <- mustUse(t, p).Value() }()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if f := p.Stats().Failed; f < 2 {
			t.Fatalf("failed %d times, want another try", f)
		}
		s.fail(nil)
		if n := <-got; n != 2 { // the pool tries again by itself
			t.Fatalf("got connection %d", n)
		}
		c.Release()
	})
}

func TestSharedRetiredAtOnceIsAFailure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &service{}
		p := pool.NewShared(pool.Config{Max: 2, Streams: 1}, func(ctx context.Context, c *pool.Conn[int]) (int, error) {
			c.Retire()
			return s.dial(ctx)
		}, s.hangUp)
		for range 3 {
			var oe *pool.OpenError
			if _, err := p.Acquire(t.Context()); !errors.As(err, &oe) {
				t.Fatalf("Acquire: %v", err)
			}
		}
		synctest.Wait()
		if s.next != 1 || s.open != 0 {
			t.Fatalf("opened %d times without a pause, %d left open", s.next, s.open)
		}
	})
}

func TestSharedClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &service{}
		p := newShared(s, pool.Config{Max: 1, Streams: 1})
		c := mustUse(t, p)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := p.Acquire(t.Context()); !errors.Is(err, pool.ErrClosed) {
				t.Errorf("Acquire while the pool closes: %v", err)
			}
		})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.Close(ctx); !errors.Is(err, context.DeadlineExceeded) || s.open != 0 {
			t.Fatalf("Close with a use going on: %v, %d left", err, s.open)
		}
		wg.Wait()
		c.Release()
		if d := cmp.Diff([]int{1}, s.closed); d != "" {
			t.Fatalf("closed (-want +got):\n%s", d)
		}

		s = &service{slowness: time.Hour}
		p = newShared(s, pool.Config{Max: 1, Streams: 1})
		wg.Go(func() {
			if _, err := p.Acquire(t.Context()); !errors.Is(err, pool.ErrClosed) {
				t.Errorf("Acquire while the pool closes: %v", err)
			}
		})
		synctest.Wait()
		if err := p.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
	})
}

func TestSharedStress(t *testing.T) {
	t.Parallel()
	s := &service{}
	p := newShared(s, pool.Config{Max: 3, Idle: 1, Streams: 4, IdleTimeout: time.Millisecond, MaxLifetime: 3 * time.Millisecond, MaxUses: 50})
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(2, uint64(i)))
			for range 1000 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+r.IntN(2000))*time.Microsecond)
				c, err := p.Acquire(ctx)
				cancel()
				if err != nil {
					continue
				}
				switch r.IntN(50) {
				case 0:
					c.Retire()
				case 1:
					c.SetStreams(1 + r.IntN(6))
				}
				c.Release()
			}
		})
	}
	wg.Wait()
	got := p.Stats()
	if got.Waiting != 0 || got.InUse != 0 || got.Open > 3 {
		t.Fatalf("stats %+v", got)
	}
	if err := p.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := p.Stats(); s.open != 0 || got.Opened != uint64(s.next) || got.Closed != got.Opened {
		t.Fatalf("%d left open, stats %+v", s.open, got)
	}
}

func BenchmarkShared(b *testing.B) {
	p := newShared(&service{}, pool.Config{Max: 4, Streams: 500})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c, err := p.Acquire(context.Background())
			if err != nil {
				b.Error(err)
				return
			}
			c.Release()
		}
	})
}
