package store_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// TestResultsAsJSON: what is written by hand says what encoding/json would of the same, whatever a service answers.
func TestResultsAsJSON(t *testing.T) {
	t.Parallel()
	text := rapid.OneOf(rapid.Just(""), rapid.String(), rapid.SampledFrom([]string{"a\xffb", "<b>&\u2028\x00\"\\", "\xed\xa0\x80"}))
	rapid.Check(t, func(t *rapid.T) {
		as := make([]core.Attempt, rapid.IntRange(1, 4).Draw(t, "n"))
		for i := range as {
			as[i] = core.Attempt{
				Outcome: providers.Outcome(rapid.IntRange(0, 9).Draw(t, "outcome")), Code: text.Draw(t, "code"), Reason: text.Draw(t, "reason"),
				HeldTill: rapid.OneOf(rapid.Just(int64(0)), rapid.Int64()).Draw(t, "held"), State: core.State(rapid.IntRange(1, 7).Draw(t, "state")),
				Parts: rapid.IntRange(0, 3).Draw(t, "parts"), None: rapid.Bool().Draw(t, "none"),
			}
			copy(as[i].Delivery[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
		}
		ours, err := store.EncodeResults(as)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := json.Marshal(as)
		if err != nil {
			t.Fatal(err)
		}
		var got, want []core.Attempt
		if err := json.Unmarshal(ours, &got); err != nil {
			t.Fatalf("%s: %v", ours, err)
		}
		if err := json.Unmarshal(theirs, &want); err != nil {
			t.Fatalf("%s: %v", theirs, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s reads otherwise than %s: %s", ours, theirs, diff)
		}
	})
}
