package intake_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

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
		if diff := cmp.Diff(tc.want, kinds); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
