package console_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/campaign"
	"github.com/carillon-notify/carillon/core/console"
)

func TestCampaigns(t *testing.T) {
	t.Parallel()
	m := &campaign.Manager{}
	r := newRig(t, func(o *console.Options) { o.Campaigns = m })
	m.Keeper, m.Pages, m.Audiences = r.store, r.store, r.store
	m.Queue = r.queue
	read, send := r.login(readKey), r.login(sendKey)
	wants(t, "an empty app", shown(t, r.page("/console/campaigns", read, http.StatusOK), "list"), "There is no campaign yet")
	now := r.store.Now()
	ids := core.NewIDs(now, 2)
	for i, c := range []core.Campaign{
		{State: core.CampaignRunning, CampaignSpec: core.CampaignSpec{Name: "<b>spring</b>", Audience: core.CampaignAudience{Filter: `attributes.n > 1`}},
			CampaignLive: core.CampaignLive{Bound: now, Counted: true, Rate: "500/s", Totals: core.Totals{Audience: 10, Expanded: 6, Skipped: 1, People: core.Counts{Pending: 2, Sent: 3}}}},
		{State: core.CampaignScheduled, CampaignSpec: core.CampaignSpec{Name: "daily", Audience: core.CampaignAudience{All: true}, Cron: "0 9 * * *"}, CampaignLive: core.CampaignLive{Runs: 4}},
	} {
		c.ID, c.App, c.CreatedAt, c.Fence = ids[i], "a", now, 1
		if _, err := r.store.CreateCampaign(t.Context(), &c, "", [32]byte{}); err != nil {
			t.Fatal(err)
		}
	}
	list := shown(t, r.page("/console/campaigns", send, http.StatusOK), "list")
	wants(t, "the list", list, "<b>spring</b>", "attributes.n > 1", "running", "2 pending 3 sent 1 skipped", "4 of 10", "daily", "everyone", "0 9 * * *", "4 occurrences", "pause", "cancel")
	if text := shown(t, r.page("/console/campaigns", read, http.StatusOK), "list"); strings.Contains(text, "pause cancel") {
		t.Errorf("who may only look is offered to pause: %s", text)
	}
	post := func(session, action string) *http.Response {
		return r.do(visit{method: http.MethodPost, path: "/console/campaigns/" + ids[0].String() + "/" + action, cookie: session})
	}
	if got := post(send, "pause"); got.StatusCode != http.StatusSeeOther {
		t.Errorf("pausing answers %d", got.StatusCode)
	}
	wants(t, "a paused one", shown(t, r.page("/console/campaigns", send, http.StatusOK), "list"), "paused", "resume")
	if got := post(send, "start"); got.StatusCode != http.StatusConflict {
		t.Errorf("starting a paused one answers %d", got.StatusCode)
	}
	if got := post(read, "cancel"); got.StatusCode != http.StatusForbidden {
		t.Errorf("who may only look cancels: %d", got.StatusCode)
	}
	if got := post(r.login(otherKey), "cancel"); got.StatusCode != http.StatusNotFound {
		t.Errorf("another app cancels: %d", got.StatusCode)
	}
	r.page("/console/notifications?campaign="+ids[0].String(), send, http.StatusOK)
	r.page("/console/notifications?campaign=x", send, http.StatusNotFound)
}
