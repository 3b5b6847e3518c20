package email_test

import (
	"sync"
	"testing"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

// TestServerLimitsSessions has a server that takes fewer connections at once than the pool may open: what
// gets none of its own goes over those that there are, and no message is put off for it.
func TestServerLimitsSessions(t *testing.T) {
	t.Parallel()
	r := startRelay(t, nil)
	r.replies(func(ph string, n int, _ string) string {
		if ph == "banner" && n > 2 {
			return "421 4.7.0 too many connections"
		}
		return ""
	})
	p := r.provider(nil)
	var all sync.WaitGroup
	for _, m := range batchOf(40) {
		all.Go(func() {
			results, err := sandboxtest.Deliver(t.Context(), t, p, m)
			if err != nil || results[m.ID].Outcome != providers.Accepted {
				t.Errorf("%+v, %v", results, err)
			}
		})
	}
	all.Wait()
	if n := len(r.got()); n != 40 {
		t.Errorf("%d mails", n)
	}
}
