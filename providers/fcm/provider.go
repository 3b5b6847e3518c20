package fcm

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"firebase.google.com/go/v4/messaging"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/h2"
	"github.com/carillon-notify/carillon/providers/pool"
)

// provider delivers to one Firebase project.
type provider struct {
	sdk     *messaging.Client
	tokens  *tokens
	pool    *pool.Shared[*h2.Conn]
	crew    *h2.Crew
	oauth   *http.Client
	timeout time.Duration
	life    context.Context // ends with Close
	end     context.CancelFunc
	trouble atomic.Pointer[providers.Health] // nil: none known
}

// Deliver implements providers.Provider. Each message is a request of its own: FCM has no batch method.
func (p *provider) Deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	if len(batch) == 1 {
		return p.one(ctx, &batch[0], nil, report)
	}
	errs, with := make([]error, len(batch)), stencils(batch, time.Now())
	var all sync.WaitGroup
	for i := range batch {
		all.Add(1)
		p.crew.Do(func() {
			defer all.Done()
			errs[i] = p.one(ctx, &batch[i], with[i], report)
		})
	}
	all.Wait()
	var first error
	unanswered := 0
	for _, err := range errs {
		if err == nil {
			continue
		}
		if unanswered++; first == nil {
			first = err
		}
	}
	if unanswered > 1 {
		return fmt.Errorf("%d of %d messages were sent and not answered, the first: %w", unanswered, len(batch), first)
	}
	return first
}

// one delivers one message. It reports it, or returns why nobody knows what became of it.
func (p *provider) one(ctx context.Context, m *providers.Message, with *stencil, report func(providers.Result)) error {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	res, err := p.send(ctx, m, with)
	if err != nil {
		return err
	}
	res.ID = m.ID
	p.note(res)
	report(res)
	return nil
}

func (p *provider) send(ctx context.Context, m *providers.Message, with *stencil) (providers.Result, error) {
	msg, payload, err := with.fill(m, time.Now())
	if err != nil {
		return unbuildable(err), nil
	}
	for again := false; ; again = true {
		token, err := p.tokens.get(ctx)
		if err != nil {
			return tokenResult(err), nil
		}
		a := &attempt{token: token, payload: payload}
		if err := call(context.WithValue(ctx, attemptKey{}, a), p.sdk, msg, m.Test); err != nil && a.calls == 0 {
			return unbuildable(err), nil
		}
		switch {
		case a.calls == 0:
			return providers.Result{}, errors.New("the FCM library did not send the message and said nothing")
		case a.tooBig:
			return providers.Result{Outcome: providers.Rejected, Code: "too_big", Reason: "the message is larger than anything FCM takes"}, nil
		case a.status != 0:
		case a.handed:
			return providers.Result{}, fmt.Errorf("send to FCM: no answer: %w", a.err)
		default:
			return p.paced(unsent(a.err), a.err), nil
		}
		res := classify(a.status, a.header, a.body, time.Now())
		if res.Outcome == providers.Denied && a.status == http.StatusUnauthorized {
			// The token may be dead before its time (a changed clock, a restarted server). FCM looked
			// at nothing else, so this is no second attempt.
			p.tokens.drop(token)
			if !again {
				continue
			}
		}
		return res, nil
	}
}

// call hands the message to the library.
func call(ctx context.Context, sdk *messaging.Client, msg *messaging.Message, dryRun bool) (err error) {
	defer func() {
		// See overlay: the library's encoders can panic on odd values.
		if r := recover(); r != nil {
			err = errors.New("the FCM library cannot encode this message")
		}
	}()
	if dryRun {
		_, err = sdk.SendDryRun(ctx, msg)
	} else {
		_, err = sdk.Send(ctx, msg)
	}
	return err
}

// unbuildable is for a message that Check would have refused.
func unbuildable(error) providers.Result {
	return providers.Result{Outcome: providers.Rejected, Code: "unbuildable", Reason: "no FCM message can be built from this content"}
}

// unsent is for a message that did not reach FCM. What is wrong with the connection is for the log and
// the health; the pool's error names no address but the endpoint's.
func unsent(err error) providers.Result {
	res := providers.Result{Outcome: providers.Deferred, Code: "connect", Reason: "FCM cannot be reached"}
	var open *pool.OpenError
	switch {
	case untrusted(err):
		res.Outcome, res.Code = providers.Denied, "tls"
		res.Reason = "the certificate at the FCM endpoint is not trusted; check endpoint and ca_file"
	case errors.As(err, &open):
		res.Reason += ": " + open.Err.Error()
		res.After = open.RetryIn
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		res.Reason = "there was no connection to FCM free in time"
	case errors.Is(err, pool.ErrClosed):
		res = closed()
	}
	return res
}

// paced has a message that no connection took wait without burning an attempt, while the server ends its
// connections after a few messages each: it does take some.
func (p *provider) paced(r providers.Result, err error) providers.Result {
	late := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, h2.ErrUnprocessed)
	if r.Outcome == providers.Deferred && late && p.pool.Churns() {
		r.Outcome, r.Code, r.After = providers.Throttled, "not_processed", time.Second
		r.Reason = "the server ends its connections before they take the message"
	}
	return r
}

// closed is for a message that comes to a provider that is closed.
func closed() providers.Result {
	return providers.Result{Outcome: providers.Deferred, Code: "closed", Reason: "the provider is closed"}
}

// untrusted says whether a peer showed a certificate that we do not trust: that needs a person.
func untrusted(err error) bool {
	var cert *tls.CertificateVerificationError
	return errors.As(err, &cert)
}

// note keeps the provider's own judgement of itself up to date.
func (p *provider) note(res providers.Result) {
	var h *providers.Health
	switch {
	case res.Outcome == providers.Denied, res.Code == "connect", res.Code == "token":
		h = &providers.Health{Status: providers.HealthDown, Reason: res.Reason}
	case res.Outcome == providers.Throttled, res.After == setupAfter && res.Outcome == providers.Deferred:
		h = &providers.Health{Status: providers.HealthDegraded, Reason: res.Reason}
	}
	if h != nil || p.trouble.Load() != nil {
		p.trouble.Store(h)
	}
}

// Health implements providers.Provider.
func (p *provider) Health(context.Context) providers.Health {
	h := providers.Health{Status: providers.HealthOK}
	if p.pool.Churns() {
		h = providers.Health{Status: providers.HealthDegraded, Reason: "the server ends its connections after a few messages, so further ones are opened slowly"}
	}
	if t := p.trouble.Load(); t != nil {
		h = *t
	}
	h.Pool = p.pool.Stats()
	return h
}

// Close implements providers.Provider.
func (p *provider) Close(ctx context.Context) error {
	err := p.pool.Close(ctx)
	p.end() // what still waits for an access token learns that it is over
	p.crew.Disband()
	if err != nil {
		return fmt.Errorf("close the connections to FCM: %w", err)
	}
	return nil
}
