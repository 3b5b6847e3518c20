package store_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/store"
)

// worker opens a store as another process does that has no page in memory, and records something by the first.
func worker(t *testing.T, url, through string, n int) (*store.Store, core.Wake, *core.Acceptance) {
	t.Helper()
	api, s := open(t, store.Options{URL: url}), open(t, store.Options{URL: through})
	a := acceptance(api, n)
	if _, err := api.Record(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	return s, core.Wake{Batch: a.Deliveries[0].Batch, Fence: 1, Route: "mail"}, a
}

// TestClaimReadsAgain: a server that goes away between a claim's commit and the reading of its contents, and
// comes back soon, costs that round nothing. The claim itself is not made again: it would find the batch in hand.
func TestClaimReadsAgain(t *testing.T) {
	t.Parallel()
	server := coretest.StartPostgres(t, "")
	link := coretest.StartProxy(t, "unix:"+server.Socket())
	direct := coretest.StartProxy(t, "unix:"+server.Socket())
	s, w, a := worker(t, server.DSN(direct.Addr), server.DSN(link.Addr), 3)
	tries := 0
	s.OnPage(func() {
		switch tries++; tries {
		case 1:
			link.Cut()
		case 3:
			link.Heal()
		}
	})
	r, err := s.Claim(t.Context(), w, "w", 20*time.Second)
	if err != nil || r == nil || len(r.Deliveries) != 3 {
		t.Fatalf("after %d tries: %+v, %v", tries, r, err)
	}
	if diff := cmp.Diff(map[core.ContentRef]*core.Content{a.Deliveries[0].Content: &a.Contents[0]}, r.Contents); diff != "" || tries != 3 {
		t.Errorf("after %d tries: %s", tries, diff)
	}
}

// TestClaimUnread: contents that cannot be read in time come as an error together with the round, which can be
// settled; a caller that leaves gets it as well, and at once.
func TestClaimUnread(t *testing.T) {
	t.Parallel()
	const limit = core.LeaseSlack + time.Second
	for name, tc := range map[string]struct {
		leaves bool
		lease  time.Duration
		want   error
	}{"away": {false, limit, core.ErrUnavailable}, "the caller leaves": {true, time.Minute, context.Canceled}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := coretest.StartPostgres(t, "")
			link := coretest.StartProxy(t, "unix:"+server.Socket())
			direct := coretest.StartProxy(t, "unix:"+server.Socket())
			s, w, _ := worker(t, server.DSN(direct.Addr), server.DSN(link.Addr), 2)
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			s.OnPage(sync.OnceFunc(func() {
				link.Hang()
				if tc.leaves {
					leave()
				}
			}))
			var r *core.Round
			began := time.Now()
			err := within(t, 2*limit, "claim", func() (err error) {
				r, err = s.Claim(ctx, w, "w", tc.lease)
				return err
			})
			if !errors.Is(err, tc.want) || r == nil || len(r.Deliveries) != 2 {
				t.Fatalf("%+v, %v; want a round and %v", r, err, tc.want)
			}
			if took := time.Since(began); took > limit {
				t.Errorf("it took %v", took)
			}
			link.Heal()
			st := &core.Settlement{Batch: r.Batch, Worker: "w", At: r.Now}
			for _, d := range r.Deliveries {
				st.Verdicts = append(st.Verdicts, d.Hold(core.CodeStoreAway, r.Now, r.Now))
				st.Results = append(st.Results, core.Attempt{Delivery: d.ID, None: true, State: core.Pending})
			}
			st.Split(r.Now, true)
			for range 10 { // connections that hung
				var stale bool
				if stale, err = s.Settle(t.Context(), st); err == nil && stale {
					t.Error("the round was not ours")
				}
				if err == nil {
					break
				}
			}
			if err != nil {
				t.Errorf("settle: %v", err)
			}
			if again, err := s.Claim(t.Context(), core.Wake{Batch: w.Batch, Fence: 2}, "w", time.Minute); err != nil || again == nil || again.Deliveries[0].Unknowns != 0 {
				t.Errorf("the next round: %+v, %v", again, err)
			}
		})
	}
}

// end settles a round, each delivery by a verdict.
func end(t *testing.T, s *store.Store, r *core.Round, verdict func(core.Delivery) core.Verdict) {
	t.Helper()
	st := &core.Settlement{Batch: r.Batch, Worker: "w", At: r.Now.Add(time.Millisecond)}
	for _, d := range r.Deliveries {
		v := verdict(d)
		st.Verdicts = append(st.Verdicts, v)
		st.Results = append(st.Results, core.Attempt{Delivery: d.ID, None: true, Code: v.Delivery.Code, State: v.Delivery.State})
	}
	st.Split(st.At, true)
	if stale, err := s.Settle(t.Context(), st); err != nil || stale {
		t.Fatalf("settle: %v, stale: %t", err, stale)
	}
}

// stored records something in a store and closes it: who opens it next has no page in memory.
func stored(t *testing.T, url string, n int, recipient string) (all []*core.Acceptance) {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.UpdateRecipient(t.Context(), "shop", recipient, func(*core.Recipient) error { return nil }); err != nil {
		t.Fatal(err)
	}
	for range n {
		a := acceptance(s, 2)
		for i := range a.Deliveries {
			a.Deliveries[i].Recipient = recipient
		}
		if _, err := s.Record(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		all = append(all, a)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestClaimErased: a recipient who is erased between a claim's commit and the reading of its contents has none in
// that round, and what is held in it is cancelled.
func TestClaimErased(t *testing.T) {
	t.Parallel()
	bothStores(t, func(t *testing.T, url string) {
		a := stored(t, url, 1, "u1")[0]
		s := open(t, store.Options{URL: url})
		s.OnPage(sync.OnceFunc(func() {
			if err := s.DeleteRecipient(t.Context(), "shop", "u1"); err != nil {
				t.Error(err)
			}
		}))
		r, err := s.Claim(t.Context(), core.Wake{Batch: a.Deliveries[0].Batch, Fence: 1}, "w", time.Minute)
		if err != nil || r == nil || len(r.Deliveries) != 2 || len(r.Contents) != 0 {
			t.Fatalf("%+v, %v", r, err)
		}
		end(t, s, r, func(d core.Delivery) core.Verdict { return d.Hold(core.CodeNoContent, r.Now, r.Now) })
		if v, err := s.Notification(t.Context(), "shop", a.Notification.ID); err != nil || v.Counts.Cancelled != 2 {
			t.Errorf("%+v, %v", v.Counts, err)
		}
	})
}

// TestClaimDamaged: a page that is damaged or gone costs those their contents who have theirs there, and the
// timeline says that they failed for it.
func TestClaimDamaged(t *testing.T) {
	t.Parallel()
	bothStores(t, func(t *testing.T, url string) {
		damages := []string{"DELETE FROM pages WHERE id = $1", "UPDATE pages SET body = '{}' WHERE id = $1", "UPDATE pages SET body = '[]' WHERE id = $1",
			"UPDATE pages SET body = '(nothing that zstd knows' WHERE id = $1"}
		all := stored(t, url, len(damages), "u1")
		db := raw(t, url)
		for i, damage := range damages {
			page := all[i].Deliveries[0].Content.Page
			if _, err := db.ExecContext(t.Context(), damage, page[:]); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		s := open(t, store.Options{URL: url, Logger: slog.New(slog.DiscardHandler)})
		for i, damage := range damages {
			r, err := s.Claim(t.Context(), core.Wake{Batch: all[i].Deliveries[0].Batch, Fence: 1}, "w", time.Minute)
			if err != nil || r == nil || len(r.Contents) != 0 {
				t.Fatalf("%s: %+v, %v", damage, r, err)
			}
			end(t, s, r, func(d core.Delivery) core.Verdict { return d.Fail(core.CodeNoContent, r.Now) })
			steps, err := s.Timeline(t.Context(), "shop", all[i].Notification.ID)
			if err != nil || !slices.ContainsFunc(steps, func(x core.Step) bool { return x.What == core.StepFailed && x.Code == core.CodeNoContent }) {
				t.Errorf("%s: %+v, %v", damage, steps, err)
			}
		}
	})
}
