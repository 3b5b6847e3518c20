package storetest

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// after is how long a channel has in these tests: longer than they take.
const after = time.Minute

// ladder is a fallback on record: one delivery for each channel named, "push" twice being two devices.
type ladder struct {
	t testing.TB
	s *store.Store
	a *core.Acceptance
}

func climb(t testing.TB, s *store.Store, channels ...string) *ladder {
	t.Helper()
	return climbAs(t, s, func(*core.Acceptance) {}, channels...)
}

// climbAs is climb of what is altered before it is recorded.
func climbAs(t testing.TB, s *store.Store, alter func(*core.Acceptance), channels ...string) *ladder {
	t.Helper()
	a := build(s, ask{n: len(channels), recipient: "u1"})
	n := &a.Notification
	n.Mode, n.FallbackAfter, n.Skipped = core.ModeFallback, after, nil
	step := -1
	for i := range a.Deliveries {
		d := &a.Deliveries[i]
		if i == 0 || channels[i] != channels[i-1] {
			step++
		}
		d.Channel, d.Route, d.Kind = channels[i], channels[i], channels[i]
		if d.Channel == "in_app" {
			d.Kind, d.Address = "websocket", "u1"
		}
		d.Ladder, d.Step = a.Deliveries[0].ID, step
		if step > 0 {
			d.DueAt, d.Held = n.SendAt.Add(time.Duration(step)*after).Truncate(time.Microsecond), core.HeldFallback
		}
	}
	alter(a)
	if _, err := s.Record(t.Context(), a); err != nil {
		t.Fatalf("Record: %v", err)
	}
	return &ladder{t, s, a}
}

// round takes what is due on a route.
func (l *ladder) round(route string) *core.Round {
	l.t.Helper()
	ws, err := l.s.Due(l.t.Context(), route, providers.Normal, 1, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	if len(ws) == 0 {
		return nil
	}
	if r := claim(l.t, l.s, ws[0]); r != nil {
		return r
	}
	return l.round(route) // one that was left empty
}

// answer sends what is due on a route, and has it answered by one outcome; false if nothing is due.
func (l *ladder) answer(route string, o providers.Outcome) bool {
	l.t.Helper()
	r := l.round(route)
	if r != nil {
		l.settle(judge(r, all(o)))
	}
	return r != nil
}

// settle settles a round, and waits until the moment that it is said to have ended.
func (l *ladder) settle(st *core.Settlement) {
	l.t.Helper()
	if settle(l.t, l.s, st) {
		l.t.Fatal("stale")
	}
	until(l.t, "the round's end", func() bool { return !l.s.Now().Before(st.At) })
}

func (l *ladder) hear(i int, e providers.Event) {
	l.t.Helper()
	d := &l.a.Deliveries[i]
	if found, err := l.s.Receipt(l.t.Context(), d.Route, providers.Receipt{ID: d.ID.String(), Event: e}); err != nil || !found {
		l.t.Fatalf("receipt: %v, %v", found, err)
	}
}

// are holds the deliveries' states, and behind a slash the codes of those that were cancelled.
func (l *ladder) are(want ...string) {
	l.t.Helper()
	ds, _, err := l.s.Deliveries(l.t.Context(), "shop", l.a.Notification.ID, core.Page{})
	if err != nil {
		l.t.Fatal(err)
	}
	var got []string
	for _, d := range ds {
		text := d.State.String()
		if d.State == core.Cancelled {
			text += "/" + d.Code
		}
		got = append(got, text)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		l.t.Errorf("states: %s", diff)
	}
}

func fallbackAcknowledged(t *testing.T, s *store.Store) {
	l := climb(t, s, "in_app", "push", "email")
	ds, _, err := s.Deliveries(t.Context(), "shop", l.a.Notification.ID, core.Page{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(l.a.Deliveries, ds); diff != "" {
		t.Errorf("it came back changed: %s", diff)
	}
	if l.answer("push", providers.Accepted) || l.answer("email", providers.Accepted) {
		t.Fatal("a later channel was due from the start")
	}
	if !l.answer("in_app", providers.Accepted) {
		t.Fatal("the first channel was not due")
	}
	if l.answer("push", providers.Accepted) {
		t.Fatal("the next channel did not wait for the first")
	}
	l.hear(0, providers.EventDelivered)
	l.are("delivered", "cancelled/acknowledged", "cancelled/acknowledged")
	steps, err := s.Timeline(t.Context(), "shop", l.a.Notification.ID)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, st := range steps {
		if st.Channel == "email" {
			got = append(got, st.What+" "+st.Code)
		}
		if st.What == core.StepHeld && !st.HeldTill.Equal(l.a.Notification.SendAt.Add(map[string]time.Duration{"push": after, "email": 2 * after}[st.Channel])) {
			t.Errorf("%s waits until %v", st.Channel, st.HeldTill)
		}
	}
	if diff := cmp.Diff([]string{"resolved ", "held fallback", "cancelled acknowledged"}, got); diff != "" {
		t.Errorf("what the timeline says of the mail: %s", diff)
	}
}

func fallbackMovesOn(t *testing.T, s *store.Store) {
	for _, o := range []providers.Outcome{providers.Gone, providers.Rejected, providers.Absent} {
		l := climb(t, s, "in_app", "push", "email")
		l.answer("in_app", o)
		if l.answer("email", providers.Accepted) {
			t.Fatalf("%v: the last channel went before the second", o)
		}
		if !l.answer("push", o) {
			t.Fatalf("%v: the next channel did not go at once", o)
		}
		if !l.answer("email", providers.Accepted) {
			t.Fatalf("%v: the last channel did not go at once", o)
		}
		if o == providers.Absent {
			l.are("sent", "sent", "sent")
			l.hear(0, providers.EventDelivered) // found in the history after all
			l.are("delivered", "sent", "sent")
			continue
		}
		l.are("failed", "failed", "sent")
	}
}

// fallbackLate: the push went, for nobody acknowledged in time; then somebody does, and the mail stays at home.
func fallbackLate(t *testing.T, s *store.Store) {
	l := climb(t, s, "in_app", "push", "email")
	l.answer("in_app", providers.Absent)
	l.answer("push", providers.Accepted)
	if l.answer("email", providers.Accepted) {
		t.Fatal("the mail did not wait for the push")
	}
	l.hear(0, providers.EventDelivered)
	l.are("delivered", "sent", "cancelled/acknowledged")
	if l.answer("email", providers.Accepted) {
		t.Error("what was cancelled went")
	}
}

// fallbackUnderWay: the step after the one that fails was claimed already, for a wake may be early. It goes in that round
// alone, and is not brought forward into another.
func fallbackUnderWay(t *testing.T, s *store.Store) {
	l := climbAs(t, s, func(a *core.Acceptance) {
		a.Notification.FallbackAfter = core.EarlyWake * 9 / 10
		a.Deliveries[1].DueAt = a.Notification.SendAt.Add(a.Notification.FallbackAfter)
	}, "in_app", "push")
	early := claim(t, s, core.Wake{Batch: l.a.Deliveries[1].Batch, Fence: 1, Route: "push"})
	if early == nil || len(early.Deliveries) != 1 {
		t.Fatalf("the early round: %+v", early)
	}
	l.answer("in_app", providers.Gone)
	until(t, "the time that the step was due at", func() bool { return !s.Now().Before(l.a.Deliveries[1].DueAt) })
	if again := l.round("push"); again != nil {
		t.Errorf("what is under way goes again: %+v", again.Deliveries)
	}
	l.settle(judge(early, all(providers.Accepted)))
	l.are("failed", "sent")
}

// fallbackTried: the step after the one that fails was in a round before its time and is held. It is not brought forward:
// it had its turn, and what it came to there stays on record with its batch.
func fallbackTried(t *testing.T, s *store.Store) {
	l := climbAs(t, s, func(a *core.Acceptance) {
		a.Notification.FallbackAfter = core.EarlyWake * 9 / 10
		a.Deliveries[1].DueAt = a.Notification.SendAt.Add(a.Notification.FallbackAfter)
	}, "in_app", "push")
	early := claim(t, s, core.Wake{Batch: l.a.Deliveries[1].Batch, Fence: 1, Route: "push"})
	if early == nil {
		t.Fatal("the step was not claimed early")
	}
	l.settle(judge(early, func(int) providers.Result { return providers.Result{Outcome: providers.Throttled, After: time.Minute} }))
	l.answer("in_app", providers.Gone)
	if again := l.round("push"); again != nil {
		t.Errorf("what was throttled for a minute goes again: %+v", again.Deliveries)
	}
	l.are("failed", "pending")
}

func fallbackDevices(t *testing.T, s *store.Store) {
	l := climb(t, s, "push", "push", "email")
	r := l.round("push")
	if len(r.Deliveries) != 2 {
		t.Fatalf("%d devices in the round", len(r.Deliveries))
	}
	l.settle(judge(r, func(i int) providers.Result {
		return providers.Result{Outcome: []providers.Outcome{providers.Gone, providers.Accepted}[i], ProviderID: []string{"", "p2"}[i]}
	}))
	if l.answer("email", providers.Accepted) {
		t.Fatal("one device has it, and the mail went")
	}
	l.hear(1, providers.EventFailed)
	if !l.answer("email", providers.Accepted) {
		t.Fatal("both devices failed, and the mail waits")
	}
	l.are("failed", "failed", "sent")
}

// fallbackRace ends two devices in two rounds at the same moment: whoever is last moves on.
func fallbackRace(t *testing.T, s *store.Store) {
	for range 10 {
		two := pair(t, s)
		first, second := two.round("push"), two.round("sms")
		var both sync.WaitGroup
		for _, r := range []*core.Round{first, second} {
			both.Go(func() {
				if _, err := s.Settle(t.Context(), judge(r, all(providers.Rejected))); err != nil {
					t.Error(err)
				}
			})
		}
		both.Wait()
		until(t, "the rounds' end", func() bool { return s.Now().After(second.Now.Add(time.Millisecond)) })
		if !two.answer("email", providers.Accepted) {
			t.Fatal("both failed, and the mail waits")
		}
	}
}

// pair is a fallback whose first step has deliveries on two routes.
func pair(t testing.TB, s *store.Store) *ladder {
	t.Helper()
	a := build(s, ask{n: 3, recipient: "u1"})
	n := &a.Notification
	n.Mode, n.FallbackAfter = core.ModeFallback, after
	for i, route := range []string{"push", "sms", "email"} {
		d := &a.Deliveries[i]
		d.Channel, d.Route, d.Kind, d.Ladder = route, route, route, a.Deliveries[0].ID
	}
	last := &a.Deliveries[2]
	last.Step, last.DueAt, last.Held = 1, n.SendAt.Add(after), core.HeldFallback
	if _, err := s.Record(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	return &ladder{t, s, a}
}

// fallbackEarly: what is heard before the round is settled counts like what is heard after it.
func fallbackEarly(t *testing.T, s *store.Store) {
	l := climb(t, s, "in_app", "push")
	r := l.round("in_app")
	l.hear(0, providers.EventDelivered)
	l.are("pending", "cancelled/acknowledged")
	l.settle(judge(r, all(providers.Accepted)))
	l.are("delivered", "cancelled/acknowledged")

	l = climb(t, s, "push", "email")
	r = l.round("push")
	l.hear(0, providers.EventBounced)
	l.settle(judge(r, all(providers.Accepted)))
	if !l.answer("email", providers.Accepted) {
		t.Error("it had bounced before its round was settled, and the mail waits")
	}
	l.are("failed", "sent")
}

func fallbackInbox(t *testing.T, s *store.Store) {
	for _, mark := range []string{"seen", "read", "archive", "unread"} {
		l := climb(t, s, "in_app", "push")
		l.answer("in_app", providers.Accepted)
		if err := s.MarkInbox(t.Context(), "shop", "u1", l.a.Deliveries[0].ID, mark); err != nil {
			t.Fatal(err)
		}
		if mark == "unread" {
			l.are("sent", "pending")
			continue
		}
		l.are("delivered", "cancelled/acknowledged")
	}
}

// fallbackRounds: what is under way when an acknowledgement comes is cancelled only if it would be held, and
// what waits at a gate is not brought forward.
func fallbackRounds(t *testing.T, s *store.Store) {
	l := climb(t, s, "in_app", "push", "email")
	l.answer("in_app", providers.Absent)
	r := l.round("push")
	l.hear(0, providers.EventRead)
	l.are("delivered", "pending", "cancelled/acknowledged")
	l.settle(judge(r, all(providers.Deferred)))
	l.are("delivered", "cancelled/acknowledged", "cancelled/acknowledged")

	l = climb(t, s, "in_app", "push", "email")
	l.answer("in_app", providers.Absent)
	l.answer("push", providers.Throttled) // held, its turn came
	if l.answer("push", providers.Accepted) || l.answer("email", providers.Accepted) {
		t.Error("what is held went at once")
	}
	if n, err := s.Cancel(t.Context(), "shop", l.a.Notification.ID); err != nil || n != 2 {
		t.Errorf("cancelled %d, %v", n, err)
	}
	l.are("sent", "cancelled/", "cancelled/")
}

// fallbackBatches: many fallbacks share batches, and each moves on by itself.
func fallbackBatches(t *testing.T, s *store.Store) {
	ls := make([]*ladder, 12)
	var recorded sync.WaitGroup
	for i := range ls {
		recorded.Go(func() { ls[i] = climb(t, s, "in_app", "push", "email") })
	}
	recorded.Wait()
	for range ls {
		r := ls[0].round("in_app")
		if r == nil {
			break
		}
		ls[0].settle(judge(r, func(i int) providers.Result {
			o := providers.Accepted
			if slices.IndexFunc(ls, func(l *ladder) bool { return l.a.Deliveries[0].ID == r.Deliveries[i].ID })%3 == 0 {
				o = providers.Absent
			}
			return providers.Result{Outcome: o}
		}))
	}
	pushed := 0
	for r := ls[0].round("push"); r != nil; r = ls[0].round("push") {
		pushed += len(r.Deliveries)
		ls[0].settle(judge(r, all(providers.Accepted)))
	}
	if pushed != 4 {
		t.Errorf("%d of 4 moved on", pushed)
	}
	for i, l := range ls {
		if i%3 == 0 {
			l.are("sent", "sent", "pending")
		} else {
			l.are("sent", "pending", "pending")
		}
	}
}

// fallbackFits: however many deliveries go forward at once, a batch holds no more than its route takes.
func fallbackFits(t *testing.T, s *store.Store) {
	const mails = 2*store.DefaultMaxBatch + 1
	l := climb(t, s, append([]string{"in_app"}, slices.Repeat([]string{"email"}, mails)...)...)
	l.answer("in_app", providers.Absent)
	var got []int
	for r := l.round("email"); r != nil; r = l.round("email") {
		got = append(got, len(r.Deliveries))
		l.settle(judge(r, all(providers.Accepted)))
	}
	slices.Sort(got)
	if diff := cmp.Diff([]int{1, store.DefaultMaxBatch, store.DefaultMaxBatch}, got); diff != "" {
		t.Errorf("batches of the mails that went forward: %s", diff)
	}
}
