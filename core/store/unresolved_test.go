package store_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
)

// A notification tells why its topics are resolved no further, and nothing where that was asked for.
func TestUnresolved(t *testing.T) {
	t.Parallel()
	bothStores(t, func(t *testing.T, url string) {
		s := open(t, store.Options{URL: url})
		type told struct {
			Resolving, Cancelled bool
			Why                  string
			At                   time.Time
		}
		ended := s.Now().UTC().Truncate(time.Microsecond)
		for name, c := range map[string]struct {
			end  func(t *testing.T, e *core.Campaign)
			want told
		}{
			"under way": {func(*testing.T, *core.Campaign) {}, told{Resolving: true}},
			"ended": {func(t *testing.T, e *core.Campaign) {
				got, err := s.KeepCampaign(t.Context(), e.ID, e.Fence, func(c *core.Campaign) { c.State, c.Reason, c.EndedAt = core.CampaignCancelled, "gone", ended })
				if err != nil || got == nil {
					t.Fatal(got, err)
				}
			}, told{Why: "gone", At: ended}},
			"cancelled": {func(t *testing.T, e *core.Campaign) {
				if _, err := s.Cancel(t.Context(), e.App, e.Target); err != nil {
					t.Fatal(err)
				}
			}, told{Cancelled: true}},
		} {
			t.Run(name, func(t *testing.T) {
				a := acceptance(s, 0)
				e := core.NewExpansion(&a.Notification, []string{"vip"}, nil, []byte("{}"))
				a.Expansions = []core.Campaign{e}
				if _, err := s.Record(t.Context(), a); err != nil {
					t.Fatal(err)
				}
				c.end(t, &e)
				n, err := s.Notification(t.Context(), e.App, e.Target)
				if err != nil {
					t.Fatal(err)
				}
				got := told{n.Resolving, !n.CancelledAt.IsZero(), n.Unresolved, n.UnresolvedAt}
				if diff := cmp.Diff(c.want, got); diff != "" {
					t.Error(diff)
				}
			})
		}
	})
}
