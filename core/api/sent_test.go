package api_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/carillon-notify/carillon/core/api"
)

func TestAcceptedIsWrittenAsEncodingJSONDoes(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 28, 6, 17, 37, 120_000_000, time.UTC)
	for _, c := range []struct {
		name   string
		in     api.Accepted
		leaves bool
	}{
		{"one", api.Accepted{CreatedAt: at, Deliveries: 1, Id: "0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000", Status: "accepted"}, false},
		{"none", api.Accepted{CreatedAt: at.Truncate(time.Second), Id: "x", Status: "completed"}, false},
		{"another zone", api.Accepted{CreatedAt: at.In(time.FixedZone("", 5400)), Deliveries: -1, Status: "a \"b\"\n"}, false},
		{"zero", api.Accepted{}, false},
		{"skipped", api.Accepted{CreatedAt: at, Skipped: []api.Skip{{Reason: "preference"}}}, true},
		{"no time", api.Accepted{CreatedAt: at.AddDate(9000, 0, 0)}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, ok := api.AppendAccepted(nil, &c.in)
			if ok == c.leaves {
				t.Fatalf("written: %v", ok)
			}
			if want, _ := json.Marshal(c.in); ok && string(got) != string(want) {
				t.Errorf("%s, encoding/json has %s", got, want)
			}
		})
	}
}

// FuzzContent: a content that is read in one go is what it is member by member, and has no faults.
func FuzzContent(f *testing.F) {
	for _, seed := range []string{
		`{"title":"a","body":"b\u00e4\n","url":"https://x","data":{"a":[1,null]},"email":{"html":"<p>"},"push":{}}`,
		`{}`, `{"title":null,"body":null}`, `{"data":null}`, `{"email":null}`, `{"email":5}`, `{"title":5}`, `{"Title":"a"}`,
		`{"t\u0069tle":"a"}`, `{"title":"\ud800"}`, `{"title":"a","title":"b"}`, ` { "body" : "a" } `, `{"":{}}`, `{"title":"a"}{}`, `{"title":"`, `null`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) == 0 || raw[0] != '{' || !json.Valid(raw) { // is looked at before
			return
		}
		plain, ok, careful, faults := api.ReadContent(raw)
		if !ok {
			return
		}
		if len(faults) > 0 {
			t.Fatalf("%q was taken, and has faults: %v", raw, faults)
		}
		if diff := cmp.Diff(careful, plain, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%q: %s", raw, diff)
		}
	})
}
