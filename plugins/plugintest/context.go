package plugintest

import (
	"context"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// contextEnded calls with a context that has ended: nothing goes out.
func contextEnded(t testing.TB, s *sitting) {
	p := s.open(t)
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	cancel()
	for range 2 { // with and without a connection
		c := p.begin(ctx, s.messages(min(s.kind.MaxBatch, 20), nil))
		c.wait(s.Soon)
		c.only("with a context that had ended", "deferred", "none")
		if s.Taken != nil {
			for i := range c.batch {
				if s.Taken(c.batch[i].ID) > 0 {
					t.Error("a message was sent although the context had ended")
				}
			}
		}
		p.deliver(s.messages(1, nil)).only("after a call whose context had ended", "accepted")
	}
}

// contextCancelled ends the context in the middle of a call.
func contextCancelled(t testing.TB, s *sitting) {
	if !s.Silence.given() {
		t.Log("the exam has no Silence: the context is ended with the first result")
		p := s.open(t)
		ctx, cancel := context.WithTimeout(context.Background(), callTime)
		defer cancel()
		c := p.begin(ctx, s.messages(s.kind.MaxBatch, nil))
		select {
		case <-c.first:
		case <-c.done:
		}
		cancel()
		c.wait(s.Soon)
		c.only("with a context that ended in the middle", "accepted", "deferred", "unknown", "none")
		p.deliver(s.messages(1, nil)).only("after a call whose context had ended", "accepted")
		return
	}
	s.silenced(t, func(ctx context.Context, p *subject, batch []providers.Message) *call {
		ctx, cancel := context.WithTimeout(ctx, callTime)
		defer cancel()
		c := p.begin(ctx, batch)
		s.handedOver(c)
		cancel()
		c.wait(s.Soon)
		return c
	})
}

// contextDeadline lets a deadline pass in the middle of a call.
func contextDeadline(t testing.TB, s *sitting) {
	s.silenced(t, func(ctx context.Context, p *subject, batch []providers.Message) *call {
		limit := s.Soon / 4
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		c := p.begin(ctx, batch)
		c.wait(limit + s.Soon)
		return c
	})
}

// silenced makes a call at a service that does not answer, and looks at what is said of it.
func (s *sitting) silenced(t testing.TB, deliver func(context.Context, *subject, []providers.Message) *call) {
	t.Helper()
	p := s.open(t, s.Silence.Settings)
	if s.Silence.Settings == nil {
		p.deliver(s.messages(1, nil)).only("before the silence", "accepted")
	}
	restore := func() {}
	if s.Silence.Service != nil {
		restore = s.Silence.Service(t)
	}
	func() {
		defer restore()
		c := deliver(context.Background(), p, s.messages(min(s.kind.MaxBatch, 20), s.Silence.Message))
		// Taken, if the exam has it, tells whether each of them is the right one; see verify.
		c.only("without an answer until the context ended", "deferred", "unknown", "none")
	}()
	if s.Silence.Settings == nil {
		s.recovers(t, p)
	}
}

// handedOver waits until the service has a message of the call, as far as that can be seen.
func (s *sitting) handedOver(c *call) {
	if s.Taken == nil {
		timer := time.NewTimer(s.Soon / 10)
		defer timer.Stop()
		select {
		case <-c.done:
		case <-timer.C:
		}
		return
	}
	eventually(s.Soon, func() bool {
		select {
		case <-c.done:
			return true
		default:
		}
		for i := range c.batch {
			if s.Taken(c.batch[i].ID) > 0 {
				return true
			}
		}
		return false
	})
}
