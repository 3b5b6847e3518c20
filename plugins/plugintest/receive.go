package plugintest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

var errNotKept = errors.New("the exam does not keep this receipt yet")

// hearing is one Receive under way.
type hearing struct {
	cancel context.CancelFunc
	done   chan any // what Receive ended with, once
}

// hear begins a Receive. report is called for one receipt at a time.
func (s *sitting) hear(p *subject, rec providers.Receiver, report func(providers.Receipt) error) hearing {
	ctx, cancel := context.WithCancel(context.Background())
	h := hearing{cancel: cancel, done: make(chan any, 1)}
	var mu sync.Mutex
	go func() {
		defer func() {
			if v := recover(); v != nil {
				h.done <- v
			}
		}()
		err := rec.Receive(ctx, func(r providers.Receipt) error {
			mu.Lock()
			defer mu.Unlock()
			return report(r)
		})
		if err != nil {
			s.witness.saw("the error of Receive", err.Error())
		}
		if ctx.Err() == nil {
			h.done <- "Receive ended before its context, with the error " + errorText(err)
			return
		}
		h.done <- nil
	}()
	p.hearings = append(p.hearings, h)
	return h
}

func errorText(err error) string {
	if err == nil {
		return "nil"
	}
	return err.Error()
}

// end ends a Receive, which must follow soon.
func (h hearing) end(t testing.TB, s *sitting) {
	t.Helper()
	h.cancel()
	timer := time.NewTimer(s.Soon)
	defer timer.Stop()
	select {
	case v := <-h.done:
		if v != nil {
			t.Errorf("Receive: %v", v)
		}
	case <-timer.C:
		t.Fatalf("Receive did not return within %s of its context's end", s.Soon)
	}
}

// receive examines a providers.Receiver.
func receive(t testing.TB, s *sitting) {
	p := s.open(t)
	rec, ok := p.provider.(providers.Receiver)
	if !ok {
		t.Skip("the provider is no providers.Receiver")
	}
	got := make(chan providers.Receipt, 100)
	var hear hearing
	for range 2 { // Carillon begins again when a process was started anew, or another took over
		hear = s.hear(p, rec, func(r providers.Receipt) error { got <- r; return nil })
		hear.end(t, s)
	}
	switch {
	case s.Receipt == nil:
		t.Log("the exam has no Receipt: only the end of Receive was examined")
		return
	case s.Message == nil || s.gentle:
		t.Log("no message is delivered, so there is nothing to hear about")
		return
	}
	receipts(t, s, p, rec)
}

// receipts has the service report on messages, and does not keep the first reports.
func receipts(t testing.TB, s *sitting, p *subject, rec providers.Receiver) {
	t.Helper()
	const refused = 2
	offered := make(chan providers.Receipt, 100)
	n := 0
	hear := s.hear(p, rec, func(r providers.Receipt) error {
		// One at a time: hear holds a lock.
		if n++; n <= refused {
			return errNotKept
		}
		offered <- r
		return nil
	})
	m := s.message()
	c := p.deliver([]providers.Message{m})
	c.only("before its receipt", "accepted")
	sent, _ := c.result(m.ID)
	// The service tries again as long as it is told to. Receive may not have begun to listen yet, least of all in another process.
	var told error
	if !eventually(2*s.Soon, func() bool {
		within(t, 2*s.Soon, "Receipt", func() { told = s.Receipt(t, p.provider, m) })
		return told == nil
	}) {
		t.Errorf("the receipt is kept by now, and the service is still told that it is not: %v", told)
	}
	timer := time.NewTimer(2 * s.Soon)
	defer timer.Stop()
	select {
	case r := <-offered:
		switch r.Event {
		case providers.EventDelivered, providers.EventFailed, providers.EventBounced, providers.EventSeen, providers.EventRead,
			providers.EventClicked, providers.EventArchived:
		default:
			t.Errorf("a receipt of the event %q, which does not exist", r.Event)
		}
		if r.ID != m.ID && (r.ProviderID == "" || r.ProviderID != sent.ProviderID) {
			t.Error("the receipt has neither the message's ID nor the ProviderID of its result")
		}
		if r.At.After(time.Now().Add(time.Minute)) {
			t.Errorf("the receipt is of the future: %s", r.At)
		}
		form(t, "Receipt.Code", r.Code, maxCode)
		s.witness.saw("Receipt.Code", r.Code)
	case <-timer.C:
		t.Errorf("a receipt that was not kept at first was not offered again within %s", 2*s.Soon)
	}
	hear.end(t, s)
}
