package store_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// lockedBy has a session of the test's own hold rows of a PostgreSQL, until the function it returns is called.
func lockedBy(t *testing.T, db *sql.DB, q string, args ...any) (release func()) {
	t.Helper()
	held, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = held.Rollback() })
	if _, err := held.ExecContext(t.Context(), q, args...); err != nil {
		t.Fatal(err)
	}
	return func() { _ = held.Rollback() }
}

// untilWaiting waits until so many sessions of the store's wait for a lock.
func untilWaiting(t *testing.T, db *sql.DB, n int) {
	t.Helper()
	const q = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'carillon' AND wait_event_type = 'Lock'"
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); count(t, db, q) < n; <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%d wait for a lock, want %d", count(t, db, q), n)
		}
	}
}

// TestClaimOfOneWhoLeft: a round whose caller went away during its commit, as the process stops, was never begun. It is
// handed back at once, and none of its messages counts as unknown: these are for at most once.
func TestClaimOfOneWhoLeft(t *testing.T) {
	t.Parallel()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		h := newHeld(t)
		var answer <-chan recorded
		claimAndLeave(t, h.Store, func(core.ID) { h.busy() }, func() {
			h.joined(1)
			answer = h.record(t.Context(), acceptance(h.Store, 1)) // in the claim's group
			h.joined(2)
			h.goOn <- struct{}{}
			h.entered("mail")
		}, func() { h.goOn <- struct{}{} })
		if r := <-answer; r.err != nil {
			t.Error(r.err)
		}
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		url := coretest.Postgres(t)
		db := raw(t, url)
		var release func()
		claimAndLeave(t, open(t, store.Options{URL: url}), func(batch core.ID) {
			release = lockedBy(t, db, "SELECT 1 FROM batches WHERE id = $1 FOR UPDATE", batch[:])
		}, func() { untilWaiting(t, db, 1) }, func() { release() })
	})
}

// claimAndLeave has a claim held up from hold on, leaves it in its transaction, and looks what became of the batch.
func claimAndLeave(t *testing.T, s *store.Store, hold func(batch core.ID), inside, goOn func()) {
	t.Helper()
	a := acceptance(s, 2)
	for i := range a.Deliveries {
		a.Deliveries[i].Route = "other"
	}
	if _, err := s.Record(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	batch := a.Deliveries[0].Batch
	hold(batch)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	left := make(chan error, 1)
	go func() {
		_, err := s.Claim(ctx, core.Wake{Batch: batch, Fence: 1, Route: "other"}, "w1", time.Hour)
		left <- err
	}()
	inside()
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("who left has %v", err)
	}
	goOn()
	var wakes []core.Wake
	for end := time.Now().Add(20 * time.Second); len(wakes) == 0; {
		steps, err := s.Timeline(t.Context(), "shop", a.Notification.ID)
		if slices.ContainsFunc(steps, func(x core.Step) bool { return x.What == core.StepStarted }) { // else it would be taken before the claim has it
			wakes, err = s.Due(t.Context(), "other", providers.Normal, 10, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		if time.Now().After(end) {
			t.Fatal("the batch is in nobody's hands and not due")
		}
	}
	r, err := s.Claim(t.Context(), wakes[0], "w2", time.Hour)
	if err != nil || r == nil || r.ID != batch || len(r.Deliveries) != 2 {
		t.Fatalf("the next round is %+v, %v", r, err)
	}
	for _, d := range r.Deliveries {
		if d.Unknowns != 0 || d.Attempts != 0 || d.Code != core.CodeStopped {
			t.Errorf("a delivery of the round is %+v", d)
		}
	}
	steps, err := s.Timeline(t.Context(), "shop", a.Notification.ID)
	if err != nil {
		t.Fatal(err)
	}
	var whats []string
	for _, x := range steps {
		whats = append(whats, x.What)
		if x.What == core.StepHeld && x.HeldTill.IsZero() {
			t.Error("a step does not say until when it is held")
		}
	}
	want := []string{core.StepAccepted, core.StepResolved, core.StepResolved, core.StepStarted, core.StepHeld, core.StepHeld, core.StepStarted}
	if diff := cmp.Diff(want, whats); diff != "" {
		t.Errorf("the timeline: %s", diff)
	}
}

// TestRequeueLocksInOrder: who makes many batches due locks them in the order of their ids, as everybody does. Held up at
// one it has none of those behind it: else two would wait for each other.
func TestRequeueLocksInOrder(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(ctx context.Context, s *store.Store, wakes []core.Wake) error{
		"Requeue": func(ctx context.Context, s *store.Store, _ []core.Wake) error { _, err := s.Requeue(ctx); return err },
		"Unqueue": func(ctx context.Context, s *store.Store, wakes []core.Wake) error { return s.Unqueue(ctx, wakes) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := coretest.Postgres(t)
			s, db := open(t, store.Options{URL: url, Room: func(core.Wake) int { return 1000 }}), raw(t, url)
			const n = 40
			var ids []core.ID
			var wakes []core.Wake
			for range n {
				r, err := s.Record(t.Context(), acceptance(s, 1))
				if err != nil || len(r.Wakes) != 1 {
					t.Fatal(r, err)
				}
				wakes = append(wakes, r.Wakes...)
			}
			slices.SortFunc(wakes, func(a, b core.Wake) int { return -bytes.Compare(a.Batch[:], b.Batch[:]) }) // the last first
			for i, w := range wakes {
				ids = append(ids, w.Batch)
				// As their alarm clocks go, and as their rows lie, the last comes first as well.
				if _, err := db.ExecContext(t.Context(), "UPDATE batches SET run_at = run_at + $2 WHERE id = $1", w.Batch[:], int64(i)); err != nil {
					t.Fatal(err)
				}
			}
			middle := ids[n/2]
			release := lockedBy(t, db, "SELECT 1 FROM batches WHERE id = $1 FOR UPDATE", middle[:])
			done := make(chan error, 1)
			go func() { done <- do(t.Context(), s, wakes) }()
			untilWaiting(t, db, 1)
			for _, id := range ids[:n/2] {
				if _, err := db.ExecContext(t.Context(), "SELECT 1 FROM batches WHERE id = $1 FOR UPDATE NOWAIT", id[:]); err != nil {
					t.Errorf("%s, which is behind the one that is held: %v", id, err)
					break
				}
			}
			release()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestKnownSettlement: a settlement that comes again is known, also while somebody else has one of its deliveries, of which
// nobody can tell then whether it was erased.
func TestKnownSettlement(t *testing.T) {
	t.Parallel()
	url := coretest.Postgres(t)
	s, db := open(t, store.Options{URL: url}), raw(t, url)
	a := record(t, s, acceptance(s, 2))
	r, err := s.Claim(t.Context(), core.Wake{Batch: a.Deliveries[0].Batch, Fence: 1, Route: "mail"}, "w", time.Minute)
	if err != nil || r == nil {
		t.Fatal(r, err)
	}
	st := &core.Settlement{Batch: r.Batch, Worker: "w", At: r.Now}
	for i := range r.Deliveries {
		res := providers.Result{Outcome: providers.Deferred, Reason: "later"}
		st.Verdicts = append(st.Verdicts, r.Deliveries[i].Apply(res, core.DefaultPolicy, st.At, 0))
		st.Results = append(st.Results, core.Attempt{Delivery: r.Deliveries[i].ID, Outcome: res.Outcome, Reason: res.Reason, State: core.Pending})
	}
	st.Split(st.At, false)
	if stale, err := s.Settle(t.Context(), st); err != nil || stale {
		t.Fatal(stale, err)
	}
	defer lockedBy(t, db, "SELECT 1 FROM deliveries WHERE id = $1 FOR UPDATE", a.Deliveries[0].ID[:])()
	if stale, err := s.Settle(t.Context(), st); err != nil || stale {
		t.Errorf("settled again: %v, %v", stale, err)
	}
	if n := count(t, db, "SELECT count(*) FROM late_rounds"); n != 0 {
		t.Errorf("%d results are late", n)
	}
}
