package storetest

import (
	"context"
	"crypto/sha256"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

const lease = 10 * time.Second

// ask describes an acceptance to build.
type ask struct {
	app, route, key string
	n               int
	in              time.Duration // due after
	kind            string
	recipient       string
	address         string
}

func build(s *store.Store, a ask) *core.Acceptance {
	if a.app == "" {
		a.app = "shop"
	}
	if a.route == "" {
		a.route = "mail"
	}
	if a.kind == "" {
		a.kind = "email"
	}
	if a.address == "" {
		a.address = "a@example.com"
	}
	now := s.Now()
	n := core.Notification{
		ID: core.NewID(now), App: a.app, CreatedAt: now, SendAt: now.Add(a.in), ExpiresAt: now.Add(time.Hour), Priority: providers.Normal,
		Mode: "all", Unknown: core.RetryUnknown, Metadata: []byte(`{"order":7}`),
		Skipped: []core.Skip{{To: 1, Recipient: "ghost", Channel: "push", Reason: core.SkipNoEndpoint}},
	}
	out := &core.Acceptance{Notification: n, Key: a.key, BodyHash: sha256.Sum256([]byte(a.key)), Answer: []byte(`{"id":"` + n.ID.String() + `"}`),
		Contents: []core.Content{{Title: "Hello", Body: "It is here", Data: []byte(`{"a":1}`)}}}
	for _, id := range core.NewIDs(now, a.n) {
		out.Deliveries = append(out.Deliveries, core.Delivery{
			ID: id, Notification: n.ID, App: a.app, Channel: "email", Kind: a.kind, Route: a.route, Recipient: a.recipient, Address: a.address,
			State: core.Pending, MaxUnknown: 3, CreatedAt: now, UpdatedAt: now, ExpiresAt: n.ExpiresAt,
		})
	}
	return out
}

func record(t testing.TB, s *store.Store, a ask) *core.Acceptance {
	t.Helper()
	acc := build(s, a)
	if _, err := s.Record(t.Context(), acc); err != nil {
		t.Fatalf("Record: %v", err)
	}
	return acc
}

func wakeOf(a *core.Acceptance) core.Wake {
	d := &a.Deliveries[0]
	return core.Wake{Batch: d.Batch, Fence: 1, Route: d.Route, Lane: a.Notification.Priority}
}

func claim(t testing.TB, s *store.Store, w core.Wake) *core.Round {
	t.Helper()
	r, err := s.Claim(t.Context(), w, "w1", lease)
	if err != nil {
		t.Fatalf("Claim: %v", err)
	}
	return r
}

// judge makes a settlement of a round by one outcome per delivery, as dispatch does.
func judge(r *core.Round, outcome func(i int) providers.Result) *core.Settlement {
	s := &core.Settlement{Batch: r.Batch, Worker: "w1", At: r.Now.Add(time.Millisecond)}
	for i, d := range r.Deliveries {
		res := outcome(i)
		v := d.Apply(res, core.DefaultPolicy, s.At, 0.5)
		a := core.Attempt{Delivery: d.ID, Outcome: res.Outcome, Code: v.Delivery.Code, State: v.Delivery.State}
		if v.Held {
			a.HeldTill = v.DueAt.UnixMilli()
		}
		s.Verdicts, s.Results = append(s.Verdicts, v), append(s.Results, a)
	}
	s.Split(s.At, false)
	return s
}

func all(o providers.Outcome) func(int) providers.Result {
	return func(int) providers.Result { return providers.Result{Outcome: o} }
}

func settle(t testing.TB, s *store.Store, st *core.Settlement) bool {
	t.Helper()
	stale, err := s.Settle(t.Context(), st)
	if err != nil {
		t.Fatalf("Settle: %v", err)
	}
	return stale
}

func counts(t testing.TB, s *store.Store, a *core.Acceptance) core.Counts {
	t.Helper()
	v, err := s.Notification(t.Context(), a.Notification.App, a.Notification.ID)
	if err != nil {
		t.Fatalf("Notification: %v", err)
	}
	if v.Counts.Total() != len(a.Deliveries) {
		t.Errorf("conservation: %d accepted, states sum to %d: %+v", len(a.Deliveries), v.Counts.Total(), v.Counts)
	}
	return v.Counts
}

// until waits for a condition, looking every few milliseconds.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

// nextMillisecond waits until ids sort after those of an acceptance: those of one millisecond are in no order.
func nextMillisecond(t testing.TB, s *store.Store, a *core.Acceptance) {
	t.Helper()
	until(t, "the next millisecond", func() bool { return s.Now().UnixMilli() > a.Notification.CreatedAt.UnixMilli() })
}
