package storetest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// takeDue takes what is due on the route "mail" and lists the apps in the order of their wakes. Each
// wake must be good for a claim of the app's.
func takeDue(t *testing.T, s *store.Store, limit int, room func(string) int) (apps []string) {
	t.Helper()
	ws, err := s.Due(t.Context(), "mail", providers.Normal, limit, room)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range ws {
		r := claim(t, s, w)
		if r == nil || r.App != w.App || r.Route != w.Route || r.Lane != w.Lane || !r.DueAt.Equal(w.At) {
			t.Fatalf("the wake %+v leads to %+v", w, r)
		}
		apps = append(apps, w.App)
	}
	return apps
}

// some records n batches of an app, one after the other.
func some(t *testing.T, s *store.Store, app string, n int) (ids []core.ID) {
	for range n {
		ids = append(ids, record(t, s, ask{app: app, n: 1}).Deliveries[0].Batch)
	}
	return ids
}

func dueTurns(t *testing.T, s *store.Store) {
	some(t, s, "big", 12)
	some(t, s, "small", 2)
	some(t, s, "mid", 4)
	record(t, s, ask{app: "future", n: 1, in: time.Hour})
	record(t, s, ask{app: "elsewhere", n: 1, route: "push"})
	var asked []string
	room := func(app string) int {
		asked = append(asked, app)
		return map[string]int{"big": 5, "mid": 100, "small": 100}[app]
	}
	if diff := cmp.Diff([]string{"big", "small", "mid", "big", "small", "mid", "big"}, takeDue(t, s, 7, room)); diff != "" {
		t.Error("in turns, the longest overdue first: " + diff)
	}
	if diff := cmp.Diff([]string{"big", "small", "mid"}, asked); diff != "" {
		t.Error("asked for room: " + diff)
	}
	// Big has nine left and room for five; what small does not want goes to the others.
	if diff := cmp.Diff([]string{"big", "mid", "big", "mid", "big", "big", "big"}, takeDue(t, s, 100, room)); diff != "" {
		t.Error("not beyond the room: " + diff)
	}
	if got := takeDue(t, s, 100, func(string) int { return 0 }); len(got) != 0 {
		t.Errorf("no room, and yet %v", got)
	}
	if got := takeDue(t, s, 100, nil); len(got) != 4 {
		t.Errorf("the rest: %v", got)
	}
	if got := takeDue(t, s, 100, nil); len(got) != 0 {
		t.Errorf("nothing is left, and yet %v", got)
	}
}

// dueOldest: of one app the longest overdue goes first, whatever its id.
func dueOldest(t *testing.T, s *store.Store) {
	var want []core.ID
	for i := range 3 {
		want = append(want, record(t, s, ask{n: 1, in: time.Duration(300-100*i) * time.Millisecond}).Deliveries[0].Batch)
	}
	slices.Reverse(want)
	last := s.Now().Add(300 * time.Millisecond)
	until(t, "all are due", func() bool { return s.Now().After(last) })
	want = append(want, some(t, s, "shop", 1)...)
	ws, err := s.Due(t.Context(), "mail", providers.Normal, 10, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []core.ID
	for _, w := range ws {
		got = append(got, w.Batch)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// dueManyApps: with more apps than a call takes, those that have waited longest have their turn first.
func dueManyApps(t *testing.T, s *store.Store) {
	const apps, limit = 25, 10
	var want, got []string
	for i := range 2 * apps {
		app := fmt.Sprintf("app%02d", (7*i)%apps)
		some(t, s, app, 1)
		want = append(want, app)
	}
	for range 2 * apps / limit {
		got = append(got, takeDue(t, s, limit, nil)...)
	}
	slices.Sort(want[:apps])
	slices.Sort(got[:apps])
	if diff := cmp.Diff(want[:apps], got[:apps]); diff != "" {
		t.Error("the first turns: " + diff)
	}
	if len(got) != 2*apps {
		t.Errorf("%d wakes", len(got))
	}
}

// requeue: what was handed to the queue is due at once when the queue lost it, and what is due later at
// its time; a round under way and what waits in the store are left alone.
func requeue(t *testing.T, s *store.Store) {
	some(t, s, "queued", 3)
	if got := takeDue(t, s, 1, nil); len(got) != 1 { // one is claimed
		t.Fatalf("took %v", got)
	}
	ws, err := s.Due(t.Context(), "mail", providers.Normal, 10, nil)
	if err != nil || len(ws) != 2 {
		t.Fatalf("%+v %v", ws, err)
	}
	record(t, s, ask{app: "pending", n: 1, in: time.Hour})
	if n, err := s.Requeue(t.Context()); n != 2 || err != nil {
		t.Errorf("%d were queued, %v", n, err)
	}
	again, err := s.Due(t.Context(), "mail", providers.Normal, 10, nil)
	if err != nil || len(again) != 2 {
		t.Fatalf("%+v %v", again, err)
	}
	old := again[0]
	old.Fence--
	if err := s.Unqueue(t.Context(), []core.Wake{again[1], old}); err != nil { // its wake was lost, and one long past
		t.Fatal(err)
	}
	lost, err := s.Due(t.Context(), "mail", providers.Normal, 10, nil)
	if err != nil || len(lost) != 1 || lost[0].Batch != again[1].Batch {
		t.Fatalf("%+v are due, not %s alone; %v", lost, again[1].Batch, err)
	}
	again[1] = lost[0]
	for _, w := range again {
		if claim(t, s, w) == nil {
			t.Errorf("the new wake %+v is not good", w)
		}
	}
	for _, w := range ws {
		if claim(t, s, w) != nil {
			t.Errorf("the lost wake %+v is still good", w)
		}
	}
	if n, err := s.Requeue(t.Context()); n != 0 || err != nil {
		t.Errorf("nothing is queued, and yet %d, %v", n, err)
	}
}

// unclaimed: a batch whose wake is gone is due before its alarm clock rings. One that was queued only now
// is left alone, and so are another lane's and route's, what is due later, and a round under way.
func unclaimed(t *testing.T, s *store.Store) {
	on := core.RouteLane{Route: "mail", Lane: providers.Normal}
	lost := some(t, s, "shop", 2)
	sending := record(t, s, ask{n: 1})
	record(t, s, ask{n: 1, in: time.Minute})
	record(t, s, ask{n: 1, route: "push"})
	queued, err := s.Due(t.Context(), on.Route, on.Lane, 10, nil)
	if err != nil || len(queued) != 3 {
		t.Fatalf("%+v %v", queued, err)
	}
	if _, err := s.Due(t.Context(), "push", on.Lane, 10, nil); err != nil {
		t.Fatal(err)
	}
	for _, w := range queued {
		if w.Batch == sending.Deliveries[0].Batch {
			claim(t, s, w)
		}
	}
	if due, waits, err := s.Overdue(t.Context()); due || err != nil {
		t.Errorf("nothing is overdue, and yet %v %v %v", due, waits, err)
	}
	until(t, "the store to say that some are unclaimed", func() bool { _, waits, err := s.Overdue(t.Context()); return waits && err == nil })
	fresh := some(t, s, "shop", 1)
	if _, err := s.Due(t.Context(), on.Route, on.Lane, 10, nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		on     core.RouteLane
		longer time.Duration
		want   int
	}{{core.RouteLane{Route: "mail", Lane: providers.Bulk}, core.Unclaimed, 0}, {on, time.Hour, 0}, {on, core.Unclaimed, 2}, {on, core.Unclaimed, 0}} {
		if n, err := s.Unclaimed(t.Context(), c.on, c.longer); n != c.want || err != nil {
			t.Errorf("%+v: %d, %v", c, n, err)
		}
	}
	again, err := s.Due(t.Context(), on.Route, on.Lane, 10, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []core.ID
	for _, w := range again {
		got = append(got, w.Batch)
		if claim(t, s, w) == nil {
			t.Errorf("the new wake %+v is not good", w)
		}
	}
	// They became due in one moment: which of them comes first is nobody's promise.
	inOrder := cmpopts.SortSlices(func(a, b core.ID) bool { return a.String() < b.String() })
	if diff := cmp.Diff(lost, got, inOrder); diff != "" {
		t.Errorf("taken again: %s; the fresh one is %v", diff, fresh)
	}
	for _, w := range queued {
		if claim(t, s, w) != nil {
			t.Errorf("the lost wake %+v is still good", w)
		}
	}
}

// straysLost: a relay that dies with what it took as strays has sent nothing, and its successor is told so, however many
// there were; a worker that dies has, and it stays so. The round that follows reads what was made of it meanwhile.
func straysLost(t *testing.T, s *store.Store) {
	a := build(s, ask{n: 2, route: "old"})
	a.Deliveries[1].ExpiresAt = s.Now().Add(time.Millisecond).Truncate(time.Microsecond)
	if _, err := s.Record(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	id := a.Deliveries[0].Batch
	stray := func() (r *core.Round) {
		until(t, "it to be a stray", func() bool {
			rounds, _, err := s.Strays(t.Context(), []string{"mail"}, 10, 0, time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range rounds {
				r = x
			}
			return r != nil
		})
		return r
	}
	lapse := func() (r *core.Round) {
		until(t, "its lease to end", func() bool {
			rounds, err := s.Lapsed(t.Context(), 10, time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range rounds {
				r = x
			}
			return r != nil
		})
		return r
	}
	stray()
	for range 2 {
		if r := lapse(); !r.Unsent || r.ID != id || len(r.Deliveries) != 2 {
			t.Fatalf("a stray whose relay died: %+v", r)
		}
	}
	r := lapse()
	st := &core.Settlement{Batch: r.Batch, Worker: "relay", At: r.Now}
	for i := range r.Deliveries {
		v := r.Deliveries[i].Hold(core.CodeNoRoute, r.Now, r.Now)
		st.Add(v, nil)
	}
	st.Split(st.At, false)
	settle(t, s, st)
	claimed := func(w core.Wake) {
		t.Helper()
		r, err := s.Claim(t.Context(), w, "w", time.Millisecond)
		if err != nil || r == nil || len(r.Deliveries) != 1 || r.Deliveries[0].Code != core.CodeNoRoute {
			t.Fatalf("claimed: %+v, %v", r, err)
		}
	}
	claimed(core.Wake{Batch: id, Fence: st.Stay.Fence, Route: "old"})
	for range 2 {
		if r := lapse(); r.Unsent || r.ID != id {
			t.Fatalf("a round whose worker died: %+v", r)
		}
	}
	steps, err := s.Timeline(t.Context(), "shop", a.Notification.ID)
	if err != nil {
		t.Fatal(err)
	}
	var rounds []string
	for _, x := range steps {
		if x.Attempt > 0 {
			rounds = append(rounds, fmt.Sprint(x.Attempt, " ", x.What))
		}
	}
	slices.Sort(rounds)
	if diff := cmp.Diff([]string{"1 expired", "1 held", "2 started"}, rounds); diff != "" {
		t.Error("rounds on record: " + diff)
	}
}
