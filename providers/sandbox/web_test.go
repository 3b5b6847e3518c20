package sandbox_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

// ask asks the handler; header lines are "name: value".
func ask(s *sandbox.Sandbox, method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w
}

func TestListMessages(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{OpenRelay: true})
	mailer(t, s)("a", "b", "c", "d", "e")
	var seen []string
	cursor := ""
	for range 3 {
		w := ask(s, "GET", "/v1/sandbox/messages?service=smtp&limit=2&cursor="+cursor, "")
		var page struct {
			Data       []sandbox.Message `json:"data"`
			NextCursor string            `json:"next_cursor"`
		}
		check(t, json.Unmarshal(w.Body.Bytes(), &page))
		seen = append(seen, ids(page.Data))
		cursor = page.NextCursor
	}
	if diff := cmp.Diff([]string{"e d", "c b", "a"}, seen); diff != "" || cursor != "" {
		t.Errorf("cursor %q, %s", cursor, diff)
	}
	for query, want := range map[string]int{
		"": 5, "?id=c": 1, "?address=ann@example.com": 5, "?address=x": 0, "?service=apns": 0, "?limit=200": 5,
	} {
		w := ask(s, "GET", "/v1/sandbox/messages"+query, "")
		var page struct{ Data []map[string]any }
		check(t, json.Unmarshal(w.Body.Bytes(), &page))
		if w.Code != 200 || len(page.Data) != want || page.Data == nil {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
	for _, query := range []string{"?limit=0", "?limit=201", "?limit=x", "?cursor=x", "?cursor=-1", "?service=pigeon"} {
		w := ask(s, "GET", "/v1/sandbox/messages"+query, "")
		if w.Code != 422 || w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
	if w := ask(s, "DELETE", "/v1/sandbox/messages", "", "Sec-Fetch-Site: cross-site"); w.Code != 403 || s.Counts(sandbox.SMTP).Taken != 5 {
		t.Errorf("another site's DELETE: %d", w.Code)
	}
	if w := ask(s, "DELETE", "/v1/sandbox/messages", ""); w.Code != 204 || s.Counts(sandbox.SMTP).Taken != 0 {
		t.Errorf("DELETE: %d", w.Code)
	}
}

func TestCounts(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{OpenRelay: true, Seed: 1<<64 - 1})
	mailer(t, s)("a", "a")
	w := ask(s, "GET", "/v1/sandbox/counts", "")
	var got struct {
		Seed            string
		APNs, FCM, SMTP sandbox.Counts
	}
	check(t, json.Unmarshal(w.Body.Bytes(), &got))
	if diff := cmp.Diff(s.Counts(sandbox.SMTP), got.SMTP); diff != "" || got.Seed != "18446744073709551615" || got.SMTP.Duplicates != 1 {
		t.Errorf("%s\n%s", w.Body, diff)
	}
}

func TestPutScript(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	const body = `{"latency":"10ms","jitter":"1s","errors":{"503":0.25},"retry_after":"1m0s","drop_before":0.1,"drop_after":0.2,"stall":0.3,
		"taken_anyway":0.4,"goaway_every":5,"max_streams":6,"gone_since":"2026-01-02T03:04:05Z"}`
	var want, got sandbox.Script
	check(t, json.Unmarshal([]byte(body), &want))
	if want.Latency != 10*time.Millisecond || want.RetryAfter != time.Minute || want.GoneSince.Year() != 2026 || want.Errors["503"] != 0.25 || want.MaxStreams != 6 {
		t.Errorf("read as %+v", want)
	}
	if w := ask(s, "PUT", "/v1/sandbox/script/apns", body); w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	check(t, json.Unmarshal(ask(s, "GET", "/v1/sandbox/script/apns", "").Body.Bytes(), &got))
	if !cmp.Equal(want.Errors, got.Errors) || got.Latency != want.Latency || got.GoAwayEvery != 5 || !got.GoneSince.Equal(want.GoneSince) {
		t.Errorf("kept as %+v", got)
	}
	for _, tc := range []struct {
		path, body string
		status     int
	}{
		{"pigeon", `{}`, 404}, {"apns", `{"latncy":"1s"}`, 422}, {"apns", `{"latency":7}`, 422}, {"apns", `{"latency":"7"}`, 422},
		{"apns", `{`, 422}, {"apns", `{} {}`, 422}, {"apns", `{"stall":2}`, 422}, {"smtp", `{"errors":{"BadTopic":1}}`, 422},
		{"smtp", `{"errors":{"451 4.7.1 later":1}}`, 200}, {"apns", `"` + strings.Repeat("x", 65<<10) + `"`, 413},
	} {
		if w := ask(s, "PUT", "/v1/sandbox/script/"+tc.path, tc.body); w.Code != tc.status {
			t.Errorf("%s %.60s: %d %s", tc.path, tc.body, w.Code, w.Body)
		}
	}
	if w := ask(s, "PUT", "/v1/sandbox/script/apns", "{}", "Sec-Fetch-Site: cross-site"); w.Code != 403 {
		t.Errorf("another site's PUT: %d", w.Code)
	}
	if w := ask(s, "PUT", "/v1/sandbox/script/apns", "{}"); w.Code != 200 || strings.Contains(w.Body.String(), "503") {
		t.Errorf("the empty script: %d %s", w.Code, w.Body)
	}
}

// hostile is what must never reach a page as markup.
const hostile = `<script>alert(1)</script>`

func TestPages(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{OpenRelay: true})
	m := dialPlain(t, s)
	const mail = "Subject: " + hostile + "\r\nMessage-ID: <x" + hostile + "@b>\r\nContent-Type: multipart/mixed; boundary=B\r\n\r\n" +
		"--B\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nGr=C3=BC=C3=9Fe\r\n" +
		"--B\r\nContent-Type: text/html\r\nContent-Transfer-Encoding: base64\r\n\r\nPGI+" + "PHNjcmlwdD4=\r\n" +
		"--B\r\nContent-Type: application/pdf\r\nContent-Disposition: attachment; filename=\"" + "a<b>.pdf\"\r\n\r\nxyz\r\n--B--\r\n"
	check(t, m.exchange("EHLO me\r\n"+mailFrom+rcptTo+"DATA\r\n", "250", "250", "250", "354"), m.exchange(mail+".\r\n", "250"))
	if a, err := do(t, h2(t, s), pushRequest(t.Context(), t, s, providerToken(t, s, nil))); err != nil || a.Status != 200 {
		t.Fatalf("answered %+v, %v", a, err)
	}
	for path, wants := range map[string][]string{
		"/sandbox/":             {"&lt;script&gt;", device, "Hi", "ann@example.com", "/sandbox/messages/1"},
		"/sandbox/?service=fcm": {"Nothing arrived yet"},
		"/sandbox/?id=x":        {"Nothing arrived yet"},
		"/sandbox/messages/1":   {"Grüße", "&lt;b&gt;&lt;script&gt;", "a&lt;b&gt;.pdf", "application/pdf", "Message-Id"},
		"/sandbox/messages/2":   {"&#34;aps&#34;: {", "apns-topic", device},
		"/sandbox/sandbox.css":  {"body"}, "/sandbox/sandbox.js": {"refresh"},
	} {
		w := ask(s, "GET", path, "")
		body := w.Body.String()
		if w.Code != 200 || strings.Contains(body, hostile) || strings.Contains(body, "http://") || strings.Contains(body, "https://") {
			t.Errorf("%s: %d %s", path, w.Code, body)
		}
		for _, want := range wants {
			if !strings.Contains(body, want) {
				t.Errorf("%s: no %q in %s", path, want, body)
			}
		}
		if csp := w.Header().Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; ") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: policy %q", path, csp)
		}
	}
	for path, want := range map[string]int{"/sandbox/messages/3": 404, "/sandbox/messages/0": 404, "/sandbox/messages/x": 404, "/sandbox/?limit=x": 422, "/": 404} {
		if w := ask(s, "GET", path, ""); w.Code != want {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

// TestPageUpdates holds the page to what its script relies on: 304 while nothing is new.
func TestPageUpdates(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{OpenRelay: true})
	send := mailer(t, s)
	tag := ask(s, "GET", "/sandbox/", "").Header().Get("ETag")
	if w := ask(s, "GET", "/sandbox/", "", "If-None-Match: "+tag); w.Code != http.StatusNotModified {
		t.Errorf("nothing new: %d", w.Code)
	}
	send("a")
	if w := ask(s, "GET", "/sandbox/", "", "If-None-Match: "+tag); w.Code != 200 {
		t.Errorf("something new: %d", w.Code)
	}
	tag = ask(s, "GET", "/sandbox/", "").Header().Get("ETag")
	s.Reset()
	if w := ask(s, "GET", "/sandbox/", "", "If-None-Match: "+tag); w.Code != 200 {
		t.Errorf("after Reset: %d", w.Code)
	}
}

func FuzzMailParts(f *testing.F) {
	f.Add("Content-Type: multipart/mixed; boundary=B\r\n\r\n--B\r\n\r\nx\r\n--B--\r\n")
	f.Add("Content-Transfer-Encoding: base64\r\n\r\n!")
	f.Add("no header")
	f.Fuzz(func(t *testing.T, content string) {
		for _, p := range sandbox.MailParts(content) {
			if strings.ToValidUTF8(p.Text, "") != p.Text {
				t.Errorf("part %+v is no UTF-8", p)
			}
		}
	})
}
