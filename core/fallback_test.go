package core_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/providers"
)

func TestFallbackOrder(t *testing.T) {
	t.Parallel()
	got := core.InFallbackOrder([]string{"chat", "email", "in_app", "push", "sms"})
	if diff := cmp.Diff([]string{"in_app", "push", "email", "chat", "sms"}, got); diff != "" {
		t.Error(diff)
	}
}

// TestAdvance: each rung is written as its step, what it is, and when it is due in seconds.
func TestAdvance(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	const after = 30 * time.Second
	type rung struct {
		step int
		is   string
		due  int
	}
	for name, tc := range map[string]struct {
		rungs []rung
		want  map[int]int // index of the rung: due in seconds
	}{
		"sent, not over":                             {[]rung{{0, "sent", -1}, {1, "waits", 29}}, nil},
		"failed":                                     {[]rung{{0, "failed", -1}, {1, "waits", 29}}, map[int]int{1: 0}},
		"failed, those behind follow":                {[]rung{{0, "failed", -1}, {1, "waits", 29}, {2, "waits", 59}}, map[int]int{1: 0, 2: 30}},
		"passed":                                     {[]rung{{0, "passed", -1}, {1, "waits", 29}, {2, "waits", 59}}, map[int]int{1: 0, 2: 30}},
		"one of two devices failed":                  {[]rung{{0, "failed", -1}, {0, "sent", -1}, {1, "waits", 29}}, nil},
		"one of two devices is to come":              {[]rung{{0, "failed", -1}, {0, "round", -1}, {1, "waits", 29}}, nil},
		"both devices failed":                        {[]rung{{0, "failed", -1}, {0, "expired", -1}, {1, "waits", 29}}, map[int]int{2: 0}},
		"the next one has two":                       {[]rung{{0, "failed", -1}, {1, "waits", 29}, {1, "waits", 29}}, map[int]int{1: 0, 2: 0}},
		"delivered":                                  {[]rung{{0, "delivered", -1}, {1, "waits", 29}}, nil},
		"delivered, those behind cancelled":          {[]rung{{0, "delivered", -1}, {1, "cancelled", 29}, {2, "cancelled", 59}}, nil},
		"the next is in a round":                     {[]rung{{0, "failed", -1}, {1, "round", -1}, {2, "waits", 29}}, nil},
		"the next is held by a gate":                 {[]rung{{0, "failed", -1}, {1, "held", 5}, {2, "waits", 29}}, nil},
		"the next went by its deadline":              {[]rung{{0, "failed", -1}, {1, "sent", -1}, {2, "waits", 29}}, nil},
		"the next is over, too":                      {[]rung{{0, "failed", -1}, {1, "failed", -1}, {2, "waits", 29}}, map[int]int{2: 0}},
		"a later one failed, the first had its time": {[]rung{{0, "sent", -1}, {1, "failed", -1}, {2, "waits", 29}, {3, "waits", 59}}, map[int]int{2: 0, 3: 30}},
		"it is quiet for the next":                   {[]rung{{0, "passed", -1}, {1, "quiet", 7200}, {2, "waits", 7230}}, nil},
		"it is quiet for the one behind":             {[]rung{{0, "passed", -1}, {1, "waits", 5000}, {2, "quiet", 7200}, {3, "waits", 9000}}, map[int]int{1: 0, 3: 7230}},
		"the first is held as well":                  {[]rung{{0, "quiet", 7200}, {1, "waits", 7230}}, nil},
		"passed, then found there":                   {[]rung{{0, "passed", -1}, {1, "failed", -1}, {2, "cancelled", 29}}, nil},
		"all is over":                                {[]rung{{0, "failed", -1}, {1, "failed", -1}}, nil},
		"those behind come no later":                 {[]rung{{0, "failed", -1}, {1, "waits", 5}, {2, "waits", 20}}, map[int]int{1: 0}},
		"one between is cancelled":                   {[]rung{{0, "sent", -1}, {1, "cancelled", 29}, {2, "waits", 59}}, map[int]int{2: 29}},
		"it is, and those behind follow":             {[]rung{{0, "sent", -1}, {1, "cancelled", 29}, {2, "waits", 59}, {3, "waits", 89}}, map[int]int{2: 29, 3: 59}},
		"two between are cancelled":                  {[]rung{{0, "sent", -1}, {1, "cancelled", 29}, {2, "cancelled", 29}, {3, "waits", 89}}, map[int]int{3: 29}},
		"it is, and it was quiet for that":           {[]rung{{0, "sent", -1}, {1, "cancelled", 7200}, {2, "waits", 7230}}, map[int]int{2: 29}},
		"it is, and it is quiet for the next":        {[]rung{{0, "sent", -1}, {1, "cancelled", 29}, {2, "quiet", 9000}}, map[int]int{2: 7200}},
		"it is, and the one before had its time":     {[]rung{{0, "sent", -40}, {1, "cancelled", 29}, {2, "waits", 59}}, map[int]int{2: 0}},
		"it is, and the one before was tried again":  {[]rung{{0, "sent", 20}, {1, "cancelled", 29}, {2, "waits", 59}}, map[int]int{2: 29}},
		"it is, once more":                           {[]rung{{0, "sent", -1}, {1, "cancelled", 29}, {2, "waits", 29}, {3, "waits", 59}}, nil},
		"one device of it is cancelled":              {[]rung{{0, "sent", -1}, {1, "cancelled", 29}, {1, "waits", 29}, {2, "waits", 59}}, nil},
		"the first is cancelled":                     {[]rung{{0, "cancelled", 7200}, {1, "waits", 7230}, {2, "waits", 7260}}, map[int]int{1: 0, 2: 30}},
		"the first is, all but one in a round":       {[]rung{{0, "cancelled", -1}, {0, "round", -1}, {1, "waits", 29}}, nil},
		"the next of one that failed is cancelled":   {[]rung{{0, "failed", -1}, {1, "cancelled", 0}, {2, "waits", 30}}, map[int]int{2: 0}},
		"all are cancelled":                          {[]rung{{0, "cancelled", -1}, {1, "cancelled", 29}}, nil},
		"nothing":                                    {nil, nil},
	} {
		var rungs []core.Rung
		ids := core.NewIDs(now, len(tc.rungs))
		for i, r := range tc.rungs {
			x := core.Rung{Delivery: ids[i], Step: r.step, DueAt: now.Add(time.Duration(r.due) * time.Second)}
			switch r.is {
			case "waits":
				x.State, x.Fresh = core.Pending, true
			case "quiet":
				x.State, x.Fresh, x.Quiet = core.Pending, true, "09:00-14:00 UTC" // two hours from now
			case "round", "held":
				x.State = core.Pending
			case "passed":
				x.State, x.Passed = core.Sent, true
			default:
				if err := x.State.UnmarshalText([]byte(r.is)); err != nil {
					t.Fatal(err)
				}
			}
			rungs = append(rungs, x)
		}
		var got map[int]int
		for _, f := range core.Advance(rungs, now.Add(-after), after, now) {
			if got == nil {
				got = map[int]int{}
			}
			for i := range ids {
				if ids[i] == f.Delivery {
					got[i] = int(f.To.Sub(now).Seconds())
				}
			}
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// TestAdvanceAlways: whatever the rungs, nothing goes later, nothing goes that is no waiting one, nothing goes
// while a step before has hope, and to advance once more changes nothing.
func TestAdvanceAlways(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	rapid.Check(t, func(rt *rapid.T) {
		var rungs []core.Rung
		for _, id := range core.NewIDs(now, rapid.IntRange(0, 6).Draw(rt, "n")) {
			rungs = append(rungs, core.Rung{Delivery: id, Step: rapid.IntRange(0, 3).Draw(rt, "step"), State: core.State(rapid.IntRange(1, 7).Draw(rt, "state")),
				Passed: rapid.Bool().Draw(rt, "passed"), Fresh: rapid.Bool().Draw(rt, "fresh"), DueAt: now.Add(time.Duration(rapid.IntRange(-5, 90).Draw(rt, "due")) * time.Second)})
		}
		for round := range 2 {
			moves := core.Advance(rungs, now.Add(-30*time.Second), 30*time.Second, now)
			if round == 1 && len(moves) > 0 {
				rt.Fatalf("once more: %+v", moves)
			}
			for _, f := range moves {
				if !f.Fresh || f.State != core.Pending || !f.To.Before(f.DueAt) || f.To.Before(now) {
					rt.Fatalf("goes: %+v", f)
				}
				turn := -1 // the last step that is not waiting
				for _, r := range rungs {
					if r.Step < f.Step && !(r.State == core.Pending && r.Fresh && r.DueAt.After(now)) {
						turn = max(turn, r.Step)
					}
				}
				for i := range rungs {
					r := &rungs[i]
					if r.Step == turn && f.To.Equal(now) && !r.Passed && (r.State == core.Pending || r.State == core.Sent || r.State == core.Delivered) {
						rt.Fatalf("%+v goes though %+v has hope", f, *r)
					}
					if r.Delivery == f.Delivery {
						r.DueAt = f.To
					}
				}
			}
		}
	})
}

func TestClimb(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 27, 21, 59, 45, 0, time.UTC)
	morning := time.Date(2026, 11, 28, 8, 0, 0, 0, time.UTC)
	rules := core.Rules{}
	rec := &core.Recipient{QuietHours: &core.QuietHours{From: "22:00", To: "08:00", Channels: []string{"push"}}}
	n := &core.Notification{Mode: core.ModeFallback, FallbackAfter: 30 * time.Second, SendAt: now, ExpiresAt: now.Add(72 * time.Hour), Priority: providers.Normal}
	climb := core.NewClimb(n)
	place := func(channel string) core.Delivery {
		choice := rules.Decide(rec, n, channel, climb.DueAt())
		var d core.Delivery
		climb.Place(&d, &choice)
		climb.Next(&choice)
		return d
	}
	got := []core.Delivery{place("in_app"), place("push"), place("email")}
	want := []core.Delivery{
		{},
		{Step: 1, DueAt: morning, Held: core.HeldQuiet, Quiet: "22:00-08:00 UTC"},
		{Step: 2, DueAt: morning.Add(30 * time.Second), Held: core.HeldFallback},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	n.ExpiresAt = now.Add(time.Hour)
	climb = core.NewClimb(n)
	place("in_app")
	if d := place("push"); !d.DueAt.Equal(n.ExpiresAt) {
		t.Errorf("due %v, behind its end %v", d.DueAt, n.ExpiresAt)
	}
}

// What is made after its time, as a late page of a topic is, gives its first channel its time all the same.
func TestClimbLate(t *testing.T) {
	t.Parallel()
	made := time.Date(2026, 11, 27, 12, 2, 0, 0, time.UTC)
	rules := core.Rules{}
	for name, tc := range map[string]struct {
		sendAt time.Time
		want   []time.Time
	}{
		"two minutes late": {made.Add(-2 * time.Minute), []time.Time{made, made.Add(30 * time.Second), made.Add(time.Minute)}},
		"on time":          {made, []time.Time{made, made.Add(30 * time.Second), made.Add(time.Minute)}},
		"for later":        {made.Add(time.Hour), []time.Time{made.Add(time.Hour), made.Add(time.Hour + 30*time.Second), made.Add(time.Hour + time.Minute)}},
	} {
		n := &core.Notification{Mode: core.ModeFallback, FallbackAfter: 30 * time.Second, CreatedAt: made, SendAt: tc.sendAt, ExpiresAt: made.Add(2 * time.Hour), Priority: providers.Normal}
		climb := core.NewClimb(n)
		var got []time.Time
		for _, channel := range []string{"in_app", "push", "email"} {
			got = append(got, climb.DueAt())
			choice := rules.Decide(&core.Recipient{}, n, channel, climb.DueAt())
			climb.Next(&choice)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
