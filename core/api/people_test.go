package api_test

import (
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
	r.must(200, "GET", "/v1/topics/vip/recipients?limit=2&cursor="+"u1", readKey, "").into(t, &second)
	got := []string{}
	for _, x := range append(first.Data, second.Data...) {
		got = append(got, x.Recipient)
	}
	if diff := cmp.Diff([]string{"u+3", "u1", "u2"}, got); diff != "" || first.NextCursor != "u1" || second.NextCursor != "" {
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
