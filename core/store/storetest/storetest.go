// Package storetest is the examination that the store passes on both of its databases.
package storetest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// test is one part of the examination.
type test struct {
	name string
	test func(t *testing.T, s *store.Store)
}

// Run examines the store that open opens, empty, once per test.
func Run(t *testing.T, open func(t *testing.T) *store.Store) {
	for _, c := range append([]test{
		{"a notification from accept to sent", lifecycle},
		{"a stale fence changes nothing", fence},
		{"a stale wake claims nothing", staleWake},
		{"terminal is final", final},
		{"terminal is final for one alone", finalAlone},
		{"what is held moves with its second", split},
		{"an early wake is refused", early},
		{"a lapsed lease is taken over", lapsed},
		{"cancel", cancel},
		{"cancel during a round", cancelSending},
		{"cancel what is held", cancelHeld},
		{"cancel races claim", cancelRace},
		{"due is fair and skips paused routes", due},
		{"due takes turns between apps within their room", dueTurns},
		{"due takes the longest overdue first", dueOldest},
		{"due of more apps than it takes", dueManyApps},
		{"what a wiped queue held is due", requeue},
		{"what nobody has claimed is due", unclaimed},
		{"resuming a route", resuming},
		{"strays", strays},
		{"strays whose relay dies", straysLost},
		{"idempotency, a hundred at once", idempotency},
		{"64 writers share batches", writers},
		{"a bad member fails alone", badMember},
		{"gone endpoints", gone},
		{"suppressed addresses", suppressions},
		{"suppressed among many", suppressedAmongMany},
		{"suppressed as somebody is erased", suppressedErased},
		{"own outcomes", ownOutcomes},
		{"receipts", receipts},
		{"early receipts", earlyReceipts},
		{"receipts of unknown attempts", unknownReceipts},
		{"reports", reports},
		{"recipients", recipients},
		{"erasing a recipient", erase},
		{"topics", topics},
		{"audience", audience},
		{"preferences", preferences},
		{"twenty unsubscribe at once", unsubscribeAtOnce},
		{"an opt-out", optOut},
		{"an opt-out by a link or an import", optOutOtherwise},
		{"an opt-out from a fallback's step", optOutFallback},
		{"an opt-out from many", optOutMany},
		{"a secret", secret},
		{"import", importing},
		{"erasing leaves nothing", eraseEverywhere},
		{"erased stays erased", erasedStaysErased},
		{"erasing who was skipped by many", eraseSkippedByMany},
		{"a fallback that is acknowledged", fallbackAcknowledged},
		{"a fallback moves on at once", fallbackMovesOn},
		{"a fallback acknowledged late", fallbackLate},
		{"a fallback whose next step is under way", fallbackUnderWay},
		{"a fallback whose next step was tried", fallbackTried},
		{"a fallback with two devices", fallbackDevices},
		{"a fallback whose devices end at once", fallbackRace},
		{"a fallback that hears early", fallbackEarly},
		{"a fallback that is read in the inbox", fallbackInbox},
		{"a fallback under way", fallbackRounds},
		{"fallbacks that share batches", fallbackBatches},
		{"fallbacks go forward in batches that fit", fallbackFits},
		{"templates and keys", templatesAndKeys},
		{"inbox", inbox},
		{"an inbox leaves its trace", inboxTrace},
		{"lists", lists},
		{"dead", dead},
		{"sweep", sweep},
		{"sweep takes a large notification in pieces", sweepLarge},
		{"sweep goes by the last change", sweepChange},
		{"sweep takes campaigns that are over", sweepCampaigns},
		{"leases", leases},
		{"a lease, many at once", leaseRace},
		{"model", model},
	}, campaignTests...) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, open(t))
		})
	}
}

func lifecycle(t *testing.T, s *store.Store) {
	a := record(t, s, ask{n: 3})
	r := claim(t, s, wakeOf(a))
	if r == nil || len(r.Deliveries) != 3 {
		t.Fatalf("the round has not the three deliveries: %+v", r)
	}
	if got := r.Contents[r.Deliveries[0].Content]; got == nil || !cmp.Equal(*got, a.Contents[0]) {
		t.Errorf("content: %+v", got)
	}
	if !r.LeaseEnd.Equal(r.Now.Add(lease)) || r.State != core.BatchSending {
		t.Errorf("lease ends %v, state %v", r.LeaseEnd, r.State)
	}
	d := a.Deliveries[0]
	if diff := cmp.Diff(d, r.Deliveries[0]); diff != "" {
		t.Errorf("the delivery came back changed: %s", diff)
	}
	v, err := s.Notification(t.Context(), "shop", a.Notification.ID)
	if err != nil || !v.Begun {
		t.Fatalf("begun: %+v %v", v, err)
	}
	if diff := cmp.Diff(a.Notification, v.Notification); diff != "" {
		t.Errorf("the notification came back changed: %s", diff)
	}
	steps, err := s.Timeline(t.Context(), "shop", a.Notification.ID)
	if err != nil || steps[len(steps)-1].What != core.StepStarted {
		t.Fatalf("the round is not on record before the call: %+v %v", steps, err)
	}
	if settle(t, s, judge(r, all(providers.Accepted))) {
		t.Fatal("stale")
	}
	if c := counts(t, s, a); c.Sent != 3 {
		t.Errorf("counts %+v", c)
	}
	if claim(t, s, core.Wake{Batch: r.ID, Fence: 2}) != nil {
		t.Error("a batch that is done was claimed")
	}
	steps, err = s.Timeline(t.Context(), "shop", a.Notification.ID)
	if err != nil {
		t.Fatal(err)
	}
	var whats []string
	for _, st := range steps {
		whats = append(whats, st.What)
	}
	want := []string{"accepted", "skipped", "resolved", "resolved", "resolved", "started", "attempt", "attempt", "attempt"}
	if diff := cmp.Diff(want, whats); diff != "" {
		t.Errorf("timeline: %s", diff)
	}
}

func fence(t *testing.T, s *store.Store) {
	a := record(t, s, ask{n: 2})
	if claim(t, s, core.Wake{Batch: a.Deliveries[0].Batch, Fence: 7}) != nil {
		t.Error("a wrong fence was claimed")
	}
	r := claim(t, s, wakeOf(a))
	if claim(t, s, wakeOf(a)) != nil {
		t.Error("claimed twice")
	}
	st := judge(r, all(providers.Deferred))
	if settle(t, s, st) {
		t.Fatal("the first settlement is not stale")
	}
	if settle(t, s, st) { // its answer was lost, and it comes again: it is known, and not late
		t.Error("a settlement that was kept is stale when it comes again")
	}
	late := judge(r, all(providers.Accepted))
	if !settle(t, s, late) {
		t.Fatal("a second settlement under the same fence counted")
	}
	if c := counts(t, s, a); c.Pending != 2 {
		t.Errorf("the stale settlement changed something: %+v", c)
	}
	steps, err := s.Timeline(t.Context(), "shop", a.Notification.ID)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, x := range steps {
		if x.What == core.StepLate {
			n++
			if x.Outcome != providers.Accepted {
				t.Errorf("a late result on record that is none: %+v", x)
			}
		}
	}
	if n != 2 {
		t.Errorf("%d late results on record, not 2", n)
	}
}

func final(t *testing.T, s *store.Store) {
	a := record(t, s, ask{n: 1})
	r := claim(t, s, wakeOf(a))
	st := judge(r, all(providers.Deferred))
	settle(t, s, st)
	if n, err := s.Cancel(t.Context(), "shop", a.Notification.ID); n != 1 || err != nil {
		t.Fatalf("cancel: %d %v", n, err)
	}
	if got := claim(t, s, core.Wake{Batch: st.Stay.ID, Fence: st.Stay.Fence}); got != nil {
		t.Errorf("a cancelled delivery was claimed: %+v", got)
	}
	if found, err := s.Receipt(t.Context(), "mail", providers.Receipt{ID: a.Deliveries[0].ID.String(), Event: providers.EventDelivered}); !found || err != nil {
		t.Fatal(found, err)
	}
	if c := counts(t, s, a); c.Cancelled != 1 {
		t.Errorf("a terminal state changed: %+v", c)
	}
}

func split(t *testing.T, s *store.Store) {
	a := record(t, s, ask{n: 10})
	r := claim(t, s, wakeOf(a))
	st := judge(r, func(i int) providers.Result {
		switch {
		case i < 5:
			return providers.Result{Outcome: providers.Accepted}
		case i < 8:
			return providers.Result{Outcome: providers.Deferred}
		}
		return providers.Result{Outcome: providers.Deferred, After: 5 * time.Minute}
	})
	if len(st.Moves) != 1 {
		t.Fatalf("%d moves", len(st.Moves))
	}
	settle(t, s, st)
	ds, _, err := s.Deliveries(t.Context(), "shop", a.Notification.ID, core.Page{})
	if err != nil {
		t.Fatal(err)
	}
	in := map[core.ID]int{}
	for _, d := range ds {
		if d.State == core.Pending {
			in[d.Batch]++
		}
	}
	if in[st.Stay.ID] != 3 || in[st.Moves[0].Batch.ID] != 2 {
		t.Errorf("pending by batch: %v", in)
	}
	b, err := s.Backlog(t.Context())
	if err != nil || len(b) != 1 || b[0].Pending != 2 {
		t.Errorf("backlog %+v %v", b, err)
	}
	steps, err := s.Timeline(t.Context(), "shop", a.Notification.ID)
	if err != nil {
		t.Fatal(err)
	}
	attempts := 0
	for _, x := range steps {
		if x.What == core.StepAttempt {
			attempts++
		}
	}
	if attempts != 10 {
		t.Errorf("%d attempts on record, also through the parent, not 10", attempts)
	}
}

func early(t *testing.T, s *store.Store) {
	a := record(t, s, ask{n: 1, in: time.Hour})
	if claim(t, s, wakeOf(a)) != nil {
		t.Error("claimed an hour early")
	}
	b := record(t, s, ask{n: 1, in: 500 * time.Millisecond})
	if claim(t, s, wakeOf(b)) == nil {
		t.Error("half a second early was refused")
	}
	if v, err := s.Notification(t.Context(), "shop", a.Notification.ID); err != nil || core.StatusOf(&v.Notification, v.Counts, v.Begun, s.Now()) != core.StatusScheduled {
		t.Error(v, err)
	}
}

func lapsed(t *testing.T, s *store.Store) {
	a := record(t, s, ask{n: 2})
	r, err := s.Claim(t.Context(), wakeOf(a), "w1", time.Millisecond)
	if err != nil || r == nil {
		t.Fatal(r, err)
	}
	var got []*core.Round
	until(t, "the lease's end", func() bool {
		got, err = s.Lapsed(t.Context(), 10, lease)
		return err != nil || len(got) > 0
	})
	if err != nil || len(got) != 1 || got[0].Fence != 2 || len(got[0].Deliveries) != 2 {
		t.Fatalf("%+v %v", got, err)
	}
	if again, err := s.Lapsed(t.Context(), 10, lease); err != nil || len(again) != 0 {
		t.Errorf("taken twice: %v %v", again, err)
	}
	if !settle(t, s, judge(r, all(providers.Accepted))) {
		t.Error("the lost worker settled")
	}
	if settle(t, s, judge(got[0], all(providers.Unknown))) {
		t.Error("the relay did not settle")
	}
	ds, _, err := s.Deliveries(t.Context(), "shop", a.Notification.ID, core.Page{})
	if err != nil || ds[0].Unknowns != 1 || ds[0].State != core.Pending {
		t.Errorf("%+v %v", ds, err)
	}
}

func cancel(t *testing.T, s *store.Store) {
	a := record(t, s, ask{n: 4})
	if _, err := s.Cancel(t.Context(), "other", a.Notification.ID); !errors.Is(err, core.ErrNotFound) {
		t.Errorf("another app's notification: %v", err)
	}
	if n, err := s.Cancel(t.Context(), "shop", a.Notification.ID); n != 4 || err != nil {
		t.Fatalf("%d %v", n, err)
	}
	if claim(t, s, wakeOf(a)) != nil {
		t.Error("claimed after the cancel")
	}
	if n, err := s.Cancel(t.Context(), "shop", a.Notification.ID); n != 0 || err != nil {
		t.Errorf("again: %d %v", n, err)
	}
	v, err := s.Notification(t.Context(), "shop", a.Notification.ID)
	if err != nil || v.CancelledAt.IsZero() || v.Counts.Cancelled != 4 {
		t.Errorf("%+v %v", v, err)
	}
}

func cancelSending(t *testing.T, s *store.Store) {
	a := record(t, s, ask{n: 2})
	r := claim(t, s, wakeOf(a))
	if ids, err := s.Cancelling(t.Context(), r.ID); err != nil || len(ids) != 0 {
		t.Errorf("before the cancel %v are to be cancelled (%v)", ids, err)
	}
	if n, err := s.Cancel(t.Context(), "shop", a.Notification.ID); n != 2 || err != nil {
		t.Fatalf("%d %v", n, err)
	}
	if ids, err := s.Cancelling(t.Context(), r.ID); err != nil || len(ids) != 2 {
		t.Errorf("%v are to be cancelled (%v), not both", ids, err)
	}
	if c := counts(t, s, a); c.Pending != 2 {
		t.Errorf("the call on the wire was not left alone: %+v", c)
	}
	st := judge(r, func(i int) providers.Result {
		if i == 0 {
			return providers.Result{Outcome: providers.Accepted}
		}
		return providers.Result{Outcome: providers.Deferred}
	})
	settle(t, s, st)
	if c := counts(t, s, a); c.Sent != 1 || c.Cancelled != 1 {
		t.Errorf("%+v", c)
	}
}

func due(t *testing.T, s *store.Store) {
	for range 5 {
		record(t, s, ask{app: "big", n: 1})
	}
	record(t, s, ask{app: "small", n: 1})
	until(t, "overdue", func() bool { ok, _, err := s.Overdue(t.Context()); return ok && err == nil })
	if err := s.PauseRoute(t.Context(), "mail", true); err != nil {
		t.Fatal(err)
	}
	if ws, err := s.Due(t.Context(), "mail", providers.Normal, 4, nil); len(ws) != 0 || err != nil {
		t.Fatalf("paused: %v %v", ws, err)
	}
	if err := s.PauseRoute(t.Context(), "mail", false); err != nil {
		t.Fatal(err)
	}
	ws, err := s.Due(t.Context(), "mail", providers.Normal, 4, nil)
	if err != nil || len(ws) != 4 {
		t.Fatalf("%v %v", ws, err)
	}
	apps := map[string]int{}
	for _, w := range ws {
		r := claim(t, s, w)
		if r == nil {
			t.Fatal("a wake of the relay is not good")
		}
		apps[r.App]++
	}
	if apps["small"] != 1 {
		t.Errorf("not fair: %v", apps)
	}
	if ws, err := s.Due(t.Context(), "mail", providers.Normal, 100, nil); len(ws) != 2 || err != nil {
		t.Errorf("the rest: %v %v", ws, err)
	}
}

// strays: what waits for a route that is not there is put off, a page at a time; what ran out of time of it is taken as
// a round.
func strays(t *testing.T, s *store.Store) {
	short := build(s, ask{n: 2, route: "old"})
	soon := s.Now().Add(time.Second).Truncate(time.Microsecond)
	short.Deliveries[1].ExpiresAt = soon
	if _, err := s.Record(t.Context(), short); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		record(t, s, ask{n: 1, route: "old"})
	}
	record(t, s, ask{n: 1, route: "mail"})
	find := func(routes []string, until time.Duration, want ...int) (all []*core.Round) {
		t.Helper()
		var got []int
		for range want {
			rounds, n, err := s.Strays(t.Context(), routes, 3, until, lease)
			if err != nil {
				t.Fatal(err)
			}
			got, all = append(got, n), append(all, rounds...)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("found of routes other than %v: %s", routes, diff)
		}
		return all
	}
	known := []string{"mail", "push"}
	const off = 2 * time.Second
	if rounds := find(known, off, 3, 1); len(rounds) != 0 {
		t.Errorf("nothing expired, and yet %+v", rounds)
	}
	again := s.Now().Add(off)
	until(t, "one to expire, and all to be overdue again", func() bool { return s.Now().After(again) })
	rounds := find(known, time.Minute, 3, 1)
	if len(rounds) != 1 || len(rounds[0].Deliveries) != 2 || rounds[0].ID != short.Deliveries[0].Batch {
		t.Fatalf("%+v", rounds)
	}
	if claim(t, s, wakeOf(short)) != nil {
		t.Error("its wake is still good")
	}
	st := &core.Settlement{Batch: rounds[0].Batch, Worker: "relay", At: rounds[0].Now}
	for i, d := range rounds[0].Deliveries {
		v := d.Hold(core.CodeNoRoute, st.At.Add(time.Minute), st.At)
		if i == 1 {
			v = d.Expire(st.At)
		}
		st.Verdicts = append(st.Verdicts, v)
		st.Results = append(st.Results, core.Attempt{Delivery: d.ID, Code: v.Delivery.Code, State: v.Delivery.State, None: true})
	}
	st.Split(st.At, false)
	if settle(t, s, st) {
		t.Error("stale")
	}
	if c := counts(t, s, short); c.Expired != 1 || c.Pending != 1 {
		t.Errorf("%+v", c)
	}
	find(nil, time.Minute, 1)
	cancelled := record(t, s, ask{n: 1, route: "old"})
	if _, err := s.Cancel(t.Context(), "shop", cancelled.Notification.ID); err != nil {
		t.Fatal(err)
	}
	find(known, 0, 1, 0) // nothing is left of it to wait for
	if ok, _, err := s.Overdue(t.Context()); ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
}

func writers(t *testing.T, s *store.Store) {
	var wg sync.WaitGroup
	for w := range 64 {
		wg.Go(func() {
			for i := range 4 {
				a := build(s, ask{n: 1 + i, app: fmt.Sprint("app", w%3)})
				if _, err := s.Record(t.Context(), a); err != nil {
					t.Error(err)
					return
				}
				counts(t, s, a)
			}
		})
	}
	for range 4 { // and as many workers
		wg.Go(func() {
			for range 20 {
				ws, err := s.Due(t.Context(), "mail", providers.Normal, 20, nil)
				if err != nil {
					t.Error(err)
					return
				}
				for _, w := range ws {
					if r := claim(t, s, w); r != nil {
						settle(t, s, judge(r, all(providers.Accepted)))
					}
				}
			}
		})
	}
	wg.Wait()
	total := 0
	for i := range 3 {
		list, _, err := s.Notifications(t.Context(), core.NotificationFilter{App: fmt.Sprint("app", i), Page: core.Page{Limit: 500}})
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range list {
			total += v.Counts.Total()
		}
	}
	if total != 64*10 {
		t.Errorf("%d deliveries, not %d", total, 64*10)
	}
}

func badMember(t *testing.T, s *store.Store) {
	first := record(t, s, ask{n: 1})
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			a := build(s, ask{n: 1})
			if i%10 == 0 {
				a.Notification.ID = first.Notification.ID // taken
				if _, err := s.Record(t.Context(), a); err == nil {
					t.Error("a notification id was used twice")
				}
				return
			}
			if _, err := s.Record(t.Context(), a); err != nil {
				t.Errorf("a good one failed with a bad one: %v", err)
			}
		})
	}
	wg.Wait()
	list, _, err := s.Notifications(t.Context(), core.NotificationFilter{App: "shop"})
	if err != nil || len(list) != 28 {
		t.Errorf("%d notifications, %v", len(list), err)
	}
}

// cancelRace cancels and claims at once: whoever comes first, no attempt begins after Cancel returned,
// and after the round nothing is pending.
func cancelRace(t *testing.T, s *store.Store) {
	for range 30 {
		a := record(t, s, ask{n: 2})
		var wg sync.WaitGroup
		var r *core.Round
		wg.Go(func() {
			if n, err := s.Cancel(t.Context(), "shop", a.Notification.ID); n != 2 || err != nil {
				t.Errorf("%d %v", n, err)
			}
			if after := claim(t, s, wakeOf(a)); after != nil {
				t.Error("claimed after Cancel returned")
			}
		})
		wg.Go(func() { r = claim(t, s, wakeOf(a)) })
		wg.Wait()
		if r != nil && settle(t, s, judge(r, all(providers.Deferred))) {
			t.Error("stale")
		}
		if c := counts(t, s, a); c.Cancelled != 2 {
			t.Errorf("%+v", c)
		}
	}
}
