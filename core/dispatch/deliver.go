package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/crash"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/pace"
)

// settleMargin is the part of a lease kept for settling: the provider's call ends that long before the
// lease does, by the monotonic clock, so that a worker stopped in its tracks sends nothing more when
// it wakes.
const settleMargin = time.Second

// Options are what a Dispatcher works with. All but Logger and Observer are required.
type Options struct {
	Store    Store
	Queue    Queue
	Gate     Gate
	Routes   Routes
	Observer Observer     // nil: nobody is told
	Logger   *slog.Logger // nil: slog.Default()
	Worker   string       // this process's name in the timeline: host:pid
	// Unsubscribe makes the one-click link of a mail to a stored recipient; nil: mails have none.
	Unsubscribe func(core.Unsubscription) string
	// Nudge makes a relay look for what is due now: a fallback moved on. Nil: it looks in its own time.
	Nudge func()
}

// Dispatcher turns wakes into rounds. It is safe for concurrent use.
type Dispatcher struct {
	store       Store
	queue       Queue
	gate        Gate
	routes      Routes
	observer    Observer
	log         *slog.Logger
	worker      string
	unsubscribe func(core.Unsubscription) string
	nudge       func()
	lost        pace.Pace // of complaints about claims whose answer may have been lost
}

// New returns a Dispatcher.
func New(o Options) *Dispatcher {
	d := &Dispatcher{store: o.Store, queue: o.Queue, gate: o.Gate, routes: o.Routes, observer: o.Observer, log: o.Logger, worker: o.Worker, unsubscribe: o.Unsubscribe, nudge: o.Nudge}
	if d.observer == nil {
		d.observer = nobody{}
	}
	if d.nudge == nil {
		d.nudge = func() {}
	}
	if d.log == nil {
		d.log = slog.Default()
	}
	return d
}

// Deliver is one round: it claims the wake's batch, asks the gate how many may go, sends them, and
// settles what the answers make of each delivery. A wake that is stale, early or of a route that is
// no longer configured does nothing. Whatever fails on the way, the batch's alarm clock in the store
// brings it back: the error is for the log alone.
func (d *Dispatcher) Deliver(ctx context.Context, w core.Wake) error {
	provider, limits, ok := d.routes.Provider(w.Route)
	if !ok {
		return nil // the relay reports strays
	}
	crash.At(crash.ClaimTaken)
	batch, clock, err := d.claim(ctx, w, limits.Timeout+core.LeaseSlack)
	if batch == nil {
		return err
	}
	r := newRound(batch, limits.Policy, clock)
	if err != nil {
		return d.handBack(ctx, r, err)
	}
	if clock.waitFor(ctx, batch.DueAt) != nil {
		r.holdBeyond(0, 0, core.CodeStopped) // nothing was sent, and nothing will be here
	}
	r.suppress()
	r.holdPaused()
	r.holdQuiet()
	r.expire()
	r.dropEmpty()
	calls := d.send(ctx, r, provider, limits)
	returned := calls.wait()
	r.answers, r.callErr = calls.answers, calls.err
	crash.At(crash.SendReturned)
	believe := len(r.sent) == 0 || d.gate.Report(w.Route, r.outcomes())
	r.judge(believe)

	crash.At(crash.SettleJudged)
	err = d.settle(ctx, r)
	crash.At(crash.SettleWoken)
	<-returned // a provider that overstays its context keeps its worker, not the batch
	return err
}

// send sends what the gate admits, as soon as it does, and holds the rest.
func (d *Dispatcher) send(ctx context.Context, r *round, provider providers.Provider, limits Limits) *calls {
	r.settlement.Silent = limits.Silent
	admit, cancel := r.clock.until(ctx, limits.Timeout+settleMargin)
	defer cancel()
	call, cancelCalls := r.clock.until(ctx, settleMargin)
	c := newCalls(provider, limits.Timeout, cancelCalls)
	for looked := r.clock.based; r.waiting() > 0; {
		granted, wait, code := d.gate.Admit(admit, r.Route, r.Lane, r.waiting())
		if code != "" || granted == 0 {
			r.holdBeyond(granted, wait, code)
		}
		granted = min(granted, r.waiting())
		if time.Since(looked) > lookAgain {
			looked = time.Now()
			d.dropCancelled(call, r)
		}
		r.expire()             // the gate may have taken its time
		if call.Err() != nil { // or claim and gate took what the call was to have
			r.holdBeyond(0, 0, core.CodeStopped)
		}
		n := min(granted, r.waiting())
		d.gate.Return(r.Route, granted-n)
		crash.At(crash.SendAdmitted)
		if n > 0 {
			c.start(call, r.take(n, d.unsubscribe))
		}
	}
	return c
}

// lookAgain is how long after the claim, or the last look, a round looks again for what was cancelled meanwhile. Who
// cancels is told that no new attempt begins.
const lookAgain = 100 * time.Millisecond

// dropCancelled takes out what is to be cancelled. Where the store does not say it is sent, as what was cancelled in the
// moment before its call.
func (d *Dispatcher) dropCancelled(ctx context.Context, r *round) {
	ids, err := d.store.Cancelling(ctx, r.ID)
	if err != nil {
		d.log.Debug("what was cancelled meanwhile is not known", "batch", r.ID, "error", err)
		return
	}
	if len(ids) == 0 {
		return
	}
	now := r.clock.now()
	r.sift(func(d *core.Delivery) bool {
		if !slices.Contains(ids, d.ID) {
			return false
		}
		r.settlement.Add(d.Hold(core.CodeRate, now, now), nil)
		return true
	})
}

// claim takes the batch. It asks again for a while where the store is away: a wake that is given up costs
// its batch the rest of core.DispatchTimeout. With an error and a batch, that is ours and its contents are not
// there.
func (d *Dispatcher) claim(ctx context.Context, w core.Wake, lease time.Duration) (batch *core.Round, c *clock, err error) {
	var unread error
	away := false
	err = outlast(ctx, func() (err error) {
		c = newClock(lease)
		batch, err = d.store.Claim(ctx, w, d.worker, lease)
		if batch != nil {
			unread, err = err, nil // it would not be given to us again
		}
		away = away || err != nil
		return err
	})
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("claim batch %s: %w", w.Batch, err)
	case batch != nil:
		c.set(batch.Now)
	case away:
		// It was done before, is another's, or its claim was kept and the answer lost: these cannot be told apart.
		if skipped, now := d.lost.Say(""); now {
			d.log.Warn("the store was away during a claim, and then there was nothing to claim; if the claim was kept all the same, its messages count as unknown when the lease ends",
				"batch", w.Batch.String(), "route", w.Route, "lease", lease, "repeated", skipped)
		}
	}
	if unread != nil {
		unread = fmt.Errorf("read what batch %s is to send: %w", w.Batch, unread)
	}
	return batch, c, unread
}

// unreadFor is how long a batch is held whose contents could not be read.
const unreadFor = 2 * time.Second

// handBack holds all of a round whose contents could not be read, and returns why. Left to its lease, each of its
// messages would count as unknown, though none was sent.
func (d *Dispatcher) handBack(ctx context.Context, r *round, why error) error {
	code := core.CodeStoreAway
	if ctx.Err() != nil {
		code = core.CodeStopped
	}
	r.holdBeyond(0, unreadFor, code)
	if err := d.settle(ctx, r); err != nil {
		return fmt.Errorf("%w; %w", why, err)
	}
	return why
}

// Of asking a store again that was away: how soon at first, and for how long.
const (
	awayFirst = 100 * time.Millisecond
	awayLast  = time.Second
	patience  = core.LeaseSlack
)

// outlast does something again while the store is away, within its patience and ctx. It has to be something
// that may be done twice: the first time may have been kept though its answer was lost.
func outlast(ctx context.Context, do func() error) error {
	began := time.Now()
	for wait := awayFirst; ; wait = min(2*wait, awayLast) {
		err := do()
		if !errors.Is(err, core.ErrUnavailable) || time.Since(began)+wait > patience || !pause(ctx, wait) {
			return err
		}
	}
}

// settle writes what a round came to and wakes what is held. What the service answered is known here alone,
// so a store that is away is asked again: else all of it would be unknown.
func (d *Dispatcher) settle(ctx context.Context, r *round) error {
	// What was sent must be written even when the process is told to stop in this moment.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), core.LeaseSlack)
	defer cancel()
	wakes := d.split(r, !r.Paused)
	var stale bool
	err := outlast(ctx, func() (err error) {
		stale, err = d.store.Settle(ctx, &r.settlement)
		return err
	})
	if err != nil {
		return fmt.Errorf("settle batch %s: %w", r.ID, err)
	}
	return d.settled(ctx, r, stale, wakes)
}

// split makes of what a round came to a settlement, and the wakes of what is held; none where that is not to be woken.
func (d *Dispatcher) split(r *round, wake bool) []core.Wake {
	s := &r.settlement
	s.Worker, s.At = d.worker, r.clock.now()
	held := core.Wake{App: r.App, Route: r.Route, Lane: r.Lane, At: s.At.Add(time.Second)} // it is due later
	return s.Split(s.At, wake && d.queue.Room(held) > 0)
}

// settled tells of a settlement that the store has, and wakes what is held.
func (d *Dispatcher) settled(ctx context.Context, r *round, stale bool, wakes []core.Wake) error {
	if stale {
		d.observer.Stale(r.Route)
		return nil
	}
	crash.At(crash.SettleCommitted)
	d.observer.Settled(r.Route, r.Lane, &r.settlement, r.clock.elapsed())
	if r.settlement.Advanced > 0 {
		d.nudge()
	}
	if len(wakes) == 0 {
		return nil
	}
	if err := d.queue.Wake(ctx, wakes...); err != nil {
		return fmt.Errorf("wake what batch %s holds, the relay will: %w", r.ID, err)
	}
	return nil
}

// round is the working state of one pass: which deliveries still wait to be sent, which were, and what is settled.
type round struct {
	*core.Round
	policy     core.Policy
	clock      *clock
	todo       []core.Delivery
	sent       []core.Delivery
	answers    []providers.Result
	callErr    error
	settlement core.Settlement
}

func newRound(b *core.Round, p core.Policy, c *clock) *round {
	return &round{Round: b, policy: p, clock: c, todo: b.Deliveries, settlement: core.Settlement{
		Batch: b.Batch, Verdicts: make([]core.Verdict, 0, len(b.Deliveries)), Results: make([]core.Attempt, 0, len(b.Deliveries)),
	}}
}

// waiting is how many deliveries are still to be sent.
func (r *round) waiting() int { return len(r.todo) }

// pausedFor is how far a paused route's batches are put off, without a wake. The relay leaves them alone until the
// route is resumed, and takes them at once then.
const pausedFor = 30 * time.Second

// holdPaused holds everything while the route is paused.
func (r *round) holdPaused() {
	if r.Paused {
		r.holdBeyond(0, pausedFor, core.CodePaused)
	}
}

// sift takes out of what is to be sent all that settled settles.
func (r *round) sift(settled func(*core.Delivery) bool) {
	kept := 0
	for i := range r.todo {
		if settled(&r.todo[i]) {
			continue
		}
		if kept != i {
			r.todo[kept] = r.todo[i]
		}
		kept++
	}
	r.todo = r.todo[:kept]
}

// holdQuiet holds what would disturb somebody's quiet hours, until they are over. That its time was chosen
// with them in mind when it was made does not help when it is late.
func (r *round) holdQuiet() {
	now := r.clock.now()
	r.sift(func(d *core.Delivery) bool {
		if d.Quiet == "" {
			return false
		}
		w, err := core.ParseWindow(d.Quiet)
		end, quiet := w.Until(now)
		if err != nil || !quiet {
			return false
		}
		r.settlement.Add(d.Hold(core.CodeQuiet, end, now), nil)
		return true
	})
}

// suppress takes out what is for an address that nothing is sent to any more.
func (r *round) suppress() {
	now := r.clock.now()
	r.sift(func(d *core.Delivery) bool {
		if d.Suppressed == "" {
			return false
		}
		r.settlement.Add(d.Suppress(now), nil)
		r.settlement.Results[len(r.settlement.Results)-1].Reason = d.Suppressed
		return true
	})
}

// dropEmpty takes out what there is nothing to send of. If its recipient was erased as the round began it is held
// for the settlement, which makes it cancelled; what comes back without was not, and its content is lost.
func (r *round) dropEmpty() {
	now := r.clock.now()
	r.sift(func(d *core.Delivery) bool {
		switch {
		case r.Contents[d.Content] != nil:
			return false
		case d.Code == core.CodeNoContent:
			r.settlement.Add(d.Fail(core.CodeNoContent, now), nil)
		default:
			r.settlement.Add(d.Hold(core.CodeNoContent, now.Add(time.Second), now), nil)
		}
		return true
	})
}

// expire takes out what ran out of time.
func (r *round) expire() {
	now, latest := r.clock.now(), r.clock.latest()
	r.sift(func(d *core.Delivery) bool {
		if d.ExpiresAt.After(latest) {
			return false
		}
		r.settlement.Add(d.Expire(now), nil)
		return true
	})
}

// holdBeyond holds all but the first n for a while. Of a round that waited for its route's rate and sent some, the rest
// is due at once: it goes on where it stopped, or the route would stand still until then. Where the service asked for a wait meanwhile,
// that is what the next round is held for, which sends nothing.
//
// The wait for a rate is that of the whole round. What has not that much time comes again when half of its own is over,
// for it may be among the first.
func (r *round) holdBeyond(n int, wait time.Duration, code string) {
	n = min(max(n, 0), len(r.todo))
	if wait = max(wait, time.Second); code == core.CodeRate && len(r.sent) > 0 {
		wait = 0
	}
	now := r.clock.now()
	for _, d := range r.todo[n:] {
		own := wait
		if half := d.ExpiresAt.Sub(now) / 2; code == core.CodeRate && half >= time.Second {
			own = min(own, half)
		}
		r.settlement.Add(d.Hold(code, now.Add(own), now), nil)
	}
	r.todo = r.todo[:n]
}

// outcomes are the answers, and Unknown for each message without one: a provider that hangs fails.
func (r *round) outcomes() []providers.Result {
	answered := make(map[string]bool, len(r.answers))
	for i := range r.answers {
		answered[r.answers[i].ID] = true
	}
	all := r.answers
	for i := range r.sent {
		if id := r.sent[i].ID.String(); !answered[id] {
			all = append(all, providers.Result{ID: id, Outcome: providers.Unknown})
		}
	}
	return all
}

// judge applies each answer to its delivery; what got none is Unknown.
func (r *round) judge(believeGone bool) {
	answers := make(map[string]*providers.Result, len(r.answers))
	for i := range r.answers {
		answers[r.answers[i].ID] = &r.answers[i]
	}
	now := r.clock.now()
	for _, d := range r.sent {
		res := providers.Result{Outcome: providers.Unknown}
		if a := answers[d.ID.String()]; a != nil {
			res = *a
		} else if r.callErr != nil {
			res.Reason = scrub(r.callErr)
		}
		if res.Outcome == providers.Gone && !believeGone {
			// So many dead addresses at once are our mistake, not theirs: hold, drop nothing.
			res.Outcome, res.Reason = providers.Denied, "too many addresses of this route are reported gone at once; is it the right environment?"
		}
		r.settlement.Add(d.Apply(res, r.policy, now, d.ID.Jitter(d.Attempts+d.Unknowns)), &res)
	}
	r.sent = nil
}

// nobody is the Observer of who has none.
type nobody struct{}

func (nobody) Settled(string, core.Lane, *core.Settlement, time.Duration) {}
func (nobody) Stale(string)                                               {}
func (nobody) Repaired(string, int)                                       {}
func (nobody) Received(string, providers.Event, bool)                     {}
