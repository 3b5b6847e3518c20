package templates_test

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/templates"
)

var (
	fence = regexp.MustCompile("(?s)```([a-z]+) ([^\n]+)\n(.*?)```")
	row   = regexp.MustCompile("(?m)^\\| `(.+?)` \\| (?:`(.*)`|error: (.*)) \\|$")
	code  = regexp.MustCompile("`([a-z_0-9]+)`")
)

// TestDocs renders what docs/templates.md shows.
func TestDocs(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/templates.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	files, parts := fstest.MapFS{}, map[string]string{}
	for _, m := range fence.FindAllStringSubmatch(page, -1) {
		if m[1] == "json" {
			parts[m[2]] = m[3]
			continue
		}
		files[m[2]] = &fstest.MapFile{Data: []byte(m[3])}
	}
	read := func(name string, into any) {
		t.Helper()
		if err := json.Unmarshal([]byte(parts[name]), into); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	t.Run("the first one", func(t *testing.T) {
		c := templates.New(files, nil)
		if err := c.Reload(); err != nil {
			t.Fatal(err)
		}
		found, err := c.Find(t.Context(), "", "parcel", 0)
		if err != nil {
			t.Fatal(err)
		}
		var in templates.Input
		var want, got struct {
			Locale, Title, Body, URL string
			Data, Channels           object
		}
		read("data", &in.Data)
		read("recipient", &in.Recipient)
		read("result", &want)
		out, err := found.Render(in)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(out)
		if err == nil {
			err = json.Unmarshal(b, &got)
		}
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("rendered (-want +got):\n%s", d)
		}
	})
	var data object
	read("data snippets", &data)
	sections := strings.Split(page, "\n## ")
	rows := 0
	for _, section := range sections {
		for _, m := range row.FindAllStringSubmatch(section, -1) {
			if !strings.Contains(section, "| Comes out |") {
				continue
			}
			rows++
			src := strings.ReplaceAll(m[1], `\|`, "|")
			got, err := snippet(t, strings.HasPrefix(section, "Escaping"), src, data)
			switch {
			case m[3] != "" && (err == nil || !strings.Contains(err.Error(), m[3])):
				t.Errorf("%s is %q, %v, want an error of %s", src, got, err, m[3])
			case m[3] == "" && (err != nil || got != strings.ReplaceAll(m[2], `\|`, "|")):
				t.Errorf("%s is %q, %v, want %q", src, got, err, m[2])
			}
		}
	}
	if rows < 30 {
		t.Errorf("%d rows are rendered, the page has more", rows)
	}
	i := slices.IndexFunc(sections, func(s string) bool { return strings.HasPrefix(s, "Filters") })
	list, _, _ := strings.Cut(sections[i], "They are the standard ones")
	var named []string
	for _, m := range code.FindAllStringSubmatch(list, -1) {
		named = append(named, m[1])
	}
	if d := cmp.Diff(templates.Filters(), named); d != "" {
		t.Errorf("the filters that are listed (-offered +listed):\n%s", d)
	}
	_, limits, _ := strings.Cut(page, "## Limits")
	for _, want := range []string{
		fmt.Sprintf("%d KiB |\n| a file | %d MiB", templates.MaxPart>>10, templates.MaxFile>>20), fmt.Sprintf("| %d, %d |", templates.MaxDepth, templates.MaxLoops),
		fmt.Sprintf("| %d KiB, %d KiB |", templates.MaxOutput>>10, templates.MaxString>>10), fmt.Sprintf("| 1,%03d, %d,000 |", templates.MaxItems-1000, templates.MaxIterations/1000),
		fmt.Sprintf("| %d, %d,000, %d KiB |", templates.MaxDataDepth, templates.MaxDataValues/1000, templates.MaxDataBytes>>10), fmt.Sprintf("| 1,%03d |", templates.MaxSchema-1000),
	} {
		if !strings.Contains(limits, want) {
			t.Errorf("the limits lack %q", want)
		}
	}
}

// snippet renders a text as a body or an e-mail's HTML, or says why it cannot be.
func snippet(t *testing.T, asHTML bool, src string, data object) (string, error) {
	t.Helper()
	source, render := oneBody(src), body
	if asHTML {
		source, render = oneHTML(src), html
	}
	if _, err := templates.Compile(source, templates.Options{}); err != nil {
		return "", err
	}
	return render(t, src, data)
}
