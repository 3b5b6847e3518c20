// Package console is the web console under /console/: a login, a home page, a page that shows what
// arrives live, and asynqmon mounted inside it at /console/queues/, behind the same login.
package console

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
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

const (
	cookieName   = "carillon_session"
	sessionSpan  = 12 * time.Hour
	maxLoginBody = 4 << 10
)

// Options are what a Console works with.
type Options struct {
	// Login finds out whose API key it is; core.ErrNotFound if nobody's.
	Login func(ctx context.Context, key string) (core.Principal, error)
	// Secret signs sessions; at least 32 bytes. With another secret all sessions end.
	Secret []byte
	// Redis is what asynqmon looks at.
	Redis asynq.RedisConnOpt
	// Sandbox says that the sandbox's pages are there to be linked.
	Sandbox bool
	// Token makes a WebSocket token for the live page; nil: the page is not offered.
	Token func(app, recipient string) (string, error)
}

// Console serves the pages. Close ends its connections to Redis.
type Console struct {
	o       Options
	handler http.Handler
	queues  [2]*asynqmon.HTTPHandler // 0: to look at, 1: for admins
}

//go:embed pages/*.html pages/*.js pages/*.css
var files embed.FS

var pages = template.Must(template.ParseFS(files, "pages/*.html"))

// New returns a Console.
func New(o Options) (*Console, error) {
	if len(o.Secret) < 32 {
		return nil, errors.New("the console's secret must have at least 32 bytes")
	}
	c := &Console{o: o}
	for i := range c.queues {
		c.queues[i] = asynqmon.New(asynqmon.Options{RootPath: Queues, RedisConnOpt: o.Redis, ReadOnly: i == 0,
			PayloadFormatter: asynqmon.PayloadFormatterFunc(formatPayload)})
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /console/login", c.loginPage)
	mux.HandleFunc("POST /console/login", c.login)
	mux.HandleFunc("POST /console/logout", c.logout)
	mux.HandleFunc("GET /console/static/{file}", static)
	mux.Handle("GET /console/{$}", c.member(c.home))
	mux.Handle("GET /console/live", c.member(c.live))
	mux.Handle(Queues, http.RedirectHandler(Queues+"/", http.StatusMovedPermanently))
	mux.Handle(Queues+"/", c.member(c.asynqmon))
	mux.Handle("GET /console", http.RedirectHandler(Root, http.StatusMovedPermanently))
	// SameSite=Strict keeps other sites' requests from being signed in; this refuses them besides.
	c.handler = http.NewCrossOriginProtection().Handler(headers(mux))
	return c, nil
}

// ServeHTTP implements http.Handler.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) { c.handler.ServeHTTP(w, r) }

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
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
		next.ServeHTTP(w, r)
	})
}

func static(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("file")
	if strings.HasSuffix(name, ".html") {
		http.NotFound(w, r)
		return
	}
	http.ServeFileFS(w, r, files, "pages/"+name)
}

// session is who is logged in, as the cookie holds it.
type session struct {
	App     string    `json:"a"`
	Scopes  []string  `json:"s"`
	Expires time.Time `json:"e"`
}

// member lets in who is logged in and may read, and sends everybody else to the login.
func (c *Console) member(next func(http.ResponseWriter, *http.Request, session)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, ok := c.session(r)
		if !ok {
			if r.Method != http.MethodGet || strings.HasPrefix(r.URL.Path, Queues+"/api/") {
				http.Error(w, "log in at /console/login first", http.StatusUnauthorized)
				return
			}
			http.Redirect(w, r, "/console/login", http.StatusSeeOther)
			return
		}
		next(w, r, s)
	})
}

func (c *Console) session(r *http.Request) (session, bool) {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return session{}, false
	}
	body, mac, ok := strings.Cut(cookie.Value, ".")
	if !ok || !hmac.Equal([]byte(mac), []byte(c.sign(body))) {
		return session{}, false
	}
	text, err := base64.RawURLEncoding.DecodeString(body)
	var s session
	if err != nil || json.Unmarshal(text, &s) != nil || time.Now().After(s.Expires) {
		return session{}, false
	}
	return s, true
}

func (c *Console) sign(body string) string {
	mac := hmac.New(sha256.New, c.o.Secret)
	mac.Write([]byte("console\x00" + body))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func (c *Console) loginPage(w http.ResponseWriter, r *http.Request) { c.page(w, "login.html", nil) }

// login takes an API key with the scope read or admin as the password.
func (c *Console) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxLoginBody)
	p, err := c.o.Login(r.Context(), strings.TrimSpace(r.PostFormValue("key")))
	switch {
	case errors.Is(err, core.ErrNotFound) || err == nil && !p.Can("read"):
		w.WriteHeader(http.StatusUnauthorized)
		c.page(w, "login.html", map[string]string{"Error": "That is no API key that may read. The first key is printed when Carillon starts, and kept in <data>/api-key."})
		return
	case err != nil:
		http.Error(w, "the store cannot be asked now; try again in a moment", http.StatusServiceUnavailable)
		return
	}
	text, err := json.Marshal(session{App: p.App, Scopes: p.Scopes, Expires: time.Now().Add(sessionSpan)})
	if err != nil {
		http.Error(w, "the session could not be made", http.StatusInternalServerError)
		return
	}
	body := base64.RawURLEncoding.EncodeToString(text)
	http.SetCookie(w, &http.Cookie{Name: cookieName, Value: body + "." + c.sign(body), Path: "/console", HttpOnly: true,
		SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil, MaxAge: int(sessionSpan.Seconds())})
	http.Redirect(w, r, Root, http.StatusSeeOther)
}

func (c *Console) logout(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/console", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteStrictMode})
	http.Redirect(w, r, "/console/login", http.StatusSeeOther)
}

func (c *Console) home(w http.ResponseWriter, r *http.Request, s session) {
	c.page(w, "home.html", map[string]any{"App": s.App, "Sandbox": c.o.Sandbox, "Live": c.o.Token != nil})
}

// live connects as a recipient over the WebSocket and shows what arrives, as an app's client would.
func (c *Console) live(w http.ResponseWriter, r *http.Request, s session) {
	if c.o.Token == nil {
		http.NotFound(w, r)
		return
	}
	if !(core.Principal{Scopes: s.Scopes}).Can("send") {
		http.Error(w, "an API key with the scope send may see what recipients get", http.StatusForbidden)
		return
	}
	recipient := r.URL.Query().Get("recipient")
	if recipient == "" {
		recipient = "u_42"
	}
	token, err := c.o.Token(s.App, recipient)
	if err != nil {
		http.Error(w, "not a recipient's id", http.StatusBadRequest)
		return
	}
	c.page(w, "live.html", map[string]string{"Recipient": recipient, "Token": token})
}

func (c *Console) page(w http.ResponseWriter, name string, data any) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	// An error here is the client's having gone; the templates are executed in tests.
	_ = pages.ExecuteTemplate(w, name, data)
}

// asynqmon serves asynqmon, for admins with its buttons. It has no login of its own, its page holds
// inline scripts, and it asks for web fonts, which are taken out: the console asks nobody else.
func (c *Console) asynqmon(w http.ResponseWriter, r *http.Request, s session) {
	w.Header().Set("Content-Security-Policy", "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; connect-src 'self'; manifest-src 'self'; frame-ancestors 'none'; base-uri 'none'")
	h := c.queues[0]
	if (core.Principal{Scopes: s.Scopes}).Can("admin") {
		h = c.queues[1]
	}
	if strings.HasPrefix(r.URL.Path, Queues+"/api/") || strings.HasPrefix(r.URL.Path, Queues+"/static/") {
		h.ServeHTTP(w, r)
		return
	}
	h.ServeHTTP(&withoutFonts{ResponseWriter: w}, r)
}

// withoutFonts takes the links to web fonts out of asynqmon's page, which it writes piece by piece.
type withoutFonts struct{ http.ResponseWriter }

func (w *withoutFonts) Write(b []byte) (int, error) {
	text := string(b)
	for _, link := range []string{
		`<link rel="stylesheet" href="https://fonts.googleapis.com/css?family=Roboto:300,400,500,700&display=swap"/>`,
		`<link rel="stylesheet" href="https://fonts.googleapis.com/icon?family=Material+Icons"/>`,
	} {
		text = strings.Replace(text, link, "", 1)
	}
	if _, err := w.ResponseWriter.Write([]byte(text)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// formatPayload shows a wake's ids, and nothing of a payload that is not a wake.
func formatPayload(_ string, payload []byte) string {
	var wake struct {
		Batch core.ID `json:"b"`
		Fence int64   `json:"f"`
	}
	if json.Unmarshal(payload, &wake) != nil || wake.Batch.IsZero() {
		return "(not a wake of Carillon's)"
	}
	return fmt.Sprintf("batch %s, fence %d", wake.Batch, wake.Fence)
}

// NewSecret returns a fresh secret for Options.Secret.
func NewSecret() []byte {
	b := make([]byte, 32)
	rand.Read(b)
	return b
}
