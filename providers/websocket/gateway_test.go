package websocket_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/websocket"
)

func TestDeliverReachesEveryTransport(t *testing.T) {
	t.Parallel()
	s := open(t)
	for _, transport := range []string{"websocket", "sse", "http_stream"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			user := "u " + transport
			var c *conn
			if transport == "websocket" {
				c = connect(t, s, token(t, "shop", user))
			} else {
				var r reply
				c, r = stream(t, s, transport, connectBody(token(t, "shop", user)))
				c.connected(r)
			}
			m := message("shop", user, "Hi \"you\" </script>\n\u2028 ☃ \xff")
			m.Body, m.URL, m.Category = "tab\tand\x01", "https://example.com/?a=1&b=2", "orders"
			m.Data = json.RawMessage("{\r\n \"screen\": \"order\",\n\"n\": 12345678901234567890}")
			m.Content = json.RawMessage(`{"data":{"badge":3}}`)
			if got := outcome(t, s, m); got != providers.Accepted {
				t.Errorf("outcome %v, want accepted", got)
			}
			want := content{
				ID: m.ID, Title: "Hi \"you\" </script>\n\u2028 ☃ \ufffd", Body: m.Body, URL: m.URL, Category: "orders",
				Data: json.RawMessage(`{"badge":3,"n":12345678901234567890,"screen":"order"}`), CreatedAt: m.CreatedAt,
			}
			if diff := cmp.Diff(want, c.pub()); diff != "" {
				t.Errorf("publication (-want +got):\n%s", diff)
			}
		})
	}
}

func TestData(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := connect(t, s, token(t, "shop", "u"))
	for _, row := range []struct{ data, content, want string }{
		{``, ``, `{}`},
		{`null`, `{}`, `{}`},
		{"{ \"a\":\r\n 1}", ``, `{"a":1}`},
		{`{"a":1}`, ``, `{"a":1}`},
		{`{"a":1}`, `{"data":null}`, `{"a":1}`},
		{``, `{"data":{"b":"<&>"}}`, `{"b":"<&>"}`},
		{`{"a":1,"o":{"x":1,"y":2}}`, `{"data":{"a":2,"o":{"y":null,"z":[1]}}}`, `{"a":2,"o":{"x":1,"z":[1]}}`},
		{`{"n":0.10}`, `{"data":{"m":1e400}}`, `{"m":1e400,"n":0.10}`},
	} {
		m := message("shop", "u", "data")
		m.Data, m.Content = json.RawMessage(row.data), json.RawMessage(row.content)
		if got := outcome(t, s, m); got != providers.Accepted {
			t.Fatalf("%s over %s: outcome %v", row.content, row.data, got)
		}
		if got := c.pub(); string(got.Data) != row.want || got.ID != m.ID {
			t.Errorf("%s over %s: data %s, want %s", row.content, row.data, got.Data, row.want)
		}
	}
	for _, bad := range []struct{ data, content, code string }{
		{`[1]`, ``, "bad_content"},
		{`{"a":`, ``, "bad_content"},
		{``, `{"data":7}`, "bad_content"},
		{`{"a":"` + strings.Repeat("x", websocket.MaxPayload) + `"}`, ``, "too_large"},
	} {
		m := message("shop", "u", "bad data")
		m.Data, m.Content = json.RawMessage(bad.data), json.RawMessage(bad.content)
		r := deliver(t, s, m)[0]
		if r.Outcome != providers.Rejected || r.Code != bad.code {
			t.Errorf("%.20s over %s: %v %s, want rejected %s", bad.content, bad.data, r.Outcome, r.Code, bad.code)
		}
		if err := websocket.Kind().Check(&m); err == nil {
			t.Errorf("%.20s over %s: Check takes what Deliver rejects", bad.content, bad.data)
		}
	}
}

func TestOutcomes(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := connect(t, s, token(t, "shop", "here"))
	tested := message("shop", "here", "only a test")
	tested.Test = true
	slash, noApp := message("shop", "a/b", ""), message("", "here", "")
	got := deliver(t, s, message("shop", "here", "one"), message("shop", "away", "two"), tested, slash, noApp, message("shop", "here", "three"))
	for i, want := range []struct {
		outcome providers.Outcome
		code    string
	}{
		{providers.Accepted, ""}, {providers.Absent, ""}, {providers.Accepted, "test"},
		{providers.Rejected, "bad_address"}, {providers.Rejected, "bad_address"}, {providers.Accepted, ""},
	} {
		if got[i].Outcome != want.outcome || got[i].Code != want.code {
			t.Errorf("message %d: %v %q, want %v %q", i, got[i].Outcome, got[i].Code, want.outcome, want.code)
		}
	}
	if one, three := c.pub().Title, c.pub().Title; one != "one" || three != "three" {
		t.Errorf("got %q and %q; the tested message must not be shown", one, three)
	}
	if reused := s.Health(t.Context()).Pool.Reused; reused != 2 {
		t.Errorf("%d uses of live connections counted, want 2", reused)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	err := s.Deliver(ended, []providers.Message{message("shop", "here", "late")}, func(r providers.Result) {
		if r.Outcome != providers.Deferred {
			t.Errorf("after the context's end: %v, want deferred", r.Outcome)
		}
	})
	if err != nil {
		t.Errorf("Deliver: %v", err)
	}
}

func TestRetryIsNotShownTwice(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := connect(t, s, token(t, "shop", "u"))
	m := message("shop", "u", "once")
	again := m
	again.Attempt = 2
	deliver(t, s, m)
	if got := outcome(t, s, again); got != providers.Accepted {
		t.Errorf("second attempt: %v, want accepted", got)
	}
	deliver(t, s, message("shop", "u", "next"))
	if first, second := c.pub().Title, c.pub().Title; first != "once" || second != "next" {
		t.Errorf("shown %q, %q; want each once", first, second)
	}
}

func TestRecovery(t *testing.T) {
	t.Parallel()
	s := open(t, func(s *websocket.Settings) { s.HistorySize = 200 })
	tok := token(t, "shop", "u")
	c := connect(t, s, tok)
	deliver(t, s, message("shop", "u", "before"))
	c.pub()
	from := position{channel: c.at.channel, epoch: c.at.epoch, offset: c.at.offset + 1}
	c.cut()
	gone(t, s)
	for _, title := range []string{"one", "two", "three"} {
		if got := outcome(t, s, message("shop", "u", title)); got != providers.Absent {
			t.Errorf("%s: %v, want absent", title, got)
		}
	}
	c = connect(t, s, tok, from)
	if diff := cmp.Diff([]string{"one", "two", "three"}, c.recovered()); diff != "" || !c.sub.Recovered {
		t.Errorf("recovered %v (-want +got):\n%s", c.sub.Recovered, diff)
	}
	for range 200 {
		deliver(t, s, message("shop", "u", "more"))
	}
	if c = connect(t, s, tok, from); c.sub.Recovered {
		t.Error("recovered over a gap that history no longer covers: the client would not ask the inbox")
	}
}

func TestAppsAreApart(t *testing.T) {
	t.Parallel()
	s := open(t)
	apps := []string{"a", "b", "a/b", "a%2Fb", "A", "ä"}
	clients := map[string]*conn{}
	channels := map[string]bool{}
	for _, app := range apps {
		clients[app] = connect(t, s, token(t, app, "u"))
		channels[clients[app].at.channel] = true
	}
	if len(channels) != len(apps) {
		t.Fatalf("%d apps share %d channels", len(apps), len(channels))
	}
	for _, app := range apps {
		deliver(t, s, message(app, "u", "for "+app))
	}
	for _, app := range apps {
		if got := clients[app].pub().Title; got != "for "+app {
			t.Errorf("app %s got %q", app, got)
		}
	}
}

// claimed makes a token with other claims, or another key or algorithm, than a good one.
func claimed(t *testing.T, method jwt.SigningMethod, key any, claims jwt.MapClaims) string {
	t.Helper()
	all := jwt.MapClaims{"aud": "carillon", "sub": "u", "app": "shop", "exp": time.Now().Add(time.Hour).Unix()}
	for k, v := range claims {
		if v == nil {
			delete(all, k)
		} else {
			all[k] = v
		}
	}
	tok, err := jwt.NewWithClaims(method, all).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestTokens(t *testing.T) {
	t.Parallel()
	tokens, err := websocket.NewTokens(secret, strings.Repeat("p", 32))
	if err != nil {
		t.Fatal(err)
	}
	tok, expires, err := tokens.Mint("shop", "u", 0)
	if err != nil {
		t.Fatal(err)
	}
	got, err := tokens.Verify(tok)
	if err != nil {
		t.Fatalf("our own token: %v", err)
	}
	if diff := cmp.Diff(websocket.Claims{App: "shop", Recipient: "u", ExpiresAt: expires}, got); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
	if left := time.Until(expires); left > websocket.DefaultTokenTTL || left < websocket.DefaultTokenTTL-5*time.Second {
		t.Errorf("a token without a ttl lasts %v", left)
	}
	now := time.Now()
	hs, key := jwt.SigningMethodHS256, []byte(secret)
	withKid := jwt.NewWithClaims(hs, jwt.MapClaims{"aud": "carillon", "sub": "u", "app": "shop", "exp": now.Add(time.Hour).Unix()})
	withKid.Header["kid"] = "other"
	otherKid, _ := withKid.SignedString(key)
	for _, row := range []struct {
		name, token string
		want        error
	}{
		{"a back end's own", claimed(t, hs, key, nil), nil},
		{"a back end's clock is ahead", claimed(t, hs, key, jwt.MapClaims{"iat": now.Add(10 * time.Second).Unix()}), nil},
		{"previous secret", claimed(t, hs, []byte(strings.Repeat("p", 32)), nil), nil},
		{"expired", claimed(t, hs, key, jwt.MapClaims{"exp": now.Add(-time.Second).Unix()}), websocket.ErrTokenExpired},
		{"long expired", claimed(t, hs, key, jwt.MapClaims{"exp": now.Add(-time.Hour).Unix()}), websocket.ErrTokenExpired},
		{"expired and forged", claimed(t, hs, []byte("x"), jwt.MapClaims{"exp": now.Add(-time.Hour).Unix()}), websocket.ErrTokenInvalid},
		{"no exp", claimed(t, hs, key, jwt.MapClaims{"exp": nil}), websocket.ErrTokenInvalid},
		{"too far", claimed(t, hs, key, jwt.MapClaims{"exp": now.Add(25 * time.Hour).Unix()}), websocket.ErrTokenInvalid},
		{"too long", claimed(t, hs, key, jwt.MapClaims{"iat": now.Add(-24 * time.Hour).Unix()}), websocket.ErrTokenInvalid},
		{"issued tomorrow", claimed(t, hs, key, jwt.MapClaims{"iat": now.Add(time.Minute).Unix()}), websocket.ErrTokenInvalid},
		{"not yet", claimed(t, hs, key, jwt.MapClaims{"nbf": now.Add(time.Minute).Unix()}), websocket.ErrTokenInvalid},
		{"no aud", claimed(t, hs, key, jwt.MapClaims{"aud": nil}), websocket.ErrTokenInvalid},
		{"other aud", claimed(t, hs, key, jwt.MapClaims{"aud": "other"}), websocket.ErrTokenInvalid},
		{"no app", claimed(t, hs, key, jwt.MapClaims{"app": nil}), websocket.ErrTokenInvalid},
		{"no sub", claimed(t, hs, key, jwt.MapClaims{"sub": nil}), websocket.ErrTokenInvalid},
		{"sub with a slash", claimed(t, hs, key, jwt.MapClaims{"sub": "a/b"}), websocket.ErrTokenInvalid},
		{"sub too long", claimed(t, hs, key, jwt.MapClaims{"sub": strings.Repeat("u", 256)}), websocket.ErrTokenInvalid},
		{"other secret", claimed(t, hs, []byte(strings.Repeat("x", 32)), nil), websocket.ErrTokenInvalid},
		{"other kid", otherKid, websocket.ErrTokenInvalid},
		{"other HMAC", claimed(t, jwt.SigningMethodHS512, key, nil), websocket.ErrTokenInvalid},
		{"alg none", claimed(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil), websocket.ErrTokenInvalid},
		{"empty", "", websocket.ErrTokenInvalid},
		{"garbage", "a.b.c", websocket.ErrTokenInvalid},
	} {
		if _, err := tokens.Verify(row.token); !errors.Is(err, row.want) {
			t.Errorf("%s: %v, want %v", row.name, err, row.want)
		}
	}
	for _, bad := range []struct {
		app, recipient string
		ttl            time.Duration
	}{{"", "u", 0}, {"shop", "", 0}, {"shop", "a/b", 0}, {"shop", "a\x00", 0}, {"shop", "\xff", 0}, {"shop", "u", -1}, {"shop", "u", 25 * time.Hour}} {
		if _, _, err := tokens.Mint(bad.app, bad.recipient, bad.ttl); err == nil {
			t.Errorf("minted for %q %q %v", bad.app, bad.recipient, bad.ttl)
		}
	}
	if _, err := websocket.NewTokens("short"); err == nil || strings.Contains(err.Error(), "short ") {
		t.Errorf("a short secret: %v", err)
	}
}

func TestConnectRefused(t *testing.T) {
	t.Parallel()
	s := open(t)
	hs := jwt.SigningMethodHS256
	for name, tok := range map[string]string{
		"no token":       "",
		"garbage":        "x",
		"foreign secret": claimed(t, hs, []byte(strings.Repeat("x", 32)), nil),
		"no app":         claimed(t, hs, []byte(secret), jwt.MapClaims{"app": nil}),
	} {
		c := mustDial(t, s)
		c.command("connect", connectBody(tok))
		t.Log(name)
		c.endsWith(3500) // terminal: the SDK does not come back with the same token
	}
	c := mustDial(t, s)
	old := claimed(t, hs, []byte(secret), jwt.MapClaims{"exp": time.Now().Add(-time.Second).Unix()})
	if r := c.ask("connect", connectBody(old)); r.Error == nil || r.Error.Code != 109 {
		t.Errorf("expired token was answered %+v, want error 109, on which an SDK asks for a new one", r)
	}
}

func TestOnlyOnesOwn(t *testing.T) {
	t.Parallel()
	s := open(t)
	other := connect(t, s, token(t, "shop", "other"))
	c := connect(t, s, token(t, "shop", "me"))
	for _, cmd := range []struct{ member, body string }{
		{"subscribe", `{"channel":%q}`},
		{"subscribe", `{"channel":%q,"recover":true}`},
		{"publish", `{"channel":%q,"data":{"title":"forged"}}`},
		{"presence", `{"channel":%q}`},
		{"presence_stats", `{"channel":%q}`},
		{"history", `{"channel":%q,"limit":10}`},
	} {
		for _, channel := range []string{other.at.channel, "shop/offline", "#any"} {
			r := c.ask(cmd.member, fmt.Sprintf(cmd.body, channel))
			if r.Error == nil || r.Error.Code != 103 {
				t.Errorf("%s of %s was answered %+v, want error 103", cmd.member, channel, r)
			}
		}
	}
	for _, own := range []string{"publish", "presence", "history"} {
		if r := c.ask(own, fmt.Sprintf(`{"channel":%q,"data":{},"limit":1}`, c.at.channel)); r.Error == nil || r.Error.Code != 103 {
			t.Errorf("%s of its own channel was answered %+v, want error 103", own, r)
		}
	}
	deliver(t, s, message("shop", "other", "not for me"), message("shop", "me", "mine"))
	if got := c.pub().Title; got != "mine" {
		t.Errorf("got %q", got)
	}
	if got := other.pub().Title; got != "not for me" {
		t.Errorf("the other got %q", got)
	}
}

func TestReceipts(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := connect(t, s, token(t, "a/b", "ü 1"))
	a, b := uuid.NewString(), uuid.NewString()
	if r := c.ask("rpc", fmt.Sprintf(`{"method":"ack","data":{"ids":[%q]}}`, a)); r.Error == nil || r.Error.Code != 100 || !r.Error.Temporary {
		t.Errorf("with nobody receiving: %+v, want a temporary error 100", r)
	}
	got := receive(t, s, keep)
	for method, event := range map[string]providers.Event{
		"ack": providers.EventDelivered, "seen": providers.EventSeen, "read": providers.EventRead, "archive": providers.EventArchived,
	} {
		r := c.rpc(method, fmt.Sprintf(`{"ids":[%q,%q,%q]}`, a, strings.ToUpper(b), a))
		if r.Error != nil || string(r.RPC.Data) != "{}" {
			t.Fatalf("%s was answered %+v", method, r)
		}
		ids := map[string]bool{}
		for range 2 {
			select {
			case r := <-got:
				if r.At.IsZero() || time.Since(r.At) > waiting {
					t.Errorf("%s: receipt of %v", method, r.At)
				}
				ids[r.ID], r.ID, r.At = true, "", time.Time{}
				if diff := cmp.Diff(providers.Receipt{App: "a/b", Address: "ü 1", Event: event}, r); diff != "" {
					t.Errorf("%s (-want +got):\n%s", method, diff)
				}
			default:
				t.Fatalf("%s was answered before its receipts were kept", method)
			}
		}
		if diff := cmp.Diff(map[string]bool{a: true, b: true}, ids); diff != "" {
			t.Errorf("%s (-want +got):\n%s", method, diff)
		}
	}
	if err := s.Receive(t.Context(), keep); err == nil {
		t.Error("a second Receive ran beside the first")
	}
}

func TestBadRPC(t *testing.T) {
	t.Parallel()
	s := open(t)
	got := receive(t, s, keep)
	c := connect(t, s, token(t, "shop", "u"))
	id := uuid.NewString()
	many := strings.TrimSuffix(strings.Repeat(`"`+id+`",`, 101), ",")
	for _, row := range []struct {
		method, data string
		code         int
	}{
		{"ack", `{}`, 107}, {"ack", `{"ids":[]}`, 107}, {"ack", `{"ids":null}`, 107}, {"ack", `null`, 107}, {"ack", `"x"`, 107},
		{"ack", `{"ids":["x"]}`, 107}, {"ack", `{"ids":["urn:uuid:` + id + `"]}`, 107}, {"ack", `{"ids":["{` + id + `}"]}`, 107},
		{"ack", `{"ids":["` + strings.ReplaceAll(id, "-", "") + `"]}`, 107}, {"ack", `{"ids":["` + id[:35] + `g"]}`, 107},
		{"ack", `{"ids":["` + id + `"],"app":"other"}`, 107}, {"ack", `{"ids":[` + many + `]}`, 107}, {"ack", `{"ids":"` + id + `"}`, 107},
		{"delete", `{"ids":["` + id + `"]}`, 104}, {"", `{"ids":["` + id + `"]}`, 104},
	} {
		if r := c.ask("rpc", fmt.Sprintf(`{"method":%q,"data":%s}`, row.method, row.data)); r.Error == nil || r.Error.Code != row.code {
			t.Errorf("%s %.60s was answered %+v, want error %d", row.method, row.data, r, row.code)
		}
	}
	select {
	case r := <-got:
		t.Errorf("reported %+v", r)
	default:
	}
}

func TestReceiptNotKept(t *testing.T) {
	t.Parallel()
	s := open(t)
	good, bad := uuid.NewString(), uuid.NewString()
	receive(t, s, func(r providers.Receipt) error {
		if r.ID == bad {
			return errors.New("disk full")
		}
		return nil
	})
	c := connect(t, s, token(t, "shop", "u"))
	if r := c.rpc("ack", fmt.Sprintf(`{"ids":[%q]}`, good)); r.Error != nil {
		t.Fatalf("good: %+v", r)
	}
	r := c.ask("rpc", fmt.Sprintf(`{"method":"ack","data":{"ids":[%q,%q]}}`, good, bad))
	if r.Error == nil || r.Error.Code != 100 || !r.Error.Temporary {
		t.Errorf("one of two not kept: %+v, want a temporary error 100", r)
	}
	if r.Error != nil && strings.Contains(r.Error.Message, "disk") {
		t.Errorf("the client is told %q", r.Error.Message)
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	good := `{"secret":"` + secret + `"`
	for _, row := range []struct{ settings, want string }{
		{`{}`, "secret"},
		{`{"secret":"short"}`, "32 bytes"},
		{good + `,"colour":"red"}`, "colour"},
		{good + `} {}`, "more than one"},
		{good + `,"history_ttl":5}`, `"90s"`},
		{good + `,"history_size":0,"ping_interval":"1ms"}`, "history_size: 0 is not between 1 and 10000\nping_interval"},
		{good + `,"pong_timeout":"25s"}`, "shorter than ping_interval"},
		{good + `,"origins":["https://*.example.com"]}`, "origins"},
		{good + `,"origins":["example.com"]}`, "origins"},
		{good + `,"origins":["https://example.com/"]}`, "origins"},
		{good + `,"origins":["null"]}`, "origins"},
		{good + `,"serve":false}`, "redis must be set"},
		{good + `,"redis":"http://:hunter2@x"}`, "redis-sentinel://"},
		{good + `,"redis":"redis://:hunter2@x:y/z"}`, "redis-sentinel://"},
		{good + `,"redis":"redis://:hunter2@x/0?tsl=true"}`, "redis:// does not have; there are tls, ca_file"},
		{good + `,"redis":"redis://:hunter2@x/0?tls=1"}`, "tls must be true or false"},
		{good + `,"redis":"redis-cluster://:hunter2@x?master=m"}`, "redis-cluster:// does not have"},
		{good + `,"redis":"redis-cluster://:hunter2@x/3"}`, "has one database"},
		{good + `,"redis":"rediss://:hunter2@x/3?cert_file=/no/such.pem"}`, "cert_file and key_file go together"},
		{good + `,"redis":"rediss://:hunter2@x/3?cert_file=/no/such.pem&key_file=/no/such.key"}`, "read cert_file and key_file: open /no/such.pem"},
		{good + `,"redis":"redis://:hunter2@x/3?cert_file=a&key_file=b"}`, "is not redis://"},
		{good + `,"redis":"redis://x?tls=true&tls=false"}`, "given more than once"},
		{good + `,"redis":"redis-sentinel://:hunter2@a,b"}`, "redis-sentinel://"},
		{good + `,"redis_prefix":"{x}"}`, "redis_prefix"},
	} {
		p, err := websocket.Kind().Open(t.Context(), []byte(row.settings))
		if err == nil {
			_ = p.Close(t.Context())
			t.Errorf("%s was taken", row.settings)
			continue
		}
		if !strings.Contains(err.Error(), row.want) || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v, want it to name %q and no secret", row.settings, err, row.want)
		}
	}
	p, err := websocket.Kind().Open(t.Context(), []byte(good+`,"refresh":true,"origins":["*"],"history_ttl":"2h"}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestSettingsAreDocumented holds the documented settings and the understood ones together.
func TestSettingsAreDocumented(t *testing.T) {
	t.Parallel()
	raw, err := json.Marshal(websocket.DefaultSettings())
	if err != nil {
		t.Fatal(err)
	}
	var understood map[string]any
	if err := json.Unmarshal(raw, &understood); err != nil {
		t.Fatal(err)
	}
	for _, doc := range websocket.Kind().Settings {
		v, ok := understood[doc.Name]
		if !ok {
			t.Errorf("%s is documented and not understood", doc.Name)
			continue
		}
		delete(understood, doc.Name)
		got := fmt.Sprint(v)
		switch n := v.(type) {
		case nil:
			got = ""
		case float64:
			got = fmt.Sprint(int64(n))
			if doc.Type == providers.Duration {
				want, err := time.ParseDuration(doc.Default)
				if err != nil || want != time.Duration(n) {
					t.Errorf("%s: documented default %s, is %v", doc.Name, doc.Default, time.Duration(n))
				}
				continue
			}
		}
		if got != doc.Default {
			t.Errorf("%s: documented default %q, is %q", doc.Name, doc.Default, got)
		}
	}
	if len(understood) > 0 {
		t.Errorf("understood and not documented: %v", understood)
	}
}

func TestTwoGatewaysInOneProcess(t *testing.T) {
	t.Parallel()
	one, two := open(t), open(t)
	for _, s := range []*site{one, two} {
		connect(t, s, token(t, "shop", "u"))
		families, err := s.Gather()
		if err != nil || len(families) == 0 {
			t.Errorf("Gather: %d families, %v", len(families), err)
		}
		for _, f := range families {
			if !strings.HasPrefix(f.GetName(), "carillon_websocket_") {
				t.Errorf("metric %s", f.GetName())
			}
		}
	}
	if got := outcome(t, two, message("shop", "u", "hi")); got != providers.Accepted {
		t.Errorf("outcome %v", got)
	}
}

func TestNothingOfTheGatewayWhenClosed(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := connect(t, s, token(t, "shop", "u"))
	sse, r := stream(t, s, "sse", connectBody(token(t, "shop", "u")))
	sse.connected(r)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.endsWith(3001) // below 3500: an SDK reconnects
	sse.endsWith(3001)
	if got := outcome(t, s, message("shop", "u", "late")); got != providers.Deferred {
		t.Errorf("outcome %v, want deferred", got)
	}
	if h := s.Health(t.Context()); h.Status != providers.HealthDown {
		t.Errorf("health %+v", h)
	}
	resp, err := http.Get(s.url + "/connection/sse?cf_connect={}")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a new client is answered %s", resp.Status)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Errorf("second Close: %v", err)
	}
}
