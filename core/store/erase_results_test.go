package store_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// TestErasedWithoutATrace: what a service said in the first round goes with the person also where nothing of the
// delivery tells that it said anything: it was held for another reason since, without a round, and is cancelled.
func TestErasedWithoutATrace(t *testing.T) {
	t.Parallel()
	bothStores(t, func(t *testing.T, url string) {
		ctx := t.Context()
		s := open(t, store.Options{URL: url})
		a := record(t, s, several(s))
		if _, err := s.PutRecipient(ctx, &core.Recipient{App: "shop", ID: "r2"}); err != nil {
			t.Fatal(err)
		}
		r, err := s.Claim(ctx, core.Wake{Batch: a.Deliveries[0].Batch, Fence: 1, Route: "mail"}, "w", time.Minute)
		if err != nil || r == nil {
			t.Fatal(r, err)
		}
		st := &core.Settlement{Batch: r.Batch, Worker: "w", At: r.Now}
		for i := range r.Deliveries {
			d := &r.Deliveries[i]
			res := providers.Result{Outcome: providers.Deferred, Reason: "no room for " + d.Address}
			st.Verdicts = append(st.Verdicts, d.Apply(res, core.DefaultPolicy, st.At, 0))
			st.Results = append(st.Results, core.Attempt{Delivery: d.ID, Outcome: res.Outcome, Reason: res.Reason, State: core.Pending})
		}
		st.Split(st.At, false)
		if stale, err := s.Settle(ctx, st); err != nil || stale {
			t.Fatal(stale, err)
		}
		said := func() string {
			steps, err := s.Timeline(ctx, "shop", a.Notification.ID)
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprint(steps)
		}
		if !strings.Contains(said(), "r2@example.com") {
			t.Fatal("the service's words are not on record")
		}
		if err := s.Update(ctx, func(tx store.Tx) error { return tx.Run(ctx, "UPDATE deliveries SET code = '', reason = ''") }); err != nil {
			t.Fatal(err)
		}
		if err := s.DeleteRecipient(ctx, "shop", "r2"); err != nil {
			t.Fatal(err)
		}
		if text := said(); strings.Contains(text, "r2@example.com") || !strings.Contains(text, "r1@example.com") {
			t.Errorf("after r2 was erased: %s", text)
		}
	})
}
