package campaign_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/campaign"
	"github.com/carillon-notify/carillon/core/intake"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/builtin"
	"github.com/carillon-notify/carillon/templates"
)

// loop is the queue of these tests, and its worker: a wake of a campaign is a turn, at once, and every
// delivery is accepted.
type loop struct {
	store   *store.Store
	planner *campaign.Planner
	wg      sync.WaitGroup
	turns   chan struct{}
	ctx     context.Context
	t       *testing.T
}

func (l *loop) Wake(_ context.Context, wakes ...core.Wake) error {
	for _, w := range wakes {
		r, err := l.store.Claim(context.WithoutCancel(l.ctx), w, "w", time.Minute)
		if err != nil {
			l.t.Errorf("claim: %v", err)
		}
		if r == nil {
			continue // cancelled with its campaign as the test ends
		}
		s := &core.Settlement{Batch: r.Batch, Worker: "w", At: r.Now}
		for _, d := range r.Deliveries {
			s.Verdicts = append(s.Verdicts, d.Apply(providers.Result{Outcome: providers.Accepted}, core.DefaultPolicy, r.Now, 0))
		}
		s.Split(r.Now, false)
		if _, err := l.store.Settle(context.WithoutCancel(l.ctx), s); err != nil {
			l.t.Errorf("settle: %v", err)
		}
	}
	return nil
}

func (l *loop) Plan(_ context.Context, wakes ...core.CampaignWake) error {
	for _, w := range wakes {
		l.wg.Go(func() {
			l.turns <- struct{}{}
			defer func() { <-l.turns }()
			ctx, cancel := context.WithTimeout(l.ctx, campaign.MaxTurn) // as the queue does
			defer cancel()
			if err := l.planner.Turn(ctx, w); err != nil && l.ctx.Err() == nil {
				l.t.Errorf("turn: %v", err)
			}
		})
	}
	return nil
}

// warm has the store's compressor set up before any bubble: what is set up within one belongs to it.
func warm(t *testing.T) {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{URL: "sqlite:" + filepath.Join(t.TempDir(), "w.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := &core.Campaign{ID: core.NewID(s.Now()), App: "a", State: core.CampaignDraft, CreatedAt: s.Now(), Fence: 1, CampaignSpec: core.CampaignSpec{Name: strings.Repeat("x", 1000)}}
	if _, err := s.CreateCampaign(t.Context(), c, "", [32]byte{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Campaign(t.Context(), "a", c.ID); err != nil {
		t.Fatal(err)
	}
}

// rig is campaigns over the real store, with the real intake, in the time of a synctest bubble.
type rig struct {
	t     *testing.T
	store *store.Store
	m     *campaign.Manager
	loop  *loop
	stop  func()
}

func newRig(t *testing.T) *rig {
	t.Helper()
	return newSlowRig(t, &slow{})
}

// slow is audiences each of whose reads takes a while.
type slow struct {
	*store.Store
	zones, size, page time.Duration
	reads             atomic.Int64
}

func (s *slow) AudienceZones(ctx context.Context, a core.Audience) ([]string, error) {
	if err := s.wait(ctx, s.zones); err != nil {
		return nil, err
	}
	return s.Store.AudienceZones(ctx, a)
}

func (s *slow) AudienceSize(ctx context.Context, a core.Audience) (int, error) {
	if err := s.wait(ctx, s.size); err != nil {
		return 0, err
	}
	return s.Store.AudienceSize(ctx, a)
}

func (s *slow) AudiencePage(ctx context.Context, a core.Audience, cursor string, limit int) (core.AudiencePage, error) {
	if err := s.wait(ctx, s.page); err != nil {
		return core.AudiencePage{}, err
	}
	return s.Store.AudiencePage(ctx, a, cursor, limit)
}

func (s *slow) wait(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return nil
	}
	s.reads.Add(1)
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func newSlowRig(t *testing.T, audiences *slow) *rig {
	t.Helper()
	return newRigWith(t, func(s *store.Store, o *campaign.Options) { audiences.Store, o.Audiences = s, audiences })
}

// newRigWith is a rig whose planner has other options.
func newRigWith(t *testing.T, change func(*store.Store, *campaign.Options)) *rig {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	s, err := store.Open(t.Context(), store.Options{URL: "sqlite:" + filepath.Join(t.TempDir(), "c.db"), Logger: quiet,
		Room: func(core.Wake) int { return 1000 }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	l := &loop{store: s, ctx: ctx, t: t, turns: make(chan struct{}, campaign.Turns)}
	in := intake.New(intake.Options{Store: s, Queue: l, Templates: templates.New(nil, nil), Routing: routingWithout(t, ""), Logger: quiet})
	o := campaign.Options{Campaigns: s, Pages: s, Audiences: s, Renderer: in, Queue: l, Logger: quiet,
		Poll: 20 * time.Second} // days go by here
	change(s, &o)
	l.planner = campaign.NewPlanner(o)
	l.wg.Go(func() { l.planner.Run(ctx) })
	return &rig{t: t, store: s, loop: l, m: &campaign.Manager{Keeper: s, Pages: s, Audiences: s, Checker: in, Queue: l}, stop: func() {
		cancel()
		l.wg.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}}
}

// routingWithout is a route of each built-in kind but one.
func routingWithout(t *testing.T, kind string) *intake.Routing {
	t.Helper()
	kinds, channels := map[string]providers.Kind{}, map[string][]string{}
	var routes []core.Route
	for _, k := range builtin.Kinds() {
		if kinds[k.Name] = k; k.Name == kind {
			continue
		}
		routes = append(routes, core.Route{Name: k.Name, Kind: k.Name, Channel: k.Channel, Policy: core.DefaultPolicy})
		channels[k.Channel] = append(channels[k.Channel], k.Name)
	}
	routing, err := intake.NewRouting(routes, channels, kinds)
	if err != nil {
		t.Fatal(err)
	}
	return routing
}

// put stores a recipient with a mailbox.
func (r *rig) put(id, zone string) {
	r.t.Helper()
	_, err := r.store.PutRecipient(r.t.Context(), &core.Recipient{App: "a", ID: id, Timezone: zone, Endpoints: []core.Endpoint{{Kind: "email", Address: id + "@example.com"}}})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) create(s *campaign.Spec) *core.Campaign {
	r.t.Helper()
	s.Request = &intake.Request{Content: &intake.Content{Title: "Good morning"}, Channels: []string{"email"}}
	c, _, err := r.m.Create(r.t.Context(), "a", s, intake.Key{})
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// made is when each recipient's deliveries were made, in order.
func (r *rig) made() map[string][]time.Time {
	r.t.Helper()
	out := map[string][]time.Time{}
	f := core.CampaignFilter{App: "a", Page: core.Page{Limit: 500}}
	all, _, err := r.store.Campaigns(r.t.Context(), f)
	if err != nil {
		r.t.Fatal(err)
	}
	for i := range all {
		err := r.store.CampaignResults(r.t.Context(), &all[i], func(l *core.CampaignResult) error {
			if l.Skip != "" {
				r.t.Errorf("%s was skipped: %s", l.Recipient, l.Skip)
			}
			out[l.Recipient] = append(out[l.Recipient], l.CreatedAt)
			return nil
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	for _, times := range out {
		slices.SortFunc(times, time.Time.Compare)
	}
	return out
}

// sleepTo sleeps until a time; a bubble begins at 2000-01-01.
func sleepTo(at time.Time) { time.Sleep(time.Until(at)) }

var zonesOfTheWorld = []string{"Pacific/Kiritimati", "Pacific/Apia", "Pacific/Auckland", "Australia/Lord_Howe", "Australia/Adelaide", "Asia/Tokyo", "Asia/Kathmandu",
	"Asia/Kolkata", "Asia/Tehran", "Europe/Moscow", "Africa/Casablanca", "Europe/Berlin", "Europe/London", "Atlantic/Azores", "America/Sao_Paulo", "America/St_Johns",
	"America/New_York", "America/Havana", "America/Chicago", "America/Denver", "America/Los_Angeles", "Pacific/Marquesas", "Pacific/Honolulu", "Pacific/Niue", "Etc/GMT+12", "UTC", ""}

// Every day at everybody's 09:00, over the days on which clocks change in Europe, America and the far south:
// everyone once on each day, at their 09:00.
func TestNineOClockEverywhere(t *testing.T) {
	t.Parallel()
	warm(t)
	for name, days := range map[string]struct {
		from string
		days int
	}{
		"spring in Europe":  {"2000-03-24", 5},
		"autumn in America": {"2000-10-27", 5}, // and in Europe on the same night then
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				first, err := time.Parse("2006-01-02", days.from)
				if err != nil {
					t.Fatal(err)
				}
				sleepTo(first.Add(-20 * time.Hour)) // before it is the first day anywhere
				r := newRig(t)
				defer r.stop()
				for i, z := range zonesOfTheWorld {
					r.put(fmt.Sprintf("u%02d", i), z)
				}
				c := r.create(&campaign.Spec{Name: "daily", Audience: core.CampaignAudience{All: true}, Cron: "0 0 * * *", LocalTime: "09:00"})
				sleepTo(first.AddDate(0, 0, days.days-1).Add(22 * time.Hour)) // the last day's 09:00 was everywhere, the next day's nowhere
				// Its last day is over in the far west, where the next has begun in the far east.
				if _, err = r.m.Steer(t.Context(), "a", c.ID, "cancel"); err != nil {
					t.Fatal(err)
				}
				got := r.made()
				for i, name := range zonesOfTheWorld {
					z, err := time.LoadLocation(name)
					if err != nil {
						t.Fatal(err)
					}
					var want []string
					for d := range days.days {
						want = append(want, first.AddDate(0, 0, d).Format("2006-01-02")+" 09:00")
					}
					var have []string
					for _, at := range got[fmt.Sprintf("u%02d", i)] {
						have = append(have, at.In(z).Format("2006-01-02 15:04"))
					}
					for _, day := range want {
						n := 0
						for _, h := range have {
							if h == day {
								n++
							}
						}
						if n != 1 {
							t.Errorf("%q: %d times at %s, not once: %v", name, n, day, have)
						}
					}
					if extra := len(have) - len(want); extra > 1 || extra == 1 && have[len(have)-1][11:] != "09:00" {
						t.Errorf("%q: more than asked: %v", name, have)
					}
				}
			})
		})
	}
}

// Who shares a mailbox gets a campaign for himself, whatever its rate and thus its pages are.
func TestSharedMailbox(t *testing.T) {
	t.Parallel()
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.stop()
		for i := range 4 {
			mailbox := core.Endpoint{Kind: "email", Address: "family@example.com"}
			_, err := r.store.PutRecipient(t.Context(), &core.Recipient{App: "a", ID: fmt.Sprintf("u%d", i), Endpoints: []core.Endpoint{mailbox}})
			if err != nil {
				t.Fatal(err)
			}
		}
		for n, rate := range []string{"", "1/s", "500/s"} {
			r.create(&campaign.Spec{Name: "once", Audience: core.CampaignAudience{All: true}, Now: true, Rate: rate})
			time.Sleep(time.Minute)
			got := r.made()
			for i := range 4 {
				if id := fmt.Sprintf("u%d", i); len(got[id]) != n+1 {
					t.Errorf("with the rate %q: %s got %d of %d", rate, id, len(got[id]), n+1)
				}
			}
		}
	})
}

// A campaign with a rate goes by it within 2 % over any ten seconds, and by another from the moment that it
// is changed; a pause is not caught up.
func TestRate(t *testing.T) {
	t.Parallel()
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.stop()
		for i := range 4000 {
			r.put(fmt.Sprintf("u%04d", i), "")
		}
		c := r.create(&campaign.Spec{Name: "paced", Audience: core.CampaignAudience{All: true}, Now: true, Rate: "100/s"})
		began := time.Now()
		time.Sleep(13 * time.Second)
		if _, err := r.m.SetRate(t.Context(), "a", c.ID, "37/s"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(15 * time.Second)
		paused, err := r.m.Steer(t.Context(), "a", c.ID, "pause")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if _, err := r.m.Steer(t.Context(), "a", c.ID, "resume"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(12 * time.Second)
		var at []time.Duration
		for _, times := range r.made() {
			for _, x := range times {
				at = append(at, x.Sub(began))
			}
		}
		slices.Sort(at)
		within := func(from, to time.Duration) (n int) {
			for _, x := range at {
				if x >= from && x < to {
					n++
				}
			}
			return n
		}
		for _, w := range []struct {
			from time.Duration
			want int
		}{{time.Second, 1000}, {2500 * time.Millisecond, 1000}, {14 * time.Second, 370}, {17300 * time.Millisecond, 370}, {89 * time.Second, 370}} {
			if got := within(w.from, w.from+10*time.Second); got < w.want*98/100 || got > w.want*102/100 {
				t.Errorf("%d in the ten seconds from %s, want %d within 2 %%", got, w.from, w.want)
			}
		}
		if got := within(28*time.Second+100*time.Millisecond, 87*time.Second); got != 0 || paused.Progress(time.Now()).Audience != 4000 {
			t.Errorf("%d while it was paused", got)
		}
	})
}

// A hundred campaigns with a rate, which wait nearly all the time, hold up neither one another nor another one.
func TestManyPaced(t *testing.T) {
	t.Parallel()
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.stop()
		for i := range 60 {
			r.put(fmt.Sprintf("u%02d", i), "")
		}
		var paced []*core.Campaign
		for i := range 100 {
			paced = append(paced, r.create(&campaign.Spec{Name: fmt.Sprint(i), Audience: core.CampaignAudience{All: true}, Now: true, Rate: "3/s"}))
		}
		time.Sleep(5 * time.Second)
		other := r.create(&campaign.Spec{Name: "other", Audience: core.CampaignAudience{All: true}, Now: true})
		time.Sleep(time.Second)
		if got, err := r.m.Get(t.Context(), "a", other.ID); err != nil || got.State != core.CampaignCompleted {
			t.Errorf("after a second one without a rate is %s, %v", got.State, err)
		}
		time.Sleep(4 * time.Second)
		for _, c := range paced {
			got, err := r.m.Get(t.Context(), "a", c.ID)
			if err != nil {
				t.Fatal(err)
			}
			if n := got.Totals.Expanded; n < 29 || n > 32 {
				t.Errorf("after ten seconds at 3/s campaign %s made %d", c.Name, n)
			}
		}
	})
}

// What was missed while nothing ran is left out or run once, as its policy says.
func TestMissed(t *testing.T) {
	t.Parallel()
	warm(t)
	for missed, want := range map[string]int{"skip": 2, "run": 3} {
		t.Run(missed, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				defer r.stop()
				r.put("u", "")
				c := r.create(&campaign.Spec{Name: "hourly", Audience: core.CampaignAudience{All: true}, Cron: "30 * * * *", Missed: missed})
				once := r.create(&campaign.Spec{Name: "once", Audience: core.CampaignAudience{All: true}, StartAt: time.Now().Add(2 * time.Hour), Missed: missed})
				time.Sleep(time.Hour) // one occurrence
				for _, x := range []*core.Campaign{c, once} {
					if _, err := r.m.Steer(t.Context(), "a", x.ID, "pause"); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(3 * time.Hour) // three are missed, and the other one's start
				for _, x := range []*core.Campaign{c, once} {
					if _, err := r.m.Steer(t.Context(), "a", x.ID, "resume"); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(time.Hour) // and another occurrence
				cron, err := r.m.Get(t.Context(), "a", c.ID)
				if err != nil {
					t.Fatal(err)
				}
				if cron.Runs != want || cron.Runs+cron.MissedRuns != 5 {
					t.Errorf("%d runs, %d missed; want %d of 5", cron.Runs, cron.MissedRuns, want)
				}
				state := map[string]core.CampaignState{"skip": core.CampaignCancelled, "run": core.CampaignCompleted}[missed]
				if got, err := r.m.Get(t.Context(), "a", once.ID); err != nil || got.State != state || missed == "skip" && got.Reason != "missed" {
					t.Errorf("the one whose start was missed: %s %q %v", got.State, got.Reason, err)
				}
			})
		})
	}
}

// Whoever moves on the day gets it once: neither twice in a zone to come, nor never for one that is over.
func TestMoving(t *testing.T) {
	t.Parallel()
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		sleepTo(time.Date(2000, 6, 1, 0, 30, 0, 0, time.UTC))
		r := newRig(t)
		defer r.stop()
		for _, id := range []string{"stays", "west", "east", "stranded"} {
			r.put(id, "Europe/Berlin") // 09:00 is at 07:00 UTC
		}
		r.put("elsewhere", "America/New_York") // 13:00 UTC
		c := r.create(&campaign.Spec{Name: "once", Audience: core.CampaignAudience{All: true}, LocalTime: "09:00", Now: true})
		time.Sleep(time.Hour)
		r.put("stranded", "Asia/Tokyo") // where it was 09:00 at 00:00 UTC, before the start
		time.Sleep(7 * time.Hour)
		r.put("west", "America/New_York") // had it in Berlin
		r.put("east", "Asia/Tokyo")
		r.put("late", "America/New_York") // was not there at the start
		time.Sleep(30 * time.Hour)
		got := r.made()
		for _, id := range []string{"stays", "west", "east", "stranded", "elsewhere"} {
			if len(got[id]) != 1 {
				t.Errorf("%s got it %d times: %v", id, len(got[id]), got[id])
			}
		}
		if len(got) != 5 {
			t.Errorf("%d people got it", len(got))
		}
		if end, err := r.m.Get(t.Context(), "a", c.ID); err != nil || end.State != core.CampaignCompleted || end.Progress(time.Now()).Totals.Expanded != 5 || end.Progress(time.Now()).People.Sent != 5 {
			t.Errorf("in the end: %+v %v", end, err)
		}
	})
}

// TestLeftOutStaysOut: whom `missed: skip` left out, and who changes without moving, does not get the campaign at its end.
func TestLeftOutStaysOut(t *testing.T) {
	t.Parallel()
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		sleepTo(time.Date(2000, 1, 3, 20, 0, 0, 0, time.UTC))
		r := newRig(t)
		defer r.stop()
		r.put("tokyo", "Asia/Tokyo") // where 18:00 was at 09:00 UTC
		r.put("la", "America/Los_Angeles")
		r.put("moves", "Asia/Tokyo")
		time.Sleep(time.Second)
		now := time.Now()
		c := &core.Campaign{ID: core.NewID(now), App: "a", State: core.CampaignScheduled, CreatedAt: now, Fence: 1, RunAt: now,
			CampaignSpec: core.CampaignSpec{Name: "x", Audience: core.CampaignAudience{All: true}, LocalTime: "18:00", Date: "2000-01-03", Missed: "skip", StartAt: now,
				Request: []byte(`{"Content":{"Title":"Good evening"},"Channels":["email"],"Priority":"bulk"}`)},
			CampaignLive: core.CampaignLive{NextAt: now.Add(-15 * time.Hour)}}
		if _, err := r.store.CreateCampaign(t.Context(), c, "", [32]byte{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		r.put("tokyo", "Asia/Tokyo") // changed, by its updated_at
		r.put("moves", "America/Los_Angeles")
		time.Sleep(20 * time.Hour)
		got := r.made()
		if len(got) != 2 || len(got["la"]) != 1 || len(got["moves"]) != 1 {
			t.Errorf("it was made for %v, not for la and moves once each", got)
		}
	})
}
