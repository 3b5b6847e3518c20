package apns_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/apns"
	"github.com/carillon-notify/carillon/providers/sandbox"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

// TestGoAwayAfterEachPush has a server say GOAWAY after each push: Apple takes a burst of new connections for
// an attack, so they become few, and the route's health says why it is slow.
func TestGoAwayAfterEachPush(t *testing.T) {
	t.Parallel()
	s := sandboxtest.Start(t)
	if err := s.Script(sandbox.APNs, sandbox.Script{GoAwayEvery: 1}); err != nil {
		t.Fatal(err)
	}
	p, err := apns.Kind().Open(t.Context(), sandboxtest.Settings(t, s, "apns", `,"pool":{"max":1}`))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close(context.WithoutCancel(t.Context())) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if h := p.Health(ctx); h.Status != providers.HealthOK {
		t.Errorf("at first: %+v", h)
	}
	began := time.Now()
	const messages = 12 // three more than there are connections to spare
	for _, m := range batch(messages) {
		var got []providers.Result
		if err := p.Deliver(ctx, []providers.Message{m}, func(r providers.Result) { got = append(got, r) }); err != nil || len(got) != 1 || got[0].Outcome != providers.Accepted {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	if took := time.Since(began); took < 3*time.Second/2 {
		t.Errorf("%d connections in %s: %+v", messages, took, p.Health(ctx).Pool)
	}
	// What it has not taken of a batch waits, and burns no attempt.
	results, err := sandboxtest.Deliver(ctx, t, p, batch(30)...)
	if err != nil {
		t.Error(err)
	}
	count := map[providers.Outcome]int{}
	for _, r := range results {
		count[r.Outcome]++
	}
	if count[providers.Accepted] == 0 || count[providers.Throttled] == 0 || count[providers.Accepted]+count[providers.Throttled] != 30 {
		t.Errorf("of a batch: %v", count)
	}
	if h := p.Health(ctx); h.Status != providers.HealthDegraded || !strings.Contains(h.Reason, "opened slowly") {
		t.Errorf("at last: %+v", h)
	}
}
