package console_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/providers"
)

const suppressionsPath = "/console/suppressions"

// bounce has an address be suppressed.
func (r *rig) bounce(app, address, code string) {
	r.t.Helper()
	r.settle(r.record(app, core.Content{Title: "x"}, nil, address), providers.Result{Outcome: providers.Gone, Code: code})
}

// ask sends a form with an address and its kind.
func (r *rig) ask(path, session, kind, address string) *http.Response {
	r.t.Helper()
	return r.do(visit{method: http.MethodPost, path: path, cookie: session, form: url.Values{"kind": {kind}, "address": {address}}})
}

func TestSuppressions(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	look, admin := r.login(readKey), r.login(adminKey)
	wants(t, "an empty app", shown(t, r.page(suppressionsPath, look, http.StatusOK), "list"), "No address is suppressed")
	const evil = `"><script>alert(1)</script>`
	r.bounce("a", "Ann@example.com", evil)
	r.bounce("b", "bob@example.com", "5.1.1")
	page := r.page(suppressionsPath, look, http.StatusOK)
	wants(t, "the list", shown(t, page, "list"), "email email an address in a request "+evil)
	if strings.Contains(page, "<script>alert") || strings.Contains(strings.ToLower(page), "ann@") || strings.Contains(page, "5.1.1") {
		t.Errorf("the page runs a code, shows an address, or another app's: %s", page)
	}
	for _, c := range []struct {
		name, session, kind, address, want, absent string
	}{
		{"spelled another way", admin, "email", " ann@EXAMPLE.com", "suppressed since", "scope admin"},
		{"who may only look", look, "email", "ann@example.com", "scope admin", "Let it be sent to again"},
		{"of another kind", look, "sms", "ann@example.com", "This address is not suppressed", "since"},
		{"another app's", look, "email", "bob@example.com", "This address is not suppressed", "since"},
		{"a script", look, "email", evil, "This address is not suppressed", "since"},
	} {
		resp := r.ask(suppressionsPath, c.session, c.kind, c.address)
		page := read(t, resp)
		text := shown(t, page, "answer")
		if resp.StatusCode != http.StatusOK || !strings.Contains(text, c.want) || strings.Contains(text, c.absent) || strings.Contains(page, "<script>alert") || strings.Contains(page, "console.js") {
			t.Errorf("%s: answered %d: %s", c.name, resp.StatusCode, page)
		}
	}
	const lift = suppressionsPath + "/lift"
	for _, c := range []struct {
		name, path, session, kind, address string
		want                               int
	}{
		{"asked for nothing", suppressionsPath, look, "email", "", http.StatusBadRequest},
		{"of no kind", lift, admin, "", "ann@example.com", http.StatusBadRequest},
		{"as large as may be", suppressionsPath, look, "email", strings.Repeat("@", 4096), http.StatusOK},
		{"too large", suppressionsPath, look, "email", strings.Repeat("@", 8192), http.StatusBadRequest},
		{"lifted by who may only look", lift, look, "email", "ann@example.com", http.StatusForbidden},
		{"lifted by another app", lift, r.login(otherKey), "email", "ann@example.com", http.StatusNotFound},
		{"lifted", lift, admin, "email", "ann@example.com", http.StatusSeeOther},
		{"lifted again", lift, admin, "email", "ann@example.com", http.StatusNotFound},
	} {
		if resp := r.ask(c.path, c.session, c.kind, c.address); resp.StatusCode != c.want {
			t.Errorf("%s: answered %d, want %d", c.name, resp.StatusCode, c.want)
		}
	}
	wants(t, "the list after it", shown(t, r.page(suppressionsPath, look, http.StatusOK), "list"), "No address is suppressed")
	wants(t, "the other app's list", shown(t, r.page(suppressionsPath, r.login(otherKey), http.StatusOK), "list"), "5.1.1")
	if log := strings.ToLower(r.log.String()); strings.Contains(log, "example.com") {
		t.Errorf("the log tells an address: %s", log)
	}
}

// TestSuppressionsPaging goes through a list of more than a page: each is shown once.
func TestSuppressionsPaging(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	session := r.login(readKey)
	for i := range 51 {
		r.bounce("a", fmt.Sprintf("u%d@example.com", i), fmt.Sprintf("E%d.", i))
	}
	first := r.page(suppressionsPath, session, http.StatusOK)
	next := ""
	for _, n := range nodes(t, first) {
		for _, a := range n.Attr {
			if a.Key == "href" && strings.Contains(a.Val, "cursor=") {
				next = a.Val
			}
		}
	}
	if next == "" || strings.Count(first, "<time") != 50 {
		t.Fatalf("%d on the first page, and the next is %q", strings.Count(first, "<time"), next)
	}
	second := r.page(next, session, http.StatusOK)
	for i := range 51 {
		if code := fmt.Sprintf(">E%d.<", i); strings.Count(first, code)+strings.Count(second, code) != 1 {
			t.Errorf("%s is not shown once", code)
		}
	}
	if strings.Contains(second, "cursor=") || strings.Contains(second, "console.js") {
		t.Error("the last page has one after it, or keeps itself up to date")
	}
	r.page(suppressionsPath+"?cursor=x", session, http.StatusNotFound)
}
