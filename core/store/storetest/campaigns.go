package storetest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

var campaignTests = []test{
	{"a campaign from its making to its end", campaignLife},
	{"a campaign in other hands is left alone", campaignFence},
	{"a campaign's idempotency key", campaignKey},
	{"cancelling a campaign", campaignCancel},
	{"a page that an opt-out or an erasure overtook", campaignStale},
	{"a page, a notification and an opt-out at once", campaignRace},
	{"apps with a recipient of one name", staleApps},
	{"an erasure that broke off", eraseAgain},
	{"a change of a campaign that is none", campaignUnchanged},
	{"a start while a campaign runs", campaignVoid},
	{"pausing a campaign", campaignPause},
	{"what a campaign has under way", campaignBusy},
	{"a campaign's counts follow receipts and erasures", campaignRecount},
	{"what a campaign waits for", campaignWaits},
	{"a campaign's occurrence", campaignOccur},
	{"parts of audiences", audienceParts},
	{"a topic's expansion joins its notification", campaignJoins},
}

func newCampaign(t testing.TB, s *store.Store) *core.Campaign {
	t.Helper()
	now := s.Now()
	c := &core.Campaign{ID: core.NewID(now), App: "shop", State: core.CampaignRunning, CreatedAt: now, Fence: 1, RunAt: now,
		CampaignSpec: core.CampaignSpec{Name: "spring", Audience: core.CampaignAudience{All: true}, Request: []byte(`{"Template":"x"}`), Missed: "run"},
		CampaignLive: core.CampaignLive{Rate: "5/s", PerSecond: 5, Bound: now}}
	if first, err := s.CreateCampaign(t.Context(), c, "", [32]byte{}); err != nil || first != nil {
		t.Fatalf("create: %+v %v", first, err)
	}
	return c
}

func take(t testing.TB, s *store.Store, w core.CampaignWake) *core.Campaign {
	t.Helper()
	c, err := s.TakeCampaign(t.Context(), w, lease)
	if err != nil {
		t.Fatalf("take: %v", err)
	}
	return c
}

// pageOf is a step that makes a delivery on two channels for each recipient but the last, who is skipped.
func pageOf(s *store.Store, c *core.Campaign, ids ...string) *core.CampaignPage {
	a := build(s, ask{})
	a.Notification.Skipped = []core.Skip{{To: len(ids) - 1, Recipient: ids[len(ids)-1], Channel: "email", Reason: core.SkipNoEndpoint}}
	for i, d := range core.NewIDs(s.Now(), 2*(len(ids)-1)) {
		kind, channel := "email", "email"
		if i%2 == 1 {
			kind, channel = "apns", "push"
		}
		a.Deliveries = append(a.Deliveries, core.Delivery{ID: d, Notification: a.Notification.ID, App: c.App, Channel: channel, Kind: kind, Route: kind, Recipient: ids[i/2],
			Address: ids[i/2] + "@example.com", State: core.Pending, MaxUnknown: 3, CreatedAt: a.Notification.CreatedAt, UpdatedAt: a.Notification.CreatedAt, ExpiresAt: a.Notification.ExpiresAt})
	}
	return &core.CampaignPage{Campaign: c.ID, Fence: c.Fence, Acceptance: a, People: len(ids), Skipped: 1, Cursor: ids[len(ids)-1], PacedTo: s.Now(), RunAt: s.Now().Add(lease)}
}

func expand(t testing.TB, s *store.Store, p *core.CampaignPage) *core.Campaign {
	t.Helper()
	c, _, err := s.Expand(t.Context(), p)
	if err != nil {
		t.Fatalf("expand: %v", err)
	}
	return c
}

// round claims a delivery's batch and settles it by one outcome.
func round(t testing.TB, s *store.Store, d *core.Delivery, fence int64, o providers.Outcome) *core.Round {
	t.Helper()
	r := claim(t, s, core.Wake{Batch: d.Batch, Fence: fence, Route: d.Route, Lane: providers.Normal})
	if r == nil {
		t.Fatalf("delivery %s: there is no round", d.ID)
	}
	settle(t, s, judge(r, all(o)))
	return r
}

func totals(t testing.TB, s *store.Store, c *core.Campaign) core.Totals {
	t.Helper()
	if _, err := s.RecountCampaign(t.Context(), c.ID, 100); err != nil {
		t.Fatalf("recount: %v", err)
	}
	now, err := s.Campaign(t.Context(), c.App, c.ID)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	if p := now.Totals.People; p.Total()+now.Totals.Skipped != now.Totals.Expanded {
		t.Errorf("conservation: %d expanded, not %d and %d skipped", now.Totals.Expanded, p.Total(), now.Totals.Skipped)
	}
	return now.Totals
}

func campaignLife(t *testing.T, s *store.Store) {
	made := newCampaign(t, s)
	got, err := s.Campaign(t.Context(), "shop", made.ID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(made, got); diff != "" {
		t.Errorf("it came back changed: %s", diff)
	}
	if _, err := s.Campaign(t.Context(), "other", made.ID); !errors.Is(err, core.ErrNotFound) {
		t.Errorf("another app sees it: %v", err)
	}
	wakes, err := s.DueCampaigns(t.Context(), 10, time.Minute)
	if err != nil || len(wakes) != 1 || wakes[0].Campaign != made.ID {
		t.Fatalf("due: %+v %v", wakes, err)
	}
	if again, _ := s.DueCampaigns(t.Context(), 10, time.Minute); len(again) != 0 {
		t.Errorf("due twice: %+v", again)
	}
	c := take(t, s, wakes[0])
	if c == nil || take(t, s, wakes[0]) != nil {
		t.Fatalf("a wake is good once: %+v", c)
	}
	p := pageOf(s, c, "a", "b", "c")
	after := expand(t, s, p)
	want := core.Totals{Expanded: 3, Skipped: 1, People: core.Counts{Pending: 2}, Deliveries: core.Counts{Pending: 4}}
	if after.Cursor != "c" || after.Totals != want {
		t.Errorf("after the page: %+v", after.CampaignLive)
	}
	if due, held, sending, err := s.CampaignBusy(t.Context(), c.ID); due != 2 || held != 0 || sending != 0 || err != nil {
		t.Errorf("busy: %d %d %d %v", due, held, sending, err)
	}
	d := p.Acceptance.Deliveries
	round(t, s, &d[0], 1, providers.Accepted)
	want.People, want.Deliveries = core.Counts{Pending: 2}, core.Counts{Pending: 2, Sent: 2}
	if got := totals(t, s, c); got != want {
		t.Errorf("mails sent: %+v", got)
	}
	round(t, s, &d[1], 1, providers.Rejected)
	want.People, want.Deliveries = core.Counts{Sent: 2}, core.Counts{Sent: 2, Failed: 2}
	if got := totals(t, s, c); got != want {
		t.Errorf("all done: %+v", got)
	}
	var lines []string
	err = s.CampaignResults(t.Context(), c, func(r *core.CampaignResult) error {
		lines = append(lines, r.Recipient+" "+r.Channel+" "+r.State.String()+r.Skip)
		return nil
	})
	if diff := cmp.Diff([]string{"c email no_endpoint", "a email sent", "a push failed", "b email sent", "b push failed"}, lines); diff != "" || err != nil {
		t.Errorf("results: %s %v", diff, err)
	}
	list, _, err := s.Notifications(t.Context(), core.NotificationFilter{App: "shop", Campaign: c.ID})
	if err != nil || len(list) != 1 || list[0].ID != p.Acceptance.Notification.ID {
		t.Errorf("its notifications: %+v %v", list, err)
	}
	met, err := s.CampaignMet(t.Context(), c, []string{"a", "c", "d", "email", "no_endpoint"}) // two of them also stand in what it skipped
	if diff := cmp.Diff(map[string]bool{"a": true, "c": true}, met); diff != "" || err != nil {
		t.Errorf("met: %s %v", diff, err)
	}
}

func campaignFence(t *testing.T, s *store.Store) {
	made := newCampaign(t, s)
	c := take(t, s, core.CampaignWake{Campaign: made.ID, Fence: 1})
	late := pageOf(s, c, "a", "b")
	next := take(t, s, core.CampaignWake{Campaign: made.ID, Fence: c.Fence})
	if next == nil {
		t.Fatal("it was not taken over")
	}
	if expand(t, s, late) != nil {
		t.Error("a stale planner wrote a page")
	}
	if k, err := s.KeepCampaign(t.Context(), c.ID, c.Fence, func(c *core.Campaign) { c.Cursor = "z" }); k != nil || err != nil {
		t.Errorf("a stale planner kept something: %+v %v", k, err)
	}
	if _, err := s.Notification(t.Context(), "shop", late.Acceptance.Notification.ID); !errors.Is(err, core.ErrNotFound) {
		t.Errorf("the stale page's notification is there: %v", err)
	}
	if after := expand(t, s, pageOf(s, next, "a", "b")); after == nil || after.Totals.Expanded != 2 || after.Cursor != "b" {
		t.Errorf("the new one's page: %+v", after)
	}
}

func campaignKey(t *testing.T, s *store.Store) {
	make := func(body string) (made, first *core.Campaign, err error) {
		now := s.Now()
		c := &core.Campaign{ID: core.NewID(now), App: "shop", State: core.CampaignDraft, CreatedAt: now, Fence: 1, CampaignLive: core.CampaignLive{Rate: "5/s"}}
		first, err = s.CreateCampaign(t.Context(), c, "k", sha256.Sum256([]byte(body)))
		return c, first, err
	}
	if _, err := s.CampaignAnswered(t.Context(), "shop", "k", [32]byte{}); !errors.Is(err, core.ErrNotFound) {
		t.Errorf("a free key: %v", err)
	}
	made, first, err := make("a")
	if err != nil || first != nil {
		t.Fatalf("first: %+v %v", first, err)
	}
	// It is answered as it was made, whatever became of it.
	if _, err := s.UpdateCampaign(t.Context(), "shop", made.ID, func(c *core.Campaign) error {
		c.State, c.Rate = core.CampaignCancelled, "9/s"
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	_, again, err := make("a")
	if err != nil || again == nil || again.ID != made.ID || again.State != core.CampaignDraft || again.Rate != "5/s" {
		t.Errorf("again: %+v %v", again, err)
	}
	again, err = s.CampaignAnswered(t.Context(), "shop", "k", sha256.Sum256([]byte("a")))
	if err != nil || again.ID != made.ID || again.State != core.CampaignDraft || again.Rate != "5/s" {
		t.Errorf("asked for: %+v %v", again, err)
	}
	if _, _, err := make("b"); !errors.Is(err, core.ErrKeyReused) {
		t.Errorf("another body: %v", err)
	}
	if _, err := s.CampaignAnswered(t.Context(), "shop", "k", sha256.Sum256([]byte("b"))); !errors.Is(err, core.ErrKeyReused) {
		t.Errorf("asked for with another body: %v", err)
	}
	if all, _, err := s.Campaigns(t.Context(), core.CampaignFilter{App: "shop"}); len(all) != 1 || err != nil {
		t.Errorf("%d campaigns: %v", len(all), err)
	}
}

// What changes nothing leaves the campaign to whoever expands it; what changes anything takes it away.
func campaignUnchanged(t *testing.T, s *store.Store) {
	c := take(t, s, core.CampaignWake{Campaign: newCampaign(t, s).ID, Fence: 1})
	got, err := s.UpdateCampaign(t.Context(), "shop", c.ID, func(*core.Campaign) error { return nil })
	if err != nil || got.Fence != c.Fence || got.State != c.State {
		t.Fatalf("nothing changed: %+v %v", got, err)
	}
	if c = expand(t, s, pageOf(s, c, "a", "b")); c == nil {
		t.Fatal("who expands it lost it by a change that was none")
	}
	if got, err = s.UpdateCampaign(t.Context(), "shop", c.ID, func(c *core.Campaign) error { c.Rate = "9/s"; return nil }); err != nil || got.Fence == c.Fence {
		t.Errorf("another rate: %+v %v", got, err)
	}
	if expand(t, s, pageOf(s, c, "c", "d")) != nil {
		t.Error("it was expanded by the rate of before")
	}
	legs := []core.Leg{{At: s.Now(), Zones: []string{"UTC"}}}
	for i, change := range []func(c *core.Campaign){
		func(c *core.Campaign) { c.Legs = legs },
		func(c *core.Campaign) { c.Legs[0].Zones[0] = "Asia/Tokyo" }, // in place
	} {
		before := got.Fence
		if got, err = s.UpdateCampaign(t.Context(), "shop", c.ID, func(c *core.Campaign) error { change(c); return nil }); err != nil || got.Fence == before {
			t.Errorf("change %d of the legs: %+v %v", i, got, err)
		}
	}
	if got, err = s.Campaign(t.Context(), "shop", c.ID); err != nil || len(got.Legs) != 1 || got.Legs[0].Zones[0] != "Asia/Tokyo" {
		t.Errorf("the legs are %+v %v", got.Legs, err)
	}
}

// A process that has the store to itself does not wait out the lease of the one before.
func campaignVoid(t *testing.T, s *store.Store) {
	c := take(t, s, core.CampaignWake{Campaign: newCampaign(t, s).ID, Fence: 1})
	if wakes, err := s.DueCampaigns(t.Context(), 10, time.Minute); err != nil || len(wakes) != 0 {
		t.Fatalf("due while it is taken: %+v %v", wakes, err)
	}
	if err := s.VoidCampaigns(t.Context()); err != nil {
		t.Fatal(err)
	}
	wakes, err := s.DueCampaigns(t.Context(), 10, time.Minute)
	if err != nil || len(wakes) != 1 || wakes[0].Campaign != c.ID || wakes[0].Fence <= c.Fence {
		t.Errorf("due after the start: %+v %v", wakes, err)
	}
}

func campaignCancel(t *testing.T, s *store.Store) {
	c := take(t, s, core.CampaignWake{Campaign: newCampaign(t, s).ID, Fence: 1})
	p := pageOf(s, c, "a", "b", "c", "d")
	c = expand(t, s, p)
	d := p.Acceptance.Deliveries
	round(t, s, &d[0], 1, providers.Accepted)
	sending := claim(t, s, core.Wake{Batch: d[1].Batch, Fence: 1, Route: d[1].Route})
	p2 := pageOf(s, c, "e", "f", "g")
	c = expand(t, s, p2)
	got, err := s.UpdateCampaign(t.Context(), "shop", c.ID, func(c *core.Campaign) error { c.State = core.CampaignCancelled; return nil })
	if err != nil || got.State != core.CampaignCancelled {
		t.Fatalf("cancel: %+v %v", got, err)
	}
	if expand(t, s, pageOf(s, got, "h", "i")) != nil {
		t.Error("a cancelled campaign was expanded")
	}
	if r := claim(t, s, core.Wake{Batch: p2.Acceptance.Deliveries[0].Batch, Fence: 1, Route: "email"}); r != nil {
		t.Error("a new attempt began after the cancel")
	}
	settle(t, s, judge(sending, func(i int) providers.Result {
		return providers.Result{Outcome: []providers.Outcome{providers.Accepted, providers.Deferred, providers.Unknown}[i]}
	}))
	want := core.Totals{Expanded: 7, Skipped: 2, People: core.Counts{Sent: 3, Cancelled: 2}, Deliveries: core.Counts{Sent: 4, Cancelled: 6}}
	if got := totals(t, s, c); got != want {
		t.Errorf("after the cancel: %+v", got)
	}
}

func campaignPause(t *testing.T, s *store.Store) {
	c := take(t, s, core.CampaignWake{Campaign: newCampaign(t, s).ID, Fence: 1})
	p := pageOf(s, c, "a", "b")
	c = expand(t, s, p)
	other := record(t, s, ask{n: 1})
	set := func(to core.CampaignState) {
		t.Helper()
		if _, err := s.UpdateCampaign(t.Context(), "shop", c.ID, func(c *core.Campaign) error { c.State = to; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	set(core.CampaignPaused)
	if expand(t, s, pageOf(s, c, "x", "y")) != nil {
		t.Error("a paused campaign was expanded")
	}
	if r := claim(t, s, wakeOf(other)); r == nil || r.Paused {
		t.Error("another's batch is paused")
	}
	d := &p.Acceptance.Deliveries[0]
	r := claim(t, s, core.Wake{Batch: d.Batch, Fence: 1, Route: d.Route})
	if r == nil || !r.Paused {
		t.Fatalf("its batch is not paused: %+v", r)
	}
	st := &core.Settlement{Batch: r.Batch, Worker: "w1", At: r.Now}
	for _, d := range r.Deliveries {
		st.Verdicts = append(st.Verdicts, d.Hold(core.CodePaused, s.Now().Add(30*time.Second), s.Now()))
	}
	st.Split(st.At, false)
	settle(t, s, st)
	set(core.CampaignRunning)
	wakes, err := s.Due(t.Context(), d.Route, providers.Normal, 10, nil)
	if err != nil || len(wakes) != 1 || wakes[0].Batch != d.Batch {
		t.Fatalf("what the pause held is not due: %+v %v", wakes, err)
	}
	if r := claim(t, s, wakes[0]); r == nil || r.Paused {
		t.Errorf("it is paused yet: %+v", r)
	}
}

func campaignRecount(t *testing.T, s *store.Store) {
	for _, id := range []string{"a", "b"} {
		if _, err := s.PutRecipient(t.Context(), &core.Recipient{App: "shop", ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	c := take(t, s, core.CampaignWake{Campaign: newCampaign(t, s).ID, Fence: 1})
	p := pageOf(s, c, "a", "b", "c")
	c = expand(t, s, p)
	d := p.Acceptance.Deliveries
	round(t, s, &d[0], 1, providers.Accepted)
	round(t, s, &d[1], 1, providers.Accepted)
	if got := totals(t, s, c); got.People.Sent != 2 {
		t.Fatalf("sent: %+v", got)
	}
	for i, e := range []providers.Event{providers.EventDelivered, providers.EventBounced} {
		if found, err := s.Receipt(t.Context(), d[2*i].Route, providers.Receipt{ID: d[2*i].ID.String(), Event: e}); !found || err != nil {
			t.Fatalf("receipt: %t %v", found, err)
		}
	}
	want := core.Totals{Expanded: 3, Skipped: 1, People: core.Counts{Delivered: 1, Sent: 1}, Deliveries: core.Counts{Delivered: 1, Sent: 2, Failed: 1}}
	if got := totals(t, s, c); got != want {
		t.Errorf("after receipts: %+v", got)
	}
	if err := s.DeleteRecipient(t.Context(), "shop", "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Receipt(t.Context(), d[3].Route, providers.Receipt{ID: d[3].ID.String(), Event: providers.EventDelivered}); err != nil {
		t.Fatal(err)
	}
	want.People, want.Deliveries = core.Counts{Delivered: 2}, core.Counts{Delivered: 2, Sent: 1, Failed: 1}
	if got := totals(t, s, c); got != want {
		t.Errorf("after an erasure: %+v", got)
	}
}

// campaignWaits: when the last of what is pending is due is known at once of what was made for later, and with the next
// count of what is to be tried again.
func campaignWaits(t *testing.T, s *store.Store) {
	c := take(t, s, core.CampaignWake{Campaign: newCampaign(t, s).ID, Fence: 1})
	p := pageOf(s, c, "a", "b", "c")
	d := p.Acceptance.Deliveries
	late := s.Now().Add(time.Hour)
	d[3].DueAt, d[3].Held = late, core.HeldQuiet
	if c = expand(t, s, p); !c.LastDue.Equal(late) {
		t.Errorf("made: it waits till %s, not %s", c.LastDue, late)
	}
	if _, err := s.Cancel(t.Context(), "shop", p.Acceptance.Notification.ID); err != nil {
		t.Fatal(err)
	}
	totals(t, s, c)
	if c, err := s.Campaign(t.Context(), "shop", c.ID); err != nil || c.LastDue.After(s.Now()) {
		t.Errorf("cancelled: it waits till %s: %v", c.LastDue, err)
	}
	p = pageOf(s, c, "d", "e", "f")
	c = expand(t, s, p)
	d = p.Acceptance.Deliveries
	round(t, s, &d[0], 1, providers.Deferred)
	totals(t, s, c)
	if c, err := s.Campaign(t.Context(), "shop", c.ID); err != nil || !c.LastDue.After(s.Now()) {
		t.Errorf("to be tried again: it waits till %s: %v", c.LastDue, err)
	}
}

func campaignOccur(t *testing.T, s *store.Store) {
	parent := newCampaign(t, s)
	c, err := s.UpdateCampaign(t.Context(), "shop", parent.ID, func(c *core.Campaign) error { c.State = core.CampaignScheduled; return nil })
	if err != nil {
		t.Fatal(err)
	}
	c = take(t, s, core.CampaignWake{Campaign: c.ID, Fence: c.Fence})
	child := &core.Campaign{ID: c.ID.Derived(s.Now(), 1, 0), App: "shop", Parent: c.ID, State: core.CampaignScheduled, CreatedAt: s.Now(), Fence: 1, RunAt: s.Now()}
	for n, wantStale := range []bool{false, true} {
		stale, err := s.Occur(t.Context(), c, child)
		if err != nil || stale != wantStale {
			t.Fatalf("%d: stale %t %v", n, stale, err)
		}
		take(t, s, core.CampaignWake{Campaign: c.ID, Fence: c.Fence})
	}
	kids, _, err := s.Campaigns(t.Context(), core.CampaignFilter{App: "shop", Parent: c.ID})
	if err != nil || len(kids) != 1 || kids[0].ID != child.ID {
		t.Errorf("its occurrences: %+v %v", kids, err)
	}
}

// audienceParts reads audiences by time zone and by when somebody moved; all, topic and list are read in people.go.
func audienceParts(t *testing.T, s *store.Store) {
	zones := []string{"Europe/Berlin", "Asia/Tokyo", ""}
	for i := range 12 {
		r := &core.Recipient{App: "shop", ID: fmt.Sprintf("r%02d", i), Timezone: zones[i%3], Endpoints: []core.Endpoint{{Kind: "email", Address: fmt.Sprintf("%d@example.com", i)}}}
		if _, err := s.PutRecipient(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if i >= 6 {
			join(t, s, "vip", r.ID)
		}
	}
	bound := s.Now()
	until(t, "the clock to go on", func() bool { return s.Now().After(bound) })
	// r05a comes and moves; r04 and r07 change, and stay where they are.
	for _, x := range []core.Recipient{{ID: "r05a"}, {ID: "r05a", Timezone: "Asia/Tokyo"}, {ID: "r04", Timezone: "Asia/Tokyo", Locale: "ja"}} {
		if x.App = "shop"; x.ID == "r04" {
			x.Endpoints = []core.Endpoint{{Kind: "email", Address: "4@example.com"}}
		}
		if _, err := s.PutRecipient(t.Context(), &x); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.PutPreferences(t.Context(), "shop", "r07", core.Preferences{"*": {"*": true}}, &core.Rules{}); err != nil {
		t.Fatal(err)
	}
	join(t, s, "vip", "r05a")
	listed := []string{"ghost", "r01", "r02", "r03", "r04", "r05a", "r07", "r08"}
	for name, c := range map[string]struct {
		a     core.Audience
		want  []string
		size  int
		zones []string
	}{
		"all":           {core.Audience{Zones: []string{"", "Asia/Tokyo"}}, []string{"r01", "r02", "r04", "r05", "r07", "r08", "r10", "r11"}, 12, []string{"", "Asia/Tokyo", "Europe/Berlin"}},
		"a topic":       {core.Audience{Topic: "vip", Zones: []string{"Asia/Tokyo"}}, []string{"r07", "r10"}, 6, []string{"", "Asia/Tokyo", "Europe/Berlin"}},
		"a list":        {core.Audience{Recipients: listed, Zones: []string{"Asia/Tokyo"}}, []string{"r01", "r04", "r07"}, 8, []string{"Asia/Tokyo"}},
		"moved":         {core.Audience{Since: bound, Until: s.Now()}, []string{"r05a"}, 13, []string{"", "Asia/Tokyo", "Europe/Berlin"}},
		"moved, topic":  {core.Audience{Topic: "vip", Since: bound, Until: s.Now()}, []string{"r05a"}, 7, []string{"", "Asia/Tokyo", "Europe/Berlin"}},
		"moved, a list": {core.Audience{Recipients: listed, Since: bound, Until: s.Now()}, []string{"r05a"}, 8, []string{"Asia/Tokyo"}},
		"no zone":       {core.Audience{Zones: []string{"Mars"}}, nil, 12, []string{"", "Asia/Tokyo", "Europe/Berlin"}},
	} {
		if c.a.App = "shop"; c.a.Until.IsZero() {
			c.a.Until = bound
		}
		for _, limit := range []int{1, 5, 100} {
			ids, _, addresses := read(t, s, c.a, limit)
			if diff := cmp.Diff(c.want, ids); diff != "" {
				t.Errorf("%s by %d: %s", name, limit, diff)
			}
			if len(ids) > 1 && len(addresses) != len(ids) {
				t.Errorf("%s by %d: addresses %v", name, limit, addresses)
			}
		}
		if n, err := s.AudienceSize(t.Context(), c.a); n != c.size || err != nil {
			t.Errorf("%s: size %d, not %d: %v", name, n, c.size, err)
		}
		if got, err := s.AudienceZones(t.Context(), c.a); err != nil || cmp.Diff(c.zones, got) != "" {
			t.Errorf("%s: zones %q, not %q: %v", name, got, c.zones, err)
		}
		c.a.Bare = true
		if _, _, addresses := read(t, s, c.a, 5); len(addresses) > 0 && c.a.Recipients == nil {
			t.Errorf("%s, bare: %v", name, addresses)
		}
	}
}

func campaignJoins(t *testing.T, s *store.Store) {
	a := build(s, ask{n: 1})
	a.Expansions = []core.Campaign{core.NewExpansion(&a.Notification, []string{"vip"}, nil, []byte(`{}`))}
	if _, err := s.Record(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	wakes, err := s.DueCampaigns(t.Context(), 10, time.Minute)
	if err != nil || len(wakes) != 1 {
		t.Fatalf("due: %+v %v", wakes, err)
	}
	c := take(t, s, wakes[0])
	if c, err = s.KeepCampaign(t.Context(), c.ID, c.Fence, func(c *core.Campaign) { c.State, c.Bound = core.CampaignRunning, s.Now() }); err != nil || !slices.Equal(c.Audience.Topics, []string{"vip"}) {
		t.Fatalf("started: %+v %v", c, err)
	}
	if list, _, err := s.Campaigns(t.Context(), core.CampaignFilter{App: "shop"}); err != nil || len(list) != 0 {
		t.Errorf("it is listed as a campaign: %+v %v", list, err)
	}
	p := pageOf(s, c, "a", "b", "c")
	p.Acceptance.Notification.ID = a.Notification.ID
	for i := range p.Acceptance.Deliveries {
		p.Acceptance.Deliveries[i].Notification = a.Notification.ID
	}
	c = expand(t, s, p)
	v, err := s.Notification(t.Context(), "shop", a.Notification.ID)
	if err != nil || v.Counts.Pending != 5 || len(v.Skipped) != 2 {
		t.Errorf("the notification: %+v %v", v, err)
	}
	if n, err := s.Cancel(t.Context(), "shop", a.Notification.ID); n != 5 || err != nil {
		t.Errorf("cancelled %d: %v", n, err)
	}
	if expand(t, s, pageOf(s, c, "x", "y")) != nil {
		t.Error("its topic was resolved further")
	}
}

// campaignBusy: what was made to be due later, a fallback's next step, is not held; what a service put off is.
func campaignBusy(t *testing.T, s *store.Store) {
	c := take(t, s, core.CampaignWake{Campaign: newCampaign(t, s).ID, Fence: 1})
	p := pageOf(s, c, "a", "b")
	mail, push := &p.Acceptance.Deliveries[0], &p.Acceptance.Deliveries[1]
	push.DueAt, push.Held = s.Now().Add(time.Hour), core.HeldFallback
	push.ExpiresAt, mail.ExpiresAt = s.Now().Add(2*time.Hour), s.Now().Add(2*time.Hour)
	expand(t, s, p)
	busy := func(what string, due, held int) {
		t.Helper()
		if d, h, _, err := s.CampaignBusy(t.Context(), c.ID); d != due || h != held || err != nil {
			t.Errorf("%s: %d due and %d held, want %d and %d: %v", what, d, h, due, held, err)
		}
	}
	busy("made", 1, 0)
	round(t, s, mail, 1, providers.Deferred)
	busy("put off", 0, 1)
}
