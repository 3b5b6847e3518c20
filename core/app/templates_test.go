package app_test

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/core/config"
)

// TestTemplatesCommand: files are checked, rendered, pushed and pulled as people who keep them in git do.
func TestTemplatesCommand(t *testing.T) {
	t.Parallel()
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	var served string
	_, c := startApp(t, func(cfg *config.Config) { served = cfg.Templates.Dir })
	dir := t.TempDir()
	writeTo := func(dir, name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) { t.Helper(); writeTo(dir, name, text) }
	cwd := t.TempDir()
	run := func(ok bool, args ...string) string {
		t.Helper()
		cmd := exec.Command(filepath.Join(bin, "orchestrator"), append([]string{"templates"}, args...)...)
		cmd.Dir, cmd.Env = cwd, []string{"CARILLON_API_KEY=" + testKey, "HOME=" + t.TempDir()}
		out, err := cmd.CombinedOutput()
		if (err == nil) != ok {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	has := func(text string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%q lacks %q", text, w)
			}
		}
	}
	write("hello.yaml", "locales:\n  default: {title: 'Hello {{ recipient.attributes.name }}', body: '{{ n }}', email: {html: '<p>{{ n }}</p>'}}\n  fr: {title: Bonjour}\n")
	write("plain.json", `{"locales":{"default":{"title":"Plain"}}}`)
	has(run(true, "lint", "--dir", dir), "2 templates, no faults")
	has(run(true, "render", "hello", "--dir", dir, "--data", `{"n":7}`, "--recipient", `{"attributes":{"name":"Ann"}}`), `"title": "Hello Ann"`, `"body": "7"`, `"text": "7"`)
	has(run(true, "render", "hello", "--dir", dir, "--locale", "fr-CA", "--data", `{"n":7}`), `"locale": "fr"`, "Bonjour")
	has(run(false, "render", "hello", "--dir", dir), "undefined")
	has(run(false, "render", "none", "--dir", dir), `no template "none"`)
	write("broken.yaml", "locales: {default: {title: '{% if %}'}}\n")
	has(run(false, "lint", "--dir", dir), "broken.yaml /locales/default/title")
	has(run(false, "push", "--dir", dir, "--url", c.base), "broken.yaml")
	if err := os.Remove(filepath.Join(dir, "broken.yaml")); err != nil {
		t.Fatal(err)
	}
	write("odd.json", `{"locales":{"default":{"title":"T","email":{"htlm":"x"},"fax":{"any":1}}}}`)
	has(run(false, "lint", "--dir", dir), "2 faults", `odd.json /locales/default/email/htlm: email has no field "htlm"; it has attachments`, `odd.json /locales/default/fax: there is no field or channel "fax"`)
	has(run(false, "push", "odd", "--dir", dir, "--url", c.base), "/locales/default/email/htlm", "/locales/default/fax")
	write("odd.json", `{"locales":{"default":{"title":"T","fax":{"any":1}}}}`)
	has(run(true, "lint", "--dir", dir, "--channel", "fax"), "3 templates, no faults")
	write("odd.json", `{"locales":{"default":{"title":"T","beep":{"text":"x"}}}}`)
	has(run(false, "lint", "--dir", dir), `there is no field or channel "beep"`)
	putPager(t, filepath.Join(cwd, "plugins.d"), "v1", filepath.Join(cwd, "ledger"))
	has(run(true, "lint", "--dir", dir), "3 templates, no faults")
	putPager(t, filepath.Join(cwd, "plugins.d"), "broken", filepath.Join(cwd, "ledger"))
	has(run(false, "lint", "--dir", dir), `there is no field or channel "beep"`, "plugin pager cannot be had")
	if err := os.Remove(filepath.Join(dir, "odd.json")); err != nil {
		t.Fatal(err)
	}
	has(run(true, "push", "--dir", dir, "--url", c.base), "hello: version 1", "plain: version 1")
	has(run(true, "push", "hello", "--dir", dir, "--url", c.base), "hello: unchanged, version 1")
	write("plain.json", `{"locales":{"default":{"title":"Plainer"}}}`)
	has(run(true, "push", "--dir", dir, "--url", c.base), "hello: unchanged, version 1", "plain: version 2")
	c.must(http.MethodPut, "/v1/templates/plain", `{"locales":{"default":{"title":"Plainest"}}}`, nil, http.StatusCreated)
	has(run(true, "pull", "--dir", dir, "--url", c.base), "hello: unchanged", "plain: version 3 into")
	text, err := os.ReadFile(filepath.Join(dir, "plain.json"))
	if err != nil {
		t.Fatal(err)
	}
	has(string(text), "Plainest")
	has(run(false, "pull", "none", "--dir", dir, "--url", c.base), "no template")

	// Layouts and partials are files of the server's own: it says which it lacks, and sees them when it looks again.
	const layout, partial = "<body>{{ content }}</body>", "-- {{ n }}"
	write("_layouts/brand.html", layout)
	write("_partials/sig.liquid", partial)
	write("branded.json", `{"layout":"brand","locales":{"default":{"title":"T","email":{"html":"<p>{% include 'sig' %}</p>"}}}}`)
	write("bare.json", `{"layout":"brnad","locales":{"default":{"title":"{% include 'sgi' %}"}}}`)
	has(run(false, "lint", "--dir", dir), `there is no layout "brnad", only brand, default, plain; it would be the file _layouts/brnad.html`, `there is no partial "sgi"; it would be the file _partials/sgi.liquid`)
	if err := os.Remove(filepath.Join(dir, "bare.json")); err != nil {
		t.Fatal(err)
	}
	has(run(true, "lint", "--dir", dir), "no faults")
	has(run(false, "push", "branded", "--dir", dir, "--url", c.base), `the server has no layout "brand", only default, plain; put _layouts/brand.html (or .txt) into the directory templates.dir of the server`,
		`the server has no partial "sig"; put _partials/sig.liquid into the directory templates.dir of the server`)
	writeTo(served, "_layouts/brand.html", layout)
	writeTo(served, "_partials/sig.liquid", partial)
	c.must(http.MethodPost, "/v1/routes/reload", nil, nil, http.StatusOK)
	has(run(true, "push", "branded", "--dir", dir, "--url", c.base), "branded: version 1")
	writeTo(served, "both.json", `{"locales":{"default":{"title":"T"}}}`)
	write("both.json", `{"locales":{"default":{"title":"T"}}}`)
	c.must(http.MethodPost, "/v1/routes/reload", nil, nil, http.StatusOK)
	has(run(true, "push", "both", "--dir", dir, "--url", c.base), "both: version 1") // the server's file is not stored
	var out struct {
		Channels map[string]struct{ HTML string }
	}
	c.must(http.MethodPost, "/v1/templates/branded/preview", `{"data":{"n":7}}`, &out, http.StatusOK)
	if got := out.Channels["email"].HTML; got != "<body><p>-- 7</p></body>" {
		t.Errorf("rendered %q", got)
	}
}
