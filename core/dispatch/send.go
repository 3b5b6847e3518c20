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

// take takes the first n of what is to be sent, as messages.
func (r *round) take(n int, unsubscribe func(core.Unsubscription) string) []providers.Message {
	now := r.todo[:n:n]
	r.todo = r.todo[n:]
	if r.sent == nil {
		r.sent = now
	} else {
		r.sent = append(r.sent, now...)
	}
	messages := make([]providers.Message, n)
	for i := range now {
		d := &now[i]
		content := r.Contents[d.Content] // dropEmpty left none without
		messages[i] = d.Message(content, r.Lane)
		if unsubscribe != nil && d.Channel == emailChannel && d.Recipient != "" && content.Category != "" {
			messages[i].Unsubscribe = unsubscribe(core.Unsubscription{App: d.App, Recipient: d.Recipient, Category: content.Category, Channel: d.Channel})
		}
	}
	return messages
}

// calls are the calls of a provider in a round, one after the other is granted, and what they answered: of
// messages that were sent, the first result each, until it is too late.
type calls struct {
	provider providers.Provider
	timeout  time.Duration
	cancel   context.CancelFunc // of all
	running  sync.WaitGroup     // until they have really returned
	awaited  sync.WaitGroup     // until they have, or are not waited for any more

	mu      sync.Mutex
	closed  bool
	open    map[string]struct{}
	answers []providers.Result
	err     error // of one that failed
}

func newCalls(p providers.Provider, timeout time.Duration, cancel context.CancelFunc) *calls {
	return &calls{provider: p, timeout: timeout, cancel: cancel}
}

// start hands messages to the provider and collects its answers, for at most the timeout.
func (c *calls) start(ctx context.Context, messages []providers.Message) {
	c.mu.Lock()
	if c.open == nil {
		c.open = make(map[string]struct{}, len(messages))
	}
	for i := range messages {
		c.open[messages[i].ID] = struct{}{}
	}
	c.answers = slices.Grow(c.answers, len(messages))
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	errs := make(chan error, 1)
	c.running.Go(func() {
		defer cancel()
		errs <- deliver(ctx, c.provider, messages, c.report)
	})
	c.awaited.Go(func() {
		err := await(ctx, errs)
		if err == nil {
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if !errors.Is(c.err, errOverstay) {
			c.err = err
		}
	})
}

// await waits for a call's end, and a little longer than its context lets it.
func await(ctx context.Context, errs <-chan error) error {
	select {
	case err := <-errs:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-errs:
		return err
	case <-time.After(overstay):
		return errOverstay
	}
}

func (c *calls) report(res providers.Result) {
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

// wait waits for the answers; none is taken after it. The channel it returns is closed when the provider's calls
// have really returned.
func (c *calls) wait() <-chan struct{} {
	c.awaited.Wait()
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	returned := make(chan struct{})
	end := func() {
		c.running.Wait()
		c.cancel()
		close(returned)
	}
	if errors.Is(c.err, errOverstay) {
		go end()
	} else {
		end()
	}
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
