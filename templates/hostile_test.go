package templates_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/templates"
)

// bounded is far more than a hostile template may take, to compile and to render, on a crowded machine
// under the race detector. Alone, the dearest takes less than a tenth of a second.
const bounded = 30 * time.Second

// within fails the test, with everybody's stack, when fn takes too long: a template that loops for ever
// cannot be stopped.
func within(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	select {
	case <-done:
	case <-time.After(bounded):
		buf := make([]byte, 1<<16)
		panic("a hostile template runs for longer than " + bounded.String() + ":\n" + string(buf[:runtime.Stack(buf, true)]))
	}
}

func hostileData() object {
	list := make([]any, 1000)
	rows := make([]any, 1000)
	for i := range list {
		list[i] = i
		rows[i] = object{"a": strings.Repeat("x", 20), "b": i, "c": nil}
	}
	return object{
		"n": 1000, "huge": 9223372036854775807, "list": list, "rows": rows,
		"k": strings.Repeat("a", 1000), "long": strings.Repeat("a", 60_000), "lt": strings.Repeat("<", 60_000),
		"script": strings.Repeat("<script", 8000), "mixed": strings.Repeat("<a", 20_000) + strings.Repeat("ab ", 5000),
	}
}

// TestHostile has templates that want to take for ever, or all memory. Each must end within a bound, as
// text or as a fault, and nothing may panic.
func TestHostile(t *testing.T) {
	t.Parallel()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	t.Cleanup(func() { // after the subtests
		var after runtime.MemStats
		runtime.ReadMemStats(&after)
		if after.HeapSys > before.HeapSys+512<<20 {
			t.Errorf("the heap grew by %d MiB", (after.HeapSys-before.HeapSys)>>20)
		}
	})
	loop3 := func(list, body string) string {
		return "{% for a in " + list + " %}{% for b in " + list + " %}{% for c in " + list + " %}" + body + "{% endfor %}{% endfor %}{% endfor %}"
	}
	for name, src := range map[string]string{
		"range":            `{% for i in (1..2000000000) %}{% endfor %}`,
		"dynamic range":    `{% for i in (1..huge) %}{% endfor %}`,
		"negative range":   `{% for i in (-9223372036854775808..huge) %}{% endfor %}`,
		"range array":      `{{ (1..2000000000).AsArray }}`,
		"range filter":     `{{ (1..2000000000) | size }}`,
		"range assign":     `{% assign r = (1..2000000000) %}{{ r.AsArray }}`,
		"range parens":     `{% for i in ((1..2000000000)) %}{% endfor %}`,
		"nested ranges":    loop3("(1..1000)", "x"),
		"nested lists":     loop3("list", ""),
		"nested silent":    loop3("list", "{% if a == b and b == c and c == a %}{% endif %}"),
		"limit":            `{% for a in list limit: huge offset: -5 %}{% endfor %}`,
		"doubling assign":  `{% assign s = k %}` + strings.Repeat(`{% assign s = s | append: s %}`, 40) + `{{ s.size }}`,
		"doubling loop":    `{% assign s = k %}{% for i in (1..1000) %}{% assign s = s | append: s %}{% endfor %}`,
		"doubling capture": `{% assign s = k %}{% for i in (1..1000) %}{% capture s %}{{ s }}{{ s }}{% endcapture %}{% endfor %}`,
		"many captures":    strings.Repeat("{% capture a %}{{ long }}{% endcapture %}", 1500),
		"many variables":   manyVariables(),
		"nested capture":   strings.Repeat("{% capture a %}", 20) + "{{ long }}" + strings.Repeat("{% endcapture %}", 20),
		"list doubling":    `{% assign l = list %}` + strings.Repeat(`{% assign l = l | concat: l %}`, 40),
		"replace":          `{{ long | replace: "a", long }}`,
		"replace empty":    `{{ long | replace: "", long }}`,
		"replace loop":     `{% for a in (1..1000) %}{% for b in (1..10) %}{% assign x = long | replace: "b", "c" %}{% endfor %}{% endfor %}`,
		"split":            `{{ long | split: "" | join: long }}`,
		"join":             `{{ list | join: long }}`,
		"br":               `{{ lt | replace: "<", "ab" | newline_to_br }}`,
		"url encode":       `{% for a in (1..1000) %}{% assign x = lt | url_encode %}{% endfor %}`,
		"escape":           `{% for a in (1..1000) %}{% assign x = lt | escape | escape_once %}{% endfor %}`,
		"strip html":       `{% for a in (1..1000) %}{% assign x = lt | strip_html %}{% assign x = script | strip_html %}{% assign x = mixed | strip_html %}{% endfor %}`,
		"sort":             `{% for a in (1..1000) %}{% for b in (1..10) %}{% assign x = rows | sort: "a" | sort_natural: "b" | uniq | reverse %}{% endfor %}{% endfor %}`,
		"uniq":             `{% for a in (1..1000) %}{% assign x = rows | uniq %}{% endfor %}`,
		"where":            `{% for a in (1..1000) %}{% assign x = rows | where: "a", k | map: "b" | sum %}{% endfor %}`,
		"json":             `{% for a in (1..1000) %}{% assign x = rows | json %}{% endfor %}`,
		"json data":        `{{ data | json }}`,
		"compare lists":    `{% for a in (1..1000) %}{% for b in (1..10) %}{% if rows == rows or list == list %}{% endif %}{% endfor %}{% endfor %}`,
		"contains":         `{% for a in (1..1000) %}{% for b in (1..10) %}{% if long contains "b" or list contains k %}{% endif %}{% endfor %}{% endfor %}`,
		"contains data":    `{% for a in (1..1000) %}{% if "x" contains data or "x" contains rows %}{% endif %}{% endfor %}`,
		"literal compare":  `{% for a in (1..1000) %}{% for b in (1..10) %}{% if "x" == data or 1 == rows or "a" < long %}{% endif %}{% endfor %}{% endfor %}`,
		"print list":       `{% for a in (1..1000) %}{{ list }}{% endfor %}`,
		"print long":       `{% for a in (1..1000) %}{{ long }}{% endfor %}`,
		"print twice":      `{{ long }}{{ long }}{{ long }}{{ long }}{{ long }}`,
		"long literal":     `{% for a in (1..1000) %}{% for b in (1..1000) %}` + strings.Repeat("x", 60_000) + `{% endfor %}{% endfor %}`,
		"cycle":            loop3("list", `{% cycle "a", "b" %}`),
		"many nodes":       `{% for a in list %}{% for b in list %}` + strings.Repeat("{{a}}", 12_000) + `{% endfor %}{% endfor %}`,
		"many objects":     strings.Repeat("{{n}}", 13_000),
		"many filters":     "{{ k" + strings.Repeat(" | append: k", 160) + " }}",
		"many branches":    `{% for a in list %}{% for b in list %}{% if a == -1 %}` + strings.Repeat("{% elsif a == -2 %}", 3000) + `{% endif %}{% endfor %}{% endfor %}`,
		"many whens":       `{% for a in list %}{% case a %}` + strings.Repeat("{% when -1, -2 %}", 3500) + `{% endcase %}{% endfor %}`,
		"deep ifs":         strings.Repeat("{% if true %}", 2300) + strings.Repeat("{% endif %}", 2300),
		"unclosed ifs":     strings.Repeat("{% if true %}", 5000),
		"unclosed":         strings.Repeat("{{", 32_000),
		"unclosed tags":    strings.Repeat("{%", 32_000),
		"half closed":      strings.Repeat("{{ a }", 10_000),
		"quotes":           "{{ '" + strings.Repeat("'a'", 600) + " }}",
		"parens":           "{{ " + strings.Repeat("(", 900) + "1" + strings.Repeat(")", 900) + " }}",
		"open parens":      "{{ " + strings.Repeat("(", 60_000) + " }}",
		"indexes":          "{{ list" + strings.Repeat("[list", 200) + strings.Repeat("]", 200) + " }}",
		"properties":       "{{ n" + strings.Repeat(".x", 900) + " | default: 1 }}",
		"ands":             "{% if true" + strings.Repeat(" and true", 200) + " %}{% endif %}",
		"date":             `{{ 1 | date: "%999999999Y" }}{{ huge | date: "%Y" }}{{ 1e300 | date: "%Y" }}`,
		"date loop":        `{% for a in (1..1000) %}{% for b in (1..10) %}{% assign x = "never a date, but it is long enough to be" | default: 1 | date: "%Y" %}{% endfor %}{% endfor %}`,
		"date formats":     `{% for a in (1..1000) %}{% for b in (1..10) %}{% assign x = 1 | date: "%99Y%99Y%99Y%99Y%99Y%99Y%99Y%99Y%99Y%99Y%99Y%99Y%99Y%99Y%99Y%99Y%99Y%99Y%99Y%99Y%99Y%99Y" %}{% endfor %}{% endfor %}`,
		"numbers":          `{{ huge | times: huge }}{{ 1 | round: huge }}{{ "1" | slice: huge, huge }}{{ k | slice: 0, huge }}{{ k | truncate: huge, long }}{{ k | truncatewords: huge }}`,
		"giant literal":    "{{ " + strings.Repeat("9", 2000) + " }}",
		"giant float":      "{{ 1." + strings.Repeat("9", 2000) + " | times: 1" + strings.Repeat("0", 300) + ".5 }}",
		"NUL":              "{{ \x00 }}\x00{% \x00 %}",
		"raw":              "{% raw %}" + strings.Repeat("{{", 30_000) + "{% endraw %}",
		"comment":          "{% comment %}" + strings.Repeat("{% if %}", 8000),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := hostileData()
			sources := []templates.Source{oneBody(src)}
			if strings.Contains(name, "capture") || strings.Contains(name, "print") || name == "br" || name == "cycle" {
				sources = append(sources, oneHTML(src)) // where escaping is part of the work
			}
			within(t, func() {
				for _, src := range sources {
					start := time.Now()
					tpl, err := templates.Compile(src, templates.Options{})
					var e *templates.Error
					if err == nil {
						_, err = tpl.Render(templates.Input{Data: data})
					}
					if err != nil && !errors.As(err, &e) {
						t.Errorf("want an *Error: %v", err)
					}
					t.Logf("%v: %.100v", time.Since(start).Round(time.Millisecond), err)
				}
			})
		})
	}
}

func manyVariables() string {
	var b strings.Builder
	for i := range 1500 {
		fmt.Fprintf(&b, "{%% assign v%d = long | append: 'x' %%}", i)
	}
	return b.String()
}

// TestHostileMustFail has templates that cannot but exceed a limit, so that a limit that is gone shows.
func TestHostileMustFail(t *testing.T) {
	t.Parallel()
	for _, src := range []string{
		`{% for i in (1..huge) %}{% endfor %}`,
		`{% for a in list %}{% for b in list %}{% endfor %}{% endfor %}`,
		`{% assign s = k %}{% for i in (1..1000) %}{% assign s = s | append: s %}{% endfor %}`,
		`{% assign s = k %}{% for i in (1..1000) %}{% capture s %}{{ s }}{{ s }}{% endcapture %}{% endfor %}`,
		`{% assign l = list | concat: list %}`,
		`{% capture a %}{{ long }}{{ long }}{% endcapture %}`,
		`{{ long | replace: "a", long }}`,
		`{{ long | replace: "", long }}`,
		`{{ long | split: "" }}`,
		`{{ list | join: long }}`,
		`{{ long }}{{ long }}{{ long }}{{ long }}{{ long }}`,
		`{% for a in (1..1000) %}{% for b in (1..10) %}{% assign x = rows | sort: "a" %}{% endfor %}{% endfor %}`,
		`{% for a in (1..1000) %}{% for b in (1..10) %}{% if rows == rows %}{% endif %}{% endfor %}{% endfor %}`,
		`{% for a in (1..1000) %}{% for b in (1..10) %}{% if long contains "b" %}{% endif %}{% endfor %}{% endfor %}`,
		`{% for a in (1..1000) %}{% assign x = rows | json %}{% endfor %}`,
	} {
		within(t, func() {
			_, err := compile(t, oneBody(src)).Render(templates.Input{Data: hostileData()})
			if err == nil {
				t.Errorf("%s: rendered", src)
			} else if f := faultsOf(t, err)[0]; f.Code != templates.CodeLimit {
				t.Errorf("%s: got %+v, want a limit", src, f)
			}
		})
	}
}

// TestPasses has loops on both sides of the limit that is in the documentation.
func TestPasses(t *testing.T) {
	t.Parallel()
	tpl := compile(t, oneBody(`{% for a in (1..99) %}{% for b in (1..n) %}{% endfor %}{% endfor %}`)) // 99 + 99 n
	for n, ok := range map[int]bool{100: true, 101: false} {
		for range 3 { // the limit is of each rendering
			_, err := tpl.Render(templates.Input{Data: object{"n": n}})
			if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "10,000 passes") {
				t.Errorf("%d: %v", n, err)
			}
		}
	}
}

// TestMemory says that what is refused for its size is refused before it is made. It is not parallel, so
// that what is allocated meanwhile is its own.
func TestMemory(t *testing.T) { //nolint:paralleltest // see above
	data := hostileData()
	for _, src := range []string{
		`{{ list | join: long }}`, `{{ long | replace: "a", long }}`, `{{ long | replace: "", long }}`, `{{ long | split: "" }}`,
		`{{ lt | replace: "<", "\n" | newline_to_br }}`, `{% for i in (1..huge) %}{% endfor %}`, `{% if "x" contains rows %}{% endif %}`,
	} {
		tpl := compile(t, oneBody(src))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := tpl.Render(templates.Input{Data: data})
		runtime.ReadMemStats(&after)
		if err == nil {
			t.Errorf("%s: rendered", src)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 2<<20 {
			t.Errorf("%s: allocated %d KiB", src, n>>10)
		}
	}
}

// TestBudgetIsShared says that the parts of one rendering draw on one budget.
func TestBudgetIsShared(t *testing.T) {
	t.Parallel()
	work := `{% for a in list %}{% for b in (1..5) %}{% if a == b %}{% endif %}{% endfor %}{% endfor %}`
	block := object{}
	for i := range 150 {
		block[fmt.Sprint("x", i)] = work
	}
	raw, err := json.Marshal(block)
	if err != nil {
		t.Fatal(err)
	}
	src := oneBody(work)
	if _, err := compile(t, src).Render(templates.Input{Data: hostileData()}); err != nil {
		t.Fatalf("one part must be fine: %v", err)
	}
	src.Locales["default"] = templates.Parts{Channels: map[string]json.RawMessage{"push": raw}}
	within(t, func() {
		_, err := compile(t, src).Render(templates.Input{Data: hostileData()})
		if err == nil || faultsOf(t, err)[0].Code != templates.CodeLimit {
			t.Errorf("got %v, want a limit", err)
		}
	})
}

// TestHostileData has data that is too much before any template looks at it.
func TestHostileData(t *testing.T) {
	t.Parallel()
	var deep any = "x"
	for range 10_000 {
		deep = []any{deep}
	}
	many := make([]any, 20_000)
	for name, tt := range map[string]struct {
		data object
		code string
	}{
		"deep":    {object{"x": deep}, templates.CodeLimit},
		"many":    {object{"x": many}, templates.CodeLimit},
		"large":   {object{"x": strings.Repeat("x", 300<<10)}, templates.CodeLimit},
		"invalid": {object{"x": "a\xff"}, templates.CodeEncoding},
		"member":  {object{"\xff": "a"}, templates.CodeEncoding},
	} {
		_, err := body(t, "x", tt.data)
		if err == nil || faultsOf(t, err)[0].Code != tt.code {
			t.Errorf("%s: got %v, want %s", name, err, tt.code)
		}
		_, err = compile(t, oneBody("x")).Render(templates.Input{Recipient: templates.Recipient{Attributes: tt.data}})
		if err == nil || faultsOf(t, err)[0].Pointer != "/recipient/attributes" {
			t.Errorf("%s: as attributes: %v", name, err)
		}
	}
}

// TestHostileSchema has schemas that would take exponential time.
func TestHostileSchema(t *testing.T) {
	t.Parallel()
	twice := func(ref string) string { return `{"allOf": [{"$ref": "` + ref + `"}, {"$ref": "` + ref + `"}]}` }
	var chain []string
	for i := range 40 {
		chain = append(chain, fmt.Sprintf(`"d%d": %s`, i, twice(fmt.Sprintf("#/$defs/d%d", i+1))))
	}
	for name, s := range map[string]string{
		"itself":     `{"properties": {"a": ` + twice("#") + `}}`,
		"cycle":      `{"$defs": {"a": {"properties": {"a": ` + twice("#/$defs/a") + `}}}, "$ref": "#/$defs/a"}`,
		"chain":      `{"$defs": {` + strings.Join(chain, ",") + `, "d40": {}}, "$ref": "#/$defs/d0"}`,
		"remote":     `{"$ref": "http://127.0.0.1:1/schema"}`,
		"file":       `{"$ref": "file:///etc/passwd"}`,
		"relative":   `{"$ref": "other.json"}`,
		"dynamic":    `{"$dynamicRef": "#x", "$defs": {"x": {"$dynamicAnchor": "x"}}}`,
		"metaschema": `{"$schema": "http://127.0.0.1:1/schema"}`,
		"id":         `{"properties": {"a": {"$id": "http://127.0.0.1:1/", "$ref": "x"}}}`,
		"pattern":    `{"properties": {"a": {"pattern": "(?=x)"}}}`,
		"invalid":    `{"type": "nonsense"}`,
		"list":       `[]`,
		"many":       `{"anyOf": [` + strings.Repeat(`{"type":"null"},`, 1100) + `{}]}`,
	} {
		src := oneBody("x")
		src.Schema = json.RawMessage(s)
		within(t, func() {
			_, err := templates.Compile(src, templates.Options{})
			if err == nil {
				t.Errorf("%s: compiled", name)
			} else if f := faultsOf(t, err)[0]; !strings.HasPrefix(f.Pointer, "/schema") {
				t.Errorf("%s: %+v", name, f)
			}
		})
	}
	// A schema of the schema's own, in a file that is there and would do.
	meta := filepath.Join(t.TempDir(), "meta.json")
	if err := os.WriteFile(meta, []byte(`{"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "file://`+meta+`"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	src := oneBody("x")
	src.Schema = json.RawMessage(`{"$schema": "file://` + meta + `"}`)
	if _, err := templates.Compile(src, templates.Options{}); err == nil {
		t.Error("a file was read")
	}
	// The dearest that is let through: a large schema on large data.
	for _, n := range []int{4, 300} {
		src.Schema = json.RawMessage(`{"properties": {"rows": {"uniqueItems": true, "items": {"allOf": [` + strings.Repeat(`{"properties": {"a": {"pattern": "^(a|b|x)*$"}}},`, n) + `{}]}}}}`)
		tpl := compile(t, src)
		within(t, func() {
			start := time.Now()
			_, err := tpl.Render(templates.Input{Data: object{"rows": hostileData()["rows"]}})
			t.Logf("%d: %v %v", n, time.Since(start), err)
			if n == 300 && (err == nil || faultsOf(t, err)[0].Code != templates.CodeLimit) {
				t.Errorf("got %v, want a limit", err)
			}
		})
	}
}
