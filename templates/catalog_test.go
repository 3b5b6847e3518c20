package templates_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/templates"
)

func file(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }

func title(t *testing.T, c *templates.Catalog, app, name string, version int) string {
	t.Helper()
	tpl, err := c.Find(t.Context(), app, name, version)
	if err != nil {
		return err.Error()
	}
	got, err := tpl.Render(templates.Input{Data: object{"order": 7, "code": "12345"}})
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(got.Title, " v", tpl.Version())
}

func TestFiles(t *testing.T) {
	t.Parallel()
	dir := fstest.MapFS{
		"mine.yaml": file("layout: own\nlocales:\n  default:\n    title: Hi {{ order }}\n    email:\n      html: |\n        <b>{{ order }}</b>\n  no: {title: Norsk}\n"),
		"json.json": file(`{"locales": {"default": {"title": "J"}}}`), "yml.yml": file("locales: {default: {title: Y}}"),
		"order-shipped.yaml": file("locales: {default: {title: Over the shipped one}}"),
		"_layouts/own.html":  file("<i>{{ content }}</i>"), "_layouts/own.txt": file("{{ content }} -- own"), "_layouts/README.md": file("{{"),
		"README.md": file("{{"), "_draft.yaml": file("{{"), ".hidden.yaml": file("{{"), "sub/x.yaml": file("{{"), "dir.yaml/x": file("{{"),
		"bad-syntax.yaml": file("locales: {default: {title: '{{ x | nope }}', body: '{{'}}"), "bad-yaml.yaml": file("a: [\n"), "bad-json.json": file(`{"locales": `),
		"two.json": file(`{} {}`), "bad-member.yaml": file("locals: {}"), "no-default.yaml": file("locales: {fr: {}}"), "bad-key.yaml": file("1: 2\n"),
		"welcome.yaml": file("locales: {default: {title: '{{ broken'}}"), "password-code.yaml": file("["), "bad name.yaml": file("locales: {default: {}}"),
		"mine.json": file(`{"locales": {"default": {"title": "twice"}}}`), "bad-layout.yaml": file("locales: {default: {}}\nlayout: nope"),
		"_layouts/broken.html": file("no"), "uses-broken.yaml": file("locales: {default: {}}\nlayout: broken"), "large.yaml": file("# " + strings.Repeat("x", templates.MaxFile)),
		"bomb.yaml": file("a: &a [x,x,x,x,x,x,x,x,x]\n" + bomb() + "locales: *h\n"),
	}
	c := templates.New(dir, nil)
	if got := title(t, c, "a", "mine", 0); !strings.Contains(got, "no such template") {
		t.Errorf("before Reload: %s", got)
	}
	faults := faultsOf(t, c.Reload())
	var got []string
	for _, f := range faults {
		got = append(got, strings.TrimSuffix(f.File+" "+f.Pointer, " ")+" "+f.Code)
	}
	want := []string{
		"_layouts/broken.html syntax", "bad name.yaml name", "bad-json.json encoding", "bad-key.yaml encoding", "bad-layout.yaml /layout unknown_layout",
		"bad-member.yaml /locals unknown_member", "bad-syntax.yaml /locales/default/body syntax", "bad-syntax.yaml /locales/default/title unknown_filter",
		"bad-yaml.yaml encoding", "bomb.yaml encoding", "large.yaml limit", "mine.yaml name", "no-default.yaml /locales locale", "password-code.yaml encoding", "two.json encoding",
		"uses-broken.yaml /layout unknown_layout", "welcome.yaml /locales/default/title syntax",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for name, want := range map[string]string{
		"json": "J v0", "yml": "Y v0", "order-shipped": "Over the shipped one v0", "password-code": "find a template: no such template", "mine": "twice v0",
		"welcome": "find a template: no such template", // broken, and not the shipped one instead
		"nope":    "find a template: no such template", "../x": "find a template: no such template", "": "find a template: no such template",
	} {
		if got := title(t, c, "a", name, 0); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	var names []string
	for _, i := range c.List() {
		names = append(names, string(i.Origin)+" "+i.Name)
	}
	if d := cmp.Diff([]string{"file json", "file mine", "file order-shipped", "file yml"}, names); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"default", "own", "plain"}, c.Layouts()); d != "" {
		t.Error(d)
	}
	// A change shows after the next Reload, and what was found before stays as it is.
	before, err := c.Find(t.Context(), "a", "json", 0)
	if err != nil {
		t.Fatal(err)
	}
	delete(dir, "mine.json")
	dir["json.json"] = file(`{"locales": {"default": {"title": "J2"}}}`)
	if err := c.Reload(); err == nil {
		t.Error("the broken files are still there")
	}
	if got := title(t, c, "a", "json", 0); got != "J2 v0" {
		t.Error(got)
	}
	if got, err := before.Render(templates.Input{}); err != nil || got.Title != "J" {
		t.Errorf("%+v %v", got, err)
	}
	mine, err := c.Find(t.Context(), "a", "mine", 0)
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := mine.Render(templates.Input{Data: object{"order": 7}, Locale: "no"})
	if err != nil || rendered.Title != "Norsk" {
		t.Errorf("the locale no is not false: %+v %v", rendered, err)
	}
	if rendered, err = mine.Render(templates.Input{Data: object{"order": 7}}); err != nil {
		t.Fatal(err)
	}
	if e := email(t, rendered); e["html"] != "<i><b>7</b>\n</i>" || e["text"] != "7 -- own" {
		t.Errorf("%q", e)
	}
}

func bomb() string {
	var b strings.Builder
	for c := 'b'; c <= 'h'; c++ {
		fmt.Fprintf(&b, "%c: &%c [%s*%c]\n", c, c, strings.Repeat(fmt.Sprintf("*%c,", c-1), 8), c-1)
	}
	return b.String()
}

func TestNoDirectory(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{filepath.Join(t.TempDir(), "nope"), t.TempDir()} {
		c := templates.New(os.DirFS(dir), nil)
		if err := c.Reload(); err != nil {
			t.Errorf("a directory that is not there, or empty: %v", err)
		}
		if got := title(t, c, "a", "order-shipped", 0); got != "Order 7 has shipped v0" {
			t.Error(got)
		}
	}
	// A mounted ConfigMap is made of symbolic links.
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "..data"), []byte("locales: {default: {title: linked}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..data", filepath.Join(dir, "x.yaml")); err != nil {
		t.Fatal(err)
	}
	c := templates.New(os.DirFS(dir), nil)
	if err := c.Reload(); err != nil {
		t.Fatal(err)
	}
	if got := title(t, c, "a", "x", 0); got != "linked v0" {
		t.Error(got)
	}
	notDir := filepath.Join(dir, "x.yaml")
	if err := templates.New(os.DirFS(notDir), nil).Reload(); err == nil || faultsOf(t, err)[0].Code != templates.CodeEncoding {
		t.Errorf("a directory that is a file: %v", err)
	}
}

// memory is a Store that counts what it is asked.
type memory struct {
	mu       sync.Mutex
	versions map[string][]string // app/name to bodies
	reads    int
	err      error
}

func (s *memory) LatestTemplate(_ context.Context, app, name string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.versions[app+"/"+name]); n > 0 || s.err != nil {
		return n, s.err
	}
	return 0, fmt.Errorf("memory: %w", templates.ErrNotFound)
}

func (s *memory) Template(_ context.Context, app, name string, version int) (templates.Source, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	v := s.versions[app+"/"+name]
	if version < 1 || version > len(v) {
		return templates.Source{}, templates.ErrNotFound
	}
	var src templates.Source
	return src, json.Unmarshal([]byte(v[version-1]), &src)
}

func TestStored(t *testing.T) {
	t.Parallel()
	doc := func(title string) string {
		return `{"locales": {"default": {"title": "` + title + `"}}, "layout": "own"}`
	}
	store := &memory{versions: map[string][]string{"a/welcome": {doc("one"), doc("two")}, "a/broken": {`{"locales": {}}`}}}
	c := templates.New(fstest.MapFS{"_layouts/own.html": file("{{ content }}"), "mine.yaml": file("locales: {default: {title: file}}")}, store)
	if err := c.Reload(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		for _, tt := range []struct {
			app, name string
			version   int
			want      string
		}{
			{"a", "welcome", 0, "two v2"}, {"a", "welcome", 1, "one v1"}, {"a", "welcome", 2, "two v2"}, {"b", "welcome", 0, "Welcome! v0"},
			{"a", "welcome", 3, "find a template: no such template"}, {"a", "welcome", -1, "find a template: no such template"},
			{"a", "mine", 0, "file v0"}, {"a", "mine", 1, "find a template: no such template"}, {"a", "order-shipped", 0, "Order 7 has shipped v0"},
		} {
			if got := title(t, c, tt.app, tt.name, tt.version); got != tt.want {
				t.Errorf("%s %s %d: got %s, want %s", tt.app, tt.name, tt.version, got, tt.want)
			}
		}
	}
	if store.reads != 2+3*2 { // each version once; what is not there, each time
		t.Errorf("the store was read %d times", store.reads)
	}
	store.versions["a/welcome"] = append(store.versions["a/welcome"], doc("three"))
	if got := title(t, c, "a", "welcome", 0); got != "three v3" {
		t.Errorf("a new version: %s", got)
	}
	_, err := c.Find(t.Context(), "a", "broken", 0)
	if f := faultsOf(t, err); f[0].Code != templates.CodeLocale {
		t.Errorf("%v", err)
	}
	store.err = errors.New("the database is gone")
	if _, err := c.Find(t.Context(), "a", "welcome", 0); !errors.Is(err, store.err) {
		t.Errorf("the store's error must not turn into a shipped template: %v", err)
	}
	// PUT checks with the same layouts.
	src := source(t, doc("x"))
	if _, err := c.Compile(src); err != nil {
		t.Error(err)
	}
	src.Layout = "nope"
	if _, err := c.Compile(src); faultsOf(t, err)[0].Code != templates.CodeLayout {
		t.Error(err)
	}
	src.Name = "../etc"
	if _, err := c.Compile(src); faultsOf(t, err)[0].Code != templates.CodeName {
		t.Error(err)
	}
}

// heavy is a Store of templates of 10 MiB each.
type heavy struct{ reads int }

func (*heavy) LatestTemplate(context.Context, string, string) (int, error) { return 1, nil }

func (s *heavy) Template(_ context.Context, _, name string, _ int) (templates.Source, error) {
	s.reads++
	src := templates.Source{Locales: map[string]templates.Parts{"default": {Title: name}}}
	for c := range 160 {
		src.Locales[fmt.Sprintf("x-%d", c)] = templates.Parts{Body: strings.Repeat("y", templates.MaxPart)}
	}
	return src, nil
}

// TestCacheIsBounded fills the cache with more than it may hold and finds what was used last.
func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	store := &heavy{}
	c := templates.New(nil, store)
	for i := range 6 {
		title(t, c, "a", fmt.Sprint("t", i), 0)
	}
	for _, tt := range []struct {
		name  string
		reads int
	}{{"t5", 6}, {"t4", 6}, {"t0", 7}, {"t4", 7}, {"t0", 7}} {
		if got := title(t, c, "a", tt.name, 0); got != tt.name+" v1" || store.reads != tt.reads {
			t.Errorf("%s: got %s after %d reads, want %d", tt.name, got, store.reads, tt.reads)
		}
	}
}
