package api_test

import (
	"encoding/json"
	"testing"

	"github.com/carillon-notify/carillon/core/api"
)

// FuzzDecode: whatever comes in, decoding ends with an error, with faults, or with valid JSON that
// encodes again; it never panics.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{simple, `{"to":[{"email":5}],"ttl":3}`, `[`, `{"a":"\u0000"}`, `{"to":null,"send_at":"x"}`, "\xff", `{"to":[null],"content":null}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		n, faults, err := api.Decode(body)
		if err != nil || faults > 0 {
			return
		}
		if !json.Valid(body) {
			t.Fatalf("%q is no JSON and was taken", body)
		}
		if _, err := json.Marshal(n); err != nil {
			t.Fatalf("%q does not encode again: %v", body, err)
		}
	})
}
