package templates_test

import (
	"encoding/json"
	"errors"
	"testing"
	"unicode/utf8"

	"github.com/carillon-notify/carillon/templates"
)

// FuzzTemplate says of any source and data: no panic, an *Error or JSON, UTF-8 and within the limits.
func FuzzTemplate(f *testing.F) {
	for _, s := range []string{
		`{{ a | default: "x" | upcase | append: b }}`, `{% for x in list limit:2 offset:1 reversed %}{{ forloop.index }}{{ x }}{% else %}{% endfor %}`,
		`{% if a == b and c contains "d" %}{% elsif x %}{% else %}{% endif %}`, `{% case a %}{% when 1, "x" %}{% else %}{% endcase %}`,
		`{%- capture c -%}<a href="{{ u }}">{%- endcapture -%}{{ c | newline_to_br }}`, `{% raw %}{{{% endraw %}{% comment %}{% endcomment %}`,
		`{% assign x = list | sort | uniq | map: "a" | join: "," %}{{ x | split: "" | size }}`, `{% for i in (1..n) %}{% cycle "a", "b" %}{% break %}{% endfor %}`,
		`{{ s | slice: -1, 9 | truncate: 3, "" | date: "%Y" | round: 2 | divided_by: n | json | strip_html | url_decode }}`,
		`{{ (1..9).AsArray }}{{ list[n]["a"].first.size }}{{ %loop x in y }}{{ 9999999999999999999 }}`,
	} {
		f.Add(s, `{"a": 1, "b": null, "list": [1, {"a": [2]}], "n": 3, "s": "text", "u": "https://a.example", "o": {"p": 1.5}}`)
	}
	f.Fuzz(func(t *testing.T, src, data string) {
		var in templates.Input
		if json.Unmarshal([]byte(data), &in.Data) != nil {
			in.Data = object{"a": data}
		}
		in.Recipient.Attributes = in.Data
		for _, s := range []templates.Source{oneBody(src), oneHTML(src)} {
			s.Layout = "default"
			tpl, err := templates.Compile(s, templates.Options{})
			var c templates.Content
			if err == nil {
				c, err = tpl.Render(in)
			}
			var e *templates.Error
			if err != nil {
				if !errors.As(err, &e) || len(e.Faults) == 0 {
					t.Fatalf("%v", err)
				}
				continue
			}
			if len(c.Body) > templates.MaxOutput || !utf8.ValidString(c.Body) {
				t.Fatalf("a body of %d bytes: %q", len(c.Body), c.Body[:min(99, len(c.Body))])
			}
			if b, ok := c.Channels["email"]; ok && (!json.Valid(b) || !utf8.Valid(b)) {
				t.Fatalf("no JSON: %s", b)
			}
			again, err := tpl.Render(in)
			if err != nil || again.Body != c.Body || string(again.Channels["email"]) != string(c.Channels["email"]) {
				t.Fatalf("twice is not the same: %v", err)
			}
		}
	})
}
