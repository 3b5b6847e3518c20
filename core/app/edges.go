package app

import (
	"context"
	"crypto/rand"
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
	"github.com/carillon-notify/carillon/core/intake"
	"github.com/carillon-notify/carillon/core/queue"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers/builtin"
	"github.com/carillon-notify/carillon/providers/sandbox"
	"github.com/carillon-notify/carillon/templates"
)

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

// shared is a secret that all processes of the store share, made by the first that asks for it.
func (a *App) shared(ctx context.Context, name string) ([]byte, error) {
	offer := make([]byte, 32)
	rand.Read(offer)
	return a.store.Secret(ctx, name, offer)
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

// routing puts channels and routes together as they are now.
func (a *App) routing() (*intake.Routing, error) {
	return routingOf(a.config(), a.routes.all())
}

// routingOf is what routes make of a configuration.
func routingOf(c *config.Config, all map[string]*route) (*intake.Routing, error) {
	kinds := kindsOf(all)
	for _, k := range builtin.Kinds() {
		if _, has := kinds[k.Name]; !has {
			kinds[k.Name] = k // templates may have its block already
		}
	}
	r, err := intake.NewRouting(coreRoutes(all), channels(c, all), kinds)
	if err != nil {
		return nil, fmt.Errorf("put channels and routes together: %w", err)
	}
	return r, nil
}

// startRoute starts what a route has going besides its provider: it takes in what that hears back, and
// serves the wakes.
func (a *App) startRoute(ctx context.Context, r *route) error {
	if r.slot == nil {
		return nil
	}
	if r.deaf == nil {
		var listening context.Context
		listening, r.deaf = context.WithCancel(context.WithoutCancel(ctx))
		a.receiving.Go(func() { a.d.Receive(listening, a.store, r.Name, r.slot) })
	}
	if !a.cfg.Workers {
		return nil
	}
	concurrency := map[core.Lane]int{}
	for _, lane := range core.Lanes {
		concurrency[lane] = r.concurrency
	}
	s, err := a.queue.Serve(context.WithoutCancel(ctx), queue.ServeOptions{Route: r.Name, Concurrency: concurrency,
		Timeout: r.limits.Timeout + 2*core.LeaseSlack, Handler: a.d.Deliver, Leave: func() bool { return a.gate.Leaves(r.Name) }})
	if err != nil {
		return fmt.Errorf("start the workers of route %s: %w", r.Name, err)
	}
	r.workers = s
	return nil
}

// watchQueue makes due what was in the queue when Redis lost it, and what Redis did not take while it was
// away, and has the relay look at once.
func (a *App) watchQueue(ctx context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	lost := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := a.bringBack(ctx); err != nil && ctx.Err() == nil {
			a.log.Debug("wakes that were not enqueued are not brought back yet", "error", err)
		}
		changed, err := a.queue.Epoch(ctx)
		if lost = lost || changed; err != nil || !lost {
			continue
		}
		n, err := a.store.Requeue(ctx)
		if err != nil {
			continue // in a second again; the batches' own alarm clocks go on
		}
		lost = false
		if n > 0 {
			a.log.Warn("the queue lost its wakes; the relay brings them back from the store", "batches", n)
			a.relay.Nudge()
		}
	}
}

// bringBack makes the batches due whose wakes could not be enqueued.
func (a *App) bringBack(ctx context.Context) error {
	wakes, err := a.queue.Lost(ctx)
	if err != nil || len(wakes) == 0 {
		return err
	}
	if err := a.store.Unqueue(ctx, wakes); err != nil {
		return err // their alarm clocks go on
	}
	a.relay.Nudge()
	return nil
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

// mount puts the edges beside the API on one mux.
func (a *App) mount(apiHandler, consoleHandler http.Handler) http.Handler {
	mux := http.NewServeMux()
	rest := a.metrics.Requests(apiHandler)
	mux.Handle("/", rest)
	mux.Handle("/console/", consoleHandler)
	mux.Handle("/console", consoleHandler)
	mux.HandleFunc("GET /favicon.ico", console.Icon) // browsers ask for it beside every page
	mux.Handle("GET /metrics", a.metrics.Handler())
	mux.Handle("/connection/", a.live(rest))
	if a.sandbox != nil {
		mux.Handle("/sandbox/", a.sandbox.Handler())
		mux.Handle("/v1/sandbox/", a.sandbox.Handler())
	}
	return a.leaving(asWritten(mux, rest))
}

// asWritten has a path of the API that is not clean answered by the API. The mux would send the caller on to the clean
// one, whose meaning may be another: of /v1/topics/../recipients/x it is the recipient itself.
func asWritten(mux *http.ServeMux, rest http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/") && !api.IsClean(r.URL) {
			rest.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// edges puts the REST API and the console on one handler.
func (a *App) edges(ctx context.Context, catalog *templates.Catalog) (http.Handler, error) {
	if err := a.findGateway(); err != nil {
		return nil, err
	}
	o := api.Options{Intake: a.intake, Addresses: addresses{a.intake}, Notifications: a.store, Recipients: a.store, Topics: a.store, Inbox: a.store, Stored: keptTemplates{a.store},
		Catalog: catalog, Keys: a.store, Auth: api.NewAuthenticator(a.store), Routes: a, Campaigns: a.manager(), Channels: a.channelDocs, Categories: a.categories, Unsubscriber: a.unsubscriber, Tokens: tokens{a}, Refresh: a.refreshes, Ready: a.ready, Stopping: a.unserved, Logger: a.log}
	rest, err := api.New(o)
	if err != nil {
		return nil, fmt.Errorf("make the API: %w", err)
	}
	pages, err := a.console(ctx, o.Auth)
	if err != nil {
		return nil, err
	}
	a.closers = append(a.closers, func(context.Context) error { return pages.Close() })
	return a.mount(rest, pages), nil
}

// addresses checks addresses by the routing as it is now.
type addresses struct{ in *intake.Intake }

// CheckAddress implements api.Addresses.
func (a addresses) CheckAddress(kind, address string) error {
	return a.in.Routing().CheckAddress(kind, address)
}

// CheckTemplate implements api.Addresses.
func (a addresses) CheckTemplate(src templates.Source) error {
	return a.in.Routing().CheckTemplate(src)
}

// Channels implements api.Addresses.
func (a addresses) Channels() []string { return a.in.Routing().Channels() }

// openUnsubscriber makes what signs the links of mails, with a key that all processes of the store share.
func (a *App) openUnsubscriber(ctx context.Context) error {
	key, err := a.shared(ctx, "unsubscribe")
	if err != nil {
		return fmt.Errorf("keep the key of unsubscribe links: %w", err)
	}
	a.unsubscriber = core.NewUnsubscriber(key, a.cfg.PublicURL)
	return nil
}

// unsubscribeLink is the link of a mail: none where no address is known to reach us by, or what it would turn
// off cannot be.
func (a *App) unsubscribeLink(u core.Unsubscription) string {
	if a.categories().Mandatory(u.Category) {
		return ""
	}
	return a.unsubscriber.Link(u)
}

// keptTemplates is the store's side of templates as the API wants it.
type keptTemplates struct{ *store.Store }

// PutTemplate keeps a version.
func (t keptTemplates) PutTemplate(ctx context.Context, app, name string, source []byte) (int, error) {
	return t.Store.PutTemplate(ctx, app, name, source)
}
