package plugintest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// batchSizes delivers batches of one, of the most and of none.
func batchSizes(t testing.TB, s *sitting) {
	p := s.open(t)
	p.deliver(s.messages(1, nil)).only("in a batch of their own", "accepted")
	p.deliver(s.messages(s.kind.MaxBatch, nil)).only("in a batch of MaxBatch", "accepted")
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	c := p.begin(ctx, nil)
	c.wait(s.Soon)
	if c.err != nil {
		t.Errorf("Deliver of an empty batch fails: %v", c.err)
	}
	// The same address again and again is nothing special.
	batch := s.messages(min(s.kind.MaxBatch, 3), nil)
	for i := range batch {
		batch[i].Address = batch[0].Address
	}
	p.deliver(batch).only("to one address", "accepted")
}

// testMessage delivers a message that must not go out.
func testMessage(t testing.TB, s *sitting) {
	p := s.open(t)
	m := s.message()
	m.Test = true
	c := p.deliver([]providers.Message{m})
	c.only("with Test set", "accepted")
	if r, ok := c.result(m.ID); ok {
		t.Logf("code %q, reason %q", r.Code, r.Reason)
	}
}

// outcome provokes an outcome, for a message alone and among others.
func outcome(t testing.TB, s *sitting, want providers.Outcome) {
	provoke := s.Outcomes[want]
	p := s.open(t, provoke.Settings)
	restore := func() {}
	if provoke.Service != nil {
		restore = provoke.Service(t)
	}
	func() {
		defer restore()
		s.provoked(t, p, want, &provoke, s.messages(1, provoke.Message))
		if provoke.Message != nil && provoke.Service == nil && s.kind.MaxBatch >= 3 {
			batch := s.messages(3, nil)
			provoke.Message(&batch[1])
			c := s.provoked(t, p, want, &provoke, batch)
			if provoke.Settings == nil && want != providers.Unknown {
				for _, i := range []int{0, 2} {
					if r, ok := c.result(batch[i].ID); !ok || r.Outcome != providers.Accepted {
						t.Errorf("beside a message that comes to %s, another came to %+v, and not to accepted; the error is %v", want, r, c.err)
					}
				}
			}
		}
	}()
	p.health(context.Background())
	if provoke.Settings == nil {
		s.recovers(t, p)
	}
}

// provoked delivers a batch whose message in the middle should come to an outcome. A service that leaves
// it open may not answer at all, so the call has an end.
func (s *sitting) provoked(t testing.TB, p *subject, want providers.Outcome, provoke *Provoke, batch []providers.Message) *call {
	t.Helper()
	limit := 3 * s.Soon
	if want == providers.Unknown {
		limit = s.Soon / 2
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c := p.begin(ctx, batch)
	c.wait(limit + s.Soon)
	r, ok := c.result(batch[len(batch)/2].ID)
	switch {
	case want == providers.Unknown && (!ok || r.Outcome == providers.Unknown):
		if !ok && c.err == nil && s.way == inProcess {
			t.Error("no result, and no error that says why")
		}
	case !ok:
		t.Errorf("no result, and want %s; the error is %v", want, c.err)
	case r.Outcome != want:
		t.Errorf("the result is %s (code %q, reason %q), and want %s", r.Outcome, r.Code, r.Reason, want)
	}
	if ok && provoke.Code != "" && r.Code != provoke.Code {
		t.Errorf("the code is %q, and want %q", r.Code, provoke.Code)
	}
	if ok && provoke.After != 0 && (r.After-provoke.After).Abs() > time.Second {
		t.Errorf("After is %s, and want %s", r.After, provoke.After)
	}
	return c
}

// concurrency calls from many goroutines at once, on a pool as small as may be, and looks at Health
// meanwhile.
func concurrency(t testing.TB, s *sitting) {
	const callers, rounds = 8, 4
	small := map[string]any{}
	for i := range s.kind.Settings {
		if s.kind.Settings[i].Name == poolMax {
			small[poolMax] = 2
		}
	}
	p := s.open(t, small)
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	n := min(s.kind.MaxBatch, 20)
	var batches [][]providers.Message
	for range callers * rounds {
		batches = append(batches, s.messages(n, nil))
	}
	calls := make([][]*call, callers)
	var starting sync.Mutex // begin is the exam's, Deliver the provider's
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			for j := range rounds {
				starting.Lock()
				c := p.begin(ctx, batches[i*rounds+j])
				starting.Unlock()
				calls[i] = append(calls[i], c)
				select {
				case <-c.done:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		all.Wait()
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for running, wrong := true, false; running; {
		select {
		case <-over:
			running = false
		case <-tick.C:
		}
		if h := p.health(ctx); !wrong && h.Pool.Max > 0 && (h.Pool.Open > h.Pool.Max || h.Pool.InUse > h.Pool.Open) {
			wrong = true
			t.Errorf("the pool is out of its bounds: %+v", h.Pool)
		}
	}
	for _, list := range calls {
		for _, c := range list {
			c.wait(callTime + s.Soon)
			c.only("of many callers at once", "accepted")
		}
	}
}

// streaming looks whether a result is reported as it comes, while other messages of the batch have none.
func streaming(t testing.TB, s *sitting) {
	if s.kind.MaxBatch == 1 {
		t.Skip("batches are of one message")
	}
	provoke := s.SomeSilence
	if !provoke.given() {
		provoke = s.Silence
	}
	p := s.open(t, provoke.Settings)
	if provoke.Service != nil {
		defer provoke.Service(t)()
	}
	batch := s.messages(min(s.kind.MaxBatch, 20), nil)
	if provoke.Message != nil {
		provoke.Message(&batch[len(batch)-1])
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	c := p.begin(ctx, batch)
	timer := time.NewTimer(s.Soon)
	defer timer.Stop()
	select {
	case <-c.first:
	case <-c.done:
		t.Error("Deliver returned without a result, although some messages were answered")
	case <-timer.C:
		t.Errorf("no result within %s, although some messages were answered: they are held back until the whole batch is through", s.Soon)
	}
	cancel()
	c.wait(s.Soon)
	c.only("of which some were not answered", "accepted", "deferred", "unknown", "none")
}
