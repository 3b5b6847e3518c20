package console_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/console"
	"github.com/carillon-notify/carillon/providers"
)

func wants(t *testing.T, where, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%s lacks %q: %s", where, w, text)
		}
	}
}

func TestOverview(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	admin := r.login(adminKey)
	page := r.page("/console/", admin, http.StatusOK)
	wants(t, "routes", shown(t, page, "routes"),
		"apns push ok closed 1000/s 1 in use, 2 idle of 4 7 callers wait normal: 12 pending, 3 queued, 1 sending Pause",
		"mail-eu email email degraded the server <b>refuses</b> half open no limit none nothing Pause", "spare fcm in no channel down open")
	wants(t, "an empty app", shown(t, page, "recent")+shown(t, page, "dead"), "Nothing was sent yet", "No delivery failed or expired")
	wants(t, "the lines to copy", shown(t, page, "curl"), `-d '{"to":[{"websocket":"u_42"}],"content":{"title":"it'\''s"}}'`, "'http://example.com/v1/notifications?limit=5'")

	r.settle(r.record("a", core.Content{Title: "x"}, nil, "ann@example.com", "bob@example.com"), providers.Result{Outcome: providers.Accepted}, providers.Result{Outcome: providers.Rejected, Code: "550", Reason: "no such mailbox"})
	r.record("a", core.Content{Title: "x"}, func(n *core.Notification) {
		n.Template, n.Category, n.Priority, n.SendAt = "welcome@0123456789abcdef", "orders", providers.Critical, n.SendAt.Add(30*time.Minute)
	}, "ann@example.com")
	r.record("b", core.Content{Title: "x"}, nil, "other@example.com")
	page = r.page("/console/", admin, http.StatusOK)
	recent := shown(t, page, "recent")
	wants(t, "recent", recent, "completed 1 sent 1 failed", "scheduled for ", "1 pending welcome@0123456789ab orders critical")
	if strings.Count(recent, "…") != 2 {
		t.Errorf("not two notifications: %s", recent)
	}
	wants(t, "dead", shown(t, page, "dead"), "mail-eu b***@example.com failed 550 no such mailbox")

	if got := r.do(visit{method: http.MethodPost, path: "/console/routes/apns/pause", cookie: admin}); got.Header.Get("Location") != "/console/" {
		t.Errorf("pausing answers %d to %q", got.StatusCode, got.Header.Get("Location"))
	}
	wants(t, "a paused route", shown(t, r.page("/console/", admin, http.StatusOK), "routes"), "apns push paused", "Resume")
}

func TestLists(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	session := r.login(readKey)
	for i := range 51 {
		acc := r.record("a", core.Content{Title: "x"}, nil, fmt.Sprintf("u%d@example.com", i))
		r.settle(acc, providers.Result{Outcome: providers.Rejected, Code: fmt.Sprintf("E%d", i%2)})
	}
	waiting := r.record("a", core.Content{Title: "x"}, nil, "w@example.com")
	for _, c := range []struct {
		name, path string
		rows       int
		older      bool
	}{
		{"notifications", "/console/notifications", 50, true},
		{"of a status", "/console/notifications?status=accepted", 1, false},
		{"of a recipient", "/console/notifications?recipient=nobody", 0, false},
		{"dead", "/console/dead", 50, true},
		{"dead of a code", "/console/dead?code=E1", 25, false},
		{"dead of a route", "/console/dead?route=apns", 0, false},
	} {
		page := r.page(c.path, session, http.StatusOK)
		rows, next := 0, ""
		for _, n := range nodes(t, page) {
			if n.Data == "time" {
				rows++
			}
			for _, a := range n.Attr {
				if a.Key == "href" && strings.Contains(a.Val, "cursor=") {
					next = a.Val
				}
			}
		}
		if rows != c.rows || (next != "") != c.older {
			t.Errorf("%s: %d rows, next %q", c.name, rows, next)
		}
		if next != "" {
			if rest := r.page(next, session, http.StatusOK); strings.Count(rest, "<time") != 52-50 && strings.Count(rest, "<time") != 51-50 || strings.Contains(rest, "console.js") {
				t.Errorf("%s: the next page has %d rows", c.name, strings.Count(rest, "<time"))
			}
		}
	}
	wants(t, "the filter", r.page("/console/notifications?status=accepted", session, http.StatusOK), "<option selected>accepted</option>", waiting.Notification.ID.String())
	for _, path := range []string{"/console/notifications?cursor=x", "/console/dead?cursor=%27", "/console/notifications/x", "/console/notifications/" + core.NewID(time.Now()).String(), "/console/none"} {
		wants(t, path, r.page(path, session, http.StatusNotFound), "Not found")
	}
}

func TestNotification(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	acc := r.record("a", core.Content{Title: "Your order", Body: "It is\non its way", URL: "https://example.com/7", Data: []byte(`{"order":7}`), Block: []byte(`{"html":"<p>x</p>"}`)},
		func(n *core.Notification) {
			n.Metadata, n.CollapseKey, n.Unknown = []byte(`{"trace":"abc"}`), "order-7", core.FailUnknown
			n.Skipped = []core.Skip{{To: 1, Recipient: "u_9", Channel: "push", Reason: core.SkipNoEndpoint}}
		}, "ann@example.com", "bob@example.com", "eve@example.com")
	r.settle(acc, providers.Result{Outcome: providers.Accepted, Code: "250"}, providers.Result{Outcome: providers.Deferred, Code: "451", Reason: "greylisted"}, providers.Result{Outcome: providers.Unknown})
	path := "/console/notifications/" + acc.Notification.ID.String()
	page := r.page(path, r.login(sendKey), http.StatusOK)
	wants(t, "the head", shown(t, page, "state"), "processing", acc.Notification.ID.String(), "2 pending 1 sent", `{"trace":"abc"}`, "order-7", "sent once at most", "Cancel what is pending")
	wants(t, "deliveries", shown(t, page, "deliveries"), "a***@example.com sent 1 250", "b***@example.com pending 1 451 greylisted", "e***@example.com pending 0, and 1 unknown outcome_unknown", "1 u_9 push no endpoint")
	wants(t, "the timeline", shown(t, page, "timeline"), "accepted", "skipped push no_endpoint", "resolved email a***@example.com route mail-eu", "started route mail-eu", "by worker-1",
		"attempt email b***@example.com deferred 451 greylisted pending · again at", "unknown")
	wants(t, "the content", shown(t, page, ""), "Your order", "It is on its way", "https://example.com/7", `"order": 7`, `"html": "<p>x</p>"`)
	for _, address := range []string{"ann@", "bob@", "eve@"} {
		if strings.Contains(page, address) {
			t.Errorf("an address is shown in the clear: %s", address)
		}
	}
	if got := r.do(visit{path: path, cookie: r.login(otherKey)}); got.StatusCode != http.StatusNotFound {
		t.Errorf("another app's key is answered %d", got.StatusCode)
	}
	if got := r.do(visit{method: http.MethodPost, path: path + "/cancel", cookie: r.login(otherKey)}); got.StatusCode != http.StatusNotFound {
		t.Errorf("another app's cancelling is answered %d", got.StatusCode)
	}
	if got := r.do(visit{method: http.MethodPost, path: path + "/cancel", cookie: r.login(sendKey)}); got.StatusCode != http.StatusSeeOther || got.Header.Get("Location") != path {
		t.Errorf("cancelling is answered %d to %q", got.StatusCode, got.Header.Get("Location"))
	}
	page = r.page(path, r.login(sendKey), http.StatusOK)
	wants(t, "after it", shown(t, page, "state"), "1 sent 2 cancelled")
	if strings.Contains(page, "/cancel") {
		t.Error("cancelling is offered where nothing is pending")
	}
}

// TestEscaped: whatever a sender puts into a notification is shown as text.
func TestEscaped(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	const evil = `"><img src=x onerror=alert(1)><script>alert(2)</script>'`
	acc := r.record("a", core.Content{Title: evil, Body: evil, URL: "javascript:alert(1)//" + evil, Data: []byte(`{"x":"<script>alert(3)</script>"}`), Block: []byte(`{"html":"<script>alert(4)</script>"}`)},
		func(n *core.Notification) {
			n.Template, n.Category, n.CollapseKey, n.Metadata = evil, evil, evil, []byte(`"<script>alert(5)</script>"`)
			n.Skipped = []core.Skip{{Recipient: evil, Channel: evil, Reason: evil}}
		}, evil+"@example.com")
	r.settle(acc, providers.Result{Outcome: providers.Rejected, Code: evil, Reason: evil})
	session := r.login(adminKey)
	for _, path := range []string{"/console/", "/console/notifications", "/console/dead", "/console/notifications/" + acc.Notification.ID.String(), "/console/live?recipient=" + strings.ReplaceAll("\"><script>'", " ", "+"), "/console/dead?route=%22%3E%3Cscript%3E"} {
		page := r.page(path, session, http.StatusOK)
		for _, n := range nodes(t, page) {
			own := n.Data == "script" && len(n.Attr) > 0 && strings.HasPrefix(n.Attr[0].Val, "/console/static/") || n.Data == "img" && n.Attr[0].Val == "/console/static/icon.svg"
			if (n.Data == "script" || n.Data == "img") && !own {
				t.Errorf("%s: an element came of the content: <%s %v>", path, n.Data, n.Attr)
			}
			for _, a := range n.Attr {
				if strings.HasPrefix(a.Key, "on") || strings.HasPrefix(a.Val, "javascript:") {
					t.Errorf("%s: <%s %s=%q>", path, n.Data, a.Key, a.Val)
				}
			}
		}
	}
	live := r.page("/console/live?recipient=x%27%3Brm+-rf+~%3B%27", session, http.StatusOK)
	wants(t, "a line to copy", shown(t, live, "live"), `[{"websocket":"x'\'';rm -rf ~;'\''"}]`)
}

func TestLive(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	session := r.login(sendKey)
	for path, want := range map[string]string{"/console/live": "token-of-a-u_42", "/console/live?recipient=u_7": "token-of-a-u_7"} {
		wants(t, path, r.page(path, session, http.StatusOK), `data-token="`+want+`"`)
	}
	r.page("/console/live?recipient=a/b", session, http.StatusBadRequest)
	none := newRig(t, func(o *console.Options) { o.Token, o.Sandbox, o.Example = nil, false, "" })
	session = none.login(adminKey)
	none.page("/console/live", session, http.StatusNotFound)
	page := none.page("/console/", session, http.StatusOK)
	for _, absent := range []string{"/console/live", "/sandbox/", "-d "} {
		if strings.Contains(page, absent) {
			t.Errorf("the page offers %s, which is not there", absent)
		}
	}
}

// TestLiveComesAndGoes: the live page is there while there is an in-app channel, which a reload brings or takes away.
func TestLiveComesAndGoes(t *testing.T) {
	t.Parallel()
	var there atomic.Bool
	r := newRig(t, func(o *console.Options) { o.Live = there.Load })
	session := r.login(sendKey)
	for _, is := range []bool{false, true, false} {
		there.Store(is)
		status := map[bool]int{true: http.StatusOK, false: http.StatusNotFound}[is]
		r.page("/console/live", session, status)
		if offered := strings.Contains(r.page("/console/", session, http.StatusOK), `href="/console/live`); offered != is {
			t.Errorf("offered: %t, want %t", offered, is)
		}
	}
}

// TestBroken: what cannot be read is a page that says so, and a line in the log.
func TestBroken(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.routes.err = fmt.Errorf("the pool at 10.0.0.5 hangs")
	page := r.page("/console/", r.login(adminKey), http.StatusServiceUnavailable)
	if strings.Contains(page, "10.0.0.5") || !strings.Contains(page, "Try again") || !strings.Contains(r.log.String(), "10.0.0.5") {
		t.Errorf("shown: %s; logged: %s", page, r.log)
	}
}

func TestTexts(t *testing.T) {
	t.Parallel()
	began := time.Unix(1_800_000_000, 0)
	got := []string{}
	for _, d := range []time.Duration{-time.Second, 0, 66 * time.Millisecond, 1240 * time.Millisecond, 90*time.Second + 400*time.Millisecond, 26 * time.Hour} {
		got = append(got, console.Since(began, began.Add(d)))
	}
	if diff := cmp.Diff([]string{"", "+0 ms", "+66 ms", "+1.2 s", "+1m30s", "+26h0m0s"}, got); diff != "" {
		t.Error(diff)
	}
	long := console.Layout([]byte(`"` + strings.Repeat("é", console.MostBlock) + `"`))
	if !strings.HasSuffix(long, fmt.Sprintf("… and %d bytes more", console.MostBlock+3)) || !strings.HasPrefix(long, `"éé`) || strings.Contains(long, "\ufffd") {
		t.Errorf("a long block ends %q", long[len(long)-40:])
	}
}
