package templates_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	xhtml "golang.org/x/net/html"

	"github.com/carillon-notify/carillon/templates"
)

var update = flag.Bool("update", false, "write the golden files")

// samples are data for the shipped templates: little, and all there is.
var samples = map[string][]string{
	"welcome":       {`{}`, `{"name": "Ann <b>", "link": "https://acme.example/start?a=1&b=2", "brand": {"name": "Acme & Sons", "url": "https://acme.example", "footer": "1 Main Street\nSpringfield"}}`},
	"password-code": {`{"code": "123456"}`, `{"code": 9876, "minutes": 1, "brand": {"name": "Acme"}}`},
	"order-shipped": {`{"order": 7}`, `{"order": 7, "carrier": "Post", "expected": "2026-12-01", "tracking_url": "https://post.example/7",
		"items": [{"name": "Spatula"}, {"name": "<Fork>", "quantity": 2}], "brand": {"footer": "Acme"}}`},
}

// TestShipped renders every shipped template in every locale and compares with what was looked at.
func TestShipped(t *testing.T) {
	t.Parallel()
	c := templates.New(nil, nil)
	infos := c.List()
	if len(infos) != len(samples) {
		t.Fatalf("there are %d shipped templates and samples of %d", len(infos), len(samples))
	}
	for _, info := range infos {
		tpl, err := c.Find(t.Context(), "any", info.Name, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, locale := range []string{"default", "fr", "de"} {
			for i, data := range samples[info.Name] {
				name := fmt.Sprintf("%s.%s.%d", info.Name, locale, i)
				got, err := tpl.Render(templates.Input{Data: decode(t, data), Locale: locale})
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				if got.Locale != locale {
					t.Errorf("%s: rendered in %s", name, got.Locale)
				}
				e := email(t, got)
				checkHTML(t, name, e["html"].(string), locale)
				if strings.ContainsAny(got.Title+got.URL, "\n") || got.Title == "" || got.Body == "" {
					t.Errorf("%s: title %q, body %q, url %q", name, got.Title, got.Body, got.URL)
				}
				golden(t, name, fmt.Sprintf("title: %s\nbody: %s\nurl: %s\ndata: %s\nsubject: %v\n---- text\n%s\n---- html\n%s",
					got.Title, got.Body, got.URL, got.Data, e["subject"], e["text"], e["html"]))
			}
		}
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (go test -run Shipped -update writes it anew):\n%s", name, d)
	}
}

// checkHTML parses an e-mail: one head with a title, one body, every opened element closed, links with
// targets, no script.
func checkHTML(t *testing.T, name, src, locale string) {
	t.Helper()
	var open []string
	z := xhtml.NewTokenizer(strings.NewReader(src))
	for tt := z.Next(); tt != xhtml.ErrorToken; tt = z.Next() {
		tok := z.Token()
		switch {
		case tt == xhtml.StartTagToken && tok.Data != "meta" && tok.Data != "br":
			open = append(open, tok.Data)
		case tt == xhtml.EndTagToken:
			if len(open) == 0 || open[len(open)-1] != tok.Data {
				t.Fatalf("%s: </%s> closes %v", name, tok.Data, open)
			}
			open = open[:len(open)-1]
		}
	}
	if len(open) > 0 {
		t.Errorf("%s: %v not closed", name, open)
	}
	root, err := xhtml.Parse(strings.NewReader(src))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	count := map[string]int{}
	for n := range root.Descendants() {
		if n.Type != xhtml.ElementNode {
			continue
		}
		count[n.Data]++
		for _, a := range n.Attr {
			if n.Data == "html" && a.Key == "lang" && a.Val != locale || n.Data == "a" && a.Key == "href" && !strings.HasPrefix(a.Val, "https://") {
				t.Errorf("%s: %s=%q", name, a.Key, a.Val)
			}
		}
	}
	if count["head"] != 1 || count["body"] != 1 || count["title"] != 1 || count["h1"] != 1 || count["script"] != 0 {
		t.Errorf("%s: %v", name, count)
	}
}
