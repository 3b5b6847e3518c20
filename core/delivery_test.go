package core_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/providers"
)

var (
	t0     = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	policy = core.Policy{MaxAttempts: 3, MaxUnknown: 2, Min: 10 * time.Second, Max: time.Minute, MaxAfter: time.Hour}
)

// middle is the jitter that leaves a back-off as it is.
const middle = 0.5

func delivery() core.Delivery {
	return core.Delivery{App: "app", Kind: "apns", Address: "old", State: core.Pending, ExpiresAt: t0.Add(24 * time.Hour), UpdatedAt: t0.Add(-time.Hour)}
}

// effect is what of a Verdict the table looks at; everything else must be as it was.
type effect struct {
	State              core.State
	Attempts, Unknowns int
	Held               bool
	Wait               time.Duration
	Code, Reason, PID  string
	Gone               *core.GoneEndpoint
}

func gone(g core.GoneEndpoint) *core.GoneEndpoint {
	g.App, g.Kind, g.Address = "app", "apns", "old"
	return &g
}

var since = t0.Add(-time.Minute)

// answers has a row for each outcome and edge of a budget.
var answers = map[string]struct {
	in   func(d *core.Delivery)
	r    providers.Result
	want effect
}{
	"accepted":               {nil, providers.Result{Outcome: providers.Accepted, ProviderID: "p1", Code: "200"}, effect{State: core.Sent, Attempts: 1, PID: "p1", Code: "200"}},
	"accepted, last attempt": {attempts(2), providers.Result{Outcome: providers.Accepted}, effect{State: core.Sent, Attempts: 3}},
	"accepted after expiry":  {expires(-time.Hour), providers.Result{Outcome: providers.Accepted}, effect{State: core.Sent, Attempts: 1}},
	"accepted clears an old code": {func(d *core.Delivery) { d.Code, d.Reason = "busy", "was busy" }, providers.Result{Outcome: providers.Accepted},
		effect{State: core.Sent, Attempts: 1}},
	"accepted under our own id":         {nil, providers.Result{Outcome: providers.Accepted, ProviderID: strings.ToUpper(core.ID{}.String())}, effect{State: core.Sent, Attempts: 1}},
	"accepted keeps an old provider id": {func(d *core.Delivery) { d.ProviderID = "first" }, providers.Result{Outcome: providers.Accepted}, effect{State: core.Sent, Attempts: 1, PID: "first"}},
	"accepted, new address":             {nil, providers.Result{Outcome: providers.Accepted, NewAddress: "new"}, effect{State: core.Sent, Attempts: 1, Gone: gone(core.GoneEndpoint{NewAddress: "new"})}},
	"accepted, same address":            {nil, providers.Result{Outcome: providers.Accepted, NewAddress: "old"}, effect{State: core.Sent, Attempts: 1}},

	"absent":           {nil, providers.Result{Outcome: providers.Absent}, effect{State: core.Sent, Attempts: 1, Code: "absent"}},
	"absent, own code": {nil, providers.Result{Outcome: providers.Absent, Code: "offline"}, effect{State: core.Sent, Attempts: 1, Code: "offline"}},

	"rejected":                   {nil, providers.Result{Outcome: providers.Rejected, Code: "BadTopic", Reason: "why"}, effect{State: core.Failed, Attempts: 1, Code: "BadTopic", Reason: "why"}},
	"rejected ignores After":     {nil, providers.Result{Outcome: providers.Rejected, After: time.Second}, effect{State: core.Failed, Attempts: 1}},
	"gone":                       {nil, providers.Result{Outcome: providers.Gone, Code: "410"}, effect{State: core.Failed, Attempts: 1, Code: "410", Gone: gone(core.GoneEndpoint{})}},
	"gone since":                 {nil, providers.Result{Outcome: providers.Gone, Since: since}, effect{State: core.Failed, Attempts: 1, Gone: gone(core.GoneEndpoint{Since: since})}},
	"gone to a new address":      {nil, providers.Result{Outcome: providers.Gone, NewAddress: "new"}, effect{State: core.Failed, Attempts: 1, Gone: gone(core.GoneEndpoint{NewAddress: "new"})}},
	"gone since, new address":    {nil, providers.Result{Outcome: providers.Gone, Since: since, NewAddress: "new"}, effect{State: core.Failed, Attempts: 1, Gone: gone(core.GoneEndpoint{Since: since, NewAddress: "new"})}},
	"deferred drops no endpoint": {nil, providers.Result{Outcome: providers.Deferred, Since: since, NewAddress: "new"}, effect{State: core.Pending, Attempts: 1, Held: true, Wait: 10 * time.Second}},
	"deferred, first":            {nil, providers.Result{Outcome: providers.Deferred}, effect{State: core.Pending, Attempts: 1, Held: true, Wait: 10 * time.Second}},
	"deferred, second":           {attempts(1), providers.Result{Outcome: providers.Deferred}, effect{State: core.Pending, Attempts: 2, Held: true, Wait: 20 * time.Second}},
	"deferred, last":             {attempts(2), providers.Result{Outcome: providers.Deferred, Code: "busy"}, effect{State: core.Failed, Attempts: 3, Code: "busy"}},
	"deferred, beyond the last":  {attempts(7), providers.Result{Outcome: providers.Deferred}, effect{State: core.Failed, Attempts: 8}},
	"deferred, longer After":     {nil, providers.Result{Outcome: providers.Deferred, After: 5 * time.Minute}, effect{State: core.Pending, Attempts: 1, Held: true, Wait: 5 * time.Minute}},
	"deferred, shorter After":    {nil, providers.Result{Outcome: providers.Deferred, After: time.Second}, effect{State: core.Pending, Attempts: 1, Held: true, Wait: 10 * time.Second}},
	"deferred, negative After":   {nil, providers.Result{Outcome: providers.Deferred, After: math.MinInt64}, effect{State: core.Pending, Attempts: 1, Held: true, Wait: 10 * time.Second}},
	"deferred, huge After":       {nil, providers.Result{Outcome: providers.Deferred, After: math.MaxInt64}, effect{State: core.Pending, Attempts: 1, Held: true, Wait: time.Hour}},
	"deferred, unknowns apart":   {unknowns(2, 2), providers.Result{Outcome: providers.Deferred}, effect{State: core.Pending, Attempts: 1, Unknowns: 2, Held: true, Wait: 10 * time.Second}},
	"deferred, just before expiry": {expires(10*time.Second + 1), providers.Result{Outcome: providers.Deferred},
		effect{State: core.Pending, Attempts: 1, Held: true, Wait: 10 * time.Second}},
	"deferred, next try at expiry":    {expires(10 * time.Second), providers.Result{Outcome: providers.Deferred, Code: "busy"}, effect{State: core.Expired, Attempts: 1, Code: "busy"}},
	"deferred, After beyond expiry":   {expires(time.Minute), providers.Result{Outcome: providers.Deferred, After: 2 * time.Minute}, effect{State: core.Expired, Attempts: 1}},
	"deferred, last and expired":      {both(attempts(2), expires(time.Second)), providers.Result{Outcome: providers.Deferred}, effect{State: core.Failed, Attempts: 3}},
	"throttled":                       {nil, providers.Result{Outcome: providers.Throttled, Code: "429"}, effect{State: core.Pending, Held: true, Wait: 10 * time.Second, Code: "429"}},
	"throttled, After":                {attempts(2), providers.Result{Outcome: providers.Throttled, After: 90 * time.Second}, effect{State: core.Pending, Attempts: 2, Held: true, Wait: 90 * time.Second}},
	"throttled burns nothing, ever":   {both(attempts(9), unknowns(9, 2)), providers.Result{Outcome: providers.Throttled}, effect{State: core.Pending, Attempts: 9, Unknowns: 9, Held: true, Wait: 10 * time.Second}},
	"throttled, huge After":           {nil, providers.Result{Outcome: providers.Throttled, After: math.MaxInt64}, effect{State: core.Pending, Held: true, Wait: time.Hour}},
	"throttled, too late":             {expires(10 * time.Second), providers.Result{Outcome: providers.Throttled}, effect{State: core.Expired}},
	"denied":                          {attempts(2), providers.Result{Outcome: providers.Denied, Code: "403"}, effect{State: core.Pending, Attempts: 2, Held: true, Wait: 10 * time.Second, Code: "403"}},
	"denied, After":                   {nil, providers.Result{Outcome: providers.Denied, After: 20 * time.Minute}, effect{State: core.Pending, Held: true, Wait: 20 * time.Minute}},
	"denied, too late":                {expires(time.Second), providers.Result{Outcome: providers.Denied}, effect{State: core.Expired}},
	"denied drops nothing":            {nil, providers.Result{Outcome: providers.Denied, NewAddress: "new"}, effect{State: core.Pending, Held: true, Wait: 10 * time.Second}},
	"unknown, at most once":           {unknowns(0, 0), providers.Result{}, effect{State: core.Failed, Unknowns: 1, Code: core.CodeUnknown}},
	"unknown, one allowed, first":     {unknowns(0, 1), providers.Result{}, effect{State: core.Pending, Unknowns: 1, Held: true, Wait: 10 * time.Second, Code: core.CodeUnknown}},
	"unknown, one allowed, second":    {unknowns(1, 1), providers.Result{}, effect{State: core.Failed, Unknowns: 2, Code: core.CodeUnknown}},
	"unknown, three allowed, third":   {unknowns(2, 3), providers.Result{Reason: "no answer"}, effect{State: core.Pending, Unknowns: 3, Held: true, Wait: 40 * time.Second, Code: core.CodeUnknown, Reason: "no answer"}},
	"unknown, three allowed, fourth":  {unknowns(3, 3), providers.Result{}, effect{State: core.Failed, Unknowns: 4, Code: core.CodeUnknown}},
	"unknown burns no other attempt":  {both(attempts(2), unknowns(0, 1)), providers.Result{}, effect{State: core.Pending, Attempts: 2, Unknowns: 1, Held: true, Wait: 10 * time.Second, Code: core.CodeUnknown}},
	"unknown, own code":               {unknowns(0, 1), providers.Result{Code: "InternalServerError"}, effect{State: core.Pending, Unknowns: 1, Held: true, Wait: 10 * time.Second, Code: "InternalServerError"}},
	"unknown, After":                  {unknowns(0, 1), providers.Result{After: time.Minute}, effect{State: core.Pending, Unknowns: 1, Held: true, Wait: time.Minute, Code: core.CodeUnknown}},
	"unknown, too late":               {both(unknowns(0, 1), expires(time.Second)), providers.Result{}, effect{State: core.Expired, Unknowns: 1, Code: core.CodeUnknown}},
	"an outcome from a newer peer":    {unknowns(0, 1), providers.Result{Outcome: providers.Denied + 1}, effect{State: core.Pending, Unknowns: 1, Held: true, Wait: 10 * time.Second, Code: core.CodeUnknown}},
	"an outcome far out of range":     {unknowns(0, 0), providers.Result{Outcome: 255, NewAddress: "new"}, effect{State: core.Failed, Unknowns: 1, Code: core.CodeUnknown}},
	"a provider id of a failure":      {nil, providers.Result{Outcome: providers.Deferred, ProviderID: "p2"}, effect{State: core.Pending, Attempts: 1, Held: true, Wait: 10 * time.Second, PID: "p2"}},
	"rejected after unknown attempts": {unknowns(2, 3), providers.Result{Outcome: providers.Rejected}, effect{State: core.Failed, Attempts: 1, Unknowns: 2}},
}

func TestApply(t *testing.T) {
	t.Parallel()
	for name, c := range answers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := delivery()
			if c.in != nil {
				c.in(&d)
			}
			before := d
			v := d.Apply(c.r, policy, t0, middle)
			if diff := cmp.Diff(before, d); diff != "" {
				t.Errorf("the receiver was changed:\n%s", diff)
			}
			got := effect{State: v.Delivery.State, Attempts: v.Delivery.Attempts, Unknowns: v.Delivery.Unknowns, Held: v.Held,
				Code: v.Delivery.Code, Reason: v.Delivery.Reason, PID: v.Delivery.ProviderID, Gone: v.Gone}
			if v.Held {
				got.Wait = v.DueAt.Sub(t0)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			rest := v.Delivery
			rest.State, rest.Attempts, rest.Unknowns, rest.Code, rest.Reason, rest.ProviderID, rest.UpdatedAt =
				before.State, before.Attempts, before.Unknowns, before.Code, before.Reason, before.ProviderID, before.UpdatedAt
			if diff := cmp.Diff(before, rest); diff != "" || !v.Delivery.UpdatedAt.Equal(t0) {
				t.Errorf("updated at %s, other fields changed:\n%s", v.Delivery.UpdatedAt, diff)
			}
		})
	}
}

func attempts(n int) func(*core.Delivery) { return func(d *core.Delivery) { d.Attempts = n } }
func unknowns(n, most int) func(*core.Delivery) {
	return func(d *core.Delivery) { d.Unknowns, d.MaxUnknown = n, most }
}
func expires(in time.Duration) func(*core.Delivery) {
	return func(d *core.Delivery) { d.ExpiresAt = t0.Add(in) }
}
func both(a, b func(*core.Delivery)) func(*core.Delivery) {
	return func(d *core.Delivery) { a(d); b(d) }
}

// Whatever a provider says, a delivery is either held for a time within its life or terminal or sent,
// its counters never shrink, and with ever the same answer it comes to an end.
func TestApplyProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := core.Policy{
			MaxAttempts: rapid.IntRange(0, 30).Draw(t, "max attempts"), Min: time.Duration(rapid.Int64Range(0, math.MaxInt64).Draw(t, "min")),
			Max: time.Duration(rapid.Int64Range(0, math.MaxInt64).Draw(t, "max")), MaxAfter: time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "max after")),
		}
		d := delivery()
		d.Attempts, d.Unknowns, d.MaxUnknown = rapid.IntRange(0, 1e9).Draw(t, "attempts"), rapid.IntRange(0, 1e9).Draw(t, "unknowns"), rapid.IntRange(0, 1e9).Draw(t, "max unknown")
		d.ExpiresAt = t0.Add(time.Duration(rapid.Int64Range(-int64(time.Hour), int64(core.MaxTTL)).Draw(t, "expires")))
		r := providers.Result{Outcome: providers.Outcome(rapid.Byte().Draw(t, "outcome")), After: time.Duration(rapid.Int64().Draw(t, "after"))}
		v := d.Apply(r, p, t0, rapid.Float64Range(0, 0.999999).Draw(t, "jitter"))
		if v.Held != v.Delivery.State.Open() {
			t.Fatalf("held %v in state %s", v.Held, v.Delivery.State)
		}
		if v.Held && (v.DueAt.Before(t0) || !v.DueAt.Before(d.ExpiresAt)) {
			t.Fatalf("held till %s, now %s, expires %s", v.DueAt, t0, d.ExpiresAt)
		}
		burnt, unknown := v.Delivery.Attempts-d.Attempts, v.Delivery.Unknowns-d.Unknowns
		if burnt < 0 || unknown < 0 || burnt+unknown > 1 {
			t.Fatalf("%s burnt %d attempts and %d unknown ones", r.Outcome, burnt, unknown)
		}
		if (r.Outcome == providers.Throttled || r.Outcome == providers.Denied) && burnt+unknown != 0 {
			t.Fatalf("%s burnt an attempt", r.Outcome)
		}
	})
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		n      int
		jitter float64
		want   time.Duration
	}{
		{-1, middle, 10 * time.Second}, {0, middle, 10 * time.Second}, {1, middle, 10 * time.Second}, {2, middle, 20 * time.Second},
		{3, middle, 40 * time.Second}, {4, middle, time.Minute}, {5, middle, time.Minute}, {1e9, middle, time.Minute},
		{1, 0, 8 * time.Second}, {4, 0, 48 * time.Second}, {1, 1, 12 * time.Second}, {1e9, 1, 72 * time.Second},
	} {
		if got := policy.Backoff(c.n, c.jitter); got != c.want {
			t.Errorf("Backoff(%d, %v) = %s, want %s", c.n, c.jitter, got, c.want)
		}
	}
	for name, p := range map[string]core.Policy{
		"no wait": {}, "no first wait": {Max: time.Hour}, "no bound": {Min: time.Second, Max: math.MaxInt64},
		"as long as it gets": {Min: math.MaxInt64, Max: math.MaxInt64}, "one": {Min: 1, Max: math.MaxInt64}, "default": core.DefaultPolicy,
	} {
		for _, n := range []int{1, 2, 62, 63, 64, 65, 1e9} {
			for _, jitter := range []float64{0, 0.5, 0.999999999} {
				got := p.Backoff(n, jitter)
				if got < 0 || float64(got) < 0.79*float64(min(p.Min, p.Max))-1 || float64(got) > 1.2*float64(p.Max) {
					t.Errorf("%s: Backoff(%d, %v) = %d", name, n, jitter, got)
				}
			}
		}
	}
}

func TestHoldAndExpire(t *testing.T) {
	t.Parallel()
	d := delivery()
	d.Attempts, d.Unknowns, d.Code, d.Reason = 1, 1, "busy", "was busy"
	if v := d.Hold(core.CodeRate, t0.Add(time.Minute), t0); !v.Held || !v.DueAt.Equal(t0.Add(time.Minute)) || v.Delivery.State != core.Pending ||
		v.Delivery.Code != core.CodeRate || v.Delivery.Attempts != 1 || v.Delivery.Unknowns != 1 || !v.Delivery.UpdatedAt.Equal(t0) {
		t.Errorf("hold: %+v", v)
	}
	for _, until := range []time.Time{d.ExpiresAt, d.ExpiresAt.Add(time.Hour)} {
		if v := d.Hold(core.CodePaused, until, t0); v.Held || v.Delivery.State != core.Expired || v.Delivery.Code != "busy" {
			t.Errorf("hold until %s, beyond its life: %+v", until, v)
		}
	}
	if v := d.Hold(core.CodePaused, d.ExpiresAt.Add(-1), t0); !v.Held {
		t.Errorf("hold until just before its end: %+v", v)
	}
	if v := d.Expire(t0); v.Held || v.Delivery.State != core.Expired || v.Delivery.Code != "busy" || v.Delivery.Attempts != 1 || !v.Delivery.UpdatedAt.Equal(t0) {
		t.Errorf("expire: %+v", v)
	}
	if v := delivery().Expire(t0); v.Delivery.Code != core.CodeExpired {
		t.Errorf("expire without a code: %+v", v)
	}
}

func TestOnReceipt(t *testing.T) {
	t.Parallel()
	states := []core.State{0, core.Pending, core.Sent, core.Delivered, core.Failed, core.Expired, core.Cancelled, core.Suppressed, 99}
	becomes := map[providers.Event]core.State{
		providers.EventDelivered: core.Delivered, providers.EventSeen: core.Delivered, providers.EventRead: core.Delivered, providers.EventClicked: core.Delivered,
		providers.EventFailed: core.Failed, providers.EventBounced: core.Failed, providers.EventArchived: core.Delivered, "": 0, "invented": 0,
	}
	for _, s := range states {
		for e, to := range becomes {
			for _, unknowns := range []int{0, 1} {
				want, change := s, false
				if s == core.Sent && to != 0 || s == core.Pending && unknowns > 0 && to == core.Delivered {
					want, change = to, true
				}
				if got, changed := s.OnReceipt(e, unknowns); got != want || changed != change {
					t.Errorf("%s after %d unknown on %q: %s %v, want %s %v", s, unknowns, e, got, changed, want, change)
				}
			}
		}
	}
}

func TestStateText(t *testing.T) {
	t.Parallel()
	for s := core.Pending; s <= core.Suppressed; s++ {
		text, err := s.MarshalText()
		var back core.State
		if err != nil || back.UnmarshalText(text) != nil || back != s || string(text) != s.String() || s.Open() != (s == core.Pending) {
			t.Errorf("state %d: %q, back %d, %v", s, text, back, err)
		}
	}
	for _, bad := range []string{"", "Pending", "lost"} {
		var s core.State
		if err := s.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was taken for state %s", bad, s)
		}
	}
	if got := core.State(99).String(); got != "" {
		t.Errorf("a state out of range is %q", got)
	}
}

func TestMessage(t *testing.T) {
	t.Parallel()
	d := delivery()
	d.ID, d.Name, d.Attempts, d.Unknowns, d.CreatedAt = core.NewID(t0), "Ann", 2, 3, t0
	c := core.Content{Title: "T", Body: "B", URL: "U", Data: []byte(`{"a":1}`), Block: []byte(`{"b":2}`), Category: "orders", CollapseKey: "k"}
	want := providers.Message{ID: d.ID.String(), App: "app", Address: "old", Name: "Ann", Title: "T", Body: "B", URL: "U", Data: c.Data, Content: c.Block,
		Category: "orders", Priority: providers.Bulk, CollapseKey: "k", CreatedAt: t0, ExpiresAt: d.ExpiresAt, Attempt: 6}
	if diff := cmp.Diff(want, d.Message(&c, providers.Bulk)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}
