package pool

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// Shared is a pool of connections that each carry up to Config.Streams uses at a time. A further
// connection is opened only when every open one is full, one at a time; when Max are open and full,
// users wait in line. It is safe for concurrent use.
type Shared[T any] struct {
	cfg  Config
	open func(context.Context, *Conn[T]) (T, error)
	shut func(T)

	life context.Context // ends with the pool: no opening outlives it
	end  context.CancelFunc

	mu       sync.Mutex // guards what follows, and every Conn's fields but value
	conns    []*Conn[T] // open and taking uses
	draining []*Conn[T] // taking no more uses; not counted against Max
	waiters  list.List  // of *waiter[T]; not empty only while no connection has room
	opening  bool
	ending   int // removed, being shut
	backoff  backoff
	churn    churn
	paced    bool // the next opening waits for churn
	sweep    *time.Timer
	sweepAt  time.Time // zero: not set
	closed   bool
	empty    chan struct{} // closed when the pool is closed and its last connection gone

	opened, ended, failed, reused uint64
}

// Conn is one connection of a Shared pool, in use by whoever acquired it.
type Conn[T any] struct {
	value T
	pool  *Shared[T]

	inUse, limit int
	uses         int
	untaken      int  // of them
	ready        bool // open has returned
	draining     bool
	born         time.Time
	idleSince    time.Time
	dies         time.Time // zero: never
}

var errRetiredEarly = errors.New("the service ended the connection as soon as it was open")

type waiter[T any] struct {
	conn  *Conn[T]
	err   error
	ready chan struct{}
}

// NewShared makes a pool; nothing is opened until it is needed. open makes a connection and may keep the
// Conn, to say SetStreams or Retire at any time, even before it returns; its context ends with
// cfg.OpenTimeout or the pool, not with the caller that caused it. shut ends a connection once, after
// its last use, or before that when Close runs out of time; it must not block for long.
func NewShared[T any](cfg Config, open func(context.Context, *Conn[T]) (T, error), shut func(T)) *Shared[T] {
	cfg.Max = min(max(cfg.Max, 1), maxMax)
	cfg.Streams = min(max(cfg.Streams, 1), maxStreams)
	p := &Shared[T]{cfg: cfg, open: open, shut: shut, empty: make(chan struct{})}
	p.life, p.end = context.WithCancel(context.Background())
	return p
}

// Value is the connection itself.
func (c *Conn[T]) Value() T { return c.value }

// Acquire gives a use of the open connection with the fewest; the caller must Release it. It waits
// while all are full, in the order of arrival, until ctx ends. An *OpenError says that no connection is
// open and none could be opened.
func (p *Shared[T]) Acquire(ctx context.Context) (*Conn[T], error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, ErrClosed
	}
	if err := ctx.Err(); err != nil {
		p.mu.Unlock()
		return nil, fmt.Errorf("wait for a connection: %w", err)
	}
	if c := p.pickLocked(); c != nil {
		p.takeLocked(c)
		p.mu.Unlock()
		return c, nil
	}
	w := &waiter[T]{ready: make(chan struct{})}
	place := p.waiters.PushBack(w)
	p.openLocked()
	p.mu.Unlock()

	select {
	case <-w.ready:
		return w.conn, w.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	select {
	case <-w.ready: // served in the same moment: pass it on
		p.mu.Unlock()
		if w.conn != nil {
			w.conn.Release()
		}
	default:
		p.waiters.Remove(place)
		p.mu.Unlock()
	}
	return nil, fmt.Errorf("wait for a connection: %w", ctx.Err())
}

// pickLocked is the connection with the fewest uses among those with room, or nil. Of equals it takes
// the first, so that under little load the others become idle and can go.
func (p *Shared[T]) pickLocked() *Conn[T] {
	var best *Conn[T]
	for _, c := range p.conns {
		if c.inUse < c.limit && (best == nil || c.inUse < best.inUse) {
			best = c
		}
	}
	return best
}

func (p *Shared[T]) takeLocked(c *Conn[T]) {
	if c.uses > 0 {
		p.reused++
	}
	c.uses++
	c.inUse++
	if p.cfg.MaxUses > 0 && c.uses >= p.cfg.MaxUses {
		p.drainLocked(c)
	}
}

// serveLocked gives room to those who wait, and opens another connection when there is too little.
func (p *Shared[T]) serveLocked() {
	for front := p.waiters.Front(); front != nil; front = p.waiters.Front() {
		c := p.pickLocked()
		if c == nil {
			p.openLocked()
			return
		}
		p.takeLocked(c)
		w := p.waiters.Remove(front).(*waiter[T])
		w.conn = c
		close(w.ready)
	}
}

// Release ends a use.
func (c *Conn[T]) Release() {
	p := c.pool
	p.mu.Lock()
	c.inUse--
	if c.inUse < 0 {
		p.mu.Unlock()
		panic("pool: a connection was released more often than acquired")
	}
	if p.waiters.Len() > 0 {
		p.serveLocked()
	}
	var gone bool
	if c.inUse == 0 {
		c.idleSince = time.Now()
		if c.draining {
			gone = p.removeLocked(c)
		} else {
			p.scheduleLocked(c, c.idleSince)
		}
	}
	p.mu.Unlock()
	if gone {
		p.finish(c)
	}
}

// ReleaseUntaken ends a use that the connection's peer has not taken: it does not count as one when the peer
// ends the connection.
func (c *Conn[T]) ReleaseUntaken() {
	c.pool.mu.Lock()
	c.untaken++
	c.pool.mu.Unlock()
	c.Release()
}

// SetStreams sets how many uses the connection carries at a time, as its peer announced it; more than
// Config.Streams is that. Uses beyond a lowered limit go on.
func (c *Conn[T]) SetStreams(n int) {
	p := c.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	old := c.limit
	c.limit = min(max(n, 0), p.cfg.Streams)
	if c.ready && c.limit > old {
		p.serveLocked()
	}
}

// Streams is the connection's limit as it is now.
func (c *Conn[T]) Streams() int {
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	return c.limit
}

// Retire takes the connection out of the pool: it gets no more uses and is ended with its last one. It
// may be said more than once, and of a connection that is not in use. Many that are retired young and
// hardly used have the pool open further ones slowly, about one a second.
func (c *Conn[T]) Retire() {
	p := c.pool
	p.mu.Lock()
	if c.draining {
		p.mu.Unlock()
		return
	}
	if c.ready {
		now := time.Now()
		p.churn.ended(now, c.uses-c.inUse-c.untaken, now.Sub(c.born), p.cfg.Max)
	}
	p.drainLocked(c)
	gone := c.ready && c.inUse == 0 && p.removeLocked(c)
	if p.waiters.Len() > 0 {
		p.serveLocked()
	}
	p.mu.Unlock()
	if gone {
		p.finish(c)
	}
}

// drainLocked moves c to those that take no more uses.
func (p *Shared[T]) drainLocked(c *Conn[T]) {
	if c.draining {
		return
	}
	c.draining = true
	if i := slices.Index(p.conns, c); i >= 0 {
		p.conns = slices.Delete(p.conns, i, i+1)
		p.draining = append(p.draining, c)
	}
}

// removeLocked forgets a draining connection and says whether it was still known: whoever is told so
// must finish it.
func (p *Shared[T]) removeLocked(c *Conn[T]) bool {
	i := slices.Index(p.draining, c)
	if i < 0 {
		return false
	}
	p.draining = slices.Delete(p.draining, i, i+1)
	p.ended++
	p.ending++
	return true
}

// finish ends a connection that was removed, and with the last one of a closed pool the pool.
func (p *Shared[T]) finish(c *Conn[T]) {
	p.shut(c.value)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ending--
	p.emptyLocked()
}

func (p *Shared[T]) emptyLocked() {
	if !p.closed || p.opening || len(p.conns)+len(p.draining)+p.ending > 0 {
		return
	}
	select {
	case <-p.empty:
	default:
		close(p.empty)
	}
}

// openLocked starts to open a connection where that is possible now. In the pause after a failure those
// who wait are told so, unless a connection is open that will have room again.
func (p *Shared[T]) openLocked() {
	if p.opening || p.closed || len(p.conns) >= p.cfg.Max {
		return
	}
	if wait := p.backoff.wait(time.Now()); wait != nil {
		if len(p.conns) == 0 {
			p.failWaitersLocked(wait)
		}
		return
	}
	if wait := p.churn.wait(time.Now(), p.cfg.Max); wait > 0 {
		if !p.paced {
			p.paced = true
			time.AfterFunc(wait, func() {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.paced = false
				p.serveLocked()
			})
		}
		return
	}
	p.opening = true
	go p.openOne()
}

// Churns says that the service ends its connections young and hardly used, so that further ones are opened
// slowly.
func (p *Shared[T]) Churns() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.churn.left(time.Now()) > float64(p.cfg.Max+churnSpare-1)
}

func (p *Shared[T]) openOne() {
	ctx, cancel := p.life, context.CancelFunc(func() {})
	if p.cfg.OpenTimeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, p.cfg.OpenTimeout)
	}
	defer cancel()
	c := &Conn[T]{pool: p, limit: p.cfg.Streams}
	value, err := p.open(ctx, c)
	now := time.Now()

	p.mu.Lock()
	p.opening = false
	if err != nil {
		p.failedLocked(p.backoff.failed(now, now, err))
		p.emptyLocked()
		p.mu.Unlock()
		return
	}
	p.opened++
	c.value, c.ready, c.born, c.idleSince = value, true, now, now
	if d := lifetime(p.cfg.MaxLifetime); d > 0 {
		c.dies = now.Add(d)
	}
	if c.draining || p.closed {
		c.draining = true
		p.ended++
		p.ending++
		if !p.closed { // without a pause, opening and retiring would go round in circles
			p.failedLocked(p.backoff.failed(now, now, errRetiredEarly))
		}
		p.mu.Unlock()
		p.finish(c)
		return
	}
	p.backoff.succeeded()
	p.conns = append(p.conns, c)
	p.serveLocked()
	if !c.draining {
		p.scheduleLocked(c, now)
	}
	p.mu.Unlock()
}

// failedLocked tells those who wait that no connection can be opened, unless one is open and will have
// room again; then another try is made when the pause is over.
func (p *Shared[T]) failedLocked(err *OpenError) {
	p.failed++
	if len(p.conns) > 0 {
		time.AfterFunc(err.RetryIn, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.serveLocked()
		})
		return
	}
	p.failWaitersLocked(err)
}

func (p *Shared[T]) failWaitersLocked(err error) {
	for front := p.waiters.Front(); front != nil; front = p.waiters.Front() {
		w := p.waiters.Remove(front).(*waiter[T])
		w.err = err
		close(w.ready)
	}
}

// scheduleLocked sees to it that a sweep happens when c, used last at now, may have to go.
func (p *Shared[T]) scheduleLocked(c *Conn[T], now time.Time) {
	at := c.dies
	if idle := now.Add(p.cfg.IdleTimeout); p.cfg.IdleTimeout > 0 && (at.IsZero() || idle.Before(at)) {
		at = idle
	}
	p.sweepAtLocked(at, now)
}

func (p *Shared[T]) sweepAtLocked(at, now time.Time) {
	if at.IsZero() || p.closed || !p.sweepAt.IsZero() && !at.Before(p.sweepAt) {
		return
	}
	p.sweepAt = at
	if p.sweep == nil {
		p.sweep = time.AfterFunc(at.Sub(now), p.sweepConns)
		return
	}
	p.sweep.Reset(at.Sub(now))
}

// sweepConns retires connections that are too old, and lets go of those that were idle too long, the
// last opened first, down to Config.Idle open ones.
func (p *Shared[T]) sweepConns() {
	p.mu.Lock()
	p.sweepAt = time.Time{}
	now := time.Now()
	var next time.Time
	var gone []*Conn[T]
	retire := func(c *Conn[T]) {
		p.drainLocked(c)
		if c.inUse == 0 && p.removeLocked(c) {
			gone = append(gone, c)
		}
	}
	sooner := func(at time.Time) {
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	for _, c := range slices.Backward(slices.Clone(p.conns)) {
		if !c.dies.IsZero() && !c.dies.After(now) {
			retire(c)
			continue
		}
		if !c.dies.IsZero() {
			sooner(c.dies)
		}
		if p.cfg.IdleTimeout <= 0 || c.inUse > 0 || len(p.conns) <= p.cfg.Idle {
			continue
		}
		if at := c.idleSince.Add(p.cfg.IdleTimeout); at.After(now) {
			sooner(at)
			continue
		}
		retire(c)
	}
	p.serveLocked()
	p.sweepAtLocked(next, now)
	p.mu.Unlock()
	for _, c := range gone {
		p.finish(c)
	}
}

// Stats are the pool's figures, in connections: InUse are those with at least one use.
func (p *Shared[T]) Stats() providers.PoolStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := providers.PoolStats{
		Max: p.cfg.Max, Open: len(p.conns) + len(p.draining), Waiting: p.waiters.Len(),
		Opened: p.opened, Closed: p.ended, Failed: p.failed, Reused: p.reused,
	}
	for _, c := range p.conns {
		if c.inUse == 0 {
			s.Idle++
		}
	}
	s.InUse = s.Open - s.Idle
	return s
}

// Close refuses new uses and those who wait, and ends each connection with its last use. When ctx ends
// first, what is left is ended under its users.
func (p *Shared[T]) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.end()
	if p.sweep != nil {
		p.sweep.Stop()
	}
	p.failWaitersLocked(ErrClosed)
	var gone []*Conn[T]
	for _, c := range slices.Clone(p.conns) {
		p.drainLocked(c)
	}
	for _, c := range slices.Clone(p.draining) {
		if c.inUse == 0 && p.removeLocked(c) {
			gone = append(gone, c)
		}
	}
	p.emptyLocked()
	p.mu.Unlock()
	for _, c := range gone {
		p.finish(c)
	}

	select {
	case <-p.empty:
		return nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	left := p.draining
	p.draining = nil
	p.ended += uint64(len(left))
	p.ending += len(left)
	p.mu.Unlock()
	for _, c := range left {
		p.finish(c)
	}
	if len(left) > 0 {
		return fmt.Errorf("wait for %d connections in use: %w", len(left), ctx.Err())
	}
	return nil
}
