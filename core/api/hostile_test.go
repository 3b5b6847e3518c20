package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core/api"
	"github.com/carillon-notify/carillon/core/intake"
)

const device = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// one is a request to one address with members beside it.
func one(kind, address, members string) string {
	return fmt.Sprintf(`{"to":[{%q:%q}],%s}`, kind, address, members)
}

func mail(members string) string { return one("email", "ann@example.com", members) }

func nested(depth int) string {
	return strings.Repeat(`{"a":`, depth) + "1" + strings.Repeat("}", depth)
}

// topics are entries of n different topics.
func topics(n int) string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf(`{"topic":"t%d"}`, i))
	}
	return strings.Join(out, ",")
}

// hostile is what comes in to break something, and what is answered: a status and, for each fault, its
// place and code.
var hostile = map[string]struct {
	body   string
	status int
	faults map[string]string // nil: not looked at
}{
	// JSON that is none, or not as it must be.
	"trailing comma":          {mail(`"content":{"title":"t"},`), 400, nil},
	"comment":                 {mail(`"content":{"title":"t"}/**/`), 400, nil},
	"NaN":                     {mail(`"content":{"title":"t","data":{"n":NaN}}`), 400, nil},
	"single quotes":           {`{'to':[]}`, 400, nil},
	"byte order mark":         {"\ufeff" + simple, 400, nil},
	"half a surrogate":        {mail(`"content":{"title":"\ud800"}`), 400, nil},
	"UTF-16":                  {"{\x00\"\x00t\x00", 400, nil},
	"a NUL outside of a text": {simple + "\x00", 400, nil},
	"a NUL as it is":          {mail("\"content\":{\"title\":\"a\x00\"}"), 400, nil},
	"a hundred deep":          {mail(`"content":{"title":"t","data":` + nested(100) + `}`), 400, nil},
	"256 KiB of brackets":     {strings.Repeat("[", 256<<10), 400, nil},
	"as deep as may be":       {mail(`"content":{"title":"t","data":` + nested(api.MaxDepth-2) + `}`), 202, nil},
	"one deeper":              {mail(`"content":{"title":"t","data":` + nested(api.MaxDepth-1) + `}`), 400, nil},
	"the same name, escaped":  {mail(`"content":{"title":"t"},"category":"a","c\u0061tegory":"b"`), 422, map[string]string{"/category": "duplicate_field"}},
	"the same name far down":  {mail(`"content":{"title":"t","data":{"a":[{"b":1,"b":2}]}}`), 422, map[string]string{"/content/data/a/0/b": "duplicate_field"}},
	"a name with a slash":     {mail(`"content":{"title":"t"},"a/b~c":1`), 422, map[string]string{"/a~1b~0c": "unknown_field"}},
	"NUL in a name":           {mail(`"content":{"title":"t","data":{"a\u0000":1}}`), 422, map[string]string{"/content/data/a\x00": "invalid"}},
	"null everywhere":         {`{"to":null,"content":null,"ttl":null,"channels":null,"data":null}`, 422, map[string]string{"/to": "required", "/content": "invalid", "/data": "invalid"}},
	"null in to":              {`{"to":[null],"content":{"title":"t"}}`, 422, map[string]string{"/to/0": "invalid"}},
	// Numbers.
	"numbers for texts":         {mail(`"content":{"title":1e999,"body":-0},"category":123456789012345678901234567890`), 422, map[string]string{"/content/title": "invalid", "/content/body": "invalid", "/category": "invalid"}},
	"a number beyond any float": {mail(`"content":{"title":"t","data":{"n":1e400}}`), 202, nil},
	"a number of 1,000 digits":  {mail(`"content":{"title":"t","data":{"n":` + strings.Repeat("9", 1000) + `}}`), 202, nil},
	"that number, rendered":     {mail(`"template":"order-shipped","data":{"order":1e400}`), 422, map[string]string{"/data/order": "content"}},
	"version beyond an int":     {mail(`"template":"welcome","version":"99999999999999999999"`), 422, map[string]string{"/version": "too_large"}},
	"version zero":              {mail(`"template":"welcome","version":"0"`), 422, map[string]string{"/version": "conflict"}},
	"version below":             {mail(`"template":"welcome","version":"-1"`), 422, map[string]string{"/version": "invalid"}},
	// Times.
	"ttl beyond a duration": {mail(`"content":{"title":"t"},"ttl":"9999999999999h"`), 422, map[string]string{"/ttl": "invalid"}},
	"ttl too long":          {mail(`"content":{"title":"t"},"ttl":"673h"`), 422, map[string]string{"/ttl": "range"}},
	"ttl zero":              {mail(`"content":{"title":"t"},"ttl":"0s"`), 422, map[string]string{"/ttl": "range"}},
	"ttl zero, shorter":     {mail(`"content":{"title":"t"},"ttl":"0"`), 422, map[string]string{"/ttl": "range"}},
	"ttl below":             {mail(`"content":{"title":"t"},"ttl":"-1ns"`), 422, map[string]string{"/ttl": "range"}},
	"ttl without a unit":    {mail(`"content":{"title":"t"},"ttl":"60"`), 422, map[string]string{"/ttl": "invalid"}},
	"delay below":           {mail(`"content":{"title":"t"},"delay":"-1h"`), 422, map[string]string{"/delay": "range"}},
	"in the past":           {mail(`"content":{"title":"t"},"send_at":"1999-12-31T23:59:59Z"`), 422, map[string]string{"/send_at": "range"}},
	"too far ahead":         {mail(`"content":{"title":"t"},"send_at":"9999-12-31T23:59:59Z"`), 422, map[string]string{"/send_at": "range"}},
	"a time without a zone": {mail(`"content":{"title":"t"},"send_at":"2030-01-01T00:00:00"`), 422, map[string]string{"/send_at": "invalid"}},
	"no such day":           {mail(`"content":{"title":"t"},"send_at":"2030-02-30T00:00:00Z"`), 422, map[string]string{"/send_at": "invalid"}},
	// To whom.
	"nobody":              {`{"to":[],"content":{"title":"t"}}`, 422, map[string]string{"/to": "range"}},
	"1,001 entries":       {`{"to":[` + strings.TrimSuffix(strings.Repeat(`{"recipient":"u"},`, 1001), ",") + `],"content":{"title":"t"}}`, 422, map[string]string{"/to": "too_large"}},
	"20,000 bad entries":  {`{"to":[` + strings.TrimSuffix(strings.Repeat(`{"x":1},`, 20000), ",") + `],"content":{"title":"t"}}`, 422, nil},
	"an empty entry":      {`{"to":[{}],"content":{"title":"t"}}`, 422, map[string]string{"/to/0": "invalid"}},
	"a token with a path": {one("apns", device+"/../x", `"content":{"title":"t"}`), 422, map[string]string{"/to/0/apns": "invalid"}},
	"the long form of it": {`{"to":[{"kind":"apns","address":"` + device + `/../x"}],"content":{"title":"t"}}`, 422, map[string]string{"/to/0/address": "invalid"}},
	"a token with a line": {one("fcm", "fcm-token-of-a-phone\nX: y", `"content":{"title":"t"}`), 422, map[string]string{"/to/0/fcm": "invalid"}},
	"a token of 10,000":   {one("fcm", strings.Repeat("x", 10000), `"content":{"title":"t"}`), 422, map[string]string{"/to/0/fcm": "invalid"}},
	"an inbox elsewhere":  {one("websocket", "../b/u", `"content":{"title":"t"}`), 422, map[string]string{"/to/0/websocket": "invalid"}},
	"parameters of SMTP":  {one("email", "a@example.com> SIZE=1", `"content":{"title":"t"}`), 422, map[string]string{"/to/0/email": "invalid"}},
	"two mailboxes":       {one("email", "a@example.com,b@example.com", `"content":{"title":"t"}`), 422, map[string]string{"/to/0/email": "invalid"}},
	"no domain name":      {one("email", "a@-.example", `"content":{"title":"t"}`), 422, map[string]string{"/to/0/email": "invalid"}},
	"a long recipient":    {one("recipient", strings.Repeat("x", 256), `"content":{"title":"t"}`), 422, map[string]string{"/to/0/recipient": "too_large"}},
	"an unknown kind":     {`{"to":[{"kind":"pigeon","address":"x"}],"content":{"title":"t"}}`, 422, map[string]string{"/to/0/kind": "unknown"}},
	"half a long form":    {`{"to":[{"kind":"email"},{"address":"x"}],"content":{"title":"t"}}`, 422, map[string]string{"/to/0/address": "required", "/to/1/kind": "required"}},
	"a recipient's route": {`{"to":[{"recipient":"u","route":"email"}],"content":{"title":"t"}}`, 422, map[string]string{"/to/0/route": "conflict"}},
	"data of no template": {`{"to":[{"email":"a@example.com","data":{"a":1}}],"content":{"title":"t"}}`, 422, map[string]string{"/to/0/data": "conflict"}},
	"channels":            {mail(`"content":{"title":"t"},"channels":["pigeon","email",""]`), 422, map[string]string{"/channels/0": "unknown", "/channels/2": "required"}},
	"no channel":          {mail(`"content":{"title":"t"},"channels":[]`), 422, map[string]string{"/channels": "range"}},
	"a channel twice":     {mail(`"content":{"title":"t"},"channels":["email","email"]`), 422, map[string]string{"/channels": "conflict"}},
	// What is said.
	"line break in the title":      {mail(`"content":{"title":"a\r\nBcc: b@example.com"}`), 422, map[string]string{"/content": "content"}},
	"line break in the subject":    {mail(`"content":{"email":{"subject":"a\nBcc: b@example.com","text":"t"}}`), 422, map[string]string{"/content/email/subject": "content"}},
	"line break in from":           {mail(`"content":{"email":{"from":"a\r\nBcc: x <a@example.com>","reply_to":"b\n","text":"t"}}`), 422, map[string]string{"/content/email/from": "content", "/content/email/reply_to": "content"}},
	"line break in a header":       {mail(`"content":{"email":{"headers":{"X-A":"1\r\nBcc: b@example.com"},"text":"t"}}`), 422, map[string]string{"/content/email/headers/X-A": "content"}},
	"a header within a name":       {mail(`"content":{"email":{"headers":{"X-A: 1\r\nBcc":"b@example.com"},"text":"t"}}`), 422, map[string]string{"/content/email/headers/X-A: 1\r\nBcc": "content"}},
	"a header that is ours":        {mail(`"content":{"email":{"headers":{"Message-ID":"<x@y>"},"text":"t"}}`), 422, map[string]string{"/content/email": "content"}},
	"a path as a file's name":      {mail(`"content":{"email":{"text":"t","attachments":[{"filename":"../x","content":""}]}}`), 422, map[string]string{"/content/email/attachments/0/filename": "content"}},
	"an attachment that is none":   {mail(`"content":{"email":{"text":"t","attachments":[{"filename":"x","content":"?"}]}}`), 422, map[string]string{"/content/email": "content"}},
	"line break in a push header":  {one("apns", device, `"content":{"title":"t","push":{"apns":{"headers":{"apns-topic":"a\r\nb"}}}}`), 422, map[string]string{"/content/push/apns/headers/apns-topic": "content"}},
	"line break in a collapse key": {one("apns", device, `"content":{"title":"t"},"collapse_key":"a\r\nb: c"`), 202, nil},
	"a type that does not fit":     {one("fcm", "fcm-token-of-a-phone", `"content":{"title":"t","push":{"fcm":{"android":{"priority":5,"ttl":{}}}}}`), 422, map[string]string{"/content/push": "content"}},
	"a field that is none":         {one("fcm", "fcm-token-of-a-phone", `"content":{"title":"t","push":{"fcm":{"token":"other"}}}`), 422, map[string]string{"/content/push/fcm/token": "content"}},
	"too much for APNs":            {one("apns", device, `"content":{"body":"`+strings.Repeat("x", 5000)+`"}`), 422, map[string]string{"/content": "content"}},
	"too much for FCM":             {one("fcm", "fcm-token-of-a-phone", `"content":{"title":"t","data":{"x":"`+strings.Repeat("x", 5000)+`"}}`), 422, map[string]string{"/content": "content"}},
	"too much for a live client":   {one("websocket", "u", `"content":{"body":"`+strings.Repeat("x", 200<<10)+`"}`), 422, map[string]string{"/content": "content"}},
	"too much for a subject":       {mail(`"content":{"title":"` + strings.Repeat("x", 1000) + `"}`), 422, map[string]string{"/content": "content"}},
	"a block of no channel":        {mail(`"content":{"title":"t","pigeon":{}}`), 422, map[string]string{"/content/pigeon": "unknown"}},
	"a block of the wrong type":    {mail(`"content":{"title":"t","email":5,"push":[]}`), 422, map[string]string{"/content/email": "invalid", "/content/push": "invalid"}},
	"content of the wrong type":    {mail(`"content":"t"`), 422, map[string]string{"/content": "invalid"}},
	"no content":                   {`{"to":[{"email":"ann@example.com"}]}`, 422, map[string]string{"/content": "required"}},
	"a template elsewhere":         {mail(`"template":"../../etc/passwd"`), 422, map[string]string{"/template": "unknown"}},
	"a locale elsewhere":           {mail(`"template":"welcome","locale":"../../x"`), 422, map[string]string{"/locale": "invalid"}},
	"words of their lists":         {mail(`"content":{"title":"t"},"priority":"top","mode":"none","unknown":"maybe"`), 422, map[string]string{"/priority": "invalid", "/mode": "invalid", "/unknown": "invalid"}},
	"long words":                   {mail(`"content":{"title":"t"},"category":"` + strings.Repeat("é", 129) + `","collapse_key":"` + strings.Repeat("x", 65) + `"`), 422, map[string]string{"/category": "too_large", "/collapse_key": "too_large"}},
	"lists for objects":            {mail(`"content":{"title":"t","data":[]},"metadata":[],"data":"x"`), 422, map[string]string{"/content/data": "invalid", "/metadata": "invalid", "/data": "invalid"}},
	// What is not offered yet.
	"fallback after a while, and all at once": {mail(`"content":{"title":"t"},"fallback_after":"30s"`), 422, map[string]string{"/fallback_after": "conflict"}},
	"fallback after no time":                  {mail(`"content":{"title":"t"},"mode":"fallback","fallback_after":"1ms"`), 422, map[string]string{"/fallback_after": "range"}},
	"fallback after days":                     {mail(`"content":{"title":"t"},"mode":"fallback","fallback_after":"25h"`), 422, map[string]string{"/fallback_after": "range"}},
	"fallback after below":                    {mail(`"content":{"title":"t"},"mode":"fallback","fallback_after":"-1s"`), 422, map[string]string{"/fallback_after": "range"}},
	"a mode that is none":                     {mail(`"content":{"title":"t"},"mode":"some"`), 422, map[string]string{"/mode": "invalid"}},
	"topics":                                  {`{"to":[{"topic":"vip"},{"email":"no address"}],"content":{"title":"t"}}`, 422, map[string]string{"/to/1/email": "invalid"}},
	"21 topics":                               {`{"to":[` + topics(21) + `],"content":{"title":"t"}}`, 422, map[string]string{"/to": "too_large"}},
	"20 topics":                               {`{"to":[` + topics(20) + `],"content":{"title":"t"}}`, 202, nil},
	// Everything at once, of the form, of the address and of the content.
	"all at once": {`{"to":[{"email":"x"},{"apns":"` + device + `"},{"fcm":5}],"content":{"body":"` + strings.Repeat("x", 5000) + `"},"channels":["push","pigeon"],"ttl":"0s","send_at":"now","x":1}`, 422,
		map[string]string{"/to/0/email": "invalid", "/to/2/fcm": "invalid", "/content": "content", "/channels/1": "unknown", "/ttl": "range", "/send_at": "invalid", "/x": "unknown_field"}},
}

// TestHostile: every answer is a problem with the places of what is wrong, which tells nothing of the
// inside, or one notification that is kept.
func TestHostile(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for name, c := range hostile {
		t.Run(name, func(t *testing.T) {
			for _, path := range []string{"/v1/notifications/preview", "/v1/notifications"} {
				before := r.notifications(t)
				a := r.do("POST", path, sendKey, c.body)
				want, more := c.status, 0
				if c.status == 202 && path == "/v1/notifications" {
					more = 1
				} else if c.status == 202 {
					want = 200
				}
				if a.status != want {
					t.Fatalf("%s = %d %.300s, want %d", path, a.status, a.body, want)
				}
				if got := r.notifications(t) - before; got != more {
					t.Errorf("%s left %d notifications, want %d", path, got, more)
				}
				if a.status < 300 {
					continue
				}
				tellsNothing(t, a.body)
				if c.faults == nil {
					continue
				}
				if d := cmp.Diff(c.faults, a.faults(t)); d != "" {
					t.Errorf("%s: faults (-want +got):\n%s\n%s", path, d, a.body)
				}
			}
		})
	}
}

// notifications counts those of app a.
func (r *rig) notifications(t *testing.T) int {
	t.Helper()
	n := 0
	for cursor := ""; ; {
		var list api.NotificationList
		r.must(200, "GET", "/v1/notifications?limit=200&cursor="+cursor, readKey, "").into(t, &list)
		if n += len(list.Data); list.NextCursor == "" {
			return n
		}
		cursor = list.NextCursor
	}
}

// tellsNothing holds a problem to what one may say: what is wrong and what to do, in words, with no
// trace of how the server is made.
func tellsNothing(t *testing.T, body []byte) {
	t.Helper()
	var p api.Problem
	if err := json.Unmarshal(body, &p); err != nil || p.Detail == "" {
		t.Errorf("%s says nothing", body)
	}
	for _, e := range p.Errors {
		if e.Code == "" || e.Detail == "" {
			t.Errorf("a fault without a code or a detail: %+v", e)
		}
	}
	if len(p.Errors) > 100 {
		t.Errorf("%d faults in one answer", len(p.Errors))
	}
	for _, leak := range []string{"json:", "Go value", "Go struct", "goroutine", ".go:", "api.", "intake.", "strconv.", "time: ", "runtime error", "sql", "car_send", device} {
		if strings.Contains(string(body), leak) {
			t.Errorf("the answer shows %q: %s", leak, body)
		}
	}
}

// TestHostileTemplates: what wants to run for ever or to fill the memory is refused, when it is put or
// when it is used.
func TestHostileTemplates(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for name, title := range map[string]string{
		"loops":     `{% for i in (1..2000000000) %}{% endfor %}`,
		"nests":     `{% for a in (1..1000) %}{% for b in (1..1000) %}{% for c in (1..1000) %}x{% endfor %}{% endfor %}{% endfor %}`,
		"explodes":  `{% assign s = "0123456789" %}` + strings.Repeat(`{% assign s = s | append: s %}`, 40) + `{{ s }}`,
		"deep":      strings.Repeat("{% if true %}", 3000) + strings.Repeat("{% endif %}", 3000),
		"recurses":  `{% include "recurses" %}`,
		"reads":     `{% render "/etc/passwd" %}`,
		"undefined": `{{ env.HOME }}`,
	} {
		t.Run(name, func(t *testing.T) {
			source, err := json.Marshal(map[string]any{"locales": map[string]any{"default": map[string]any{"title": title}}})
			if err != nil {
				t.Fatal(err)
			}
			a := r.do("PUT", "/v1/templates/"+name, adminKey, string(source))
			place := "/locales/default/title"
			if a.status == 201 {
				a, place = r.do("POST", "/v1/notifications", sendKey, mail(fmt.Sprintf(`"template":%q`, name))), "/template"
			}
			if got := a.faults(t); a.status != 422 || got[place] == "" {
				t.Fatalf("= %d %s, want 422 with a fault at %s", a.status, a.body, place)
			}
			tellsNothing(t, a.body)
		})
	}
	if n := r.notifications(t); n != 0 {
		t.Errorf("%d notifications are left", n)
	}
}

// TestInFlight: while the first request with a key is being answered, another is told to come again; then
// it gets the first one's answer.
func TestInFlight(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan struct{}), make(chan struct{})
	r := newRig(t, func(o *api.Options) { o.Intake = &slowOnce{Intake: o.Intake, entered: entered, leave: leave} })
	first := make(chan answer, 1)
	go func() { first <- r.do("POST", "/v1/notifications", sendKey, simple, "Idempotency-Key", "k") }()
	<-entered
	for _, body := range []string{simple, mail(`"content":{"title":"other"}`)} {
		a := r.must(409, "POST", "/v1/notifications", sendKey, body, "Idempotency-Key", "k")
		if a.header.Get("Retry-After") != "1" {
			t.Errorf("Retry-After: %q", a.header.Get("Retry-After"))
		}
		tellsNothing(t, a.body)
	}
	r.must(202, "POST", "/v1/notifications", sendKey, simple, "Idempotency-Key", "another")
	r.must(202, "POST", "/v1/notifications", otherKey, simple, "Idempotency-Key", "k") // another app's
	close(leave)
	a := <-first
	again := r.must(202, "POST", "/v1/notifications", sendKey, simple, "Idempotency-Key", "k")
	if d := cmp.Diff(string(a.body), string(again.body)); d != "" || a.status != 202 || again.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("the first answer was %d; (-first +again):\n%s", a.status, d)
	}
	other := r.must(422, "POST", "/v1/notifications", sendKey, mail(`"content":{"title":"other"}`), "Idempotency-Key", "k")
	tellsNothing(t, other.body)
	if n := r.notifications(t); n != 2 {
		t.Errorf("app a has %d notifications, want 2", n)
	}
}

// slowOnce holds the first acceptance up until it may leave.
type slowOnce struct {
	api.Intake
	began          atomic.Bool
	entered, leave chan struct{}
}

func (s *slowOnce) Accept(ctx context.Context, app string, req *intake.Request, key intake.Key) (*intake.Accepted, error) {
	if s.began.CompareAndSwap(false, true) {
		close(s.entered)
		<-s.leave
	}
	return s.Intake.Accept(ctx, app, req, key)
}
