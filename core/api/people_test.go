package api_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/api"
)

func TestTopics(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for _, id := range []string{"u2", "u1", "u%2B3"} {
		r.must(204, "PUT", "/v1/topics/vip/recipients/"+id, sendKey, "")
	}
	r.must(204, "PUT", "/v1/topics/vip/recipients/u1", sendKey, "")
	var first, second api.TopicRecipientList
	r.must(200, "GET", "/v1/topics/vip/recipients?limit=2", readKey, "").into(t, &first)
	r.must(200, "GET", "/v1/topics/vip/recipients?limit=2&cursor="+first.NextCursor, readKey, "").into(t, &second)
	got := []string{}
	for _, x := range append(first.Data, second.Data...) {
		got = append(got, x.Recipient)
	}
	if diff := cmp.Diff([]string{"u+3", "u1", "u2"}, got); diff != "" || first.NextCursor == "" || second.NextCursor != "" {
		t.Errorf("%s, next %q and %q", diff, first.NextCursor, second.NextCursor)
	}
	r.must(204, "DELETE", "/v1/topics/vip/recipients/u2", sendKey, "")
	r.must(404, "DELETE", "/v1/topics/vip/recipients/u2", sendKey, "")
	r.must(403, "PUT", "/v1/topics/vip/recipients/u2", readKey, "")
	r.must(200, "GET", "/v1/recipients/u1", readKey, "") // it was created
	var others api.TopicRecipientList
	r.must(200, "GET", "/v1/topics/vip/recipients", otherKey, "").into(t, &others)
	if len(others.Data) != 0 {
		t.Errorf("another app sees %+v", others.Data)
	}
	r.must(422, "PUT", "/v1/topics/a%0Ab/recipients/u1", sendKey, "")
	r.must(422, "PUT", "/v1/topics/vip/recipients/a%2Fb", sendKey, "")
}

func TestPreferences(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.must(404, "GET", "/v1/recipients/u1/preferences", readKey, "")
	const chosen = `{"*":{"push":true},"orders":{"email":false}}`
	if a := r.must(200, "PUT", "/v1/recipients/u1/preferences", sendKey, chosen); strings.TrimSpace(string(a.body)) != chosen {
		t.Errorf("kept %s", a.body)
	}
	r.must(200, "PUT", "/v1/recipients/u1", sendKey, `{"locale":"de"}`)
	if a := r.must(200, "GET", "/v1/recipients/u1/preferences", readKey, ""); strings.TrimSpace(string(a.body)) != chosen {
		t.Errorf("after the recipient was put again: %s", a.body)
	}
	r.must(403, "PUT", "/v1/recipients/u1/preferences", readKey, chosen)
	for body, want := range map[string]map[string]string{
		`{"orders":{"emial":false},"a/b":{"x":true}}`: {"/orders": "invalid", "/a~1b": "invalid"},
		`{"security":{"email":false}}`:                {"/security": "invalid"},
		`{"orders":{"email":"no"}}`:                   {"/orders/email": "invalid"},
		`{"orders":false}`:                            {"/orders": "invalid"},
		`{"orders":{"email":null},"news":null}`:       {"/orders/email": "invalid", "/news": "invalid"},
		`[]`:                                          {"": "invalid"},
	} {
		if diff := cmp.Diff(want, r.must(422, "PUT", "/v1/recipients/u1/preferences", sendKey, body).faults(t)); diff != "" {
			t.Errorf("%s: %s", body, diff)
		}
	}
	r.must(200, "PUT", "/v1/recipients/u1/preferences", sendKey, `{"security":{"email":true}}`)
	var got api.Accepted
	r.must(200, "PUT", "/v1/recipients/u1", sendKey, `{"endpoints":[{"kind":"email","address":"a@example.com"}]}`)
	r.must(200, "PUT", "/v1/recipients/u1/preferences", sendKey, `{"*":{"email":false}}`)
	send := func(category string) api.Accepted {
		r.must(202, "POST", "/v1/notifications", sendKey, `{"to":[{"recipient":"u1"}],"channels":["email"],"content":{"title":"t"},"category":"`+category+`"}`).into(t, &got)
		return got
	}
	if got := send("orders"); got.Deliveries != 0 || len(got.Skipped) != 1 || got.Skipped[0] != (api.Skip{Recipient: "u1", Channel: "email", Reason: "preference"}) {
		t.Errorf("the opt-out: %+v", got)
	}
	if steps := r.must(200, "GET", "/v1/notifications/"+got.Id+"/timeline", readKey, ""); !strings.Contains(string(steps.body), `"code":"preference"`) {
		t.Errorf("the timeline does not say why: %s", steps.body)
	}
	got = api.Accepted{}
	if got := send("security"); got.Deliveries != 1 {
		t.Errorf("the mandatory one: %+v", got)
	}
}

// TestPatchEndpoints: null drops all endpoints, a list adds to them, and what is wrong with one is told where it is.
func TestPatchEndpoints(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for _, c := range []struct {
		patch string
		want  int
	}{
		{`{"endpoints":[{"kind":"email","address":"a@example.com"}]}`, 1},
		{`{"endpoints":[{"kind":"email","address":"b@example.com"}]}`, 2},
		{`{"endpoints":[]}`, 2},
		{`{"locale":"de","attributes":{"endpoints":null}}`, 2},
		{`{"locale":"fr","endpoints" : null}`, 0},
	} {
		a := r.do("PATCH", "/v1/recipients/u1", sendKey, c.patch)
		var got api.Recipient
		if a.into(t, &got); a.status/100 != 2 || len(got.Endpoints) != c.want {
			t.Errorf("%s: %d, %+v", c.patch, a.status, got.Endpoints)
		}
	}
	const bad = `{"endpoints":[{"kind":"pager","address":"1"},{"kind":"email","address":"nobody"}]}`
	for _, method := range []string{"PUT", "PATCH"} {
		want := map[string]string{"/endpoints/0/kind": "unknown", "/endpoints/1/address": "invalid"}
		if diff := cmp.Diff(want, r.must(422, method, "/v1/recipients/u1", sendKey, bad).faults(t)); diff != "" {
			t.Errorf("%s: %s", method, diff)
		}
	}
	for path, want := range map[string]map[string]string{"pager/1": {"/kind": "unknown"}, "email/nobody": {"/address": "invalid"}} {
		if diff := cmp.Diff(want, r.must(422, "PUT", "/v1/recipients/u1/endpoints/"+path, sendKey, "").faults(t)); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
}

// TestPages: what is no page of a list is refused by every list.
func TestPages(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for i := range 3 {
		r.must(201, "PUT", fmt.Sprintf("/v1/recipients/ü%%20%d", i), sendKey, "{}")
		r.must(204, "PUT", fmt.Sprintf("/v1/topics/vip/recipients/%d", i), sendKey, "")
		r.must(201, "PUT", fmt.Sprintf("/v1/templates/t%d", i), adminKey, `{"locales":{"default":{"title":"x"}}}`)
	}
	for _, path := range []string{"/v1/recipients", "/v1/topics/vip/recipients", "/v1/templates", "/v1/notifications", "/v1/campaigns", "/v1/suppressions"} {
		for _, limit := range []string{"0", "-1", "201"} {
			if diff := cmp.Diff(map[string]string{"/limit": "range"}, r.must(422, "GET", path+"?limit="+limit, readKey, "").faults(t)); diff != "" {
				t.Errorf("%s?limit=%s: %s", path, limit, diff)
			}
		}
		for _, cursor := range []string{"u1", "made-up", "bmFtZTo", "bmFtZTp1%0A", "_____w"} {
			if diff := cmp.Diff(map[string]string{"/cursor": "invalid"}, r.must(422, "GET", path+"?cursor="+cursor, readKey, "").faults(t)); diff != "" {
				t.Errorf("%s?cursor=%s: %s", path, cursor, diff)
			}
		}
	}
	for _, path := range []string{"/v1/recipients", "/v1/topics/vip/recipients", "/v1/templates"} {
		seen := map[string]bool{}
		for cursor := ""; ; {
			var list struct {
				Data       []json.RawMessage
				NextCursor string `json:"next_cursor"`
			}
			r.must(200, "GET", path+"?limit=1&cursor="+cursor, readKey, "").into(t, &list)
			for _, x := range list.Data {
				seen[string(x)] = true
			}
			if cursor = list.NextCursor; cursor == "" {
				break
			}
		}
		if len(seen) < 3 {
			t.Errorf("%s: %d by ones", path, len(seen))
		}
	}
}

// TestPreferencesAgain: what was chosen before a category became mandatory, or a channel went, can be put back as it is
// given, and nothing else of the kind.
func TestPreferencesAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	old := core.Preferences{"security": {"email": false, "fax": true}, "news": {"email": false}}
	if err := r.store.PutPreferences(t.Context(), "a", "u1", old, &core.Rules{}); err != nil {
		t.Fatal(err)
	}
	const path = "/v1/recipients/u1/preferences"
	given := string(r.must(200, "GET", path, readKey, "").body)
	r.must(200, "PUT", path, sendKey, given)
	if again := string(r.must(200, "GET", path, readKey, "").body); again != given {
		t.Errorf("put back %s, got %s", given, again)
	}
	r.must(200, "PUT", path, sendKey, `{"security":{"email":false},"news":{"email":true}}`)
	for _, body := range []string{`{"security":{"push":false}}`, `{"security":{"fax":true}}`, `{"security":{"email":false,"*":false}}`} {
		if diff := cmp.Diff(map[string]string{"/security": "invalid"}, r.must(422, "PUT", path, sendKey, body).faults(t)); diff != "" {
			t.Errorf("%s: %s", body, diff)
		}
	}
	r.must(200, "PUT", path, sendKey, `{}`)
	r.must(422, "PUT", path, sendKey, `{"security":{"email":false}}`)
}

// TestOptOut: an opt-out reaches what was accepted before, and says so wherever one looks.
func TestOptOut(t *testing.T) {
	t.Parallel()
	u := core.NewUnsubscriber([]byte(strings.Repeat("k", 32)), "")
	r := newRig(t, func(o *api.Options) { o.Unsubscriber = u })
	r.must(201, "PUT", "/v1/recipients/u1", sendKey, `{"endpoints":[{"kind":"email","address":"a@example.com"}]}`)
	for way, optOut := range map[string]func(){
		"by preferences": func() {
			r.must(200, "PUT", "/v1/recipients/u1/preferences", sendKey, `{"promo":{"email":false}}`)
		},
		"by a link": func() {
			r.must(200, "POST", u.Link(core.Unsubscription{App: "a", Recipient: "u1", Category: "promo", Channel: "email"}), "", "")
		},
		"by an import": func() {
			r.imported("application/x-ndjson", `{"id":"u1","endpoints":[{"kind":"email","address":"a@example.com"}],"preferences":{"promo":{"email":false}}}`)
		},
	} {
		r.must(200, "PUT", "/v1/recipients/u1/preferences", sendKey, `{}`)
		send := func(category string) string {
			var got api.Accepted
			r.must(202, "POST", "/v1/notifications", sendKey, `{"to":[{"recipient":"u1"}],"channels":["email"],"content":{"title":"t"},"delay":"1h","category":"`+category+`"}`).into(t, &got)
			return "/v1/notifications/" + got.Id
		}
		promo, security := send("promo"), send("security")
		optOut()
		var n api.Notification
		r.must(200, "GET", promo, readKey, "").into(t, &n)
		if diff := cmp.Diff(api.Counts{Cancelled: 1}, n.Counts); diff != "" || n.Status != "cancelled" {
			t.Errorf("%s: %s, %s", way, n.Status, diff)
		}
		var ds api.DeliveryList
		r.must(200, "GET", promo+"/deliveries", readKey, "").into(t, &ds)
		if d := ds.Data[0]; d.State != "cancelled" || d.Code != "preference" {
			t.Errorf("%s: the delivery is %+v", way, d)
		}
		var steps api.Timeline
		r.must(200, "GET", promo+"/timeline", readKey, "").into(t, &steps)
		if s := steps.Data[len(steps.Data)-1]; s.Step != "cancelled" || s.Code != "preference" || s.Delivery != ds.Data[0].Id {
			t.Errorf("%s: the timeline ends with %+v", way, s)
		}
		r.must(200, "GET", security, readKey, "").into(t, &n)
		if n.Counts.Pending != 1 {
			t.Errorf("%s: the mandatory one: %+v", way, n.Counts)
		}
	}
}

func TestUnsubscribe(t *testing.T) {
	t.Parallel()
	u := core.NewUnsubscriber([]byte(strings.Repeat("k", 32)), "")
	r := newRig(t, func(o *api.Options) { o.Unsubscriber = u })
	r.must(201, "PUT", "/v1/recipients/u1", sendKey, `{}`)
	link := u.Link(core.Unsubscription{App: "a", Recipient: "u1", Category: `<b>news & more</b>`, Channel: "email"})
	chosen := func() string {
		return strings.TrimSpace(string(r.must(200, "GET", "/v1/recipients/u1/preferences", readKey, "").body))
	}
	page := r.must(200, "GET", link, "", "")
	for _, want := range []string{`<form method="post">`, "&lt;b&gt;news &amp; more&lt;/b&gt;", "by email"} {
		if !strings.Contains(string(page.body), want) {
			t.Errorf("the page lacks %q: %s", want, page.body)
		}
	}
	if got := chosen(); got != "{}" {
		t.Errorf("looking at the page changed %s", got)
	}
	for range 2 { // RFC 8058: a mail program may press twice
		q := httptest.NewRequestWithContext(t.Context(), http.MethodPost, link, strings.NewReader("List-Unsubscribe=One-Click"))
		q.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		r.handler.ServeHTTP(w, q)
		if w.Code != 200 || !strings.Contains(w.Body.String(), "Done") {
			t.Errorf("one click: %d %s", w.Code, w.Body)
		}
	}
	if got, want := chosen(), "{\"\\u003cb\\u003enews \\u0026 more\\u003c/b\\u003e\":{\"email\":false}}"; got != want {
		t.Errorf("chosen %s, want %s", got, want)
	}
	mandatory := u.Link(core.Unsubscription{App: "a", Recipient: "u1", Category: "security", Channel: "email"}) // of before it was that
	before := chosen()
	for _, method := range []string{"GET", "POST"} {
		page := string(r.must(409, method, mandatory, "", "").body)
		if !strings.Contains(page, "cannot be turned off") || strings.Contains(page, "<form") || strings.Contains(page, "no more") {
			t.Errorf("%s of a mandatory category's link: %s", method, page)
		}
	}
	if got := chosen(); got != before {
		t.Errorf("a mandatory category's link changed %s", got)
	}
	r.must(204, "DELETE", "/v1/recipients/u1", sendKey, "")
	r.do("POST", link, "", "") // who was erased
	r.must(404, "GET", "/v1/recipients/u1", readKey, "")
	for _, bad := range []string{"/unsubscribe/x", link + "A", link[:len(link)-2]} {
		for _, method := range []string{"GET", "POST"} {
			w := httptest.NewRecorder()
			r.handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, bad, nil))
			if w.Code != 404 || !strings.Contains(w.Body.String(), "not valid") {
				t.Errorf("%s %s: %d %s", method, bad, w.Code, w.Body)
			}
		}
	}
}

func TestQuietHours(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	get := func() *api.QuietHoursInput {
		t.Helper()
		var got api.Recipient
		r.must(200, "GET", "/v1/recipients/u1", readKey, "").into(t, &got)
		return got.QuietHours
	}
	want := &api.QuietHoursInput{From: "22:00", To: "08:00", Channels: []string{"push"}}
	r.must(201, "PUT", "/v1/recipients/u1", sendKey, `{"timezone":"Europe/Berlin","quiet_hours":{"from":"22:00","to":"08:00","channels":["push"]}}`)
	if diff := cmp.Diff(want, get()); diff != "" {
		t.Error(diff)
	}
	r.must(200, "PATCH", "/v1/recipients/u1", sendKey, `{"locale":"de"}`)
	if diff := cmp.Diff(want, get()); diff != "" {
		t.Errorf("after a patch of something else: %s", diff)
	}
	r.must(200, "PATCH", "/v1/recipients/u1", sendKey, `{"quiet_hours":{"from":"23:00","to":"07:00"}}`)
	if diff := cmp.Diff(&api.QuietHoursInput{From: "23:00", To: "07:00"}, get()); diff != "" {
		t.Errorf("patched: %s", diff)
	}
	r.must(200, "PATCH", "/v1/recipients/u1", sendKey, `{"quiet_hours":null}`)
	if got := get(); got != nil {
		t.Errorf("removed, and %+v", got)
	}
	for body, want := range map[string]map[string]string{
		`{"quiet_hours":{"from":"22","to":"08:00"}}`:                       {"/quiet_hours": "invalid"},
		`{"quiet_hours":{"from":"22:00","to":"22:00"}}`:                    {"/quiet_hours": "invalid"},
		`{"quiet_hours":{"from":"22:00","to":"08:00","channels":["psh"]}}`: {"/quiet_hours/channels/0": "unknown"},
	} {
		for _, method := range []string{"PUT", "PATCH"} {
			if diff := cmp.Diff(want, r.must(422, method, "/v1/recipients/u1", sendKey, body).faults(t)); diff != "" {
				t.Errorf("%s %s: %s", method, body, diff)
			}
		}
	}
	r.must(422, "PUT", "/v1/recipients/u1", sendKey, `{"quiet_hours":{"from":"22:00","until":"08:00"}}`)
	r.must(422, "PATCH", "/v1/recipients/u1", sendKey, `{"quiet_hours":{"from":"22:00","until":"08:00"}}`)
}

func TestFallback(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.must(201, "PUT", "/v1/recipients/u1", sendKey, `{"endpoints":[{"kind":"email","address":"a@example.com"}]}`)
	const body = `{"to":[{"recipient":"u1"}],"content":{"title":"t"},"mode":"fallback","fallback_after":"1m30s","channels":["in_app","push","email"]}`
	var p api.Preview
	r.must(200, "POST", "/v1/notifications/preview", sendKey, body).into(t, &p)
	var got []string
	for _, d := range p.Decisions {
		text := d.Channel + " " + d.Decision + " " + d.Reason
		if d.HeldTill != nil {
			text += " " + d.HeldTill.Sub(p.SendAt).String()
		}
		got = append(got, text)
	}
	if diff := cmp.Diff([]string{"in_app deliver ", "push skip no_endpoint", "email wait fallback 1m30s"}, got); diff != "" {
		t.Error(diff)
	}
	var a api.Accepted
	r.must(202, "POST", "/v1/notifications", sendKey, body).into(t, &a)
	var n api.Notification
	r.must(200, "GET", "/v1/notifications/"+a.Id, readKey, "").into(t, &n)
	if n.Mode != "fallback" || n.FallbackAfter != "1m30s" || n.Counts.Pending != 2 {
		t.Errorf("%+v", n)
	}
	var steps api.Timeline
	r.must(200, "GET", "/v1/notifications/"+a.Id+"/timeline", readKey, "").into(t, &steps)
	got = nil
	for _, s := range steps.Data[1:] {
		got = append(got, s.Step+" "+s.Recipient+" "+s.Channel+" "+s.Code)
	}
	if diff := cmp.Diff([]string{"skipped u1 push no_endpoint", "resolved u1 in_app ", "resolved u1 email ", "held u1 email fallback"}, got); diff != "" {
		t.Errorf("timeline: %s", diff)
	}
}

// imported sends an import and returns its events.
func (r *rig) imported(media, body string) (events []api.ImportEvent) {
	r.t.Helper()
	a := r.must(200, "POST", "/v1/recipients/import", sendKey, body, "Content-Type", media)
	for d := json.NewDecoder(bytes.NewReader(a.body)); ; {
		var e api.ImportEvent
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			return events
		} else if err != nil {
			r.t.Fatalf("%s: %v", a.body, err)
		}
		events = append(events, e)
	}
}

// tells holds an import's bad lines, each with the places and codes of its faults, and its figures.
func tells(t *testing.T, events []api.ImportEvent, bad map[int]string, lines, created, replaced int) {
	t.Helper()
	got := map[int]string{}
	for _, e := range events[:len(events)-1] {
		if e.Problem == nil {
			continue
		}
		text := []string{}
		for _, f := range e.Problem.Errors {
			text = append(text, f.Pointer+" "+f.Code)
		}
		if got[e.Line] = strings.Join(text, ", "); len(text) == 0 {
			got[e.Line] = e.Problem.Detail
		}
	}
	if diff := cmp.Diff(bad, got); diff != "" {
		t.Errorf("bad lines: %s", diff)
	}
	end := events[len(events)-1]
	if p := end.Progress; !end.Done || end.Line != lines || p == nil || p.Created != created || p.Replaced != replaced || p.Bad != len(bad) {
		t.Errorf("the end: %+v, %+v", end, end.Progress)
	}
}

func TestImport(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.must(201, "PUT", "/v1/recipients/u1", sendKey, `{"endpoints":[{"kind":"email","address":"old@example.com"}]}`)
	r.must(200, "PUT", "/v1/recipients/u1/preferences", sendKey, `{"news":{"email":false}}`)
	r.must(204, "PUT", "/v1/topics/vip/recipients/u1", sendKey, "")
	events := r.imported("application/x-ndjson", `{"id":"u1","locale":"de","endpoints":[{"kind":"email","address":"new@example.com"}],"topics":["news"]}

{"id":"u2","attributes":{"n":1},"timezone":"Europe/Berlin","quiet_hours":{"from":"22:00","to":"08:00"},"preferences":{"*":{"email":true}}}
{"id":"u3"
{"id":"a/b","locale":"??","endpoints":[{"kind":"email","address":"nobody"},{"kind":"pager","address":"1"}],"preferences":{"security":{"email":false}},"topics":["a\/b"]}
{"id":"u4","name":"Ann"}
{"id":"u5"}
{"id":"u5","locale":"fr"}`)
	tells(t, events, map[int]string{4: "The body is not valid JSON at byte 10.", 6: "/name unknown_field",
		5: "/locale invalid, /id invalid, /endpoints/0/address invalid, /endpoints/1/kind unknown, /preferences/security invalid, /topics/0 invalid"}, 8, 2, 2)
	var one api.Recipient
	r.must(200, "GET", "/v1/recipients/u1", readKey, "").into(t, &one)
	if one.Locale != "de" || len(one.Endpoints) != 1 || one.Endpoints[0].Address != "new@example.com" {
		t.Errorf("u1 is %+v", one)
	}
	if a := r.must(200, "GET", "/v1/recipients/u1/preferences", readKey, ""); !strings.Contains(string(a.body), "news") {
		t.Errorf("the import took what u1 chose: %s", a.body)
	}
	for _, topic := range []string{"vip", "news"} {
		if a := r.must(200, "GET", "/v1/topics/"+topic+"/recipients", readKey, ""); !strings.Contains(string(a.body), "u1") {
			t.Errorf("u1 is not in %s: %s", topic, a.body)
		}
	}
	r.must(200, "GET", "/v1/recipients/u2", readKey, "").into(t, &one)
	if one.QuietHours == nil || one.Timezone != "Europe/Berlin" || string(one.Attributes) != `{"n":1}` {
		t.Errorf("u2 is %+v", one)
	}
	for _, coding := range []string{"gzip", "identity, gzip", "br"} {
		r.must(415, "POST", "/v1/recipients/import", sendKey, `{"id":"u1"}`, "Content-Type", "application/x-ndjson", "Content-Encoding", coding)
		r.must(415, "POST", "/v1/notifications/bulk", sendKey, `{}`, "Content-Type", "application/x-ndjson", "Content-Encoding", coding)
	}
	r.must(200, "GET", "/v1/recipients/u5", readKey, "").into(t, &one)
	if one.Locale != "fr" {
		t.Errorf("of two lines the first counted: %+v", one)
	}
	r.must(404, "GET", "/v1/recipients/u4", readKey, "")
	r.must(415, "POST", "/v1/recipients/import", sendKey, `{"id":"u1"}`)
	r.must(403, "POST", "/v1/recipients/import", readKey, `{"id":"u1"}`, "Content-Type", "application/x-ndjson")
}

func TestImportCSV(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	events := r.imported("text/csv; charset=utf-8", "\ufeffid,email,fcm,locale,topics,attributes.name\r\n"+
		`c1,ann@example.com,fcm-token-of-ann,de,vip; news,"Ann ""A"", B."`+"\r\n"+
		`c2,nobody,,,,`+"\n"+
		`c3,only-two`+"\n"+
		`c4,,,,,`+"\n"+
		`,,,,,x`+"\n"+
		"c5,,,,,\"over\ntwo lines\"\n")
	tells(t, events, map[int]string{3: "/endpoints/0/address invalid", 4: "Not a line of this CSV: wrong number of fields.", 6: "/id required"}, 7, 3, 0)
	var one api.Recipient
	r.must(200, "GET", "/v1/recipients/c1", readKey, "").into(t, &one)
	if string(one.Attributes) != `{"name":"Ann \"A\", B."}` || len(one.Endpoints) != 2 || one.Locale != "de" {
		t.Errorf("c1 is %+v", one)
	}
	for name, text := range map[string]string{"no id": "email,locale\na@example.com,de\n", "twice": "id,email,email\n", "no column": "id,E-Mail\n", "nothing": "\n"} {
		events := r.imported("text/csv", text)
		if end := events[len(events)-1]; end.Done || end.Problem == nil {
			t.Errorf("%s: %+v", name, end)
		}
	}
}

func TestExport(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.must(404, "GET", "/v1/recipients/u1/export", readKey, "")
	r.must(201, "PUT", "/v1/recipients/u0", sendKey, "{}")
	if a := r.must(200, "GET", "/v1/recipients/u0/export", readKey, ""); !strings.Contains(string(a.body), `"topics":[]`) || !strings.Contains(string(a.body), `"messages":[]`) {
		t.Errorf("who has nothing: %s", a.body)
	}
	r.imported("application/x-ndjson", `{"id":"u1","attributes":{"name":"Ann"},"endpoints":[{"kind":"email","address":"ann@example.com"}],"topics":["vip"],"preferences":{"news":{"email":false}}}`)
	for i := range 130 { // more than a page
		r.must(202, "POST", "/v1/notifications", sendKey, fmt.Sprintf(`{"to":[{"recipient":"u1"}],"channels":["email"],"content":{"title":"T%d"}}`, i))
	}
	r.must(202, "POST", "/v1/notifications", sendKey, `{"to":[{"recipient":"u2"},{"email":"b@example.com"}],"content":{"title":"another's"}}`)
	var got api.RecipientExport
	r.must(200, "GET", "/v1/recipients/u1/export", readKey, "").into(t, &got)
	if got.Recipient.Id != "u1" || len(got.Topics) != 1 || got.Preferences["news"]["email"] || len(got.Messages) != 130 {
		t.Fatalf("%+v with %d messages", got.Recipient, len(got.Messages))
	}
	titles := map[string]bool{}
	for i, m := range got.Messages {
		titles[m.Content.Title] = true
		if m.Address != "ann@example.com" || m.Name != "Ann" || m.State != "pending" {
			t.Errorf("message %d: %+v", i, m)
		}
	}
	if len(titles) != 130 || !titles["T0"] || !titles["T129"] {
		t.Errorf("%d different messages", len(titles))
	}
	r.must(404, "GET", "/v1/recipients/u1/export", otherKey, "")
	r.must(204, "DELETE", "/v1/recipients/u1", sendKey, "")
	r.must(404, "GET", "/v1/recipients/u1/export", readKey, "")
}
