package store_test

import (
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// TestErasureWaitsForLateResults: results that come late hold no batch. Who erases their recipient as they are being kept
// waits for them, and takes the service's words out.
func TestErasureWaitsForLateResults(t *testing.T) {
	t.Parallel()
	url := coretest.Postgres(t)
	s, db := open(t, store.Options{URL: url}), raw(t, url)
	if _, err := s.PutRecipient(t.Context(), &core.Recipient{App: "shop", ID: "ann"}); err != nil {
		t.Fatal(err)
	}
	a := acceptance(s, 1)
	a.Deliveries[0].Recipient = "ann"
	if _, err := s.Record(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	r, err := s.Claim(t.Context(), core.Wake{Batch: a.Deliveries[0].Batch, Fence: 1, Route: "mail"}, "w1", time.Microsecond)
	if err != nil || r == nil {
		t.Fatal(r, err)
	}
	var lapsed []*core.Round
	for len(lapsed) == 0 {
		if lapsed, err = s.Lapsed(t.Context(), 1, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	settlement := func(r *core.Round, reason string) *core.Settlement {
		v := r.Deliveries[0].Apply(providers.Result{Outcome: providers.Rejected, Reason: reason}, core.DefaultPolicy, r.Now, 0)
		st := &core.Settlement{Batch: r.Batch, Worker: "w1", At: r.Now, Verdicts: []core.Verdict{v}, Results: []core.Attempt{{Delivery: r.Deliveries[0].ID, State: v.Delivery.State, Reason: reason}}}
		st.Split(st.At, false)
		return st
	}
	if stale, err := s.Settle(t.Context(), settlement(lapsed[0], "")); err != nil || stale {
		t.Fatal(stale, err)
	}
	release := lockedBy(t, db, "LOCK TABLE late_rounds IN SHARE MODE")
	ended := make(chan error, 2)
	go func() {
		_, err := s.Settle(t.Context(), settlement(r, "no mailbox ann@example.com"))
		ended <- err
	}()
	untilWaiting(t, db, 1)
	go func() { ended <- s.DeleteRecipient(t.Context(), "shop", "ann") }()
	untilWaiting(t, db, 2)
	release()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	steps, err := s.Timeline(t.Context(), "shop", a.Notification.ID)
	if err != nil {
		t.Fatal(err)
	}
	late := 0
	for _, x := range steps {
		if x.What == core.StepLate {
			late++
		}
		if strings.Contains(x.Reason, "ann@") {
			t.Errorf("%+v", x)
		}
	}
	if late != 1 {
		t.Errorf("%d late results are on record: %+v", late, steps)
	}
}
