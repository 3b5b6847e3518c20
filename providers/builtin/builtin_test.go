package builtin_test

import (
	"encoding/json"
	"regexp"
	"testing"

	"github.com/carillon-notify/carillon/providers/builtin"
)

// TestKindsAreWellFormed holds each kind to what the contract says of its data.
func TestKindsAreWellFormed(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	name := regexp.MustCompile(`^[a-z0-9_-]+$`)
	for _, k := range builtin.Kinds() {
		if !name.MatchString(k.Name) || !name.MatchString(k.Channel) || seen[k.Name] {
			t.Errorf("kind %q of channel %q: bad or repeated name", k.Name, k.Channel)
		}
		seen[k.Name] = true
		if k.Doc == "" || k.Open == nil || k.MaxBatch < 1 || k.MaxBatch > 100 {
			t.Errorf("kind %s: no doc, no Open, or MaxBatch %d out of 1 to 100", k.Name, k.MaxBatch)
		}
		if _, err := regexp.Compile(k.Address); err != nil || k.Address == "" {
			t.Errorf("kind %s: address pattern %q: %v", k.Name, k.Address, err)
		}
		if k.Content != nil && !json.Valid(k.Content) {
			t.Errorf("kind %s: content schema is no JSON", k.Name)
		}
		settings := map[string]bool{}
		for _, s := range k.Settings {
			if s.Name == "" || s.Doc == "" || s.Type == "" || settings[s.Name] {
				t.Errorf("kind %s: setting %+v lacks something or is there twice", k.Name, s)
			}
			settings[s.Name] = true
		}
	}
}
