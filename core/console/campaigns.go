package console

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// Campaigns shows and steers the campaigns of an app. What a campaign's state does not allow is core.ErrState.
type Campaigns interface {
	List(ctx context.Context, f core.CampaignFilter) ([]core.Campaign, string, error)
	Steer(ctx context.Context, app string, id core.ID, action string) (*core.Campaign, error)
}

// campaignRow is a campaign in the list.
type campaignRow struct {
	core.Campaign
	Progress core.Progress
	Parts    []part
	Actions  []string
}

// Who says whom it is for.
func (r campaignRow) Who() string {
	switch a := r.Audience; {
	case a.Topic != "":
		return "topic " + a.Topic
	case a.Filter != "":
		return a.Filter
	case a.All:
		return "everyone"
	default:
		return fmt.Sprintf("%d listed", len(a.Recipients))
	}
}

// When says when it goes out, where it is not under way.
func (r campaignRow) When() string {
	out := ""
	if r.Cron != "" {
		out = r.Cron
	}
	if r.LocalTime != "" {
		out += " " + r.LocalTime + " local"
	}
	if !r.State.Over() && !r.NextAt.IsZero() && r.State == core.CampaignScheduled {
		out += " next " + r.NextAt.UTC().Format("2006-01-02 15:04")
	}
	return out
}

// Speed is how fast it goes, and until when.
func (r campaignRow) Speed() string {
	out := ""
	if r.Progress.RatePerS > 0 {
		out = fmt.Sprintf("%.0f/s", r.Progress.RatePerS)
	}
	if r.Rate != "" {
		out += " of " + r.Rate
	}
	if !r.Progress.ETA.IsZero() {
		out += ", done at " + r.Progress.ETA.UTC().Format(time.TimeOnly)
	}
	return out
}

// Done is how many people need nothing more, for the bar.
func (r campaignRow) Done() int { return r.Progress.Totals.Expanded - r.Progress.People.Pending }

type campaignsBody struct {
	Rows  []campaignRow
	Older string
}

func (c *Console) campaigns(w http.ResponseWriter, r *http.Request, s session) {
	at, err := cursor(r.URL.Query())
	var all []core.Campaign
	var next string
	if err == nil {
		all, next, err = c.o.Campaigns.List(r.Context(), core.CampaignFilter{App: s.App, Page: at})
	}
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	b := campaignsBody{Older: older(r, next)}
	now := c.o.Notifications.Now()
	for i := range all {
		row := campaignRow{Campaign: all[i], Progress: all[i].Progress(now)}
		row.Parts = parts(row.Progress.People)
		if s.Can("send") {
			row.Actions = actions(&all[i])
		}
		b.Rows = append(b.Rows, row)
	}
	p := s.page("Campaigns", b)
	p.Refresh = at.Cursor == ""
	c.page(w, http.StatusOK, "campaigns.html", p)
}

// actions are what may be done with a campaign.
func actions(c *core.Campaign) []string {
	switch c.State {
	case core.CampaignDraft:
		return []string{"start", "cancel"}
	case core.CampaignScheduled, core.CampaignRunning:
		return []string{"pause", "cancel"}
	case core.CampaignPaused:
		return []string{"resume", "cancel"}
	}
	return nil
}

// steerCampaign starts, pauses, resumes or cancels a campaign.
func (c *Console) steerCampaign(w http.ResponseWriter, r *http.Request, s session) {
	id, err := core.ParseID(r.PathValue("id"))
	if err == nil {
		_, err = c.o.Campaigns.Steer(r.Context(), s.App, id, r.PathValue("action"))
	}
	if errors.Is(err, core.ErrState) {
		err = &problem{http.StatusConflict, "Not possible now", "The campaign is in a state that does not allow that. Look at it again."}
	}
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	http.Redirect(w, r, "/console/campaigns", http.StatusSeeOther)
}
