package plugintest

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// cheap is how long a Health may take at its fastest. It may be called often, and asks nobody.
const cheap = 50 * time.Millisecond

// health asks before, during and after deliveries; close asks after the end.
func health(t testing.TB, s *sitting) {
	p := s.open(t)
	p.quick(t, "before anything is delivered")
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	p.health(ended)
	if s.Message == nil || s.gentle {
		return
	}
	p.deliver(s.messages(s.kind.MaxBatch, nil))
	p.quiet(t)
	p.quick(t, "after messages were delivered")
	if s.Silence.given() {
		healthInSilence(t, s)
	}
}

// healthInSilence asks while the service answers nothing, which a Health that asks the service notices.
func healthInSilence(t testing.TB, s *sitting) {
	t.Helper()
	p := s.open(t, s.Silence.Settings)
	restore := func() {}
	if s.Silence.Service != nil {
		restore = s.Silence.Service(t)
	}
	defer restore()
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	c := p.begin(ctx, s.messages(min(s.kind.MaxBatch, 20), s.Silence.Message))
	s.handedOver(c)
	p.quick(t, "while the service is silent")
	cancel()
	c.wait(s.Soon)
	p.quiet(t)
}

// quick asks several times; the fastest counts, for a busy machine is slow now and then.
func (p *subject) quick(t testing.TB, when string) {
	t.Helper()
	best := time.Duration(math.MaxInt64)
	for range 5 {
		began := time.Now()
		p.health(context.Background())
		best = min(best, time.Since(began))
	}
	if best > cheap {
		t.Errorf("Health takes %s at its fastest, %s; it must be cheap and not ask the service", best, when)
	}
}

// quiet waits until the figures are those of a provider with nothing to do.
func (p *subject) quiet(t testing.TB) {
	t.Helper()
	var h providers.Health
	if !eventually(p.s.Soon, func() bool {
		h = p.health(context.Background())
		return h.Pool.Waiting == 0 && h.Pool.Closed <= h.Pool.Opened && (h.Pool.InUse == 0 || p.serves())
	}) {
		t.Errorf("with nothing under way, Health says %+v", h.Pool)
	}
}

// serves says whether the connections are those of clients, who may stay in them.
func (p *subject) serves() bool {
	_, ok := p.provider.(providers.Server)
	return ok
}
