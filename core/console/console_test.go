package console_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hibiken/asynq"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/console"
	"github.com/carillon-notify/carillon/providers"
)

// own are the paths of the pages made here; {id} stands for a notification's.
var own = []string{"/console/", "/console/notifications", "/console/notifications/{id}", "/console/dead", "/console/suppressions", "/console/live", "/console/nothing", "/console/notifications/x"}

func TestOptions(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	good := console.Options{Principal: nil, Notifications: r.store, Routes: r.routes, Secret: secret, Redis: r.queue.ConnOpt()}
	if _, err := console.New(good); err == nil || !strings.Contains(err.Error(), "Principal") {
		t.Errorf("without Principal: %v", err)
	}
	newRig(t, func(o *console.Options) {
		o.Secret = o.Secret[:31]
		if _, err := console.New(*o); err == nil || !strings.Contains(err.Error(), "32 bytes") {
			t.Errorf("with a short secret: %v", err)
		}
		o.Secret = secret
	})
}

// TestLoginFirst: nothing but the login, its style and the icon is there for strangers.
func TestLoginFirst(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for _, path := range append([]string{"/console/queues/", "/console/queues/queues/apns.normal", "/console/queues/static/js/main.5adda2da.chunk.js"}, own...) {
		path = strings.ReplaceAll(path, "{id}", core.NewID(time.Now()).String())
		resp := r.do(visit{path: path})
		if resp.StatusCode != http.StatusSeeOther || !strings.HasPrefix(resp.Header.Get("Location"), "/console/login") {
			t.Errorf("GET %s answered %d to %q", path, resp.StatusCode, resp.Header.Get("Location"))
		}
	}
	for _, v := range []visit{
		{path: "/console/queues/api/queues"}, {path: "/console/queues/api/redis_info"},
		{method: http.MethodDelete, path: "/console/queues/api/queues/apns.normal"},
		{method: http.MethodPost, path: "/console/queues/api/queues/apns.normal:pause"},
		{method: http.MethodPost, path: "/console/routes/apns/pause"},
		{method: http.MethodPost, path: "/console/notifications/" + core.NewID(time.Now()).String() + "/cancel"},
		{method: http.MethodPut, path: "/console/queues/"},
	} {
		if resp := r.do(v); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s %s answered %d", v.method, v.path, resp.StatusCode)
		}
	}
	for path, kind := range map[string]string{"/console/login": "text/html", "/console/static/style.css": "text/css", "/console/static/icon.svg": "image/svg+xml", "/console/static/live.js": "text/javascript", "/console/static/console.js": "text/javascript"} {
		if resp := r.do(visit{path: path}); resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), kind) {
			t.Errorf("%s answered %d %s", path, resp.StatusCode, resp.Header.Get("Content-Type"))
		}
	}
	for _, path := range []string{"/console/static/", "/console/static/home.html", "/console/static/..%2fpages%2foverview.html"} {
		if resp := r.do(visit{path: path}); resp.StatusCode == http.StatusOK {
			t.Errorf("%s is there for anybody", path)
		}
	}
}

// TestCrossOrigin: no other site's page changes anything through a browser that is logged in, nor logs
// it in or out.
func TestCrossOrigin(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	session := r.login(adminKey)
	acc := r.record("a", core.Content{Title: "x"}, nil, "ann@example.com")
	for _, path := range []string{"/console/login", "/console/logout", "/console/routes/apns/pause", "/console/notifications/" + acc.Notification.ID.String() + "/cancel",
		"/console/queues/api/queues/apns.normal:pause"} {
		for name, header := range map[string]map[string]string{
			"cross-site": {"Sec-Fetch-Site": "cross-site"}, "same-site": {"Sec-Fetch-Site": "same-site"}, "old browser": {"Origin": "https://evil.example"}, "null origin": {"Origin": "null"},
		} {
			resp := r.do(visit{method: http.MethodPost, path: path, cookie: session, header: header, form: url.Values{"key": {adminKey}}})
			if resp.StatusCode != http.StatusForbidden || len(resp.Cookies()) > 0 {
				t.Errorf("POST %s, %s: %d %v", path, name, resp.StatusCode, resp.Cookies())
			}
		}
	}
	if r.routes.paused["apns"] {
		t.Error("another site paused a route")
	}
	if v, err := r.store.Notification(t.Context(), "a", acc.Notification.ID); err != nil || v.Counts.Pending != 1 {
		t.Errorf("another site cancelled: %+v %v", v, err)
	}
	if info, err := asynq.NewInspector(r.queue.ConnOpt()).Queues(); err != nil {
		t.Error(err, info)
	}
	resp := r.do(visit{method: http.MethodPost, path: "/console/routes/apns/pause", cookie: session, header: map[string]string{"Sec-Fetch-Site": "same-origin", "Origin": "http://example.com"}})
	if resp.StatusCode != http.StatusSeeOther || !r.routes.paused["apns"] {
		t.Errorf("our own page is answered %d", resp.StatusCode)
	}
}

// TestHeaders: every answer forbids what our pages do not need, and the pages need nothing from others.
func TestHeaders(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	session := r.login(adminKey)
	acc := r.record("a", core.Content{Title: "x", URL: "https://example.com/x"}, nil, "ann@example.com")
	for _, path := range append([]string{"/console/login", "/console/queues/", "/console/queues/queues/x"}, own...) {
		path = strings.ReplaceAll(path, "{id}", acc.Notification.ID.String())
		resp := r.do(visit{path: path, cookie: session})
		text := read(t, resp)
		for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store", "Cross-Origin-Opener-Policy": "same-origin"} {
			if got := resp.Header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got, want)
			}
		}
		queues := strings.HasPrefix(path, console.Queues)
		csp := resp.Header.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'", "connect-src 'self'"} {
			if !strings.Contains(csp, want) {
				t.Errorf("%s: the policy lacks %s: %s", path, want, csp)
			}
		}
		scripts, _, _ := strings.Cut(csp[strings.Index(csp, "script-src"):], ";")
		if strings.Contains(scripts, "unsafe") || strings.Contains(csp, "unsafe-inline") != queues || strings.Contains(csp, "http") || strings.Contains(csp, "*") {
			t.Errorf("%s: the policy lets too much run: %s", path, csp)
		}
		for _, n := range nodes(t, text) {
			for _, a := range n.Attr {
				if strings.HasPrefix(a.Key, "on") || a.Key == "style" && !queues {
					t.Errorf("%s: <%s %s=%q>", path, n.Data, a.Key, a.Val)
				}
				if loads := n.Data == "link" || n.Data == "script" || n.Data == "img" || n.Data == "form" || n.Data == "iframe"; loads && (a.Key == "href" || a.Key == "src" || a.Key == "action") && !strings.HasPrefix(a.Val, "/console/") {
					t.Errorf("%s: <%s %s=%q> is not of the console", path, n.Data, a.Key, a.Val)
				}
			}
			if n.Data == "script" && n.FirstChild != nil && !queues {
				t.Errorf("%s: an inline script", path)
			}
		}
	}
}

// TestScopes: what a key may not do over the REST API it may not do here, and is not offered.
func TestScopes(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	acc := r.record("a", core.Content{Title: "x"}, nil, "ann@example.com")
	id := acc.Notification.ID.String()
	reader, sender, admin := r.login(readKey), r.login(sendKey), r.login(adminKey)
	for _, c := range []struct {
		name, method, path     string
		reader, sender, adminS int
	}{
		{"overview", http.MethodGet, "/console/", 200, 200, 200},
		{"live", http.MethodGet, "/console/live", 403, 200, 200},
		{"pause", http.MethodPost, "/console/routes/apns/pause", 403, 403, 303},
		{"resume", http.MethodPost, "/console/routes/apns/resume", 403, 403, 303},
		{"another action", http.MethodPost, "/console/routes/apns/drop", 403, 403, 404},
		{"unknown route", http.MethodPost, "/console/routes/none/pause", 403, 403, 404},
		{"queues", http.MethodGet, "/console/queues/api/queues", 200, 200, 200},
		{"pause a queue", http.MethodPost, "/console/queues/api/queues/apns.normal:pause", 405, 405, 204},
		{"resume a queue", http.MethodPost, "/console/queues/api/queues/apns.normal:resume", 405, 405, 204},
		{"delete tasks", http.MethodDelete, "/console/queues/api/queues/apns.normal/pending_tasks:delete_all", 405, 405, 200},
		{"cancel", http.MethodPost, "/console/notifications/" + id + "/cancel", 403, 303, 303},
	} {
		if err := r.queue.Wake(t.Context(), core.Wake{Batch: core.NewID(time.Now()), Fence: 1, Route: "apns", Lane: providers.Normal}); err != nil {
			t.Fatal(err)
		}
		var got []int
		for _, session := range []string{reader, sender, admin} {
			got = append(got, r.do(visit{method: c.method, path: c.path, cookie: session}).StatusCode)
		}
		if diff := cmp.Diff([]int{c.reader, c.sender, c.adminS}, got); diff != "" {
			t.Errorf("%s (reader, sender, admin): %s", c.name, diff)
		}
	}
	if page := r.page("/console/", reader, 200); strings.Contains(page, "mail-eu") || strings.Contains(page, "/pause") {
		t.Error("a reader is shown the routes")
	}
	again := r.record("a", core.Content{Title: "x"}, nil, "ann@example.com").Notification.ID.String()
	for session, want := range map[string]bool{reader: false, sender: true} {
		if got := strings.Contains(r.page("/console/notifications/"+again, session, 200), "/cancel"); got != want {
			t.Errorf("cancelling is offered: %v, want %v", got, want)
		}
	}
	for session, flag := range map[string]string{reader: `FLAG_READ_ONLY="true"`, sender: `FLAG_READ_ONLY="true"`, admin: `FLAG_READ_ONLY="false"`} {
		if page := r.page("/console/queues/", session, 200); !strings.Contains(page, flag) || strings.Contains(page, "googleapis") || !strings.Contains(page, `href="/console/"`) {
			t.Errorf("asynqmon's page is not as it should be: %s", page)
		}
	}
}

// TestQueues: of a task asynqmon shows its batch and fence, and nothing at all of what is not ours.
func TestQueues(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	session := r.login(readKey)
	batch := core.NewID(time.Now())
	if err := r.queue.Wake(t.Context(), core.Wake{Batch: batch, Fence: 7, Route: "apns", Lane: providers.Normal, At: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	client := asynq.NewClient(r.queue.ConnOpt())
	t.Cleanup(func() { client.Close() })
	for _, payload := range []string{`{"to":"ann@example.com"}`, `{"b":"x","f":1,"secret":"s3cret"}`, `s3cret`, ``} {
		if _, err := client.EnqueueContext(t.Context(), asynq.NewTask("mail", []byte(payload)), asynq.Queue("apns.normal"), asynq.ProcessIn(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	text := r.page("/console/queues/api/queues/apns.normal/scheduled_tasks", session, 200)
	var list struct {
		Tasks []struct{ ID, Payload string }
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list.Tasks) != 5 {
		t.Fatalf("%v: %s", err, text)
	}
	ours := 0
	for _, task := range list.Tasks {
		switch task.Payload {
		case fmt.Sprintf("batch %s, fence 7", batch):
			ours++
		case "(not a wake of Carillon's)":
		default:
			t.Errorf("shown: %q", task.Payload)
		}
		if one := r.page("/console/queues/api/queues/apns.normal/tasks/"+task.ID, session, 200); strings.Contains(one, "s3cret") || strings.Contains(one, "ann@") {
			t.Errorf("shown: %s", one)
		}
	}
	if ours != 1 || strings.Contains(text, "s3cret") || strings.Contains(text, "ann@") {
		t.Errorf("%d wakes: %s", ours, text)
	}
	if resp := r.do(visit{path: "/console/queues", cookie: session}); resp.Header.Get("Location") != "/console/queues/" {
		t.Errorf("/console/queues answers %d to %q", resp.StatusCode, resp.Header.Get("Location"))
	}
}

func TestIcon(t *testing.T) {
	t.Parallel()
	w := recorder(t, http.HandlerFunc(console.Icon), "/favicon.ico")
	if w.StatusCode != http.StatusOK || w.Header.Get("Content-Type") != "image/svg+xml" || !strings.HasPrefix(read(t, w), "<svg") {
		t.Errorf("%d %v", w.StatusCode, w.Header)
	}
}
