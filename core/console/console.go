// Package console is the web console under /console/: a login; pages of the routes, the notifications
// with what became of them, what failed, and whose address is suppressed; a page that shows what arrives
// live; and asynqmon, mounted at /console/queues/ behind the same login. Its pages are rendered here,
// work without JavaScript (the live page apart), run nothing that they show, and ask no other host for
// anything.
package console

import (
	"bytes"
	"context"
	"crypto/cipher"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/hibiken/asynq"
	"github.com/hibiken/asynqmon"

	"github.com/carillon-notify/carillon/core"
)

// Root is where the console is mounted, Queues where asynqmon is.
const (
	Root   = "/console/"
	Queues = "/console/queues"
)

// Notifications is what the pages read of notifications, each of one app, and their cancelling.
type Notifications interface {
	Notification(ctx context.Context, app string, id core.ID) (*core.NotificationView, error)
	Notifications(ctx context.Context, f core.NotificationFilter) ([]core.NotificationView, string, error)
	Deliveries(ctx context.Context, app string, id core.ID, p core.Page) ([]core.Delivery, string, error)
	Timeline(ctx context.Context, app string, id core.ID) ([]core.Step, error)
	Content(ctx context.Context, ref core.ContentRef) (*core.Content, error)
	Dead(ctx context.Context, f core.DeadFilter) ([]core.Delivery, string, error)
	Cancel(ctx context.Context, app string, id core.ID) (int, error)
	Now() time.Time
}

// Route is a route as the console shows it. Texts are as the REST API has them.
type Route struct {
	Name, Kind string
	Channels   []string
	State      string // ok, degraded, down or paused
	Reason     string // why it is not ok, for people
	Circuit    string // closed, open or half_open; "" without one
	Rate       string // such as 1000/s; "" for unlimited
	// Connections: Max 0 where the provider keeps no pool.
	InUse, Idle, Max, Waiting int
	Lanes                     []Lane
}

// Lane is what waits on a lane of a route, in batches.
type Lane struct {
	Name                     string
	Pending, Queued, Sending int
}

// Text says how many batches wait, and where.
func (l Lane) Text() string {
	var out []string
	for _, p := range []struct {
		n    int
		word string
	}{{l.Pending, "pending"}, {l.Queued, "queued"}, {l.Sending, "sending"}} {
		if p.n > 0 {
			out = append(out, fmt.Sprintf("%d %s", p.n, p.word))
		}
	}
	return strings.Join(out, ", ")
}

// Routes shows and steers the routes. PauseRoute of an unknown one is core.ErrNotFound.
type Routes interface {
	Routes(ctx context.Context) ([]Route, error)
	PauseRoute(ctx context.Context, route string, paused bool) error
}

// Options are what a Console works with. All but Campaigns, Token, Live, Example and Logger are required.
type Options struct {
	// Principal says whom the SHA-256 of an API key stands for, asked for a remote address (host:port):
	// core.ErrNotFound if for nobody, core.ErrTooManyFailures if the address has tried too many.
	Principal     func(ctx context.Context, hash [32]byte, remote string) (core.Principal, error)
	Notifications Notifications
	Routes        Routes
	Campaigns     Campaigns // nil: the page is not offered
	Suppressions  Suppressions
	// Secret seals sessions; at least 32 bytes. With another secret all sessions end.
	Secret []byte
	// Redis is what asynqmon looks at.
	Redis asynq.RedisConnOpt
	// Sandbox says that the sandbox's pages are there to be linked.
	Sandbox bool
	// Example is the body of a POST /v1/notifications that works here, for the curl lines; "" for none.
	Example string
	// Token makes a WebSocket token for the live page; nil: the page is not offered.
	Token func(app, recipient string) (string, error)
	// Live reports whether there is an in-app channel now, without which the page is not offered; nil: there is one.
	Live   func() bool
	Logger *slog.Logger // nil: slog.Default()
}

// Console serves the pages. Close ends its connections to Redis.
type Console struct {
	o       Options
	seal    cipher.AEAD
	handler http.Handler
	queues  [2]*asynqmon.HTTPHandler // 0: to look at, 1: for admins
}

//go:embed pages static
var files embed.FS

// New returns a Console. The error names what is missing in the options.
func New(o Options) (*Console, error) {
	if o.Principal == nil || o.Notifications == nil || o.Routes == nil || o.Suppressions == nil || o.Redis == nil {
		return nil, errors.New("console: Principal, Notifications, Routes, Suppressions and Redis are required")
	}
	if len(o.Secret) < 32 {
		return nil, errors.New("console: the secret must have at least 32 bytes")
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	seal, err := newSeal(o.Secret)
	if err != nil {
		return nil, fmt.Errorf("console: make the seal of sessions: %w", err)
	}
	c := &Console{o: o, seal: seal}
	for i := range c.queues {
		c.queues[i] = asynqmon.New(asynqmon.Options{RootPath: Queues, RedisConnOpt: o.Redis, ReadOnly: i == 0,
			PayloadFormatter: asynqmon.PayloadFormatterFunc(formatPayload), ResultFormatter: asynqmon.ResultFormatterFunc(formatResult)})
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /console/login", c.loginPage)
	mux.HandleFunc("POST /console/login", c.login)
	mux.HandleFunc("POST /console/logout", c.logout)
	for _, name := range []string{"style.css", "console.js", "live.js", "icon.svg"} {
		mux.HandleFunc("GET /console/static/"+name, func(w http.ResponseWriter, r *http.Request) {
			http.ServeFileFS(w, r, files, "static/"+name)
		})
	}
	mux.Handle("GET /console/{$}", c.member("read", c.overview))
	mux.Handle("GET /console/notifications", c.member("read", c.notifications))
	mux.Handle("GET /console/notifications/{id}", c.member("read", c.notification))
	mux.Handle("POST /console/notifications/{id}/cancel", c.member("send", c.cancel))
	if o.Campaigns != nil {
		mux.Handle("GET /console/campaigns", c.member("read", c.campaigns))
		mux.Handle("POST /console/campaigns/{id}/{action}", c.member("send", c.steerCampaign))
	}
	mux.Handle("GET /console/dead", c.member("read", c.dead))
	mux.Handle("GET /console/suppressions", c.member("read", c.suppressions))
	mux.Handle("POST /console/suppressions", c.member("read", c.findSuppression))
	mux.Handle("POST /console/suppressions/lift", c.member("admin", c.liftSuppression))
	mux.Handle("POST /console/routes/{name}/{action}", c.member("admin", c.steer))
	mux.Handle("GET /console/live", c.member("send", c.live))
	mux.Handle(Queues, http.RedirectHandler(Queues+"/", http.StatusMovedPermanently))
	mux.Handle(Queues+"/", c.member("read", c.asynqmon))
	mux.Handle("GET /console", http.RedirectHandler(Root, http.StatusMovedPermanently))
	mux.Handle("/", c.member("read", func(w http.ResponseWriter, r *http.Request, s session) { c.fail(w, r, s, core.ErrNotFound) }))
	// SameSite=Strict keeps other sites' requests from being signed in; this refuses them besides.
	c.handler = http.NewCrossOriginProtection().Handler(headers(mux))
	return c, nil
}

// ServeHTTP implements http.Handler.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) { c.handler.ServeHTTP(w, r) }

// Icon serves the icon of all pages, for /favicon.ico. It asks for no login.
func Icon(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "max-age=86400")
	http.ServeFileFS(w, r, files, "static/icon.svg")
}

// Close ends asynqmon's connections.
func (c *Console) Close() error {
	var errs []error
	for _, q := range c.queues {
		errs = append(errs, q.Close())
	}
	return errors.Join(errs...)
}

func headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
		next.ServeHTTP(w, r)
	})
}

// page is what every page is rendered from.
type page struct {
	Title   string
	App     string // "" before the login
	Admin   bool
	Send    bool
	Sandbox bool
	Live    bool
	Many    bool // campaigns are offered
	Refresh bool // the page keeps itself up to date
	Body    any
}

// page renders a page as a whole before any of it is sent, so that what fails is told as a failure.
func (c *Console) page(w http.ResponseWriter, status int, name string, p page) {
	p.Sandbox, p.Live, p.Many = c.o.Sandbox, c.offersLive(), c.o.Campaigns != nil
	var text bytes.Buffer
	if err := pages.ExecuteTemplate(&text, name, p); err != nil {
		c.o.Logger.Error("a page of the console could not be rendered", "page", name, "error", err)
		http.Error(w, "The page could not be made; the log says why.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	w.Write(text.Bytes())
}

// offersLive reports whether there is a live page now: a reload of the settings brings it and takes it away.
func (c *Console) offersLive() bool { return c.o.Token != nil && (c.o.Live == nil || c.o.Live()) }

func (s session) page(title string, body any) page {
	return page{Title: title, App: s.App, Admin: s.Can("admin"), Send: s.Can("send"), Body: body}
}

// problem is an error that is told to the user as it is.
type problem struct {
	status       int
	title, about string
}

func (p *problem) Error() string { return p.about }

// fail tells what went wrong, and logs what is not the user's doing.
func (c *Console) fail(w http.ResponseWriter, r *http.Request, s session, err error) {
	var p *problem
	switch {
	case errors.As(err, &p):
	case errors.Is(err, core.ErrNotFound), errors.Is(err, core.ErrBadID):
		p = &problem{http.StatusNotFound, "Not found", "There is nothing here, or nothing that this key may see. What is older than the retention is removed."}
	default:
		p = &problem{http.StatusServiceUnavailable, "Not available", "The store could not be asked now. Try again in a moment."}
		if r.Context().Err() == nil {
			c.o.Logger.Warn("a page of the console could not be read", "page", r.Pattern, "error", err)
		}
	}
	c.page(w, p.status, "error.html", s.page(p.title, p.about))
}
