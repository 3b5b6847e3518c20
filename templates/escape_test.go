package templates_test

import (
	"strings"
	"testing"

	xhtml "golang.org/x/net/html"

	"github.com/carillon-notify/carillon/templates"
)

// attack is what a stranger would call himself.
const attack = `"><script>alert('x')</script><img src=x onerror=alert(1)>&`

func TestEscaping(t *testing.T) {
	t.Parallel()
	const escaped = `&#34;&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;&amp;`
	data := object{"x": attack, "list": []any{"<", []any{">"}}, "o": object{"<": "<"}, "url": "https://a.example/?a=1&b=2", "lines": "a<b\r\nc\nd", "n": 1}
	for _, tt := range []struct{ src, want string }{
		{`<p>{{ x }}</p>`, "<p>" + escaped + "</p>"},
		{`<p title="{{ x }}">`, `<p title="` + escaped + `">`},
		{`<p title='{{ x }}'>`, `<p title='` + escaped + `'>`},
		{`{{ list }}{{ o | json }}{{ n }}`, `&lt;&gt;{&#34;&lt;&#34;:&#34;&lt;&#34;}1`},
		{`{{ x | escape }}|{{ x | escape_once | upcase | downcase }}`, escaped + "|" + strings.ToLower(escaped)},
		{`{{ "&lt;" | escape_once }}{{ "&lt;" }}`, "&lt;&amp;lt;"},
		{`{{ lines | newline_to_br }}`, "a&lt;b<br />\nc<br />\nd"},
		{`{{ lines | newline_to_br | newline_to_br }}`, "a&lt;b<br /><br />\nc<br /><br />\nd"},
		{`{{ lines | newline_to_br | append: "<" }}`, "a&amp;lt;b&lt;br /&gt;\nc&lt;br /&gt;\nd&lt;"}, // safe, if not pretty: it was not the last
		{`{% capture c %}<b>{{ x }}</b>{% endcapture %}{{ c }}`, "<b>" + escaped + "</b>"},
		{`{% capture c %}<b>{% endcapture %}{{ c | append: x }}`, "&lt;b&gt;" + escaped},
		{`{% capture c %}{{ x }}{% endcapture %}{% assign d = c %}{{ d }}`, escaped},
		{`{{ nope | default: x }}`, escaped},
		{`{% cycle "<", ">" %}`, "&lt;"},
		{`<a href="{{ url }}">{{ url }}</a>`, `<a href="https://a.example/?a=1&amp;b=2">https://a.example/?a=1&amp;b=2</a>`},
		{`<a href="https://a.example/?q={{ x | url_encode }}">`, `<a href="https://a.example/?q=%22%3E%3Cscript%3Ealert%28%27x%27%29%3C%2Fscript%3E%3Cimg+src%3Dx+onerror%3Dalert%281%29%3E%26">`},
		{`<a{% if n == 1 %} href="{{ url }}"{% else %} class="{{ n }}"{% endif %}>{{ n }}`, `<a href="https://a.example/?a=1&amp;b=2">1`},
		{`<input {% if n == 1 %}checked{% endif %}>`, `<input checked>`},
		{`{% if n == 1 %}<h1{% else %}<h2{% endif %} class="{% if n == 1 %}a{% endif %}{% for i in (1..2) %} {{ i }}{% endfor %}">`, `<h1 class="a 1 2">`},
		{`{% case n %}{% when 1 %}<b>{% when 2 %}<i>{% endcase %}{{ n }}`, `<b>1`},
		{`<!--[if mso]><a href="{{ url }}"><![endif]-->{{ n }}`, `<!--[if mso]><a href="https://a.example/?a=1&amp;b=2"><![endif]-->1`},
		{`<!-- {{ x }} -->{{ n }}`, "<!-- " + escaped + " -->1"},
		{`<style>p{color:red}</style><script>var a = "</p>"</script>{{ n }}`, `<style>p{color:red}</style><script>var a = "</p>"</script>1`},
		{`<p style="color:{{ n }}">`, `<p style="color:1">`},
		{`<!DOCTYPE html><br/>{{ n }}`, `<!DOCTYPE html><br/>1`},
	} {
		got, err := html(t, tt.src, data)
		if err != nil || got != tt.want {
			t.Errorf("%s:\n got %s (%v)\nwant %s", tt.src, got, err, tt.want)
		}
		root, err := xhtml.Parse(strings.NewReader(got))
		if err != nil {
			t.Fatal(err)
		}
		for n := range root.Descendants() {
			if n.Data == "img" {
				t.Errorf("%s: an element came in by way of the data", tt.src)
			}
			for _, a := range n.Attr {
				if strings.HasPrefix(a.Key, "on") {
					t.Errorf("%s: a handler came in by way of the data", tt.src)
				}
			}
		}
	}
	// Text parts are what they are.
	if got, err := body(t, `{{ x }}`, data); err != nil || got != attack {
		t.Errorf("text: %q %v", got, err)
	}
}

func TestUnsafeContexts(t *testing.T) {
	t.Parallel()
	for _, src := range []string{
		`<script>var a = "{{ x }}"</script>`, `<SCRIPT type="y">{{ x }}`, `<style>{{ x }}</style>`,
		`<a href={{ x }}>`, `<a href= {{ x }}>`, `<a href=a{{ x }}>`, `<a {{ x }}>`, `<a on{{ x }}="a">`, `<{{ x }}>`, `<a{{ x }}>`, `</{{ x }}>`,
		`<a onclick="f('{{ x }}')">`, `<p ONLOAD='{{ x }}'>`, `<iframe srcdoc="{{ x }}">`,
		`{% if x %}<a href={% endif %}{{ x }}>`, `<a {% capture c %}a{% endcapture %}{{ c }}>`, `<a href={% cycle "a", "b" %}>`,
		`<p title="a"{{ x }}>`, "<p\n{{ x }}>", `{% if x %}<p {% else %}{{ x }}{% endif %}{{ x }}`,
		// Branches that end in different places.
		`{% if x %}<p title="{% endif %}{{ x }}">`, `{% for i in x %}"<p title={{ i }}{% endfor %}`, `{% for i in x %}<p title="{% endfor %}`,
		`<a {% if x %}href="{% else %}title="{% endif %}{{ x }}">`, `{% case x %}{% when 1 %}<script>{% else %}<style>{% endcase %}`,
		`{% unless x %}<!--{% else %}text{% endunless %}`, `{% capture c %}<a href="{% endcapture %}{{ c }}{{ x }}">`,
	} {
		_, err := templates.Compile(oneHTML(src), templates.Options{})
		if err == nil {
			t.Errorf("%s: compiled", src)
			continue
		}
		if f := faultsOf(t, err)[0]; f.Code != templates.CodeEscape || f.Pointer != "/locales/default/email/html" {
			t.Errorf("%s: %+v", src, f)
		}
	}
}

func TestURLs(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		url  string
		safe bool
	}{
		{"https://a.example/x?y:z#a", true}, {"mailto:a@b.example", true}, {"tel:+49", true}, {"myapp://order/7", true}, {"/path:x", true}, {"", true},
		{"?q=javascript:1", true}, {"#javascript:1", true}, {"cid:logo", true},
		{"javascript:alert(1)", false}, {"JavaScript:alert(1)", false}, {" javascript:alert(1)", false}, {"java\tscript:alert(1)", false},
		{"java\nscript\r:alert(1)", false}, {"\x01javascript:alert(1)", false}, {"data:text/html,<script>", false}, {"vbscript:x", false}, {"file:///etc/passwd", false},
	} {
		for _, src := range []string{`<a href="{{ u }}">`, `<img src='{{ u }}'>`, `<a class="x" HREF=" {{ u }} ">`, `<form action="{{ u }}">`, `{% if u %}<a href="{% else %}<a class='x' href="{% endif %}{{ u }}">`,
			`{% case u %}{% when 1 %}<a class='x' {% else %}<a {% endcase %}href="{{ u }}">`,
			`<a href="{% if u == "no" %}https://a.example/{% endif %}{{ u }}">`, `{% capture c %}{{ u }}{% endcapture %}<a href="{{ c }}">`} {
			_, err := html(t, src, object{"u": tt.url})
			if (err == nil) != tt.safe {
				t.Errorf("%s with %q: %v, want safe %v", src, tt.url, err, tt.safe)
			}
			if err != nil && faultsOf(t, err)[0].Code != templates.CodeEscape {
				t.Errorf("%s with %q: %v", src, tt.url, err)
			}
		}
		// Elsewhere it is a text like any other.
		if _, err := html(t, `<p title="{{ u }}">{{ u }}</p><a href="https://a.example/{{ u }}">`, object{"u": tt.url}); err != nil {
			t.Errorf("%q in text: %v", tt.url, err)
		}
	}
}
