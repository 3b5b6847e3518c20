package client_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/api"
	"github.com/carillon-notify/carillon/core/client"
	"github.com/carillon-notify/carillon/core/intake"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/builtin"
	"github.com/carillon-notify/carillon/templates"
)

type noQueue struct{}

func (noQueue) Wake(context.Context, ...core.Wake) error { return nil }

// stored is the store without templates of its own: these tests send inline content.
type stored struct{ *store.Store }

func (s stored) PutTemplate(ctx context.Context, app, name string, source []byte) (int, error) {
	return s.Store.PutTemplate(ctx, app, name, source)
}

type noRoutes struct{}

func (noRoutes) Reload(context.Context) (api.Reloaded, error) { return api.Reloaded{}, nil }

func (noRoutes) RouteStates(context.Context) ([]api.RouteState, error) { return nil, nil }
func (noRoutes) PauseRoute(context.Context, string, bool) error        { return core.ErrNotFound }

// serve serves the real API over a real store, behind a middleware, and returns a client of it.
func serve(t *testing.T, between func(http.Handler) http.Handler) *client.Client {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{URL: "sqlite:" + filepath.Join(t.TempDir(), "a.db")})
	if err != nil {
		t.Fatalf("open the store: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.PutKey(t.Context(), sha256.Sum256([]byte("car_key")), core.Principal{App: "a", Scopes: []string{"admin"}}); err != nil {
		t.Fatalf("put the key: %v", err)
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
	catalog := templates.New(nil, nil)
	h, err := api.New(api.Options{Addresses: routing, Notifications: s, Recipients: s, Topics: s, Inbox: s, Stored: stored{s}, Catalog: catalog, Keys: s, Routes: noRoutes{},
		Intake: intake.New(intake.Options{Store: s, Queue: noQueue{}, Templates: catalog, Routing: routing, Logger: quiet}), Logger: quiet})
	if err != nil {
		t.Fatalf("make the API: %v", err)
	}
	if between != nil {
		h = between(h)
	}
	server := httptest.NewUnstartedServer(nil)
	server.Config = api.Server(h)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.Start()
	t.Cleanup(server.Close)
	c, err := client.New(client.Options{URL: server.URL, Key: "car_key", Wait: time.Millisecond})
	if err != nil {
		t.Fatalf("make the client: %v", err)
	}
	return c
}

func hello(email string) *client.Notification {
	return &client.Notification{To: []client.Target{{Email: email}}, Content: client.Content{"title": "Hi", "body": "Text"}, Delay: "10m"}
}

func TestSendAndRead(t *testing.T) {
	t.Parallel()
	c, ctx := serve(t, nil), t.Context()
	got, err := c.Send(ctx, hello("ann@example.com"), "k")
	if err != nil || got.Deliveries != 1 || got.Replayed {
		t.Fatalf("sent %+v, %v", got, err)
	}
	if again, err := c.Send(ctx, hello("ann@example.com"), "k"); err != nil || !again.Replayed || again.ID != got.ID {
		t.Errorf("sent again %+v, %v", again, err)
	}
	if n, err := c.Notification(ctx, got.ID); err != nil || n.Status != "scheduled" || n.Counts.Pending != 1 {
		t.Errorf("notification %+v, %v", n, err)
	}
	if ds, next, err := c.Deliveries(ctx, got.ID, client.Page{Limit: 10}); err != nil || len(ds) != 1 || next != "" || ds[0].Address != "a***@example.com" {
		t.Errorf("deliveries %+v, %q, %v", ds, next, err)
	}
	if steps, err := c.Timeline(ctx, got.ID); err != nil || len(steps) == 0 || steps[0].Step != core.StepAccepted {
		t.Errorf("timeline %+v, %v", steps, err)
	}
	if n, err := c.Cancel(ctx, got.ID); err != nil || n != 1 {
		t.Errorf("cancelled %d, %v", n, err)
	}
	if _, err := c.Notification(ctx, "none"); !client.IsNotFound(err) {
		t.Errorf("reading nothing: %v", err)
	}
	_, err = c.Send(ctx, hello("no address"), "")
	var p *client.Problem
	if !errors.As(err, &p) || p.Status != 422 || len(p.Errors) != 1 || p.Errors[0].Pointer != "/to/0/email" || p.RequestID == "" {
		t.Errorf("a bad address: %v", err)
	}
	_, err = c.Send(ctx, &client.Notification{To: []client.Target{{Email: "ann@example.com"}}, Template: "welcome", Version: 3}, "")
	if !errors.As(err, &p) || len(p.Errors) == 0 || p.Errors[len(p.Errors)-1].Pointer != "/version" || p.Errors[len(p.Errors)-1].Code != "unknown" {
		t.Errorf("a version that is not there: %v", err)
	}
}

func TestRecipients(t *testing.T) {
	t.Parallel()
	c, ctx := serve(t, nil), t.Context()
	if err := c.PutRecipient(ctx, &client.Recipient{ID: "u/1", Locale: "fr"}); err == nil {
		t.Error("an id with a slash was taken")
	}
	r := &client.Recipient{ID: "u 1", Locale: "fr", Endpoints: []client.Endpoint{{Kind: "email", Address: "a@example.com"}}}
	if err := c.PutRecipient(ctx, r); err != nil {
		t.Fatal(err)
	}
	odd := client.Endpoint{Kind: "email", Address: "a+b%c@example.com", AppVersion: "2"}
	if err := c.PutEndpoint(ctx, r.ID, odd); err != nil {
		t.Fatal(err)
	}
	got, err := c.Recipient(ctx, r.ID)
	if err != nil || got.Locale != "fr" || !slices.Contains(got.Endpoints, odd) {
		t.Errorf("recipient %+v, %v", got, err)
	}
	if err := c.DeleteEndpoint(ctx, r.ID, odd.Kind, odd.Address); err != nil {
		t.Error(err)
	}
	if err := c.DeleteRecipient(ctx, r.ID); err != nil {
		t.Error(err)
	}
	if _, err := c.Recipient(ctx, r.ID); !client.IsNotFound(err) {
		t.Errorf("an erased recipient: %v", err)
	}
}

// TestTriesAgain takes the first request and breaks the connection before the answer, then is busy: the
// notification must be taken once.
func TestTriesAgain(t *testing.T) {
	t.Parallel()
	var n atomic.Int32
	keys := make(chan string, 8)
	c := serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				keys <- r.Header.Get("Idempotency-Key")
				switch n.Add(1) {
				case 1:
					next.ServeHTTP(httptest.NewRecorder(), r)
					panic(http.ErrAbortHandler)
				case 2:
					w.WriteHeader(http.StatusServiceUnavailable) // a proxy's, without a problem
					return
				case 3:
					w.WriteHeader(http.StatusTooManyRequests)
					return
				}
			}
			next.ServeHTTP(w, r)
		})
	})
	got, err := c.Send(t.Context(), hello("ann@example.com"), "")
	if err != nil || !got.Replayed {
		t.Fatalf("sent %+v, %v; want the first answer again", got, err)
	}
	close(keys)
	var used []string
	for k := range keys {
		used = append(used, k)
	}
	if len(used) != 4 || used[0] == "" || len(slices.Compact(used)) != 1 {
		t.Errorf("keys of the tries: %q", used)
	}
}

func TestGivesUp(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		status, tries int
	}{
		"busy for ever": {503, client.DefaultTries},
		"refused":       {422, 1},
		"forbidden":     {403, 1},
		"key reused":    {409, 1}, // without Retry-After
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int32
			cl := serve(t, func(http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { n.Add(1); w.WriteHeader(c.status) })
			})
			_, err := cl.Send(t.Context(), hello("a@example.com"), "")
			var p *client.Problem
			if !errors.As(err, &p) || p.Status != c.status || int(n.Load()) != c.tries {
				t.Errorf("%v after %d tries, want %d after %d", err, n.Load(), c.status, c.tries)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cl := serve(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(http.StatusServiceUnavailable)
			cancel()
		})
	})
	if _, err := cl.Send(ctx, hello("a@example.com"), ""); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled wait: %v", err)
	}
}

func TestSendBulk(t *testing.T) {
	t.Parallel()
	c := serve(t, nil)
	run := func() (statuses []int, replayed int) {
		list := []*client.Notification{hello("a@example.com"), hello("bad"), hello("c@example.com")}
		err := c.SendBulk(t.Context(), slices.Values(list), "bulk", func(a client.BulkAnswer) error {
			statuses = append(statuses, a.Status)
			if a.Accepted != nil && a.Accepted.Replayed {
				replayed++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return statuses, replayed
	}
	statuses, replayed := run()
	if d := cmp.Diff([]int{202, 422, 202}, statuses); d != "" || replayed != 0 {
		t.Errorf("%d replayed, statuses (-want +got):\n%s", replayed, d)
	}
	if _, replayed = run(); replayed != 2 {
		t.Errorf("sent again, %d were replayed, want 2", replayed)
	}
	stop := errors.New("enough")
	endless := func(yield func(*client.Notification) bool) {
		for yield(hello("a@example.com")) {
		}
	}
	if err := c.SendBulk(t.Context(), endless, "", func(client.BulkAnswer) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("a stream stopped by its reader: %v", err)
	}
}
