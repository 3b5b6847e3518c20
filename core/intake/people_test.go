package intake_test

import (
	"cmp"
	"fmt"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
)

// bob has one address on each of three channels.
func bob(change func(*core.Recipient)) core.Recipient {
	r := core.Recipient{ID: "bob", Endpoints: []core.Endpoint{{Kind: "fcm", Address: phone}, {Kind: "email", Address: "bob@example.com"}}}
	if change != nil {
		change(&r)
	}
	return r
}

func TestPreferences(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		category string
		chosen   core.Preferences
		want     []string // kinds, and channels that are skipped
	}{
		"nothing chosen":    {"orders", nil, []string{"email", "websocket", "fcm"}},
		"a default":         {"news", nil, []string{"no email", "websocket", "fcm"}},
		"chosen against it": {"news", core.Preferences{"news": {"email": true}}, []string{"email", "websocket", "fcm"}},
		"opted out":         {"orders", core.Preferences{"orders": {"push": false}, "*": {"in_app": false}}, []string{"email", "no in_app", "no push"}},
		"mandatory":         {"security", core.Preferences{"*": {"*": false}}, []string{"email", "websocket", "fcm"}},
		"no category":       {"", core.Preferences{"*": {"*": false}}, []string{"no email", "no in_app", "no push"}},
	} {
		b := newBench(t)
		b.put(bob(func(r *core.Recipient) { r.Preferences = tc.chosen }))
		got, _ := b.decide(intake.Request{To: []intake.Target{{Recipient: "bob"}}, Content: words(), Category: tc.category, Channels: []string{"email", "in_app", "push"}})
		var kinds []string
		for _, s := range got {
			switch s.Reason {
			case "":
				kinds = append(kinds, s.Kind)
			case core.SkipPreference:
				kinds = append(kinds, "no "+s.Address)
			default:
				t.Errorf("%s: %+v", name, s)
			}
		}
		if diff := gocmp.Diff(tc.want, kinds); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// TestFallback: each decision is written as what is decided, where, and how many seconds after now it goes.
func TestFallback(t *testing.T) {
	t.Parallel()
	night := &core.QuietHours{From: "11:00", To: "12:10", Channels: []string{"push"}} // now is noon UTC
	for name, tc := range map[string]struct {
		change func(*core.Recipient)
		req    intake.Request
		want   []string
		ladder int // deliveries on it
	}{
		"the order of its own": {nil, intake.Request{}, []string{"deliver websocket", "wait fcm fallback 30", "wait email fallback 60", "skip sms no_endpoint"}, 3},
		"the order asked for":  {nil, intake.Request{Channels: []string{"email", "push"}, FallbackAfter: time.Minute}, []string{"deliver email", "wait fcm fallback 60"}, 2},
		"no device": {func(r *core.Recipient) { r.Endpoints = r.Endpoints[1:] }, intake.Request{Channels: []string{"in_app", "push", "email"}},
			[]string{"deliver websocket", "skip push no_endpoint", "wait email fallback 30"}, 2},
		"an opt-out": {func(r *core.Recipient) { r.Preferences = core.Preferences{"*": {"in_app": false}} }, intake.Request{Channels: []string{"in_app", "push", "email"}},
			[]string{"skip in_app preference", "deliver fcm", "wait email fallback 30"}, 2},
		"two devices": {func(r *core.Recipient) {
			r.Endpoints = append(r.Endpoints, core.Endpoint{Kind: "fcm", Address: phone + "2"})
		}, intake.Request{Channels: []string{"push", "email"}},
			[]string{"deliver fcm", "deliver fcm", "wait email fallback 30"}, 3},
		"one channel is no fallback": {nil, intake.Request{Channels: []string{"email"}}, []string{"deliver email"}, 0},
		"later":                      {nil, intake.Request{Channels: []string{"in_app", "email"}, Delay: time.Hour}, []string{"deliver websocket", "wait email fallback 3630"}, 2},
		"quiet hours hold it and all behind it": {func(r *core.Recipient) { r.QuietHours = night }, intake.Request{Channels: []string{"in_app", "push", "email"}},
			[]string{"deliver websocket", "wait fcm quiet_hours 600", "wait email fallback 630"}, 3},
		"critical passes": {func(r *core.Recipient) { r.QuietHours = night }, intake.Request{Channels: []string{"in_app", "push"}, Priority: core.Lanes[0]},
			[]string{"deliver websocket", "wait fcm fallback 30"}, 2},
		"all of them, in quiet hours": {func(r *core.Recipient) { r.QuietHours = night }, intake.Request{Mode: core.ModeAll, Channels: []string{"in_app", "push"}},
			[]string{"deliver websocket", "hold fcm quiet_hours 600"}, 0},
		"it expires before": {func(r *core.Recipient) { r.QuietHours = night }, intake.Request{Mode: core.ModeAll, Channels: []string{"push"}, TTL: time.Minute},
			[]string{"hold fcm quiet_hours 60"}, 0},
	} {
		b := newBench(t)
		b.put(bob(tc.change))
		req := tc.req
		req.To, req.Content = []intake.Target{{Recipient: "bob"}}, words()
		if req.Mode == "" {
			req.Mode = core.ModeFallback
		}
		p, err := b.Preview(t.Context(), "a", &req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := b.Accept(t.Context(), "a", &req, intake.Key{}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var got []string
		a := b.recorded[0]
		made, ladder := a.Deliveries, 0
		for _, d := range p.Decisions {
			text := strings.Join(strings.Fields(strings.Join([]string{d.Decision, cmp.Or(d.Kind, d.Channel), d.Reason}, " ")), " ")
			if !d.HeldTill.IsZero() {
				text += fmt.Sprintf(" %d", int(d.HeldTill.Sub(b.now).Seconds()))
			}
			got = append(got, text)
			if d.Decision == intake.DecisionSkip {
				continue
			}
			if m := &made[0]; m.Kind != d.Kind || m.Held != d.Reason || !m.DueAt.Equal(d.HeldTill) || (m.Step > 0) != (d.Decision == intake.DecisionWait) {
				t.Errorf("%s: the preview says %+v, accepted was %+v", name, d, m)
			}
			if !made[0].Ladder.IsZero() {
				ladder++
				if made[0].Ladder != a.Deliveries[0].ID {
					t.Errorf("%s: the fallback is not named by its first delivery", name)
				}
			}
			made = made[1:]
		}
		if diff := gocmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if ladder != tc.ladder {
			t.Errorf("%s: %d deliveries on the fallback, want %d", name, ladder, tc.ladder)
		}
	}
}

// TestOneSetOfCategories: though the categories change at every moment, a request is decided by one set of them.
func TestOneSetOfCategories(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	asked := 0
	b.categories = func() core.Categories {
		asked++
		return core.Categories{"offers": {Mandatory: asked%2 == 0}}
	}
	people := make([]*core.Recipient, 4)
	req := &intake.Request{Content: &intake.Content{Title: "x", Body: "x"}, Channels: []string{"email"}, Category: "offers"}
	for i := range people {
		id := fmt.Sprintf("u%d", i)
		people[i] = &core.Recipient{App: "a", ID: id, Preferences: core.Preferences{"offers": {"email": false}}, Endpoints: []core.Endpoint{{Kind: "email", Address: id + "@example.com"}}}
		b.recipients["a/"+id] = people[i]
		req.To = append(req.To, intake.Target{Recipient: id})
	}
	for i := range 4 {
		want := []string{"skip", "deliver"}[i%2] // as it was as the request came
		p, err := b.Preview(t.Context(), "a", req)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range p.Decisions {
			if d.Decision != want {
				t.Errorf("request %d: %s is decided %s, want %s", i, d.Recipient, d.Decision, want)
			}
		}
		if len(p.Decisions) != len(people) {
			t.Errorf("%d decisions", len(p.Decisions))
		}
	}
	for _, want := range []int{0, len(people)} {
		page, err := b.Page(t.Context(), "a", req, intake.People{Known: people})
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Deliveries) != want {
			t.Errorf("a page has %d deliveries, want %d", len(page.Deliveries), want)
		}
	}
}
