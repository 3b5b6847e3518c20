package pool_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carillon-notify/carillon/providers/pool"
)

// limited is a service that takes two connections at once.
type limited struct {
	service
	refused int
}

var errFull = errors.New("too many connections")

func (s *limited) dial(ctx context.Context) (int, error) {
	s.mu.Lock()
	full := s.open >= 2
	if full {
		s.refused++
	}
	s.mu.Unlock()
	if full {
		return 0, errFull
	}
	return s.service.dial(ctx)
}

// TestExclusiveWaitsForThoseThereAre has a service that takes fewer connections than the pool may open: who
// gets none waits for one of those that others use.
func TestExclusiveWaitsForThoseThereAre(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &limited{}
		p := pool.NewExclusive(pool.Config{Max: 8}, s.dial, s.hangUp, nil)
		var all sync.WaitGroup
		began := time.Now()
		for range 20 {
			all.Go(func() {
				l, err := p.Acquire(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Second)
				l.Release()
			})
		}
		all.Wait()
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("20 uses of a second took %v over two connections", took)
		}
		if s.refused > 50 {
			t.Errorf("the service was asked %d times in vain", s.refused)
		}
		if got := p.Stats(); got.Opened != 2 || got.Waiting != 0 || got.InUse != 0 {
			t.Errorf("stats %+v", got)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestExclusiveStopsWaiting tells what ends the wait for a connection that others use.
func TestExclusiveStopsWaiting(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		end  func(p *pool.Exclusive[int], one, two *pool.Lease[int], giveUp func())
		want error // nil: a connection
	}{
		"one is given back": {func(_ *pool.Exclusive[int], one, _ *pool.Lease[int], _ func()) { one.Release() }, nil},
		"one breaks":        {func(_ *pool.Exclusive[int], one, _ *pool.Lease[int], _ func()) { one.Destroy() }, nil}, // there is room for another
		"the caller leaves": {func(_ *pool.Exclusive[int], _, _ *pool.Lease[int], giveUp func()) { giveUp() }, context.Canceled},
		"the pool is closed": {func(p *pool.Exclusive[int], _, _ *pool.Lease[int], _ func()) {
			go func() { _ = p.Close(context.Background()) }()
		}, pool.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &limited{}
				p := pool.NewExclusive(pool.Config{Max: 8}, s.dial, s.hangUp, nil)
				one, two := mustLease(t, p), mustLease(t, p)
				ctx, giveUp := context.WithCancel(t.Context())
				defer giveUp()
				done := make(chan error, 1)
				go func() {
					l, err := p.Acquire(ctx)
					if err == nil {
						l.Release()
					}
					done <- err
				}()
				synctest.Wait()
				if n := p.Stats().Waiting; n != 1 {
					t.Errorf("%d wait", n)
				}
				began := time.Now()
				test.end(p, one, two, giveUp)
				if err := <-done; !errors.Is(err, test.want) || time.Since(began) > time.Second {
					t.Errorf("%v after %v", err, time.Since(began))
				}
				one.Release()
				two.Release()
				if err := p.Close(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestExclusiveWaitsForAnOpening tells that who is refused while others' connections are being opened waits
// for those, and gets the failure when they fail, too.
func TestExclusiveWaitsForAnOpening(t *testing.T) {
	t.Parallel()
	for name, fails := range map[string]bool{"opened": false, "failed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				dials := 0
				p := pool.NewExclusive(pool.Config{Max: 8}, func(context.Context) (int, error) {
					if dials++; dials > 1 {
						return 0, errFull
					}
					time.Sleep(3 * time.Second)
					if fails {
						return 0, errFull
					}
					return 1, nil
				}, func(int) {}, nil)
				began := time.Now()
				var all sync.WaitGroup
				for range 2 {
					all.Go(func() {
						l, err := p.Acquire(t.Context())
						if fails != errors.Is(err, errFull) || fails != (err != nil) || time.Since(began) != 3*time.Second {
							t.Errorf("%v after %v", err, time.Since(began))
						}
						if err == nil {
							l.Release()
						}
					})
					synctest.Wait()
				}
				all.Wait()
				if err := p.Close(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestExclusiveDoesNotWaitForNobody tells that the last connection's end is the answer of who waits for it.
func TestExclusiveDoesNotWaitForNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &service{}
		p := pool.NewExclusive(pool.Config{Max: 8}, s.dial, s.hangUp, nil)
		one := mustLease(t, p)
		s.fail(errFull)
		done := make(chan error, 1)
		go func() {
			_, err := p.Acquire(t.Context())
			done <- err
		}()
		synctest.Wait()
		one.Destroy()
		if err := <-done; !errors.Is(err, errFull) {
			t.Error(err)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
