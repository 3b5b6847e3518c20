package templates_test

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/carillon-notify/carillon/templates"
)

func TestPartials(t *testing.T) {
	t.Parallel()
	dir := fstest.MapFS{
		"_partials/sign.liquid":  {Data: []byte("Yours, {{ sender }}{% include 'mark' %}\n")},
		"_partials/mark.liquid":  {Data: []byte("!")},
		"_partials/other.txt":    {Data: []byte("not a partial")},
		"_layouts/framed.html":   {Data: []byte("<div>{{ content }}</div><p>{% include \"sign\" %}</p>")},
		"hello.yaml":             {Data: []byte("layout: framed\nlocales:\n  default:\n    title: Hi\n    body: \"{%- include \\\"sign\\\" -%} {% raw %}{% include 'sign' %}{% endraw %}\"\n    email: {html: \"<b>{% include 'sign' %}</b>\"}\n")},
		"_partials/loop.liquid":  {Data: []byte("{% include 'loop' %}")},
		"_partials/large.liquid": {Data: []byte(strings.Repeat("x", templates.MaxPart-10))},
	}
	c := templates.New(dir, nil)
	if err := c.Reload(); err != nil {
		t.Fatal(err)
	}
	tpl, err := c.Find(t.Context(), "a", "hello", 0)
	if err != nil {
		t.Fatal(err)
	}
	got, err := tpl.Render(templates.Input{Data: map[string]any{"sender": "<Ann>"}})
	if err != nil {
		t.Fatal(err)
	}
	if want := "Yours, <Ann>! {% include 'sign' %}"; got.Body != want {
		t.Errorf("body %q, want %q", got.Body, want)
	}
	var mail struct{ HTML, Text string }
	if err := json.Unmarshal(got.Channels["email"], &mail); err != nil || mail.HTML != "<div><b>Yours, &lt;Ann&gt;!</b></div><p>Yours, &lt;Ann&gt;!</p>" || !strings.Contains(mail.Text, "Yours, <Ann>!") {
		t.Errorf("mail %+v %v", mail, err)
	}
	dir["_partials/mark.liquid"] = &fstest.MapFile{Data: []byte("?")}
	if err := c.Reload(); err != nil {
		t.Fatal(err)
	}
	again, err := c.Find(t.Context(), "a", "hello", 0)
	if err != nil || again.Hash() == tpl.Hash() {
		t.Errorf("another partial is another template: %v", err)
	}
	for src, want := range map[string]string{
		`{% include "none" %}`:                       "no partial",
		`{% include "loop" %}`:                       "deeper than",
		`{% include name %}`:                         "include",
		`{% include "large" %}`:                      "",
		`{% include "large" %}{% include "large" %}`: "larger than",
	} {
		_, err := c.Compile(templates.Source{Name: "x", Locales: map[string]templates.Parts{"default": {Body: src}}})
		if want == "" {
			if err != nil {
				t.Errorf("%s: %v", src, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want one with %q", src, err, want)
		}
	}
}
