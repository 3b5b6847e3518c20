package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/carillon-notify/carillon/plugins/examples/sms/smstest"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/porttest"
)

const (
	testKey    = "key-of-the-account"
	testSecret = "secret-of-the-callbacks"
	number     = "+491511234"
)

// server is a real HTTP server on this machine.
func server(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(s.Close)
	return s.URL
}

func settingsWith(t *testing.T, endpoint string, with map[string]any) []byte {
	t.Helper()
	all := map[string]any{"endpoint": endpoint, "key": testKey, "from": "Carillon"}
	maps.Copy(all, with)
	raw, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func withCallbacks(t *testing.T) map[string]any {
	address := porttest.Addr(t)
	return map[string]any{"callback_listen": address, "callback_url": "http://" + address + "/receipts", "callback_secret": testSecret}
}

func opened(t *testing.T, raw []byte) providers.Provider {
	t.Helper()
	p, err := kind().Open(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := p.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return p
}

func message(id, to string) providers.Message {
	return providers.Message{ID: id, Address: to, Title: "private title", Body: "private body", CreatedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour), Attempt: 1}
}

// deliver sends a batch and returns the results by id. Whatever is said must hold nothing private.
func deliver(t *testing.T, p providers.Provider, within time.Duration, batch ...providers.Message) (map[string]providers.Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	return deliverIn(ctx, t, p, batch...)
}

func deliverIn(ctx context.Context, t *testing.T, p providers.Provider, batch ...providers.Message) (map[string]providers.Result, error) {
	t.Helper()
	var mu sync.Mutex
	got := map[string]providers.Result{}
	err := p.Deliver(ctx, batch, func(r providers.Result) {
		mu.Lock()
		defer mu.Unlock()
		if _, twice := got[r.ID]; twice {
			t.Errorf("%s is reported twice", r.ID)
		}
		got[r.ID] = r
		discreet(t, r.Code+" "+r.Reason)
	})
	if err != nil {
		discreet(t, err.Error())
	}
	return got, err
}

func discreet(t *testing.T, said string) {
	t.Helper()
	for _, private := range []string{testKey, testSecret, number, "127.0.0.1", "private", "the number is +"} {
		if strings.Contains(said, private) {
			t.Errorf("%q holds %q", said, private)
		}
	}
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status      int
		body, after string
		want        providers.Result
	}{
		{200, `{"id":"a1","segments":2}`, "", providers.Result{Outcome: providers.Accepted, ProviderID: "a1", Parts: 2}},
		{201, `{"id":"a1","segments":1}`, "9", providers.Result{Outcome: providers.Accepted, ProviderID: "a1", Parts: 1}},
		{202, `{"id":"a1"}`, "", providers.Result{Outcome: providers.Accepted, ProviderID: "a1"}},
		{202, `{"id":"a1","segments":-1}`, "", providers.Result{Outcome: providers.Accepted, ProviderID: "a1"}},
		{200, `<html>Welcome to the hotel's Wi-Fi`, "", providers.Result{Outcome: providers.Unknown, Code: "200"}},
		{200, ``, "", providers.Result{Outcome: providers.Unknown, Code: "200"}},
		{301, ``, "", providers.Result{Outcome: providers.Denied, Code: "301"}},
		{307, ``, "", providers.Result{Outcome: providers.Denied, Code: "307"}},
		{400, `{"code":"invalid_text","message":"private body"}`, "", providers.Result{Outcome: providers.Rejected, Code: "400 invalid_text"}},
		{400, `{"code":"invalid_number"}`, "", providers.Result{Outcome: providers.Gone, Code: "400 invalid_number"}},
		{400, `{"code":"opted_out"}`, "", providers.Result{Outcome: providers.Gone, Code: "400 opted_out"}},
		{400, `{"code":"invalid_sender"}`, "", providers.Result{Outcome: providers.Denied, Code: "400 invalid_sender"}},
		{400, `{"code":"the number is +491511234"}`, "", providers.Result{Outcome: providers.Rejected, Code: "400"}},
		{400, `no JSON`, "", providers.Result{Outcome: providers.Rejected, Code: "400"}},
		{401, `{"code":"unauthorized"}`, "", providers.Result{Outcome: providers.Denied, Code: "401 unauthorized"}},
		{402, `{"code":"no_credit"}`, "", providers.Result{Outcome: providers.Denied, Code: "402 no_credit"}},
		{403, `{}`, "", providers.Result{Outcome: providers.Denied, Code: "403"}},
		{404, `{"code":"unknown_number"}`, "", providers.Result{Outcome: providers.Gone, Code: "404 unknown_number"}},
		{404, `404 page not found`, "", providers.Result{Outcome: providers.Denied, Code: "404"}},
		{405, ``, "", providers.Result{Outcome: providers.Denied, Code: "405"}},
		{408, ``, "", providers.Result{Outcome: providers.Deferred, Code: "408"}},
		{413, ``, "", providers.Result{Outcome: providers.Rejected, Code: "413"}},
		{429, `{"code":"too_many_requests"}`, "", providers.Result{Outcome: providers.Throttled, Code: "429 too_many_requests"}},
		{429, ``, "30", providers.Result{Outcome: providers.Throttled, Code: "429", After: 30 * time.Second}},
		{429, ``, "86400", providers.Result{Outcome: providers.Throttled, Code: "429", After: time.Hour}},
		{429, ``, "soon", providers.Result{Outcome: providers.Throttled, Code: "429"}},
		{500, ``, "30", providers.Result{Outcome: providers.Unknown, Code: "500"}},
		{502, ``, "", providers.Result{Outcome: providers.Unknown, Code: "502"}},
		{503, ``, "", providers.Result{Outcome: providers.Deferred, Code: "503"}},
		{503, ``, "5", providers.Result{Outcome: providers.Throttled, Code: "503", After: 5 * time.Second}},
		{504, ``, "", providers.Result{Outcome: providers.Unknown, Code: "504"}},
		{600, ``, "", providers.Result{Outcome: providers.Unknown, Code: "600"}},
	} {
		t.Run(fmt.Sprint(tt.status, " ", tt.body, " ", tt.after), func(t *testing.T) {
			t.Parallel()
			asked := 0
			p := opened(t, settingsWith(t, server(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				asked++
				w.Header().Set("Location", "/elsewhere")
				if tt.after != "" {
					w.Header().Set("Retry-After", tt.after)
				}
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			})), nil))
			got, err := deliver(t, p, 30*time.Second, message("m1", number))
			if err != nil || asked != 1 {
				t.Fatalf("asked %d times: %v", asked, err)
			}
			tt.want.ID = "m1"
			if d := cmp.Diff(tt.want, got["m1"], cmpopts.IgnoreFields(providers.Result{}, "Reason")); d != "" {
				t.Error(d)
			}
			if said := got["m1"].Reason != ""; said != (tt.want.Outcome != providers.Accepted) {
				t.Errorf("the reason is %q", got["m1"].Reason)
			}
		})
	}
}

func TestRequest(t *testing.T) {
	t.Parallel()
	type asked struct {
		path, key, body string
	}
	seen := make(chan asked, 1)
	url := server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		seen <- asked{r.Method + " " + r.URL.Path, r.Header.Get("Authorization"), string(body)}
		_, _ = io.WriteString(w, `{"id":"a1","segments":1}`)
	}))
	with := withCallbacks(t)
	p := opened(t, settingsWith(t, url+"/v1/", with))
	for _, tt := range []struct {
		title, body, content, want string
	}{
		{"Shipped", "Your order is on its way.", ``, `Shipped\nYour order is on its way.`},
		{"", "Your order is on its way.", ``, `Your order is on its way.`},
		{"Shipped", "", ``, `Shipped`},
		{"Shipped", "Your order is on its way.", `{"text":"Order 7 is on its way"}`, `Order 7 is on its way`},
		{"Shipped", "", `{}`, `Shipped`},
	} {
		m := message("m1", number)
		m.Title, m.Body, m.Content = tt.title, tt.body, json.RawMessage(tt.content)
		if got, err := deliver(t, p, 30*time.Second, m); err != nil || got["m1"].Outcome != providers.Accepted {
			t.Fatal(got, err)
		}
		want := asked{"POST /v1/messages", "Bearer " + testKey, fmt.Sprintf(`{"to":"+491511234","from":"Carillon","text":"%s","reference":"m1","callback":"%s"}`, tt.want, with["callback_url"])}
		if d := cmp.Diff(want, <-seen, cmp.AllowUnexported(asked{})); d != "" {
			t.Error(d)
		}
	}
	test := message("m1", number)
	test.Test = true
	long := message("m2", number)
	long.Body = strings.Repeat("x", 2000)
	got, err := deliver(t, p, 30*time.Second, test, long)
	if err != nil || got["m1"].Outcome != providers.Accepted || got["m1"].Code != "test" || got["m2"].Outcome != providers.Rejected {
		t.Error(got, err)
	}
	select {
	case a := <-seen:
		t.Errorf("%s was asked", a.path)
	default:
	}
}

// TestLostAnswer: nobody knows what became of a message whose answer was lost, and it is not sent twice.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	service := smstest.New(smstest.Options{Key: testKey})
	t.Cleanup(service.Close)
	p := opened(t, settingsWith(t, server(t, service), nil))
	m := message("m1", number+"000")
	if got, err := deliver(t, p, 30*time.Second, m); err == nil || len(got) != 0 {
		t.Errorf("the first attempt: %v, %v", got, err)
	}
	got, err := deliver(t, p, 30*time.Second, m)
	if err != nil || got["m1"].Outcome != providers.Accepted {
		t.Errorf("the second attempt: %v, %v", got, err)
	}
	if all := service.Messages(); len(all) != 1 || all[0].Requests != 2 || all[0].ID != got["m1"].ProviderID {
		t.Errorf("the service has %+v", all)
	}
}

func TestUnsent(t *testing.T) {
	t.Parallel()
	mute, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mute.Close() })
	reached := make(chan struct{}, 1) // then the call may end
	go func() {
		c, err := mute.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = c.Read(make([]byte, 1)) // the client's part of the handshake
		reached <- struct{}{}
		_, _ = io.Copy(io.Discard, c)
	}()
	stranger := httptest.NewUnstartedServer(nil) // whose certificate nobody trusts
	stranger.Config.ErrorLog = log.New(io.Discard, "", 0)
	stranger.StartTLS()
	t.Cleanup(stranger.Close)
	for _, tt := range []struct {
		name, endpoint, code string
		outcome              providers.Outcome
		health               providers.HealthStatus
	}{
		{"nobody there", "http://" + porttest.Addr(t), "connect", providers.Deferred, providers.HealthDown},
		{"no handshake", "https://" + mute.Addr().String(), "timeout", providers.Deferred, providers.HealthOK},
		{"a stranger's certificate", stranger.URL, "tls", providers.Denied, providers.HealthDown},
	} {
		p := opened(t, settingsWith(t, tt.endpoint, nil))
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		go func() {
			select {
			case <-reached:
				cancel()
			case <-ctx.Done():
			}
		}()
		got, err := deliverIn(ctx, t, p, message("m1", number))
		cancel()
		if r := got["m1"]; err != nil || r.Outcome != tt.outcome || r.Code != tt.code {
			t.Errorf("%s: %+v, %v", tt.name, r, err)
		}
		if h := p.Health(t.Context()); h.Status != tt.health {
			t.Errorf("%s: health is %+v", tt.name, h)
		}
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	service := smstest.New(smstest.Options{Key: testKey})
	t.Cleanup(service.Close)
	p := opened(t, settingsWith(t, server(t, service), map[string]any{"pool": map[string]any{"max": 3}}))
	for _, tt := range []struct {
		ending string
		want   providers.HealthStatus
	}{
		{"123", providers.HealthOK},
		{"429", providers.HealthDegraded},
		{"500", providers.HealthDegraded}, // says nothing new
		{"404", providers.HealthOK},
		{"402", providers.HealthDown},
		{"123", providers.HealthOK},
	} {
		if _, err := deliver(t, p, 30*time.Second, message("m"+tt.ending, number+tt.ending)); err != nil {
			t.Fatal(err)
		}
		h := p.Health(t.Context())
		if h.Status != tt.want || (h.Reason == "") != (tt.want == providers.HealthOK) {
			t.Errorf("after %s: %+v", tt.ending, h)
		}
		discreet(t, h.Reason)
		if h.Pool.Max != 3 || h.Pool.Open != 1 || h.Pool.Opened != 1 {
			t.Errorf("after %s: %+v", tt.ending, h.Pool)
		}
	}
}

func TestSegments(t *testing.T) {
	t.Parallel()
	a := func(n int) string { return strings.Repeat("a", n) }
	for _, tt := range []struct {
		name, text string
		n, outside int
	}{
		{"one", "a", 1, 0},
		{"160 septets", a(160), 1, 0},
		{"161 septets", a(161), 2, 0},
		{"306 septets", a(306), 2, 0},
		{"307 septets", a(307), 3, 0},
		{"umlauts are in the alphabet", strings.Repeat("ä", 160), 1, 0},
		{"80 escapes", strings.Repeat("€", 80), 1, 0},
		{"81 escapes", strings.Repeat("€", 81), 2, 0},
		{"an escape is not parted", a(152) + "€" + a(152), 3, 0}, // 306 septets
		{"an escape that fits", a(151) + "€" + a(153), 2, 0},     // 306 septets
		{"all of the alphabet", gsm, 1, 0},
		{"all of the extension", gsmExtension, 1, 0},
		{"70 units", strings.Repeat("ж", 70), 1, 1},
		{"71 units", strings.Repeat("ж", 71), 2, 1},
		{"134 units", strings.Repeat("ж", 134), 2, 1},
		{"135 units", strings.Repeat("ж", 135), 3, 1},
		{"one is enough", a(99) + "’" + a(60), 3, 100},
		{"c with cedilla is not in the alphabet", "ç", 1, 1},
		{"35 pairs", strings.Repeat("🔔", 35), 1, 1},
		{"36 pairs", strings.Repeat("🔔", 36), 2, 1},
		{"a pair is not parted", strings.Repeat("🔔", 67), 3, 1}, // 134 units
		{"a pair that fits", "ж" + strings.Repeat("🔔", 66), 2, 1},
	} {
		if n, outside := segments(tt.text); n != tt.n || outside != tt.outside {
			t.Errorf("%s: %d SMS, outside at %d; want %d and %d", tt.name, n, outside, tt.n, tt.outside)
		}
	}
	// TS 23.038, 6.2.1: 128 places, one of which is the escape.
	seen := map[rune]bool{}
	for _, r := range gsm + gsmExtension {
		seen[r] = true
	}
	if len([]rune(gsm)) != 127 || len(seen) != 127+10 {
		t.Errorf("the alphabet has %d characters, with the extension %d different ones", len([]rune(gsm)), len(seen))
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	k := kind()
	m := message("m1", number)
	m.Title = ""
	for _, tt := range []struct {
		name, body, content, want string // want "": it will do
	}{
		{"short", "private", ``, ""},
		{"as long as may be", strings.Repeat("a", 6*153), ``, ""},
		{"too long", strings.Repeat("a", 6*153+1), ``, "takes 7 SMS, and 6 are allowed"},
		{"one character's fault", "private " + strings.Repeat("a", 5*153-1) + "ğ", ``, "character 773"},
		{"nothing", "", ``, "there is no text"},
		{"the block alone", "", `{"text":"Hello"}`, ""},
		{"the block counts", "private", `{"text":"` + strings.Repeat("a", 1000) + `"}`, "takes 7 SMS"},
		{"a broken block", "private", `[]`, "no JSON object"},
	} {
		m.Body, m.Content = tt.body, json.RawMessage(tt.content)
		err := k.Check(&m)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if err != nil {
			discreet(t, err.Error())
		}
	}
	// Once a provider is open, its setting counts.
	p, err := k.Open(t.Context(), settingsWith(t, "https://sms.example", map[string]any{"max_segments": 1}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close(context.Background()) })
	m.Body, m.Content = strings.Repeat("a", 161), nil
	if err := k.Check(&m); err == nil || !strings.Contains(err.Error(), "takes 2 SMS, and 1 are allowed") {
		t.Errorf("with max_segments 1: %v", err)
	}

	address := regexp.MustCompile(k.Address)
	for text, want := range map[string]bool{
		"+491511234567": true, "+12025550123": true, "+2901234": true, "+123456789012345": true,
		"+1234567890123456": false, "491511234567": false, "+0491511234567": false, "+49 151 1234567": false, "+49151": false, "": false, "+491511234567\n": false, "sms:+491511234567": false,
	} {
		if got := address.MatchString(text); got != want {
			t.Errorf("address %q: %t, want %t", text, got, want)
		}
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(k.Content))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("mem:///sms", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("mem:///sms")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{`{"text":"a"}`: true, `{}`: true, `{"text":""}`: false, `{"text":1}`: false, `{"txt":"a"}`: false, `[]`: false} {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if got := schema.Validate(v) == nil; got != want {
			t.Errorf("content %s: %t, want %t", text, got, want)
		}
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	callbacks := func(with map[string]any) map[string]any {
		all := withCallbacks(t)
		maps.Copy(all, with)
		return all
	}
	for _, tt := range []struct {
		name string
		with map[string]any
		want string // "": it opens
	}{
		{"as they are", nil, ""},
		{"on this machine", map[string]any{"endpoint": "http://localhost:9010/v1"}, ""},
		{"on this machine by IPv6", map[string]any{"endpoint": "http://[::1]:9010"}, ""},
		{"callbacks", callbacks(nil), ""},
		{"a number as the sender", map[string]any{"from": "+491511234567", "max_segments": 20, "pool": map[string]any{"max": 1, "idle_timeout": "1m0s"}}, ""},
		{"no endpoint", map[string]any{"endpoint": ""}, "endpoint"},
		{"plain HTTP", map[string]any{"endpoint": "http://sms.example"}, "endpoint: must be https://"},
		{"plain HTTP to what looks near", map[string]any{"endpoint": "http://localhost.example"}, "endpoint: must be https://"},
		{"another scheme", map[string]any{"endpoint": "ftp://localhost"}, "endpoint: must be https://"},
		{"a password in it", map[string]any{"endpoint": "https://a:" + testKey + "@sms.example"}, "endpoint"},
		{"a query in it", map[string]any{"endpoint": "https://sms.example?key=" + testKey}, "endpoint"},
		{"no URL", map[string]any{"endpoint": "https://sms.example/%zz" + testKey}, "endpoint"},
		{"no key", map[string]any{"key": ""}, "key"},
		{"a key with a line break", map[string]any{"key": testKey + "\nX-Evil: 1"}, "key"},
		{"no sender", map[string]any{"from": ""}, "from"},
		{"a long sender", map[string]any{"from": "CarillonNotify"}, "from"},
		{"no segments", map[string]any{"max_segments": 0}, "max_segments"},
		{"many segments", map[string]any{"max_segments": 21}, "max_segments"},
		{"a text", map[string]any{"max_segments": "6"}, "settings"},
		{"no pool", map[string]any{"pool": map[string]any{"max": 0}}, "pool.max"},
		{"no time", map[string]any{"pool": map[string]any{"idle_timeout": "0s"}}, "pool.idle_timeout"},
		{"callbacks without a URL", callbacks(map[string]any{"callback_url": ""}), "callback_url"},
		{"callbacks without a secret", callbacks(map[string]any{"callback_secret": ""}), "callback_secret"},
		{"callbacks with a short secret", callbacks(map[string]any{"callback_secret": "secret-of-the-c"}), "callback_secret"},
		{"callbacks nowhere", callbacks(map[string]any{"callback_listen": ""}), "callback_listen"},
		{"callbacks where somebody is", callbacks(map[string]any{"callback_listen": taken.Addr().String()}), "callback_listen"},
	} {
		p, err := kind().Open(t.Context(), settingsWith(t, "https://api.sms.example/v1", tt.with))
		if err == nil {
			if err := p.Close(t.Context()); err != nil {
				t.Errorf("%s: close: %v", tt.name, err)
			}
		} else {
			for _, secret := range []string{testKey, "secret-of"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%s: the error %q holds a secret", tt.name, err)
				}
			}
		}
		if (tt.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error is %v, want one about %q", tt.name, err, tt.want)
		}
	}
}
