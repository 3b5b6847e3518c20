package app_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/carillon-notify/carillon/core/config"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

const token64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// live is a recipient's client: it hands on what arrives and acknowledges it.
func live(t testing.TB, c *caller, recipient string) <-chan map[string]any {
	t.Helper()
	var minted struct{ Token string }
	c.must(http.MethodPost, "/v1/recipients/"+recipient+"/token", nil, &minted, http.StatusOK)
	ws, _, err := websocket.Dial(t.Context(), strings.Replace(c.base, "http", "ws", 1)+"/connection/websocket", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.CloseNow() })
	send := func(text string) {
		if err := ws.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
			t.Log(err)
		}
	}
	send(fmt.Sprintf(`{"id":1,"connect":{"token":%q}}`, minted.Token))
	arrived := make(chan map[string]any, 100)
	connected := make(chan struct{})
	go func() {
		for {
			_, text, err := ws.Read(context.Background())
			if err != nil {
				return
			}
			for line := range strings.SplitSeq(string(text), "\n") {
				var reply struct {
					Connect *struct{}
					Push    struct{ Pub struct{ Data map[string]any } }
				}
				if line == "{}" {
					send("{}")
				}
				_ = json.Unmarshal([]byte(line), &reply)
				if reply.Connect != nil {
					close(connected)
				}
				if data := reply.Push.Pub.Data; data != nil {
					send(fmt.Sprintf(`{"id":2,"rpc":{"method":"ack","data":{"ids":[%q]}}}`, data["id"]))
					arrived <- data
				}
			}
		}
	}()
	select {
	case <-connected:
	case <-time.After(time.Minute):
		t.Fatal("the client was not connected")
	}
	return arrived
}

// TestFirstRun is the README's tour: nothing configured, one request, all four providers.
func TestFirstRun(t *testing.T) {
	t.Parallel()
	a, c := startApp(t, nil)
	arrived := live(t, c, "u_42")

	var got accepted
	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"email":"ann@example.com"},{"apns":"`+token64+`"},{"fcm":"fcm-token-of-a-phone"},{"websocket":"u_42"}],
		"content":{"title":"Hello","body":"Your first notification"}}`, &got, http.StatusAccepted)
	if got.Deliveries != 4 {
		t.Errorf("%d deliveries, want 4", got.Deliveries)
	}
	select {
	case m := <-arrived:
		if m["title"] != "Hello" {
			t.Errorf("the live client got %v", m)
		}
	case <-time.After(time.Minute):
		t.Error("nothing arrived live")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, s := range []sandbox.Service{sandbox.APNs, sandbox.FCM, sandbox.SMTP} {
		if err := a.Sandbox().Wait(ctx, s, 1); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	eventually(t, time.Minute, "three sent and the acknowledged one delivered", func() bool {
		var n notification
		c.must(http.MethodGet, "/v1/notifications/"+got.ID, nil, &n, http.StatusOK)
		return n.Counts.Sent == 3 && n.Counts.Delivered == 1 && n.Status == "completed"
	})
	var steps struct{ Data []map[string]any }
	c.must(http.MethodGet, "/v1/notifications/"+got.ID+"/timeline", nil, &steps, http.StatusOK)
	text, _ := json.Marshal(steps.Data)
	for _, want := range []string{"accepted", "resolved", "attempt", "delivered"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the timeline has no step %q: %s", want, text)
		}
	}
	var inbox struct{ Data []map[string]any }
	var minted struct{ Token string }
	c.must(http.MethodPost, "/v1/recipients/u_42/token", nil, &minted, http.StatusOK)
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, c.base+"/v1/inbox", nil)
	req.Header.Set("Authorization", "Bearer "+minted.Token)
	resp, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&inbox); err != nil || len(inbox.Data) != 1 {
		t.Errorf("the inbox has %v, %v", inbox.Data, err)
	}
	for _, page := range []string{"/livez", "/readyz", "/openapi.yaml", "/docs", "/metrics", "/console/login", "/sandbox/"} {
		c.must(http.MethodGet, page, nil, nil, http.StatusOK)
	}
}

// TestDelayCancelAndTemplates covers what a first run does not.
func TestDelayCancelAndTemplates(t *testing.T) {
	t.Parallel()
	a, c := startApp(t, nil)
	c.must(http.MethodPut, "/v1/recipients/u_1", `{"locale":"fr-CA","attributes":{"name":"Ann"},"endpoints":[{"kind":"apns","address":"`+token64+`"},{"kind":"email","address":"ann@example.com"}]}`, nil, http.StatusCreated)

	var later accepted
	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"recipient":"u_1"}],"content":{"title":"later"},"delay":"1h"}`, &later, http.StatusAccepted)
	if later.Status != "scheduled" {
		t.Errorf("a delayed notification is %s", later.Status)
	}
	c.must(http.MethodPost, "/v1/notifications/"+later.ID+"/cancel", nil, nil, http.StatusOK)
	var n notification
	c.must(http.MethodGet, "/v1/notifications/"+later.ID, nil, &n, http.StatusOK)
	if n.Status != "cancelled" || n.Counts.Cancelled != later.Deliveries {
		t.Errorf("after the cancellation: %+v", n)
	}

	var soon accepted
	began := time.Now()
	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"recipient":"u_1"}],"template":"order-shipped","data":{"order":7},"delay":"1s","channels":["push","email"]}`, &soon, http.StatusAccepted)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := a.Sandbox().Wait(ctx, sandbox.APNs, 1); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("a delay of 1s took %s", took)
	}
	if err := a.Sandbox().Wait(ctx, sandbox.SMTP, 1); err != nil {
		t.Fatal(err)
	}
	if got := a.Sandbox().Counts(sandbox.APNs).Taken; got != 1 {
		t.Errorf("APNs took %d, want only what was not cancelled", got)
	}
}

// TestSecondStart: what was accepted and not yet sent at a stop is sent after the next start.
func TestSecondStart(t *testing.T) {
	t.Parallel()
	world := startSandbox(t)
	file := writeConfig(t, world, "data: "+t.TempDir())
	p := startProcess(t, "orchestrator", []string{"-config", file}, nil)
	var got accepted
	newCaller(t, p.base).must(http.MethodPost, "/v1/notifications", `{"to":[{"apns":"`+token64+`"}],"content":{"title":"x"},"delay":"3s"}`, &got, http.StatusAccepted)
	if err := p.interrupt(); err != nil {
		t.Fatalf("Ctrl-C: %v\n%s", err, p.said())
	}
	q := startProcess(t, "orchestrator", []string{"-config", file}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := world.Wait(ctx, sandbox.APNs, 1); err != nil {
		t.Fatalf("%v\n%s", err, q.said())
	}
	if world.IDs(sandbox.APNs)[newCaller(t, q.base).deliveries(got.ID)[0].ID] != 1 {
		t.Error("what arrived is not the delivery")
	}
}

// TestMistakesAreOneLine: what is wrong at the start is told in one line, with exit code 1.
func TestMistakesAreOneLine(t *testing.T) {
	t.Parallel()
	a, _ := startApp(t, nil)
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	file := t.TempDir() + "/a-file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pki := coretest.NewTLS(t) // of 127.0.0.1, and not of 127.0.0.2
	routed := filepath.Join(t.TempDir(), "carillon.yaml")
	if err := os.WriteFile(routed, []byte("routes: {websocket: {kind: websocket, settings: {secret: 0123456789abcdef0123456789abcdef}}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		program string
		args    []string
		want    string
	}{
		"port in use":       {"orchestrator", []string{"-listen", strings.TrimPrefix(a.URL(), "http://")}, "is in use"},
		"directory":         {"orchestrator", []string{"-listen", "127.0.0.1:0", "-data", file + "/x"}, "data"},
		"bad setting":       {"orchestrator", []string{"-listen", "nowhere"}, "listen"},
		"unknown flag":      {"orchestrator", []string{"-lissten", "x"}, "lissten"},
		"no such file":      {"orchestrator", []string{"-config", "/does/not/exist.yaml"}, "read the configuration"},
		"worker on sqlite":  {"worker", nil, "set store to postgres://"},
		"worker, idle":      {"worker", []string{"-workers=false", "-store", "postgres://h/db", "-queue", "redis://h/0"}, "-workers, or CARILLON_WORKERS"},
		"worker, no routes": {"worker", []string{"-store", coretest.Postgres(t), "-queue", "redis://" + coretest.Redis(t)}, "`orchestrator sandbox` prints routes"},
		"no redis":          {"orchestrator", []string{"-listen", "127.0.0.1:0", "-queue", "redis://u:geheim@127.0.0.1:1/0"}, "queue: reach Redis at redis://127.0.0.1:1/0: dial tcp 127.0.0.1:1: connect: connection refused; nothing listens there: start it, or correct host and port in its URL"},
		"no postgres":       {"worker", []string{"-config", routed, "-store", "postgres://u:geheim@127.0.0.1:1/d", "-queue", "redis://" + coretest.Redis(t)}, "connection refused; nothing listens there: start it, or correct host and port in its URL"},
		"no such host":      {"worker", []string{"-config", routed, "-store", "postgres://u:geheim@no-such-host.invalid/d", "-queue", "redis://" + coretest.Redis(t)}, "correct the host in its URL"},
		"another's Redis":   {"orchestrator", []string{"-listen", "127.0.0.1:0", "-queue", "rediss://u:geheim@" + impostor(t, pki, false) + "?ca_file=" + pki.CAFile}, "orchestrator: queue: * certificate is valid for 127.0.0.1, not 127.0.0.2; have its URL name the server as its certificate does"},
		"another's store": {"worker", []string{"-config", routed, "-queue", "redis://" + coretest.Redis(t),
			"-store", "postgres://u:geheim@" + impostor(t, pki, true) + "/d?sslmode=verify-full&sslrootcert=" + pki.CAFile}, "worker: store: * certificate is valid for 127.0.0.1, not 127.0.0.2; have its URL name the server as its certificate does"},
		"nothing to deliver": {"orchestrator", []string{"-listen", "127.0.0.1:0", "-sandbox", "false"}, "no route is configured"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), dir+"/"+tc.program, tc.args...)
			cmd.Dir, cmd.Env = t.TempDir(), []string{"PATH=/usr/bin"}
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != 1 {
				t.Errorf("exit code %d (%v), want 1", cmd.ProcessState.ExitCode(), err)
			}
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			setting, rest, _ := strings.Cut(tc.want, "*") // anything
			if len(lines) != 1 || !strings.Contains(lines[0], setting) || !strings.Contains(lines[0], rest) || strings.Contains(lines[0], "geheim") {
				t.Errorf("said %q, want one line with %q", out, tc.want)
			}
		})
	}
}

// impostor is where somebody speaks TLS at 127.0.0.2 with a certificate of another name: from the first byte on as Redis, or as
// PostgreSQL after it was asked for.
func impostor(t *testing.T, pki coretest.TLS, asked bool) string {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(pki.CertFile, pki.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if asked {
					var request [8]byte // PostgreSQL's SSLRequest
					_, _ = io.ReadFull(conn, request[:])
					_, _ = conn.Write([]byte("S"))
				}
				_ = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}}).Handshake()
			}()
		}
	}()
	return l.Addr().String()
}

// TestConfigCommand: what it prints is a configuration that it takes.
func TestConfigCommand(t *testing.T) {
	t.Parallel()
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), dir+"/orchestrator", "config").Output()
	if err != nil || !strings.Contains(string(out), config.Documented) || !strings.Contains(string(out), "kind: apns") {
		t.Fatalf("config: %v: %s", err, out)
	}
	file := t.TempDir() + "/c.yaml"
	if err := os.WriteFile(file, out, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), dir+"/orchestrator", "config", "check", "-config", file).CombinedOutput(); err != nil {
		t.Errorf("config check: %v: %s", err, out)
	}
}
