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
)

// rules are those of an app with a category that nobody can turn off.
var rules = &core.Rules{Categories: core.Categories{"security": {Mandatory: true}}}

func join(t *testing.T, s *store.Store, topic, id string) bool {
	t.Helper()
	added, err := s.PutTopicRecipient(t.Context(), "shop", topic, id)
	if err != nil {
		t.Fatalf("put %s into %s: %v", id, topic, err)
	}
	return added
}

func members(t *testing.T, s *store.Store, topic string) (ids []string) {
	t.Helper()
	for cursor := ""; ; {
		page, next, err := s.TopicRecipients(t.Context(), "shop", topic, core.Page{Cursor: cursor, Limit: 2})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range page {
			ids = append(ids, x.Recipient)
		}
		if cursor = next; next == "" {
			return ids
		}
	}
}

func topics(t *testing.T, s *store.Store) {
	put(t, s, "u1", "a@example.com")
	for _, id := range []string{"u3", "u1", "u2"} {
		if !join(t, s, "vip", id) {
			t.Errorf("%s was in it already", id)
		}
	}
	if join(t, s, "vip", "u1") {
		t.Error("u1 was added twice")
	}
	if _, err := s.Recipient(t.Context(), "shop", "u3"); err != nil {
		t.Errorf("u3 was not created: %v", err)
	}
	join(t, s, "news", "u1")
	if diff := cmp.Diff([]string{"u1", "u2", "u3"}, members(t, s, "vip")); diff != "" {
		t.Errorf("members: %s", diff)
	}
	if other, _, err := s.TopicRecipients(t.Context(), "other", "vip", core.Page{}); err != nil || len(other) != 0 {
		t.Errorf("another app sees %v, %v", other, err)
	}
	if err := s.DeleteTopicRecipient(t.Context(), "shop", "vip", "u2"); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteTopicRecipient(t.Context(), "shop", "vip", "u2"); !errors.Is(err, core.ErrNotFound) {
		t.Errorf("taken out twice: %v", err)
	}
	if err := s.DeleteRecipient(t.Context(), "shop", "u1"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"u3"}, members(t, s, "vip")); diff != "" {
		t.Errorf("after one left and one was erased: %s", diff)
	}
	if got, err := s.Topics(t.Context(), "shop", "u1"); err != nil || len(got) != 0 {
		t.Errorf("who was erased is in %v, %v", got, err)
	}
}

// read pages through an audience and returns the ids, and each one's addresses.
func read(t *testing.T, s *store.Store, a core.Audience, limit int) (ids, unknown []string, addresses map[string][]string) {
	t.Helper()
	addresses = map[string][]string{}
	for cursor := ""; ; {
		p, err := s.AudiencePage(t.Context(), a, cursor, limit)
		if err != nil {
			t.Fatalf("read a page of the audience: %v", err)
		}
		for _, x := range p.Recipients {
			ids = append(ids, x.ID)
			for _, e := range x.Endpoints {
				addresses[x.ID] = append(addresses[x.ID], e.Address)
			}
		}
		if unknown = append(unknown, p.Unknown...); p.Next == "" {
			return ids, unknown, addresses
		}
		if p.Next <= cursor {
			t.Fatalf("the cursor goes from %q back to %q", cursor, p.Next)
		}
		cursor = p.Next
	}
}

func audience(t *testing.T, s *store.Store) {
	var everybody, both []string
	want := map[string][]string{}
	for i := range 23 {
		id := fmt.Sprintf("u%02d", i)
		everybody = append(everybody, id)
		for j := range i % 3 {
			want[id] = append(want[id], fmt.Sprintf("%s-%d@example.com", id, j))
		}
		put(t, s, id, want[id]...)
		if i%2 == 0 {
			join(t, s, "even", id)
		}
		if i%3 == 0 {
			join(t, s, "third", id)
		}
		if (i%2 == 0 || i%3 == 0) && i != 6 && i != 9 {
			both = append(both, id)
		}
	}
	if _, err := s.PutRecipient(t.Context(), &core.Recipient{App: "other", ID: "u99"}); err != nil {
		t.Fatal(err)
	}
	even := slices.DeleteFunc(slices.Clone(everybody), func(id string) bool { return (id[2]-'0')%2 == 1 })
	start := s.Now()
	until(t, "the clock to go on", func() bool { return s.Now().After(start) })
	late := func(id string) {
		t.Helper()
		put(t, s, id, "late@example.com")
		join(t, s, "even", id)
	}
	late("u05b")
	late("u00a")
	join(t, s, "even", "u01") // was there at the start, but not in the topic
	for _, limit := range []int{1, 4, 23, 100} {
		ids, _, addresses := read(t, s, core.Audience{App: "shop", Until: start}, limit)
		if diff := cmp.Diff(everybody, ids); diff != "" {
			t.Errorf("everybody by %d: %s", limit, diff)
		}
		if diff := cmp.Diff(want, addresses); diff != "" {
			t.Errorf("addresses of everybody by %d: %s", limit, diff)
		}
		ids, _, _ = read(t, s, core.Audience{App: "shop", Topic: "even", Until: start}, limit)
		if diff := cmp.Diff(even, ids); diff != "" {
			t.Errorf("the topic by %d: %s", limit, diff)
		}
		ids, _, addresses = read(t, s, core.Audience{App: "shop", Topics: []string{"even", "third", "nobody's"}, Except: []string{"u06", "u09"}, Until: start}, limit)
		if diff := cmp.Diff(both, ids); diff != "" {
			t.Errorf("two topics but two people by %d: %s", limit, diff)
		}
		if diff := cmp.Diff(want["u02"], addresses["u02"]); diff != "" {
			t.Errorf("addresses of two topics by %d: %s", limit, diff)
		}
		asked := []string{"u07", "u00a", "nobody", "u03", "u07"}
		ids, unknown, addresses := read(t, s, core.Audience{App: "shop", Recipients: asked, Until: start}, limit)
		if diff := cmp.Diff([]string{"u03", "u07"}, ids); diff != "" {
			t.Errorf("the list by %d: %s", limit, diff)
		}
		if diff := cmp.Diff([]string{"nobody", "u00a"}, unknown); diff != "" {
			t.Errorf("unknown of the list by %d: %s", limit, diff)
		}
		if diff := cmp.Diff(want["u07"], addresses["u07"]); diff != "" {
			t.Errorf("addresses of the list by %d: %s", limit, diff)
		}
	}
	if ids, unknown, _ := read(t, s, core.Audience{App: "shop", Recipients: []string{}, Until: start}, 10); ids != nil || unknown != nil {
		t.Errorf("an empty list is %v, %v", ids, unknown)
	}
}

func preferences(t *testing.T, s *store.Store) {
	of := func(id string) core.Preferences {
		t.Helper()
		x, err := s.Recipient(t.Context(), "shop", id)
		if err != nil {
			t.Fatal(err)
		}
		return x.Preferences
	}
	chosen := core.Preferences{"orders": {"email": false}, "*": {"push": true}}
	if err := s.PutPreferences(t.Context(), "shop", "u1", chosen, rules); err != nil { // creates u1
		t.Fatal(err)
	}
	if diff := cmp.Diff(chosen, of("u1")); diff != "" {
		t.Errorf("kept: %s", diff)
	}
	put(t, s, "u1", "a@example.com") // the app's word about a person, not the person's
	if err := s.Unsubscribe(t.Context(), core.Unsubscription{App: "shop", Recipient: "u1", Category: "news", Channel: "email"}, rules); err != nil {
		t.Fatal(err)
	}
	want := core.Preferences{"orders": {"email": false}, "*": {"push": true}, "news": {"email": false}}
	if diff := cmp.Diff(want, of("u1")); diff != "" {
		t.Errorf("after a word changed: %s", diff)
	}
	if p, err := s.AudiencePage(t.Context(), core.Audience{App: "shop", Until: s.Now()}, "", 10); err != nil || cmp.Diff(want, p.Recipients[0].Preferences) != "" {
		t.Errorf("in an audience: %+v, %v", p, err)
	}
	if err := s.PutPreferences(t.Context(), "shop", "u1", nil, rules); err != nil || of("u1") != nil {
		t.Errorf("cleared: %v, %v", of("u1"), err)
	}
	if err := s.Unsubscribe(t.Context(), core.Unsubscription{App: "shop", Recipient: "ghost", Category: "news", Channel: "email"}, rules); !errors.Is(err, core.ErrNotFound) {
		t.Errorf("who is not there: %v", err)
	}
	if _, err := s.Recipient(t.Context(), "shop", "ghost"); !errors.Is(err, core.ErrNotFound) {
		t.Errorf("who is not there was made: %v", err)
	}
}

// unsubscribeAtOnce has many words change side by side: none may be lost.
func unsubscribeAtOnce(t *testing.T, s *store.Store) {
	put(t, s, "u1")
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			if err := s.Unsubscribe(t.Context(), core.Unsubscription{App: "shop", Recipient: "u1", Category: fmt.Sprintf("c%d", i), Channel: "email"}, rules); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if x, err := s.Recipient(t.Context(), "shop", "u1"); err != nil || len(x.Preferences) != 20 {
		t.Errorf("%d words of 20, %v", len(x.Preferences), err)
	}
}

func secret(t *testing.T, s *store.Store) {
	first, err := s.Secret(t.Context(), "s", []byte("one"))
	if err != nil || string(first) != "one" {
		t.Fatalf("%q, %v", first, err)
	}
	if again, err := s.Secret(t.Context(), "s", []byte("two")); err != nil || string(again) != "one" {
		t.Errorf("%q, %v", again, err)
	}
}

func importing(t *testing.T, s *store.Store) {
	put(t, s, "u1", "old@example.com")
	if err := s.PutPreferences(t.Context(), "shop", "u1", core.Preferences{"news": {"email": false}}, rules); err != nil {
		t.Fatal(err)
	}
	person := func(id, address string, topics ...string) core.Import {
		return core.Import{Recipient: core.Recipient{ID: id, Locale: "fr", Endpoints: []core.Endpoint{{Kind: "email", Address: address}}}, Topics: topics}
	}
	all := []core.Import{person("u1", "new@example.com", "vip"), person("u2", "lost@example.com"), person("u3", "c@example.com", "vip"), person("u2", "b@example.com", "vip")}
	all[2].Preferences = core.Preferences{"*": {"push": true}}
	for i, want := range []int{2, 0} {
		if created, err := s.ImportRecipients(t.Context(), "shop", all, rules); err != nil || created != want {
			t.Errorf("time %d: %d created, %v", i, created, err)
		}
		for id, address := range map[string]string{"u1": "new@example.com", "u2": "b@example.com", "u3": "c@example.com"} {
			if diff := cmp.Diff([]string{address}, addresses(t, s, id)); diff != "" {
				t.Errorf("%s: %s", id, diff)
			}
		}
		if diff := cmp.Diff([]string{"u1", "u2", "u3"}, members(t, s, "vip")); diff != "" {
			t.Errorf("members: %s", diff)
		}
	}
	for id, want := range map[string]core.Preferences{"u1": {"news": {"email": false}}, "u2": nil, "u3": {"*": {"push": true}}} {
		if x, err := s.Recipient(t.Context(), "shop", id); err != nil || cmp.Diff(want, x.Preferences) != "" || x.Locale != "fr" {
			t.Errorf("%s: %+v, %v", id, x, err)
		}
	}
}

// eraseEverywhere looks for what is left of a person who was skipped, messaged, put into topics and exported.
func eraseEverywhere(t *testing.T, s *store.Store) {
	const id = "someone-to-forget"
	put(t, s, id, "forget@example.com")
	join(t, s, "vip", id)
	if err := s.PutPreferences(t.Context(), "shop", id, core.Preferences{"news": {"email": false}}, rules); err != nil {
		t.Fatal(err)
	}
	a := build(s, ask{n: 1, recipient: id, key: "k"})
	a.Answer = []byte(`{"skipped":[{"to":0,"recipient":"someone-to-forget","channel":"push"},{"to":1,"recipient":"other"}]}`)
	list, alone := newCampaign(t, s), newCampaign(t, s)
	for c, ids := range map[*core.Campaign][]string{list: {"other", id}, alone: {id}} {
		c.ID, c.Audience = core.NewID(s.Now()), core.CampaignAudience{Recipients: ids}
		if _, err := s.CreateCampaign(t.Context(), c, "", [32]byte{}); err != nil {
			t.Fatal(err)
		}
	}
	a.Notification.Skipped = []core.Skip{{To: 0, Recipient: id, Channel: "push", Reason: core.SkipNoEndpoint}, {To: 1, Recipient: "other", Reason: core.SkipNoEndpoint}}
	a.Deliveries[0].Address, a.Deliveries[0].Name = "forget@example.com", "Some One"
	if _, err := s.Record(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	l := climb(t, s, "push", "email")
	messages, _, err := s.MessagesTo(t.Context(), "shop", id, "")
	if err != nil || len(messages) != 1 || messages[0].Words.Title != "Hello" || messages[0].Address != "forget@example.com" {
		t.Fatalf("messages %+v, %v", messages, err)
	}
	if err := s.DeleteRecipient(t.Context(), "shop", id); err != nil {
		t.Fatal(err)
	}
	if c := counts(t, s, a); c.Cancelled != 1 {
		t.Errorf("what was pending: %+v", c)
	}
	v, err := s.Notification(t.Context(), "shop", a.Notification.ID)
	if err != nil {
		t.Fatal(err)
	}
	want := []core.Skip{{To: 0, Channel: "push", Reason: core.SkipNoEndpoint}, {To: 1, Recipient: "other", Reason: core.SkipNoEndpoint}}
	if diff := cmp.Diff(want, v.Skipped); diff != "" {
		t.Errorf("what was skipped: %s", diff)
	}
	ds, _, err := s.Deliveries(t.Context(), "shop", a.Notification.ID, core.Page{})
	if err != nil || ds[0].Recipient != "" || ds[0].Address != "" || ds[0].Name != "" || !ds[0].Content.Page.IsZero() {
		t.Errorf("the delivery still says %+v, %v", ds, err)
	}
	if messages, _, err := s.MessagesTo(t.Context(), "shop", id, ""); err != nil || len(messages) != 0 {
		t.Errorf("messages %+v, %v", messages, err)
	}
	l.are("pending", "pending") // another's
	if answer, err := s.Answered(t.Context(), "shop", "k", a.BodyHash); err != nil || string(answer) != `{"skipped":[{"to":0,"recipient":"","channel":"push"},{"to":1,"recipient":"other"}]}` {
		t.Errorf("the key's answer: %s, %v", answer, err)
	}
	for c, want := range map[*core.Campaign][]string{list: {"other"}, alone: {""}} {
		got, err := s.Campaign(t.Context(), "shop", c.ID)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got.Audience.Recipients); diff != "" || got.Fence != c.Fence+1 {
			t.Errorf("a campaign's list (fence %d): %s", got.Fence, diff)
		}
		page, err := s.AudiencePage(t.Context(), core.Audience{App: "shop", Recipients: got.Audience.Recipients, Until: s.Now()}, "", 10)
		if err != nil || len(page.Recipients) != 0 { // and not everybody
			t.Errorf("the audience has %v, %v", page.Recipients, err)
		}
	}
}
