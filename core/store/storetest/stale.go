package storetest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// readPage is a step that was made for everybody in a topic, as they are now.
func readPage(t *testing.T, s *store.Store, c *core.Campaign, topic string) *core.CampaignPage {
	t.Helper()
	found, err := s.AudiencePage(t.Context(), core.Audience{App: "shop", Topic: topic, Until: s.Now()}, "", 100)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for i := range found.Recipients {
		ids = append(ids, found.Recipients[i].ID)
	}
	p := pageOf(s, c, ids...)
	for i := range found.Recipients {
		p.Acceptance.Known = append(p.Acceptance.Known, &found.Recipients[i])
	}
	return p
}

// enrol puts recipients into a topic.
func enrol(t *testing.T, s *store.Store, topic string, ids ...string) {
	t.Helper()
	for _, id := range ids {
		put(t, s, id, id+"@example.com")
		if _, err := s.PutTopicRecipient(t.Context(), "shop", topic, id); err != nil {
			t.Fatal(err)
		}
	}
}

func taken(t *testing.T, s *store.Store) *core.Campaign {
	t.Helper()
	return take(t, s, core.CampaignWake{Campaign: newCampaign(t, s).ID, Fence: 1})
}

// campaignStale: what is answered after a page was read is not overtaken by it, and what else changes is no matter.
func campaignStale(t *testing.T, s *store.Store) {
	no := core.Preferences{"*": {"*": false}}
	erase := func(id string) error { return s.DeleteRecipient(t.Context(), "shop", id) }
	bring := func(id string, p core.Preferences) error {
		_, err := s.ImportRecipients(t.Context(), "shop", []core.Import{{Recipient: core.Recipient{ID: id, Preferences: p}}}, rules)
		return err
	}
	for i, c := range []struct {
		name   string
		before core.Preferences
		change func(id string) error
		stale  bool
	}{
		{"an opt-out", nil, func(id string) error { return s.PutPreferences(t.Context(), "shop", id, no, rules) }, true},
		{"a channel less", core.Preferences{"promo": {"push": false}}, func(id string) error {
			return s.Unsubscribe(t.Context(), core.Unsubscription{App: "shop", Recipient: id, Category: "promo", Channel: "email"}, rules)
		}, true},
		{"an import of an opt-out", nil, func(id string) error { return bring(id, no) }, true},
		{"an erasure", nil, erase, true},
		{"an erasure of who is back by now", nil, func(id string) error { return errors.Join(erase(id), bring(id, nil)) }, true},
		{"the same choice again", no, func(id string) error { return s.PutPreferences(t.Context(), "shop", id, no, rules) }, false},
		{"another locale", no, func(id string) error {
			_, err := s.UpdateRecipient(t.Context(), "shop", id, func(x *core.Recipient) error { x.Locale = "fr"; return nil })
			return err
		}, false},
		{"an import without a choice", no, func(id string) error { return bring(id, nil) }, false},
	} {
		ids := []string{fmt.Sprintf("%d-a", i), fmt.Sprintf("%d-b", i), fmt.Sprintf("%d-z", i)}
		topic := fmt.Sprintf("topic-%d", i)
		enrol(t, s, topic, ids...)
		for _, id := range []string{ids[1], ids[2]} { // who gets something, and who was skipped
			camp := taken(t, s)
			if err := s.PutPreferences(t.Context(), "shop", id, c.before, rules); err != nil {
				t.Fatal(err)
			}
			p := readPage(t, s, camp, topic)
			if err := c.change(id); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			alone := build(s, ask{n: 1, recipient: id, key: id})
			alone.Known = p.Acceptance.Known
			if _, err := s.Record(t.Context(), alone); errors.Is(err, core.ErrStale) != c.stale || err != nil && !c.stale {
				t.Errorf("%s: a notification: %v", c.name, err)
			}
			_, recorded, err := s.Expand(t.Context(), p)
			if errors.Is(err, core.ErrStale) != c.stale || err != nil && !c.stale {
				t.Errorf("%s: %v", c.name, err)
			}
			if !c.stale {
				continue
			}
			now, err := s.Campaign(t.Context(), "shop", camp.ID)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(camp.CampaignLive, now.CampaignLive); diff != "" || len(recorded.Wakes) != 0 {
				t.Errorf("%s: it was written all the same: %s %+v", c.name, diff, recorded)
			}
			if _, err := s.Notification(t.Context(), "shop", p.Acceptance.Notification.ID); !errors.Is(err, core.ErrNotFound) {
				t.Errorf("%s: its notification: %v", c.name, err)
			}
			if _, err := s.Notification(t.Context(), "shop", alone.Notification.ID); !errors.Is(err, core.ErrNotFound) {
				t.Errorf("%s: the notification: %v", c.name, err)
			}
			enrol(t, s, topic, id)
			p = readPage(t, s, camp, topic) // read again it is good
			alone = build(s, ask{n: 1, recipient: id, key: id})
			alone.Known = p.Acceptance.Known
			if rec, err := s.Record(t.Context(), alone); err != nil || rec.Replayed { // its key was not taken
				t.Errorf("%s: the notification that was made anew: %+v, %v", c.name, rec, err)
			}
			if after := expand(t, s, p); after == nil || after.Cursor != ids[2] {
				t.Errorf("%s: the page that was read again: %+v", c.name, after)
			}
		}
	}
}

// campaignRace: whichever of a page, a notification, and an opt-out, an erasure or an import is first, nothing is left
// pending, nobody waits for another in a ring, and who is named in no request of it is recorded beside.
func campaignRace(t *testing.T, s *store.Store) {
	no := core.Preferences{"*": {"*": false}}
	for i := range 24 {
		ids := []string{fmt.Sprintf("r%02d-a", i), fmt.Sprintf("r%02d-b", i), fmt.Sprintf("r%02d-c", i), fmt.Sprintf("r%02d-z", i)}
		topic := fmt.Sprintf("race-%d", i)
		enrol(t, s, topic, ids...)
		p := readPage(t, s, taken(t, s), topic)
		var all sync.WaitGroup
		all.Go(func() {
			if _, _, err := s.Expand(t.Context(), p); err != nil && !errors.Is(err, core.ErrStale) {
				t.Errorf("expand: %v", err)
			}
		})
		alone := make([]*core.Acceptance, len(ids))
		for j := range alone {
			alone[j] = build(s, ask{n: 1, recipient: ids[j]})
			alone[j].Known = p.Acceptance.Known[j : j+1]
			all.Go(func() {
				_, err := s.Record(t.Context(), alone[j])
				if err != nil && (!errors.Is(err, core.ErrStale) || i%3 != 2 && j > 0) {
					t.Errorf("record for %s: %v", ids[j], err)
				}
			})
		}
		all.Go(func() {
			var err error
			switch i % 3 {
			case 0:
				err = s.PutPreferences(t.Context(), "shop", ids[0], no, rules)
			case 1:
				err = s.DeleteRecipient(t.Context(), "shop", ids[0])
			default:
				var all []core.Import
				for _, id := range slices.Backward(ids) {
					all = append(all, core.Import{Recipient: core.Recipient{ID: id, Preferences: no}})
				}
				_, err = s.ImportRecipients(t.Context(), "shop", all, rules)
			}
			if err != nil {
				t.Errorf("change %d: %v", i, err)
			}
		})
		all.Wait()
		for _, a := range append(alone, p.Acceptance) {
			ds, _, err := s.Deliveries(t.Context(), "shop", a.Notification.ID, core.Page{})
			if err != nil && !errors.Is(err, core.ErrNotFound) {
				t.Fatal(err)
			}
			for _, d := range ds {
				if d.State == core.Pending && (d.Recipient == ids[0] || i%3 == 2) {
					t.Errorf("try %d: %s has a delivery that is pending", i, d.Recipient)
				}
			}
		}
	}
}

// staleApps: of a group with several apps each is looked at in its own, whatever the names of their recipients.
func staleApps(t *testing.T, s *store.Store) {
	known := map[string]*core.Recipient{}
	apps := []string{"shop", "other", "third"}
	for _, app := range apps {
		x := &core.Recipient{App: app, ID: "same"}
		if _, err := s.PutRecipient(t.Context(), x); err != nil {
			t.Fatal(err)
		}
		found, err := s.Recipient(t.Context(), app, "same")
		if err != nil {
			t.Fatal(err)
		}
		known[app] = found
	}
	if err := s.PutPreferences(t.Context(), "other", "same", core.Preferences{"*": {"*": false}}, rules); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 33 {
		app := apps[i%3]
		all.Go(func() {
			a := build(s, ask{app: app, n: 1, recipient: "same"})
			a.Known = []*core.Recipient{known[app]}
			if _, err := s.Record(t.Context(), a); errors.Is(err, core.ErrStale) != (app == "other") || err != nil && app != "other" {
				t.Errorf("%s: %v", app, err)
			}
		})
	}
	all.Wait()
}

// eraseAgain: what an erasure that broke off left undone is done by asking again.
func eraseAgain(t *testing.T, s *store.Store) {
	const id = "half-erased"
	a := build(s, ask{n: 1, key: "half"}) // as it would be had it come between
	a.Answer = []byte(`{"skipped":[{"to":0,"recipient":"half-erased"}]}`)
	a.Notification.Skipped = []core.Skip{{Recipient: id, Reason: core.SkipPreference}}
	if _, err := s.Record(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteRecipient(t.Context(), "shop", id); !errors.Is(err, core.ErrNotFound) {
		t.Fatal(err)
	}
	n, err := s.Notification(t.Context(), "shop", a.Notification.ID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]core.Skip{{Reason: core.SkipPreference}}, n.Skipped); diff != "" {
		t.Errorf("who was skipped: %s", diff)
	}
	if answer, err := s.Answered(t.Context(), "shop", "half", a.BodyHash); err != nil || string(answer) != `{"skipped":[{"to":0,"recipient":""}]}` {
		t.Errorf("the key's answer: %s, %v", answer, err)
	}
}

// staleWake: a wake of an older fence claims nothing, though its batch waits: the wake that replaced it does.
func staleWake(t *testing.T, s *store.Store) {
	a := record(t, s, ask{n: 1})
	wakes, err := s.Due(t.Context(), "mail", a.Notification.Priority, 10, nil)
	if err != nil || len(wakes) != 1 || wakes[0].Fence != 2 {
		t.Fatal(wakes, err)
	}
	if r := claim(t, s, wakeOf(a)); r != nil {
		t.Errorf("the old wake claimed %+v", r)
	}
	if r := claim(t, s, wakes[0]); r == nil || r.Fence != 2 {
		t.Errorf("the new wake claimed %+v", r)
	}
}

// finalAlone: what a receipt ended during a round stays ended, also where no other delivery came to the same.
func finalAlone(t *testing.T, s *store.Store) {
	a := record(t, s, ask{n: 1})
	st := judge(claim(t, s, wakeOf(a)), all(providers.Unknown))
	settle(t, s, st)
	var wakes []core.Wake
	until(t, "the retry to be due", func() bool {
		var err error
		if wakes, err = s.Due(t.Context(), "mail", a.Notification.Priority, 10, nil); err != nil {
			t.Fatal(err)
		}
		return len(wakes) > 0
	})
	r := claim(t, s, wakes[0])
	if found, err := s.Receipt(t.Context(), "mail", providers.Receipt{ID: a.Deliveries[0].ID.String(), Event: providers.EventDelivered}); !found || err != nil {
		t.Fatal(found, err)
	}
	settle(t, s, judge(r, all(providers.Rejected)))
	if c := counts(t, s, a); c.Delivered != 1 {
		t.Errorf("it was heard to have arrived: %+v", c)
	}
}
