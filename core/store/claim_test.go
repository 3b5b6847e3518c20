package store_test

import (
	"context"
	"errors"
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
	for name, tc := range map[string]struct {
		leaves bool
		want   error
	}{"away": {false, core.ErrUnavailable}, "the caller leaves": {true, context.Canceled}} {
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
			err := within(t, 10*time.Second, "claim", func() (err error) {
				r, err = s.Claim(ctx, w, "w", core.LeaseSlack+time.Second)
				return err
			})
			if !errors.Is(err, tc.want) || r == nil || len(r.Deliveries) != 2 {
				t.Fatalf("%+v, %v; want a round and %v", r, err, tc.want)
			}
			if took := time.Since(began); took > core.LeaseSlack || tc.leaves && took > 2*time.Second {
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
