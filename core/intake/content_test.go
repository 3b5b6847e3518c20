package intake_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
)

const shipped = `{"locales":{"default":{"title":"Order {{ order }} for {{ name }}"},"fr":{"title":"Commande {{ order }} de {{ name }}"}},
	"schema":{"type":"object","required":["order","name"],"properties":{"order":{"type":"integer"},"name":{"type":"string"}}}}`

// TestLocales: the request's locale, else the recipient's, else the default; a shorter tag stands in.
func TestLocales(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ asked, recipients, want string }{
		"none":                 {"", "", "default"},
		"the recipient's":      {"", "fr", "fr"},
		"a shorter one":        {"", "fr-CA", "fr"},
		"the request's":        {"fr-CH", "de", "fr"},
		"the request's, other": {"de", "fr", "default"},
		"no tag":               {"", "x!", "default"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.template("shipped", shipped)
			b.put(core.Recipient{ID: "ann", Locale: tc.recipients})
			title := map[string]string{"default": "Order 7 for Ann", "fr": "Commande 7 de Ann"}[tc.want]
			got, _ := b.decide(intake.Request{To: []intake.Target{{Recipient: "ann"}}, Channels: []string{"in_app"}, Template: "shipped", Data: json.RawMessage(`{"order":7,"name":"Ann"}`), Locale: tc.asked})
			want := []sent{{Kind: "websocket", Route: "websocket", Address: "ann", Recipient: "ann", Locale: tc.want, Title: title}}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestPinning: the version that was rendered is on record, the latest or the one asked for; of a
// shipped template its hash.
func TestPinning(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.template("t", `{"locales":{"default":{"title":"first"}}}`)
	b.template("t", `{"locales":{"default":{"title":"second"}}}`)
	for version, want := range map[int][2]string{0: {"t@2", "second"}, 1: {"t@1", "first"}, 2: {"t@2", "second"}} {
		got, a := b.decide(intake.Request{To: []intake.Target{at("apns", token)}, Template: "t", Version: version})
		if a.Notification.Template != want[0] || got[0].Title != want[1] {
			t.Errorf("version %d is recorded as %s and says %q, want %v", version, a.Notification.Template, got[0].Title, want)
		}
	}
	_, a := b.decide(intake.Request{To: []intake.Target{at("email", "ann@example.com")}, Template: "password-code", Data: json.RawMessage(`{"code":"123456","minutes":5}`)})
	name, hash, _ := strings.Cut(a.Notification.Template, "@")
	if name != "password-code" || len(hash) != 64 {
		t.Errorf("a shipped template is recorded as %q", a.Notification.Template)
	}
}

// TestDataOfEntries: an entry's data is laid over the request's, for that entry alone; numbers keep
// their digits; what comes out the same is kept once.
func TestDataOfEntries(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.template("shipped", shipped)
	b.put(ann())
	entry := func(kind, address, data string) intake.Target {
		x := at(kind, address)
		x.Data = json.RawMessage(data)
		return x
	}
	got, a := b.decide(intake.Request{Template: "shipped", Data: json.RawMessage(`{"order":12345678901234567890,"name":"all"}`), To: []intake.Target{
		entry("email", "a@example.com", `{"name":"A"}`), at("email", "b@example.com"), entry("email", "c@example.com", `{"name":"A"}`),
		{Recipient: "ann", Data: json.RawMessage(`{"name":"Ann","order":1}`)}, at("email", "d@example.com")}, Channels: []string{"email"}})
	titles := make([]string, len(got))
	for i := range got {
		titles[i] = got[i].Title
	}
	want := []string{"Order 12345678901234567890 for A", "Order 12345678901234567890 for all", "Order 12345678901234567890 for A", "Commande 1 de Ann", "Order 12345678901234567890 for all"}
	if d := cmp.Diff(want, titles); d != "" {
		t.Errorf("titles (-want +got):\n%s", d)
	}
	if len(a.Contents) != 3 {
		t.Errorf("%d contents are kept, want 3", len(a.Contents))
	}
}

// TestRecipientInTemplates: a template sees who it is for, and who lacks what it shows is named.
func TestRecipientInTemplates(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.template("t", `{"locales":{"default":{"title":"{{ recipient.attributes.tier }} {{ recipient.id }}"}}}`)
	b.put(ann())
	b.put(core.Recipient{ID: "bob", Attributes: json.RawMessage(`{"tier":"tin"}`)})
	got, _ := b.decide(intake.Request{To: []intake.Target{{Recipient: "ann"}, {Recipient: "bob"}}, Template: "t", Channels: []string{"in_app"}})
	if got[0].Title != "gold ann" || got[1].Title != "tin bob" {
		t.Errorf("rendered %q and %q", got[0].Title, got[1].Title)
	}
	b.recorded = nil
	b.put(core.Recipient{ID: "carl", Attributes: json.RawMessage(`"no object"`)})
	b.put(core.Recipient{ID: "dora"})
	codes, details := b.refused(intake.Request{To: []intake.Target{{Recipient: "ann"}, {Recipient: "carl"}, {Recipient: "dora"}}, Template: "t"})
	if d := cmp.Diff(map[string]string{"/template": intake.FaultContent}, codes); d != "" || !strings.Contains(details, "/to/1") {
		t.Errorf("faults %s, want one that names /to/1\n%s", details, d)
	}
}

// TestLimits: what a service would refuse is refused here, with the service's own limit.
func TestLimits(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 4096)
	block := func(channel, text string) *intake.Content {
		return &intake.Content{Title: "T", Channels: map[string]json.RawMessage{channel: json.RawMessage(text)}}
	}
	for name, tc := range map[string]struct {
		to      intake.Target
		content *intake.Content
		pointer string
		detail  string // in every refusal: the limit
	}{
		"apns":                  {at("apns", token), &intake.Content{Body: long}, "/content", "4096"},
		"apns, by its payload":  {at("apns", token), block("push", `{"apns":{"payload":{"x":"`+long+`"}}}`), "/content/push", "4096"},
		"fcm":                   {at("fcm", phone), &intake.Content{Body: long}, "/content", "4096"},
		"fcm, a key of its own": {at("fcm", phone), &intake.Content{Title: "T", Data: json.RawMessage(`{"google.x":"1"}`)}, "/content", "google.x"},
		"email, subject":        {at("email", "a@example.com"), &intake.Content{Title: long}, "/content", "900"},
		"email, attachments":    {at("email", "a@example.com"), block("email", `{"attachments":[{"filename":"f","content":"`+strings.Repeat("QUFB", 2<<20)+`"}]}`), "/content/email", "5 MiB"},
		"email, a line break":   {at("email", "a@example.com"), &intake.Content{Title: "a\r\nBcc: b@example.com"}, "/content", "line break"},
		"websocket":             {at("websocket", "u"), &intake.Content{Body: strings.Repeat(long, 32)}, "/content", "bytes"},
		"sms, by its schema":    {at("sms", "+4915112345678"), block("sms", `{"text":"`+long+`"}`), "/content/sms/text", "160"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			codes, details := newBench(t).refused(intake.Request{To: []intake.Target{tc.to}, Content: tc.content})
			if d := cmp.Diff(map[string]string{tc.pointer: intake.FaultContent}, codes); d != "" || !strings.Contains(details, tc.detail) {
				t.Errorf("%s; want the limit %q\n%s", details, tc.detail, d)
			}
		})
	}
}

// TestFaults: everything that is wrong is in one answer, each at its place.
func TestFaults(t *testing.T) {
	t.Parallel()
	raw := func(s string) json.RawMessage { return json.RawMessage(s) }
	mail := []intake.Target{at("email", "a@example.com")}
	for name, tc := range map[string]struct {
		req  intake.Request
		want map[string]string
	}{
		"nothing at all":        {intake.Request{}, map[string]string{"/to": "required", "/content": "required"}},
		"content and template":  {intake.Request{To: mail, Content: words(), Template: "welcome"}, map[string]string{"/template": "conflict"}},
		"empty content":         {intake.Request{To: mail, Content: &intake.Content{URL: "https://example.com"}}, map[string]string{"/content": "required"}},
		"a template's input":    {intake.Request{To: []intake.Target{{Kind: "email", Address: "a@example.com", Pointer: "/email", Data: raw(`{"a":1}`)}}, Content: words(), Data: raw(`{"a":1}`), Locale: "fr"}, map[string]string{"/data": "conflict", "/to/0/data": "conflict", "/locale": "conflict"}},
		"no such template":      {intake.Request{To: mail, Template: "none"}, map[string]string{"/template": "unknown"}},
		"no such version":       {intake.Request{To: mail, Template: "shipped", Version: 9}, map[string]string{"/version": "unknown"}},
		"no version of a file":  {intake.Request{To: mail, Template: "welcome", Version: 1}, map[string]string{"/version": "unknown"}},
		"neither":               {intake.Request{To: mail, Template: "none", Version: 9}, map[string]string{"/template": "unknown"}},
		"data that is no JSON":  {intake.Request{To: mail, Template: "shipped", Data: raw(`[1]`)}, map[string]string{"/data": "invalid"}},
		"data against a schema": {intake.Request{To: mail, Template: "shipped", Data: raw(`{"order":"x","name":"A"}`)}, map[string]string{"/data/order": "content"}},
		"data of an entry": {intake.Request{Template: "shipped", Data: raw(`{"order":"x","name":"A"}`), To: []intake.Target{
			{Kind: "email", Address: "a@example.com", Pointer: "/email", Data: raw(`{"order":7}`)}, {Kind: "email", Address: "b@example.com", Pointer: "/email", Data: raw(`{"name":5}`)},
			{Kind: "email", Address: "c@example.com", Pointer: "/email", Data: raw(`"no object"`)}}},
			map[string]string{"/data/order": "content", "/to/1/data/name": "content", "/to/2/data": "invalid"}},
		"a template's block": {intake.Request{To: []intake.Target{at("apns", token)}, Template: "block"}, map[string]string{"/template": "content"}},
		"blocks": {intake.Request{To: mail, Content: &intake.Content{Channels: map[string]json.RawMessage{
			"email": raw(`{"subject":5,"cc":"x","bcc":"y","headers":{"a b":"c"},"text":""}`), "pager": raw(`{}`), "sms": raw(`{}`), "in_app": raw(`[`), "a/b~c": raw(`{}`)}}},
			map[string]string{"/content/email/subject": "content", "/content/email/cc": "content", "/content/email/bcc": "content", "/content/email/headers/a b": "content", "/content/pager": "unknown",
				"/content/sms": "content", "/content/in_app": "invalid", "/content/a~1b~0c": "unknown"}},
		"no content for an address": {intake.Request{To: []intake.Target{at("apns", token)}, Content: &intake.Content{Channels: map[string]json.RawMessage{"email": raw(`{"text":"T"}`)}}}, map[string]string{"/to/0": "content"}},
		"addresses": {intake.Request{Content: words(), To: []intake.Target{
			at("apns", token+"/../x"), at("email", "ok@example.com"), at("email", "a@-b.com"), at("fcm", "a b"), at("websocket", "a/b"), at("sms", "+4900111111"), at("pager", "1"),
			{Kind: "pager", Address: "1", Pointer: "/address"}, {Kind: "apns", Address: "zz", Pointer: "/address"}, {Kind: "apns", Address: token, Route: "email", Pointer: "/address"},
			{Kind: "apns", Address: "zz", Route: "none", Pointer: "/address"}, at("fcm", strings.Repeat("a", 5000)), {}}},
			map[string]string{"/to/0/apns": "invalid", "/to/2/email": "invalid", "/to/3/fcm": "invalid", "/to/4/websocket": "invalid", "/to/5/sms": "invalid", "/to/6/pager": "unknown",
				"/to/7/kind": "unknown", "/to/8/address": "invalid", "/to/9/route": "unknown", "/to/10/address": "invalid", "/to/10/route": "unknown", "/to/11/fcm": "invalid", "/to/12": "unknown"}},
		"an address too long, and one not served beside words not carried": {intake.Request{Content: &intake.Content{Body: "offer"}, Channels: []string{"sms"}, To: []intake.Target{
			at("sms", "+"+strings.Repeat("1", 5000)), {Recipient: "stale"}, at("sms", "+4911111111")}}, map[string]string{"/to/0/sms": "invalid", "/content": "content"}},
		"too many": {intake.Request{To: make([]intake.Target, core.MaxTo+1), Content: words()}, map[string]string{"/to": "too_large"}},
		"all at once": {intake.Request{To: []intake.Target{at("email", "no address"), at("apns", token), {Recipient: "ann"}}, Content: &intake.Content{Body: strings.Repeat("x", 5000)},
			Channels: []string{"push", "email", "pigeon"}, TTL: -1, SendAt: now.Add(-time.Hour), Delay: 1},
			map[string]string{"/to/0/email": "invalid", "/content": "content content", "/channels/2": "unknown", "/ttl": "range", "/send_at": "range", "/delay": "conflict"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.put(ann())
			b.put(core.Recipient{ID: "stale", Endpoints: []core.Endpoint{{Kind: "sms", Address: "+4900111111"}}})
			b.template("shipped", shipped)
			b.template("block", `{"locales":{"default":{"title":"T","push":{"apns":{"headers":{"x":"y"}}}}}}`)
			codes, details := b.refused(tc.req)
			if d := cmp.Diff(tc.want, codes); d != "" {
				t.Errorf("faults (-want +got):\n%s\n%s", d, details)
			}
			if strings.Contains(details, token) || strings.Contains(details, "no address") {
				t.Errorf("the faults repeat an address: %s", details)
			}
		})
	}
}

// TestCheckAddress is what endpoints are stored by: their form, and what their kind says of them.
func TestCheckAddress(t *testing.T) {
	t.Parallel()
	r := newBench(t).Routing()
	for address, want := range map[[2]string]string{
		{"apns", token}: "", {"email", "ann@example.com"}: "", {"sms", "+4911111111"}: "", {"websocket", "ann"}: "", {"fcm", phone}: "",
		{"apns", "../x"}: "must match", {"email", "a@-b.com"}: "domain", {"sms", "+4900111111"}: "no country", {"sms", "+" + strings.Repeat("1", 5000)}: "4096",
		{"pager", "1"}: "no route of kind", {"email", ""}: "must match", {"websocket", "a\x00"}: "must match", {"websocket", "a\xff"}: "must match",
	} {
		err := r.CheckAddress(address[0], address[1])
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s %.20q: %v, want %q", address[0], address[1], err, want)
		}
	}
}

// TestCheckByKinds: what the service of a named channel takes from nobody is refused before there is anybody.
func TestCheckByKinds(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, c := range []struct {
		name     string
		body     int
		channels []string
		refused  bool
	}{
		{"short", 10, []string{"push"}, false},
		{"long", 5000, []string{"push"}, true},
		{"long by mail", 5000, []string{"email"}, false},
		{"long where it may go", 5000, nil, false}, // perhaps nobody has a device
	} {
		_, err := b.Check(t.Context(), "a", &intake.Request{Content: &intake.Content{Title: "t", Body: strings.Repeat("x", c.body)}, Channels: c.channels})
		var bad *intake.Invalid
		if !errors.As(err, &bad) {
			if err != nil || c.refused {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if f := bad.Faults[0]; !c.refused || f.Pointer != "/content" || !strings.Contains(f.Detail, "4096") {
			t.Errorf("%s: %+v", c.name, bad.Faults)
		}
	}
}

// TestFaultsAreBounded: a thousand bad entries do not make a thousand faults.
func TestFaultsAreBounded(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	to := make([]intake.Target, core.MaxTo)
	for i := range to {
		to[i] = at("apns", "zz")
	}
	if codes, _ := b.refused(intake.Request{To: to, Content: words()}); len(codes) != 100 {
		t.Errorf("%d faults, want 100", len(codes))
	}
}
