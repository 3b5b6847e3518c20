package intake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/crash"
	"github.com/carillon-notify/carillon/providers/pace"
	"github.com/carillon-notify/carillon/templates"
)

// Options are what an Intake works with.
type Options struct {
	Store     Store
	Queue     Queue
	Templates *templates.Catalog
	Routing   *Routing
	// Usable says whether a route delivers now; of several with one kind the first usable one is taken.
	// It is asked for each address and must be quick. Nil: all are.
	Usable func(route string) bool
	// Rules returns what decides beside the request. It is asked once for a request, and what it returned stays
	// as it is. Nil: nothing does.
	Rules func() *core.Rules
	// Unsubscribe makes the link of a mail, "" where there is none; nil: there are none.
	Unsubscribe func(core.Unsubscription) string
	Logger      *slog.Logger // nil: slog.Default()
}

// Intake accepts requests. It is safe for concurrent use.
type Intake struct {
	store       Store
	queue       Queue
	templates   *templates.Catalog
	usable      func(route string) bool
	asRuled     func() *core.Rules
	unsubscribe func(core.Unsubscription) string
	log         *slog.Logger
	unwoken     *pace.Pace

	current *atomic.Pointer[Routing]
	// Of one request: the current ones as it came.
	routing *Routing
	rules   *core.Rules
}

// New returns an Intake.
func New(o Options) *Intake {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Rules == nil {
		o.Rules = func() *core.Rules { return &core.Rules{} }
	}
	in := &Intake{store: o.Store, queue: o.Queue, templates: o.Templates, usable: o.Usable, asRuled: o.Rules, unsubscribe: o.Unsubscribe, log: o.Logger, unwoken: &pace.Pace{}, current: &atomic.Pointer[Routing]{}}
	in.SetRouting(o.Routing)
	return in
}

// SetRouting has requests that come from now on routed by r.
func (in *Intake) SetRouting(r *Routing) { in.current.Store(r) }

// steady is the intake with the routing and the rules as they are now, whatever becomes of them during a request.
func (in *Intake) steady() *Intake {
	out := *in
	out.routing, out.rules = in.current.Load(), in.asRuled()
	return &out
}

// wakeTimeout bounds how long an answer waits for the queue. What is accepted is kept without it: the
// relay wakes whatever this does not.
const wakeTimeout = 500 * time.Millisecond

// recordTimeout bounds recording where the caller's context has no deadline.
const recordTimeout = 30 * time.Second

// maxStale is how often a request is made anew whose recipients somebody changes, and staleWait how long it waits first,
// doubled each time: 2.6 s together. A change holds a recipient for milliseconds, an import of hundreds for tenths of a
// second.
const (
	maxStale  = 10
	staleWait = 5 * time.Millisecond
)

// lasting is ctx for what does not end by the caller's hanging up, with the same deadline, or recordTimeout.
func lasting(ctx context.Context) (context.Context, context.CancelFunc) {
	end, ok := ctx.Deadline()
	if !ok {
		end = time.Now().Add(recordTimeout)
	}
	return context.WithDeadline(context.WithoutCancel(ctx), end)
}

// Accept takes a request whole or not at all: it checks it, resolves whom it reaches, renders what they
// get, records all of that durably, and wakes the workers. Once it records, it no longer ends by ctx being
// cancelled, but by its deadline alone, at most 30 s later where there is none. The error is *Invalid for what the caller
// can mend, core.ErrKeyReused for a key used with another body, or the store's. Who chooses or is erased while it is made
// has it made anew; where that happens again and again it is core.ErrUnavailable, and nothing was kept.
func (in *Intake) Accept(ctx context.Context, app string, req *Request, key Key) (*Accepted, error) {
	for try, wait := 1, staleWait; ; try, wait = try+1, 2*wait {
		a, err := in.tryAccept(ctx, app, req, key)
		switch {
		case !errors.Is(err, core.ErrStale):
			return a, err
		case try == maxStale:
			return nil, fmt.Errorf("%w: a recipient of the request changed at each of %d tries; nothing was kept", core.ErrUnavailable, try)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, fmt.Errorf("record notification: %w", ctx.Err())
		}
	}
}

func (in *Intake) tryAccept(ctx context.Context, app string, req *Request, key Key) (*Accepted, error) {
	p, err := in.plan(ctx, app, req, in.store.Now())
	if err != nil {
		return in.answered(ctx, app, key, err)
	}
	acceptance, answer, err := p.acceptance(key)
	if err != nil {
		return nil, err
	}
	crash.At(crash.AcceptPlanned)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("record notification: %w", err)
	}
	// A caller who hangs up now is no reason to leave its batch, which may be others' as well, without its wake.
	record, cancel := lasting(ctx)
	defer cancel()
	recorded, err := in.store.Record(record, acceptance)
	if err != nil {
		return nil, fmt.Errorf("record notification: %w", err)
	}
	if recorded.Replayed {
		return replay(recorded.Answer)
	}
	crash.At(crash.AcceptCommitted)
	in.wake(ctx, recorded.Wakes)
	crash.At(crash.AcceptWoken)
	return answer, nil
}

// answered looks whether a request that cannot be taken now was taken before under its key: a send_at
// that lay ahead lies in the past by now, a template may be gone. The first answer holds all the same.
func (in *Intake) answered(ctx context.Context, app string, key Key, planned error) (*Accepted, error) {
	var bad *Invalid
	if key.Value == "" || !errors.As(planned, &bad) {
		return nil, planned
	}
	answer, err := in.store.Answered(ctx, app, key.Value, key.Hash)
	switch {
	case errors.Is(err, core.ErrNotFound):
		return nil, planned
	case err != nil:
		return nil, fmt.Errorf("look up the idempotency key: %w", err)
	}
	return replay(answer)
}

// Preview says what Accept would do, by the same code, and stores and sends nothing.
func (in *Intake) Preview(ctx context.Context, app string, req *Request) (*Preview, error) {
	p, err := in.plan(ctx, app, req, in.store.Now())
	if err != nil {
		return nil, err
	}
	if err := in.tellSuppressed(ctx, app, p.decisions); err != nil {
		return nil, err
	}
	return &Preview{Template: p.notification.Template, SendAt: p.notification.SendAt, ExpiresAt: p.notification.ExpiresAt,
		Decisions: p.decisions, Contents: p.contents}, nil
}

// tellSuppressed has decisions say which addresses are suppressed. Nobody is asked at accept: it is looked at as a
// round begins, however long after, and the delivery becomes suppressed then.
func (in *Intake) tellSuppressed(ctx context.Context, app string, decisions []Decision) error {
	var asked []core.AddressOf
	for _, d := range decisions {
		if d.Address != "" && core.Lasting(d.Channel) {
			asked = append(asked, core.AddressOf{App: app, Kind: d.Kind, Address: d.Address})
		}
	}
	if len(asked) == 0 {
		return nil
	}
	found, err := in.store.SuppressedAddresses(ctx, asked)
	if err != nil {
		return fmt.Errorf("look whose address is suppressed: %w", err)
	}
	for i := range decisions {
		d := &decisions[i]
		if _, ok := found[core.AddressOf{App: app, Kind: d.Kind, Address: d.Address}]; ok {
			d.Decision, d.Reason, d.HeldTill, d.Content = DecisionSkip, core.SkipSuppressed, time.Time{}, -1
		}
	}
	return nil
}

// Routing returns what the intake routes by now.
func (in *Intake) Routing() *Routing { return in.current.Load() }

func (in *Intake) wake(ctx context.Context, wakes []core.Wake) {
	if len(wakes) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wakeTimeout)
	defer cancel()
	if err := in.queue.Wake(ctx, wakes...); err != nil {
		// Every accept fails so while Redis is away.
		if skipped, now := in.unwoken.Say(""); now {
			in.log.Warn("accepted notifications could not be woken at once, the relay will", "wakes", len(wakes), "error", err, "repeated", skipped)
		}
	}
}

// plan is a request on its way: what it becomes, and what was decided for whom.
type plan struct {
	notification core.Notification
	deliveries   []core.Delivery
	contents     []core.Content
	decisions    []Decision
	known        []*core.Recipient // that were looked up, and found
	expansion    *core.Campaign    // of topics; nil: there are none
	ladders      [][]int           // fallbacks of two steps or more: their deliveries' places
}

// plan checks, resolves and renders. It goes on past faults with what is left, so that the caller
// hears of all of them at once.
func (in *Intake) plan(ctx context.Context, app string, req *Request, now time.Time) (*plan, error) {
	in = in.steady()
	p := &plan{notification: notification(app, req, now)}
	f := &faults{}
	checkTimes(req, &p.notification, now, f)
	targets := in.checkTargets(app, req, f)
	r, err := in.newRenderer(ctx, app, req, f)
	if err != nil {
		return nil, err
	}
	if len(targets) == 0 || !r.usable() {
		return nil, f.err()
	}
	recipients, err := in.store.Recipients(ctx, app, recipientIDs(req))
	if err != nil {
		return nil, fmt.Errorf("find recipients: %w", err)
	}
	p.known = slices.Collect(maps.Values(recipients))
	r.p, p.notification.Template = p, r.pinned
	if err := in.resolve(ctx, r, targets, recipients); err != nil {
		return nil, err
	}
	if namesTopic(req) {
		r.tryForAudience()
	}
	if err := in.expand(p, req, r, f); err != nil {
		return nil, err
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	return p, nil
}

// acceptance is what is recorded of a plan, and the answer that is given for it.
func (p *plan) acceptance(key Key) (*core.Acceptance, *Accepted, error) {
	n := &p.notification
	n.Resolving = p.expansion != nil
	status := core.StatusOf(n, core.Counts{Pending: len(p.deliveries)}, false, n.CreatedAt)
	answer := &Accepted{ID: n.ID, Status: status, Deliveries: len(p.deliveries), CreatedAt: n.CreatedAt,
		Skipped: n.Skipped[:min(len(n.Skipped), core.MaxSkipShown)]}
	a := &core.Acceptance{Notification: *n, Deliveries: p.deliveries, Contents: p.contents, Known: p.known, Key: key.Value, BodyHash: key.Hash}
	if p.expansion != nil {
		a.Expansions = []core.Campaign{*p.expansion}
	}
	if key.Value != "" {
		body, err := json.Marshal(answer)
		if err != nil {
			return nil, nil, fmt.Errorf("encode the answer: %w", err)
		}
		a.Answer = body
	}
	return a, answer, nil
}

func replay(answer []byte) (*Accepted, error) {
	a := &Accepted{}
	if err := json.Unmarshal(answer, a); err != nil {
		return nil, fmt.Errorf("decode the stored answer: %w", err)
	}
	a.Replayed = true
	return a, nil
}

// notification is the request without its words, with the defaults filled in.
func notification(app string, req *Request, now time.Time) core.Notification {
	n := core.Notification{
		ID: core.NewID(now), App: app, CreatedAt: now, SendAt: now, Priority: req.Priority, Mode: req.Mode,
		Category: req.Category, CollapseKey: req.CollapseKey, Unknown: req.Unknown, Metadata: req.Metadata,
	}
	if n.Priority == "" {
		n.Priority = core.Lanes[1]
	}
	if n.Mode == "" {
		n.Mode = core.ModeAll
	}
	if n.Mode == core.ModeFallback {
		if n.FallbackAfter = req.FallbackAfter; n.FallbackAfter == 0 {
			n.FallbackAfter = core.DefaultFallbackAfter
		}
	}
	if n.Unknown == "" {
		n.Unknown = core.RetryUnknown
	}
	if !req.SendAt.IsZero() {
		n.SendAt = req.SendAt
	} else if req.Delay > 0 {
		n.SendAt = now.Add(req.Delay)
	}
	ttl := req.TTL
	if ttl == 0 {
		ttl = core.DefaultTTL
	}
	n.ExpiresAt = later(n.SendAt, now).Add(ttl)
	if !req.ExpiresAt.IsZero() {
		n.ExpiresAt = req.ExpiresAt
	}
	return n
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// pastSlack is how far in the past a send_at may lie: clocks differ and requests take time. What is
// older was not meant.
const pastSlack = time.Minute

func checkTimes(req *Request, n *core.Notification, now time.Time, f *faults) {
	switch {
	case req.Mode != "" && req.Mode != core.ModeAll && req.Mode != core.ModeFallback:
		f.add("/mode", FaultInvalid, "must be %s or %s", core.ModeAll, core.ModeFallback)
	case req.FallbackAfter != 0 && n.Mode != core.ModeFallback:
		f.add("/fallback_after", FaultConflict, "belongs to mode %s", core.ModeFallback)
	case req.FallbackAfter != 0 && (req.FallbackAfter < core.MinFallbackAfter || req.FallbackAfter > core.MaxFallbackAfter):
		f.add("/fallback_after", FaultRange, "must be %s to %s", core.MinFallbackAfter, core.MaxFallbackAfter)
	}
	if !req.SendAt.IsZero() && req.Delay != 0 {
		f.add("/delay", FaultConflict, "give send_at or delay, not both")
	}
	if req.Delay < 0 {
		f.add("/delay", FaultRange, "must not be negative")
	}
	if !req.SendAt.IsZero() && req.SendAt.Before(now.Add(-pastSlack)) {
		f.add("/send_at", FaultRange, "lies in the past; leave it out to send now")
	}
	if n.SendAt.After(now.Add(core.MaxAhead)) {
		pointer := "/send_at"
		if req.Delay > 0 {
			pointer = "/delay"
		}
		f.add(pointer, FaultRange, "lies more than %d days ahead", int(core.MaxAhead.Hours()/24))
	}
	if req.TTL < 0 || req.TTL > core.MaxTTL {
		f.add("/ttl", FaultRange, "must be above 0 and at most %s", core.MaxTTL)
	}
}
