// Package app wires everything, starts it and stops it. It is the only package that sees everything.
package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	_ "time/tzdata" // a bare container has no time zones

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/api"
	"github.com/carillon-notify/carillon/core/config"
	"github.com/carillon-notify/carillon/core/console"
	"github.com/carillon-notify/carillon/core/dispatch"
	"github.com/carillon-notify/carillon/core/gate"
	"github.com/carillon-notify/carillon/core/intake"
	"github.com/carillon-notify/carillon/core/metrics"
	"github.com/carillon-notify/carillon/core/queue"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers/sandbox"
	"github.com/carillon-notify/carillon/templates"
)

const websocketKind = "websocket"

// Role is which side of the house a process is.
type Role int

// The roles.
const (
	Orchestrator Role = iota // accepts; delivers too unless workers is false
	Worker                   // delivers
)

// App is the running process.
type App struct {
	cfg     config.Config // as at the start; what can change while it runs is config's
	current atomic.Pointer[config.Config]
	gateway atomic.Pointer[gateway]       // of the routes as they are now; nil: there is none
	rules   atomic.Pointer[core.Rules]    // of current: all that decides by categories asks it here
	source  func() (config.Config, error) // reads the settings anew; nil: they do not change
	role    Role
	log     *slog.Logger
	name    string // of this process: host:pid
	key     string // the first API key, "" if it is not ours to show
	kinds   *kinds
	routes  routes
	intake  *intake.Intake     // nil in a worker
	catalog *templates.Catalog // nil in a worker
	d       *dispatch.Dispatcher
	sandbox *sandbox.Sandbox
	// sandboxRoutes lead to the sandbox while none is configured.
	sandboxRoutes map[string]config.Route

	store        *store.Store
	unsubscriber *core.Unsubscriber
	queue        *queue.Queue
	gate         *gate.Gate
	metrics      *metrics.Metrics
	relay        *dispatch.Relay
	server       *http.Server
	address      string
	closers      []func(context.Context) error // called in reverse order
	running      sync.WaitGroup                // the relay and what else runs beside the routes
	receiving    sync.WaitGroup
	failed       chan error
	draining     atomic.Bool   // told to stop
	unserved     chan struct{} // closed when the API stops: what has no end of its own ends

	reloading sync.Mutex
	paused    pausedRoutes
	// able are the routes that another process delivers over whose circuit is not open, as far as is known.
	able atomic.Pointer[map[string]bool]
}

// Start opens and starts everything in the order of its dependence. When it returns, requests are
// served and wakes are handled. An error has closed what was opened, and says what to mend.
func Start(ctx context.Context, cfg config.Config, role Role, log *slog.Logger) (_ *App, err error) {
	a := &App{cfg: cfg, role: role, log: log, kinds: newKinds(log), failed: make(chan error, 4), unserved: make(chan struct{})}
	defer func() {
		if err != nil {
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.ShutdownTimeout)
			defer cancel()
			err = errors.Join(err, a.close(stop))
		}
	}()
	if role == Worker {
		if err := a.checkWorker(); err != nil {
			return nil, err
		}
	}
	var listener net.Listener
	steps := []func(context.Context) error{a.makeData, a.startSandbox, a.describeRoutes, a.openQueue, a.openStore, a.openUnsubscriber, a.openRoutes, a.deliver, a.serveMetrics}
	if role == Orchestrator {
		// The port first: that it is in use is the commonest mistake, and costs nothing to find out.
		if listener, err = listen(ctx, cfg.Listen); err != nil {
			return nil, err
		}
		a.closers = append(a.closers, func(context.Context) error { return ignoreClosed(listener.Close()) })
		steps = append(steps, func(ctx context.Context) error { return a.serve(ctx, listener) })
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// URL is where the API is served, "" for a worker.
func (a *App) URL() string {
	if a.address == "" {
		return ""
	}
	return "http://" + a.address
}

// Key is the first API key, where it is known in the clear.
func (a *App) Key() string { return a.key }

// Sandbox is the running sandbox, nil if there is none.
func (a *App) Sandbox() *sandbox.Sandbox { return a.sandbox }

// Close stops everything. See Run.
func (a *App) close(ctx context.Context) error {
	var errs []error
	for i := len(a.closers) - 1; i >= 0; i-- {
		errs = append(errs, a.closers[i](ctx))
	}
	a.closers = nil
	return errors.Join(errs...)
}

func (a *App) checkWorker() error {
	if a.cfg.IsSQLite() {
		return errors.New("a worker shares its store with the orchestrator, and SQLite belongs to one process: set store to postgres://user:pass@host/db")
	}
	if a.cfg.Queue.Reveal() == config.QueueEmbedded {
		return errors.New("a worker shares its queue with the orchestrator: set queue to redis://host:6379/0")
	}
	if !a.cfg.Workers {
		return errors.New("workers=false leaves a worker nothing to do: leave out its flag -workers, or CARILLON_WORKERS; what the file says is for orchestrators")
	}
	return nil
}

// portPatience is for how long a port in use is tried again: a process that was just killed holds its own until
// the kernel is done with it.
const portPatience = 2 * time.Second

// listenSoon listens on an address, which may still be another's for a moment.
func listenSoon(ctx context.Context, address string) (net.Listener, error) {
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	var config net.ListenConfig
	for end := time.Now().Add(portPatience); ; {
		l, err := config.Listen(ctx, "tcp", address)
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(end) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-again.C:
		}
	}
}

func listen(ctx context.Context, address string) (net.Listener, error) {
	l, err := listenSoon(ctx, address)
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%s is in use by another program; stop it, or set listen to another address (-listen 127.0.0.1:8081)", address)
	default:
		return nil, fmt.Errorf("listen: %w; set listen to an address of this machine", err)
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (a *App) makeData(context.Context) error {
	if err := os.MkdirAll(a.cfg.Data, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w; set data to a directory that this user may write", err)
	}
	probe, err := os.CreateTemp(a.cfg.Data, ".probe-*")
	if err != nil {
		return fmt.Errorf("the data directory cannot be written: %w; set data to one that this user may write", err)
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// startSandbox starts the stand-ins and configures the routes that no one configured to go there.
func (a *App) startSandbox(context.Context) error {
	if a.role != Orchestrator || !a.cfg.SandboxRuns() {
		return nil
	}
	s, err := sandbox.Start(sandbox.Options{Dir: filepath.Join(a.cfg.Data, "sandbox"), Home: console.Root})
	if err != nil {
		return fmt.Errorf("start the sandbox: %w", err)
	}
	a.sandbox = s
	a.closers = append(a.closers, func(context.Context) error { return s.Close() })
	if len(a.cfg.Routes) == 0 {
		a.cfg.Routes = map[string]config.Route{websocketKind: {Kind: websocketKind}}
		for _, kind := range []string{"apns", "fcm", "email"} {
			settings, err := sandboxSettings(s, kind)
			if err != nil {
				return err
			}
			a.cfg.Routes[kind] = config.Route{Kind: kind, Settings: settings}
		}
		a.sandboxRoutes = maps.Clone(a.cfg.Routes)
		if !a.cfg.Workers { // a worker without routes does not start, and no other knows this sandbox
			a.log.Warn("no route is configured, and this process delivers nothing to its sandbox (workers: false): what it accepts waits; " +
				"configure routes here and at the workers (`orchestrator sandbox` prints some), or set workers to true")
		}
	}
	return nil
}

func (a *App) describeRoutes(ctx context.Context) error {
	if err := a.secretsOf(a.cfg.Routes); err != nil {
		return err
	}
	a.adopt(&a.cfg)
	byName, faults, err := describe(ctx, &a.cfg, a.kinds)
	if err != nil {
		return err
	}
	if len(byName) == 0 && len(faults) == 0 {
		return a.noRoutes()
	}
	for name, why := range faults {
		a.log.Error("a plugin cannot be had; the others go on without it", "plugin", name, "reason", why)
	}
	if len(faults) == 0 { // else it may be the channel of what could not be had
		for _, stray := range strayDefaults(&a.cfg, byName) {
			a.log.Warn("a category's default has no effect", "setting", stray)
		}
	}
	a.routes.byName = byName
	a.routes.setFaults(faults)
	return nil
}

// noRoutes says what to do where nothing could be delivered.
func (a *App) noRoutes() error {
	if a.role == Worker {
		return errors.New("no route is configured: nothing could be delivered; a worker has no sandbox, that is the orchestrator's: configure the orchestrator's routes here too, `orchestrator sandbox` prints routes to try with")
	}
	return errors.New("no route is configured and the sandbox is off: nothing could be delivered; configure routes, or set sandbox to auto")
}

// config is the configuration as it is now.
func (a *App) config() *config.Config { return a.current.Load() }

// adopt makes c the configuration as it is now.
func (a *App) adopt(c *config.Config) {
	rules := c.Rules()
	a.current.Store(c)
	a.rules.Store(&rules)
}

// categories are those of the notifications as they are now.
func (a *App) categories() core.Categories { return a.rules.Load().Categories }

func (a *App) openRoutes(ctx context.Context) error {
	a.closers = append(a.closers, a.routes.close)
	for _, r := range a.routes.all() {
		if !r.delivers(&a.cfg) {
			continue
		}
		p, err := r.open(ctx)
		if err != nil {
			return err
		}
		r.slot = newSlot(p)
	}
	return nil
}

func (a *App) openQueue(ctx context.Context) error {
	q, err := queue.Open(ctx, queue.Options{URL: a.cfg.Queue.Reveal(), Logger: a.log, Routes: a.routes.names(),
		Now: func() time.Time { return a.store.Now() }}) // asked with wakes, which are the store's
	if err != nil {
		return ofSetting("queue", err)
	}
	a.queue = q
	a.closers = append(a.closers, func(context.Context) error { return q.Close() })
	return nil
}

// sqlitePath is where the store of a configuration is that says sqlite.
func sqlitePath(cfg *config.Config) string { return filepath.Join(cfg.Data, "carillon.db") }

// storeURL is a configuration's store as store.Open wants it.
func storeURL(cfg *config.Config) string {
	if cfg.IsSQLite() {
		return "sqlite:" + sqlitePath(cfg)
	}
	return cfg.Store.Reveal()
}

func (a *App) openStore(ctx context.Context) error {
	s, err := store.Open(ctx, store.Options{URL: storeURL(&a.cfg), MaxBatch: a.routes.maxBatch, Room: a.queue.Room, Logger: a.log,
		KeyLife: a.cfg.Retention.Idempotency, VoidQueued: a.cfg.Queue.Reveal() == config.QueueEmbedded})
	if err != nil {
		return ofSetting("store", err)
	}
	a.store = s
	a.closers = append(a.closers, func(context.Context) error { return s.Close() })
	return nil
}

// deliver starts the delivery side: workers, receivers, relay, sweeper.
func (a *App) deliver(ctx context.Context) error {
	a.gate = gate.New(a.routes.gates())
	a.gate.Elsewhere(a.elsewhere)
	a.metrics = metrics.New(metrics.State{Pools: a.routes.pools, Depth: a.backlog, Queue: a.queue.Up, Now: a.store.Now})
	host, _ := os.Hostname() // a worker without a name is told by its pid alone
	a.name = fmt.Sprintf("%s:%d", host, os.Getpid())
	o := dispatch.Options{Store: a.store, Queue: a.queue, Gate: a.gate, Routes: &a.routes, Observer: a.metrics, Logger: a.log, Worker: a.name,
		Nudge: func() { a.relay.Nudge() }} // nothing is delivered before there is a relay
	if a.cfg.PublicURL != "" {
		o.Unsubscribe = a.unsubscribeLink
	}
	a.d = dispatch.New(o)
	a.relay = dispatch.NewRelay(dispatch.RelayOptions{Overdue: a.store, Dispatcher: a.d, Routes: a.routes.names(), Logger: a.log})
	a.closers = append(a.closers, a.stopRoutes)
	for _, r := range a.routes.all() {
		if err := a.startRoute(ctx, r); err != nil {
			return err
		}
	}
	background, cancel := context.WithCancel(context.Background())
	a.running.Go(func() { a.sweep(background) })
	a.running.Go(func() { a.mend(background) })
	if !a.cfg.IsSQLite() {
		a.relay.Lead(false)
		a.running.Go(func() { a.leadRelay(background) })
		a.running.Go(func() { a.report(background) })
	}
	a.running.Go(func() { a.relay.Run(background) })
	if a.cfg.Queue.Reveal() != config.QueueEmbedded {
		a.running.Go(func() { a.watchQueue(background) })
	}
	a.closers = append(a.closers, func(context.Context) error {
		cancel()
		a.running.Wait()
		return nil
	})
	return nil
}

// backlog is asked at a scrape; a store that cannot answer leaves it out. A lane in which nothing waits is told, too:
// what scales by it must see a 0 and not nothing.
func (a *App) backlog() []core.Backlog {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	b, err := a.store.Backlog(ctx)
	if err != nil {
		a.log.Debug("the backlog cannot be read", "error", err)
		return nil
	}
	there := map[core.RouteLane]bool{}
	for i := range b {
		there[core.RouteLane{Route: b[i].Route, Lane: b[i].Lane}] = true
	}
	for _, name := range a.routes.names() {
		for _, lane := range core.Lanes {
			if !there[core.RouteLane{Route: name, Lane: lane}] {
				b = append(b, core.Backlog{Route: name, Lane: lane})
			}
		}
	}
	return b
}

// serveMetrics serves the counters, and whether the process is well, on an address of their own.
func (a *App) serveMetrics(ctx context.Context) error {
	if a.cfg.MetricsListen == "" {
		return nil
	}
	l, err := listenSoon(ctx, a.cfg.MetricsListen)
	if err != nil {
		return fmt.Errorf("serve the metrics: %w; set metrics_listen to another address, or leave it empty", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", a.metrics.Handler())
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		switch err := a.ready(r.Context()); {
		case errors.Is(err, core.ErrStopping):
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		case err != nil: // not its words: they may hold the database's address
			http.Error(w, "the store does not answer", http.StatusServiceUnavailable)
		default:
			fmt.Fprintln(w, "ok")
		}
	})
	server := api.Server(mux)
	go func() {
		if err := server.Serve(l); ignoreClosed(err) != nil {
			a.failed <- fmt.Errorf("serve the metrics: %w", err)
		}
	}()
	a.closers = append(a.closers, func(ctx context.Context) error { return ignoreClosed(server.Shutdown(ctx)) })
	return nil
}

// serve starts the edges: REST, console, gateway, sandbox pages, metrics.
func (a *App) serve(ctx context.Context, l net.Listener) error {
	if err := a.firstKey(ctx); err != nil {
		return err
	}
	routing, err := a.routing()
	if err != nil {
		return err
	}
	var dir fs.FS
	if a.cfg.Templates.Dir != "" {
		dir = os.DirFS(a.cfg.Templates.Dir) // it may come to be later
	}
	catalog := templates.New(dir, storedTemplates{a.store})
	a.catalog = catalog
	a.readTemplates(routing)
	o := intake.Options{Store: a.store, Queue: a.queue, Templates: catalog, Routing: routing, Usable: a.usable, Rules: a.rules.Load, Logger: a.log}
	if a.cfg.PublicURL != "" {
		o.Unsubscribe = a.unsubscribeLink
	}
	a.intake = intake.New(o)
	mux, err := a.edges(ctx, catalog)
	if err != nil {
		return err
	}
	if err := a.plan(ctx); err != nil {
		return err
	}
	a.address = local(l.Addr())
	a.server = api.Server(mux)
	a.server.BaseContext = func(net.Listener) context.Context { return context.WithoutCancel(ctx) }
	go func() {
		if err := a.server.Serve(l); ignoreClosed(err) != nil {
			a.failed <- fmt.Errorf("serve the API: %w", err)
		}
	}()
	a.closers = append(a.closers, a.stopServing)
	return nil
}
