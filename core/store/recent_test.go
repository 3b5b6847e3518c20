package store_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// roomy opens a store that hands its wakes out, and notes whether a claim read its deliveries.
func roomy(t *testing.T, url string, reads *int) *store.Store {
	t.Helper()
	s := open(t, store.Options{URL: url, Room: func(core.Wake) int { return 1 }, MaxBatch: func(string) int { return store.MaxRecent / 2 }})
	s.Watch(func(sql string) {
		if strings.Contains(sql, "FROM deliveries WHERE batch_id = $1 AND state = 1 ORDER BY id") {
			*reads++
		}
	})
	return s
}

// several is an acceptance of all that a delivery can have at that time, by recipients of their own. Its ids are in no order.
func several(s *store.Store) *core.Acceptance {
	a := acceptance(s, 4)
	a.Contents = append(a.Contents, core.Content{Title: "Bye", Body: "It is gone."})
	for i := range a.Deliveries {
		d := &a.Deliveries[i]
		d.Recipient, d.Address, d.Name = fmt.Sprintf("r%d", i), fmt.Sprintf("r%d@example.com", i), "R."
		d.Content.Slot, d.MaxUnknown = i%2, i
		d.CreatedAt = d.CreatedAt.In(time.FixedZone("", 3600)).Add(123 * time.Nanosecond)
	}
	ds := a.Deliveries
	ds[0], ds[3] = ds[3], ds[0]
	return a
}

// TestRecent: the first claim of what was just recorded gives what reading would, whatever became of it in between.
func TestRecent(t *testing.T) {
	t.Parallel()
	for _, db := range []struct {
		name string
		url  func(testing.TB) string
	}{{"sqlite", sqliteURL}, {"postgres", coretest.Postgres}} {
		for _, tt := range []struct {
			name    string
			alter   func(*core.Acceptance)
			between func(context.Context, *store.Store, *core.Acceptance) error
			want    int
			reads   int
		}{
			{"nothing happens", nil, nil, 4, 0},
			{"one is erased", nil, func(ctx context.Context, s *store.Store, _ *core.Acceptance) error {
				if _, err := s.PutRecipient(ctx, &core.Recipient{App: "shop", ID: "r2"}); err != nil {
					return err
				}
				return s.DeleteRecipient(ctx, "shop", "r2")
			}, 3, 1},
			{"all are cancelled", nil, func(ctx context.Context, s *store.Store, a *core.Acceptance) error {
				_, err := s.Cancel(ctx, "shop", a.Notification.ID)
				return err
			}, 0, 1},
			{"an early receipt", nil, func(ctx context.Context, s *store.Store, _ *core.Acceptance) error {
				return s.Update(ctx, func(t store.Tx) error { return t.Run(ctx, "UPDATE deliveries SET state = 3 WHERE recipient = 'r1'") })
			}, 3, 1},
			{"one keeps quiet hours", func(a *core.Acceptance) { a.Deliveries[1].Quiet = "22:00-07:00 Europe/Berlin" }, nil, 4, 1},
			{"one is a step of a fallback", func(a *core.Acceptance) { a.Deliveries[1].Ladder = a.Deliveries[1].ID }, nil, 4, 1},
			{"one was held", func(a *core.Acceptance) { a.Deliveries[1].Held = core.HeldQuiet }, nil, 4, 1},
		} {
			t.Run(db.name+"/"+tt.name, func(t *testing.T) {
				t.Parallel()
				ctx, reads := t.Context(), 0
				s := roomy(t, db.url(t), &reads)
				a := several(s)
				if tt.alter != nil {
					tt.alter(a)
				}
				rec, err := s.Record(ctx, a)
				if err != nil || len(rec.Wakes) != 1 {
					t.Fatalf("Record: %+v, %v", rec, err)
				}
				if tt.between != nil {
					if err := tt.between(ctx, s, a); err != nil {
						t.Fatal(err)
					}
				}
				r, err := s.Claim(ctx, rec.Wakes[0], "w", time.Minute)
				if err != nil {
					t.Fatal(err)
				}
				if reads != tt.reads {
					t.Errorf("the deliveries were read %d times, want %d", reads, tt.reads)
				}
				if tt.want == 0 {
					if r != nil {
						t.Errorf("%d deliveries are to be sent, want none", len(r.Deliveries))
					}
					return
				}
				read, err := s.Pending(ctx, &r.Batch)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(read, r.Deliveries); diff != "" || len(read) != tt.want {
					t.Errorf("claimed (+) is not what is there (-), want %d: %s", tt.want, diff)
				}
			})
		}
	}
}

// TestRecentElsewhere: another process had the first round. What it came to is read, not remembered.
func TestRecentElsewhere(t *testing.T) {
	t.Parallel()
	ctx, reads, others := t.Context(), 0, 0
	url := coretest.Postgres(t)
	s, other := roomy(t, url, &reads), roomy(t, url, &others)
	rec, err := s.Record(ctx, several(s))
	if err != nil {
		t.Fatal(err)
	}
	r, err := other.Claim(ctx, rec.Wakes[0], "other", time.Minute)
	if err != nil || r == nil || others != 1 {
		t.Fatalf("the other process claims %+v, %v, and reads %d times", r, err, others)
	}
	st := &core.Settlement{Batch: r.Batch, Worker: "other", At: r.Now}
	soon := core.Policy{MaxAttempts: 9, Min: time.Microsecond, Max: time.Microsecond}
	for i := range r.Deliveries {
		st.Verdicts = append(st.Verdicts, r.Deliveries[i].Apply(providers.Result{Outcome: providers.Deferred}, soon, st.At, 0))
	}
	st.Split(st.At, false)
	if stale, err := other.Settle(ctx, st); err != nil || stale {
		t.Fatalf("Settle: %v, %v", stale, err)
	}
	again, err := s.Claim(ctx, core.Wake{Batch: st.Stay.ID, Fence: st.Stay.Fence, Route: "mail"}, "w", time.Minute)
	if err != nil || again == nil || len(again.Deliveries) != 4 || again.Deliveries[0].Attempts != 1 || reads != 1 {
		t.Errorf("claimed after a round elsewhere: %+v, %v, read %d times", again, err, reads)
	}
}

// TestRecentBound: no more is kept than is said, the latest of it, and nothing that no claim follows soon.
func TestRecentBound(t *testing.T) {
	t.Parallel()
	ctx, reads := t.Context(), 0
	s := roomy(t, sqliteURL(t), &reads)
	if _, err := s.Record(ctx, acceptance(s, store.MaxRecent/2+1)); err != nil { // two batches, and room for the wake of one
		t.Fatal(err)
	}
	if n := s.Recent(); n != store.MaxRecent/2 {
		t.Fatalf("%d deliveries are kept, want those of the batch that is woken", n)
	}
	var wakes []core.Wake
	for range 4 {
		rec, err := s.Record(ctx, acceptance(s, store.MaxRecent/2-1))
		if err != nil {
			t.Fatal(err)
		}
		wakes = append(wakes, rec.Wakes...)
		if n := s.Recent(); n > store.MaxRecent {
			t.Fatalf("%d deliveries are kept", n)
		}
	}
	for _, w := range wakes {
		if r, err := s.Claim(ctx, w, "w", time.Minute); err != nil || r == nil {
			t.Fatalf("%v, %v", r, err)
		}
	}
	if n := s.Recent(); n != 0 || reads != 2 {
		t.Errorf("%d deliveries are kept of what was claimed; %d batches were read, want the first 2 of 4", n, reads)
	}
}
