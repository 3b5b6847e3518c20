package campaign_test

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/campaign"
	"github.com/carillon-notify/carillon/core/store"
)

// Reads that take longer than the lease keep the campaign with who does them, and are done once.
func TestSlowReads(t *testing.T) {
	t.Parallel()
	warm(t)
	for name, c := range map[string]struct {
		slow  *slow
		spec  campaign.Spec
		reads int64
	}{
		"count":    {&slow{size: 35 * time.Second}, campaign.Spec{}, 1},
		"zones":    {&slow{zones: 35 * time.Second}, campaign.Spec{LocalTime: "09:00"}, 1},
		"page":     {&slow{page: 35 * time.Second}, campaign.Spec{}, 1},
		"filtered": {&slow{page: 35 * time.Second}, campaign.Spec{Audience: core.CampaignAudience{Filter: `attributes.x == 1`}}, 2}, // to count, and to expand
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newSlowRig(t, c.slow)
				defer r.stop()
				r.put("u", "")
				spec := c.spec
				spec.Name, spec.Now = "slow", true
				want := 1
				if spec.Audience.Filter != "" {
					want = 0
				} else {
					spec.Audience.All = true
				}
				made := r.create(&spec)
				time.Sleep(30 * time.Hour)
				got, err := r.m.Get(t.Context(), "a", made.ID)
				if err != nil {
					t.Fatal(err)
				}
				if n := c.slow.reads.Load(); got.State != core.CampaignCompleted || got.Totals.Audience != want || len(r.made()) != want || n != c.reads {
					t.Errorf("it is %s with %+v after %d slow reads, not completed with %d after %d", got.State, got.Totals, n, want, c.reads)
				}
			})
		})
	}
}

// vast is an audience that takes longer to be counted than a turn may last.
type vast struct {
	*store.Store
	pages int
	each  time.Duration
	read  []int // the pages, in order
}

// AudienceSize cannot be had in time.
func (v *vast) AudienceSize(context.Context, core.Audience) (int, error) {
	return 0, fmt.Errorf("count: %w", core.ErrUnavailable)
}

func (v *vast) AudiencePage(ctx context.Context, a core.Audience, cursor string, limit int) (core.AudiencePage, error) {
	if !a.Bare {
		return v.Store.AudiencePage(ctx, a, cursor, limit)
	}
	n, _ := strconv.Atoi(cursor)
	v.read = append(v.read, n)
	select {
	case <-time.After(v.each):
	case <-ctx.Done():
		return core.AudiencePage{}, ctx.Err()
	}
	p := core.AudiencePage{Recipients: []core.Recipient{{ID: cursor, Attributes: []byte(`{"x":1}`)}, {ID: cursor + "b"}}}
	if n+1 < v.pages {
		p.Next = strconv.Itoa(n + 1)
	}
	return p, nil
}

// A count that takes longer than a turn may goes on in the next where it was.
func TestVastAudience(t *testing.T) {
	t.Parallel()
	warm(t)
	for filter, want := range map[string]int{"": 200, `attributes.x == 1`: 100} {
		t.Run(filter, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				v := &vast{pages: 100, each: 10 * time.Second}
				r := newRigWith(t, func(s *store.Store, o *campaign.Options) { v.Store, o.Audiences = s, v })
				defer r.stop()
				r.put("u", "")
				time.Sleep(time.Second)
				c := r.create(&campaign.Spec{Name: "vast", Now: true, Audience: core.CampaignAudience{All: filter == "", Filter: filter}})
				time.Sleep(time.Hour)
				got, err := r.m.Get(t.Context(), "a", c.ID)
				if err != nil {
					t.Fatal(err)
				}
				if got.State != core.CampaignCompleted || got.Totals.Audience != want || got.Counting != 0 || got.CountedTo != "" {
					t.Errorf("it is %s: %+v", got.State, got.CampaignLive)
				}
				for i, n := range v.read {
					if i != n || len(v.read) != v.pages {
						t.Fatalf("pages were read as %v", v.read)
					}
				}
			})
		})
	}
}

// A step that reads ends when the campaign is taken away meanwhile, and what took it away stands.
func TestSlowReadLost(t *testing.T) {
	t.Parallel()
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		s := &slow{size: time.Hour}
		r := newSlowRig(t, s)
		defer r.stop()
		r.put("u", "")
		c := r.create(&campaign.Spec{Name: "slow", Audience: core.CampaignAudience{All: true}, Now: true})
		time.Sleep(30 * time.Second)
		if _, err := r.m.Steer(t.Context(), "a", c.ID, "pause"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(campaign.Lease / 2)
		synctest.Wait()
		if n := len(r.loop.turns); n != 0 {
			t.Errorf("%d turns are under way with a campaign that is paused", n)
		}
		time.Sleep(2 * time.Hour)
		if got, err := r.m.Get(t.Context(), "a", c.ID); err != nil || got.State != core.CampaignPaused || got.Counted || !got.RunAt.IsZero() || s.reads.Load() != 1 {
			t.Errorf("afterwards, with %d reads: %+v %v", s.reads.Load(), got, err)
		}
	})
}

// lagging is a running campaign by local time at 2000-01-03 20:00 UTC whose legs were due at 14:00, 15:00 and 22:00 for
// Berlin, London and New York; change says what else is of it.
func lagging(t *testing.T, r *rig, change func(*core.Campaign)) core.ID {
	t.Helper()
	day := func(hour int) time.Time { return time.Date(2000, 1, 3, hour, 0, 0, 0, time.UTC) }
	sleepTo(day(20))
	for id, zone := range map[string]string{"berlin": "Europe/Berlin", "moves": "Europe/Berlin", "london": "Europe/London", "york": "America/New_York"} {
		r.put(id, zone)
	}
	time.Sleep(time.Millisecond)
	now := time.Now()
	c := &core.Campaign{ID: core.NewID(now), App: "a", State: core.CampaignRunning, CreatedAt: now, Fence: 1, RunAt: now.Add(time.Second),
		CampaignSpec: core.CampaignSpec{Name: "x", Audience: core.CampaignAudience{All: true}, LocalTime: "15:00", Date: "2000-01-03", Missed: "skip", StartAt: day(1),
			Request: []byte(`{"Content":{"Title":"Good evening"},"Channels":["email"],"Priority":"bulk"}`)},
		Legs: []core.Leg{{At: day(14), Zones: []string{"Europe/Berlin"}}, {At: day(15), Zones: []string{"Europe/London"}},
			{At: day(22), Zones: []string{"America/New_York"}}, {At: day(23), Moved: true}},
		CampaignLive: core.CampaignLive{NextAt: day(14), Bound: now, PacedTo: day(13)}}
	change(c)
	if _, err := r.store.CreateCampaign(t.Context(), c, "", [32]byte{}); err != nil {
		t.Fatal(err)
	}
	return c.ID
}

// Local times that are over when a process comes back are left out or made up for, as the policy says; those of them
// that were begun, or that something else held up, go late.
func TestMissedLegs(t *testing.T) {
	t.Parallel()
	warm(t)
	for name, c := range map[string]struct {
		change func(*core.Campaign)
		people []string // who gets it
	}{
		"skip":              {func(*core.Campaign) {}, []string{"moves", "york"}},
		"run":               {func(c *core.Campaign) { c.Missed = "run" }, []string{"berlin", "london", "moves", "york"}},
		"begun":             {func(c *core.Campaign) { c.NextAt = time.Time{} }, []string{"berlin", "london", "moves", "york"}},
		"half way":          {func(c *core.Campaign) { c.Cursor = "berlin" }, []string{"london", "moves", "york"}},
		"the second waited": {func(c *core.Campaign) { c.Leg, c.NextAt = 1, c.Legs[1].At }, []string{"moves", "york"}},
		"in time": {func(c *core.Campaign) { // within a minute
			c.Legs[0].At = time.Now().Add(-30 * time.Second)
			c.NextAt = c.Legs[0].At
			c.Legs[1].At = c.NextAt
		}, []string{"berlin", "london", "moves", "york"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				defer r.stop()
				id := lagging(t, r, c.change)
				time.Sleep(time.Hour)
				r.put("berlin", "Europe/Berlin") // changed, not moved
				r.put("moves", "America/New_York")
				time.Sleep(20 * time.Hour)
				made := r.made()
				for _, who := range c.people {
					if len(made[who]) != 1 {
						t.Errorf("%s got it %d times", who, len(made[who]))
					}
				}
				got, err := r.m.Get(t.Context(), "a", id)
				if err != nil {
					t.Fatal(err)
				}
				p := got.Progress(time.Now())
				if n := len(c.people); len(made) != n || got.State != core.CampaignCompleted || p.Audience != 4 || p.Totals.Expanded != 4 || p.People.Sent != n || p.Skipped != 4-n {
					t.Errorf("%d people got it, and it is %s with %+v, not %d, the others skipped", len(made), got.State, p, n)
				}
			})
		})
	}
}

// A leg whose time came while the planner had the campaign goes, however long a backlog holds it up.
func TestHeldUpLeg(t *testing.T) {
	t.Parallel()
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		s := &slow{}
		r := newSlowRig(t, s)
		defer r.stop()
		sleepTo(time.Date(2000, 1, 3, 13, 0, 0, 0, time.UTC))
		r.put("berlin", "Europe/Berlin")
		r.put("london", "Europe/London")
		time.Sleep(time.Second)
		s.page = 3 * time.Minute
		c := r.create(&campaign.Spec{Name: "x", Audience: core.CampaignAudience{All: true}, LocalTime: "15:00", Now: true, Missed: "skip"})
		time.Sleep(30 * time.Second)
		sleepTo(time.Date(2000, 1, 3, 14, 2, 0, 0, time.UTC)) // the read for Berlin is under way
		for _, action := range []string{"pause", "resume"} {  // and begins again
			if _, err := r.m.Steer(t.Context(), "a", c.ID, action); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(20 * time.Hour)
		if made := r.made(); len(made) != 2 || len(made["berlin"]) != 1 {
			t.Errorf("it was made for %v, not for both", made)
		}
	})
}
