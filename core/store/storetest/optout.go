package storetest

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// promo records deliveries to u1 of the category promo, altered before.
func promo(t *testing.T, s *store.Store, a ask, alter func(*core.Acceptance)) *core.Acceptance {
	t.Helper()
	if a.recipient == "" {
		a.recipient = "u1"
	}
	acc := build(s, a)
	acc.Notification.Category = "promo"
	if alter != nil {
		alter(acc)
	}
	if _, err := s.Record(t.Context(), acc); err != nil {
		t.Fatalf("Record: %v", err)
	}
	return acc
}

// choose has u1 choose.
func choose(t *testing.T, s *store.Store, p core.Preferences) {
	t.Helper()
	if err := s.PutPreferences(t.Context(), "shop", "u1", p, rules); err != nil {
		t.Fatalf("PutPreferences: %v", err)
	}
}

// stand is what became of each delivery, as ladder.are shows it.
func stand(t *testing.T, s *store.Store, a *core.Acceptance, want ...string) {
	t.Helper()
	(&ladder{t, s, a}).are(want...)
}

func cancelledSteps(t *testing.T, s *store.Store, a *core.Acceptance) (out []core.Step) {
	t.Helper()
	steps, err := s.Timeline(t.Context(), a.Notification.App, a.Notification.ID)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(steps, func(x core.Step) bool { return x.What != core.StepCancelled })
}

// optOut: what is pending and ruled out by a choice is cancelled with it, and nothing else is.
func optOut(t *testing.T, s *store.Store) {
	no := core.Preferences{"promo": {"email": false}, "security": {"email": false}}
	waits := promo(t, s, ask{n: 2, in: time.Hour}, nil)
	now := promo(t, s, ask{n: 1}, nil)
	quiet := promo(t, s, ask{n: 1}, func(a *core.Acceptance) {
		d := &a.Deliveries[0]
		d.Held, d.DueAt, d.Quiet = core.HeldQuiet, a.Notification.SendAt.Add(8*time.Hour), "22:00-08:00 UTC"
	})
	deferred := promo(t, s, ask{n: 1}, nil)
	settle(t, s, judge(claim(t, s, wakeOf(deferred)), func(int) providers.Result {
		return providers.Result{Outcome: providers.Deferred, Code: "450", Reason: "busy"}
	}))
	push := promo(t, s, ask{n: 1}, func(a *core.Acceptance) { a.Deliveries[0].Channel = "push" })
	other := promo(t, s, ask{n: 1}, func(a *core.Acceptance) { a.Notification.Category = "orders" })
	mandatory := promo(t, s, ask{n: 1}, func(a *core.Acceptance) { a.Notification.Category = "security" })
	anothers := promo(t, s, ask{n: 1, recipient: "u2"}, nil)
	direct := promo(t, s, ask{n: 1}, func(a *core.Acceptance) { a.Deliveries[0].Recipient = "" })
	elsewhere := promo(t, s, ask{n: 1, app: "other"}, nil)
	sent := promo(t, s, ask{n: 1}, nil)
	settle(t, s, judge(claim(t, s, wakeOf(sent)), all(providers.Accepted)))
	held, goes := promo(t, s, ask{n: 1}, nil), promo(t, s, ask{n: 1}, nil)
	heldRound, goesRound := claim(t, s, wakeOf(held)), claim(t, s, wakeOf(goes))

	choose(t, s, no)
	for _, a := range []*core.Acceptance{now, quiet, deferred} {
		stand(t, s, a, "cancelled/preference")
		if r := claim(t, s, wakeOf(a)); r != nil {
			t.Errorf("a worker still gets %+v", r.Deliveries)
		}
		steps := cancelledSteps(t, s, a)
		if len(steps) != 1 || steps[0].Code != core.CodePreference || steps[0].Delivery != a.Deliveries[0].ID || steps[0].Channel != "email" {
			t.Errorf("the timeline says %+v", steps)
		}
	}
	if c := counts(t, s, waits); c != (core.Counts{Cancelled: 2}) {
		t.Errorf("counts %+v", c)
	}
	for _, a := range []*core.Acceptance{push, other, mandatory, anothers, direct} {
		stand(t, s, a, "pending")
	}
	if c := counts(t, s, elsewhere); c.Pending != 1 {
		t.Errorf("another app's: %+v", c)
	}
	stand(t, s, sent, "sent")
	settle(t, s, judge(heldRound, func(int) providers.Result { return providers.Result{Outcome: providers.Deferred, Code: "451"} }))
	settle(t, s, judge(goesRound, all(providers.Accepted)))
	stand(t, s, held, "cancelled/preference")
	stand(t, s, goes, "sent")
	if ds, _, err := s.Deliveries(t.Context(), "shop", deferred.Notification.ID, core.Page{}); err != nil || ds[0].Reason != "" || ds[0].Attempts != 1 {
		t.Errorf("what was tried before: %+v, %v", ds, err)
	}
	choose(t, s, core.Preferences{"promo": {"email": true}})
	stand(t, s, now, "cancelled/preference")
	choose(t, s, core.Preferences{"*": {"*": false}})
	stand(t, s, push, "cancelled/preference")
	stand(t, s, other, "cancelled/preference")
	stand(t, s, mandatory, "pending")
}

// optOutOtherwise: a link and an import say no as well.
func optOutOtherwise(t *testing.T, s *store.Store) {
	put(t, s, "u1", "a@example.com")
	a, b, c := promo(t, s, ask{n: 1, in: time.Hour}, nil), promo(t, s, ask{n: 1, in: time.Hour}, nil), promo(t, s, ask{n: 1, in: time.Hour}, nil)
	push := promo(t, s, ask{n: 1, in: time.Hour}, func(a *core.Acceptance) { a.Deliveries[0].Channel = "push" })
	if err := s.Unsubscribe(t.Context(), core.Unsubscription{App: "shop", Recipient: "u1", Category: "promo", Channel: "email"}, rules); err != nil {
		t.Fatal(err)
	}
	for _, x := range []*core.Acceptance{a, b, c} {
		stand(t, s, x, "cancelled/preference")
	}
	stand(t, s, push, "pending")
	all := []core.Import{{Recipient: core.Recipient{ID: "u1"}}, {Recipient: core.Recipient{ID: "u2", Preferences: core.Preferences{"*": {"*": false}}}}}
	for _, want := range []string{"pending", "cancelled/preference"} {
		if _, err := s.ImportRecipients(t.Context(), "shop", all, rules); err != nil {
			t.Fatal(err)
		}
		stand(t, s, push, want)
		all[0].Preferences = core.Preferences{"promo": {"push": false}}
	}
}

// optOutFallback: a fallback goes on without the step that was ruled out.
func optOutFallback(t *testing.T, s *store.Store) {
	noPush := core.Preferences{"*": {"push": false}}
	fresh := func(channels ...string) *ladder {
		choose(t, s, nil)
		return climb(t, s, channels...)
	}
	l := fresh("push", "push", "email") // the first step: the next one is due now
	choose(t, s, noPush)
	l.are("cancelled/preference", "cancelled/preference", "pending")
	if !l.answer("email", providers.Accepted) {
		t.Error("the first step was ruled out, and the mail waits")
	}

	l = fresh("in_app", "push", "email") // one between: the last one takes its place, while the first has its time
	l.answer("in_app", providers.Accepted)
	choose(t, s, noPush)
	l.are("sent", "cancelled/preference", "pending")
	if l.answer("email", providers.Accepted) {
		t.Error("the mail went though the first step has time left")
	}
	l.hear(0, providers.EventBounced)
	if !l.answer("email", providers.Accepted) {
		t.Error("the first step failed, and the mail waits")
	}

	l = fresh("in_app", "push", "email") // the one whose turn it is
	l.answer("in_app", providers.Absent)
	choose(t, s, noPush)
	if l.answer("push", providers.Accepted) || !l.answer("email", providers.Accepted) {
		t.Error("the mail did not go in the place of the push")
	}

	choose(t, s, nil)
	l = climbAs(t, s, func(a *core.Acceptance) { // one that would have waited for the morning
		a.Notification.FallbackAfter = 50 * time.Millisecond
		for i, d := range a.Deliveries[1:] {
			a.Deliveries[i+1].DueAt = d.DueAt.Add(8 * time.Hour)
		}
	}, "in_app", "push", "email")
	l.answer("in_app", providers.Accepted)
	choose(t, s, noPush)
	until(t, "the first step's time to be over", func() bool { return l.answer("email", providers.Accepted) })

	l = fresh("push", "email") // one in a worker's hands, which would be held
	r := l.round("push")
	choose(t, s, noPush)
	if l.answer("email", providers.Accepted) {
		t.Error("the mail went though the push may yet go")
	}
	l.settle(judge(r, all(providers.Deferred)))
	l.are("cancelled/preference", "pending")
	if !l.answer("email", providers.Accepted) {
		t.Error("the push did not go, and the mail waits")
	}

	l = fresh("in_app", "push") // the last one
	l.answer("in_app", providers.Absent)
	choose(t, s, noPush)
	l.are("sent", "cancelled/preference")
	if v, err := s.Notification(t.Context(), "shop", l.a.Notification.ID); err != nil || core.StatusOf(&v.Notification, v.Counts, v.Begun, s.Now()) != core.StatusCompleted {
		t.Errorf("%+v, %v", v, err)
	}

	l = fresh("in_app", "push", "email")
	choose(t, s, core.Preferences{"*": {"*": false}})
	l.are("cancelled/preference", "cancelled/preference", "cancelled/preference")
}

// optOutMany: whoever has more waiting than one look shows gets none of it, and what workers begin after the answer
// has nothing of it.
func optOutMany(t *testing.T, s *store.Store) {
	var as []*core.Acceptance
	for range 12 {
		as = append(as, promo(t, s, ask{n: 100, in: time.Hour}, nil))
	}
	due := make([]*core.Acceptance, 20)
	for i := range due {
		due[i] = promo(t, s, ask{n: 3}, func(a *core.Acceptance) { a.Deliveries[2].Recipient = "u2" })
	}
	var answered atomic.Bool
	var workers sync.WaitGroup
	for part := range slices.Chunk(due, 5) {
		workers.Go(func() {
			for _, a := range part {
				late := answered.Load()
				r := claim(t, s, wakeOf(a))
				for i := range r.Deliveries {
					if late && r.Deliveries[i].Recipient == "u1" {
						t.Error("a round that began after the answer has what was ruled out")
					}
				}
				settle(t, s, judge(r, all(providers.Deferred)))
			}
		})
	}
	choose(t, s, core.Preferences{"promo": {"email": false}})
	answered.Store(true)
	workers.Wait()
	for _, a := range as {
		if diff := cmp.Diff(core.Counts{Cancelled: 100}, counts(t, s, a)); diff != "" {
			t.Error(diff)
		}
	}
	for _, a := range due {
		if diff := cmp.Diff(core.Counts{Cancelled: 2, Pending: 1}, counts(t, s, a)); diff != "" {
			t.Error(diff)
		}
	}
}
