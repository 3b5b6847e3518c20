package providers_test

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/providers"
)

// TestOutcomes: an outcome crosses as its name, and whatever is no outcome is Unknown, never an error.
func TestOutcomes(t *testing.T) {
	t.Parallel()
	names := map[providers.Outcome]string{
		providers.Unknown: "unknown", providers.Accepted: "accepted", providers.Deferred: "deferred", providers.Throttled: "throttled",
		providers.Rejected: "rejected", providers.Gone: "gone", providers.Absent: "absent", providers.Denied: "denied",
		providers.Denied + 1: "unknown", 255: "unknown",
	}
	for o, name := range names {
		text, err := json.Marshal(o)
		if err != nil || string(text) != `"`+name+`"` || o.String() != name {
			t.Errorf("%d is written %s, %s: %v", o, text, o, err)
		}
	}
	var got []providers.Outcome
	if err := json.Unmarshal([]byte(`["gone","denied","postponed","","Accepted"]`), &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]providers.Outcome{providers.Gone, providers.Denied, providers.Unknown, providers.Unknown, providers.Unknown}, got); d != "" {
		t.Error(d)
	}
	var zero providers.Result
	if zero.Outcome != providers.Unknown {
		t.Errorf("an outcome that nobody set is %s", zero.Outcome)
	}
}

// TestStandardLibraryOnly: whoever implements the contract drags nothing in with it.
func TestStandardLibraryOnly(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(string(out)); len(got) != 1 || !strings.HasSuffix(got[0], "/providers") {
		t.Errorf("the contract depends on %v", got)
	}
}
