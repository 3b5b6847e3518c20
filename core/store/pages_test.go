package store_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
)

// TestContentEncoding: what is kept of a content is read back as it was, however its block is written.
func TestContentEncoding(t *testing.T) {
	t.Parallel()
	html := `{"html":"<p style=\"x\">Caf\u00e9 & \u2028 é</p>"}`
	for name, c := range map[string]core.Content{
		"nothing":             {},
		"texts":               {Title: "<&>", Body: "b\u2028"},
		"a block alone":       {Block: json.RawMessage(html)},
		"a block and texts":   {Title: "t", URL: "u", Data: json.RawMessage(`{"a":[1,2.50]}`), Block: json.RawMessage(html), CollapseKey: "k"},
		"a block with blanks": {Block: json.RawMessage(" { \"a\" : [ ] }\n")},
		"a member twice":      {Title: "t", Block: json.RawMessage(`{"a":1,"a":2}`)},
		"null":                {Block: json.RawMessage("null")},
	} {
		text, err := store.EncodeContent(c)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got core.Content
		if err := json.Unmarshal(text, &got); err != nil {
			t.Errorf("%s: %s: %v", name, text, err)
		}
		if name != "a member twice" && name != "null" { // json.Marshal's, escaped anew
			if diff := cmp.Diff(string(c.Block), string(got.Block)); strings.TrimSpace(string(c.Block)) != string(got.Block) {
				t.Errorf("%s: block %s", name, diff)
			}
		}
		c.Block, got.Block = nil, nil
		if diff := cmp.Diff(c, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if text, err := store.EncodeContent(core.Content{Block: json.RawMessage(`{"a":`)}); err == nil {
		t.Errorf("half a block is kept as %s", text)
	}
}
