package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/puddle/v2"

	"github.com/carillon-notify/carillon/providers"
)

// Exclusive is a pool of connections that serve one user at a time. It is safe for concurrent use.
type Exclusive[T any] struct {
	cfg   Config
	open  func(context.Context) (T, error)
	shut  func(T)
	check func(context.Context, T) error
	conns *puddle.Pool[*held[T]]

	waiting                        atomic.Int64
	opened, closed, failed, reused atomic.Uint64

	mu      sync.Mutex // guards what follows
	backoff backoff
	sweep   *time.Timer
	sweepAt time.Time // zero: not set
	done    bool
	freed   chan struct{} // closed when a connection is free, new or gone; nil while nobody waits for that
	begun   int           // openings
	opening map[int]bool  // those under way, by their number
}

// held is a connection and what the pool knows of it; while it is leased, the lease owns it.
type held[T any] struct {
	value    T
	uses     int
	lastUsed time.Time
	dies     time.Time // zero: never
}

// NewExclusive makes a pool; nothing is opened until it is needed. open makes a connection: its context
// ends with cfg.OpenTimeout or the pool, not with the caller that caused it, since whoever comes next
// can use the connection. shut ends one and must not block for long. check, if not nil, looks at one
// that was silent for cfg.HealthEvery before it is used again; its error discards the connection.
func NewExclusive[T any](cfg Config, open func(context.Context) (T, error), shut func(T), check func(context.Context, T) error) *Exclusive[T] {
	cfg.Max = min(max(cfg.Max, 1), maxMax)
	p := &Exclusive[T]{cfg: cfg, open: open, shut: shut, check: check, opening: map[int]bool{}}
	conns, err := puddle.NewPool(&puddle.Config[*held[T]]{
		Constructor: p.construct,
		Destructor:  p.destruct,
		MaxSize:     int32(cfg.Max), //nolint:gosec // bounded above
	})
	if err != nil {
		panic(err) // only for MaxSize < 1, which is excluded above
	}
	p.conns = conns
	return p
}

// Lease is the use of a connection by one user. Release or Destroy ends it; what comes after the first
// of them does nothing.
type Lease[T any] struct {
	pool  *Exclusive[T]
	res   *puddle.Resource[*held[T]]
	conn  *held[T]
	kept  bool
	ended atomic.Bool
}

// Value is the connection.
func (l *Lease[T]) Value() T { return l.conn.value }

// Uses is how often the connection was leased, this lease included: 1 is a connection just opened.
func (l *Lease[T]) Uses() int { return l.conn.uses }

// Kept says that the connection was there before this Acquire, used or not: its peer may have let it go.
func (l *Lease[T]) Kept() bool { return l.kept }

// Release gives the connection back for others to use.
func (l *Lease[T]) Release() {
	if l.ended.Swap(true) {
		return
	}
	p, now := l.pool, time.Now()
	l.conn.lastUsed = now
	if p.spent(l.conn, now) {
		l.res.Destroy()
		return
	}
	due := p.due(l.conn, now) // before the next user owns it
	l.res.Release()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.freedLocked()
	p.scheduleLocked(due, now)
}

// Destroy ends the connection, which is broken or in an unknown state.
func (l *Lease[T]) Destroy() {
	if l.ended.Swap(true) {
		return
	}
	l.res.Destroy()
}

// Acquire leases a connection: an idle one, the last used first, else a new one, else it waits in line
// until one is given back or ctx ends. An *OpenError says that none is open and none could be opened: a
// service that takes no further connection still has those that others use.
func (p *Exclusive[T]) Acquire(ctx context.Context) (*Lease[T], error) {
	p.waiting.Add(1)
	defer p.waiting.Add(-1)
	began := time.Now()
	for {
		res, err := p.conns.Acquire(ctx)
		switch {
		case errors.Is(err, puddle.ErrClosedPool):
			return nil, ErrClosed
		case err != nil && ctx.Err() != nil:
			return nil, fmt.Errorf("wait for a connection: %w", ctx.Err())
		case err != nil: // an *OpenError of construct
			if err = p.others(ctx, err); err != nil {
				return nil, err
			}
			continue
		}
		conn := res.Value()
		if !p.usable(ctx, conn) {
			res.Destroy()
			continue
		}
		if conn.uses > 0 {
			p.reused.Add(1)
		}
		kept := conn.uses > 0 || conn.lastUsed.Before(began)
		conn.uses++
		return &Lease[T]{pool: p, res: res, conn: conn, kept: kept}, nil
	}
}

// others waits, after an opening failed, for one of the connections that there are, or until another may be
// opened. It returns the failure when there are none, and none that was being opened at the same time.
func (p *Exclusive[T]) others(ctx context.Context, err error) error {
	var failed *OpenError
	if !errors.As(err, &failed) {
		return err
	}
	again := time.NewTimer(failed.RetryIn)
	defer again.Stop()
	p.mu.Lock()
	last := p.begun
	p.mu.Unlock()
	for {
		p.mu.Lock()
		if p.done {
			p.mu.Unlock()
			return ErrClosed
		}
		if p.freed == nil {
			p.freed = make(chan struct{})
		}
		freed, opening := p.freed, p.openingLocked(last)
		p.mu.Unlock()
		some, retry := p.closed.Load() != p.opened.Load(), again.C
		switch {
		case !some && !opening:
			return err
		case p.conns.Stat().IdleResources() > 0: // since the failure
			return nil
		case !some:
			retry = nil // whoever opens one tells us
		}
		select {
		case <-freed:
			if some {
				return nil
			}
		case <-retry:
			return nil
		case <-ctx.Done():
			if !some {
				return err
			}
			return fmt.Errorf("wait for a connection: %w", ctx.Err())
		}
	}
}

// openingLocked says whether one of the openings up to a number is still under way.
func (p *Exclusive[T]) openingLocked(last int) bool {
	for n := range p.opening {
		if n <= last {
			return true
		}
	}
	return false
}

// freedLocked lets those look again who wait for a connection that others use.
func (p *Exclusive[T]) freedLocked() {
	if p.freed != nil {
		close(p.freed)
		p.freed = nil
	}
}

// usable looks at an idle connection before it is used again.
func (p *Exclusive[T]) usable(ctx context.Context, c *held[T]) bool {
	now := time.Now()
	if p.spent(c, now) {
		return false
	}
	if p.check == nil || p.cfg.HealthEvery <= 0 || now.Sub(c.lastUsed) < p.cfg.HealthEvery {
		return true
	}
	return p.check(ctx, c.value) == nil
}

// spent says that a connection is at the end of its life or its uses.
func (p *Exclusive[T]) spent(c *held[T], now time.Time) bool {
	return p.cfg.MaxUses > 0 && c.uses >= p.cfg.MaxUses || !c.dies.IsZero() && !now.Before(c.dies)
}

func (p *Exclusive[T]) construct(ctx context.Context) (*held[T], error) {
	p.mu.Lock()
	began := time.Now()
	if wait := p.backoff.wait(began); wait != nil {
		p.mu.Unlock()
		return nil, wait
	}
	p.begun++
	number := p.begun
	p.opening[number] = true
	p.mu.Unlock()
	if p.cfg.OpenTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.cfg.OpenTimeout)
		defer cancel()
	}
	value, err := p.open(ctx)
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.opening, number)
	defer p.freedLocked()
	if err != nil {
		p.failed.Add(1)
		return nil, p.backoff.failed(began, now, err)
	}
	p.backoff.succeeded()
	p.opened.Add(1)
	c := &held[T]{value: value, lastUsed: now}
	if d := lifetime(p.cfg.MaxLifetime); d > 0 {
		c.dies = now.Add(d)
	}
	p.scheduleLocked(p.due(c, now), now) // its caller may have given up: then it is idle from the start
	return c, nil
}

func (p *Exclusive[T]) destruct(c *held[T]) {
	p.shut(c.value)
	p.closed.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.freedLocked()
}

// due is when c, idle since now, would have to go; zero is never.
func (p *Exclusive[T]) due(c *held[T], now time.Time) time.Time {
	at := c.dies
	if idle := now.Add(p.cfg.IdleTimeout); p.cfg.IdleTimeout > 0 && (at.IsZero() || idle.Before(at)) {
		at = idle
	}
	return at
}

// scheduleLocked sees to it that idle connections are looked at by the time given.
func (p *Exclusive[T]) scheduleLocked(at, now time.Time) {
	if at.IsZero() || p.done || !p.sweepAt.IsZero() && !at.Before(p.sweepAt) {
		return
	}
	p.sweepAt = at
	if p.sweep == nil {
		p.sweep = time.AfterFunc(at.Sub(now), p.sweepIdle)
		return
	}
	p.sweep.Reset(at.Sub(now))
}

// sweepIdle lets go of idle connections whose time has come, the longest unused first.
func (p *Exclusive[T]) sweepIdle() {
	p.mu.Lock()
	p.sweepAt = time.Time{}
	p.mu.Unlock()

	idle := p.conns.AcquireAllIdle()
	slices.SortFunc(idle, func(a, b *puddle.Resource[*held[T]]) int {
		return b.Value().lastUsed.Compare(a.Value().lastUsed)
	})
	now := time.Now()
	var next time.Time
	keep := idle[:0]
	for _, res := range idle {
		c := res.Value()
		goes, sheltered := c.dies, len(keep) < p.cfg.Idle
		if at := c.lastUsed.Add(p.cfg.IdleTimeout); p.cfg.IdleTimeout > 0 && !sheltered && (goes.IsZero() || at.Before(goes)) {
			goes = at
		}
		if !goes.IsZero() && !goes.After(now) {
			res.Destroy()
			continue
		}
		keep = append(keep, res)
		if !goes.IsZero() && (next.IsZero() || goes.Before(next)) {
			next = goes
		}
	}
	for _, res := range slices.Backward(keep) { // the last used ends on top, and is the next to be used
		res.ReleaseUnused()
	}
	p.mu.Lock()
	p.freedLocked()
	p.scheduleLocked(next, now)
	p.mu.Unlock()
}

// Stats are the pool's figures.
func (p *Exclusive[T]) Stats() providers.PoolStats {
	s := p.conns.Stat()
	closed := p.closed.Load() // first, or there could be more of them than were opened
	opened := p.opened.Load()
	idle := int(s.IdleResources())
	// puddle forgets a connection a moment after it was ended, even after Close.
	used := min(int(s.AcquiredResources()), max(int(opened-closed)-idle, 0)) //nolint:gosec // a pool's few
	return providers.PoolStats{
		Max:     p.cfg.Max,
		Open:    used + idle,
		Idle:    idle,
		InUse:   used,
		Waiting: int(p.waiting.Load()),
		Opened:  opened, Closed: closed, Failed: p.failed.Load(), Reused: p.reused.Load(),
	}
}

// Close refuses new leases, ends idle connections and waits for the others to be given back, until ctx
// ends; one that comes back later is ended then.
func (p *Exclusive[T]) Close(ctx context.Context) error {
	p.mu.Lock()
	p.done = true
	if p.sweep != nil {
		p.sweep.Stop()
	}
	p.freedLocked()
	p.mu.Unlock()
	closed := make(chan struct{})
	go func() {
		p.conns.Close()
		close(closed)
	}()
	select {
	case <-closed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for connections in use: %w", ctx.Err())
	}
}
