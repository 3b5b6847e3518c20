package intake_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/builtin"
	"github.com/carillon-notify/carillon/templates"
)

// card is a plugin's kind whose schema has what schemas can have.
const card = `{"type":"object","properties":{
	"rows":{"type":"array","items":{"$ref":"#/$defs/row"}},
	"pair":{"prefixItems":[{"type":"object","additionalProperties":false}],"items":{"$ref":"#/$defs/row"}},
	"tags":{"type":"object","patternProperties":{"^x-":{"type":"object","additionalProperties":false,"properties":{"n":{}}}},"additionalProperties":false},
	"links":{"type":"object","additionalProperties":{"$ref":"#/$defs/row"}},
	"both":{"allOf":[{"type":"object","additionalProperties":false,"properties":{"a":{}}}]},
	"either":{"anyOf":[{"type":"object","additionalProperties":false,"properties":{"a":{}}},{"type":"object","required":["b"]}]},
	"free":{"type":"object"},"count":{"type":"integer"},"loop":{"$ref":"#/$defs/loop"}},
	"$defs":{"row":{"type":"object","additionalProperties":false,"properties":{"text":{"type":"string"},"rows":{"type":"array","items":{"$ref":"#/$defs/row"}}}},"loop":{"$ref":"#/$defs/loop"}}}`

// blockFaults are the details of a template's faults, by their places below the default locale.
func blockFaults(t *testing.T, check func(templates.Source) error, doc string) map[string]string {
	t.Helper()
	var src templates.Source
	if err := json.Unmarshal([]byte(`{"locales":{"default":`+doc+`}}`), &src); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	var bad *templates.Error
	if err := check(src); err != nil && !errors.As(err, &bad) {
		t.Fatalf("%v is no *templates.Error", err)
	}
	if bad == nil {
		return got
	}
	for _, f := range bad.Faults {
		if f.Code != templates.CodeMember {
			t.Errorf("%s has code %s", f.Pointer, f.Code)
		}
		got[strings.TrimPrefix(f.Pointer, "/locales/default")] = f.Detail
	}
	return got
}

// TestBlocks: a member that no channel knows is a fault wherever it stands; what a value is, is not looked at.
func TestBlocks(t *testing.T) {
	t.Parallel()
	const fields = "fields are title, body, url and data, channels call, card, email, fax, in_app, push"
	kinds := append(builtin.Kinds(), providers.Kind{Name: "card", Channel: "card", Content: []byte(card)}, providers.Kind{Name: "call", Channel: "call"})
	b, err := intake.NewBlocks(kinds...)
	if err != nil {
		t.Fatal(err)
	}
	b.Allow("fax")
	for name, tc := range map[string]struct {
		doc  string
		want map[string]string
	}{
		"all is well": {`{"title":"T","email":{"subject":"S","html":"H","text":"T","from":"","reply_to":"","headers":{"X-A":"b"},"attachments":[{"filename":"f","content":"","inline":true}]},
			"push":{"apns":{"headers":{"apns-priority":"{{ p }}"},"payload":{"aps":{"badge":3},"own":{}}},"fcm":{"android":{"any":1}}},"in_app":{"data":{"a":{"b":1}}}}`, nil},
		"a channel":      {`{"title":"T","emial":{"html":"x"},"data":{"any":1}}`, map[string]string{"/emial": `there is no field or channel "emial"; ` + fields}},
		"a field":        {`{"email":{"htlm":"x"}}`, map[string]string{"/email/htlm": `email has no field "htlm"; it has attachments, from, headers, html, reply_to, subject, text`}},
		"its case":       {`{"email":{"HTML":"x"}}`, map[string]string{"/email/HTML": `email has no field "HTML"; it has attachments, from, headers, html, reply_to, subject, text`}},
		"deep down":      {`{"push":{"apns":{"header":{}}}}`, map[string]string{"/push/apns/header": `push.apns has no field "header"; it has headers, payload`}},
		"in a list":      {`{"email":{"attachments":[{"filename":"f","content":""},{"file/name":"f"}]}}`, map[string]string{"/email/attachments/1/file~1name": `email.attachments.1 has no field "file/name"; it has content, content_type, filename, inline`}},
		"a name's form":  {`{"email":{"headers":{"X A":"b"}}}`, map[string]string{"/email/headers/X A": `"X A" cannot be a name in email.headers: it must match ^[A-Za-z0-9-]{1,76}$`}},
		"no block":       {`{"call":{"text":"x"}}`, map[string]string{"/call": "channel call takes no block of its own, only title, body, url and data"}},
		"not known here": {`{"fax":{"any":{"thing":1}}}`, nil},
		"values":         {`{"card":{"count":"{{ n }}","rows":"{{ rows }}","tags":5,"free":{"a":1},"either":{"a":1,"b":2,"c":3},"links":{"any":{"text":1}},"loop":{"a":1}}}`, nil},
		"a plugin's": {`{"card":{"rows":[{"text":"a","rows":[{"txt":"b"}]}],"pair":[{"a":1},{"b":1}],"tags":{"x-a":{"n":1,"m":2},"y":{}},"links":{"home":{"href":""}},"both":{"b":1}}}`, map[string]string{
			"/card/rows/0/rows/0/txt": `card.rows.0.rows.0 has no field "txt"; it has rows, text`, "/card/pair/0/a": "card.pair.0 has no fields", "/card/pair/1/b": `card.pair.1 has no field "b"; it has rows, text`,
			"/card/tags/x-a/m": `card.tags.x-a has no field "m"; it has n`, "/card/tags/y": "card.tags has no fields", "/card/links/home/href": `card.links.home has no field "href"; it has rows, text`,
			"/card/both/b": `card.both has no field "b"; it has a`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.want == nil {
				tc.want = map[string]string{}
			}
			if d := cmp.Diff(tc.want, blockFaults(t, b.Check, tc.doc)); d != "" {
				t.Errorf("faults (-want +got):\n%s", d)
			}
		})
	}
}

// TestBlocksOfRouting: a configured channel knows what its own kinds do, for a send knows no more; one that is not
// configured knows what its kinds would.
func TestBlocksOfRouting(t *testing.T) {
	t.Parallel()
	kinds := map[string]providers.Kind{"sms": sms()}
	for _, k := range builtin.Kinds() {
		kinds[k.Name] = k
	}
	r, err := intake.NewRouting([]core.Route{{Name: "apns", Kind: "apns"}}, map[string][]string{"push": {"apns"}}, kinds)
	if err != nil {
		t.Fatal(err)
	}
	got := blockFaults(t, r.CheckTemplate, `{"push":{"apns":{},"fcm":{}},"email":{"html":"x","htlm":"x"},"sms":{"text":"x"},"pager":{}}`)
	want := map[string]string{"/push/fcm": `push has no field "fcm"; it has apns`, "/email/htlm": `email has no field "htlm"; it has attachments, from, headers, html, reply_to, subject, text`,
		"/pager": `there is no field or channel "pager"; fields are title, body, url and data, channels email, in_app, push, sms`}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("faults (-want +got):\n%s", d)
	}
	if _, err := intake.NewBlocks(providers.Kind{Name: "odd", Channel: "odd", Content: []byte("{")}); err == nil {
		t.Error("a schema that is no JSON is taken")
	}
}
