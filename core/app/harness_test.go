package app_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/app"
	"github.com/carillon-notify/carillon/core/config"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

const testKey = "car_test_key_of_the_test_suite"

// caller talks to a running orchestrator as a client would.
type caller struct {
	t    testing.TB
	base string
	http *http.Client
}

func newCaller(t testing.TB, base string) *caller {
	tr := &http.Transport{MaxIdleConnsPerHost: 128}
	t.Cleanup(tr.CloseIdleConnections)
	return &caller{t, base, &http.Client{Transport: tr, Timeout: time.Minute}}
}

// do sends one request and decodes the answer's JSON into out, unless that is nil.
func (c *caller) do(ctx context.Context, method, path string, body, out any) (int, error) {
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(b)
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return 0, err
		}
		reader = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, reader)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+testKey)
	if reader != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp.StatusCode, err
	}
	if out != nil && len(text) > 0 {
		if err := json.Unmarshal(text, out); err != nil {
			return resp.StatusCode, fmt.Errorf("%s %s answered %d %s: %w", method, path, resp.StatusCode, text, err)
		}
	}
	return resp.StatusCode, nil
}

// must is do for requests that have to succeed with a status.
func (c *caller) must(method, path string, body, out any, status int) {
	c.t.Helper()
	got, err := c.do(c.t.Context(), method, path, body, out)
	if err != nil {
		c.t.Fatal(err)
	}
	if got != status {
		var problem json.RawMessage
		_, _ = c.do(c.t.Context(), method, path, body, &problem)
		c.t.Fatalf("%s %s answered %d, not %d: %s", method, path, got, status, problem)
	}
}

type accepted struct {
	ID         string `json:"id"`
	Status     string `json:"status"`
	Deliveries int    `json:"deliveries"`
}

type counts struct {
	Pending, Sent, Delivered, Failed, Expired, Cancelled, Suppressed int
}

type notification struct {
	ID, Status string
	Counts     counts
}

type delivery struct {
	ID, Channel, Route, State, Code, Reason string
	Attempts                                int
	Unknown                                 int `json:"unknown_attempts"`
}

func (c *caller) deliveries(id string) []delivery {
	c.t.Helper()
	var list struct{ Data []delivery }
	c.must(http.MethodGet, "/v1/notifications/"+id+"/deliveries?limit=200", nil, &list, http.StatusOK)
	return list.Data
}

// importPeople imports n new recipients, from 0 on, a line of NDJSON each.
func importPeople(c *caller, n int, line func(i int) string) {
	c.t.Helper()
	const page = 20_000 // a request has a minute
	for from := 0; from < n; from += page {
		var lines strings.Builder
		to := min(from+page, n)
		for i := from; i < to; i++ {
			lines.WriteString(line(i) + "\n")
		}
		req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, c.base+"/v1/recipients/import", strings.NewReader(lines.String()))
		if err != nil {
			c.t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+testKey)
		req.Header.Set("Content-Type", "application/x-ndjson")
		resp, err := c.http.Do(req)
		if err != nil {
			c.t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(text), fmt.Sprintf(`"created":%d`, to-from)) {
			c.t.Fatalf("the import answered %d, %s, %v", resp.StatusCode, text, err)
		}
	}
}

// person is a line of an import: somebody with a name, a mailbox and a device, and more members.
func person(i int, more string) string {
	return fmt.Sprintf(`{"id":"u_%d","attributes":{"name":"Ann %d"},"endpoints":[{"kind":"email","address":"u%d@example.com"},{"kind":"apns","address":%q}]%s}`, i, i, i, hexToken(i), more)
}

// eventually waits until a condition holds that only the other side can bring about.
func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("not within %s: %s", limit, what)
		case <-tick.C:
		}
	}
}

// startApp runs an orchestrator in this process.
func startApp(t testing.TB, change func(*config.Config)) (*app.App, *caller) {
	t.Helper()
	cfg := config.Default()
	cfg.Listen, cfg.Data, cfg.APIKey = "127.0.0.1:0", t.TempDir(), testKey
	cfg.Templates.Dir, cfg.Plugins.Dir = filepath.Join(cfg.Data, "templates.d"), filepath.Join(cfg.Data, "plugins.d")
	if change != nil {
		change(&cfg)
	}
	a, err := app.Start(t.Context(), cfg, app.Orchestrator, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return a, newCaller(t, a.URL())
}

// binaries builds the two programs once; crashing does so with the steps of core/crash in them.
var (
	binaries = sync.OnceValues(func() (string, error) { return build("") })
	crashing = sync.OnceValues(func() (string, error) { return build("crashpoints") })
	built    []string // what is to be removed
)

func build(tags string) (string, error) {
	dir, err := os.MkdirTemp("", "carillon-bin-")
	if err != nil {
		return "", err
	}
	buildMu.Lock()
	built = append(built, dir)
	buildMu.Unlock()
	out, err := exec.Command("go", "build", "-tags", tags, "-o", dir+"/", "github.com/carillon-notify/carillon/cmd/orchestrator", "github.com/carillon-notify/carillon/cmd/worker").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return dir, nil
}

var buildMu sync.Mutex // guards built

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "provider" { // isolated built-in kinds are this binary again
		os.Exit(app.Main(app.Orchestrator, os.Args[1:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "play" {
		playPager(os.Args[2], os.Args[3])
		return
	}
	if os.Getenv(profiled) != "" {
		os.Exit(runProfiled())
	}
	code := m.Run()
	coretest.StopServers()
	for _, dir := range built {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// process is one of our programs as a process of its own.
type process struct {
	cmd  *exec.Cmd
	base string        // where an orchestrator's API is, once it is up
	up   chan struct{} // closed when it says that it runs
	done chan struct{} // closed when it ended
	err  error         // of its end
	log  *bytes.Buffer
	out  bytes.Buffer // what it printed, by whole lines
	mu   sync.Mutex
}

// startProcess runs a program and, for an orchestrator, waits until it says where it listens.
func startProcess(t testing.TB, name string, args, env []string) *process {
	t.Helper()
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, name), args...)
	cmd.Env = env
	return startCommand(t, cmd)
}

// startCommand is startProcess for a command with its arguments and the environment of its own.
func startCommand(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, cmd.Env...)
	cmd.Dir = t.TempDir()
	p := &process{log: &bytes.Buffer{}}
	err := p.launch(cmd, writer(func(b []byte) (int, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.log.Write(b)
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	select {
	case <-p.up:
	case <-p.done:
		t.Fatalf("%s ended: %v\n%s", cmd.Path, p.err, p.said())
	case <-time.After(time.Minute):
		t.Fatalf("%s did not start\n%s", cmd.Path, p.said())
	}
	return p
}

// launch starts one of our programs; what it says goes to log.
func (p *process) launch(cmd *exec.Cmd, log io.Writer) error {
	p.cmd, p.up, p.done = cmd, make(chan struct{}), make(chan struct{})
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = log
	if err := coretest.Start(cmd); err != nil {
		return err
	}
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.mu.Lock()
			p.out.WriteString(lines.Text() + "\n")
			p.mu.Unlock()
			_, rest, serves := strings.Cut(lines.Text(), "API       ")
			if serves {
				p.base, _, _ = strings.Cut(rest, "/v1")
			}
			if serves || strings.HasPrefix(lines.Text(), "Carillon worker") {
				close(p.up)
			}
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	return nil
}

type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// printed returns what the program wrote to its standard output so far.
func (p *process) printed() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// kill is SIGKILL: nothing of the process gets to say goodbye.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// interrupt is Ctrl-C.
func (p *process) interrupt() error {
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	<-p.done
	return p.err
}

// startSandbox runs the world in the test's own process: it outlives what is killed.
func startSandbox(t testing.TB) *sandbox.Sandbox {
	t.Helper()
	s, err := sandbox.Start(sandbox.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("sandbox seed %d", s.Seed())
	t.Cleanup(func() { s.Close() })
	return s
}

// writeConfig writes a configuration whose routes lead to the sandbox, quick to try again.
func writeConfig(t testing.TB, s *sandbox.Sandbox, more string) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "listen: 127.0.0.1:0\napi_key: %s\n%s\nroutes:\n  websocket: {kind: websocket, settings: {secret: 0123456789abcdef0123456789abcdef}}\n", testKey, more)
	for _, kind := range []string{"apns", "fcm", "email"} {
		settings, _ := s.Settings(kind)
		fmt.Fprintf(&b, "  %s: {kind: %s, timeout: 5s, retry: {min: 200ms, max: 2s, max_attempts: 40, max_unknown: 10}, settings: %s}\n", kind, kind, settings)
	}
	name := filepath.Join(t.TempDir(), "carillon.yaml")
	if err := os.WriteFile(name, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
