package api

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sync/semaphore"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
)

const (
	// requestTimeout bounds reading an ordinary request's body, and answering it.
	requestTimeout = 30 * time.Second
	// streamIdle bounds the silence on a bulk stream.
	streamIdle = 60 * time.Second
)

// call is what is known of the request being answered.
type call struct {
	requestID string
	principal core.Principal
	recipient string // of a recipient's token
	body      []byte
	bodies    *semaphore.Weighted // the room for all bodies
	held      int64               // what this one takes of it
	faults    []intake.Fault      // what decoding found
	w         http.ResponseWriter
	r         *http.Request
}

type callKey struct{}

func callOf(ctx context.Context) *call {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c
	}
	return &call{}
}

// access is who may call an operation: anybody, holders of a key with a scope, or recipients.
type access struct {
	operation string
	scope     string // of a key, "recipient" for a recipient's token, "" for anybody
}

const recipientScope = "recipient"

// operations lists every route with its access; a test holds it and openapi.yaml together.
var operations = map[string]access{
	"POST /v1/notifications":                                {"sendNotification", "send"},
	"GET /v1/notifications":                                 {"listNotifications", "read"},
	"POST /v1/notifications/preview":                        {"previewNotification", "send"},
	"POST /v1/notifications/bulk":                           {"sendBulk", "send"},
	"GET /v1/notifications/{id}":                            {"getNotification", "read"},
	"GET /v1/notifications/{id}/deliveries":                 {"listDeliveries", "read"},
	"GET /v1/notifications/{id}/timeline":                   {"getTimeline", "read"},
	"POST /v1/notifications/{id}/cancel":                    {"cancelNotification", "send"},
	"GET /v1/recipients":                                    {"listRecipients", "read"},
	"PUT /v1/recipients/{id}":                               {"putRecipient", "send"},
	"PATCH /v1/recipients/{id}":                             {"patchRecipient", "send"},
	"GET /v1/recipients/{id}":                               {"getRecipient", "read"},
	"DELETE /v1/recipients/{id}":                            {"deleteRecipient", "send"},
	"PUT /v1/recipients/{id}/endpoints/{kind}/{address}":    {"putEndpoint", "send"},
	"DELETE /v1/recipients/{id}/endpoints/{kind}/{address}": {"deleteEndpoint", "send"},
	"POST /v1/recipients/{id}/token":                        {"mintToken", "send"},
	"GET /v1/recipients/{id}/preferences":                   {"getPreferences", "read"},
	"PUT /v1/recipients/{id}/preferences":                   {"putPreferences", "send"},
	"GET /unsubscribe/{token}":                              {"confirmUnsubscribe", ""},
	"POST /unsubscribe/{token}":                             {"unsubscribe", ""},
	"POST /v1/recipients/import":                            {"importRecipients", "send"},
	"GET /v1/recipients/{id}/export":                        {"exportRecipient", "read"},
	"GET /v1/suppressions":                                  {"listSuppressions", "read"},
	"GET /v1/suppressions/{kind}/{address}":                 {"getSuppression", "read"},
	"DELETE /v1/suppressions/{kind}/{address}":              {"liftSuppression", "admin"},
	"GET /v1/topics/{topic}/recipients":                     {"listTopicRecipients", "read"},
	"PUT /v1/topics/{topic}/recipients/{id}":                {"putTopicRecipient", "send"},
	"DELETE /v1/topics/{topic}/recipients/{id}":             {"deleteTopicRecipient", "send"},
	"POST /v1/token/refresh":                                {"refreshToken", recipientScope},
	"GET /v1/inbox":                                         {"listInbox", recipientScope},
	"GET /v1/inbox/unread":                                  {"countUnread", recipientScope},
	"POST /v1/inbox/{id}/{mark}":                            {"markInbox", recipientScope},
	"GET /v1/templates":                                     {"listTemplates", "read"},
	"PUT /v1/templates/{name}":                              {"putTemplate", "admin"},
	"GET /v1/templates/{name}":                              {"getTemplate", "read"},
	"GET /v1/templates/{name}/versions":                     {"listTemplateVersions", "read"},
	"GET /v1/templates/{name}/versions/{version}":           {"getTemplateVersion", "read"},
	"POST /v1/templates/{name}/preview":                     {"previewTemplate", "read"},
	"POST /v1/campaigns":                                    {"createCampaign", "send"},
	"GET /v1/campaigns":                                     {"listCampaigns", "read"},
	"GET /v1/campaigns/{id}":                                {"getCampaign", "read"},
	"PATCH /v1/campaigns/{id}":                              {"patchCampaign", "send"},
	"POST /v1/campaigns/{id}/{action}":                      {"steerCampaign", "send"},
	"POST /v1/campaigns/{id}/test":                          {"testCampaign", "send"},
	"GET /v1/campaigns/{id}/events":                         {"streamCampaign", "read"},
	"GET /v1/campaigns/{id}/results.csv":                    {"campaignResults", "read"},
	"GET /v1/routes":                                        {"listRoutes", "admin"},
	"POST /v1/routes/reload":                                {"reloadRoutes", "admin"},
	"POST /v1/routes/{name}/{action}":                       {"steerRoute", "admin"},
	"GET /livez":                                            {"live", ""},
	"GET /readyz":                                           {"ready", ""},
	"GET /openapi.yaml":                                     {"", ""},
	"GET /docs":                                             {"", ""},
}

// always are the headers of every answer, under their canonical names. Nobody changes the values, which all answers share: to
// set a header replaces its list.
var always = []struct {
	name  string
	value []string
}{
	{"X-Content-Type-Options", []string{"nosniff"}},
	{"Cache-Control", []string{"no-store"}},
	{"Referrer-Policy", []string{"no-referrer"}},
	{"X-Frame-Options", []string{"DENY"}},
	{"Content-Security-Policy", []string{"default-src 'none'; frame-ancestors 'none'"}},
}

// ServeHTTP names the request, lets in who may, and answers; a panic becomes a 500.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	c := &call{requestID: requestID(r.Header.Get("X-Request-Id")), w: w, r: r, bodies: a.bodies}
	defer func() { c.bodies.Release(c.held) }()
	r = r.WithContext(context.WithValue(r.Context(), callKey{}, c))
	h := w.Header()
	h.Set("X-Request-Id", c.requestID)
	for _, each := range always {
		h[each.name] = each.value
	}
	defer func() {
		if p := recover(); p == any(http.ErrAbortHandler) { //nolint:errorlint // a panic's value is compared, as net/http does
			panic(p)
		} else if p != nil {
			a.fail(w, r, a.panicked(c, p))
		}
		if a.Logger.Enabled(r.Context(), slog.LevelDebug) {
			a.Logger.Debug("request", "request_id", c.requestID, "method", r.Method, "operation", r.Pattern, "took", time.Since(began))
		}
	}()
	next, pattern := a.mux.Handler(r)
	who, ok := operations[pattern]
	if !ok || !IsClean(r.URL) {
		a.failRoute(w, r)
		return
	}
	r.Pattern = pattern
	if !cleanURL(r.URL) {
		a.fail(w, r, refuse(http.StatusBadRequest, "The path and the query must be UTF-8, percent-encoded, without NUL."))
		return
	}
	control := http.NewResponseController(w)
	// Deadlines are a wish: a writer that has none (a test's recorder, a wrapper) serves without.
	_ = control.SetReadDeadline(began.Add(requestTimeout))
	_ = control.SetWriteDeadline(began.Add(2 * requestTimeout))
	defer func() { _ = control.SetWriteDeadline(time.Time{}) }()
	if err := a.authorize(r, c, who.scope); err != nil {
		a.fail(w, r, err)
		return
	}
	if !strings.Contains(pattern, "{") {
		next.ServeHTTP(w, r) // found already; only the mux itself tells what the wildcards of a pattern stand for
		return
	}
	a.mux.ServeHTTP(w, r)
}

// panicked logs a panic, and is the answer to its request. What is not the runtime's own word may hold anything.
func (a *API) panicked(c *call, p any) error {
	what := fmt.Sprintf("%T", p)
	if err, ok := p.(runtime.Error); ok {
		what = err.Error()
	}
	a.Logger.Error("a request panicked", "request_id", c.requestID, "panic", what, "stack", string(debug.Stack()))
	return refuse(http.StatusInternalServerError, "Something went wrong here; the log has it under the request_id.")
}

// IsClean reports whether a path is as a ServeMux would clean it: it leads where it says.
func IsClean(u *url.URL) bool {
	p := u.EscapedPath()
	clean := path.Clean(p)
	return p == clean || p == clean+"/"
}

// cleanURL reports whether what a URL says can be kept as a text.
func cleanURL(u *url.URL) bool {
	query, err := url.QueryUnescape(u.RawQuery)
	text := u.Path + query
	return err == nil && utf8.ValidString(text) && !strings.ContainsRune(text, 0)
}

// later lists what later versions bring, so that it is told from a mistyped path.
var later = []struct{ part, name string }{
	{"/v1/webhooks", "webhooks"}, {"/v1/dead", "dead letters"},
}

// failRoute answers what no operation is: 405 where the path has others, else 404.
func (a *API) failRoute(w http.ResponseWriter, r *http.Request) {
	for _, l := range later {
		if strings.HasPrefix(r.URL.Path, "/v1/") && strings.Contains(r.URL.Path, l.part) {
			a.fail(w, r, refuse(http.StatusNotFound, "This version does not offer "+l.name+" yet."))
			return
		}
	}
	if !IsClean(r.URL) {
		a.fail(w, r, refuse(http.StatusNotFound, "There is nothing at a path with an empty part or with . or .. for one; a name that is one of these is written %2E or %2E%2E."))
		return
	}
	h, _ := a.mux.Handler(r)
	seen := &statusWriter{header: http.Header{}}
	h.ServeHTTP(seen, r)
	if seen.status == http.StatusMethodNotAllowed {
		allow := seen.header.Get("Allow")
		w.Header().Set("Allow", allow)
		a.fail(w, r, refuse(http.StatusMethodNotAllowed, "This path takes "+allow+"."))
		return
	}
	a.fail(w, r, refuse(http.StatusNotFound, "There is nothing at this path; see /docs."))
}

// statusWriter keeps an answer's status and headers and drops the rest.
type statusWriter struct {
	header http.Header
	status int
}

func (w *statusWriter) Header() http.Header         { return w.header }
func (w *statusWriter) WriteHeader(status int)      { w.status = status }
func (w *statusWriter) Write(b []byte) (int, error) { return len(b), nil }

// requestID takes the caller's id of a request if it is harmless in a log, else makes one.
func requestID(given string) string {
	if given == "" || len(given) > 64 {
		return core.NewID(time.Now()).String()
	}
	for _, b := range []byte(given) {
		if b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '-' || b == '_' || b == '.' {
			continue
		}
		return core.NewID(time.Now()).String()
	}
	return given
}
