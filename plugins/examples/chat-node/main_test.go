package chat_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/plugins/host"
	"github.com/carillon-notify/carillon/providers"
)

// waiting is how long a test waits for what must come, on a machine that is busy with others.
const waiting = 30 * time.Second

// TestMain removes what installed put there.
func TestMain(m *testing.M) {
	code := m.Run()
	if installation.dir != "" {
		_ = os.RemoveAll(installation.dir)
	}
	os.Exit(code)
}

// program finds a program that a test needs; CI sets CARILLON_REQUIRE_SERVERS=1 and lets none be missing.
func program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CARILLON_REQUIRE_SERVERS") == "1" {
			t.Fatalf("CARILLON_REQUIRE_SERVERS=1, and there is no %s", name)
		}
		t.Skipf("no %s here", name)
	}
	return path
}

// shipped are the files that make the plugin.
var shipped = []string{"plugin", "package.json", "package-lock.json", "proto/provider.proto", "proto/health.proto", "proto/controller.proto"}

var installation struct {
	once sync.Once
	dir  string
	err  error
}

// installed copies the plugin's files and its locked packages into a directory "chat" of its own, once for
// all tests, and returns the path of the executable.
func installed(t testing.TB) string {
	t.Helper()
	npm := program(t, "npm")
	program(t, "node")
	installation.once.Do(func() { installation.dir, installation.err = install(npm) })
	if installation.err != nil {
		t.Fatal(installation.err)
	}
	return filepath.Join(installation.dir, "plugins", "chat", "plugin")
}

func install(npm string) (dir string, err error) {
	if dir, err = os.MkdirTemp("", "chat-node-"); err != nil {
		return "", err
	}
	to := filepath.Join(dir, "plugins", "chat")
	if err := os.MkdirAll(filepath.Join(to, "proto"), 0o755); err != nil {
		return dir, err
	}
	for _, name := range shipped {
		b, err := os.ReadFile(name)
		if err != nil {
			return dir, err
		}
		info, err := os.Stat(name)
		if err != nil {
			return dir, err
		}
		if err := os.WriteFile(filepath.Join(to, name), b, info.Mode().Perm()&^0o022); err != nil {
			return dir, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	cmd.Dir = to
	if out, err := cmd.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("npm ci: %w\n%s", err, out)
	}
	return dir, nil
}

// spec runs the plugin as an operator would. A machine that is busy with other tests takes its time.
func spec(t testing.TB, log *records) host.Spec {
	t.Helper()
	command := installed(t)
	return host.Spec{Name: "chat", Command: command, Dir: installation.dir, Logger: slog.New(log),
		Timing: host.Timing{Start: time.Minute, PingTimeout: waiting}}
}

// open opens the provider with settings laid over those that lead to base.
func open(t testing.TB, base string, more map[string]any) (providers.Provider, *records) {
	t.Helper()
	log := newRecords(t)
	kind, err := host.Describe(t.Context(), spec(t, log))
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]any{"base_url": base}
	for k, v := range more {
		settings[k] = v
	}
	raw, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	p, err := kind.Open(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := p.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return p, log
}

// deliver returns the results by the message's id.
func deliver(t testing.TB, p providers.Provider, timeout time.Duration, batch ...providers.Message) (map[string]providers.Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	var mu sync.Mutex
	got := map[string]providers.Result{}
	err := p.Deliver(ctx, batch, func(r providers.Result) {
		mu.Lock()
		defer mu.Unlock()
		if _, twice := got[r.ID]; twice {
			t.Errorf("%s was answered twice", r.ID)
		}
		got[r.ID] = r
	})
	return got, err
}

// health waits for the provider's health to be as wanted, and returns what it is at last: the host asks the
// plugin once a second at most.
func health(t testing.TB, p providers.Provider, wanted func(providers.Health) bool) providers.Health {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(waiting); ; <-tick.C {
		if h := p.Health(t.Context()); wanted(h) || time.Now().After(end) {
			return h
		}
	}
}

func message(id, address string) providers.Message {
	return providers.Message{ID: id, App: "shop", Address: address, Title: "Title " + id, Body: "Body", Priority: providers.Normal,
		CreatedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour), Attempt: 1}
}

// post is one request that the stand-in of a chat service got.
type post struct {
	Path   string
	Header http.Header
	Body   map[string]any
}

// service is a chat service that answers by the path's last part: "200", "404.no_service" (the rest is the
// body), "429.rate_limited.7" (what follows is Retry-After), or one of the words of special.
type service struct {
	*httptest.Server
	posts chan post
	conns atomic.Int64 // opened so far
	sent  sync.Map     // *atomic.Int64 by Idempotency-Key: messages that were answered 2xx
}

func serve(t testing.TB, secure bool) *service {
	t.Helper()
	s := &service{posts: make(chan post, 1000)}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(s.answer))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // that a client distrusts it is what a test wants
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.conns.Add(1)
		}
	}
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(func() {
		s.CloseClientConnections() // ends what hangs
		s.Close()
	})
	return s
}

// hooks is the base_url.
func (s *service) hooks() string { return s.URL + "/hooks/" }

func (s *service) answer(w http.ResponseWriter, r *http.Request) {
	p := post{Path: r.URL.RequestURI(), Header: r.Header}
	if err := json.NewDecoder(r.Body).Decode(&p.Body); err != nil {
		http.Error(w, "invalid_payload", http.StatusBadRequest)
		return
	}
	s.posts <- p
	last := path.Base(r.URL.Path)
	if f := special[last]; f != nil {
		f(w, r)
		return
	}
	status, word, _ := strings.Cut(last, ".")
	word, after, _ := strings.Cut(word, ".")
	code, err := strconv.Atoi(status)
	if err != nil {
		code = http.StatusOK
	}
	if after != "" {
		w.Header().Set("Retry-After", after)
	}
	if code/100 == 2 {
		n, _ := s.sent.LoadOrStore(r.Header.Get("Idempotency-Key"), new(atomic.Int64))
		n.(*atomic.Int64).Add(1)
	}
	w.WriteHeader(code)
	_, _ = io.WriteString(w, word)
}

// taken says how often the service took the message with this id.
func (s *service) taken(id string) int {
	n, ok := s.sent.Load(id)
	if !ok {
		return 0
	}
	return int(n.(*atomic.Int64).Load())
}

// discard lets go of posts that nobody looks at, until the test ends.
func (s *service) discard(t testing.TB) {
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	go func() {
		for {
			select {
			case <-s.posts:
			case <-done:
				return
			}
		}
	}()
}

// special are answers that a path cannot say.
var special = map[string]http.HandlerFunc{
	"hang": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	"reset": func(w http.ResponseWriter, _ *http.Request) {
		if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
			_ = c.Close()
		}
	},
	"cut": func(w http.ResponseWriter, _ *http.Request) { // taken, but the answer breaks off
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "ok")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	},
	"flood": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<20)) },
	"mattermost": func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"id":"web.incoming_webhook.invalid.app_error","message":"Invalid webhook.","status_code":400}`)
	},
	"turned-off": func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotImplemented)
		_, _ = io.WriteString(w, `{"id":"web.incoming_webhook.disabled.app_error","status_code":501}`)
	},
	"google": func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"error":{"code":404,"message":"Requested entity was not found.","status":"NOT_FOUND"}}`)
	},
	"page": func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, "<html>Not found</html>")
	},
	"date": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", time.Now().Add(40*time.Second).UTC().Format(http.TimeFormat))
		w.WriteHeader(http.StatusServiceUnavailable)
	},
}

// records is a slog.Handler that keeps what the plugin and its supervisor log.
type records struct {
	t    testing.TB
	with []slog.Attr
	list *recordList
}

type recordList struct {
	mu  sync.Mutex
	all []record
	new chan struct{} // closed and replaced with each one
}

type record struct {
	level   slog.Level
	message string
	attrs   map[string]string
}

// newRecords returns a log that is shown when the test fails.
func newRecords(t testing.TB) *records {
	r := &records{t: t, list: &recordList{new: make(chan struct{})}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("the log: " + r.text())
		}
	})
	return r
}

// Enabled implements slog.Handler.
func (r *records) Enabled(context.Context, slog.Level) bool { return true }

// WithGroup implements slog.Handler.
func (r *records) WithGroup(string) slog.Handler { return r }

// WithAttrs implements slog.Handler.
func (r *records) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &records{t: r.t, with: append(slices.Clone(r.with), attrs...), list: r.list}
}

// Handle implements slog.Handler.
func (r *records) Handle(_ context.Context, in slog.Record) error {
	out := record{level: in.Level, message: in.Message, attrs: map[string]string{}}
	for _, a := range r.with {
		out.attrs[a.Key] = a.Value.String()
	}
	in.Attrs(func(a slog.Attr) bool {
		out.attrs[a.Key] = a.Value.String()
		return true
	})
	r.list.mu.Lock()
	defer r.list.mu.Unlock()
	r.list.all = append(r.list.all, out)
	close(r.list.new)
	r.list.new = make(chan struct{})
	return nil
}

// last waits for a record with this message, and returns the latest one.
func (r *records) last(message string) record {
	r.t.Helper()
	timeout := time.After(waiting)
	for {
		r.list.mu.Lock()
		all, more := slices.Clone(r.list.all), r.list.new
		r.list.mu.Unlock()
		for _, one := range slices.Backward(all) {
			if one.message == message {
				return one
			}
		}
		select {
		case <-more:
		case <-timeout:
			r.t.Fatalf("nothing said %q; the log is %+v", message, all)
		}
	}
}

// text is all that was logged.
func (r *records) text() string {
	r.list.mu.Lock()
	defer r.list.mu.Unlock()
	return fmt.Sprintf("%+v", r.list.all)
}
