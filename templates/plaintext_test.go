package templates_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/carillon-notify/carillon/templates"
)

func TestPlainText(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ html, want string }{
		{"", ""},
		{"plain", "plain"},
		{"<p>One\n  two</p><p>three</p>", "One two\n\nthree"},
		{"a<br>b<br/>c<br><br>d", "a\nb\nc\n\nd"},
		{"<h1>T</h1><div>a</div><div>b</div>", "T\n\na\nb"},
		{"<ul><li>a</li><li>b <b>c</b></li></ul>d", "- a\n- b c\n\nd"},
		{`<a href="https://a.example">here</a>, <a href="https://b.example">https://b.example</a>, <a href="mailto:a@b.example">a@b.example</a>, <a href="#x">top</a>`,
			"here <https://a.example>, https://b.example, a@b.example, top"},
		{`<a href="https://a.example"><img src="x" alt="Logo"></a><a href="https://c.example"><img src="x"></a>`, "Logo <https://a.example>https://c.example"},
		{"&lt;a&gt; &amp;amp; &eacute;&nbsp;x", "<a> &amp; é x"},
		{"<head><title>no</title><style>p{}</style></head><body>a<script>no</script><!-- no --><style>no</style></body>", "a"},
		{`<div style="display: none">no<p>no</div>a<span hidden>no</span>b<div style="DISPLAY:NONE"><div>no</div>no</div>c`, "abc"},
		{"<div hidden><b>no</b>no<div>no</div>no</div>a", "a"},
		{"<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc"},
		{"a<hr>b", "a\n\n---\n\nb"},
		{"<pre>a  b\n c</pre>", "a  b\n c"},
		{"<p>unclosed <b>a <i>b", "unclosed a b"},
		{"</p></a></ul>a</div>", "a"},
		{"a < b > c", "a < b > c"},
		{"<", "<"},
		{"<textarea><b>x</b></textarea>", "<b>x</b>"},
	} {
		if got := templates.PlainText(tt.html); got != tt.want {
			t.Errorf("%s:\n got %q\nwant %q", tt.html, got, tt.want)
		}
	}
}

func TestPlainTextIsBounded(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]string{
		"links": strings.Repeat(`<a href="x">`, 20_000), "closing": strings.Repeat(`<a href="x">y</a>`, 20_000), "nested": strings.Repeat("<div hidden>", 40_000),
		"brackets": strings.Repeat("<", 100_000), "attributes": "<p " + strings.Repeat("a=1 ", 40_000) + ">", "comment": strings.Repeat("<!--", 40_000),
		"styles": strings.Repeat(`<p style="`+strings.Repeat(" ", 1000)+`">`, 1000), "breaks": strings.Repeat("<br>", 40_000) + "x", "pre": "<pre>" + strings.Repeat("\n", 100_000) + "x",
		"shape": strings.Repeat(`<a href="`+strings.Repeat("h", 500)+`">`, 1000) + "x" + strings.Repeat("</a>", 1000),
	} {
		within(t, func() {
			out := templates.PlainText(s)
			if len(out) > len(s)+16 || !utf8.ValidString(out) {
				t.Errorf("%s: %d bytes became %d", name, len(s), len(out))
			}
		})
	}
}
