package email_test

import (
	"testing"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

// TestMisled has servers announce PIPELINING that cannot do it: each message arrives all the same, once, in
// the call that was to deliver it, and the provider says what is wrong.
func TestMisled(t *testing.T) {
	t.Parallel()
	for name, configure := range map[string]func(*relay){
		"throws away what came with a command": func(r *relay) { r.forgetful = true },
		"knows no such command":                func(r *relay) { r.confused = "500 5.5.2 what?" },
		"thinks it is out of order":            func(r *relay) { r.confused = "503 5.5.1 not now" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := startRelay(t, configure)
			p := r.provider(map[string]any{"timeout": "1s", "pool": map[string]any{"max": 1}})
			batch := batchOf(3)
			for range 2 { // the second time over the session that is kept
				results, err := sandboxtest.Deliver(t.Context(), t, p, batch...)
				if err != nil {
					t.Fatal(err)
				}
				for i := range batch {
					if res := results[batch[i].ID]; res.Outcome != providers.Accepted {
						t.Errorf("%d: %+v", i, res)
					}
				}
			}
			if got := len(r.got()); got != 6 {
				t.Errorf("%d mails arrived", got)
			}
			if n := r.connections(); n > 3 {
				t.Errorf("%d connections", n)
			}
			if h := p.Health(t.Context()); h.Status != providers.HealthDegraded {
				t.Errorf("%+v", h)
			}
		})
	}
}

// TestAnswerTooMany has a server say more than it is asked: what it said before a message's end is no answer
// to that, and what it said after it none to the next message.
func TestAnswerTooMany(t *testing.T) {
	t.Parallel()
	for mode, configure := range map[string]func(*relay){"pipelined": nil, "lock-step": noPipelining} {
		t.Run("before the end/"+mode, func(t *testing.T) {
			t.Parallel()
			r := startRelay(t, configure)
			r.replies(func(ph string, _ int, _ string) string {
				return map[string]string{"DATA": "354 go on\r\n250 2.0.0 taken", "final dot": "554 5.7.1 spam"}[ph]
			})
			results, err := sandboxtest.Deliver(t.Context(), t, r.provider(nil), batchOf(1)...)
			if res := results[batchOf(1)[0].ID]; err != nil || res.Outcome != providers.Deferred {
				t.Errorf("%+v, %v", res, err)
			}
		})
		t.Run("after it/"+mode, func(t *testing.T) {
			t.Parallel()
			r := startRelay(t, configure)
			r.replies(at("final dot", 1, "250 2.0.0 ok\r\n250 2.0.0 and again"))
			p := r.provider(map[string]any{"pool": map[string]any{"max": 1}})
			for range 2 {
				results, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(1)...)
				if res := results[batchOf(1)[0].ID]; err != nil || res.Outcome != providers.Accepted {
					t.Errorf("%+v, %v", res, err)
				}
			}
		})
	}
}
