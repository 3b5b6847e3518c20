package email_test

import (
	"context"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

// TestSessionOfACallerWhoLeft has a session that was opened for a call whose time was over by then, and that
// the server let go of before anybody used it: that costs the next message nothing.
func TestSessionOfACallerWhoLeft(t *testing.T) {
	t.Parallel()
	greet, asked := make(chan struct{}), make(chan struct{})
	r := startRelay(t, nil)
	r.replies(func(ph string, n int, _ string) string {
		if ph == "banner" && n == 1 {
			close(asked)
			<-greet
		}
		return ""
	})
	p := r.provider(nil)
	ctx, leave := context.WithCancel(t.Context())
	go func() { <-asked; leave() }()
	if results, err := sandboxtest.Deliver(ctx, t, p, batchOf(1)...); err != nil || len(results) != 1 {
		t.Fatalf("%v, %v", results, err)
	}
	close(greet)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); p.Health(t.Context()).Pool.Idle == 0; <-tick.C {
		if time.Now().After(end) {
			t.Fatal("no session was opened")
		}
	}
	r.drop(false)
	m := batchOf(1)[0]
	if results, err := sandboxtest.Deliver(t.Context(), t, p, m); err != nil || results[m.ID].Outcome != providers.Accepted {
		t.Errorf("%+v, %v", results, err)
	}
}
