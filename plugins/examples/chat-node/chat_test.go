// Package chat_test tries a plugin that is not written in Go, as Carillon runs it.
package chat_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/carillon-notify/carillon/plugins/host"
	"github.com/carillon-notify/carillon/plugins/providerv1"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/porttest"
)

// TestShipped holds what is beside the plugin to what it was taken from.
func TestShipped(t *testing.T) {
	t.Parallel()
	ours, err := os.ReadFile("proto/provider.proto")
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.ReadFile(filepath.Join("..", "..", "providerv1", "provider.proto"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(ours, theirs) {
		t.Error("proto/provider.proto is not plugins/providerv1/provider.proto: copy it")
	}
	lock, err := os.ReadFile("package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(lock, []byte(`"resolved"`)) {
		t.Error("package-lock.json names where packages were fetched; make it with npm's omit-lockfile-registry-resolved")
	}
	if !bytes.Contains(lock, []byte(`"integrity"`)) {
		t.Error("package-lock.json pins nothing")
	}
}

// TestDiscover lays the directory into a plugins directory.
func TestDiscover(t *testing.T) {
	t.Parallel()
	path := installed(t)
	found, err := host.Discover(filepath.Dir(filepath.Dir(path)))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]host.Found{{Name: "chat", Path: path}}, found); d != "" {
		t.Error(d)
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	kind, err := host.Describe(t.Context(), spec(t, newRecords(t)))
	if err != nil {
		t.Fatal(err)
	}
	want := providers.Kind{Name: "chat", Channel: "chat", MaxBatch: 100, Secret: true}
	if d := cmp.Diff(want, kind, cmpopts.IgnoreFields(providers.Kind{}, "Doc", "Settings", "Content", "Address", "Check", "Open")); d != "" {
		t.Error(d)
	}
	secrets := map[string]bool{}
	for _, s := range kind.Settings {
		secrets[s.Name] = s.Secret
		if s.Doc == "" {
			t.Errorf("setting %s is not documented", s.Name)
		}
	}
	wantSecrets := map[string]bool{"base_url": false, "token": true, "ca_file": false, "timeout": false, "pool.max": false, "pool.idle": false, "pool.idle_timeout": false}
	if d := cmp.Diff(wantSecrets, secrets); d != "" {
		t.Error(d)
	}
	address := regexp.MustCompile("^(?:" + kind.Address + ")$")
	for a, want := range map[string]bool{"T00/B00/xyz": true, "workflows/x?sig=a%2Fb&v=1": true, "a/../b": true, "": false, "/etc": false, "../x": false, "a b": false, "a#b": false} {
		if address.MatchString(a) != want {
			t.Errorf("address %q matches: %v", a, !want)
		}
	}
	schema := compile(t, kind.Content)
	for content, want := range map[string]bool{
		`{}`: true, `{"text":"*hi*","username":"ops"}`: true, `{"blocks":[{"type":"divider"}]}`: true,
		`{"text":""}`: false, `{"text":1}`: false, `{"channel":"#x"}`: false, `{"blocks":["x"]}`: false,
	} {
		doc, err := jsonschema.UnmarshalJSON(strings.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(doc); (err == nil) != want {
			t.Errorf("content %s: %v", content, err)
		}
	}
}

func compile(t *testing.T, content []byte) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	if err := c.AddResource("content", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("content")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// TestWrongSettings has Open say what to mend, and nothing of what is secret. A process whose Open failed may
// be asked again.
func TestWrongSettings(t *testing.T) {
	t.Parallel()
	p := start(t, nil).provider(t)
	ctx, cancel := context.WithTimeout(t.Context(), waiting)
	defer cancel()
	for _, c := range []struct{ settings, want string }{
		{`[]`, "no JSON object"},
		{`{"token":"hush-hush"`, "no JSON object"},
		{``, "base_url"},
		{`{"base_url":"ftp://h/"}`, "base_url"},
		{`{"base_url":"https://h/hooks"}`, "ends in a slash"},
		{`{"base_url":"https://u:p@h/hooks/"}`, "base_url"},
		{`{"base_url":7}`, "base_url must be a string"},
		{`{"base_url":"https://h/","timeout":1}`, "timeout must be a string"},
		{`{"base_url":"https://h/","timeout":"3m"}`, "timeout is out of bounds: How long one message may take, 100ms to 2m."},
		{`{"base_url":"https://h/","pool":{"max":1.5}}`, "pool.max must be a whole number"},
		{`{"base_url":"https://h/","pool":{"max":0}}`, "pool.max"},
		{`{"base_url":"https://h/","pool":{"max":2,"idle":3}}`, "pool.idle"},
		{`{"base_url":"https://h/","pool":{"idle_timeout":"x"}}`, "pool.idle_timeout"},
		{`{"base_url":"https://h/","token":"hush-hush\nEvil: 1"}`, "token must be of printable ASCII"},
		{`{"base_url":"https://h/","ca_file":"/nowhere/ca.pem"}`, "ca_file: the file cannot be read (ENOENT)"},
		{`{"base_url":"https://h/","timeout":"1m30.5s","pool":{"idle_timeout":"1500000us"}}`, ""},
	} {
		resp, err := p.Open(ctx, &providerv1.OpenRequest{Settings: []byte(c.settings)})
		text := resp.GetError()
		if err != nil || !strings.Contains(text, c.want) || (text == "") != (c.want == "") {
			t.Errorf("%s: %q, %v; want %q", c.settings, text, err, c.want)
		}
		if strings.Contains(text, "hush") {
			t.Errorf("the error shows the token: %s", text)
		}
	}
}

// TestOutcomes is the table of answers.
func TestOutcomes(t *testing.T) {
	t.Parallel()
	s := serve(t, false)
	p, log := open(t, s.hooks(), map[string]any{"token": "hush-hush"})
	const hidden = "one"
	for _, c := range []struct {
		address string
		want    providers.Result
	}{
		{"200", providers.Result{Outcome: providers.Accepted, Code: "200"}},
		{"204", providers.Result{Outcome: providers.Accepted, Code: "204"}},
		{"cut", providers.Result{Outcome: providers.Accepted, Code: "200"}},
		{"flood", providers.Result{Outcome: providers.Accepted, Code: "200"}},
		{"302", providers.Result{Outcome: providers.Denied, Code: "302"}},
		{"400.invalid_payload", providers.Result{Outcome: providers.Rejected, Code: "invalid_payload"}},
		{"400", providers.Result{Outcome: providers.Rejected, Code: "400"}},
		{"401", providers.Result{Outcome: providers.Denied, Code: "401"}},
		{"403", providers.Result{Outcome: providers.Denied, Code: "403"}},
		{"403.action_prohibited", providers.Result{Outcome: providers.Rejected, Code: "action_prohibited"}},
		{"403.invalid_token", providers.Result{Outcome: providers.Gone, Code: "invalid_token"}},
		{"404.no_service", providers.Result{Outcome: providers.Gone, Code: "no_service"}},
		{"404", providers.Result{Outcome: providers.Rejected, Code: "404"}},
		{"page", providers.Result{Outcome: providers.Rejected, Code: "404"}},
		{"google", providers.Result{Outcome: providers.Gone, Code: "NOT_FOUND"}},
		{"mattermost", providers.Result{Outcome: providers.Gone, Code: "web.incoming_webhook.invalid.app_error"}},
		{"turned-off", providers.Result{Outcome: providers.Denied, Code: "web.incoming_webhook.disabled.app_error"}},
		{"408", providers.Result{Outcome: providers.Deferred, Code: "408"}},
		{"410.channel_is_archived", providers.Result{Outcome: providers.Gone, Code: "channel_is_archived"}},
		{"413", providers.Result{Outcome: providers.Rejected, Code: "413"}},
		{"418", providers.Result{Outcome: providers.Rejected, Code: "418"}},
		{"429.rate_limited.7", providers.Result{Outcome: providers.Throttled, Code: "rate_limited", After: 7 * time.Second}},
		{"429", providers.Result{Outcome: providers.Throttled, Code: "429"}},
		{"429.x.999999", providers.Result{Outcome: providers.Throttled, Code: "x", After: time.Hour}},
		{"429.x.soon", providers.Result{Outcome: providers.Throttled, Code: "x"}},
		{"500.rollup_error", providers.Result{Outcome: providers.Unknown, Code: "rollup_error"}},
		{"502", providers.Result{Outcome: providers.Unknown, Code: "502"}},
		{"503", providers.Result{Outcome: providers.Deferred, Code: "503"}},
		{"503.x.5", providers.Result{Outcome: providers.Throttled, Code: "x", After: 5 * time.Second}},
		{"504", providers.Result{Outcome: providers.Unknown, Code: "504"}},
		{"599", providers.Result{Outcome: providers.Unknown, Code: "599"}},
		{"a/../../x", providers.Result{Outcome: providers.Rejected, Code: "address"}},
		{"a/%2e%2e/%2E%2E/x", providers.Result{Outcome: providers.Rejected, Code: "address"}},
	} {
		c.want.ID = hidden
		got, err := deliver(t, p, waiting, message(hidden, c.address))
		if err != nil {
			t.Errorf("%s: %v", c.address, err)
		}
		if got[hidden].Outcome != providers.Accepted && got[hidden].Reason == "" {
			t.Errorf("%s: no reason is given", c.address)
		}
		if d := cmp.Diff(map[string]providers.Result{hidden: c.want}, got, cmpopts.IgnoreFields(providers.Result{}, "Reason")); d != "" {
			t.Errorf("%s: %s", c.address, d)
		}
	}
	got, err := deliver(t, p, waiting, message("one", "date"))
	if r := got["one"]; err != nil || r.Outcome != providers.Throttled || r.After < 30*time.Second || r.After > 40*time.Second {
		t.Errorf("a date in Retry-After: %+v, %v", got, err)
	}
	// Taken or not, nobody can say: no result, and an error that speaks for it.
	got, err = deliver(t, p, waiting, message("one", "reset"))
	if len(got) != 0 || err == nil || !strings.Contains(err.Error(), "no answer came for 1 of 1 messages") {
		t.Errorf("a connection that broke: %v, %v", got, err)
	}
	const silent = "the service gave no answer"
	if h := health(t, p, func(h providers.Health) bool { return h.Reason == silent }); h.Status != providers.HealthDegraded || h.Reason != silent {
		t.Errorf("after a broken connection: %+v", h)
	}
	if strings.Contains(log.text(), "hush-hush") || strings.Contains(log.text(), "Title one") {
		t.Error("the log shows the token or content")
	}
	warned := log.last("the chat service does not take messages")
	if warned.level != slog.LevelWarn || warned.attrs["plugin"] != "chat" || warned.attrs["reason"] == "" {
		t.Errorf("the plugin's own line came as %+v", warned)
	}
}

// TestContent looks at what is posted.
func TestContent(t *testing.T) {
	t.Parallel()
	s := serve(t, false)
	p, _ := open(t, s.hooks(), map[string]any{"token": "hush-hush"})
	m := message("4f1c", "T0/B0/x?k=v")
	m.Title, m.Body, m.URL = "Two\nlines", "a < b & <!channel> ünï", "https://example.com/?a=1&b=2"
	for _, c := range []struct {
		name, content string
		change        func(*providers.Message)
		want          map[string]any
	}{
		{name: "words", want: map[string]any{"text": "*Two lines*\na &lt; b &amp; &lt;!channel&gt; ünï\nhttps://example.com/?a=1&amp;b=2"}},
		{name: "markup", content: `{"text":"<!here> *go*","username":"ops"}`, want: map[string]any{"text": "<!here> *go*", "username": "ops"}},
		{name: "blocks", content: `{"blocks":[{"type":"divider"}]}`, change: func(m *providers.Message) { m.Title, m.Body, m.URL = "", "", "" },
			want: map[string]any{"text": "", "blocks": []any{map[string]any{"type": "divider"}}}},
	} {
		m := m
		if c.content != "" {
			m.Content = json.RawMessage(c.content)
		}
		if c.change != nil {
			c.change(&m)
		}
		if got, err := deliver(t, p, waiting, m); err != nil || got[m.ID].Outcome != providers.Accepted {
			t.Errorf("%s: %v, %v", c.name, got, err)
			continue
		}
		got := <-s.posts
		if d := cmp.Diff(c.want, got.Body); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
		head := []string{got.Path, got.Header.Get("Authorization"), got.Header.Get("Idempotency-Key"), got.Header.Get("Content-Type")}
		if d := cmp.Diff([]string{"/hooks/T0/B0/x?k=v", "Bearer hush-hush", "4f1c", "application/json"}, head); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
	}
	m.Test = true
	if got, err := deliver(t, p, waiting, m); err != nil || got[m.ID].Code != "test" || len(s.posts) != 0 {
		t.Errorf("a test message: %v, %v, %d posted", got, err, len(s.posts))
	}
}

// TestCheck has messages looked at before they are promised.
func TestCheck(t *testing.T) {
	t.Parallel()
	kind, err := host.Describe(t.Context(), spec(t, newRecords(t)))
	if err != nil {
		t.Fatal(err)
	}
	p, err := kind.Open(t.Context(), []byte(`{"base_url":"http://127.0.0.1:1/"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close(t.Context())
	astray := providers.Message{Address: "a/%2e%2e/../x", Body: "x"}
	if err := kind.Check(&astray); !errors.Is(err, providers.ErrAddress) {
		t.Errorf("an address that leads astray: %v", err)
	}
	for _, c := range []struct{ title, body, content, want string }{
		{body: "x"},
		{content: `{"attachments":[{}]}`},
		{want: "nothing to say"},
		{title: " ", body: strings.Repeat("ü", 15_900)},
		{body: strings.Repeat("ü", 16_001), want: "longer than 16000 characters"},
		{content: `7`, want: "no JSON object"},
	} {
		m := providers.Message{Address: "T0/B0/x", Title: c.title, Body: c.body, Content: json.RawMessage(c.content)}
		err := kind.Check(&m)
		if (err == nil) != (c.want == "") || errors.Is(err, providers.ErrAddress) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.20q %.20q %s: %v, want %q", c.title, c.body, c.content, err, c.want)
		}
	}
}

// TestBatch sends a hundred messages over four connections, twice.
func TestBatch(t *testing.T) {
	t.Parallel()
	s := serve(t, false)
	p, _ := open(t, s.hooks(), map[string]any{"pool": map[string]any{"max": 4, "idle": 4}})
	for range 2 {
		var batch []providers.Message
		for i := range 100 {
			m := message(fmt.Sprintf("id-%d", i), "200")
			m.Body = strings.Repeat("x", 15_000) // 1.5 MB: more than one request between host and plugin
			batch = append(batch, m)
		}
		got, err := deliver(t, p, waiting, batch...)
		if err != nil || len(got) != 100 {
			t.Fatalf("%d answers, %v", len(got), err)
		}
		for id, r := range got {
			if r.Outcome != providers.Accepted {
				t.Errorf("%s: %+v", id, r)
			}
		}
	}
	seen := map[any]bool{}
	for range 200 {
		seen[(<-s.posts).Header.Get("Idempotency-Key")] = true
	}
	if len(seen) != 100 || s.conns.Load() > 4 {
		t.Errorf("%d different messages over %d connections", len(seen), s.conns.Load())
	}
	conns := int(s.conns.Load())
	want := providers.Health{Status: providers.HealthOK, Pool: providers.PoolStats{Max: 4, Open: conns, Idle: conns,
		Opened: uint64(conns), Reused: uint64(200 - conns)}}
	if d := cmp.Diff(want, health(t, p, func(h providers.Health) bool { return h == want })); d != "" {
		t.Error(d)
	}
}

// TestThrottled has a service that asks to slow down asked no more for the batch's sake.
func TestThrottled(t *testing.T) {
	t.Parallel()
	s := serve(t, false)
	p, _ := open(t, s.hooks(), map[string]any{"pool": map[string]any{"max": 1}})
	got, err := deliver(t, p, waiting, message("a", "200"), message("b", "429.rate_limited.3"), message("c", "200"), message("d", "200"))
	want := map[string]providers.Result{
		"a": {ID: "a", Outcome: providers.Accepted, Code: "200"},
		"b": {ID: "b", Outcome: providers.Throttled, Code: "rate_limited", After: 3 * time.Second},
		"c": {ID: "c", Outcome: providers.Throttled, Code: "not_sent", After: 3 * time.Second},
		"d": {ID: "d", Outcome: providers.Throttled, Code: "not_sent", After: 3 * time.Second},
	}
	if d := cmp.Diff(want, got, cmpopts.IgnoreFields(providers.Result{}, "Reason")); d != "" || err != nil {
		t.Error(d, err)
	}
	if len(s.posts) != 2 {
		t.Errorf("%d messages were posted, want 2", len(s.posts))
	}
	if h := health(t, p, func(h providers.Health) bool { return h.Status == providers.HealthDegraded }); h.Status != providers.HealthDegraded {
		t.Errorf("health is %+v", h)
	}
}

// TestUnreached tells what was not sent from what nobody knows.
func TestUnreached(t *testing.T) {
	t.Parallel()
	closed := "http://" + porttest.Addr(t) + "/"
	secure := serve(t, true)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, base string
		settings   map[string]any
		want       providers.Result
		health     providers.HealthStatus
	}{
		{"refused", closed, nil, providers.Result{ID: "a", Outcome: providers.Deferred, Code: "connect"}, providers.HealthDown},
		{"untrusted", secure.hooks(), nil, providers.Result{ID: "a", Outcome: providers.Denied, Code: "tls"}, providers.HealthDown},
		{"trusted", secure.hooks(), map[string]any{"ca_file": ca}, providers.Result{ID: "a", Outcome: providers.Accepted, Code: "200"}, providers.HealthOK},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p, _ := open(t, c.base, c.settings)
			got, err := deliver(t, p, waiting, message("a", "200"))
			if d := cmp.Diff(map[string]providers.Result{"a": c.want}, got, cmpopts.IgnoreFields(providers.Result{}, "Reason")); d != "" || err != nil {
				t.Error(d, err)
			}
			good := func(h providers.Health) bool {
				return h.Status == c.health && (h.Pool.Failed == 1) == (c.health == providers.HealthDown)
			}
			if h := health(t, p, good); !good(h) {
				t.Errorf("health is %+v", h)
			}
		})
	}
}

// TestDeadline ends a call while a message is on its way: it is that message's connection which is given up,
// not the process.
func TestDeadline(t *testing.T) {
	t.Parallel()
	s := serve(t, false)
	p, log := open(t, s.hooks(), map[string]any{"pool": map[string]any{"max": 1}})
	ctx, cancel := context.WithTimeout(t.Context(), waiting)
	defer cancel()
	go func() {
		<-s.posts
		cancel()
	}()
	err := p.Deliver(ctx, []providers.Message{message("a", "hang"), message("b", "200")}, func(r providers.Result) {
		if r.ID != "b" || r.Outcome != providers.Deferred {
			t.Errorf("answered %+v", r)
		}
	})
	if err == nil {
		t.Error("the error does not speak for the message that was on its way")
	}
	pid := log.last("the plugin runs").attrs["pid"]
	if got, err := deliver(t, p, waiting, message("c", "200")); err != nil || got["c"].Outcome != providers.Accepted {
		t.Errorf("after it: %v, %v", got, err)
	}
	if now := log.last("the plugin runs").attrs["pid"]; now != pid {
		t.Error("the process was started anew")
	}
}

// TestTimeout gives up one message that the service does not answer, in its own time.
func TestTimeout(t *testing.T) {
	t.Parallel()
	s := serve(t, false)
	p, _ := open(t, s.hooks(), map[string]any{"timeout": "3s"})
	got, err := deliver(t, p, waiting, message("a", "hang"), message("b", "200"))
	if err == nil || len(got) != 1 || got["b"].Outcome != providers.Accepted {
		t.Errorf("%v, %v", got, err)
	}
}

// TestCrash kills the process while a message is on its way: what was answered stays, and the next batch
// finds a new process.
func TestCrash(t *testing.T) {
	t.Parallel()
	s := serve(t, false)
	p, log := open(t, s.hooks(), nil)
	pid, err := strconv.Atoi(log.last("the plugin runs").attrs["pid"])
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), waiting)
	defer cancel()
	outcomes := map[string]providers.Outcome{}
	err = p.Deliver(ctx, []providers.Message{message("a", "200"), message("b", "hang")}, func(r providers.Result) {
		outcomes[r.ID] = r.Outcome
		for range 2 { // both have reached the service
			<-s.posts
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	})
	if d := cmp.Diff(map[string]providers.Outcome{"a": providers.Accepted}, outcomes); d != "" || err == nil {
		t.Error(d, err)
	}
	// The supervisor starts the next one at once, but a call waits two seconds only.
	deadline := time.Now().Add(waiting)
	for {
		got, err := deliver(t, p, waiting, message("c", "200"))
		if err == nil && got["c"].Outcome == providers.Accepted {
			break
		}
		if r := got["c"]; r.Outcome != providers.Throttled || r.Code != host.CodeDown || time.Now().After(deadline) {
			t.Fatalf("after the crash: %v, %v", got, err)
		}
	}
	if now := log.last("the plugin runs").attrs["pid"]; now == strconv.Itoa(pid) {
		t.Error("it is the same process")
	}
}
