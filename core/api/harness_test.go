package api_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/api"
	"github.com/carillon-notify/carillon/core/campaign"
	"github.com/carillon-notify/carillon/core/intake"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/builtin"
	"github.com/carillon-notify/carillon/templates"
)

// The keys of the tests: one of each scope in app a, one in app b.
const (
	adminKey, sendKey, readKey, otherKey = "car_admin", "car_send", "car_read", "car_other"
)

type noQueue struct{}

func (noQueue) Wake(context.Context, ...core.Wake) error         { return nil }
func (noQueue) Plan(context.Context, ...core.CampaignWake) error { return nil }

type catalogStore struct{ s *store.Store }

func (c catalogStore) LatestTemplate(ctx context.Context, app, name string) (int, error) {
	v, err := c.s.Template(ctx, app, name, 0)
	if err != nil {
		return 0, missing(err)
	}
	return v.Version, nil
}

func (c catalogStore) Template(ctx context.Context, app, name string, version int) (templates.Source, error) {
	src := templates.Source{Name: name}
	v, err := c.s.Template(ctx, app, name, version)
	if err != nil {
		return src, missing(err)
	}
	return src, json.Unmarshal(v.Source, &src)
}

func missing(err error) error {
	if errors.Is(err, core.ErrNotFound) {
		return templates.ErrNotFound
	}
	return err
}

type keptTemplates struct{ *store.Store }

func (k keptTemplates) PutTemplate(ctx context.Context, app, name string, source []byte) (int, error) {
	return k.Store.PutTemplate(ctx, app, name, source)
}

type oneRoute struct{ s *store.Store }

func (oneRoute) Reload(context.Context) (api.Reloaded, error) {
	return api.Reloaded{Added: []string{}, Changed: []string{"email"}, Removed: []string{}, Faults: []api.RouteFault{}, Restart: []string{}}, nil
}

func (o oneRoute) RouteStates(ctx context.Context) ([]api.RouteState, error) {
	paused, err := o.s.Paused(ctx)
	st := api.RouteState{Name: "email", Kind: "email", Channels: []string{"email"}, State: "ok", Queue: []api.QueueDepth{{Lane: "normal"}}}
	if paused["email"] {
		st.State = "paused"
	}
	return []api.RouteState{st}, err
}

func (o oneRoute) PauseRoute(ctx context.Context, route string, paused bool) error {
	if route != "email" {
		return core.ErrNotFound
	}
	return o.s.PauseRoute(ctx, route, paused)
}

// plainTokens stands for the gateway's JWTs: this package hands them through.
type plainTokens struct{}

func (plainTokens) Mint(app, recipient string, ttl time.Duration) (string, time.Time, error) {
	return "jwt." + app + "." + recipient, time.Now().Add(ttl), nil
}

func (plainTokens) Verify(token string) (string, string, time.Time, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 || parts[0] != "jwt" {
		return "", "", time.Time{}, errors.New("no token")
	}
	return parts[1], parts[2], time.Now().Add(time.Minute), nil
}

// rig is the API over the real intake and a real store.
type rig struct {
	t       *testing.T
	handler http.Handler
	store   *store.Store
	intake  *intake.Intake
	router  routers.Router
}

func loadDocument(t testing.TB) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromFile("openapi.yaml")
	if err != nil {
		t.Fatalf("read openapi.yaml: %v", err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatalf("openapi.yaml is no OpenAPI document: %v", err)
	}
	return doc
}

func init() { openapi3filter.RegisterBodyDecoder("text/html", openapi3filter.PlainBodyDecoder) }

func newRig(t *testing.T, change func(*api.Options)) *rig {
	t.Helper()
	ctx := t.Context()
	s, err := store.Open(ctx, store.Options{URL: "sqlite:" + filepath.Join(t.TempDir(), "a.db")})
	if err != nil {
		t.Fatalf("open the store: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	for key, p := range map[string]core.Principal{
		adminKey: {App: "a", Scopes: []string{"admin"}}, sendKey: {App: "a", Scopes: []string{"send"}},
		readKey: {App: "a", Scopes: []string{"read"}}, otherKey: {App: "b", Scopes: []string{"admin"}},
	} {
		if err := s.PutKey(ctx, sha256.Sum256([]byte(key)), p); err != nil {
			t.Fatalf("put a key: %v", err)
		}
	}
	kinds, channels := map[string]providers.Kind{}, map[string][]string{}
	var routes []core.Route
	for _, k := range builtin.Kinds() {
		kinds[k.Name] = k
		routes = append(routes, core.Route{Name: k.Name, Kind: k.Name, Channel: k.Channel, Policy: core.DefaultPolicy})
		channels[k.Channel] = append(channels[k.Channel], k.Name)
	}
	routing, err := intake.NewRouting(routes, channels, kinds)
	if err != nil {
		t.Fatalf("make the routing: %v", err)
	}
	quiet := slog.New(slog.DiscardHandler)
	catalog := templates.New(nil, catalogStore{s})
	categories := core.Categories{"security": {Mandatory: true}}
	in := intake.New(intake.Options{Store: s, Queue: noQueue{}, Templates: catalog, Routing: routing, Rules: func() *core.Rules { return &core.Rules{Categories: categories} }, Logger: quiet})
	o := api.Options{Intake: in, Addresses: routing, Notifications: s, Recipients: s, Topics: s, Inbox: s, Stored: keptTemplates{s}, Catalog: catalog,
		Keys: s, Routes: oneRoute{s}, Categories: func() core.Categories { return categories }, Tokens: plainTokens{}, Refresh: func() bool { return true }, Ready: s.Ping, Logger: quiet,
		Campaigns: &campaign.Manager{Keeper: s, Pages: s, Audiences: s, Checker: in, Queue: noQueue{}}}
	if change != nil {
		change(&o)
	}
	h, err := api.New(o)
	if err != nil {
		t.Fatalf("make the API: %v", err)
	}
	router, err := legacy.NewRouter(loadDocument(t))
	if err != nil {
		t.Fatalf("route by the document: %v", err)
	}
	return &rig{t: t, handler: h, store: s, intake: in, router: router}
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) into(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal(a.body, v); err != nil {
		t.Fatalf("decode %s: %v", a.body, err)
	}
}

// faults are the pointers and codes of a problem's errors.
func (a answer) faults(t *testing.T) map[string]string {
	t.Helper()
	var p api.Problem
	a.into(t, &p)
	out := map[string]string{}
	for _, e := range p.Errors {
		out[e.Pointer] = e.Code
	}
	return out
}

// do sends a request with a key and holds the answer (and, if it was taken, the request) against the
// document.
func (r *rig) do(method, path, key, body string, headers ...string) answer {
	r.t.Helper()
	var content io.Reader
	if body != "" {
		content = strings.NewReader(body)
	}
	q := httptest.NewRequestWithContext(r.t.Context(), method, path, content)
	if key != "" {
		q.Header.Set("Authorization", "Bearer "+key)
	}
	if body != "" {
		q.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		q.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	r.handler.ServeHTTP(w, q)
	a := answer{w.Code, w.Header(), w.Body.Bytes()}
	r.holds(q, body, a)
	return a
}

func (r *rig) holds(q *http.Request, body string, a answer) {
	r.t.Helper()
	route, params, err := r.router.FindRoute(q)
	if a.status >= 400 && (err != nil || route.Operation.Responses.Status(a.status) == nil) { // else the document has an answer of its own
		if got := a.header.Get("Content-Type"); got != "application/problem+json" {
			r.t.Errorf("%s %s: %d is answered as %q", q.Method, q.URL, a.status, got)
		}
		var p api.Problem
		if err := json.Unmarshal(a.body, &p); err != nil || p.Status != a.status || p.RequestId == "" || p.RequestId != a.header.Get("X-Request-Id") {
			r.t.Errorf("%s %s: %s is no problem of this request", q.Method, q.URL, a.body)
		}
	}
	if err != nil {
		return // not in the document: a 404 or 405
	}
	q.Body = io.NopCloser(strings.NewReader(body))
	in := &openapi3filter.RequestValidationInput{Request: q, PathParams: params, Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true}}
	if a.status < 300 {
		if err := openapi3filter.ValidateRequest(r.t.Context(), in); err != nil {
			r.t.Errorf("%s %s was taken, against the document: %v", q.Method, q.URL, err)
		}
	}
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: a.status, Header: a.header, Options: in.Options}
	if len(a.body) > 0 {
		out.Body = io.NopCloser(bytes.NewReader(a.body))
	}
	if err := openapi3filter.ValidateResponse(r.t.Context(), out); err != nil {
		r.t.Errorf("%s %s: the answer %d is not the document's: %v", q.Method, q.URL, a.status, err)
	}
}

func (r *rig) must(status int, method, path, key, body string, headers ...string) answer {
	r.t.Helper()
	a := r.do(method, path, key, body, headers...)
	if a.status != status {
		r.t.Fatalf("%s %s = %d %s, want %d", method, path, a.status, a.body, status)
	}
	return a
}
