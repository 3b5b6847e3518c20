package storetest

import (
	"errors"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

func acquire(t *testing.T, s *store.Store) core.Lease {
	t.Helper()
	l, ok, err := s.Acquire(t.Context(), "retention", "test", time.Hour)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	return l
}

// sweepAll is a whole pass.
func sweepAll(t *testing.T, s *store.Store, l core.Lease, keep time.Duration) (all store.Swept, calls int) {
	t.Helper()
	for !all.Done {
		one, err := s.Sweep(t.Context(), l, keep, all.Next)
		if err != nil {
			t.Fatal(err)
		}
		if one.Deliveries > 500 || one.Keys > 500 {
			t.Errorf("one transaction removed %+v", one)
		}
		all.Keys, all.Notifications, all.Deliveries = all.Keys+one.Keys, all.Notifications+one.Notifications, all.Deliveries+one.Deliveries
		all.Next, all.Done = one.Next, one.Done
		if calls++; calls > 1000 {
			t.Fatal("no end")
		}
	}
	return all, calls
}

const ago = -time.Minute // a retention that is over already

func vanished(t *testing.T, s *store.Store, a *core.Acceptance) bool {
	t.Helper()
	_, err := s.Notification(t.Context(), a.Notification.App, a.Notification.ID)
	if err != nil && !errors.Is(err, core.ErrNotFound) {
		t.Fatal(err)
	}
	return err != nil
}

func sweep(t *testing.T, s *store.Store) {
	done := record(t, s, ask{n: 2, key: "k"})
	settle(t, s, judge(claim(t, s, wakeOf(done)), all(providers.Accepted)))
	open := record(t, s, ask{n: 1})
	after := record(t, s, ask{n: 1})
	settle(t, s, judge(claim(t, s, wakeOf(after)), all(providers.Rejected)))
	l := acquire(t, s)
	lost := l
	lost.Fence--
	if _, err := s.Sweep(t.Context(), lost, ago, core.ID{}); !errors.Is(err, core.ErrLeaseLost) {
		t.Errorf("without its lease: %v", err)
	}
	for _, keep := range []time.Duration{0, time.Hour} {
		if n, _ := sweepAll(t, s, l, keep); n.Notifications+n.Deliveries+n.Keys > 0 || vanished(t, s, done) {
			t.Errorf("kept for %s, but: %+v", keep, n)
		}
	}
	if n, _ := sweepAll(t, s, l, ago); n.Notifications != 2 || n.Deliveries != 3 || !vanished(t, s, done) || !vanished(t, s, after) {
		t.Errorf("two are finished: %+v", n)
	}
	if c := counts(t, s, open); c.Pending != 1 {
		t.Errorf("%+v", c)
	}
	r := claim(t, s, wakeOf(open))
	if r == nil || len(r.Contents) != 1 {
		t.Errorf("what is pending lost its content: %+v", r)
	}
}

// sweepLarge: a notification that is too large for one transaction disappears at once, and its deliveries
// after it; those beside it stay.
func sweepLarge(t *testing.T, s *store.Store) {
	large, small, open := record(t, s, ask{n: 1203}), record(t, s, ask{n: 3}), record(t, s, ask{n: 1})
	for _, a := range []*core.Acceptance{large, small} {
		done := map[core.ID]bool{}
		for i := range a.Deliveries {
			w := core.Wake{Batch: a.Deliveries[i].Batch, Fence: 1, Route: "mail", Lane: providers.Normal}
			if !done[w.Batch] {
				settle(t, s, judge(claim(t, s, w), all(providers.Accepted)))
			}
			done[w.Batch] = true
		}
	}
	l := acquire(t, s)
	one, err := s.Sweep(t.Context(), l, ago, core.ID{})
	if err != nil || one.Done || one.Notifications != 1 || !vanished(t, s, large) {
		t.Errorf("the first call: %+v %v", one, err)
	}
	n, calls := sweepAll(t, s, l, ago)
	if n.Deliveries != 1206 || n.Notifications != 1 || calls < 4 || !vanished(t, s, small) || vanished(t, s, open) {
		t.Errorf("%d calls removed %+v", calls, n)
	}
	if n, _ := sweepAll(t, s, l, ago); n.Deliveries+n.Notifications > 0 {
		t.Errorf("the pass after removed %+v", n)
	}
}

// sweepChange: what heard something of late is kept as long again.
func sweepChange(t *testing.T, s *store.Store) {
	quiet, heard := record(t, s, ask{n: 1}), record(t, s, ask{n: 1})
	for _, a := range []*core.Acceptance{quiet, heard} {
		settle(t, s, judge(claim(t, s, wakeOf(a)), all(providers.Accepted)))
	}
	mark := s.Now().Add(10 * time.Millisecond) // a settlement is dated by its judge
	const while = 2 * time.Second              // of which the sweeps, each of which takes its time from its own clock, take a part
	until(t, "time enough after the mark", func() bool { return s.Now().After(mark.Add(while)) })
	found, err := s.Receipt(t.Context(), "mail", providers.Receipt{ID: heard.Deliveries[0].ID.String(), Event: providers.EventDelivered})
	if err != nil || !found {
		t.Fatal(found, err)
	}
	sweepAll(t, s, acquire(t, s), s.Now().Sub(mark))
	if !vanished(t, s, quiet) || vanished(t, s, heard) {
		t.Errorf("quiet is gone: %v, heard of is gone: %v", vanished(t, s, quiet), vanished(t, s, heard))
	}
}

// sweepCampaigns: a campaign goes when it was over for long enough and its pages and occurrences are gone; one
// that is not over stays however old it is.
func sweepCampaigns(t *testing.T, s *store.Store) {
	end := func(c *core.Campaign, at time.Time) {
		t.Helper()
		_, err := s.UpdateCampaign(t.Context(), "shop", c.ID, func(c *core.Campaign) error {
			c.State, c.EndedAt = core.CampaignCompleted, at
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	child := func(of *core.Campaign) *core.Campaign {
		t.Helper()
		c := *of
		c.ID, c.Parent = core.NewID(s.Now()), of.ID
		if _, err := s.CreateCampaign(t.Context(), &c, "", [32]byte{}); err != nil {
			t.Fatal(err)
		}
		return &c
	}
	now := s.Now()
	old, fresh, running, parent := newCampaign(t, s), newCampaign(t, s), newCampaign(t, s), newCampaign(t, s)
	occurrence := child(parent)
	paged := newCampaign(t, s)
	page := pageOf(s, take(t, s, core.CampaignWake{Campaign: paged.ID, Fence: 1}), "a", "b")
	expand(t, s, page)
	for i := range page.Acceptance.Deliveries {
		round(t, s, &page.Acceptance.Deliveries[i], 1, providers.Accepted)
	}
	for _, c := range []*core.Campaign{old, parent, occurrence, paged} {
		end(c, now)
	}
	end(fresh, now.Add(time.Hour)) // ends after the others, that is
	l := acquire(t, s)
	lost := l
	lost.Fence--
	if _, _, _, err := s.SweepCampaigns(t.Context(), lost, ago, core.ID{}); !errors.Is(err, core.ErrLeaseLost) {
		t.Errorf("without its lease: %v", err)
	}
	left := func() map[core.ID]bool {
		t.Helper()
		all, _, err := s.Campaigns(t.Context(), core.CampaignFilter{App: "shop", Page: core.Page{Limit: 100}})
		if err != nil {
			t.Fatal(err)
		}
		out := map[core.ID]bool{}
		for i := range all {
			out[all[i].ID] = true
		}
		return out
	}
	for _, pass := range []struct {
		keep time.Duration
		gone int
		left []*core.Campaign
	}{
		{0, 0, []*core.Campaign{old, fresh, running, parent, occurrence, paged}},
		{time.Hour, 0, []*core.Campaign{old, fresh, running, parent, occurrence, paged}},
		{ago, 2, []*core.Campaign{fresh, running, parent, paged}},
		{ago, 1, []*core.Campaign{fresh, running, paged}}, // its occurrence is gone
	} {
		n, _, more, err := s.SweepCampaigns(t.Context(), l, pass.keep, core.ID{})
		if err != nil || n != pass.gone || more {
			t.Errorf("kept for %s: %d removed, more %v, %v", pass.keep, n, more, err)
		}
		have := left()
		for _, c := range pass.left {
			if !have[c.ID] {
				t.Errorf("kept for %s: %s is gone", pass.keep, c.ID)
			}
		}
		if len(have) != len(pass.left) {
			t.Errorf("kept for %s: %d are left, not %d", pass.keep, len(have), len(pass.left))
		}
	}
	sweepAll(t, s, l, ago)
	if n, _, _, err := s.SweepCampaigns(t.Context(), l, ago, core.ID{}); err != nil || n != 1 || left()[paged.ID] {
		t.Errorf("after its pages: %d removed, %v", n, err)
	}
}
