package apns

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sideshow/apns2"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/h2"
	"github.com/carillon-notify/carillon/providers/pool"
)

// maxTries is how often a message is offered to connections that did not take it, before it is deferred.
const maxTries = 4

// certWarning is how long before its end a certificate is worth a word.
const certWarning = 14 * 24 * time.Hour

// Codes of results that APNs has no word for.
const (
	codeExpired     = "expired"       // the message's own time is over
	codeAddress     = "bad_address"   // not a device token
	codeContent     = "bad_content"   // the push cannot be built
	codeTooLarge    = "too_large"     // the payload is over the limit
	codeToken       = "no_token"      // no provider token can be signed
	codeTest        = "test"          // checked, not sent
	codeTimeout     = "timeout"       // the batch's time ended before the message was handed over
	codeUnreachable = "unreachable"   // no connection can be opened
	codeLost        = "not_processed" // connections ended before they took the message
)

type provider struct {
	cfg    *config
	bearer bearer
	links  *pool.Shared[*link]
	crew   *h2.Crew

	lastDial atomic.Pointer[string] // why the last opening failed; nil when it did not
	denied   atomic.Pointer[string] // why credentials were refused last; nil when they were not
}

func open(raw []byte) (*provider, error) {
	cfg, err := readSettings(raw)
	if err != nil {
		return nil, err
	}
	p := &provider{cfg: cfg, crew: h2.NewCrew()}
	p.bearer.token = cfg.token
	if _, err := p.bearer.ready(); err != nil {
		return nil, err
	}
	p.links = pool.NewShared(cfg.pool, p.connect, func(l *link) { _ = l.conn.Close() })
	return p, nil
}

// delivery is one call of Deliver.
type delivery struct {
	*provider
	report func(providers.Result)

	mu       sync.Mutex
	silent   int   // messages that got no answer
	firstErr error // why the first of them got none
}

// Deliver implements providers.Provider. Messages go out side by side, each in a stream of its own.
func (p *provider) Deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	d := &delivery{provider: p, report: report}
	if len(batch) == 1 {
		d.one(ctx, &batch[0])
	} else {
		var next atomic.Int64
		var wg sync.WaitGroup
		work := func() {
			defer wg.Done()
			for i := next.Add(1) - 1; int(i) < len(batch); i = next.Add(1) - 1 {
				d.one(ctx, &batch[i])
			}
		}
		for range min(len(batch), maxBatch, p.cfg.pool.Max*p.cfg.pool.Streams) {
			wg.Add(1)
			p.crew.Do(work)
		}
		wg.Wait()
	}
	if d.firstErr == nil {
		return nil
	}
	return fmt.Errorf("%d of %d messages got no answer: %w", d.silent, len(batch), d.firstErr)
}

// one sends a message and reports what became of it, unless nobody knows.
func (d *delivery) one(ctx context.Context, m *providers.Message) {
	r, err := d.send(ctx, m)
	if err != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.silent++; d.firstErr == nil {
			d.firstErr = err
		}
		return
	}
	switch r.Outcome {
	case providers.Denied:
		d.denied.Store(&r.Reason)
	case providers.Accepted:
		if d.denied.Load() != nil && !m.Test {
			d.denied.Store(nil)
		}
	}
	d.report(r)
}

// send offers a message to connections until one takes it. An error is that nobody knows whether APNs
// took it.
func (d *delivery) send(ctx context.Context, m *providers.Message) (providers.Result, error) {
	n, r := d.prepare(m)
	if n == nil {
		return r, nil
	}
	var asked follow // what was already done about an answer, to do it once
	last := h2.ErrEnded
	for range maxTries {
		number, err := d.bearer.ready()
		if err != nil {
			return providers.Result{ID: m.ID, Outcome: providers.Denied, Code: codeToken, Reason: err.Error()}, nil //nolint:nilerr // an answer is data
		}
		slot, err := d.links.Acquire(ctx)
		if err != nil {
			return d.paced(notTaken(m, err)), nil
		}
		l := slot.Value()
		a := l.ask(ctx, n, d.cfg.timeout)
		if errors.Is(a.err, h2.ErrEnded) {
			slot.Retire() // the pool may not have heard yet, and would give it to us again
		}
		if a.err != nil && !a.taken {
			slot.ReleaseUntaken()
		} else {
			slot.Release()
		}
		switch {
		case a.err != nil && !a.taken:
			if errors.Is(a.err, context.DeadlineExceeded) || errors.Is(a.err, context.Canceled) {
				return notTaken(m, a.err), nil
			}
			last = a.err
			continue
		case a.err != nil:
			return r, fmt.Errorf("wait for the answer of APNs: %w", a.err)
		}
		means := meaning(a.status, a.reason)
		if means.follow != asked && d.follow(means.follow, number, slot) {
			asked = means.follow
			continue
		}
		r = means.result(m.ID, a.reason, a.retryAfter)
		r.ProviderID, r.Since = a.id, a.since
		return r, nil
	}
	return d.paced(providers.Result{ID: m.ID, Outcome: providers.Deferred, Code: codeLost,
		Reason: "connections ended before they took the message: " + last.Error()}), nil
}

// paced has a message that no connection took wait without burning an attempt, while the server ends its
// connections after a few messages each: it does take some.
func (p *provider) paced(r providers.Result) providers.Result {
	if (r.Code == codeLost || r.Code == codeTimeout) && p.links.Churns() {
		r.Outcome, r.After = providers.Throttled, time.Second
	}
	return r
}

// follow does what an answer asks for and says whether the message may be asked again at once.
func (d *delivery) follow(f follow, number int, slot *pool.Conn[*link]) bool {
	switch f {
	case reconnect:
		slot.Retire()
		return true
	case renewToken:
		again, err := d.bearer.renew(number)
		return again && err == nil
	case keepToken:
		d.bearer.keep()
	case nothing:
	}
	return false
}

// prepare builds the push, or the result of a message that will not be sent.
func (d *delivery) prepare(m *providers.Message) (*apns2.Notification, providers.Result) {
	refused := func(code, reason string) (*apns2.Notification, providers.Result) {
		return nil, providers.Result{ID: m.ID, Outcome: providers.Rejected, Code: code, Reason: reason}
	}
	if !m.ExpiresAt.IsZero() && !time.Now().Before(m.ExpiresAt) {
		return refused(codeExpired, "the message expired before it was sent")
	}
	if !isToken(m.Address) {
		return refused(codeAddress, "the address is not a device token: 64 to 200 hexadecimal digits")
	}
	n, err := build(m, d.cfg.topic)
	if err != nil {
		return refused(codeContent, err.Error())
	}
	if err := n.fits(); err != nil {
		return refused(codeTooLarge, err.Error())
	}
	if m.Test {
		// APNs has no dry run. Everything that can be checked here was.
		return nil, providers.Result{ID: m.ID, Outcome: providers.Accepted, Code: codeTest,
			Reason: "checked and not sent: APNs cannot check a push without delivering it"}
	}
	return n.notification(m), providers.Result{}
}

// notTaken is the result of a message that no connection was found for.
func notTaken(m *providers.Message, err error) providers.Result {
	r := providers.Result{ID: m.ID, Outcome: providers.Deferred, Code: codeUnreachable, Reason: err.Error()}
	var failed *pool.OpenError
	switch {
	case errors.As(err, &failed):
		r.After = failed.RetryIn
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		r.Code, r.Reason = codeTimeout, "there was no time left to hand the message to APNs"
	}
	return r
}

// reply is what became of one request.
type reply struct {
	status     int
	reason, id string
	retryAfter string
	since      time.Time
	err        error // no answer came
	taken      bool  // with err: APNs may have taken the message
}

// ask makes one request.
func (l *link) ask(ctx context.Context, n *apns2.Notification, timeout time.Duration) reply {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c := &call{Context: limited}
	resp, err := l.client.PushWithContext(c, n)
	switch {
	case err == nil:
		r := reply{status: resp.StatusCode, reason: resp.Reason, id: resp.ApnsID, retryAfter: c.retryAfter}
		if resp.StatusCode == http.StatusGone && resp.Timestamp.Unix() > 0 {
			// apns2 cuts Apple's milliseconds off: take the end of that second, or an address registered in
			// its first part would count as newer than the service's word on it.
			r.since = resp.Timestamp.Add(time.Second - time.Millisecond)
		}
		return r
	case c.status != 0: // an answer whose body apns2 could not read: the status is enough
		return reply{status: c.status, retryAfter: c.retryAfter}
	}
	err = bare(err)
	return reply{err: err, taken: !errors.Is(err, h2.ErrUnprocessed)}
}

// Health implements providers.Provider.
func (p *provider) Health(context.Context) providers.Health {
	h := providers.Health{Status: providers.HealthOK, Pool: p.links.Stats()}
	if left := time.Until(p.cfg.expires); !p.cfg.expires.IsZero() && left < certWarning {
		h.Status, h.Reason = providers.HealthDegraded, "the certificate ends on "+p.cfg.expires.UTC().Format(time.DateOnly)
		if left <= 0 {
			h.Status, h.Reason = providers.HealthDown, "the certificate ended on "+p.cfg.expires.UTC().Format(time.DateOnly)
		}
	}
	if p.links.Churns() {
		h.Status, h.Reason = providers.HealthDegraded, "the server ends its connections after a few messages, so further ones are opened slowly"
	}
	if why := p.lastDial.Load(); why != nil {
		h.Status, h.Reason = providers.HealthDegraded, *why
		if h.Pool.Open == 0 {
			h.Status = providers.HealthDown
		}
	}
	if why := p.denied.Load(); why != nil {
		h.Status, h.Reason = providers.HealthDown, *why
	}
	return h
}

// Close implements providers.Provider.
func (p *provider) Close(ctx context.Context) error {
	defer p.crew.Disband()
	if err := p.links.Close(ctx); err != nil {
		return fmt.Errorf("close apns: %w", err)
	}
	return nil
}
