package templates_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/templates"
)

func BenchmarkWelcome(b *testing.B) {
	tpl, err := templates.New(nil, nil).Find(b.Context(), "a", "welcome", 0)
	if err != nil {
		b.Fatal(err)
	}
	in := templates.Input{Data: decode(b, samples["welcome"][1])}
	for _, bm := range []struct {
		name     string
		channels []string
	}{{"mail", nil}, {"push", []string{}}} {
		b.Run(bm.name, func(b *testing.B) {
			in.Channels = bm.channels
			b.ReportAllocs()
			for b.Loop() {
				if _, err := tpl.Render(in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkLoop is the e-mail that the engines were compared with: 0.85 KB, a loop of five items.
func BenchmarkLoop(b *testing.B) {
	tpl := compile(b, oneHTML(`<html><body><h1>Hello {{ name }}</h1><p>`+strings.Repeat("Some text of the mail. ", 20)+`</p><ul>{% for i in items %}<li>{{ i.name }}: {{ i.price | round: 2 }} {{ i.cur | upcase }}</li>{% endfor %}</ul><p>{{ total }}</p></body></html>`))
	items := make([]any, 5)
	for i := range items {
		items[i] = object{"name": "Thing & more", "price": 12.5, "cur": "eur"}
	}
	in := templates.Input{Data: object{"name": "Ann", "items": items, "total": 62.5}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tpl.Render(in); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	tpl, err := templates.New(nil, nil).Find(b.Context(), "a", "order-shipped", 0)
	if err != nil {
		b.Fatal(err)
	}
	doc, err := json.Marshal(tpl.Source())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		var src templates.Source
		if err := json.Unmarshal(doc, &src); err != nil {
			b.Fatal(err)
		}
		if _, err := templates.Compile(src, templates.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
