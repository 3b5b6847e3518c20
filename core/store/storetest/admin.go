package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

func put(t *testing.T, s *store.Store, id string, addresses ...string) *core.Recipient {
	t.Helper()
	x := &core.Recipient{App: "shop", ID: id, Locale: "de-CH", Timezone: "Europe/Zurich", Attributes: []byte(`{"a":1}`)}
	for _, a := range addresses {
		x.Endpoints = append(x.Endpoints, core.Endpoint{Kind: "email", Address: a})
	}
	if _, err := s.PutRecipient(t.Context(), x); err != nil {
		t.Fatal(err)
	}
	return x
}

func addresses(t *testing.T, s *store.Store, id string) []string {
	t.Helper()
	x, err := s.Recipient(t.Context(), "shop", id)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range x.Endpoints {
		out = append(out, e.Address)
	}
	return out
}

func gone(t *testing.T, s *store.Store) {
	x := put(t, s, "u1", "a@example.com", "b@example.com")
	drop := func(g *core.GoneEndpoint) {
		t.Helper()
		a := record(t, s, ask{n: 1})
		st := judge(claim(t, s, wakeOf(a)), all(providers.Rejected))
		st.Verdicts[0].Gone = g
		settle(t, s, st)
	}
	registered := x.Endpoints[0].RegisteredAt
	drop(&core.GoneEndpoint{App: "shop", Kind: "email", Address: "a@example.com", Since: registered.Add(-time.Hour)})
	if diff := cmp.Diff([]string{"a@example.com", "b@example.com"}, addresses(t, s, "u1")); diff != "" {
		t.Errorf("registered since, and yet: %s", diff)
	}
	drop(&core.GoneEndpoint{App: "shop", Kind: "email", Address: "a@example.com", NewAddress: "c@example.com"})
	if diff := cmp.Diff([]string{"c@example.com", "b@example.com"}, addresses(t, s, "u1")); diff != "" {
		t.Errorf("replaced: %s", diff)
	}
	drop(&core.GoneEndpoint{App: "shop", Kind: "email", Address: "b@example.com"})
	if diff := cmp.Diff([]string{"c@example.com"}, addresses(t, s, "u1")); diff != "" {
		t.Errorf("dropped: %s", diff)
	}
}

func receipts(t *testing.T, s *store.Store) {
	a := record(t, s, ask{n: 1, recipient: "u1"})
	id := a.Deliveries[0].ID.String()
	settle(t, s, judge(claim(t, s, wakeOf(a)), func(int) providers.Result {
		return providers.Result{Outcome: providers.Accepted, ProviderID: "p-1", Reason: "x\x00y\xff"}
	}))
	for _, c := range []struct {
		name string
		r    providers.Receipt
		want bool
	}{
		{"another app", providers.Receipt{ID: id, App: "other", Event: providers.EventRead}, false},
		{"another address", providers.Receipt{ID: id, Address: "b@example.com", Event: providers.EventRead}, false},
		{"no id", providers.Receipt{ID: "7", Event: providers.EventRead}, false},
		{"unknown", providers.Receipt{ProviderID: "p-2", Event: providers.EventRead}, false},
		{"seen by provider id", providers.Receipt{ProviderID: "p-1", Event: providers.EventSeen}, true},
		{"by our id as the service's", providers.Receipt{ProviderID: id, Event: providers.EventSeen}, true},
		{"again", providers.Receipt{ID: id, App: "shop", Address: "a@example.com", Event: providers.EventSeen}, true},
		{"bounced too late", providers.Receipt{ID: id, Event: providers.EventBounced}, true},
	} {
		if found, err := s.Receipt(t.Context(), "mail", c.r); err != nil || found != c.want {
			t.Errorf("%s: %v %v", c.name, found, err)
		}
	}
	if c := counts(t, s, a); c.Delivered != 1 {
		t.Errorf("%+v", c)
	}
	steps, err := s.Timeline(t.Context(), "shop", a.Notification.ID)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, x := range steps {
		if x.What == "seen" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d times seen on record", n)
	}
}

// ownOutcomes: each delivery of a round gets what is its own, whatever it shares with the others: a service's
// own ids, an attempt more than theirs, a reason. By the id of a service that is silent nothing is found.
func ownOutcomes(t *testing.T, s *store.Store) {
	for _, silent := range []bool{false, true} {
		ownOutcome(t, s, silent)
		id := fmt.Sprintf("p-%v-0", silent)
		if found, err := s.Receipt(t.Context(), "mail", providers.Receipt{ProviderID: id, Event: providers.EventRead}); err != nil || found == silent {
			t.Errorf("silent %v: found %v, %v", silent, found, err)
		}
	}
}

func ownOutcome(t *testing.T, s *store.Store, silent bool) {
	t.Helper()
	a := record(t, s, ask{n: 23})
	r := claim(t, s, wakeOf(a))
	st := judge(r, func(i int) providers.Result {
		switch {
		case i%7 == 3:
			return providers.Result{Outcome: providers.Rejected, Code: "c" + strconv.Itoa(i), Reason: "no ' $1 $2"}
		case i%5 == 2:
			return providers.Result{Outcome: providers.Deferred, Code: "busy", Reason: strconv.Itoa(i), After: time.Hour}
		}
		return providers.Result{Outcome: providers.Accepted, ProviderID: fmt.Sprintf("p-%v-%d", silent, i)}
	})
	st.Silent = silent
	settle(t, s, st)
	got, _, err := s.Deliveries(t.Context(), "shop", a.Notification.ID, core.Page{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[core.ID]core.Delivery{}
	for i := range st.Verdicts {
		want[st.Verdicts[i].Delivery.ID] = st.Verdicts[i].Delivery
	}
	if len(got) != len(want) {
		t.Fatalf("%d of %d deliveries", len(got), len(want))
	}
	type own struct {
		State                core.State
		Attempts             int
		Code, Reason, ItsOwn string
	}
	of := func(d core.Delivery) own { return own{d.State, d.Attempts, d.Code, d.Reason, d.ProviderID} }
	for _, d := range got {
		if diff := cmp.Diff(of(want[d.ID]), of(d)); diff != "" {
			t.Errorf("%s: %s", d.ID, diff)
		}
	}
}

// earlyReceipts: a receipt that is faster than the settlement of its round counts all the same, the first one.
func earlyReceipts(t *testing.T, s *store.Store) {
	a := record(t, s, ask{n: 3})
	r := claim(t, s, wakeOf(a))
	at := s.Now()
	for _, rc := range []providers.Receipt{
		{ID: a.Deliveries[0].ID.String(), Event: providers.EventDelivered, At: at},
		{ID: a.Deliveries[0].ID.String(), Event: providers.EventBounced, At: at.Add(time.Second)},
		{ID: a.Deliveries[1].ID.String(), Event: providers.EventFailed, At: at},
	} {
		if found, err := s.Receipt(t.Context(), "mail", rc); !found || err != nil {
			t.Fatal(found, err)
		}
	}
	settle(t, s, judge(r, all(providers.Accepted)))
	if diff := cmp.Diff(core.Counts{Delivered: 1, Failed: 1, Sent: 1}, counts(t, s, a)); diff != "" {
		t.Error(diff)
	}
}

// unknownReceipts: what is acknowledged is not sent again though its attempt is unknown, whether the receipt
// comes while the round is under way, after it, or during the next; a failure that is heard of does not
// keep the next attempt from being made.
func unknownReceipts(t *testing.T, s *store.Store) {
	a := record(t, s, ask{n: 5})
	hear := func(i int, e providers.Event) {
		t.Helper()
		if found, err := s.Receipt(t.Context(), "mail", providers.Receipt{ID: a.Deliveries[i].ID.String(), Event: e, At: s.Now()}); !found || err != nil {
			t.Fatal(found, err)
		}
	}
	r := claim(t, s, wakeOf(a))
	hear(0, providers.EventDelivered)
	hear(3, providers.EventFailed)
	st := judge(r, all(providers.Unknown))
	settle(t, s, st)
	if diff := cmp.Diff(core.Counts{Delivered: 1, Pending: 4}, counts(t, s, a)); diff != "" {
		t.Error("heard of before: " + diff)
	}
	hear(1, providers.EventRead)
	hear(3, providers.EventBounced)
	if diff := cmp.Diff(core.Counts{Delivered: 2, Pending: 3}, counts(t, s, a)); diff != "" {
		t.Error("heard of after: " + diff)
	}
	until(t, "the retry is due", func() bool { return s.Now().After(st.Stay.DueAt) })
	var again []core.ID
	var rounds []*core.Round
	ws, err := s.Due(t.Context(), "mail", providers.Normal, 10, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range ws {
		if r := claim(t, s, w); r != nil {
			rounds = append(rounds, r)
			for i := range r.Deliveries {
				again = append(again, r.Deliveries[i].ID)
			}
		}
	}
	if diff := cmp.Diff([]core.ID{a.Deliveries[2].ID, a.Deliveries[3].ID, a.Deliveries[4].ID}, again); diff != "" {
		t.Error("sent again: " + diff)
	}
	hear(2, providers.EventDelivered)
	for _, r := range rounds {
		settle(t, s, judge(r, all(providers.Rejected)))
	}
	if diff := cmp.Diff(core.Counts{Delivered: 3, Failed: 2}, counts(t, s, a)); diff != "" {
		t.Error("heard of during the next: " + diff)
	}
}

func recipients(t *testing.T, s *store.Store) {
	x := put(t, s, "u1", "a@example.com")
	got, err := s.Recipient(t.Context(), "shop", "u1")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(x, got); diff != "" {
		t.Error(diff)
	}
	if created, err := s.PutRecipient(t.Context(), &core.Recipient{App: "shop", ID: "u1"}); created || err != nil {
		t.Error(created, err)
	}
	if created, err := s.PutEndpoint(t.Context(), "shop", "u2", core.Endpoint{Kind: "email", Address: "z@example.com"}); !created || err != nil {
		t.Error(created, err)
	}
	if created, err := s.PutEndpoint(t.Context(), "shop", "u2", core.Endpoint{Kind: "email", Address: "z@example.com", Route: "r"}); created || err != nil {
		t.Error(created, err)
	}
	refused := errors.New("no")
	if _, err := s.UpdateRecipient(t.Context(), "shop", "u3", func(*core.Recipient) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("%v", err)
	}
	if _, err := s.Recipient(t.Context(), "shop", "u3"); !errors.Is(err, core.ErrNotFound) {
		t.Errorf("refused and yet kept: %v", err)
	}
	created, err := s.UpdateRecipient(t.Context(), "shop", "u3", func(x *core.Recipient) error { x.Locale = "fr"; return nil })
	if !created || err != nil {
		t.Error(created, err)
	}
	found, err := s.Recipients(t.Context(), "shop", []string{"u1", "u2", "nobody", "u2"})
	if err != nil || len(found) != 2 || len(found["u2"].Endpoints) != 1 || found["u2"].Endpoints[0].Route != "r" {
		t.Errorf("%+v %v", found, err)
	}
	page, next, err := s.ListRecipients(t.Context(), "shop", core.Page{Limit: 2})
	if err != nil || len(page) != 2 || next != "u2" {
		t.Errorf("%+v %q %v", page, next, err)
	}
	if page, next, err = s.ListRecipients(t.Context(), "shop", core.Page{Limit: 2, Cursor: next}); err != nil || len(page) != 1 || next != "" {
		t.Errorf("%+v %q %v", page, next, err)
	}
	if err := s.DeleteEndpoint(t.Context(), "shop", "u2", "email", "z@example.com"); err != nil {
		t.Error(err)
	}
	if err := s.DeleteEndpoint(t.Context(), "shop", "u2", "email", "z@example.com"); !errors.Is(err, core.ErrNotFound) {
		t.Error(err)
	}
}

func erase(t *testing.T, s *store.Store) {
	put(t, s, "u1", "a@example.com")
	a := record(t, s, ask{n: 2, recipient: "u1"})
	if err := s.DeleteRecipient(t.Context(), "shop", "u1"); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteRecipient(t.Context(), "shop", "u1"); !errors.Is(err, core.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if c := counts(t, s, a); c.Cancelled != 2 {
		t.Errorf("%+v", c)
	}
	ds, _, err := s.Deliveries(t.Context(), "shop", a.Notification.ID, core.Page{})
	if err != nil || len(ds) != 2 || ds[0].Address != "" || ds[0].Recipient != "" || !ds[0].Content.Page.IsZero() {
		t.Errorf("%+v %v", ds, err)
	}
}

func templatesAndKeys(t *testing.T, s *store.Store) {
	for _, c := range []struct {
		source string
		want   int
	}{{`{"a":1}`, 1}, {`{"a":1}`, 1}, {`{"a":2}`, 2}, {`{"a":1}`, 3}} {
		if v, err := s.PutTemplate(t.Context(), "shop", "order", []byte(c.source)); v != c.want || err != nil {
			t.Errorf("%s: version %d, %v", c.source, v, err)
		}
	}
	if v, err := s.Template(t.Context(), "shop", "order", 0); err != nil || v.Version != 3 || string(v.Source) != `{"a":1}` {
		t.Errorf("%+v %v", v, err)
	}
	if v, err := s.Template(t.Context(), "shop", "order", 2); err != nil || v.Version != 2 {
		t.Errorf("%+v %v", v, err)
	}
	if _, err := s.Template(t.Context(), "shop", "order", 9); !errors.Is(err, core.ErrNotFound) {
		t.Error(err)
	}
	if list, next, err := s.Templates(t.Context(), "shop", core.Page{}); err != nil || len(list) != 1 || list[0].Version != 3 || next != "" {
		t.Errorf("%+v %v", list, err)
	}
	if list, err := s.TemplateVersions(t.Context(), "shop", "order"); err != nil || len(list) != 3 || list[0].Version != 3 {
		t.Errorf("%+v %v", list, err)
	}
	p := core.Principal{App: "shop", Scopes: []string{"send", "read"}}
	if err := s.PutKey(t.Context(), [32]byte{1}, p); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Principal(t.Context(), [32]byte{1}); err != nil || !cmp.Equal(got, p) {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := s.Principal(t.Context(), [32]byte{2}); !errors.Is(err, core.ErrNotFound) {
		t.Error(err)
	}
	keys(t, s)
	if err := s.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func inbox(t *testing.T, s *store.Store) {
	var as []*core.Acceptance
	for range 3 {
		a := record(t, s, ask{n: 1, kind: "websocket", recipient: "u1"})
		settle(t, s, judge(claim(t, s, wakeOf(a)), all(providers.Absent)))
		as = append(as, a)
		nextMillisecond(t, s, a)
	}
	record(t, s, ask{n: 1, kind: "websocket", recipient: "u1"}) // pending: not there yet
	items, next, err := s.Inbox(t.Context(), "shop", "u1", core.Page{Limit: 2}, false)
	if err != nil || len(items) != 2 || items[0].ID != as[2].Deliveries[0].ID || items[0].Content.Title != "Hello" {
		t.Fatalf("%+v %v", items, err)
	}
	if items, next, err = s.Inbox(t.Context(), "shop", "u1", core.Page{Limit: 2, Cursor: next}, false); err != nil || len(items) != 1 || next != "" {
		t.Fatalf("%+v %q %v", items, next, err)
	}
	id := items[0].ID
	unread := func(want int) {
		t.Helper()
		if n, err := s.Unread(t.Context(), "shop", "u1"); n != want || err != nil {
			t.Errorf("%d unread, not %d: %v", n, want, err)
		}
	}
	for _, c := range []struct {
		mark string
		want int
	}{{"seen", 3}, {"read", 2}, {"unread", 3}, {"archive", 2}} {
		if err := s.MarkInbox(t.Context(), "shop", "u1", id, c.mark); err != nil {
			t.Error(err)
		}
		unread(c.want)
	}
	if items, _, err = s.Inbox(t.Context(), "shop", "u1", core.Page{}, true); err != nil || len(items) != 1 || items[0].SeenAt.IsZero() || items[0].ArchivedAt.IsZero() {
		t.Errorf("%+v %v", items, err)
	}
	if err := s.MarkInbox(t.Context(), "shop", "u2", id, "read"); !errors.Is(err, core.ErrNotFound) {
		t.Errorf("somebody else's: %v", err)
	}
	if err := s.MarkInbox(t.Context(), "shop", "u1", id, "eaten"); !errors.Is(err, store.ErrBadMark) {
		t.Error(err)
	}
}

// inboxTrace: what a recipient does with a message is a step of its timeline and makes it delivered, once, whether it
// is marked in the inbox or heard of by a receipt; taken back, it can be done again.
func inboxTrace(t *testing.T, s *store.Store) {
	for mark, event := range map[string]providers.Event{"seen": providers.EventSeen, "read": providers.EventRead, "archive": providers.EventArchived} {
		for _, ways := range []string{"mark mark", "receipt mark", "mark receipt"} {
			a := record(t, s, ask{n: 1, kind: "websocket", recipient: "u1"})
			settle(t, s, judge(claim(t, s, wakeOf(a)), all(providers.Absent)))
			d := &a.Deliveries[0]
			for _, way := range strings.Fields(ways) {
				if way == "mark" {
					if err := s.MarkInbox(t.Context(), "shop", "u1", d.ID, mark); err != nil {
						t.Fatal(err)
					}
				} else if found, err := s.Receipt(t.Context(), d.Route, providers.Receipt{ID: d.ID.String(), Event: event}); !found || err != nil {
					t.Fatal(found, err)
				}
				if c := counts(t, s, a); c.Delivered != 1 {
					t.Errorf("%s by %s: %+v", mark, way, c)
				}
			}
			steps, err := s.Timeline(t.Context(), "shop", a.Notification.ID)
			if err != nil {
				t.Fatal(err)
			}
			steps = slices.DeleteFunc(steps, func(x core.Step) bool { return x.What != string(event) })
			if len(steps) != 1 || steps[0].Delivery != d.ID || steps[0].State != core.Delivered {
				t.Errorf("%s by %s: the timeline has %+v", mark, ways, steps)
			}
			read := func(want bool) {
				t.Helper()
				messages, _, err := s.MessagesTo(t.Context(), "shop", "u1", "")
				at := slices.IndexFunc(messages, func(m core.SentMessage) bool { return m.ID == d.ID })
				if err != nil || at < 0 || messages[at].ReadAt.IsZero() == want {
					t.Errorf("%s by %s: read %v, %v", mark, ways, !want, err)
				}
			}
			if mark != "read" {
				continue
			}
			for _, again := range strings.Fields(ways) {
				read(true)
				if err := s.MarkInbox(t.Context(), "shop", "u1", d.ID, "unread"); err != nil {
					t.Fatal(err)
				}
				read(false)
				if again == "mark" {
					err = s.MarkInbox(t.Context(), "shop", "u1", d.ID, mark)
				} else {
					_, err = s.Receipt(t.Context(), d.Route, providers.Receipt{ID: d.ID.String(), Event: event})
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			read(true)
		}
	}
}

func lists(t *testing.T, s *store.Store) {
	var ids []core.ID
	for i := range 5 {
		who := "u1"
		if i == 2 {
			who = "u2"
		}
		ids = append(ids, record(t, s, ask{n: 1, recipient: who, in: time.Duration(i%2) * time.Hour}).Notification.ID)
	}
	walk := func(f core.NotificationFilter) (got []core.ID) {
		t.Helper()
		f.App, f.Page.Limit = "shop", 2
		for {
			page, next, err := s.Notifications(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range page {
				got = append(got, v.ID)
			}
			if next == "" {
				return got
			}
			f.Page.Cursor = next
		}
	}
	if got := walk(core.NotificationFilter{}); len(got) != 5 {
		t.Errorf("%v", got)
	}
	if diff := cmp.Diff([]core.ID{ids[2]}, walk(core.NotificationFilter{Recipient: "u2"})); diff != "" {
		t.Error(diff)
	}
	if got := walk(core.NotificationFilter{Status: core.StatusScheduled}); len(got) != 2 {
		t.Errorf("scheduled: %v", got)
	}
	if got := walk(core.NotificationFilter{Since: s.Now().Add(time.Hour)}); len(got) != 0 {
		t.Errorf("from the future: %v", got)
	}
	if _, _, err := s.Notifications(t.Context(), core.NotificationFilter{App: "shop", Page: core.Page{Cursor: "x"}}); err == nil {
		t.Error("a wrong cursor passed")
	}
}

func dead(t *testing.T, s *store.Store) {
	ids := map[string][]string{}
	fate := func(name string, a ask, end func(*core.Delivery)) {
		x := record(t, s, a)
		st := judge(claim(t, s, wakeOf(x)), all(providers.Rejected))
		for i := range st.Verdicts {
			end(&st.Verdicts[i].Delivery)
			ids[name] = append(ids[name], st.Verdicts[i].Delivery.ID.String())
		}
		settle(t, s, st)
		nextMillisecond(t, s, x)
	}
	fate("rejected", ask{n: 2}, func(d *core.Delivery) { d.Code = "BadTopic" })
	fate("expired", ask{n: 1, route: "other"}, func(d *core.Delivery) { d.State, d.Code = core.Expired, core.CodeExpired })
	fate("sent", ask{n: 1}, func(d *core.Delivery) { d.State = core.Sent })
	fate("another app", ask{n: 1, app: "b"}, func(*core.Delivery) {})
	record(t, s, ask{n: 1}) // pending
	// What fails by a receipt has its code, or else the event; early is before its round is settled.
	heard := func(name string, early bool, rc providers.Receipt) {
		x := record(t, s, ask{n: 1, route: "bounces"})
		rc.ID = x.Deliveries[0].ID.String()
		ids[name] = []string{rc.ID}
		r := claim(t, s, wakeOf(x))
		tell := func() {
			if found, err := s.Receipt(t.Context(), "bounces", rc); !found || err != nil {
				t.Fatal(name, found, err)
			}
		}
		if early {
			tell()
		}
		settle(t, s, judge(r, all(providers.Accepted)))
		if !early {
			tell()
		}
		nextMillisecond(t, s, x)
	}
	heard("bounced", false, providers.Receipt{Event: providers.EventBounced})
	heard("bounced early", true, providers.Receipt{Event: providers.EventBounced})
	heard("failed", false, providers.Receipt{Event: providers.EventFailed, Code: "undelivered"})
	heard("failed early", true, providers.Receipt{Event: providers.EventFailed, Code: "undelivered"})
	list := func(f core.DeadFilter) (out []string, next string) {
		t.Helper()
		if f.App == "" {
			f.App = "shop"
		}
		ds, next, err := s.Dead(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for i := range ds {
			out = append(out, ds[i].ID.String())
		}
		return out, next
	}
	for _, c := range []struct {
		name string
		f    core.DeadFilter
		want []string
	}{
		{"all", core.DeadFilter{}, []string{ids["failed early"][0], ids["failed"][0], ids["bounced early"][0], ids["bounced"][0],
			ids["expired"][0], ids["rejected"][1], ids["rejected"][0]}},
		{"bounced", core.DeadFilter{Code: "bounced"}, []string{ids["bounced early"][0], ids["bounced"][0]}},
		{"by the receipt's code", core.DeadFilter{Code: "undelivered"}, []string{ids["failed early"][0], ids["failed"][0]}},
		{"of a route", core.DeadFilter{Route: "other"}, ids["expired"]},
		{"of a code", core.DeadFilter{Code: "BadTopic"}, []string{ids["rejected"][1], ids["rejected"][0]}},
		{"of both", core.DeadFilter{Code: "BadTopic", Route: "other"}, nil},
		{"another app's", core.DeadFilter{App: "b"}, ids["another app"]},
	} {
		if got, next := list(c.f); next != "" || !cmp.Equal(got, c.want) {
			t.Errorf("%s: %v, then %q; want %v", c.name, got, next, c.want)
		}
	}
	first, next := list(core.DeadFilter{Page: core.Page{Limit: 6}})
	rest, end := list(core.DeadFilter{Page: core.Page{Limit: 6, Cursor: next}})
	if len(first) != 6 || len(rest) != 1 || end != "" || rest[0] != ids["rejected"][0] {
		t.Errorf("pages %v and %v, cursors %q and %q", first, rest, next, end)
	}
}

// reports: each process's newest report of a route is there for a while, and what it stopped to tell of is not.
func reports(t *testing.T, s *store.Store) {
	pool := providers.PoolStats{Max: 4, Open: 2}
	tell := func(process string, rs ...core.RouteReport) {
		t.Helper()
		if err := s.Report(t.Context(), process, rs); err != nil {
			t.Fatal(err)
		}
	}
	tell("a:1", core.RouteReport{Route: "x", State: "ok"}, core.RouteReport{Route: "y", State: "ok"})
	tell("b:2", core.RouteReport{Route: "x", State: "down", Reason: "why", Circuit: "open"})
	tell("a:1", core.RouteReport{Route: "x", State: "ok", Pool: pool})
	got, err := s.Reports(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if d := s.Now().Sub(got[i].At); d < 0 || d > time.Minute {
			t.Errorf("report %d is of %s ago", i, d)
		}
		got[i].At = time.Time{}
	}
	want := []core.RouteReport{{Process: "a:1", Route: "x", State: "ok", Pool: pool}, {Process: "b:2", Route: "x", State: "down", Reason: "why", Circuit: "open"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got, err := s.Reports(t.Context(), -time.Minute); len(got) > 0 || err != nil {
		t.Errorf("what is too old: %v %v", got, err)
	}
}
