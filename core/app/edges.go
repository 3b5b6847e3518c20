package app

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/api"
	"github.com/carillon-notify/carillon/core/config"
	"github.com/carillon-notify/carillon/core/console"
	"github.com/carillon-notify/carillon/core/dispatch"
	"github.com/carillon-notify/carillon/core/intake"
	"github.com/carillon-notify/carillon/core/queue"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/builtin"
	"github.com/carillon-notify/carillon/providers/sandbox"
	"github.com/carillon-notify/carillon/providers/websocket"
	"github.com/carillon-notify/carillon/templates"
)

// defaultApp is the app of the first key.
const defaultApp = "default"

// keyPrefix marks an API key, so that one is known when it is seen where it should not be.
const keyPrefix = "car_"

// firstKey makes sure that somebody can use the API: the configured key, the one made at an earlier
// start, or a new one.
func (a *App) firstKey(ctx context.Context) error {
	a.key = a.cfg.APIKey.Reveal()
	if a.key == "" {
		key, err := a.keep("api-key", func() string { return keyPrefix + rand.Text() + rand.Text() })
		if err != nil {
			return fmt.Errorf("keep the first API key: %w", err)
		}
		a.key = key
	}
	err := a.store.PutKey(ctx, sha256.Sum256([]byte(a.key)), core.Principal{App: defaultApp, Scopes: []string{"send", "read", "admin"}})
	if err != nil {
		return fmt.Errorf("record the first API key: %w", err)
	}
	return nil
}

// keep reads a small secret from the data directory, made at the first start (mode 0600).
func (a *App) keep(name string, make func() string) (string, error) {
	path := filepath.Join(a.cfg.Data, name)
	text, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(text)) != "" {
		return strings.TrimSpace(string(text)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	value := make()
	if err := os.WriteFile(path, []byte(value+"\n"), 0o600); err != nil {
		return "", err
	}
	return value, nil
}

func (a *App) secret(name string) ([]byte, error) {
	text, err := a.keep(name, func() string {
		b := [32]byte{}
		rand.Read(b[:])
		return hex.EncodeToString(b[:])
	})
	if err != nil {
		return nil, fmt.Errorf("keep the secret of %s: %w", name, err)
	}
	return []byte(text), nil
}

// secretsOf completes the routes whose settings follow from the process: the key of WebSocket tokens,
// and, where several processes share a Redis, the broker that joins their gateways.
func (a *App) secretsOf(rs map[string]config.Route) error {
	for name, r := range rs {
		if r.Kind != websocketKind {
			continue
		}
		settings := config.Settings{}
		for k, v := range r.Settings {
			settings[k] = v
		}
		if settings["secret"] == nil {
			secret, err := a.secret("websocket-secret")
			if err != nil {
				return err
			}
			settings["secret"] = string(secret)
		}
		if url := a.cfg.Queue.Reveal(); settings["redis"] == nil && strings.HasPrefix(url, "redis") && url != config.QueueEmbedded {
			settings["redis"] = url
		}
		if a.role == Worker {
			settings["serve"] = false // it publishes through the broker
		}
		r.Settings = settings
		rs[name] = r
	}
	return nil
}

func sandboxSettings(s *sandbox.Sandbox, kind string) (config.Settings, error) {
	text, ok := s.Settings(kind)
	if !ok {
		return nil, fmt.Errorf("the sandbox plays no %s", kind)
	}
	out := config.Settings{}
	if err := json.Unmarshal(text, &out); err != nil {
		return nil, fmt.Errorf("read the sandbox's settings of %s: %w", kind, err)
	}
	return out, nil
}

func kindsByName() map[string]providers.Kind {
	out := map[string]providers.Kind{}
	for _, k := range builtin.Kinds() {
		out[k.Name] = k
	}
	return out
}

func (a *App) coreRoutes() []core.Route {
	out := make([]core.Route, 0, len(a.routes))
	for _, name := range a.routes.names() {
		out = append(out, a.routes[name].Route)
	}
	return out
}

// gateways are the providers with live clients.
func (a *App) gateways() []*websocket.Gateway {
	var out []*websocket.Gateway
	for _, name := range a.routes.names() {
		if g, ok := a.routes[name].provider.(*websocket.Gateway); ok {
			out = append(out, g)
		}
	}
	return out
}

func (a *App) closeGateways(ctx context.Context) {
	for _, g := range a.gateways() {
		if err := g.Close(ctx); err != nil {
			a.log.Warn("live connections could not be closed in order", "error", err)
		}
	}
}

// startReceivers takes in what providers hear back.
func (a *App) startReceivers(d *dispatch.Dispatcher) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, len(a.routes))
	n := 0
	for name, r := range a.routes {
		rec, ok := r.provider.(providers.Receiver)
		if !ok {
			continue
		}
		n++
		go func() {
			d.Receive(ctx, a.store, name, rec)
			done <- struct{}{}
		}()
	}
	a.closers = append(a.closers, func(context.Context) error {
		cancel()
		for range n {
			<-done
		}
		return nil
	})
}

// startWorkers serves the wakes of every route.
func (a *App) startWorkers(ctx context.Context, d *dispatch.Dispatcher) error {
	for _, name := range a.routes.names() {
		r := a.routes[name]
		concurrency := map[core.Lane]int{}
		for _, lane := range core.Lanes {
			concurrency[lane] = r.concurrency
		}
		s, err := a.queue.Serve(context.WithoutCancel(ctx), queue.ServeOptions{Route: name, Concurrency: concurrency,
			Timeout: r.limits.Timeout + 2*core.LeaseSlack, Handler: d.Deliver})
		if err != nil {
			return fmt.Errorf("start the workers of route %s: %w", name, err)
		}
		a.workers = append(a.workers, s)
	}
	a.closers = append(a.closers, a.stopWorkers)
	return nil
}

// stopWorkers lets the rounds under way finish, on all routes at once.
func (a *App) stopWorkers(ctx context.Context) error {
	errs := make(chan error, len(a.workers))
	for _, w := range a.workers {
		go func() { errs <- w.Shutdown(ctx) }()
	}
	var all []error
	for range a.workers {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// watchQueue has the relay look at once when Redis lost what it held.
func (a *App) watchQueue(ctx context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			changed, err := a.queue.Epoch(ctx)
			if err == nil && changed {
				a.log.Warn("the queue lost its wakes; the store has them all, and the relay brings them back")
				a.relay.Nudge()
			}
		}
	}
}

// storedTemplates gives the catalog what the API put into the store.
type storedTemplates struct{ s *store.Store }

// LatestTemplate implements templates.Store.
func (t storedTemplates) LatestTemplate(ctx context.Context, app, name string) (int, error) {
	v, err := t.s.Template(ctx, app, name, 0)
	if errors.Is(err, core.ErrNotFound) {
		return 0, templates.ErrNotFound
	}
	if err != nil {
		return 0, err
	}
	return v.Version, nil
}

// Template implements templates.Store.
func (t storedTemplates) Template(ctx context.Context, app, name string, version int) (templates.Source, error) {
	v, err := t.s.Template(ctx, app, name, version)
	if errors.Is(err, core.ErrNotFound) {
		return templates.Source{}, templates.ErrNotFound
	}
	if err != nil {
		return templates.Source{}, err
	}
	src := templates.Source{Name: name}
	if err := json.Unmarshal(v.Source, &src); err != nil {
		return templates.Source{}, fmt.Errorf("read stored template %s@%d: %w", name, version, err)
	}
	return src, nil
}

// tokens are the recipients' own.
type tokens struct{ t *websocket.Tokens }

// Mint makes a token for a recipient's client.
func (t tokens) Mint(app, recipient string, ttl time.Duration) (string, time.Time, error) {
	return t.t.Mint(app, recipient, ttl)
}

// Verify reads a recipient's token.
func (t tokens) Verify(token string) (app, recipient string, expires time.Time, err error) {
	c, err := t.t.Verify(token)
	return c.App, c.Recipient, c.ExpiresAt, err
}

// mount puts the edges beside the API on one mux.
func (a *App) mount(apiHandler, consoleHandler http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", a.metrics.Requests(apiHandler))
	mux.Handle("/console/", consoleHandler)
	mux.Handle("/console", consoleHandler)
	mux.HandleFunc("GET /favicon.ico", console.Icon) // browsers ask for it beside every page
	mux.Handle("GET /metrics", a.metrics.Handler())
	for _, g := range a.gateways() {
		mux.Handle("/connection/", g.Handler())
		break // one gateway has the public paths; further ones are other routes of the same kind
	}
	if a.sandbox != nil {
		mux.Handle("/sandbox/", a.sandbox.Handler())
		mux.Handle("/v1/sandbox/", a.sandbox.Handler())
	}
	return mux
}

// edges puts the REST API and the console on one handler.
func (a *App) edges(in *intake.Intake, catalog *templates.Catalog) (http.Handler, error) {
	o := api.Options{Intake: in, Addresses: in.Routing(), Notifications: a.store, Recipients: a.store, Inbox: a.store, Stored: keptTemplates{a.store},
		Catalog: catalog, Keys: a.store, Auth: api.NewAuthenticator(a.store), Routes: a, Ready: a.ready, Logger: a.log}
	var t *tokens
	for _, g := range a.gateways() {
		if g.Tokens() != nil {
			t = &tokens{g.Tokens()}
			o.Tokens = t
			break
		}
	}
	for _, r := range a.cfg.Routes {
		if refresh, _ := r.Settings["refresh"].(bool); r.Kind == websocketKind && refresh {
			o.Refresh = true
		}
	}
	rest, err := api.New(o)
	if err != nil {
		return nil, fmt.Errorf("make the API: %w", err)
	}
	pages, err := a.console(t, o.Auth)
	if err != nil {
		return nil, err
	}
	a.closers = append(a.closers, func(context.Context) error { return pages.Close() })
	return a.mount(rest, pages), nil
}

// ready reports whether requests can be taken: the store must answer. A queue that is away delays
// deliveries and refuses nothing.
func (a *App) ready(ctx context.Context) error { return a.store.Ping(ctx) }

// keptTemplates is the store's side of templates as the API wants it.
type keptTemplates struct{ *store.Store }

// PutTemplate keeps a version.
func (t keptTemplates) PutTemplate(ctx context.Context, app, name string, source []byte) (int, error) {
	return t.Store.PutTemplate(ctx, app, name, source)
}
