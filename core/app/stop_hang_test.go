package app_test

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/coretest"
)

// TestDatabaseHangs: while PostgreSQL says nothing, readiness and requests are answered within a bound, and a
// process that is told to stop does.
func TestDatabaseHangs(t *testing.T) {
	t.Parallel()
	server := coretest.StartPostgres(t, "")
	link := coretest.StartProxy(t, "unix:"+server.Socket())
	const bound = 3 * time.Second
	file := writeConfig(t, startSandbox(t), fmt.Sprintf("shutdown_timeout: %s\ndata: %s\nstore: %q\nqueue: redis://%s/0",
		bound, t.TempDir(), server.DSN(link.Addr), coretest.StartRedis(t).Addr))
	p := startProcess(t, "orchestrator", []string{"-config", file}, nil)
	c := newCaller(t, p.base)
	body := fmt.Sprintf(`{"to":[{"apns":%q}],"content":{"title":"hangs"}}`, hexToken(1))
	c.must(http.MethodPost, "/v1/notifications", body, nil, http.StatusAccepted)
	link.Hang()
	refused := func(method, path, body string, limit time.Duration) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, p.base+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+testKey)
		req.Header.Set("Content-Type", "application/json")
		began := time.Now()
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		took := time.Since(began)
		t.Logf("%s %s: %d after %v", method, path, resp.StatusCode, took)
		if resp.StatusCode != http.StatusServiceUnavailable || took > limit {
			t.Errorf("%s %s: %d after %v", method, path, resp.StatusCode, took)
		}
		if path != "/readyz" && resp.Header.Get("Retry-After") == "" {
			t.Errorf("%s %s: no Retry-After", method, path)
		}
	}
	refused(http.MethodGet, "/readyz", "", 3*time.Second)
	refused(http.MethodPost, "/v1/notifications", body, 18*time.Second)
	refused(http.MethodGet, "/v1/notifications", "", 18*time.Second)
	began := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	const most = bound + 5*time.Second
	select {
	case <-p.done: // not with 0: its rounds could not end in order
		t.Logf("it ended after %v: %v", time.Since(began), p.err)
	case <-time.After(most):
		t.Errorf("it did not end within %v\n%s", most, p.said())
	}
}
