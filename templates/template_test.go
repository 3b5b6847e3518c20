package templates_test

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/templates"
)

func source(t testing.TB, s string) templates.Source {
	t.Helper()
	var src templates.Source
	if err := json.Unmarshal([]byte(s), &src); err != nil {
		t.Fatalf("%v: %s", err, s)
	}
	src.Name = "t"
	return src
}

func TestSourceJSON(t *testing.T) {
	t.Parallel()
	const doc = `{"locales":{"default":{"body":"<b>","email":{"html":"x","subject":"s"},"push":{"apns":{"payload":{"aps":{"badge":3}}}},"title":"T"},"fr":{"data":{"a":1},"url":"u"}},"schema":{"type":"object"},"layout":"plain"}`
	src := source(t, doc)
	want := templates.Source{
		Name: "t", Layout: "plain", Schema: json.RawMessage(`{"type":"object"}`),
		Locales: map[string]templates.Parts{
			"default": {Title: "T", Body: "<b>", Channels: map[string]json.RawMessage{
				"email": json.RawMessage(`{"html":"x","subject":"s"}`), "push": json.RawMessage(`{"apns":{"payload":{"aps":{"badge":3}}}}`),
			}},
			"fr": {URL: "u", Data: json.RawMessage(`{"a":1}`)},
		},
	}
	if d := cmp.Diff(want, src); d != "" {
		t.Error(d)
	}
	out, err := src.MarshalJSON()
	if err != nil || string(out) != doc {
		t.Errorf("there and back: %s (%v)", out, err)
	}
}

func TestSourceFaults(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		doc  string
		want []string
	}{
		{`[]`, []string{" type"}},
		{`null`, []string{" type"}},
		{`{"locales": {"default": {"title": 1, "body": [], "nope": "x", "push": 3, "data": "x"}, "fr": 1}, "layout": 2, "locale": {}}`, []string{
			"/layout type", "/locale unknown_member", "/locales/default/body type", "/locales/default/data type", "/locales/default/nope unknown_member",
			"/locales/default/push unknown_member", "/locales/default/title type", "/locales/fr type",
		}},
		{`{"locales": 3, "a/b~c": 1}`, []string{"/a~1b~0c unknown_member", "/locales type"}},
	} {
		var src templates.Source
		err := json.Unmarshal([]byte(tt.doc), &src)
		if err == nil {
			t.Errorf("%s: taken", tt.doc)
			continue
		}
		if d := cmp.Diff(tt.want, codes(faultsOf(t, err))); d != "" {
			t.Errorf("%s: %s", tt.doc, d)
		}
	}
	if err := json.Unmarshal([]byte(`{`), new(templates.Source)); err == nil {
		t.Error("half a document was taken")
	}
}

// TestAllFaultsAtOnce says that a template with many faults shows them all.
func TestAllFaultsAtOnce(t *testing.T) {
	t.Parallel()
	src := source(t, `{"locales": {
		"default": {"title": "{{ x | nope }}{% zap %}", "body": "{{", "email": {"mjml": "<mjml>", "html": 3, "text": [], "x": "{{ a"}},
		"fr": {"push": {"a": [{"b": "{{ | }}"}, 1, true, null], "a": 1}}, "FR": {}, "not a tag!": {}},
		"layout": "nope", "schema": {"type": "zap"}}`)
	_, err := templates.Compile(src, templates.Options{})
	want := []string{
		"/layout unknown_layout", "/locales/default/body syntax", "/locales/default/email/html type", "/locales/default/email/mjml not_offered",
		"/locales/default/email/text type", "/locales/default/email/x syntax", "/locales/default/title unknown_filter", "/locales/default/title unknown_tag",
		"/locales/fr locale", "/locales/fr/push/a unknown_member", "/locales/fr/push/a/0/b syntax", "/locales/not a tag! locale", "/schema/type schema", "/schema/type schema", // neither a type nor a list of types
	}
	if d := cmp.Diff(want, codes(faultsOf(t, err))); d != "" {
		t.Error(d)
	}
	if s := err.Error(); !strings.Contains(s, "and 11 more") {
		t.Error(s)
	}
	if _, err := templates.Compile(templates.Source{}, templates.Options{}); faultsOf(t, err)[0].Code != templates.CodeLocale {
		t.Error(err)
	}
	// And when rendering: each part has its own fault, and none hides another.
	src = source(t, `{"locales": {"default": {"title": "{{ a }}", "body": "{{ b }}", "url": "{{ ok }}", "data": {"x": ["{{ c }}"]}, "email": {"html": "{{ d }}", "subject": "{{ e }}"}}}, "layout": "default"}`)
	_, err = compile(t, src).Render(templates.Input{Data: object{"ok": 1}})
	want = []string{
		"/locales/default/body undefined_variable", "/locales/default/data/x/0 undefined_variable", "/locales/default/email/html undefined_variable",
		"/locales/default/email/subject undefined_variable", "/locales/default/title undefined_variable",
	}
	if d := cmp.Diff(want, codes(faultsOf(t, err))); d != "" {
		t.Error(d)
	}
}

func TestRender(t *testing.T) {
	t.Parallel()
	src := source(t, `{"locales": {"default": {
		"title": " Order {{ order }}\n", "body": "plain \"text\"", "url": "https://a.example/{{ order }}",
		"data": {"screen": "order", "id": "{{ order }}", "n": 1.50, "list": ["{{ order | plus: 1 }}", true, null, {}]},
		"push": {"apns": {"payload": {"aps": {"badge": 12345678901234567890, "alert": {"subtitle": "{{ note }}"}}, "{{ key }}": "a"}}},
		"email": {"text": "", "html": "<p>{{ note }}</p>", "subject": " {{ order }} "},
		"in_app": {"data": {}}
	}}}`)
	tpl := compile(t, src)
	in := templates.Input{Data: object{"order": 7, "note": "a \"b\" \\ \n\t\x01 é \u2028 <&>"}}
	got, err := tpl.Render(in)
	if err != nil {
		t.Fatal(err)
	}
	want := templates.Content{
		Locale: "default", Title: "Order 7", Body: `plain "text"`, URL: "https://a.example/7",
		Data: json.RawMessage(`{"screen":"order","id":"7","n":1.50,"list":["8",true,null,{}]}`),
		Channels: map[string]json.RawMessage{
			"push":   json.RawMessage(`{"apns":{"payload":{"aps":{"badge":12345678901234567890,"alert":{"subtitle":"a \"b\" \\ \n\t\u0001 é \u2028 <&>"}},"{{ key }}":"a"}}}`),
			"email":  json.RawMessage(`{"html":"<p>a &#34;b&#34; \\ \n\t\u0001 é \u2028 &lt;&amp;&gt;</p>","subject":"7","text":"a \"b\" \\ \u0001 é \u2028 <&>"}`),
			"in_app": json.RawMessage(`{"data":{}}`),
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for name, b := range got.Channels {
		if !json.Valid(b) {
			t.Errorf("%s is no JSON: %s", name, b)
		}
	}
	in.Channels = []string{"push", "nope"}
	if got, err = tpl.Render(in); err != nil || len(got.Channels) != 1 || got.Channels["push"] == nil {
		t.Errorf("one channel: %v %v", got.Channels, err)
	}
	in.Channels = []string{}
	if got, err = tpl.Render(in); err != nil || got.Channels != nil || got.Title != "Order 7" {
		t.Errorf("no channel: %v %v", got.Channels, err)
	}
}

func TestMailText(t *testing.T) {
	t.Parallel()
	layouts := map[string]templates.Layout{"l": {HTML: "<html>{{ content }}<p>{{ subject }}|{{ locale }}|{{ brand | default: 'b' }}</p></html>", Text: "{{ content }}\n--\n{{ subject }}"}}
	for _, tt := range []struct{ email, html, text any }{
		{`{"html": "<p>Hi</p>"}`, "<html><p>Hi</p><p>T||b</p></html>", "Hi\n--\nT"},
		{`{"html": "<p>Hi</p>", "text": ""}`, "<html><p>Hi</p><p>T||b</p></html>", "Hi\n--\nT"},
		{`{"html": "<p>Hi</p>", "text": null, "subject": "S {{ n }}"}`, "<html><p>Hi</p><p>S 1||b</p></html>", "Hi\n--\nS 1"},
		{`{"text": "own {{ n }}", "html": "<p>Hi</p>"}`, "<html><p>Hi</p><p>T||b</p></html>", "own 1\n--\nT"},
		{`{"text": "own <"}`, nil, "own <\n--\nT"},
		{`{"html": "", "text": "own"}`, "", "own\n--\nT"},
		{`{"html": ""}`, "", nil},
		{`{"subject": "x"}`, nil, nil},
		{`{"html": "{{ n }}"}`, "<html>1<p>T||b</p></html>", "1\n--\nT"},
	} {
		src := source(t, `{"locales": {"default": {"title": "T", "email": `+tt.email.(string)+`}}, "layout": "l"}`)
		tpl, err := templates.Compile(src, templates.Options{Layouts: layouts})
		if err != nil {
			t.Fatal(err)
		}
		c, err := tpl.Render(templates.Input{Data: object{"n": 1}})
		if err != nil {
			t.Fatalf("%s: %v", tt.email, err)
		}
		e := email(t, c)
		if e["html"] != tt.html || e["text"] != tt.text {
			t.Errorf("%s: got %q and %q", tt.email, e["html"], e["text"])
		}
	}
}

func TestLayoutFaults(t *testing.T) {
	t.Parallel()
	src := oneHTML("x")
	src.Layout = "l"
	for _, l := range []templates.Layout{
		{HTML: "no content"}, {HTML: "{{ x }}"}, {HTML: "{{ content | upcase }}"}, {HTML: "{{ content"}, {HTML: `<p title="{{ content }}">`}, {Text: "none"},
		{HTML: `{% include "l" %}{{ content }}`}, {HTML: `<script>{{ content }}</script>`}, {HTML: strings.Repeat("x", templates.MaxPart) + "{{ content }}"},
	} {
		_, err := templates.Compile(src, templates.Options{Layouts: map[string]templates.Layout{"l": l}})
		if err == nil || faultsOf(t, err)[0].Pointer != "/layout" {
			t.Errorf("%.40q: %v", l, err)
		}
	}
	// A layout that prints its content more often than the output may be large.
	l := templates.Layout{HTML: "{% for i in (1..1000) %}{{ content }}{% endfor %}"}
	tpl, err := templates.Compile(oneLong(), templates.Options{Layouts: map[string]templates.Layout{"l": l}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = tpl.Render(templates.Input{}); err == nil || faultsOf(t, err)[0].Code != templates.CodeLimit || faultsOf(t, err)[0].Pointer != "/layout" {
		t.Errorf("got %v", err)
	}
}

func oneLong() templates.Source {
	src := oneHTML(strings.Repeat("long ", 1000))
	src.Layout = "l"
	return src
}

func TestLocales(t *testing.T) {
	t.Parallel()
	src := source(t, `{"locales": {"default": {"title": "d"}, "fr": {"title": "fr"}, "fr-CA": {"title": "fr-CA"}, "pt_BR": {"title": "pt"}, "zh-Hant": {"title": "zh"}, "EN-gb": {"title": "en"}, "sl-rozaj": {"title": "sl"}, "fr-a": {"title": "no tag ends like that"}}}`)
	tpl := compile(t, src)
	for _, tt := range []struct{ asked, want string }{
		{"", "default"}, {"fr", "fr"}, {"FR", "fr"}, {"fr-CA", "fr-CA"}, {"fr-ca", "fr-CA"}, {"fr_CA", "fr-CA"}, {"fr-CH", "fr"}, {"fr-Latn-CH-1996", "fr"},
		{"fr-CA-x-private", "fr-CA"}, {"fr-a-bbb", "fr"}, {"pt-BR", "pt_BR"}, {"pt", "default"}, {"pt-PT", "default"},
		{"zh-Hant-CN-x-private1-private2", "zh-Hant"}, {"zh-Hans", "default"}, {"zh", "default"}, // RFC 4647 section 3.4's example
		{"en-GB", "EN-gb"}, {"en", "default"}, {"sl-rozaj-biske", "sl-rozaj"}, {"de", "default"}, {"*", "default"}, {"default", "default"},
		{"-", "default"}, {"fr-", "fr"}, {"fr--", "fr"}, {"a-fr", "default"}, {"f", "default"}, {strings.Repeat("fr-", 100_000), "default"}, {"\xff", "default"},
	} {
		if got := tpl.Locale(tt.asked); got != tt.want {
			t.Errorf("%.40q: got %q, want %q", tt.asked, got, tt.want)
		}
		c, err := tpl.Render(templates.Input{Locale: tt.asked})
		if err != nil || c.Locale != tt.want || c.Title != src.Locales[tt.want].Title {
			t.Errorf("%.40q: rendered %+v (%v)", tt.asked, c, err)
		}
	}
	c, err := tpl.Render(templates.Input{Recipient: templates.Recipient{Locale: "fr-BE"}})
	if err != nil || c.Locale != "fr" {
		t.Errorf("the recipient's locale: %+v %v", c, err)
	}
	if c, err = tpl.Render(templates.Input{Locale: "de", Recipient: templates.Recipient{Locale: "fr"}}); err != nil || c.Locale != "default" {
		t.Errorf("the locale that was asked for goes before the recipient's: %+v %v", c, err)
	}
}

func TestSchema(t *testing.T) {
	t.Parallel()
	src := oneBody("x")
	src.Schema = json.RawMessage(`{"type": "object", "required": ["order"], "additionalProperties": false, "$defs": {"sku": {"type": "string", "pattern": "^[A-Z]+$"}},
		"properties": {"order": {"type": "integer", "minimum": 1}, "mail": {"type": "string", "format": "email"}, "a/b": {"type": "null"},
		"items": {"type": "array", "maxItems": 2, "items": {"type": "object", "required": ["sku"], "properties": {"sku": {"$ref": "#/$defs/sku"}}}}}}`)
	tpl := compile(t, src)
	for _, tt := range []struct {
		data string
		want []string
	}{
		{`{"order": 7}`, nil},
		{`{"order": 7, "mail": "a@b.example", "items": [{"sku": "A"}], "a/b": null}`, nil},
		{`{}`, []string{"/data schema"}},
		{`{"order": "secret", "mail": "secret", "extra": 1, "a/b": 1, "items": [{"sku": "secret"}, {}]}`, []string{
			"/data schema", "/data/a~1b schema", "/data/items/0/sku schema", "/data/items/1 schema", "/data/mail schema", "/data/order schema",
		}},
		{`{"order": 0, "items": [1, 2, 3]}`, []string{"/data/items schema", "/data/items/0 schema", "/data/items/1 schema", "/data/items/2 schema", "/data/order schema"}},
	} {
		_, err := tpl.Render(templates.Input{Data: decode(t, tt.data)})
		if tt.want == nil {
			if err != nil {
				t.Errorf("%s: %v", tt.data, err)
			}
			continue
		}
		faults := faultsOf(t, err)
		if d := cmp.Diff(tt.want, codes(faults)); d != "" {
			t.Errorf("%s: %s", tt.data, d)
		}
		for _, f := range faults {
			if strings.Contains(f.Detail, "secret") {
				t.Errorf("a fault shows data: %+v", f)
			}
		}
	}
	if _, err := tpl.Render(templates.Input{}); err == nil {
		t.Error("no data at all passed a schema that requires some")
	}
	// Numbers as other decoders leave them.
	for _, n := range []any{7, int64(7), 7.0, number("7")} {
		if _, err := tpl.Render(templates.Input{Data: object{"order": n}}); err != nil {
			t.Errorf("%T: %v", n, err)
		}
	}
}

func TestInline(t *testing.T) {
	t.Parallel()
	var p templates.Parts
	if err := json.Unmarshal([]byte(`{"title": "{{ x }}", "body": "b", "url": "u", "data": {"a": "{% b %}"}, "push": {"fcm": {}},
		"email": {"html": "<p>{{ hi }}</p>", "from": "a"}}`), &p); err != nil {
		t.Fatal(err)
	}
	c, err := templates.Inline(p)
	if err != nil {
		t.Fatal(err)
	}
	want := templates.Content{Title: "{{ x }}", Body: "b", URL: "u", Data: json.RawMessage(`{"a": "{% b %}"}`), Channels: map[string]json.RawMessage{
		"push": json.RawMessage(`{"fcm": {}}`), "email": json.RawMessage(`{"html": "<p>{{ hi }}</p>", "from": "a","text":"{{ hi }}"}`),
	}}
	if d := cmp.Diff(want, c); d != "" {
		t.Error(d)
	}
	for block, want := range map[string]string{
		`{"html":"<p>a</p>","text":""}`: `{"html":"<p>a</p>","text":"a"}`, `{"html":"<p>a</p>","text":"own"}`: `{"html":"<p>a</p>","text":"own"}`,
		`{"html":""}`: `{"html":""}`, `{}`: `{}`, `{"html":3}`: `{"html":3}`, `{"text":"a"}`: `{"text":"a"}`, `{"html":"a","text":3}`: `{"html":"a","text":3}`,
	} {
		c, err := templates.Inline(templates.Parts{Channels: map[string]json.RawMessage{"email": json.RawMessage(block)}})
		if err != nil || string(c.Channels["email"]) != want {
			t.Errorf("%s: got %s (%v)", block, c.Channels["email"], err)
		}
	}
	_, err = templates.Inline(templates.Parts{Channels: map[string]json.RawMessage{"email": json.RawMessage(`{"mjml": "x"}`)}})
	if d := cmp.Diff([]string{"/email/mjml not_offered"}, codes(faultsOf(t, err))); d != "" {
		t.Error(d)
	}
}

// TestConcurrent renders one template from many goroutines, each with its own data; the race detector
// and the results say whether they share something.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	tpl := compile(t, source(t, `{"locales": {"default": {"title": "{% for i in list %}{{ i }}{% endfor %}{{ recipient.id }}", "email": {"html": "<p>{{ name | upcase }}</p>"}}}, "layout": "default",
		"schema": {"properties": {"name": {"default": "none"}}}}`))
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			id := strings.Repeat(string(rune('a'+g)), 3)
			for range 50 {
				c, err := tpl.Render(templates.Input{Data: object{"list": []any{id, g}, "name": id}, Recipient: templates.Recipient{ID: id}})
				if err != nil || c.Title != id+string(rune('0'+g))+id || email(t, c)["text"] != strings.ToUpper(id) {
					t.Errorf("%s: %+v %v", id, c, err)
					return
				}
				_, err = tpl.Render(templates.Input{Data: object{"list": []any{object{}}}})
				if err == nil || len(faultsOf(t, err)) != 1 {
					t.Errorf("%v", err)
				}
			}
		})
	}
	wg.Wait()
}

func TestDataIsNotChanged(t *testing.T) {
	t.Parallel()
	data := decode(t, `{"list": [3, 1, 2], "o": {"a": 1}}`)
	if _, err := body(t, `{% assign list = list | sort | reverse %}{% assign o = 5 %}{% for x in list %}{% assign x = 9 %}{% endfor %}{{ list | join }}`, data); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(decode(t, `{"list": [3, 1, 2], "o": {"a": 1}}`), data); d != "" {
		t.Error(d)
	}
}
