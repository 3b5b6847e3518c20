package dispatch

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/providers"
)

// The relay's rhythm.
const (
	relayTick    = 250 * time.Millisecond // how often it looks when nobody calls it
	relayPage    = 500                    // wakes taken in one transaction
	lapsedPage   = 100
	repairLease  = 15 * time.Second // what it has to settle a lapsed round
	strayEvery   = time.Minute
	relayBackoff = 2 * time.Second // after an error of the store
)

// RelayOptions are what a Relay works with.
type RelayOptions struct {
	Overdue    Overdue
	Dispatcher *Dispatcher
	Routes     []string
	Logger     *slog.Logger
}

// Relay finds what is due or overdue and wakes it: campaigns' and delayed batches whose time came,
// wakes that got lost, rounds whose worker died. Any number of relays may run; fences keep them apart.
type Relay struct {
	store  Overdue
	d      *Dispatcher
	routes atomic.Pointer[[]string]
	log    *slog.Logger
	nudge  chan struct{}
	strays time.Time
}

// NewRelay returns a Relay.
func NewRelay(o RelayOptions) *Relay {
	r := &Relay{store: o.Overdue, d: o.Dispatcher, log: o.Logger, nudge: make(chan struct{}, 1)}
	r.SetRoutes(o.Routes)
	if r.log == nil {
		r.log = slog.Default()
	}
	return r
}

// SetRoutes tells the relay which routes there are from now on.
func (r *Relay) SetRoutes(names []string) { r.routes.Store(&names) }

// Nudge makes the relay look now: a route was resumed, the queue lost its wakes.
func (r *Relay) Nudge() {
	select {
	case r.nudge <- struct{}{}:
	default:
	}
}

// Run looks for work until ctx ends.
func (r *Relay) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-r.nudge:
		}
		more, err := r.look(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !failing { // once per outage, not four times a second
				r.log.Error("relay cannot look for due batches", "error", err)
			}
			timer.Reset(relayBackoff)
		case more:
			timer.Reset(0)
		default:
			timer.Reset(relayTick)
		}
		failing = err != nil
	}
}

// look is one pass. more says that a page was full and there is room for another.
func (r *Relay) look(ctx context.Context) (more bool, err error) {
	if time.Since(r.strays) > strayEvery {
		r.strays = time.Now()
		n, err := r.store.Stray(ctx, *r.routes.Load(), strayEvery)
		if err != nil {
			return false, fmt.Errorf("look for strays: %w", err)
		}
		if n > 0 {
			r.d.observer.Repaired("stray", n)
			r.log.Warn("batches wait for routes that the configuration does not have any more; put the routes back or cancel their notifications", "batches", n)
		}
	}
	due, err := r.store.Overdue(ctx)
	if err != nil {
		return false, fmt.Errorf("look for overdue batches: %w", err)
	}
	if !due {
		return false, nil
	}
	lapsed, err := r.repair(ctx)
	if err != nil {
		return false, err
	}
	woken, err := r.wakeDue(ctx)
	return lapsed || woken, err
}

// repair settles rounds whose lease ran out: every delivery still pending in them is Unknown.
func (r *Relay) repair(ctx context.Context) (more bool, err error) {
	rounds, err := r.store.Lapsed(ctx, r.d.worker, lapsedPage, repairLease)
	if err != nil {
		return false, fmt.Errorf("take lapsed rounds: %w", err)
	}
	for _, b := range rounds {
		policy := core.DefaultPolicy
		if _, l, ok := r.d.routes.Provider(b.Route); ok {
			policy = l.Policy
		}
		c := newClock(repairLease)
		c.set(b.Now)
		round := newRound(b, policy, c)
		round.callErr = errWorkerLost
		round.judge(true)
		if err := r.d.settle(ctx, round); err != nil {
			return false, fmt.Errorf("settle lapsed round: %w", err)
		}
	}
	if len(rounds) > 0 {
		r.d.observer.Repaired("lapsed", len(rounds))
	}
	return len(rounds) == lapsedPage, nil
}

// wakeDue fills the window of each route and lane with what is due, the urgent lanes first.
func (r *Relay) wakeDue(ctx context.Context) (more bool, err error) {
	for _, lane := range core.Lanes {
		for _, route := range *r.routes.Load() {
			room := min(r.d.queue.Room("", route, lane), relayPage)
			if room <= 0 {
				continue
			}
			wakes, err := r.store.Due(ctx, route, lane, room)
			if err != nil {
				return false, fmt.Errorf("take due batches of route %s: %w", route, err)
			}
			if len(wakes) == 0 {
				continue
			}
			r.d.observer.Repaired("due", len(wakes))
			if err := r.d.queue.Wake(ctx, wakes...); err != nil {
				return false, fmt.Errorf("wake due batches of route %s: %w", route, err)
			}
			more = more || len(wakes) == relayPage
		}
	}
	return more, nil
}

// receive calls the provider's Receive and turns a panic of its goroutine into an error.
func receive(ctx context.Context, rec providers.Receiver, report func(providers.Receipt) error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("the provider panicked: %T", v)
		}
	}()
	return rec.Receive(ctx, report)
}

// Receive takes in what a route's provider hears back, until ctx ends. A Receive that fails is begun
// again with back-off.
func (d *Dispatcher) Receive(ctx context.Context, store Receipts, route string, rec providers.Receiver) {
	wait := time.Second
	for ctx.Err() == nil {
		began := time.Now()
		err := receive(ctx, rec, func(receipt providers.Receipt) error {
			found, err := store.Receipt(ctx, route, receipt)
			if err != nil {
				return fmt.Errorf("record receipt: %w", err)
			}
			d.observer.Received(route, receipt.Event, found)
			return nil
		})
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Minute {
			wait = time.Second
		}
		d.log.Warn("provider stopped receiving; it is begun again", "route", route, "error", err, "in", wait)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, time.Minute)
	}
}
