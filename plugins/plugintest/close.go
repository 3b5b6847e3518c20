package plugintest

import (
	"context"
	"testing"
)

// closing closes a provider that was used, and one that was not.
func closing(t testing.TB, s *sitting) {
	for _, used := range []bool{true, false} {
		p := s.open(t)
		if used && needsDelivery(s) == "" {
			p.deliver(s.messages(min(s.kind.MaxBatch, 20), nil)).only("before Close", "accepted")
		}
		s.end(t, p)
		s.closedFor(t, p)
		s.end(t, p) // once more does no harm
		if h := p.health(context.Background()); h.Pool.Open != 0 || h.Pool.InUse != 0 || h.Pool.Waiting != 0 {
			t.Errorf("after Close, Health says %+v", h.Pool)
		}
		if needsMessage(s) == "" && !s.gentle {
			ctx, cancel := context.WithTimeout(context.Background(), s.Soon)
			c := p.begin(ctx, s.messages(min(s.kind.MaxBatch, 3), nil))
			c.wait(2 * s.Soon)
			cancel()
			// What makes a message fail for good, or hides that it was not sent, would be wrong.
			c.only("after Close", "deferred", "throttled", "denied", "none")
			s.closedFor(t, p)
		}
	}
}

// closedFor waits until the service has no connection any more.
func (s *sitting) closedFor(t testing.TB, _ *subject) {
	t.Helper()
	if s.Connections == nil {
		return
	}
	if !eventually(s.Soon, func() bool { return s.Connections() == 0 }) {
		t.Errorf("the provider is closed, and the service has %d connections open", s.Connections())
	}
}

// closeInFlight closes while messages are under way: those are answered.
func closeInFlight(t testing.TB, s *sitting) {
	for range 10 { // a provider may be faster than the exam
		if s.closeUnderWay(t) {
			return
		}
	}
	t.Log("every message was answered before Close began")
}

// closeUnderWay says whether there was anything under way when Close began.
func (s *sitting) closeUnderWay(t testing.TB) (was bool) {
	t.Helper()
	p := s.open(t)
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	var calls []*call
	for range 4 {
		calls = append(calls, p.begin(ctx, s.messages(s.kind.MaxBatch, nil)))
	}
	select {
	case <-calls[0].first:
	case <-calls[0].done:
	}
	for _, c := range calls {
		select {
		case <-c.done:
		default:
			was = true
		}
	}
	closing, stop := context.WithTimeout(context.Background(), callTime)
	defer stop()
	if err := p.close(closing); err != nil {
		t.Errorf("Close while messages are under way: %v", err)
	}
	for _, c := range calls {
		c.wait(s.Soon)
		// A call may begin after Close, as far as the provider can see.
		c.only("under way at Close", "accepted", "deferred", "throttled")
	}
	s.closedFor(t, p)
	return was
}

// closeImpatient closes with little time while the service does not answer.
func closeImpatient(t testing.TB, s *sitting) {
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
	closing, stop := context.WithTimeout(context.Background(), s.Soon/4)
	defer stop()
	if err := p.close(closing); err != nil { // it may say that not everything was answered
		t.Logf("Close: %v", err)
	}
	cancel()
	c.wait(s.Soon)
	c.only("without an answer at Close", "deferred", "throttled", "unknown", "none")
	s.closedFor(t, p)
}
