package coretest_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/core/coretest"
)

func TestMain(m *testing.M) {
	if os.Getenv(timeTeller) != "" {
		tellTime()
		return
	}
	code := m.Run()
	coretest.StopServers()
	os.Exit(code)
}

// pages serves what a browser is shown here: HTML by path.
func pages(t *testing.T, html map[string]string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := html[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if r.URL.Path == "/strict" {
			w.Header().Set("Content-Security-Policy", "script-src 'none'")
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		io.WriteString(w, `<!doctype html><link rel="icon" href="data:,">`+text)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// TestProblems: whatever a page does wrong is told, for the tests that want to see none.
func TestProblems(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, page, want string }{
		{"nothing wrong", `<h1>fine</h1><script>console.log("fine")</script>`, ""},
		{"console.error", `<script>console.error("it", "broke")</script>`, "it"},
		{"exception", `<script>nothing.here()</script>`, "nothing is not defined"},
		{"rejection", `<script>Promise.reject(new Error("lost"))</script>`, "lost"},
		{"dialog", `<script>alert("run")</script>`, "a dialog: run"},
		{"missing file", `<img src="/missing.png">`, "404"},
		{"another host", `<img src="http://example.com/x.png">`, "ERR_NAME_NOT_RESOLVED"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := coretest.Chromium(t)
			p.Go(pages(t, map[string]string{"/": c.page}) + "/")
			p.Eval("new Promise(requestAnimationFrame)", nil)
			all := strings.Join(p.Problems(), "\n")
			if c.want == "" && all != "" || !strings.Contains(all, c.want) {
				t.Errorf("problems %q, want %q", all, c.want)
			}
			if told := slices.Contains(p.Hosts(), "example.com"); told != (c.name == "another host") {
				t.Errorf("the page asked %v", p.Hosts())
			}
		})
	}
	t.Run("policy", func(t *testing.T) {
		t.Parallel()
		p := coretest.Chromium(t)
		p.Go(pages(t, map[string]string{"/strict": `<script>document.title = "run"</script>`}) + "/strict")
		if all := strings.Join(p.Problems(), "\n"); !strings.Contains(all, "Content Security Policy") {
			t.Errorf("a refused script is not told: %q", all)
		}
	})
}

// TestTab types and clicks as a user does, across a change of page, and sees the screen that it set.
func TestTab(t *testing.T) {
	t.Parallel()
	base := pages(t, map[string]string{
		"/":     `<meta name="viewport" content="width=device-width"><form action="/next"><input name="q"></form><p style="height: 3000px"><a href="/far">far</a>`,
		"/next": `<h1>next</h1>`, "/far": `<h1>far</h1>`,
	})
	p := coretest.Chromium(t)
	p.Screen(390, 844, true)
	p.Go(base + "/")
	var seen string
	p.Eval(`innerWidth + " " + matchMedia("(prefers-color-scheme: dark)").matches`, &seen)
	if seen != "390 true" {
		t.Errorf("the screen is %s", seen)
	}
	p.Type("input", "caf\u00e9 & \"co\"\n")
	p.WaitText("h1", "next")
	p.Eval(`new URLSearchParams(location.search).get("q")`, &seen)
	if seen != `café & "co"` {
		t.Errorf("typed %q", seen)
	}
	p.Go(base + "/")
	p.Click("a")
	p.WaitText("h1", "far")
	if got := p.Text("h1"); got != "far" {
		t.Errorf("shows %q", got)
	}
	if other := coretest.Chromium(t); fmt.Sprint(other.Hosts()) != "[]" {
		t.Errorf("a fresh tab asked %v", other.Hosts())
	}
}
