package plugintest_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	ws "github.com/coder/websocket"

	"github.com/carillon-notify/carillon/plugins/plugintest"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/apns"
	"github.com/carillon-notify/carillon/providers/email"
	"github.com/carillon-notify/carillon/providers/fcm"
	"github.com/carillon-notify/carillon/providers/sandbox"
	"github.com/carillon-notify/carillon/providers/websocket"
)

// builtins are the kinds that come with Carillon.
func builtins() map[string]providers.Kind {
	return map[string]providers.Kind{"apns": apns.Kind(), "fcm": fcm.Kind(), "email": email.Kind(), "websocket": websocket.Kind()}
}

// sit examines a built-in kind in process and through the wire and then, as isolation: process has it, in
// a process of its own.
func sit(t *testing.T, e plugintest.Exam) {
	t.Helper()
	plugintest.Run(t, e)
	t.Run("isolated", func(t *testing.T) {
		e.Command, e.Args = product(t), []string{"provider", e.Kind.Name}
		e.Kind = providers.Kind{}
		why := "each value starts a process, and the settings were examined in this one"
		e.Except = map[string]string{"open_types": why, "open_unknown": why, "open_defaults": why, "open_garbage": why}
		plugintest.Run(t, e)
	})
}

// product is the orchestrator, which serves a built-in kind as isolation: process starts it.
func product(t *testing.T) string {
	t.Helper()
	return builtOf(t, "orchestrator", "build", "github.com/carillon-notify/carillon/cmd/orchestrator")
}

// self is these tests as a program that plays a plugin.
func self(t testing.TB) string {
	t.Helper()
	return builtOf(t, "player", "test", "-c", ".")
}

var built struct {
	mu    sync.Mutex
	paths map[string]bool
}

// builtOf builds a program once. It is built without the race detector, with which a process takes seconds to
// start: some two hundred are started here, and the detector sees the same code in process and through the
// wire.
func builtOf(t testing.TB, name, verb string, args ...string) string {
	t.Helper()
	built.mu.Lock()
	defer built.mu.Unlock()
	path := filepath.Join(scratch, name)
	if built.paths[name] {
		return path
	}
	out, err := exec.Command("go", append([]string{verb, "-buildvcs=false", "-o", path}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("build the %s: %v: %s", name, err, out)
	}
	if built.paths == nil {
		built.paths = map[string]bool{}
	}
	built.paths[name] = true
	return path
}

// scratch is the folder of what is built, until the tests are over.
var scratch string

// scripted is the sandbox with its scripts as Provokes.
type scripted struct {
	*sandbox.Sandbox
	service sandbox.Service
}

func startSandbox(t testing.TB, service sandbox.Service) scripted {
	t.Helper()
	// One seed, with which SomeSilence meets some of the first messages and not all: each session of SMTP is stuck with
	// the first that meets it.
	s, err := sandbox.Start(sandbox.Options{Dir: t.TempDir(), Capacity: -1, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return scripted{s, service}
}

// settings are the sandbox's for a kind, with others laid over them.
func (s scripted) settings(t testing.TB, kind string, over map[string]any) map[string]any {
	t.Helper()
	raw, ok := s.Settings(kind)
	out := map[string]any{}
	if err := json.Unmarshal(raw, &out); err != nil || !ok {
		t.Fatalf("the sandbox's settings for %s: %v", kind, err)
	}
	for name, v := range over {
		if out[name] = v; v == nil {
			delete(out, name)
		}
	}
	return out
}

// plays brings the service into a state.
func (s scripted) plays(script sandbox.Script) func(testing.TB) func() {
	return func(t testing.TB) func() {
		t.Helper()
		if err := s.Script(s.service, script); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := s.Script(s.service, sandbox.Script{}); err != nil {
				t.Error(err)
			}
		}
	}
}

// fails has the service answer everything with a code.
func (s scripted) fails(code string, after time.Duration) func(testing.TB) func() {
	return s.plays(sandbox.Script{Errors: map[string]float64{code: 1}, RetryAfter: after})
}

// exam is what is the same for all that the sandbox plays.
func (s scripted) exam(kind providers.Kind, settings map[string]any, address func(i int) string) plugintest.Exam {
	return plugintest.Exam{
		Kind: kind, Settings: settings,
		Message: func(i int) providers.Message {
			return providers.Message{Address: address(i), Title: "Title of a message of the exam", Body: fmt.Sprintf("Body of message %d of the exam", i),
				URL: "https://example.com/orders/7", Data: json.RawMessage(`{"order":"7"}`)}
		},
		Silence:     plugintest.Provoke{Service: s.plays(sandbox.Script{Stall: 1})},
		SomeSilence: plugintest.Provoke{Service: s.plays(sandbox.Script{Stall: 0.3})},
		Taken:       func(id string) int { return s.Taken(s.service, id) },
		Connections: func() int { return s.Connections(s.service) },
	}
}

func content(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func dead(address string) func(*providers.Message) {
	return func(m *providers.Message) { m.Address = address }
}

func TestAPNs(t *testing.T) {
	s := startSandbox(t, sandbox.APNs)
	settings := s.settings(t, "apns", map[string]any{"key_file": nil, "key": content(t, s.KeyFile())})
	e := s.exam(apns.Kind(), settings, func(i int) string { return fmt.Sprintf("%064x", i+0xa000_0000) })
	e.Down.Settings = map[string]any{"endpoint": strings.Replace(nowhere(t), "http:", "https:", 1)}
	e.Outcomes = map[providers.Outcome]plugintest.Provoke{
		providers.Unknown:   {Service: s.fails("InternalServerError", 0), Code: "InternalServerError"},
		providers.Deferred:  {Service: s.fails("ServiceUnavailable", 0), Code: "ServiceUnavailable"},
		providers.Throttled: {Service: s.fails("ServiceUnavailable", 7*time.Second), After: 7 * time.Second},
		providers.Rejected:  {Message: func(m *providers.Message) { m.Body = strings.Repeat("0123456789", 500) }, Code: "too_large"},
		providers.Gone:      {Message: dead("dead" + strings.Repeat("0a", 30)), Code: "Unregistered"},
		providers.Denied:    {Settings: map[string]any{"key_id": "WRONG12345"}, Code: "InvalidProviderToken"},
	}
	sit(t, e)
}

func TestFCM(t *testing.T) {
	s := startSandbox(t, sandbox.FCM)
	settings := s.settings(t, "fcm", map[string]any{"credentials_file": nil, "credentials": content(t, s.ServiceAccountFile())})
	e := s.exam(fcm.Kind(), settings, func(i int) string { return fmt.Sprintf("exam-token-%08d:APA91b", i) })
	e.Down.Settings = map[string]any{"endpoint": strings.Replace(nowhere(t), "http:", "https:", 1)}
	e.Outcomes = map[providers.Outcome]plugintest.Provoke{
		providers.Unknown:   {Service: s.fails("UNAVAILABLE", 0), Code: "UNAVAILABLE"},
		providers.Deferred:  {Service: s.fails("THIRD_PARTY_AUTH_ERROR", 0), Code: "THIRD_PARTY_AUTH_ERROR"},
		providers.Throttled: {Service: s.fails("QUOTA_EXCEEDED", 7*time.Second), Code: "QUOTA_EXCEEDED", After: 7 * time.Second},
		providers.Rejected:  {Message: func(m *providers.Message) { m.Body = strings.Repeat("0123456789", 500) }},
		providers.Gone:      {Message: dead("dead-token-of-the-exam:APA91b"), Code: "UNREGISTERED"},
		providers.Denied:    {Settings: map[string]any{"project": "another-project"}, Code: "PERMISSION_DENIED"},
	}
	sit(t, e)
}

func TestEmail(t *testing.T) {
	s := startSandbox(t, sandbox.SMTP)
	e := s.exam(email.Kind(), s.settings(t, "email", nil), func(i int) string { return fmt.Sprintf("reader-%d@example.org", i) })
	e.Down.Settings = map[string]any{"addr": strings.TrimPrefix(nowhere(t), "http://")}
	e.Outcomes = map[providers.Outcome]plugintest.Provoke{
		providers.Unknown:  {Service: s.plays(sandbox.Script{DropAfter: 1})},
		providers.Deferred: {Service: s.fails("451 4.7.1 greylisted", 0), Code: "451 4.7.1"},
		providers.Rejected: {Service: s.fails("550 5.7.1 policy", 0), Code: "550 5.7.1"},
		providers.Gone:     {Message: dead("dead@example.org"), Code: "550 5.1.1"},
		providers.Denied:   {Settings: map[string]any{"password": "not-the-password"}},
	}
	sit(t, e)
}

const wsSecret = "a websocket secret of the exam, of 32 bytes and more"

// reader is a recipient's client that stays connected to a gateway.
type reader struct {
	t     testing.TB
	mu    sync.Mutex
	conns map[providers.Provider]*wsConn
}

type wsConn struct {
	raw     *ws.Conn
	mu      sync.Mutex // of lastID and answers
	lastID  int
	answers map[int]chan json.RawMessage
}

const recipient = "exam-recipient"

// connect connects to the provider's handler and waits until it is let in.
func (r *reader) connect(t testing.TB, p providers.Provider) {
	t.Helper()
	server := httptest.NewServer(p.(providers.Server).Handler())
	t.Cleanup(server.Close)
	tokens, err := websocket.NewTokens(wsSecret)
	if err != nil {
		t.Fatal(err)
	}
	tok, _, err := tokens.Mint("exam", recipient, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var raw *ws.Conn
	for { // a gateway that waits for its Redis lets nobody in
		raw, _, err = ws.Dial(ctx, strings.Replace(server.URL, "http", "ws", 1)+"/connection/websocket", nil)
		if err == nil {
			break
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal(err)
		}
	}
	raw.SetReadLimit(-1)
	c := &wsConn{raw: raw, answers: map[int]chan json.RawMessage{}}
	t.Cleanup(func() { _ = raw.CloseNow() })
	go c.read()
	answer, err := c.ask(ctx, "connect", fmt.Sprintf(`{"token":%q}`, tok))
	if err != nil || strings.Contains(string(answer), `"error"`) {
		t.Fatalf("connect: %s %v", answer, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns[p] = c
}

func (c *wsConn) read() {
	for {
		_, frame, err := c.raw.Read(context.Background())
		if err != nil {
			return
		}
		for line := range strings.Lines(string(frame)) {
			if line = strings.TrimSpace(line); line == "{}" { // a ping
				_ = c.raw.Write(context.Background(), ws.MessageText, []byte("{}"))
				continue
			}
			var reply struct {
				ID int `json:"id"`
			}
			if json.Unmarshal([]byte(line), &reply) != nil || reply.ID == 0 {
				continue // a publication
			}
			c.mu.Lock()
			c.answers[reply.ID] <- json.RawMessage(line)
			c.mu.Unlock()
		}
	}
}

func (c *wsConn) ask(ctx context.Context, member, body string) (json.RawMessage, error) {
	c.mu.Lock()
	c.lastID++
	id := c.lastID
	answer := make(chan json.RawMessage, 1)
	c.answers[id] = answer
	c.mu.Unlock()
	if err := c.raw.Write(ctx, ws.MessageText, fmt.Appendf(nil, `{"id":%d,%q:%s}`, id, member, body)); err != nil {
		return nil, err
	}
	select {
	case a := <-answer:
		return a, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// acknowledge is plugintest.Exam.Receipt.
func (r *reader) acknowledge(_ testing.TB, p providers.Provider, m providers.Message) error {
	r.mu.Lock()
	c := r.conns[p]
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	answer, err := c.ask(ctx, "rpc", fmt.Sprintf(`{"method":"ack","data":{"ids":[%q]}}`, m.ID))
	if err == nil && strings.Contains(string(answer), `"error"`) {
		err = errors.New(string(answer))
	}
	return err
}

func websocketExam(t testing.TB) plugintest.Exam {
	r := &reader{t: t, conns: map[providers.Provider]*wsConn{}}
	return plugintest.Exam{
		Kind:     websocket.Kind(),
		Settings: map[string]any{"secret": wsSecret},
		Message: func(i int) providers.Message {
			return providers.Message{App: "exam", Address: recipient, Title: "Title of a message of the exam", Body: fmt.Sprintf("Body of message %d of the exam", i)}
		},
		Opened:  r.connect,
		Receipt: r.acknowledge,
		Outcomes: map[providers.Outcome]plugintest.Provoke{
			providers.Absent:   {Message: dead("exam-recipient-who-is-away")},
			providers.Rejected: {Message: func(m *providers.Message) { m.Body = strings.Repeat("0123456789", 7_000) }, Code: "too_large"},
		},
	}
}

func TestWebSocket(t *testing.T) { sit(t, websocketExam(t)) }

// TestWebSocketOverRedis has a service that can be silent and down.
func TestWebSocketOverRedis(t *testing.T) {
	e := websocketExam(t)
	process, url := startRedis(t)
	e.Settings["redis"] = url
	e.Silence.Service = func(t testing.TB) func() {
		signal := func(s syscall.Signal) {
			if err := process.Signal(s); err != nil {
				t.Error(err)
			}
		}
		signal(syscall.SIGSTOP)
		return func() { signal(syscall.SIGCONT) }
	}
	e.Down.Settings = map[string]any{"redis": strings.Replace(nowhere(t), "http:", "redis:", 1)}
	sit(t, e)
}

const redisPassword = "the-password-of-the-redis"

// startRedis starts a redis-server of the test's own.
func startRedis(t testing.TB) (process *os.Process, url string) {
	t.Helper()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CARILLON_REQUIRE_SERVERS") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	address := strings.TrimPrefix(nowhere(t), "http://")
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", t.TempDir(), "--requirepass", redisPassword)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		if answers(address) {
			return cmd.Process, "redis://:" + redisPassword + "@" + address + "/2"
		}
		<-time.After(10 * time.Millisecond)
	}
	t.Fatal("redis-server does not answer")
	return nil, ""
}

func answers(address string) bool {
	c, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return false
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "AUTH %s\r\nPING\r\n", redisPassword); err != nil {
		return false
	}
	lines := bufio.NewReader(c)
	_, _ = lines.ReadString('\n')
	answer, _ := lines.ReadString('\n')
	return strings.HasPrefix(answer, "+PONG")
}
