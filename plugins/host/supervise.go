package host

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/carillon-notify/carillon/providers"
)

// supervise keeps a process running until Close. first is the one that is running, or err says why there
// is none.
func (p *Process) supervise(first *instance, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	if first != nil {
		p.publish(first)
	} else {
		p.hold.reason = p.failure(err).reason // of interest at once
	}
	go func() {
		defer close(p.stopped)
		p.run(ctx, first, err)
	}()
}

// run goes round once for each process.
func (p *Process) run(ctx context.Context, i *instance, err error) {
	leave := func() {
		p.withdraw(&hold{outcome: providers.Throttled, code: CodeStopping, reason: "the plugin is being stopped", final: true})
	}
	for {
		var why verdict
		if err != nil {
			why = p.failure(err)
		} else {
			why = p.watch(ctx, i)
		}
		if ctx.Err() != nil {
			leave()
			if i != nil {
				if err := i.stop(p.parting); err != nil {
					p.ending = &hidden{text: fmt.Sprintf("close the plugin %s: %s", p.spec.Name, p.hide(err.Error())), err: err}
				}
			}
			return
		}
		wait, forgiven := p.trouble(why)
		if i != nil {
			i.end()
		}
		if !pause(ctx, wait, forgiven) {
			leave()
			return
		}
		if i, err = p.start(ctx); err == nil {
			p.publish(i)
		}
	}
}

// failure is what follows from an error of start. A file that must not be run does not mend itself.
func (p *Process) failure(err error) verdict {
	text := strings.Join(strings.Fields(p.hide(err.Error())), " ") // go-plugin's errors have several lines
	return verdict{reason: "it does not start: " + text, quarantine: errors.Is(err, ErrDigest) || errors.Is(err, errShared)}
}

// publish makes a process the one that is called.
func (p *Process) publish(i *instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now, p.hold, p.asked = i, nil, time.Time{}
	p.record.started(time.Now())
	close(p.changed)
	p.changed = make(chan struct{})
}

// withdraw has calls answered by h from now on.
func (p *Process) withdraw(h *hold) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.withdrawLocked(h)
}

func (p *Process) withdrawLocked(h *hold) {
	p.now, p.hold = nil, h
	close(p.changed)
	p.changed = make(chan struct{})
}

// watch returns when a process has ended or has to, or ctx ends.
func (p *Process) watch(ctx context.Context, i *instance) verdict {
	ping := time.NewTicker(p.spec.Timing.Ping)
	defer ping.Stop()
	silent := 0
	answers := make(chan error, 1)
	asking := false
	for {
		select {
		case <-ctx.Done():
			return verdict{}
		case <-i.child.exited:
			return verdict{reason: i.child.ending()}
		case v := <-i.condemned:
			if v.lost {
				i.child.settle() // most often it has ended
			}
			if i.child.itself() {
				v.reason = i.child.ending()
			}
			return v
		case <-ping.C:
			if asking {
				continue
			}
			asking = true
			go func() {
				ctx, cancel := context.WithTimeout(ctx, p.spec.Timing.PingTimeout)
				defer cancel()
				_, err := p.ask(ctx, i)
				answers <- err
			}()
		case err := <-answers:
			asking = false
			if err == nil {
				silent = 0
			} else if silent++; silent >= 2 {
				return i.silence(err)
			}
		}
	}
}

// silence is the verdict on a process that did not answer, the last time for a reason.
func (i *instance) silence(err error) verdict {
	if status.Code(err) == codes.Unavailable {
		i.child.settle() // most often it has ended
	}
	if i.child.itself() {
		return verdict{reason: i.child.ending()}
	}
	return verdict{reason: "it does not answer"}
}

// trouble notes why a process is gone, and says how long to wait before the next one, or for what.
func (p *Process) trouble(why verdict) (wait time.Duration, forgiven <-chan struct{}) {
	now := time.Now()
	p.mu.Lock()
	wait, quarantined := p.record.crash(now, why)
	forgiven = p.record.forgiven()
	p.mu.Unlock()
	h := &hold{outcome: providers.Throttled, code: CodeDown, reason: "the plugin is being started again; " + why.reason, until: now.Add(wait)}
	if quarantined {
		h.outcome, h.code = providers.Denied, CodeQuarantined
		h.reason = fmt.Sprintf("the plugin is quarantined for %s; %s", wait, why.reason)
		p.log.Error("the plugin is quarantined: mend it, then reload the routes or resume this one", "reason", why.reason, "for", wait)
	} else {
		p.log.Warn("the plugin is started again", "reason", why.reason, "after", wait)
	}
	p.withdraw(h)
	return wait, forgiven
}

// pause waits, less if Retry is called. It reports false when ctx ended.
func pause(ctx context.Context, wait time.Duration, forgiven <-chan struct{}) bool {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-forgiven:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// record is what a plugin did of late. It is guarded by Process.mu.
type record struct {
	timing      Timing
	crashes     []time.Time
	strikes     []time.Time
	quarantines int       // in a row; while there are any, the next crash or strike leads to one more
	since       time.Time // when the process that runs was started; zero while none does
	pardon      chan struct{}
}

// started notes that a process runs.
func (r *record) started(now time.Time) { r.since = now }

// well looks whether a process has run for long enough to be trusted again.
func (r *record) well(now time.Time) {
	if !r.since.IsZero() && now.Sub(r.since) > r.timing.Window {
		r.quarantines = 0
	}
}

// strike counts one, and reports whether it was one too many.
func (r *record) strike(now time.Time) bool {
	r.well(now)
	r.strikes = append(recent(r.strikes, now, r.timing.Window), now)
	return len(r.strikes) >= r.timing.Strikes || r.quarantines > 0
}

// crash counts one, and says how long to wait and whether that is a quarantine.
func (r *record) crash(now time.Time, why verdict) (wait time.Duration, quarantined bool) {
	r.well(now)
	r.since = time.Time{}
	r.crashes = append(recent(r.crashes, now, r.timing.Window), now)
	if n := len(r.crashes); !why.quarantine && n < r.timing.Crashes && r.quarantines == 0 {
		if n == 1 {
			return 0, false
		}
		return min(r.timing.BackoffMin<<min(n-2, 16), r.timing.BackoffMax), false
	}
	wait = min(r.timing.Quarantine<<min(r.quarantines, 16), r.timing.MaxQuarant)
	r.quarantines++
	r.crashes, r.strikes = nil, nil
	return wait, true
}

// forgiven is closed by forgive.
func (r *record) forgiven() <-chan struct{} {
	if r.pardon == nil {
		r.pardon = make(chan struct{})
	}
	return r.pardon
}

func (r *record) forgive() {
	r.crashes, r.strikes, r.quarantines = nil, nil, 0
	if r.pardon != nil {
		close(r.pardon)
		r.pardon = nil
	}
}

// recent leaves out what is older than the window.
func recent(ts []time.Time, now time.Time, window time.Duration) []time.Time {
	kept := ts[:0]
	for _, t := range ts {
		if now.Sub(t) < window {
			kept = append(kept, t)
		}
	}
	return kept
}
