package sandbox

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

//go:embed web
var web embed.FS

var pages = template.Must(template.ParseFS(web, "web/page.html"))

const (
	pageLimit   = 100
	listLimit   = 200
	maxScript   = 64 << 10
	contentRule = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

// Handler serves what arrived: as JSON below /v1/sandbox/, and as pages below /sandbox/. It asks nobody
// who they are; that is up to whoever mounts it.
//
//	GET    /v1/sandbox/messages          newest first; ?service= &id= &address= &limit= (to 200) &cursor=
//	GET    /v1/sandbox/counts            the services' figures, and the seed
//	GET    /v1/sandbox/script/{service}  the present script
//	PUT    /v1/sandbox/script/{service}  another one; what is left out is as in the zero Script
//	DELETE /v1/sandbox/messages          forget what arrived, and begin the figures anew
func (s *Sandbox) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/sandbox/messages", s.listMessages)
	mux.HandleFunc("DELETE /v1/sandbox/messages", func(w http.ResponseWriter, _ *http.Request) {
		s.Reset()
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /v1/sandbox/counts", s.showCounts)
	mux.HandleFunc("GET /v1/sandbox/script/{service}", s.showScript)
	mux.HandleFunc("PUT /v1/sandbox/script/{service}", s.putScript)
	mux.HandleFunc("GET /sandbox/{$}", s.showList)
	mux.HandleFunc("GET /sandbox/messages/{seq}", s.showMessage)
	mux.HandleFunc("GET /sandbox/sandbox.css", asset("web/sandbox.css", "text/css; charset=utf-8"))
	mux.HandleFunc("GET /sandbox/icon.svg", asset("web/icon.svg", "image/svg+xml"))
	mux.HandleFunc("GET /sandbox/sandbox.js", asset("web/sandbox.js", "text/javascript; charset=utf-8"))
	// Another site's page must not script or empty the sandbox through somebody's browser.
	safe := http.NewCrossOriginProtection().Handler(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentRule)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		safe.ServeHTTP(w, r)
	})
}

func asset(name, kind string) http.HandlerFunc {
	data, err := web.ReadFile(name)
	if err != nil {
		panic(err) // embedded: cannot fail
	}
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		w.Write(data) //nolint:errcheck // the client is gone then
	}
}

// problem answers with RFC 9457's document.
func problem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{ //nolint:errcheck // the client is gone then
		"type": "about:blank", "title": http.StatusText(status), "status": status, "detail": detail,
	})
}

func answerJSON(w http.ResponseWriter, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		problem(w, http.StatusInternalServerError, "the answer could not be encoded")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(data) //nolint:errcheck // the client is gone then
}

// filterOf reads a filter from a query.
func filterOf(q url.Values, limit int) (Filter, error) {
	f := Filter{Service: Service(q.Get("service")), ID: q.Get("id"), Address: q.Get("address"), Limit: limit}
	if f.Service != "" && f.Service != APNs && f.Service != FCM && f.Service != SMTP {
		return f, fmt.Errorf("service must be apns, fcm or smtp")
	}
	if text := q.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > listLimit {
			return f, fmt.Errorf("limit must be a number from 1 to %d", listLimit)
		}
		f.Limit = n
	}
	if text := q.Get("cursor"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil || n == 0 {
			return f, fmt.Errorf("cursor is not one that was given out")
		}
		f.Before = n
	}
	return f, nil
}

// list returns a page of messages, the newest first, and the cursor of the next page or "".
func (s *Sandbox) list(f Filter) ([]Message, string) {
	limit := f.Limit
	f.Limit++ // one more tells whether there is another page
	m := s.Messages(f)
	for i, j := 0, len(m)-1; i < j; i, j = i+1, j-1 {
		m[i], m[j] = m[j], m[i]
	}
	if len(m) <= limit {
		return m, ""
	}
	return m[:limit], strconv.FormatUint(m[limit-1].Seq, 10)
}

func (s *Sandbox) listMessages(w http.ResponseWriter, r *http.Request) {
	f, err := filterOf(r.URL.Query(), pageLimit)
	if err != nil {
		problem(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	m, next := s.list(f)
	if m == nil {
		m = []Message{}
	}
	answerJSON(w, map[string]any{"data": m, "next_cursor": next})
}

func (s *Sandbox) showCounts(w http.ResponseWriter, _ *http.Request) {
	answerJSON(w, map[string]any{
		"seed": strconv.FormatUint(s.seed, 10), // a string: JSON's readers lose the digits of large numbers
		"apns": s.Counts(APNs), "fcm": s.Counts(FCM), "smtp": s.Counts(SMTP),
	})
}

func (s *Sandbox) showScript(w http.ResponseWriter, r *http.Request) {
	p := s.plans[Service(r.PathValue("service"))]
	if p == nil {
		problem(w, http.StatusNotFound, "the services are apns, fcm and smtp")
		return
	}
	answerJSON(w, p.Load().Script)
}

func (s *Sandbox) putScript(w http.ResponseWriter, r *http.Request) {
	service := Service(r.PathValue("service"))
	at := s.plans[service]
	if at == nil {
		problem(w, http.StatusNotFound, "the services are apns, fcm and smtp")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxScript))
	if err != nil {
		problem(w, http.StatusRequestEntityTooLarge, "a script has at most 64 KiB")
		return
	}
	var script Script
	if err := json.Unmarshal(body, &script); err != nil {
		problem(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	script.DeadAddress = at.Load().DeadAddress // a function: not in JSON, so it stays
	if err := s.Script(service, script); err != nil {
		problem(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	answerJSON(w, at.Load().Script)
}

type serviceView struct {
	Service Service
	Label   string
	Counts
}

func (s *Sandbox) showList(w http.ResponseWriter, r *http.Request) {
	f, err := filterOf(r.URL.Query(), pageLimit)
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	services := []serviceView{
		{APNs, "APNs", s.Counts(APNs)}, {FCM, "FCM", s.Counts(FCM)}, {SMTP, "Mail", s.Counts(SMTP)},
	}
	tag := fmt.Sprintf(`"%d-%d"`, s.seed, s.ledger.resets.Load())
	for _, v := range services {
		tag = fmt.Sprintf(`%s-%d-%d-%d"`, tag[:len(tag)-1], v.Requests, v.Taken, v.Conns)
	}
	w.Header().Set("ETag", tag)
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	messages, next := s.list(f)
	older := ""
	if next != "" {
		older = "/sandbox/?" + url.Values{"service": {string(f.Service)}, "id": {f.ID}, "address": {f.Address}, "cursor": {next}}.Encode()
	}
	render(w, "list", map[string]any{"Services": services, "Filter": f, "Messages": messages, "Older": older, "Home": s.options.Home})
}

func (s *Sandbox) showMessage(w http.ResponseWriter, r *http.Request) {
	seq, err := strconv.ParseUint(r.PathValue("seq"), 10, 64)
	var found []Message
	if err == nil && seq > 0 && seq < 1<<63 {
		found = s.Messages(Filter{After: seq - 1, Before: seq + 1})
	}
	if len(found) == 0 {
		http.Error(w, "There is no such message, or it is forgotten by now.", http.StatusNotFound)
		return
	}
	m, payload := found[0], ""
	var mail []Part
	if m.Service == SMTP {
		mail = MailParts(m.Content)
	} else {
		var pretty bytes.Buffer
		if payload = m.Content; json.Indent(&pretty, []byte(payload), "", "  ") == nil {
			payload = pretty.String()
		}
	}
	render(w, "message", map[string]any{"Message": m, "Parts": mail, "Payload": payload, "Home": s.options.Home})
}

func render(w http.ResponseWriter, name string, v any) {
	var page bytes.Buffer
	if err := pages.ExecuteTemplate(&page, name, v); err != nil {
		http.Error(w, "The page could not be made.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Write(page.Bytes()) //nolint:errcheck // the client is gone then
}
