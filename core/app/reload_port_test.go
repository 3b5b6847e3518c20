package app_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/core/coretest"
)

// TestReloadPort: of a plugin that listens on a port two cannot be open at once. The one before makes room for the next
// one, and where that cannot be opened even so, it is there again.
func TestReloadPort(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", dir+"/", module+"plugins/examples/sms").CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v\n%s", err, out)
	}
	callbacks := coretest.FreeAddr(t)
	route := func(key string) string {
		return fmt.Sprintf("  sms: {command: %s, settings: {endpoint: 'http://127.0.0.1:9/', key: %s, from: Carillon, callback_listen: '%s', callback_url: 'http://%s/', callback_secret: 0123456789abcdef0123456789abcdef}}\n",
			filepath.Join(dir, "sms"), key, callbacks, callbacks)
	}
	file := writeConfig(t, startSandbox(t), "data: "+t.TempDir())
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(key string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(string(text)+route(key)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first")
	c := newCaller(t, startProcess(t, "orchestrator", []string{"-config", file}, nil).base)
	listens := func(when string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+callbacks+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatalf("%s nobody listens: %v", when, err)
		}
		_ = resp.Body.Close()
	}
	listens("at first")
	var done struct {
		Changed []string
		Faults  []struct{ Route, Reason string }
	}
	write("second")
	c.must(http.MethodPost, "/v1/routes/reload", nil, &done, http.StatusOK)
	if len(done.Changed) != 1 || len(done.Faults) > 0 {
		t.Errorf("another key: %+v", done)
	}
	listens("with another key")
	write("'a key with spaces'")
	c.must(http.MethodPost, "/v1/routes/reload", nil, &done, http.StatusOK)
	if len(done.Changed) > 0 || len(done.Faults) != 1 || !strings.Contains(done.Faults[0].Reason, "the route goes on as it was") {
		t.Errorf("a key that is none: %+v", done)
	}
	listens("with a key that is none")
}
