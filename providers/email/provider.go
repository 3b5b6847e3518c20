package email

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/pool"
)

// perSession is how many messages of a batch one more session is worth opening for.
const perSession = 5

// provider delivers to one mail server.
type provider struct {
	sender  *sender
	server  *server
	pool    *pool.Exclusive[*session]
	max     int // messages of a session
	trouble atomic.Pointer[providers.Health]
}

// Deliver implements providers.Provider.
func (p *provider) Deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	d := &delivery{p: p, report: report, batch: make([]*providers.Message, 0, len(batch))}
	for i := range batch {
		if m := &batch[i]; m.Test {
			d.examine(m)
		} else {
			d.batch = append(d.batch, m)
		}
	}
	d.ctx, d.stop = context.WithCancel(ctx)
	defer d.stop()
	workers := min((len(d.batch)+perSession-1)/perSession, p.pool.Stats().Max)
	if workers > 1 {
		var all sync.WaitGroup
		for range workers {
			all.Go(func() { d.work(ctx) })
		}
		all.Wait()
	} else {
		d.work(ctx)
	}
	return d.finish(ctx)
}

// delivery is one Deliver. It is the feed of its workers.
type delivery struct {
	p      *provider
	batch  []*providers.Message
	report func(providers.Result)
	ctx    context.Context // ends with the caller's, and when there is nothing left to take
	stop   context.CancelFunc

	mu     sync.Mutex
	taken  int    // of batch
	put    []*job // back
	out    int    // with the workers
	lostN  int
	lost1  error // why, for the first
	opened error // why the last session was not opened
}

// examine answers for a test message. SMTP cannot be asked whether it would take one, so what can be
// checked here is all.
func (d *delivery) examine(m *providers.Message) {
	r := providers.Result{ID: m.ID, Outcome: providers.Accepted, Code: "test"}
	if _, err := compose(m); err != nil {
		r = unbuildable(m)
	}
	d.report(r)
}

// unbuildable is for a message that Check would have refused.
func unbuildable(m *providers.Message) providers.Result {
	return providers.Result{ID: m.ID, Outcome: providers.Rejected, Code: "unbuildable", Reason: "no e-mail can be built from this content"}
}

// work sends messages until there are none, over as many sessions as that takes.
func (d *delivery) work(ctx context.Context) {
	for d.more() {
		lease, err := d.p.pool.Acquire(d.ctx)
		if err != nil {
			if d.ctx.Err() == nil || ctx.Err() != nil {
				d.mu.Lock()
				d.opened = err
				d.mu.Unlock()
			}
			return
		}
		s := lease.Value()
		s.run(ctx, d, d.p.max, d.p.server.timeout, lease.Kept())
		if s.broken || s.sent >= d.p.max {
			lease.Destroy()
		} else {
			lease.Release()
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// more says whether there is a message to take.
func (d *delivery) more() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.put) > 0 || d.taken < len(d.batch)
}

func (d *delivery) next() *job {
	for {
		m, j := d.take()
		if m == nil {
			return j
		}
		j, err := d.p.sender.write(m, time.Now())
		if err == nil {
			return j
		}
		d.tell(unbuildable(m))
	}
}

// take gives a message that was put back, or one that is still to be written, or neither.
func (d *delivery) take() (*providers.Message, *job) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := len(d.put)
	switch {
	case d.ctx.Err() != nil:
		return nil, nil
	case n > 0:
		j := d.put[n-1]
		d.put = d.put[:n-1]
		d.out++
		return nil, j
	case d.taken < len(d.batch):
		m := d.batch[d.taken]
		d.taken++
		d.out++
		return m, nil
	}
	return nil, nil
}

func (d *delivery) settle(j *job, r providers.Result) {
	r.ID = j.msg.ID
	d.tell(r)
}

func (d *delivery) tell(r providers.Result) {
	d.p.note(r)
	d.report(r)
	d.done()
}

func (d *delivery) lost(_ *job, err error) {
	d.mu.Lock()
	if d.lostN++; d.lost1 == nil {
		d.lost1 = err
	}
	d.mu.Unlock()
	d.done()
}

// done notes that a message needs nobody any more; with the last one, workers that still wait for a
// session go home.
func (d *delivery) done() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.out--
	if d.out == 0 && len(d.put) == 0 && d.taken == len(d.batch) {
		d.stop()
	}
}

func (d *delivery) back(j *job) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.out--
	d.put = append(d.put, j)
}

// finish reports what no worker took, which needs a session or time that there is not.
func (d *delivery) finish(ctx context.Context) error {
	var left []string
	for _, j := range d.put {
		left = append(left, j.msg.ID)
	}
	for i := d.taken; i < len(d.batch); i++ {
		left = append(left, d.batch[i].ID)
	}
	for _, id := range left {
		r := unopened(ctx, d.opened)
		r.ID = id
		d.p.note(r)
		d.report(r)
	}
	if d.lostN > 1 {
		return fmt.Errorf("%d of %d messages were handed over and not answered, the first: %w", d.lostN, len(d.batch), d.lost1)
	}
	return d.lost1
}

// unopened says what it means for a message that there was no session for it.
func unopened(ctx context.Context, err error) providers.Result {
	var open *openError
	var waits *pool.OpenError
	switch {
	case errors.As(err, &open):
		res := open.result
		if errors.As(err, &waits) && res.Outcome == providers.Deferred {
			res.After = waits.RetryIn
		}
		return res
	case errors.Is(err, pool.ErrClosed):
		return providers.Result{Outcome: providers.Deferred, Code: "closed", Reason: "the provider is closed"}
	case ctx.Err() != nil:
		return providers.Result{Outcome: providers.Deferred, Code: "time", Reason: "there was no connection to the mail server free in time"}
	}
	return providers.Result{Outcome: providers.Deferred, Code: "connection", Reason: "the connection to the mail server broke before the message was sent"}
}

// note keeps the provider's own judgement of itself up to date.
func (p *provider) note(r providers.Result) {
	var h *providers.Health
	if r.Outcome == providers.Denied || r.Code == "connect" {
		h = &providers.Health{Status: providers.HealthDown, Reason: r.Reason}
	}
	if h != nil || p.trouble.Load() != nil {
		p.trouble.Store(h)
	}
}

// Health implements providers.Provider.
func (p *provider) Health(context.Context) providers.Health {
	h := providers.Health{Status: providers.HealthOK}
	if p.server.distrusted() {
		h = providers.Health{Status: providers.HealthDegraded, Reason: errMisled.Error() + ", so it is told one command at a time"}
	}
	if t := p.trouble.Load(); t != nil {
		h = *t
	}
	h.Pool = p.pool.Stats()
	return h
}

// Close implements providers.Provider.
func (p *provider) Close(ctx context.Context) error {
	if err := p.pool.Close(ctx); err != nil {
		return fmt.Errorf("close the sessions with the mail server: %w", err)
	}
	return nil
}
