package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/carillon-notify/carillon/plugins/wire"
	"github.com/carillon-notify/carillon/providers"
)

// The codes of answers that the supervisor gives in a plugin's place. Nothing was sent then.
const (
	CodeDown        = "plugin_down"        // it is being started again
	CodeQuarantined = "plugin_quarantined" // an operator should look
	CodeStopping    = "plugin_stopping"    // this process lets it go
)

// maxHung is how many calls in a row may have to be cut off before a process is started anew.
const maxHung = 3

// healthAge is how old an answer to Health may be before the process is asked again.
const healthAge = time.Second

// Process is a provider in a process of its own that is kept running. It implements providers.Provider and
// providers.Receiver.
type Process struct {
	spec     Spec
	kind     providers.Kind
	settings []byte
	scrub    *scrubber
	calls    calls
	log      *slog.Logger

	cancel  context.CancelFunc
	stopped chan struct{} // closed when the supervisor has ended
	closing sync.Once
	parting context.Context // bounds the stop; set before cancel
	ending  error           // of the stop; set before stopped is closed

	mu      sync.Mutex
	now     *instance     // nil while none runs
	hold    *hold         // what calls are answered meanwhile
	changed chan struct{} // closed and replaced when now or hold changes
	health  providers.Health
	asked   time.Time // when health was answered
	record  record
}

// hold is what happens to messages while no process runs.
type hold struct {
	outcome providers.Outcome
	code    string
	reason  string
	until   time.Time
	final   bool // no process comes back
}

// newProcess starts nothing.
func newProcess(spec Spec, kind providers.Kind, settings []byte) *Process {
	settings = bytes.Clone(settings) // for each process, and the caller's to change
	return &Process{spec: spec, kind: kind, settings: settings, scrub: newScrubber(kind.Settings, settings), log: spec.Logger,
		stopped: make(chan struct{}), changed: make(chan struct{}), record: record{timing: spec.Timing},
		hold: &hold{outcome: providers.Throttled, code: CodeDown, reason: "the plugin is being started"}}
}

// start starts one process and opens its provider.
func (p *Process) start(ctx context.Context) (*instance, error) {
	began := time.Now()
	i, err := launch(ctx, &p.spec, p.hide)
	if err != nil {
		return nil, err
	}
	if i.kind.Name != p.kind.Name || i.kind.Channel != p.kind.Channel {
		i.end()
		return nil, fmt.Errorf("the file is of another kind now: %s of the channel %s; reload the routes to take it", i.kind.Name, i.kind.Channel)
	}
	i.log.distrust() // from here on it has secrets to tell
	ctx, cancel := context.WithTimeout(ctx, p.spec.Timing.Start)
	defer cancel()
	if i.http, err = i.rpc.Open(ctx, p.settings); err != nil {
		switch status.Code(err) {
		case codes.DeadlineExceeded:
			err = fmt.Errorf("it did not open within %s", p.spec.Timing.Start)
		case codes.Unavailable:
			if i.child.settle(); i.child.itself() {
				err = errors.New(i.child.ending() + " while it was opened")
			}
		}
		i.end()
		return nil, err
	}
	if i.http != "" {
		if _, _, err := i.child.PluginToHost("unix", strings.TrimPrefix(i.http, "unix:")); err != nil {
			i.end()
			return nil, fmt.Errorf("where it serves its clients: %w", err)
		}
	}
	p.log.Debug("the plugin runs", "pid", i.child.ID(), "took", time.Since(began))
	return i, nil
}

// hide returns what the plugin wrote without what it must not tell.
func (p *Process) hide(text string) string { return p.calls.hide(p.scrub.secret(text)) }

// Deliver implements providers.Provider. While no process runs it waits a moment for one, and then answers
// in the plugin's place, burning no attempt.
func (p *Process) Deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	patience, cancel := context.WithTimeout(ctx, p.spec.Timing.Ready)
	defer cancel()
	for {
		i, h := p.acquire(patience)
		if i == nil {
			h.answer(batch, report)
			return nil
		}
		err := p.deliver(ctx, i, batch, report)
		if !errors.Is(err, wire.ErrNotSent) {
			return err
		}
		if ctx.Err() != nil {
			(&hold{outcome: providers.Deferred, code: CodeDown, reason: "the plugin took nothing in the time there was"}).answer(batch, report)
			return nil
		}
		p.lost(i) // nothing went out: the next process may have it
	}
}

// deliver has one process deliver. The call is counted in.
func (p *Process) deliver(ctx context.Context, i *instance, batch []providers.Message, report func(providers.Result)) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	n := p.calls.begin(batch)
	defer p.calls.end(n)
	v := newVerifier(batch, p.scrub, func() { end(wire.ErrEnough) }, report)
	err := i.rpc.Deliver(ctx, batch, v.take)
	hung := i.leave(errors.Is(err, wire.ErrCut))
	if errors.Is(err, wire.ErrNotSent) {
		return err
	}
	p.judge(i, v.broken(), hung)
	p.judgeError(i, batch, err)
	if err == nil {
		return nil
	}
	return &hidden{text: hideBatch(p.scrub.secret(err.Error()), batch), err: err}
}

// hidden is an error in whose text something was masked.
type hidden struct {
	text string
	err  error
}

// Error returns the text without what must not be told.
func (h *hidden) Error() string { return h.text }

// Unwrap lets errors.Is see the context's end.
func (h *hidden) Unwrap() error { return h.err }

// acquire returns the running process with a call counted in, or what to answer instead.
func (p *Process) acquire(patience context.Context) (*instance, *hold) {
	for {
		p.mu.Lock()
		i, h, changed := p.now, p.hold, p.changed
		if i != nil {
			i.enter()
		}
		p.mu.Unlock()
		if i != nil || h.final || h.outcome == providers.Denied || h.beyond(patience) {
			return i, h
		}
		select {
		case <-changed:
		case <-patience.Done():
			return nil, h
		}
	}
}

// beyond reports whether waiting is of no use, for the hold lasts longer.
func (h *hold) beyond(patience context.Context) bool {
	deadline, ok := patience.Deadline()
	return ok && h.until.After(deadline)
}

// lost takes a process out that cannot be reached any more.
func (p *Process) lost(i *instance) {
	i.condemn(verdict{reason: "it cannot be reached", lost: true})
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now == i { // else the supervisor was faster, and what it said counts
		p.withdrawLocked(&hold{outcome: providers.Throttled, code: CodeDown, reason: "the plugin has just ended"})
	}
}

// answer answers for the whole batch.
func (h *hold) answer(batch []providers.Message, report func(providers.Result)) {
	after := max(time.Until(h.until), 0)
	for i := range batch {
		report(providers.Result{ID: batch[i].ID, Outcome: h.outcome, Code: h.code, Reason: h.reason, After: after})
	}
}

// judge looks at what a call answered, and how often in a row calls had to be cut off.
func (p *Process) judge(i *instance, broken string, hung int) {
	if broken != "" {
		p.log.Warn("the plugin's answers break the contract", "what", broken)
		if p.strike() {
			i.condemn(verdict{reason: "its answers broke the contract: " + broken, quarantine: true})
		}
	}
	if hung >= maxHung {
		i.condemn(verdict{reason: fmt.Sprintf("%d calls in a row had to be cut off", hung)})
	}
}

// judgeError looks at how the gRPC call ended: the protocol knows no status but OK, and the connection's.
func (p *Process) judgeError(i *instance, batch []providers.Message, err error) {
	if errors.Is(err, wire.ErrHollow) {
		p.judge(i, "replies without a result, one after the other", 0)
		return
	}
	switch status.Code(err) {
	case codes.ResourceExhausted:
		// Said of our reading by gRPC here, and of its own reading by a plugin that takes no request so large.
		if !wire.Large(batch) {
			p.judge(i, fmt.Sprintf("a reply of more than %d MiB", maxReply>>20), 0)
		}
	case codes.Internal, codes.Unimplemented:
		p.judge(i, "what it speaks is not the protocol: "+hideBatch(p.scrub.secret(status.Convert(err).Message()), batch), 0)
	}
}

// strike counts an answer that broke the contract, and reports whether it was one too many.
func (p *Process) strike() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.record.strike(time.Now())
}

// check has the running process look at a message. One that cannot be asked lets it pass.
func (p *Process) check(m *providers.Message) error {
	p.mu.Lock()
	i := p.now
	p.mu.Unlock()
	if i == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	err := i.rpc.Check(ctx, m)
	var own *wire.ProviderError
	if errors.As(err, &own) {
		return &wire.ProviderError{Text: p.scrub.text(own.Text, m.Address), Address: own.Address}
	}
	if err != nil {
		p.log.Debug("the plugin could not be asked to check a message", "error", p.scrub.text(err.Error(), m.Address))
	}
	return nil
}

// Receive implements providers.Receiver, over as many processes as it takes.
func (p *Process) Receive(ctx context.Context, report func(providers.Receipt) error) error {
	for {
		p.mu.Lock()
		i, h, changed := p.now, p.hold, p.changed
		p.mu.Unlock()
		if i == nil && h.final {
			return nil
		}
		if i != nil && i.features.Receive {
			if err := i.rpc.Receive(ctx, func(r providers.Receipt) error {
				r.Code, r.ProviderID = p.scrub.text(r.Code, r.Address), p.scrub.secret(r.ProviderID)
				return report(r)
			}); err != nil {
				p.log.Debug("the plugin's receipts broke off", "error", p.hide(err.Error()))
			}
		}
		// A stream that ended while its process lives is begun again, without haste.
		t := time.NewTimer(time.Second)
		if i == nil || !i.features.Receive {
			t.Stop()
		}
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-changed:
			t.Stop()
		case <-t.C:
		}
	}
}

// Health implements providers.Provider. It adds what the supervisor knows.
func (p *Process) Health(ctx context.Context) providers.Health {
	p.mu.Lock()
	i, h, health, asked := p.now, p.hold, p.health, p.asked
	p.mu.Unlock()
	if i == nil {
		return providers.Health{Status: providers.HealthDown, Reason: h.reason}
	}
	if time.Since(asked) < healthAge {
		return health
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if now, err := p.ask(ctx, i); err == nil {
		return now
	}
	if asked.IsZero() || time.Since(asked) > p.spec.Timing.Ping+p.spec.Timing.PingTimeout {
		return providers.Health{Status: providers.HealthDegraded, Reason: "the plugin does not answer", Pool: health.Pool}
	}
	return health
}

// ask asks a process how it is, and remembers it.
func (p *Process) ask(ctx context.Context, i *instance) (providers.Health, error) {
	h, err := i.rpc.Health(ctx)
	switch status.Code(err) {
	case codes.OK:
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return h, err
	default: // it lives, and that is what it answered
		h = providers.Health{Status: providers.HealthDegraded, Reason: "the plugin could not say how it is"}
	}
	h.Reason = p.hide(h.Reason)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now == i {
		p.health, p.asked = h, time.Now()
	}
	return h, nil
}

// PID is the id of the process that runs now, 0 while none does.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now == nil || p.now.child.cmd.Process == nil {
		return 0
	}
	return p.now.child.cmd.Process.Pid
}

// Retry ends a quarantine: an operator mended what was wrong.
func (p *Process) Retry() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.record.forgive()
}

// Close implements providers.Provider: what is in flight is answered or ctx ends, then the process ends.
func (p *Process) Close(ctx context.Context) error {
	p.closing.Do(func() {
		p.parting = ctx
		p.cancel()
	})
	<-p.stopped // the stop is bounded by the first caller's ctx
	return p.ending
}
