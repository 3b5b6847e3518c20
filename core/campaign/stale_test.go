package campaign_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/campaign"
	"github.com/carillon-notify/carillon/core/store"
)

// overtaken is pages that something comes before, each time.
type overtaken struct {
	*store.Store
	before func(p *core.CampaignPage)
	tries  int
}

func (o *overtaken) Expand(ctx context.Context, p *core.CampaignPage) (*core.Campaign, core.Recorded, error) {
	o.tries++
	o.before(p)
	return o.Store.Expand(ctx, p)
}

// overtake has a campaign's pages overtaken, for 600 recipients, and returns what became of it when it was over.
func overtake(t *testing.T, audience core.CampaignAudience, before func(s *store.Store, try int)) (*core.Campaign, map[string]string, int) {
	t.Helper()
	o := &overtaken{}
	o.before = func(*core.CampaignPage) { before(o.Store, o.tries) }
	r := newRigWith(t, func(s *store.Store, opts *campaign.Options) { o.Store, opts.Pages = s, o })
	defer r.stop()
	for i := range 600 {
		r.put(fmt.Sprintf("u%03d", i), "UTC")
	}
	time.Sleep(time.Second)
	c := r.create(&campaign.Spec{Name: "x", Audience: audience, Now: true})
	time.Sleep(time.Hour)
	got, err := r.m.Get(t.Context(), "a", c.ID)
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]string{}
	err = r.store.CampaignResults(t.Context(), got, func(x *core.CampaignResult) error {
		if lines[x.Recipient] != "" {
			t.Errorf("%q got it twice", x.Recipient)
		}
		lines[x.Recipient] = x.State.String()
		if x.Skip != "" {
			lines[x.Recipient] = x.Skip
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got, lines, o.tries
}

// Who opts out or is erased while the page that has them is prepared and written gets nothing of it; everybody else
// gets it once.
func TestOvertaken(t *testing.T) {
	t.Parallel()
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		c, lines, _ := overtake(t, core.CampaignAudience{All: true}, func(s *store.Store, try int) {
			if try > 1 {
				return
			}
			if err := s.PutPreferences(context.Background(), "a", "u001", core.Preferences{"*": {"*": false}}, &core.Rules{}); err != nil {
				t.Error(err)
			}
			if err := s.DeleteRecipient(context.Background(), "a", "u002"); err != nil {
				t.Error(err)
			}
		})
		if c.State != core.CampaignCompleted || c.Totals.Expanded != 599 || c.Totals.Skipped != 1 || len(lines) != 599 {
			t.Errorf("%s: %+v, %d lines", c.State, c.Totals, len(lines))
		}
		if lines["u001"] != core.SkipPreference || lines["u002"] != "" || lines["u000"] != "sent" || lines["u599"] != "sent" {
			t.Errorf("opted out %q, erased %q, others %q %q", lines["u001"], lines["u002"], lines["u000"], lines["u599"])
		}
	})
}

// Who chooses anew at each try holds nobody up: that one is passed over after a few tries.
func TestOvertakenAlways(t *testing.T) {
	t.Parallel()
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		c, lines, tries := overtake(t, core.CampaignAudience{All: true}, func(s *store.Store, try int) {
			err := s.PutPreferences(context.Background(), "a", "u000", core.Preferences{fmt.Sprint(try): {"push": false}}, &core.Rules{})
			if err != nil {
				t.Error(err)
			}
		})
		if c.State != core.CampaignCompleted || c.Totals.Expanded != 600 || c.Totals.Skipped != 1 || len(lines) != 600 || tries > 30 {
			t.Errorf("%s: %+v, %d lines, %d tries", c.State, c.Totals, len(lines), tries)
		}
		if lines["u000"] != "" || lines[""] != core.SkipPreference || lines["u001"] != "sent" {
			t.Errorf("who changed always %q, as %q, the next %q", lines["u000"], lines[""], lines["u001"])
		}
	})
}
