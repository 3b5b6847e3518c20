package fcm_test

import (
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/sandbox"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

// TestGoAwayAfterEachMessage has a server say GOAWAY after each message: connections become few, what none of
// them took waits and burns no attempt, and the route's health says why it is slow.
func TestGoAwayAfterEachMessage(t *testing.T) {
	t.Parallel()
	s := sandboxtest.Start(t)
	if err := s.Script(sandbox.FCM, sandbox.Script{GoAwayEvery: 1}); err != nil {
		t.Fatal(err)
	}
	p := openSandbox(t, s, `,"timeout":"3s","pool":{"max":1}`)
	for range 15 { // more than there are connections to spare
		if results, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(1)...); err != nil || results[batchOf(1)[0].ID].Outcome != providers.Accepted {
			t.Fatalf("%+v, %v", results, err)
		}
		if p.Health(t.Context()).Status == providers.HealthDegraded {
			break
		}
	}
	batch := batchOf(40)
	count := map[providers.Outcome]int{}
	results, err := sandboxtest.Deliver(t.Context(), t, p, batch...)
	for _, r := range results {
		count[r.Outcome]++
	}
	if err != nil || count[providers.Accepted] == 0 || count[providers.Throttled] == 0 || count[providers.Accepted]+count[providers.Throttled] != len(batch) {
		t.Errorf("%v, %v", count, err)
	}
	if h := p.Health(t.Context()); h.Status != providers.HealthDegraded || !strings.Contains(h.Reason, "ends its connections") || h.Pool.Opened > 18 {
		t.Errorf("%+v", h)
	}
}
