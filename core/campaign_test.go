package core_test

import (
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// A campaign's ETA goes by its rate of late, but never lies before what waits for a clock.
func TestETA(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	in := func(d time.Duration) time.Time { return now.Add(d) }
	// 900 of 1,000 were done in the ten seconds before the newest sample.
	sent := func(ago time.Duration) core.CampaignLive {
		l := core.CampaignLive{Expanded: true, Totals: core.Totals{Audience: 1000, Expanded: 1000, People: core.Counts{Pending: 100, Sent: 900}, Deliveries: core.Counts{Pending: 100, Sent: 900}}}
		l.Samples = [2]core.Sample{{At: in(-ago - 10*time.Second)}, {At: in(-ago), Done: 900}}
		return l
	}
	legs := []core.Leg{{At: in(-time.Minute)}, {At: in(6 * time.Hour)}, {At: in(6 * time.Hour), Moved: true}}
	for name, c := range map[string]struct {
		ago  time.Duration // since the newest sample
		due  time.Time
		legs []core.Leg
		want time.Time // zero: none
		not  func(*core.Campaign)
	}{
		"by its rate":             {want: in(time.Second)},
		"due before":              {due: in(-time.Hour), want: in(time.Second)},
		"held":                    {due: in(8 * time.Hour), want: in(8 * time.Hour)},
		"held, and a part of one": {due: in(8*time.Hour + time.Millisecond), want: in(8*time.Hour + time.Second)},
		"held for a long while":   {ago: 30 * time.Hour, due: in(time.Minute), want: in(time.Minute)},
		"a local time to come":    {legs: legs, want: in(6 * time.Hour)},
		"both":                    {legs: legs, due: in(7 * time.Hour), want: in(7 * time.Hour)},
		"paused":                  {due: in(time.Hour), not: func(c *core.Campaign) { c.State = core.CampaignPaused }},
		"nothing was done yet":    {due: in(time.Hour), not: func(c *core.Campaign) { c.Samples[0].Done = 900 }},
		"nothing is left":         {not: func(c *core.Campaign) { c.Totals.Deliveries = core.Counts{Sent: 1000} }},
	} {
		x := &core.Campaign{State: core.CampaignRunning, Legs: c.legs, CampaignLive: sent(c.ago)}
		if x.LastDue = c.due; c.not != nil {
			c.not(x)
		}
		if got := x.Progress(now).ETA; !got.Equal(c.want) && got.Sub(c.want).Abs() > time.Second/2 {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}
