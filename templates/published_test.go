package templates_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/templates"
)

// published is a case of Liquid's own tests, as testdata/liquid/record.rb wrote it down.
type published struct {
	Test     string            `json:"test"`
	Template string            `json:"template"`
	Want     string            `json:"want"`
	Data     object            `json:"data"`
	Partials map[string]string `json:"partials"`
	Error    bool              `json:"error"` // it must be refused, at compile or as it is rendered
}

// render is what we make of it.
func (p *published) render() (string, error) {
	dir := fstest.MapFS{}
	for name, text := range p.Partials {
		dir["_partials/"+name+".liquid"] = &fstest.MapFile{Data: []byte(text)}
	}
	c := templates.New(dir, nil)
	if err := c.Reload(); err != nil {
		return "", err
	}
	tpl, err := c.Compile(oneBody("|" + p.Template + "|"))
	if err != nil {
		return "", err
	}
	out, err := tpl.Render(templates.Input{Data: p.Data})
	if err != nil {
		return "", err
	}
	return out.Body[1 : len(out.Body)-1], nil
}

// fails says how what we make of a case differs; "" if it does not.
func (p *published) fails() string {
	got, err := p.render()
	switch {
	case p.Error && err == nil:
		return fmt.Sprintf("is not refused but %q", got)
	case p.Error:
		return ""
	case err != nil:
		return err.Error()
	case got == p.Want:
		return ""
	}
	var x, y any // the order of an object's members is nobody's
	if json.Unmarshal([]byte(got), &x) == nil && json.Unmarshal([]byte(p.Want), &y) == nil && strings.Contains(p.Template, "| json") && cmp.Equal(x, y) {
		return ""
	}
	return fmt.Sprintf("got %q, want %q", got, p.Want)
}

// lines reads a file of testdata/liquid.
func lines(t *testing.T, name string) [][]byte {
	t.Helper()
	text, err := os.ReadFile("testdata/liquid/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		out = append(out, bytes.Clone(s.Bytes()))
	}
	return out
}

// deviations are the cases that differ on purpose, each with the reason that stands above it.
func deviations(t *testing.T) map[string]string {
	t.Helper()
	out, reason := map[string]string{}, ""
	for _, l := range lines(t, "deviations.txt") {
		switch line := string(l); {
		case strings.HasPrefix(line, "# "):
			reason = line[2:]
		case line != "":
			if out[line] != "" || reason == "" {
				t.Errorf("deviations.txt: %s stands there twice, or without a reason", line)
			}
			out[line] = reason
		}
	}
	return out
}

// TestPublished runs the cases of Liquid's own tests for the tags and filters that are offered. What differs is
// in testdata/liquid/deviations.txt with its reason; what stands there and does not differ any more fails, too.
func TestPublished(t *testing.T) {
	t.Parallel()
	differs, n, passed := deviations(t), map[string]int{}, 0
	for i, l := range lines(t, "cases.jsonl") {
		var p published
		if err := json.Unmarshal(l, &p); err != nil {
			t.Fatalf("cases.jsonl, line %d: %v", i+1, err)
		}
		n[p.Test]++
		id := fmt.Sprintf("%s/%d", p.Test, n[p.Test])
		reason, known := differs[id]
		delete(differs, id)
		switch why := p.fails(); {
		case why != "" && !known:
			t.Errorf("%s: %s %v: %s", id, p.Template, p.Data, why)
		case why == "" && known:
			t.Errorf("%s does not differ any more; it was: %s", id, reason)
		case why == "":
			passed++
		}
	}
	for id := range differs {
		t.Errorf("deviations.txt: there is no case %s", id)
	}
	if passed < 600 {
		t.Errorf("only %d cases pass", passed)
	}
	t.Logf("%d cases pass", passed)
}
