package console

import (
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// How much one page shows.
const (
	recent      = 10  // notifications, and dead ones, on the overview
	perPage     = 50  // entries of a list
	mostShown   = 200 // deliveries of a notification on one page
	mostSteps   = 500 // steps of a timeline
	mostContent = 20  // distinct contents
	mostBlock   = 16 << 10
)

var pages = template.Must(template.New("").Funcs(template.FuncMap{
	"date":    func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") },
	"moment":  func(t time.Time) string { return t.UTC().Format("15:04:05.000") },
	"iso":     func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) },
	"since":   since,
	"short":   func(id core.ID) string { s := id.String(); return s[len(s)-8:] },
	"mask":    core.MaskAddress,
	"tone":    tone,
	"words":   func(s string) string { return strings.ReplaceAll(s, "_", " ") },
	"version": shortVersion,
	"tab":     newTab,
	"sh":      shellQuote,
}).ParseFS(files, "pages/*.html"))

// tab is an entry of the menu. A page's title begins the name of the entry that it belongs to.
type tab struct {
	Href, Name string
	Here       bool
}

func newTab(p page, href, name string) tab { return tab{href, name, strings.HasPrefix(name, p.Title)} }

// shellQuote makes one word for a shell of any text, as people copy lines from these pages into theirs.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// shortVersion cuts the version of a template from a file, which is the file's hash.
func shortVersion(template string) string {
	name, version, ok := strings.Cut(template, "@")
	if !ok {
		return name
	}
	return name + "@" + version[:min(len(version), 12)]
}

// since is the time between two steps, short.
func since(from, to time.Time) string {
	switch d := to.Sub(from); {
	case d < 0:
		return ""
	case d < time.Second:
		return fmt.Sprintf("+%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("+%.1f s", d.Seconds())
	default:
		return "+" + d.Round(time.Second).String()
	}
}

// tone is the colour of a word: of a state, a status, a circuit or an outcome.
func tone(word string) string {
	switch word {
	case "ok", "closed", "delivered", "seen", "read", "clicked", "sent":
		return "good"
	case "failed", "expired", "down", "open", "rejected", "gone", "denied", "bounced":
		return "bad"
	case "degraded", "paused", "half_open", "unknown", "deferred", "throttled", "held", "late", "absent":
		return "warm"
	}
	return "plain"
}

// part is a number of deliveries in one state.
type part struct {
	State string
	N     int
}

// parts are the counts that are not zero, in the order of a delivery's life.
func parts(c core.Counts) []part {
	var out []part
	for _, p := range []part{{"pending", c.Pending}, {"sent", c.Sent}, {"delivered", c.Delivered}, {"failed", c.Failed},
		{"expired", c.Expired}, {"cancelled", c.Cancelled}, {"suppressed", c.Suppressed}} {
		if p.N > 0 {
			out = append(out, p)
		}
	}
	return out
}

// row is a notification in a list.
type row struct {
	core.NotificationView
	Status core.Status
	Parts  []part
}

func (c *Console) rows(views []core.NotificationView) []row {
	now := c.o.Notifications.Now()
	out := make([]row, len(views))
	for i, v := range views {
		out[i] = row{v, core.StatusOf(&v.Notification, v.Counts, v.Begun, now), parts(v.Counts)}
	}
	return out
}

type overviewBody struct {
	Routes  []Route // nil: not shown to this key
	Recent  []row
	Dead    []core.Delivery
	Base    string
	Example string
}

func (c *Console) overview(w http.ResponseWriter, r *http.Request, s session) {
	ctx := r.Context()
	b := overviewBody{Base: base(r), Example: c.o.Example}
	var err error
	if s.Can("admin") { // routes are of all apps, as in the REST API
		if b.Routes, err = c.o.Routes.Routes(ctx); err != nil {
			c.fail(w, r, s, err)
			return
		}
	}
	views, _, err := c.o.Notifications.Notifications(ctx, core.NotificationFilter{App: s.App, Page: core.Page{Limit: recent}})
	if err == nil {
		b.Recent = c.rows(views)
		b.Dead, _, err = c.o.Notifications.Dead(ctx, core.DeadFilter{App: s.App, Page: core.Page{Limit: recent}})
	}
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	p := s.page("Overview", b)
	p.Refresh = true
	c.page(w, http.StatusOK, "overview.html", p)
}

// base is where the browser found us, for the curl lines.
func base(r *http.Request) string {
	scheme := "http"
	if isTLS(r) {
		scheme = "https"
	}
	return scheme + "://" + r.Host
}

// steer pauses or resumes a route.
func (c *Console) steer(w http.ResponseWriter, r *http.Request, s session) {
	action := r.PathValue("action")
	if action != "pause" && action != "resume" {
		c.fail(w, r, s, core.ErrNotFound)
		return
	}
	if err := c.o.Routes.PauseRoute(r.Context(), r.PathValue("name"), action == "pause"); err != nil {
		c.fail(w, r, s, err)
		return
	}
	http.Redirect(w, r, Root, http.StatusSeeOther)
}

type listBody struct {
	Rows              []row
	Status, Recipient string
	Statuses          []core.Status
	Older             string
}

// cursor checks that a list's cursor is one, as the store's own error is not for people.
func cursor(q url.Values) (core.Page, error) {
	p := core.Page{Cursor: q.Get("cursor"), Limit: perPage}
	if p.Cursor == "" {
		return p, nil
	}
	_, err := core.ParseID(p.Cursor)
	return p, err
}

// older is the address of a list's next page, "" for none.
func older(r *http.Request, next string) string {
	if next == "" {
		return ""
	}
	q := r.URL.Query()
	q.Set("cursor", next)
	return r.URL.Path + "?" + q.Encode()
}

func (c *Console) notifications(w http.ResponseWriter, r *http.Request, s session) {
	q := r.URL.Query()
	b := listBody{Status: q.Get("status"), Recipient: q.Get("recipient"),
		Statuses: []core.Status{core.StatusScheduled, core.StatusAccepted, core.StatusProcessing, core.StatusCompleted, core.StatusCancelled}}
	at, err := cursor(q)
	var campaign core.ID
	if of := q.Get("campaign"); of != "" && err == nil {
		campaign, err = core.ParseID(of)
	}
	var views []core.NotificationView
	var next string
	if err == nil {
		views, next, err = c.o.Notifications.Notifications(r.Context(), core.NotificationFilter{App: s.App, Status: core.Status(b.Status), Recipient: b.Recipient, Campaign: campaign, Page: at})
	}
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	b.Rows, b.Older = c.rows(views), older(r, next)
	p := s.page("Notifications", b)
	p.Refresh = at.Cursor == ""
	c.page(w, http.StatusOK, "notifications.html", p)
}

type deadBody struct {
	Dead        []core.Delivery
	Route, Code string
	Older       string
}

func (c *Console) dead(w http.ResponseWriter, r *http.Request, s session) {
	q := r.URL.Query()
	b := deadBody{Route: q.Get("route"), Code: q.Get("code")}
	at, err := cursor(q)
	var next string
	if err == nil {
		b.Dead, next, err = c.o.Notifications.Dead(r.Context(), core.DeadFilter{App: s.App, Route: b.Route, Code: b.Code, Page: at})
	}
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	b.Older = older(r, next)
	p := s.page("Dead", b)
	p.Refresh = at.Cursor == ""
	c.page(w, http.StatusOK, "dead.html", p)
}

// live connects as a recipient over the WebSocket and shows what arrives, as an app's client would.
func (c *Console) live(w http.ResponseWriter, r *http.Request, s session) {
	if !c.offersLive() {
		c.fail(w, r, s, &problem{http.StatusNotFound, "No live page", "There is no in-app channel here: configure a route of kind websocket."})
		return
	}
	recipient := r.URL.Query().Get("recipient")
	if recipient == "" {
		recipient = "u_42"
	}
	token, err := c.o.Token(s.App, recipient)
	if err != nil {
		c.fail(w, r, s, &problem{http.StatusBadRequest, "Not a recipient's id", "No token could be made for that recipient."})
		return
	}
	c.page(w, http.StatusOK, "live.html", s.page("Live", map[string]string{"Recipient": recipient, "Token": token, "Base": base(r), "Example": example(recipient)}))
}

// example is a request that reaches a recipient's live clients.
func example(recipient string) string {
	id, err := json.Marshal(recipient)
	if err != nil {
		return "" // a string always encodes
	}
	return `{"to":[{"websocket":` + string(id) + `}],"content":{"title":"Hello","body":"To a browser"}}`
}
