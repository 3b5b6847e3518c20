package app

import (
	"context"
	"errors"
	"net/http"
	"sync"

	"github.com/carillon-notify/carillon/providers"
)

// codeExchanged is the code of what a route without a provider holds: it is being exchanged or removed.
const codeExchanged = "route_changing"

// slot holds a route's provider and lets it be exchanged while the route is in use: a call stays with the
// provider it began with, and that one is closed when the last of its calls has returned. It implements
// providers.Provider, providers.Receiver and providers.Server.
type slot struct {
	mu      sync.Mutex
	tenant  *tenant       // nil: none, for the moment or for good
	changed chan struct{} // closed and replaced when tenant changes
	closed  bool
}

// tenant is a provider in its slot.
type tenant struct {
	providers.Provider
	calls int
	left  chan struct{} // closed when it is out of its slot and its last call has returned
	out   bool
}

func newSlot(p providers.Provider) *slot {
	return &slot{tenant: &tenant{Provider: p, left: make(chan struct{})}, changed: make(chan struct{})}
}

// replace puts p (nil: nobody) into the slot and returns who was in it, nil for nobody.
func (s *slot) replace(p providers.Provider) *tenant {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.tenant
	s.tenant = nil
	if p != nil {
		s.tenant = &tenant{Provider: p, left: make(chan struct{})}
	}
	if old != nil {
		old.out = true
		if old.calls == 0 {
			close(old.left)
		}
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return old
}

// leave waits for a tenant's last call, at most until ctx ends, and closes it.
func (t *tenant) leave(ctx context.Context) error {
	if t == nil {
		return nil
	}
	select {
	case <-t.left:
	case <-ctx.Done():
	}
	return t.Close(ctx)
}

// now is the tenant, nil for nobody, and what is closed when that changes.
func (s *slot) now() (t *tenant, changed <-chan struct{}, closed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tenant, s.changed, s.closed
}

func (s *slot) enter() *tenant {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tenant != nil {
		s.tenant.calls++
	}
	return s.tenant
}

func (s *slot) exit(t *tenant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.calls--; t.calls == 0 && t.out {
		close(t.left)
	}
}

// Deliver implements providers.Provider. Nobody in the slot holds the messages without burning an attempt.
func (s *slot) Deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	t := s.enter()
	if t == nil {
		for i := range batch {
			report(providers.Result{ID: batch[i].ID, Outcome: providers.Throttled, Code: codeExchanged, Reason: "the route's provider is being exchanged"})
		}
		return nil
	}
	defer s.exit(t)
	return t.Provider.Deliver(ctx, batch, report)
}

// empty reports whether nobody is in a route's slot: an exchange failed, and what was there before could not be had either.
func (r *route) empty() bool {
	if r.slot == nil {
		return false // there is to be nobody
	}
	t, _, _ := r.slot.now()
	return t == nil
}

// silent says that the tenant is no providers.Receiver.
func (s *slot) silent() bool {
	t, _, _ := s.now()
	_, hears := providerOf(t).(providers.Receiver)
	return t != nil && !hears
}

// Health implements providers.Provider.
func (s *slot) Health(ctx context.Context) providers.Health {
	if t, _, _ := s.now(); t != nil {
		return t.Provider.Health(ctx)
	}
	return providers.Health{Status: providers.HealthDown, Reason: "the route's provider is being exchanged"}
}

// Close implements providers.Provider: nobody comes into the slot any more.
func (s *slot) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	return s.replace(nil).leave(ctx)
}

// Receive implements providers.Receiver for one tenant after the other.
func (s *slot) Receive(ctx context.Context, report func(providers.Receipt) error) error {
	for {
		t, changed, closed := s.now()
		if closed {
			<-ctx.Done()
			return nil
		}
		if rec, ok := providerOf(t).(providers.Receiver); ok {
			if err := receive(ctx, rec, t.left, report); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

func providerOf(t *tenant) providers.Provider {
	if t == nil {
		return nil
	}
	return t.Provider
}

// receive listens to a tenant until it has left its slot: what its last calls lead to is heard.
func receive(ctx context.Context, rec providers.Receiver, left <-chan struct{}, report func(providers.Receipt) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-left:
			cancel(errLeft)
		case <-ctx.Done():
		}
	}()
	err := rec.Receive(ctx, report)
	if errors.Is(context.Cause(ctx), errLeft) {
		return nil
	}
	return err
}

var errLeft = errors.New("the provider was exchanged")

// Handler implements providers.Server: whoever is in the slot serves, if it serves at all.
func (s *slot) Handler() http.Handler {
	type made struct {
		by *tenant
		h  http.Handler
	}
	var mu sync.Mutex
	var last made
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t, _, _ := s.now()
		server, ok := providerOf(t).(providers.Server)
		if !ok {
			w.Header().Set("Retry-After", "1")
			http.Error(w, "nobody serves this at the moment", http.StatusServiceUnavailable)
			return
		}
		mu.Lock()
		if last.by != t {
			last = made{t, server.Handler()}
		}
		h := last.h
		mu.Unlock()
		h.ServeHTTP(w, r)
	})
}
