package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/crash"
)

// The relay's rhythm.
const (
	relayTick    = 250 * time.Millisecond // how often it looks when nobody calls it
	relayStandby = time.Second            // likewise, while another process's leads
	relayBusy    = 25 * time.Millisecond  // how soon again while more is due than the queue has room for
	relayPage    = 500                    // wakes taken in one transaction
	lapsedPage   = 100
	strayPage    = 500
	repairLease  = core.LeaseSlack // what it has to settle a page of rounds; a relay that dies in it costs that much again
	strayEvery   = time.Minute
	drainedEvery = core.Unclaimed / 2 // how often, at most, the queues are asked what waits in them
	relayBackoff = 2 * time.Second    // after an error of the store
)

// RelayOptions are what a Relay works with.
type RelayOptions struct {
	Overdue    Overdue
	Dispatcher *Dispatcher
	Routes     []string
	Logger     *slog.Logger
}

// Relay finds what is due or overdue and wakes it: campaigns' and delayed batches whose time came,
// wakes that got lost, rounds whose worker died. Any number of relays may run; fences keep them apart. One
// that does not lead looks less often, so that idle processes cost little and a leader's death a second.
type Relay struct {
	store  Overdue
	d      *Dispatcher
	routes atomic.Pointer[[]string]
	log    *slog.Logger
	nudge  chan struct{}
	strays time.Time
	// drained is when a queue was seen to have no wake that is due, asked is when the queues were looked at last.
	drained map[core.RouteLane]time.Time
	asked   time.Time
	anew    map[core.RouteLane]anew

	standby atomic.Bool
}

// NewRelay returns a Relay.
func NewRelay(o RelayOptions) *Relay {
	r := &Relay{store: o.Overdue, d: o.Dispatcher, log: o.Logger, nudge: make(chan struct{}, 1), drained: map[core.RouteLane]time.Time{}, anew: map[core.RouteLane]anew{}}
	r.SetRoutes(o.Routes)
	if r.log == nil {
		r.log = slog.Default()
	}
	return r
}

// SetRoutes tells the relay which routes there are from now on.
func (r *Relay) SetRoutes(names []string) { r.routes.Store(&names) }

// Lead tells the relay whether it leads, which it does until told otherwise.
func (r *Relay) Lead(is bool) {
	if r.standby.Swap(!is) && is {
		r.Nudge()
	}
}

// Nudge makes the relay look now: a route was resumed, the queue lost its wakes.
func (r *Relay) Nudge() {
	select {
	case r.nudge <- struct{}{}:
	default:
	}
}

// Run looks for work until ctx ends.
func (r *Relay) Run(ctx context.Context) {
	failing, vain := false, 0
	for ctx.Err() == nil {
		found, err := r.look(ctx)
		wait := relayBackoff
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			wait = found.pause(&vain, r.tick())
		case !failing: // once per outage, not four times a second
			r.log.Error("relay cannot look for due batches", "error", err)
		}
		failing = err != nil
		r.rest(ctx, wait)
	}
}

// rest waits for the next pass's time, or for a nudge.
func (r *Relay) rest(ctx context.Context, wait time.Duration) {
	if wait <= 0 {
		return
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-r.nudge:
	}
}

// found is what came of a pass.
type found struct {
	page   bool // a page was full: the next may be taken at once
	some   bool // wakes were brought in
	behind bool // something due had no room
}

// tick is how often to look while nothing is due.
func (r *Relay) tick() time.Duration {
	if r.standby.Load() {
		return relayStandby
	}
	return relayTick
}

// pause is how long to wait after a pass: a tick if nothing was due; while more is due than the queue has room for, not for long,
// but longer after each pass in vain.
func (f found) pause(vain *int, tick time.Duration) time.Duration {
	if f.behind && !f.some {
		*vain++
		return min(relayBusy<<min(*vain-1, 10), relayTick)
	}
	*vain = 0
	switch {
	case f.page:
		return 0
	case f.some:
		return relayBusy
	}
	return tick
}

// look is one pass.
func (r *Relay) look(ctx context.Context) (f found, err error) {
	if !r.standby.Load() && time.Since(r.strays) > strayEvery {
		r.strays = time.Now()
		if err := r.putOff(ctx); err != nil {
			return f, err
		}
	}
	due, unclaimed, err := r.store.Overdue(ctx)
	if err != nil {
		return f, fmt.Errorf("look for overdue batches: %w", err)
	}
	if unclaimed {
		some, err := r.claimless(ctx)
		if err != nil {
			return f, err
		}
		due = due || some
	} else {
		clear(r.drained)
	}
	if !due {
		return f, nil
	}
	if f.page, err = r.repair(ctx); err != nil {
		return f, err
	}
	for _, lane := range core.Lanes { // the urgent first
		for _, route := range *r.routes.Load() {
			if err := r.refill(ctx, route, lane, &f); err != nil {
				return f, err
			}
		}
	}
	return f, nil
}

// anew is when wakes of a queue were last made anew, and how long a batch had to be queued for that.
type anew struct {
	at  time.Time
	age time.Duration
}

// next is how long it has to be for the next time.
func (a anew) next() time.Duration {
	if time.Since(a.at) > core.DispatchTimeout {
		return core.Unclaimed
	}
	return 2 * a.age
}

// claimless finds batches whose wakes are gone: the worker that took them out of the queue died before it
// had claimed them, or nobody put them in. A queue that was drained core.Unclaimed ago, and a batch still
// queued whose wake must have been in it before that, say so. A wake that waits its turn behind others is
// never made anew by this: its queue is not drained. A worker that is slow and not dead loses its claim to the
// new wake; so that it wins in the end, it has twice as long each time.
func (r *Relay) claimless(ctx context.Context) (some bool, err error) {
	var ask []core.RouteLane
	for _, lane := range core.Lanes {
		for _, route := range *r.routes.Load() {
			on := core.RouteLane{Route: route, Lane: lane}
			at, seen := r.drained[on]
			since := time.Since(at)
			if !seen {
				ask = append(ask, on)
			}
			if !seen || since < core.Unclaimed {
				continue
			}
			delete(r.drained, on)
			age := max(r.anew[on].next(), since+core.Unclaimed)
			n, err := r.store.Unclaimed(ctx, on, age)
			if err != nil {
				return some, fmt.Errorf("look for lost wakes of route %s: %w", route, err)
			}
			if n > 0 {
				some, r.anew[on] = true, anew{time.Now(), age}
				r.d.observer.Repaired("unclaimed", n)
			}
		}
	}
	if time.Since(r.asked) < drainedEvery {
		return some, nil
	}
	r.asked = time.Now()
	drained, err := r.d.queue.Drained(ctx, ask)
	if err != nil {
		r.log.Debug("the queue does not say what waits in it; lost wakes are found by their alarm clocks", "error", err)
		return some, nil
	}
	for _, on := range drained {
		r.drained[on] = r.asked
	}
	return some, nil
}

// putOff puts off what waits for routes that the configuration does not have any more. What ran out of time meanwhile
// expires: it is accepted, and always comes to an end.
func (r *Relay) putOff(ctx context.Context) error {
	strays, more := 0, true
	for more {
		rounds, n, err := r.store.Strays(ctx, *r.routes.Load(), strayPage, strayEvery, repairLease)
		if err != nil {
			return fmt.Errorf("look for strays: %w", err)
		}
		strays, more = strays+n, n == strayPage
		// What ran out of time expires by that.
		if _, err := r.settleAll(ctx, rounds, func(x *round) { x.holdBeyond(0, strayEvery, core.CodeNoRoute) }); err != nil {
			return err
		}
	}
	if strays > 0 {
		r.d.observer.Repaired("stray", strays)
		r.log.Warn("batches wait for routes that the configuration does not have any more; put the routes back or cancel their notifications", "batches", strays)
	}
	return nil
}

// repair settles rounds whose lease ran out: every delivery still pending in them is Unknown, unless no worker has had
// them: their relay died before it could say that something expired.
func (r *Relay) repair(ctx context.Context) (more bool, err error) {
	rounds, err := r.store.Lapsed(ctx, lapsedPage, repairLease)
	if err != nil {
		return false, fmt.Errorf("take lapsed rounds: %w", err)
	}
	if len(rounds) > 0 {
		crash.At(crash.RelayLapsed)
	}
	settled, err := r.settleAll(ctx, rounds, func(x *round) {
		if x.Unsent {
			x.holdBeyond(0, 0, core.CodeStopped)
			return
		}
		x.sent, x.todo, x.callErr = x.todo, nil, errWorkerLost
		x.judge(true)
	})
	if settled > 0 {
		r.d.observer.Repaired("lapsed", settled)
	}
	return err == nil && len(rounds) == lapsedPage, err
}

// settleAll settles rounds that the relay took, each as judge does, all in one call: one after the other they might
// outlast their lease. It says how many that are, also where there is an error: one that fails is not the others' concern.
func (r *Relay) settleAll(ctx context.Context, taken []*core.Round, judge func(*round)) (settled int, err error) {
	if len(taken) == 0 {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), repairLease)
	defer cancel()
	rounds := make([]*round, len(taken))
	wakes := make([][]core.Wake, len(taken))
	settlements := make([]*core.Settlement, len(taken))
	for i, b := range taken {
		c := newClock(repairLease)
		c.set(b.Now)
		rounds[i] = newRound(b, r.d.routes.Policy(b.Route), c)
		judge(rounds[i])
		served := slices.Contains(*r.routes.Load(), b.Route) // else nobody would take its wakes out of the queue
		wakes[i], settlements[i] = r.d.split(rounds[i], served), &rounds[i].settlement
	}
	stale, errs := r.store.SettleAll(ctx, settlements)
	var unsettled, unwoken failures
	for i := range rounds {
		if errs[i] != nil {
			unsettled.add(errs[i])
			continue
		}
		settled++
		unwoken.add(r.d.settled(ctx, rounds[i], stale[i], wakes[i]))
	}
	return settled, errors.Join(unsettled.err("settle overdue rounds"), unwoken.err("wake what overdue rounds hold"))
}

// failures are what went wrong with many things of which each is tried. They mostly fail alike, so that the first
// speaks for all.
type failures struct {
	n     int
	first error
}

// add counts an error; nil is none.
func (f *failures) add(err error) {
	if err == nil {
		return
	}
	if f.n++; f.n == 1 {
		f.first = err
	}
}

// err says how often what was attempted failed, and how first; nil if it did not.
func (f *failures) err(attempted string) error {
	if f.n == 0 {
		return nil
	}
	return fmt.Errorf("%s, %d failed: %w", attempted, f.n, f.first)
}

// refill fills the window of a route and lane with what is due, in turns between apps. An app that has
// more than its room is behind: until it is not, its new batches wait in the store like these.
func (r *Relay) refill(ctx context.Context, route string, lane core.Lane, f *found) error {
	room := map[string]int{}
	wakes, err := r.store.Due(ctx, route, lane, relayPage, func(app string) int {
		room[app] = r.d.queue.Refill(app, route, lane)
		return room[app]
	})
	if err != nil {
		return fmt.Errorf("take due batches of route %s: %w", route, err)
	}
	for i := range wakes {
		room[wakes[i].App]--
	}
	page := len(wakes) == relayPage
	for app, left := range room {
		behind := page || left <= 0
		r.d.queue.Behind(app, route, lane, behind)
		f.behind = f.behind || behind
	}
	if len(wakes) == 0 {
		return nil
	}
	crash.At(crash.RelayTaken)
	f.page, f.some = f.page || page, true
	r.d.observer.Repaired("due", len(wakes))
	if err := r.d.queue.Wake(ctx, wakes...); err != nil {
		return fmt.Errorf("wake due batches of route %s: %w", route, err)
	}
	return nil
}

// pause waits, and reports false if ctx ended before.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
