package console_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/api"
	"github.com/carillon-notify/carillon/core/console"
	"github.com/carillon-notify/carillon/core/queue"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// The keys of the tests: one of each scope in app a, an admin's of app b.
const (
	adminKey, sendKey, readKey, onlySendKey, otherKey = "car_admin", "car_send", "car_read", "car_only_send", "car_other"
)

var secret = bytes.Repeat([]byte("s"), 32)

// routes is a console.Routes of three routes that remembers who paused them.
type routes struct {
	mu     sync.Mutex
	paused map[string]bool
	err    error
}

func (r *routes) Routes(context.Context) ([]console.Route, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := []console.Route{
		{Name: "apns", Kind: "apns", Channels: []string{"push"}, State: "ok", Circuit: "closed", Rate: "1000/s", InUse: 1, Idle: 2, Max: 4, Waiting: 7,
			Lanes: []console.Lane{{Name: "critical"}, {Name: "normal", Pending: 12, Queued: 3, Sending: 1}}},
		{Name: "mail-eu", Kind: "email", Channels: []string{"email"}, State: "degraded", Circuit: "half_open", Reason: "the server <b>refuses</b>"},
		{Name: "spare", Kind: "fcm", State: "down", Circuit: "open"},
	}
	for i := range out {
		if r.paused[out[i].Name] {
			out[i].State = "paused"
		}
	}
	return out, r.err
}

func (r *routes) PauseRoute(_ context.Context, name string, paused bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if name != "apns" {
		return core.ErrNotFound
	}
	r.paused[name] = paused
	return nil
}

// rig is a console over a real store and a real queue.
type rig struct {
	t       *testing.T
	console *console.Console
	store   *store.Store
	queue   *queue.Queue
	routes  *routes
	log     *bytes.Buffer
}

func newRig(t *testing.T, change func(*console.Options)) *rig {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{URL: "sqlite:" + filepath.Join(t.TempDir(), "a.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	for key, p := range map[string]core.Principal{
		adminKey: {App: "a", Scopes: []string{"admin"}}, sendKey: {App: "a", Scopes: []string{"read", "send"}}, readKey: {App: "a", Scopes: []string{"read"}},
		onlySendKey: {App: "a", Scopes: []string{"send"}}, otherKey: {App: "b", Scopes: []string{"admin"}},
	} {
		if err := s.PutKey(t.Context(), sha256.Sum256([]byte(key)), p); err != nil {
			t.Fatal(err)
		}
	}
	q, err := queue.Open(t.Context(), queue.Options{URL: queue.Embedded, Routes: []string{"apns"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close() })
	r := &rig{t: t, store: s, queue: q, routes: &routes{paused: map[string]bool{}}, log: &bytes.Buffer{}}
	o := console.Options{Principal: api.NewAuthenticator(s).Principal, Notifications: s, Routes: r.routes, Suppressions: s, Secret: secret, Redis: q.ConnOpt(), Sandbox: true,
		Example: `{"to":[{"websocket":"u_42"}],"content":{"title":"it's"}}`, Logger: slog.New(slog.NewTextHandler(r.log, nil)),
		Token: func(app, recipient string) (string, error) {
			if strings.Contains(recipient, "/") {
				return "", errors.New("no such recipient")
			}
			return "token-of-" + app + "-" + recipient, nil
		}}
	if change != nil {
		change(&o)
	}
	if r.console, err = console.New(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.console.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return r
}

// visit is one request, as a browser of some address sends it.
type visit struct {
	method, path string
	form         url.Values
	cookie       string // the session's
	header       map[string]string
	from         string // "" for 192.0.2.1:1
}

func (r *rig) do(v visit) *http.Response {
	r.t.Helper()
	var body io.Reader
	if v.form != nil {
		body = strings.NewReader(v.form.Encode())
	}
	if v.method == "" {
		v.method = http.MethodGet
	}
	req := httptest.NewRequestWithContext(r.t.Context(), v.method, v.path, body)
	if v.form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if v.cookie != "" {
		req.AddCookie(&http.Cookie{Name: "carillon_session", Value: v.cookie})
	}
	if v.from != "" {
		req.RemoteAddr = v.from
	}
	for name, value := range v.header {
		req.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	r.console.ServeHTTP(w, req)
	return w.Result()
}

func (r *rig) login(key string) string {
	r.t.Helper()
	resp := r.do(visit{method: http.MethodPost, path: "/console/login", form: url.Values{"key": {key}}})
	if resp.StatusCode != http.StatusSeeOther || len(resp.Cookies()) != 1 {
		r.t.Fatalf("the login with %s answered %d %v", key, resp.StatusCode, resp.Cookies())
	}
	return resp.Cookies()[0].Value
}

// page gets a page and returns it with its text.
func (r *rig) page(path, cookie string, status int) string {
	r.t.Helper()
	resp := r.do(visit{path: path, cookie: cookie})
	text := read(r.t, resp)
	if resp.StatusCode != status {
		r.t.Fatalf("%s answered %d, want %d: %s", path, resp.StatusCode, status, text)
	}
	return text
}

func read(t *testing.T, resp *http.Response) string {
	t.Helper()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// shown is the text of a page's element with an id, without its markup.
func shown(t *testing.T, page, id string) string {
	t.Helper()
	doc, err := html.Parse(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	var walk func(n *html.Node, in bool)
	walk = func(n *html.Node, in bool) {
		for _, a := range n.Attr {
			in = in || a.Key == "id" && a.Val == id
		}
		if n.Type == html.TextNode && in {
			b.WriteString(n.Data + " ")
		}
		for c := range n.ChildNodes() {
			walk(c, in)
		}
	}
	walk(doc, id == "")
	return strings.Join(strings.Fields(b.String()), " ")
}

// nodes are all elements of a page.
func nodes(t *testing.T, page string) []*html.Node {
	t.Helper()
	doc, err := html.Parse(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	var out []*html.Node
	for n := range doc.Descendants() {
		if n.Type == html.ElementNode {
			out = append(out, n)
		}
	}
	return out
}

// record accepts a notification with one delivery to each address, all of kind email.
func (r *rig) record(app string, content core.Content, change func(*core.Notification), addresses ...string) *core.Acceptance {
	r.t.Helper()
	now := r.store.Now()
	n := core.Notification{ID: core.NewID(now), App: app, CreatedAt: now, SendAt: now, ExpiresAt: now.Add(time.Hour), Priority: providers.Normal, Mode: "all", Unknown: core.RetryUnknown}
	if change != nil {
		change(&n)
	}
	acc := &core.Acceptance{Notification: n, Contents: []core.Content{content}}
	for i, id := range core.NewIDs(now, len(addresses)) {
		acc.Deliveries = append(acc.Deliveries, core.Delivery{ID: id, Notification: n.ID, App: app, Channel: "email", Kind: "email", Route: "mail-eu", Address: addresses[i],
			State: core.Pending, MaxUnknown: 3, CreatedAt: now, UpdatedAt: now, ExpiresAt: n.ExpiresAt})
	}
	if _, err := r.store.Record(r.t.Context(), acc); err != nil {
		r.t.Fatal(err)
	}
	return acc
}

// settle makes a round of a notification's batch with a result for each delivery.
func (r *rig) settle(acc *core.Acceptance, results ...providers.Result) {
	r.t.Helper()
	round, err := r.store.Claim(r.t.Context(), core.Wake{Batch: acc.Deliveries[0].Batch, Fence: 1, Route: "mail-eu", Lane: providers.Normal}, "worker-1", time.Minute)
	if err != nil || round == nil || len(round.Deliveries) != len(results) {
		r.t.Fatalf("claim: %+v %v", round, err)
	}
	st := &core.Settlement{Batch: round.Batch, Worker: "worker-1", At: round.Now.Add(time.Millisecond)}
	for i, d := range round.Deliveries {
		v := d.Apply(results[i], core.DefaultPolicy, st.At, 0.5)
		a := core.Attempt{Delivery: d.ID, Outcome: results[i].Outcome, Code: results[i].Code, Reason: results[i].Reason, State: v.Delivery.State}
		if v.Held {
			a.HeldTill = v.DueAt.UnixMilli()
		}
		st.Verdicts, st.Results = append(st.Verdicts, v), append(st.Results, a)
	}
	st.Split(st.At, false)
	if _, err := r.store.Settle(r.t.Context(), st); err != nil {
		r.t.Fatal(err)
	}
}

func recorder(t *testing.T, h http.Handler, path string) *http.Response {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return w.Result()
}
