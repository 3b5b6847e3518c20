package dispatch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/crash"
	"github.com/carillon-notify/carillon/providers"
)

// overstay is how long after its context a provider's call may take to return before the round goes on
// without it.
const overstay = 300 * time.Millisecond

// emailChannel is the channel whose messages carry unsubscribe links, in their headers.
const emailChannel = "email"

// collector takes results in: of messages that were sent, the first one each, while it is open.
type collector struct {
	mu      sync.Mutex
	closed  bool
	open    map[string]struct{}
	answers []providers.Result
}

func (c *collector) report(res providers.Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, asked := c.open[res.ID]; !asked || c.closed {
		return // not ours, a second answer, or too late
	}
	delete(c.open, res.ID)
	if res.After < 0 {
		res.After = 0
	}
	c.answers = append(c.answers, res)
	crash.At(crash.SendAnswered)
}

func (c *collector) close() []providers.Result {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return c.answers
}

// send hands what is to be sent to the provider and collects its answers, for at most the timeout. The
// channel it returns is closed when the provider's call has really returned.
func (r *round) send(ctx context.Context, p providers.Provider, timeout time.Duration, unsubscribe func(core.Unsubscription) string) <-chan struct{} {
	returned := make(chan struct{})
	if len(r.todo) == 0 {
		close(returned)
		return returned
	}
	messages := make([]providers.Message, len(r.todo))
	c := &collector{open: make(map[string]struct{}, len(messages)), answers: make([]providers.Result, 0, len(messages))}
	for i := range r.todo {
		d := &r.todo[i]
		content := r.Contents[d.Content]
		if content == nil {
			content = &core.Content{}
		}
		messages[i] = d.Message(content, r.Lane)
		if unsubscribe != nil && d.Channel == emailChannel && d.Recipient != "" && content.Category != "" {
			messages[i].Unsubscribe = unsubscribe(core.Unsubscription{App: d.App, Recipient: d.Recipient, Category: content.Category, Channel: d.Channel})
		}
		c.open[messages[i].ID] = struct{}{}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	errs := make(chan error, 1)
	go func() {
		defer close(returned)
		defer cancel()
		errs <- deliver(ctx, p, messages, c.report)
	}()
	select {
	case r.callErr = <-errs:
	case <-ctx.Done():
		select {
		case r.callErr = <-errs:
		case <-time.After(overstay):
			r.callErr = errOverstay
		}
	}
	r.answers = slices.Clone(c.close())
	return returned
}

var (
	errOverstay   = errors.New("the provider did not return in time")
	errWorkerLost = errors.New("the worker was lost before it could say what became of it")
)

// deliver calls the provider and turns a panic of its goroutine into an error: a stranger's code
// cannot hurt us.
func deliver(ctx context.Context, p providers.Provider, batch []providers.Message, report func(providers.Result)) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("the provider panicked: %T", v) // not its value: it may hold content
		}
	}()
	return p.Deliver(ctx, batch, report)
}

// scrub says for the timeline what kind of error a call ended with. Its text stays out: a provider's
// error may name an address.
func scrub(err error) string {
	switch {
	case errors.Is(err, errOverstay), errors.Is(err, errWorkerLost):
		return err.Error()
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.Is(err, context.Canceled):
		return "the worker was stopped"
	default:
		return "no answer"
	}
}

// clock tells the database's time by the process's monotonic clock, from the claim on.
type clock struct {
	started time.Time // monotonic, taken before the claim
	lease   time.Duration
	base    time.Time // the database's time at the claim
	based   time.Time // monotonic, when the claim returned: later than base, so now is never ahead
}

func newClock(lease time.Duration) *clock { return &clock{started: time.Now(), lease: lease} }

// set says what the database's time was at the claim.
func (c *clock) set(now time.Time) { c.base, c.based = now, time.Now() }

func (c *clock) elapsed() time.Duration { return time.Since(c.started) }

// now is the database's time, or behind it by as much as the claim's reply took: nothing goes early.
func (c *clock) now() time.Time { return c.base.Add(time.Since(c.based)) }

// latest is the database's time, or ahead of it by as much as the claim's request took: nothing goes
// when it has expired.
func (c *clock) latest() time.Time { return c.base.Add(time.Since(c.started)) }

// until returns a context that ends a margin before the lease does.
func (c *clock) until(ctx context.Context, margin time.Duration) (context.Context, context.CancelFunc) {
	return context.WithDeadline(ctx, c.started.Add(c.lease-margin))
}

// waitFor waits until due, which is less than core.EarlyWake ahead.
func (c *clock) waitFor(ctx context.Context, due time.Time) error {
	wait := due.Sub(c.now())
	if wait <= 0 {
		return nil
	}
	t := time.NewTimer(min(wait, core.EarlyWake))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
