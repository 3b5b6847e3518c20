package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/api"
	"github.com/carillon-notify/carillon/core/intake"
	"github.com/carillon-notify/carillon/templates"
)

const simple = `{"to":[{"email":"ann@example.com"}],"content":{"title":"Hi","body":"Text"}}`

// TestDocumentAndRoutes holds openapi.yaml and the routes together: every operation is routed, asks for
// the credentials that the document names, and nothing is routed beside them.
func TestDocumentAndRoutes(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	documented := map[string]string{}
	doc := loadDocument(t)
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			scope, _ := op.Extensions["x-scope"].(string)
			if op.Security != nil && len(*op.Security) > 0 {
				scope = "recipient"
			}
			documented[method+" "+path] = scope
			place := strings.NewReplacer("{", "", "}", "").Replace(path)
			if got := r.do(method, place, "", "").status; (got == http.StatusUnauthorized) != (scope != "") {
				t.Errorf("%s %s without a key = %d, its scope is %q", method, path, got, scope)
			}
		}
	}
	routed := map[string]string{}
	for pattern, scope := range api.Operations {
		if pattern != "GET /openapi.yaml" && pattern != "GET /docs" {
			routed[pattern] = scope
		}
	}
	if d := cmp.Diff(documented, routed); d != "" {
		t.Errorf("document and routes differ (-document +routes):\n%s", d)
	}
	r.must(http.StatusOK, "GET", "/openapi.yaml", "", "")
	page := html.UnescapeString(string(r.must(http.StatusOK, "GET", "/docs", "", "").body))
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			if line := "<code>" + method + "</code> " + op.Summary + scoped(documented[method+" "+path]); op.Summary == "" || !strings.Contains(page, line) || !strings.Contains(page, "<code>"+path+"</code>") {
				t.Errorf("/docs lacks %s of %s: %q", method, path, line)
			}
		}
	}
	for _, outside := range []string{"src=", "@import", "<link"} {
		if strings.Contains(page, outside) {
			t.Errorf("/docs loads something: it has %q", outside)
		}
	}
}

// scoped is how the page shows a scope.
func scoped(scope string) string {
	if scope == "" {
		return "</div>"
	}
	return " (" + scope + ")</div>"
}

func TestNotificationLife(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	a := r.must(202, "POST", "/v1/notifications", sendKey, `{"to":[{"email":"ann@example.com"},{"recipient":"nobody"}],"content":{"title":"Hi","body":"T"},"delay":"10m","metadata":{"k":1}}`)
	var got api.Accepted
	a.into(t, &got)
	at := "/v1/notifications/" + got.Id
	if a.header.Get("Location") != at || got.Status != "scheduled" || got.Deliveries != 1 || len(got.Skipped) == 0 {
		t.Errorf("accepted %+v at %q", got, a.header.Get("Location"))
	}
	var n api.Notification
	r.must(200, "GET", at, readKey, "").into(t, &n)
	if n.Counts.Pending != 1 || string(n.Metadata) != `{"k":1}` {
		t.Errorf("notification %+v", n)
	}
	var ds api.DeliveryList
	r.must(200, "GET", at+"/deliveries", readKey, "").into(t, &ds)
	if len(ds.Data) != 1 || ds.Data[0].Address != "a***@example.com" {
		t.Errorf("deliveries %+v: the address is to be masked", ds.Data)
	}
	var steps api.Timeline
	r.must(200, "GET", at+"/timeline", readKey, "").into(t, &steps)
	if len(steps.Data) == 0 || steps.Data[0].Step != core.StepAccepted {
		t.Errorf("timeline %+v", steps)
	}
	var list api.NotificationList
	r.must(200, "GET", "/v1/notifications?status=scheduled&limit=5", readKey, "").into(t, &list)
	if len(list.Data) != 1 {
		t.Errorf("list %+v", list)
	}
	var c api.Cancelled
	r.must(200, "POST", at+"/cancel", sendKey, "").into(t, &c)
	if c.Cancelled != 1 {
		t.Errorf("cancelled %+v", c)
	}
	for _, path := range []string{at, at + "/deliveries", at + "/timeline"} {
		r.must(404, "GET", path, otherKey, "")
	}
	r.must(404, "POST", at+"/cancel", otherKey, "")
	var p api.Preview
	r.must(200, "POST", "/v1/notifications/preview", sendKey, simple).into(t, &p)
	if len(p.Decisions) == 0 || len(p.Contents) != 1 || strings.Contains(p.Decisions[0].Address, "ann@") {
		t.Errorf("preview %+v", p)
	}
}

func TestBadBodies(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	with := func(members string) string { return strings.TrimSuffix(simple, "}") + "," + members + "}" }
	cases := map[string]struct {
		body   string
		status int
		faults map[string]string // nil: not looked at
	}{
		"empty":            {" ", 400, nil},
		"malformed":        {`{"to":[`, 400, nil},
		"trailing":         {simple + "{}", 400, nil},
		"no object":        {`[1]`, 422, map[string]string{"": "invalid"}},
		"null":             {`null`, 422, map[string]string{"": "invalid"}},
		"deep":             {with(`"data":` + strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100)), 400, nil},
		"1 MB":             {with(`"metadata":{"a":"` + strings.Repeat("x", 1<<20) + `"}`), 413, nil},
		"over 8 MB":        {with(`"metadata":{"a":"` + strings.Repeat("x", 9<<20) + `"}`), 413, nil},
		"broken UTF-8":     {with("\"category\":\"\xff\""), 400, nil},
		"NUL":              {with(`"category":"a\u0000"`), 422, map[string]string{"/category": "invalid"}},
		"NUL in content":   {`{"to":[{"email":"a@example.com"}],"content":{"title":"a\u0000"}}`, 422, map[string]string{"/content/title": "invalid"}},
		"twice":            {with(`"category":"a","category":"b"`), 422, map[string]string{"/category": "duplicate_field"}},
		"twice inside":     {with(`"metadata":{"a":1,"a":2}`), 422, map[string]string{"/metadata/a": "duplicate_field"}},
		"unknown":          {with(`"colour":1`), 422, map[string]string{"/colour": "unknown_field"}},
		"wrong case":       {with(`"TTL":"1h"`), 422, map[string]string{"/TTL": "unknown_field"}},
		"several":          {`{"to":[{"email":5},{"emial":"x"}],"ttl":3,"priority":"top","x":1,"content":{"title":"t"}}`, 422, map[string]string{"/to/0/email": "invalid", "/to/1/emial": "unknown_field", "/ttl": "invalid", "/priority": "invalid", "/x": "unknown_field"}},
		"form and address": {`{"to":[{"email":"no address"}],"ttl":"0s","content":{"title":"t"}}`, 422, map[string]string{"/to/0/email": "invalid", "/ttl": "range"}},
		"unknown route":    {`{"to":[{"kind":"email","address":"a@example.com","route":"none"}],"content":{"title":"t"}}`, 422, map[string]string{"/to/0/route": "unknown"}},
		"no to":            {`{"content":{"title":"t"}}`, 422, map[string]string{"/to": "required"}},
		"two in one":       {`{"to":[{"email":"a@example.com","apns":"00"}],"content":{"title":"t"}}`, 422, map[string]string{"/to/0": "invalid"}},
		"bad duration":     {with(`"delay":"soon"`), 422, map[string]string{"/delay": "invalid"}},
		"ttl zero":         {with(`"ttl":"0s"`), 422, map[string]string{"/ttl": "range"}},
		"past":             {with(`"send_at":"2001-01-01T00:00:00Z"`), 422, map[string]string{"/send_at": "range"}},
		"past of all":      {with(`"send_at":"0001-01-01T00:00:00Z"`), 422, map[string]string{"/send_at": "range"}},
		"past and delay":   {with(`"send_at":"0001-01-01T01:00:00+01:00","delay":"1h"`), 422, map[string]string{"/send_at": "range", "/delay": "conflict"}},
		"bad time":         {with(`"send_at":"tomorrow"`), 422, map[string]string{"/send_at": "invalid"}},
		"fallback":         {with(`"mode":"fallback","fallback_after":"soon"`), 422, map[string]string{"/fallback_after": "invalid"}},
		"topic and more": {`{"to":[{"topic":"vip","recipient":"u1"},{"topic":"a\nb"},{"topic":"vip","route":"email"}],"content":{"title":"t"}}`, 422,
			map[string]string{"/to/0": "invalid", "/to/1/topic": "invalid", "/to/2/route": "conflict"}},
		"topic with data": {`{"to":[{"topic":"vip","data":{"a":1}}],"content":{"title":"t"}}`, 422, map[string]string{"/to/0/data": "conflict"}},
		"token path":      {`{"to":[{"apns":"00/../11"}],"content":{"title":"t"}}`, 422, map[string]string{"/to/0/apns": "invalid"}},
		"header in to":    {`{"to":[{"email":"a@example.com\r\nBcc: b@example.com"}],"content":{"title":"t"}}`, 422, map[string]string{"/to/0/email": "invalid"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := r.do("POST", "/v1/notifications", sendKey, c.body)
			if a.status != c.status {
				t.Fatalf("= %d %.300s, want %d", a.status, a.body, c.status)
			}
			for _, leak := range []string{"Go value", "api.", "json:", "main."} {
				if strings.Contains(string(a.body), leak) {
					t.Errorf("the answer shows the inside: %s", a.body)
				}
			}
			if c.faults == nil {
				return
			}
			if d := cmp.Diff(c.faults, a.faults(t)); d != "" {
				t.Errorf("faults (-want +got):\n%s\n%s", d, a.body)
			}
		})
	}
	var list api.NotificationList
	r.must(200, "GET", "/v1/notifications", readKey, "").into(t, &list)
	if len(list.Data) != 0 {
		t.Errorf("%d notifications were taken from bad requests", len(list.Data))
	}
	r.must(415, "POST", "/v1/notifications", sendKey, simple, "Content-Type", "text/plain")
	big := `{"to":[{"email":"a@example.com"}],"content":{"title":"t","email":{"attachments":[{"filename":"f","content_type":"text/plain","content":"` + strings.Repeat("QUFB", 100_000) + `"}]}}}`
	r.must(202, "POST", "/v1/notifications", sendKey, big)
}

func TestIdempotency(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	var mu sync.Mutex
	ids := map[string]bool{}
	var done sync.WaitGroup
	for range 100 {
		done.Go(func() {
			a := r.do("POST", "/v1/notifications", sendKey, simple, "Idempotency-Key", "k")
			mu.Lock()
			defer mu.Unlock()
			switch a.status {
			case 202:
				var got api.Accepted
				if err := json.Unmarshal(a.body, &got); err == nil {
					ids[got.Id] = true
				}
			case 409:
				if a.header.Get("Retry-After") != "1" {
					t.Error("a 409 without Retry-After")
				}
			default:
				t.Errorf("= %d %s", a.status, a.body)
			}
		})
	}
	done.Wait()
	if len(ids) != 1 {
		t.Errorf("a hundred requests with one key gave %d notifications", len(ids))
	}
	if a := r.must(202, "POST", "/v1/notifications", sendKey, simple, "Idempotency-Key", "k"); a.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("a replay says %q", a.header.Get("Idempotency-Replayed"))
	}
	if a := r.must(202, "POST", "/v1/notifications", sendKey, simple); a.header.Values("Idempotency-Replayed") != nil {
		t.Errorf("a first answer has Idempotency-Replayed: %q", a.header.Values("Idempotency-Replayed"))
	}
	r.must(422, "POST", "/v1/notifications", sendKey, strings.Replace(simple, "Hi", "Ho", 1), "Idempotency-Key", "k")
	r.must(422, "POST", "/v1/notifications", sendKey, simple, "Idempotency-Key", strings.Repeat("k", 256))
	for _, path := range []string{"/v1/notifications", "/v1/notifications/bulk", "/v1/campaigns"} { // of whose variable nothing came
		media := map[bool]string{true: "application/x-ndjson", false: "application/json"}[strings.HasSuffix(path, "bulk")]
		if got := r.must(422, "POST", path, sendKey, simple, "Idempotency-Key", "", "Content-Type", media).faults(t); got["/Idempotency-Key"] != "range" {
			t.Errorf("%s with an empty key: %v", path, got)
		}
	}
}

func TestAuth(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.must(403, "GET", "/v1/notifications", sendKey, "")
	r.must(403, "POST", "/v1/notifications", readKey, simple)
	r.must(403, "GET", "/v1/routes", sendKey, "")
	r.must(401, "GET", "/v1/inbox", sendKey, "")
	r.must(401, "GET", "/v1/notifications", "jwt.a.u", "")
	if a := r.must(401, "POST", "/v1/notifications", "", "{"); a.header.Get("WWW-Authenticate") == "" {
		t.Error("a 401 without WWW-Authenticate")
	}
	r.must(200, "GET", "/v1/notifications", readKey, "")
	status := 0
	for range 40 {
		status = r.do("GET", "/v1/notifications", "car_guess", "").status
	}
	if status != 429 {
		t.Errorf("the 40th guess = %d, want 429", status)
	}
	r.must(200, "GET", "/v1/notifications", readKey, "") // a key that was good before passes
	r.must(429, "GET", "/v1/notifications", "car_guess", "", "X-Forwarded-For", "10.0.0.1")
}

func TestRecipients(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	address := "a+b%c@example.com"
	r.must(201, "PUT", "/v1/recipients/u1", sendKey, `{"attributes":{"a":1,"b":{"c":2}},"locale":"fr-CA","timezone":"Europe/Berlin","endpoints":[{"kind":"email","address":"ann@example.com"}]}`)
	r.must(200, "PUT", "/v1/recipients/u1", sendKey, `{"attributes":{"a":1,"b":{"c":2}},"locale":"fr-CA","endpoints":[{"kind":"email","address":"ann@example.com"}]}`)
	var got api.Recipient
	r.must(200, "PATCH", "/v1/recipients/u1", sendKey, `{"attributes":{"a":null,"b":{"d":3}},"locale":null,"timezone":"Asia/Tokyo"}`).into(t, &got)
	var attributes map[string]any
	if err := json.Unmarshal(got.Attributes, &attributes); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]any{"b": map[string]any{"c": 2.0, "d": 3.0}}, attributes); d != "" || got.Locale != "" || got.Timezone != "Asia/Tokyo" || len(got.Endpoints) != 1 {
		t.Errorf("patched %+v\n%s", got, d)
	}
	path := "/v1/recipients/u1/endpoints/email/" + url.PathEscape(address)
	r.must(204, "PUT", path, sendKey, "")
	r.must(204, "PUT", path, sendKey, `{"app_version":"2"}`)
	r.must(200, "GET", "/v1/recipients/u1", readKey, "").into(t, &got)
	if len(got.Endpoints) != 2 {
		t.Fatalf("endpoints %+v", got.Endpoints)
	}
	found := false
	for _, e := range got.Endpoints {
		found = found || e.Address == address && e.AppVersion == "2"
	}
	if !found {
		t.Errorf("endpoints %+v, want %s", got.Endpoints, address)
	}
	r.must(204, "DELETE", path, sendKey, "")
	r.must(404, "DELETE", path, sendKey, "")
	r.must(404, "GET", "/v1/recipients/u1", otherKey, "")
	a := r.must(422, "PUT", "/v1/recipients/u1", sendKey, `{"locale":"!","timezone":"Mars","endpoints":[{"kind":"email"}],"x":1}`)
	want := map[string]string{"/locale": "invalid", "/timezone": "invalid", "/endpoints/0/address": "required", "/x": "unknown_field"}
	if d := cmp.Diff(want, a.faults(t)); d != "" {
		t.Errorf("faults (-want +got):\n%s", d)
	}
	r.must(422, "PUT", "/v1/recipients/u1/endpoints/apns/..%2F..", sendKey, "")
	r.must(200, "GET", "/v1/recipients?limit=1", readKey, "")
	r.must(422, "GET", "/v1/recipients?limit=201", readKey, "")
	r.must(422, "GET", "/v1/recipients?limit=many", readKey, "")
	r.must(204, "DELETE", "/v1/recipients/u1", sendKey, "")
	r.must(404, "GET", "/v1/recipients/u1", readKey, "")
}

func TestTemplates(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	source := `{"locales":{"default":{"title":"Order {{ order }}","body":"B"}},"schema":{"type":"object","required":["order"],"properties":{"order":{"type":"integer"}}}}`
	r.must(403, "PUT", "/v1/templates/shipped", sendKey, source)
	r.must(201, "PUT", "/v1/templates/shipped", adminKey, source)
	r.must(201, "PUT", "/v1/templates/shipped", adminKey, strings.Replace(source, "Order", "Your order", 1))
	r.must(200, "GET", "/v1/templates/shipped", readKey, "")
	r.must(200, "GET", "/v1/templates/shipped/versions/1", readKey, "")
	r.must(404, "GET", "/v1/templates/shipped/versions/9", readKey, "")
	r.must(404, "GET", "/v1/templates/shipped", otherKey, "")
	var vs api.TemplateList
	r.must(200, "GET", "/v1/templates/shipped/versions", readKey, "").into(t, &vs)
	if len(vs.Data) != 2 {
		t.Errorf("versions %+v", vs)
	}
	r.must(200, "GET", "/v1/templates", readKey, "")
	var out api.Rendering
	r.must(200, "POST", "/v1/templates/shipped/preview", readKey, `{"data":{"order":7}}`).into(t, &out)
	if out.Title != "Your order 7" {
		t.Errorf("rendered %+v", out)
	}
	r.must(422, "POST", "/v1/templates/shipped/preview", readKey, `{"data":{}}`)
	r.must(422, "PUT", "/v1/templates/bad", adminKey, `{"locales":{"default":{"title":"{% for %}"}}}`)
	r.must(422, "PUT", "/v1/templates/bad", adminKey, `{"local":{}}`)
	r.must(422, "PUT", "/v1/templates/bad", adminKey, `{"locales":{"default":{"email":{"mjml":"<mjml></mjml>"}}}}`)
	r.must(202, "POST", "/v1/notifications", sendKey, `{"to":[{"email":"a@example.com"}],"template":"shipped","version":"1","data":{"order":7}}`)
	a := r.must(422, "POST", "/v1/notifications", sendKey, `{"to":[{"email":"a@example.com"}],"template":"shipped","data":{}}`)
	if len(a.faults(t)) == 0 {
		t.Errorf("no faults in %s", a.body)
	}
}

func TestInboxRoutesAndTheRest(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	var token api.Token
	r.must(200, "POST", "/v1/recipients/u1/token", sendKey, "").into(t, &token)
	r.must(200, "GET", "/v1/inbox", token.Token, "")
	r.must(200, "GET", "/v1/inbox/unread", token.Token, "")
	r.must(200, "POST", "/v1/token/refresh", token.Token, "")
	r.must(404, "POST", "/v1/inbox/"+core.NewID(r.store.Now()).String()+"/read", token.Token, "")
	r.must(404, "POST", "/v1/inbox/no-id/read", token.Token, "")
	r.must(204, "POST", "/v1/routes/email/pause", adminKey, "")
	var routes api.RouteList
	r.must(200, "GET", "/v1/routes", adminKey, "").into(t, &routes)
	if routes.Data[0].State != "paused" {
		t.Errorf("routes %+v", routes)
	}
	r.must(204, "POST", "/v1/routes/email/resume", adminKey, "")
	r.must(404, "POST", "/v1/routes/none/pause", adminKey, "")
	r.must(200, "GET", "/livez", "", "")
	r.must(200, "GET", "/readyz", "", "")
	for _, path := range []string{"/v1/webhooks", "/v1/dead"} {
		if a := r.must(404, "GET", path, adminKey, ""); !strings.Contains(string(a.body), "not offer") {
			t.Errorf("%s: %s does not say that it comes later", path, a.body)
		}
	}
	r.must(404, "GET", "/nowhere", "", "")
	if a := r.must(405, "DELETE", "/v1/notifications", adminKey, ""); !strings.Contains(a.header.Get("Allow"), "POST") {
		t.Errorf("Allow: %q", a.header.Get("Allow"))
	}
	r.must(422, "GET", "/v1/notifications?campaign=c", readKey, "")
	r.must(422, "GET", "/v1/notifications?status=lost", readKey, "")
	if a := r.must(200, "GET", "/livez", "", "", "X-Request-Id", "mine-1"); a.header.Get("X-Request-Id") != "mine-1" || a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("headers %v", a.header)
	}
	if a := r.must(200, "GET", "/livez", "", "", "X-Request-Id", "a b"); a.header.Get("X-Request-Id") == "a b" {
		t.Error("a request id with a space was taken")
	}
}

// intakeFunc is an intake that fails in ways the real one does only when something breaks.
type intakeFunc func() error

func (f intakeFunc) Accept(context.Context, string, *intake.Request, intake.Key) (*intake.Accepted, error) {
	return nil, f()
}
func (f intakeFunc) Preview(context.Context, string, *intake.Request) (*intake.Preview, error) {
	return nil, f()
}
func (f intakeFunc) PreviewTemplate(context.Context, string, *intake.TemplatePreview) (*templates.Template, *templates.Content, error) {
	return nil, nil, f()
}

func TestBreakage(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		fail   func() error
		status int
	}{
		"away":  {func() error { return fmt.Errorf("record: %w", core.ErrUnavailable) }, 503},
		"error": {func() error { return fmt.Errorf("secret detail") }, 500},
		"panic": {func() error { panic("secret detail") }, 500},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(o *api.Options) { o.Intake = intakeFunc(c.fail) })
			a := r.must(c.status, "POST", "/v1/notifications", sendKey, simple)
			if strings.Contains(string(a.body), "secret") {
				t.Errorf("the answer tells %s", a.body)
			}
			if (c.status == 503) != (a.header.Get("Retry-After") != "") {
				t.Errorf("Retry-After: %q", a.header.Get("Retry-After"))
			}
		})
	}
}

func TestOverload(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan struct{}), make(chan struct{})
	r := newRig(t, func(o *api.Options) {
		o.MaxAccepts = 1
		o.Intake = intakeFunc(func() error { entered <- struct{}{}; <-leave; return core.ErrUnavailable })
	})
	var done sync.WaitGroup
	done.Go(func() { r.do("POST", "/v1/notifications", sendKey, simple) })
	<-entered
	if a := r.must(503, "POST", "/v1/notifications", sendKey, simple); a.header.Get("Retry-After") == "" {
		t.Error("a 503 without Retry-After")
	}
	close(leave)
	done.Wait()
}

// TestBulkStreams reads the first answer before the second line is written, and checks the order.
func TestBulkStreams(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	s := httptest.NewUnstartedServer(nil)
	s.Config = api.Server(r.handler)
	s.Start()
	defer s.Close()
	body, in := io.Pipe()
	q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/v1/notifications/bulk", body)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+sendKey)
	q.Header.Set("Content-Type", "application/x-ndjson")
	q.Header.Set("Idempotency-Key", "bulk")
	go io.WriteString(in, simple+"\n")
	a, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	lines := bufio.NewScanner(a.Body)
	next := func() (v struct{ Line, Status int }) {
		t.Helper()
		if !lines.Scan() {
			t.Fatalf("the stream ended: %v", lines.Err())
		}
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	if v := next(); v.Line != 1 || v.Status != 202 {
		t.Fatalf("first answer %+v", v)
	}
	go func() {
		for i := 2; i <= 1000; i++ {
			text := simple
			if i%10 == 0 {
				text = `{"to":[]}`
			}
			io.WriteString(in, text+"\n")
		}
		in.Close()
	}()
	for i := 2; i <= 1000; i++ {
		want := 202
		if i%10 == 0 {
			want = 422
		}
		if v := next(); v.Line != i || v.Status != want {
			t.Fatalf("answer %+v, want line %d with %d", v, i, want)
		}
	}
	if lines.Scan() {
		t.Errorf("one answer too many: %s", lines.Text())
	}
	a2 := r.do("POST", "/v1/notifications/bulk", sendKey, simple+"\n"+strings.Repeat("x", api.MaxBody+2), "Content-Type", "application/x-ndjson", "Idempotency-Key", "bulk")
	if got := string(a2.body); !strings.Contains(got, `"replayed":true`) || !strings.Contains(got, `"status":413`) {
		t.Errorf("answers %s", got)
	}
}
