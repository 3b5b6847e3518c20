package api_test

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/api"
	"github.com/carillon-notify/carillon/core/campaign"
)

// expandNow does what the plan queue does, until nothing of a campaign is due.
func (r *rig) expandNow(turns int) {
	r.t.Helper()
	p := campaign.NewPlanner(campaign.Options{Campaigns: r.store, Pages: r.store, Audiences: r.store, Renderer: r.intake, Queue: noQueue{}})
	for range turns {
		wakes, err := r.store.DueCampaigns(r.t.Context(), 10, 0)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, w := range wakes {
			if err := p.Turn(r.t.Context(), w); err != nil {
				r.t.Fatal(err)
			}
		}
	}
}

func TestCampaignLife(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for i := range 5 {
		body := fmt.Sprintf(`{"attributes":{"n":%d},"endpoints":[{"kind":"email","address":"u%d@example.com"}]}`, i, i)
		if i == 4 {
			body = `{"attributes":{"n":4}}`
		}
		r.must(201, "PUT", fmt.Sprintf("/v1/recipients/u%d", i), sendKey, body)
	}
	const ask = `{"name":"spring","audience":{"filter":"attributes.n > 0"},"content":{"title":"Hi"},"channels":["email"]}`
	a := r.must(201, "POST", "/v1/campaigns", sendKey, ask)
	var c api.Campaign
	a.into(t, &c)
	at := "/v1/campaigns/" + c.Id
	if a.header.Get("Location") != at || c.State != "draft" {
		t.Fatalf("made %+v", c)
	}
	get := func(method, path string) (c api.Campaign) {
		t.Helper()
		r.must(200, method, path, sendKey, "").into(t, &c)
		return c
	}
	r.must(409, "POST", at+"/resume", sendKey, "")
	r.must(404, "POST", at+"/start", otherKey, "")
	r.must(404, "POST", at+"/dance", sendKey, "")
	if c := get("POST", at+"/start"); c.State != "scheduled" {
		t.Errorf("started: %+v", c)
	}
	r.expandNow(1)
	if p := get("POST", at+"/pause").Progress; p.Audience != 4 || p.Expanded != 4 || p.Pending != 3 || p.Skipped != 1 || p.Deliveries.Pending != 3 {
		t.Errorf("expanded: %+v", p)
	}
	get("POST", at+"/resume")
	c = get("POST", at+"/cancel")
	if p := c.Progress; c.State != "cancelled" || p.Cancelled != 3 || p.Skipped != 1 || c.EndedAt == nil {
		t.Errorf("cancelled: %+v", c)
	}
	r.must(409, "POST", at+"/pause", sendKey, "")
	get("POST", at+"/cancel")
	results := r.must(200, "GET", at+"/results.csv", readKey, "")
	lines, err := csv.NewReader(strings.NewReader(string(results.body))).ReadAll()
	var got []string
	for _, l := range lines[1:] {
		got = append(got, strings.Join([]string{l[0], l[1], l[3], l[4], l[6]}, "|"))
	}
	want := []string{"u4|email||skipped|no_endpoint", "u1|email|u***@example.com|cancelled|", "u2|email|u***@example.com|cancelled|", "u3|email|u***@example.com|cancelled|"}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("results: %s %v", diff, err)
	}
	events := r.must(200, "GET", at+"/events", readKey, "")
	if !strings.Contains(string(events.body), "event: progress\ndata: {") {
		t.Errorf("events: %s", events.body)
	}
	var list api.CampaignList
	r.must(200, "GET", "/v1/campaigns?state=cancelled", readKey, "").into(t, &list)
	if len(list.Data) != 1 {
		t.Errorf("list: %+v", list)
	}
	var pages api.NotificationList
	r.must(200, "GET", "/v1/notifications?campaign="+c.Id, readKey, "").into(t, &pages)
	if len(pages.Data) != 1 || pages.Data[0].Counts.Cancelled != 3 {
		t.Errorf("its pages: %+v", pages)
	}
	var sent api.Accepted
	r.must(202, "POST", at+"/test", sendKey, `{"to":[{"email":"me@example.com"}]}`).into(t, &sent)
	if sent.Deliveries != 1 {
		t.Errorf("test: %+v", sent)
	}
	if got := r.must(422, "POST", at+"/test", sendKey, `{"to":[{"email":"me@example.com"},{"topic":"vip"}]}`).faults(t); got["/to/1/topic"] != "conflict" {
		t.Errorf("a test to a topic: %v", got)
	}
	for _, path := range []string{at, at + "/events", at + "/results.csv"} {
		r.must(404, "GET", path, otherKey, "")
	}
}

// A cancelled campaign's results hold the whole audience: who was not got to as well.
func TestCampaignResultsOfTheRest(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for i := range 30 {
		r.must(201, "PUT", fmt.Sprintf("/v1/recipients/u%02d", i), sendKey, fmt.Sprintf(`{"endpoints":[{"kind":"email","address":"u%d@example.com"}]}`, i))
	}
	var c api.Campaign
	r.must(201, "POST", "/v1/campaigns", sendKey, `{"name":"slow","audience":{"all":true},"content":{"title":"Hi"},"channels":["email"],"rate":"1/m","now":true}`).into(t, &c)
	r.expandNow(2)
	r.must(200, "POST", "/v1/campaigns/"+c.Id+"/cancel", sendKey, "").into(t, &c)
	if p := c.Progress; p.Audience != 30 || p.Expanded == 0 || p.Expanded == 30 || p.Cancelled != 30 {
		t.Errorf("progress: %+v", p)
	}
	body := string(r.must(200, "GET", "/v1/campaigns/"+c.Id+"/results.csv", readKey, "").body)
	for i := range 30 {
		if strings.Count(body, fmt.Sprintf("\nu%02d,", i)) != 1 {
			t.Errorf("u%02d is not in the results once", i)
		}
	}
}

func TestBadCampaigns(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	ok := map[string]string{"name": `"x"`, "audience": `{"all":true}`, "content": `{"title":"Hi"}`}
	for _, c := range []struct{ field, value, pointer, code string }{
		{"name", `""`, "/name", "required"},
		{"audience", `{}`, "/audience", "required"},
		{"audience", `{"all":true,"topic":"vip"}`, "/audience", "conflict"},
		{"audience", `{"filter":"attributes.plan = 1"}`, "/audience/filter", "invalid"},
		{"audience", `{"recipients":[""]}`, "/audience/recipients/0", "required"},
		{"content", `{}`, "/content", "required"},
		{"template", `"none"`, "/template", "conflict"},
		{"channels", `["smoke"]`, "/channels/0", "unknown"},
		{"rate", `"fast"`, "/rate", "invalid"},
		{"cron", `"x"`, "/cron", "invalid"},
		{"timezone", `"Mars/Olympus"`, "/timezone", "invalid"},
		{"local_time", `"25:00"`, "/local_time", "invalid"},
		{"missed", `"maybe"`, "/missed", "invalid"},
		{"start_at", `"2020-01-01T00:00:00Z"`, "/start_at", "range"},
		{"start_at", `"0001-01-01T00:00:00Z"`, "/start_at", "range"},
		{"delay", `"999999h"`, "/delay", "range"},
		{"ttl", `"-1s"`, "/ttl", "range"},
		{"surprise", `1`, "/surprise", "unknown_field"},
	} {
		var parts []string
		for k, v := range ok {
			if k != c.field {
				parts = append(parts, fmt.Sprintf("%q:%s", k, v))
			}
		}
		body := "{" + strings.Join(append(parts, fmt.Sprintf("%q:%s", c.field, c.value)), ",") + "}"
		if got := r.must(422, "POST", "/v1/campaigns", sendKey, body).faults(t); got[c.pointer] != c.code {
			t.Errorf("%s: %v, want %s at %s", body, got, c.code, c.pointer)
		}
	}
	for rest, want := range map[string]map[string]string{
		`"now":true,"start_at":"` + time.Now().Add(time.Hour).Format(time.RFC3339) + `"`: {"/now": "conflict", "/start_at": "conflict"},
		`"now":true,"cron":"0 9 * * *"`:     {"/now": "conflict", "/cron": "conflict"},
		`"delay":"1h","cron":"0 9 * * *"`:   {"/delay": "conflict", "/cron": "conflict"},
		`"start_at":"2999-01-01T00:00:00Z"`: {"/start_at": "range"},
	} {
		body := `{"name":"x","audience":{"all":true},"content":{"title":"Hi"},` + rest + `}`
		if diff := cmp.Diff(want, r.must(422, "POST", "/v1/campaigns", sendKey, body).faults(t)); diff != "" {
			t.Errorf("%s: %s", body, diff)
		}
	}
	for body, want := range map[string]map[string]string{
		`{"audience":{"filter":"attributes.plan = 1","x":1},"content":{"title":5},"channels":["smoke"],"rate":"fast","cron":"x","timezone":"Mars/Olympus","local_time":"25:00","start_at":"soon","ttl":"x",
			"missed":"maybe","surprise":1}`: {"/name": "required", "/audience/filter": "invalid", "/audience/x": "unknown_field", "/content/title": "invalid", "/channels/0": "unknown", "/rate": "invalid", "/cron": "invalid",
			"/timezone": "invalid", "/local_time": "invalid", "/start_at": "invalid", "/ttl": "invalid", "/missed": "invalid", "/surprise": "unknown_field"},
		`{"name":"x","audience":{"all":true},"template":"none","delay":"-1s","ttl":"0s","start_at":"2020-01-01T00:00:00Z","local_time":"25:00"}`: {"/template": "unknown", "/delay": "range", "/ttl": "range",
			"/start_at": "range", "/local_time": "invalid"},
	} {
		if diff := cmp.Diff(want, r.must(422, "POST", "/v1/campaigns", sendKey, body).faults(t)); diff != "" {
			t.Errorf("%s: %s", body, diff)
		}
	}
	var kept api.CampaignList
	if r.must(200, "GET", "/v1/campaigns", readKey, "").into(t, &kept); len(kept.Data) > 0 {
		t.Errorf("kept: %+v", kept.Data)
	}
	r.must(404, "GET", "/v1/campaigns/"+core.NewID(r.store.Now()).String(), readKey, "")
	r.must(404, "GET", "/v1/campaigns/nope", readKey, "")
	r.must(422, "GET", "/v1/campaigns?state=lost", readKey, "")
	r.must(403, "POST", "/v1/campaigns", readKey, "{}")
}

// What a campaign's template lacks of its data is a fault of the request, in whatever locale; what one of the audience
// may lack is not.
func TestCampaignIsTried(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for name, source := range map[string]string{
		"strict": `{"locales":{"default":{"title":"{{ order }}"}},"schema":{"type":"object","required":["order"],"properties":{"order":{"type":"integer"}}}}`,
		"loose":  `{"locales":{"default":{"title":"{{ recipient.attributes.name }}","body":"{{ order }}"},"fr":{"title":"{{ commande }}"}}}`,
	} {
		r.must(201, "PUT", "/v1/templates/"+name, adminKey, source)
	}
	for _, c := range []struct {
		rest string
		want map[string]string // nil: it is taken
	}{
		{`"template":"strict","data":{"order":"7"}`, map[string]string{"/data/order": "content"}},
		{`"template":"strict"`, map[string]string{"/data": "content"}},
		{`"template":"strict","data":{"order":7}`, nil},
		{`"template":"loose","data":{"commande":1}`, map[string]string{"/template": "content"}},
		{`"template":"loose","data":{"order":7}`, map[string]string{"/template": "content"}},
		{`"template":"loose","data":{"order":7},"locale":"en"`, nil},
		{`"template":"loose","data":{"order":7,"commande":7}`, nil},
	} {
		body := `{"name":"x","audience":{"all":true},` + c.rest + `}`
		if c.want == nil {
			r.must(201, "POST", "/v1/campaigns", sendKey, body)
			continue
		}
		if diff := cmp.Diff(c.want, r.must(422, "POST", "/v1/campaigns", sendKey, body).faults(t)); diff != "" {
			t.Errorf("%s: %s", body, diff)
		}
	}
}

// A rate is taken off by saying so, not by saying nothing.
func TestCampaignRate(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	var c api.Campaign
	r.must(201, "POST", "/v1/campaigns", sendKey, `{"name":"x","audience":{"all":true},"content":{"title":"Hi"},"rate":"5/s"}`).into(t, &c)
	at := "/v1/campaigns/" + c.Id
	for body, code := range map[string]string{`{}`: "required", `{"rate":null}`: "required", `{"rate":"soon"}`: "invalid"} {
		if diff := cmp.Diff(map[string]string{"/rate": code}, r.must(422, "PATCH", at, sendKey, body).faults(t)); diff != "" {
			t.Errorf("%s: %s", body, diff)
		}
	}
	for _, want := range []string{"5/s", "7/m", ""} {
		var got api.Campaign
		if want != "5/s" {
			r.must(200, "PATCH", at, sendKey, `{"rate":"`+want+`"}`)
		}
		if r.must(200, "GET", at, readKey, "").into(t, &got); got.Rate != want {
			t.Errorf("the rate is %q, want %q", got.Rate, want)
		}
	}
}

// The same Idempotency-Key gives the same answer again, byte by byte, whatever became of the campaign, and when what
// was asked for could not be taken any more.
func TestCampaignReplay(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	const key = "Idempotency-Key"
	create := func(status int, key, value, body string) answer {
		t.Helper()
		a := r.do("POST", "/v1/campaigns", sendKey, body, key, value)
		if a.status != status {
			t.Fatalf("POST /v1/campaigns = %d %s, want %d", a.status, a.body, status)
		}
		return a
	}
	soon := r.store.Now().Add(time.Hour).In(time.FixedZone("", 3600)).Format(time.RFC3339)
	r.must(201, "PUT", "/v1/templates/changed", adminKey, `{"locales":{"default":{"title":"Hi"}}}`)
	for i, rest := range []string{`"content":{"title":"Hi"},"rate":"5/s"`, `"content":{"title":"Hi"},"now":true`, `"content":{"title":"Hi"},"start_at":"` + soon + `"`, `"template":"changed"`} {
		value, body := fmt.Sprintf("k%d", i), `{"name":"x","audience":{"recipients":["u2","u1"]},`+rest+`}`
		first := create(201, key, value, body)
		if first.header.Get("Idempotency-Replayed") != "" {
			t.Error("the first one is replayed")
		}
		var c api.Campaign
		first.into(t, &c)
		r.must(200, "PATCH", "/v1/campaigns/"+c.Id, sendKey, `{"rate":"9/s"}`)
		r.must(200, "POST", "/v1/campaigns/"+c.Id+"/cancel", sendKey, "")
		if i == 3 {
			r.must(201, "PUT", "/v1/templates/changed", adminKey, `{"locales":{"default":{"title":"Hi {{ name }}"}}}`)
		}
		again := create(201, key, value, body)
		if again.header.Get("Idempotency-Replayed") != "true" || again.header.Get("Location") != first.header.Get("Location") {
			t.Errorf("again: %v", again.header)
		}
		if diff := cmp.Diff(string(first.body), string(again.body)); diff != "" {
			t.Errorf("again: %s", diff)
		}
		create(422, key, value, body+" ")
	}
	var a, b api.Campaign
	create(201, key, "a", `{"name":"x","audience":{"all":true},"content":{"title":"Hi"}}`).into(t, &a)
	create(201, key, "b", `{"name":"x","audience":{"all":true},"content":{"title":"Hi"}}`).into(t, &b)
	test := func(status int, id string) answer {
		t.Helper()
		got := r.do("POST", "/v1/campaigns/"+id+"/test", sendKey, `{"to":[{"email":"me@example.com"}]}`, key, "test")
		if got.status != status {
			t.Fatalf("test = %d %s, want %d", got.status, got.body, status)
		}
		return got
	}
	first := test(202, a.Id)
	if again := test(202, a.Id); again.header.Get("Idempotency-Replayed") != "true" || string(again.body) != string(first.body) {
		t.Errorf("the test send again: %v %s", again.header, again.body)
	}
	test(422, b.Id) // the same body means another campaign there
}

// A campaign shows all that was asked for, so that it can be asked for again; lists and events leave out what may be long.
func TestCampaignShowsWhatItSays(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.must(201, "PUT", "/v1/templates/order", adminKey, `{"locales":{"default":{"title":"{{ order }}"}}}`)
	for _, c := range []struct{ ask, more string }{
		{`{"name":"x","audience":{"all":true},"content":{"title":"Hi","body":"<b>","url":"https://example.com","data":{"a":1},"email":{"subject":"S","text":"T"}},"channels":["email","push"],"mode":"fallback",
			"fallback_after":"1m0s","priority":"normal","unknown":"fail","collapse_key":"k","category":"c","metadata":{"trace":"t"},"ttl":"1h0m0s","cron":"0 9 * * *","timezone":"Europe/Paris","rate":"5/s","missed":"run"}`, `{}`},
		{`{"name":"x","audience":{"all":true},"template":"order","data":{"order":7},"locale":"fr"}`,
			`{"version":"1","mode":"all","priority":"bulk","unknown":"retry","ttl":"72h0m0s","missed":"run"}`},
	} {
		made := r.must(201, "POST", "/v1/campaigns", sendKey, c.ask)
		var want, got, listed, event map[string]any
		for _, text := range []string{c.ask, c.more} {
			if err := json.Unmarshal([]byte(text), &want); err != nil {
				t.Fatal(err)
			}
		}
		made.into(t, &got)
		id := fmt.Sprint(got["id"])
		if diff := cmp.Diff(string(made.body), string(r.must(200, "GET", "/v1/campaigns/"+id, readKey, "").body)); diff != "" {
			t.Errorf("GET shows something else: %s", diff)
		}
		for _, name := range []string{"id", "state", "created_at", "next_at", "progress"} {
			delete(got, name)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("shown: %s", diff)
		}
		r.must(200, "POST", "/v1/campaigns/"+id+"/cancel", sendKey, "")
		var list struct{ Data []map[string]any }
		r.must(200, "GET", "/v1/campaigns?limit=1", readKey, "").into(t, &list)
		listed = list.Data[0]
		_, text, _ := strings.Cut(string(r.must(200, "GET", "/v1/campaigns/"+id+"/events", readKey, "").body), "data: ")
		if err := json.Unmarshal([]byte(text), &event); err != nil {
			t.Fatal(err)
		}
		for where, got := range map[string]map[string]any{"list": listed, "event": event} {
			if got["content"] != nil || got["data"] != nil || got["mode"] != want["mode"] {
				t.Errorf("%s: %v", where, got)
			}
		}
	}
}

// Nothing in the results is a formula to a spreadsheet, and taking a leading apostrophe off gives what it was.
func TestCampaignResultsAreNoFormulas(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	ids := []string{`=HYPERLINK("http://example.com","x")`, "+4915112345678", "-1", "@ann", "＝1", "'=1", "'", "ann", "a=b"}
	body, err := json.Marshal(map[string]any{"name": "x", "audience": map[string]any{"recipients": ids}, "content": map[string]any{"title": "Hi"}, "now": true})
	if err != nil {
		t.Fatal(err)
	}
	var c api.Campaign
	r.must(201, "POST", "/v1/campaigns", sendKey, string(body)).into(t, &c)
	r.expandNow(3)
	lines, err := csv.NewReader(strings.NewReader(string(r.must(200, "GET", "/v1/campaigns/"+c.Id+"/results.csv", readKey, "").body))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, line := range lines[1:] {
		for _, cell := range line {
			if strings.IndexAny(cell, "=+-@＝＋－＠\t\r\n") == 0 {
				t.Errorf("a spreadsheet works out %q", cell)
			}
		}
		got = append(got, strings.TrimPrefix(line[0], "'"))
	}
	slices.Sort(ids)
	slices.Sort(got)
	if diff := cmp.Diff(ids, got); diff != "" {
		t.Error(diff)
	}
}

// What a campaign's state does not allow is told with what to do instead, and that does it.
func TestCampaignRemedies(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for _, c := range []struct {
		ask, done, then, remedy string
		todo                    []string
		state                   string
	}{
		{"", "pause", "start", "resume it, which makes it a draft again, and then start it", []string{"resume", "start"}, "scheduled"},
		{`,"delay":"1h"`, "pause", "start", "resume it.", []string{"resume"}, "scheduled"},
		{"", "", "resume", "start it", []string{"start"}, "scheduled"},
		{"", "cancel", "start", "make another one", nil, "cancelled"},
		{"", "cancel", "pause", "make another one", nil, "cancelled"},
		{"", "cancel", "resume", "make another one", nil, "cancelled"},
	} {
		var x api.Campaign
		r.must(201, "POST", "/v1/campaigns", sendKey, `{"name":"x","audience":{"all":true},"content":{"title":"Hi"}`+c.ask+`}`).into(t, &x)
		at := "/v1/campaigns/" + x.Id
		if c.done != "" {
			r.must(200, "POST", at+"/"+c.done, sendKey, "")
		}
		var p api.Problem
		if r.must(409, "POST", at+"/"+c.then, sendKey, "").into(t, &p); !strings.Contains(p.Detail, c.remedy) {
			t.Errorf("%s after %s: %s", c.then, c.done, p.Detail)
		}
		for _, action := range c.todo {
			r.must(200, "POST", at+"/"+action, sendKey, "")
		}
		if r.must(200, "GET", at, readKey, "").into(t, &x); x.State != c.state {
			t.Errorf("in the end it is %s, not %s", x.State, c.state)
		}
	}
}
