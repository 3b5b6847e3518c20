package campaign_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/campaign"
)

// TestRateOfOccurrences: the rate of a campaign with a cron is that of its occurrence under way, too, and one that is over
// is no conflict.
func TestRateOfOccurrences(t *testing.T) {
	t.Parallel()
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.stop()
		for i := range 100 {
			r.put(fmt.Sprintf("u%03d", i), "UTC")
		}
		c := r.create(&campaign.Spec{Name: "hourly", Audience: core.CampaignAudience{All: true}, Cron: "0 * * * *", Rate: "1/s"})
		rate := func(rate string) (occurrence *core.Campaign) {
			t.Helper()
			parent, err := r.m.SetRate(t.Context(), "a", c.ID, rate)
			if err != nil {
				t.Fatal(err)
			}
			if parent.Rate != rate || parent.LastRun.IsZero() {
				t.Fatalf("the rate is %q, and the last run %s", parent.Rate, parent.LastRun)
			}
			if occurrence, err = r.m.Get(t.Context(), "a", parent.LastRun); err != nil {
				t.Fatal(err)
			}
			return occurrence
		}
		time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(time.Hour + 10*time.Second)))
		if o := rate("100/s"); o.State != core.CampaignRunning || o.Rate != "100/s" || o.PerSecond != 100 {
			t.Errorf("%s at %q", o.State, o.Rate)
		}
		time.Sleep(20 * time.Second)
		if o := rate("50/s"); o.State != core.CampaignCompleted || o.Rate != "100/s" {
			t.Errorf("%s at %q", o.State, o.Rate)
		}
	})
}
