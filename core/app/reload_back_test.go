package app_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

// TestReloadKeeps: a route that cannot be had as it is to be, for a file of it is away, goes on with the provider that it
// has, though that one could not be opened again either. Its connections are the same ones.
func TestReloadKeeps(t *testing.T) {
	t.Parallel()
	world := startSandbox(t)
	file := writeConfig(t, world, "data: "+t.TempDir())
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var settings struct {
		CAFile string `json:"ca_file"`
	}
	raw, _ := world.Settings("email")
	if err := json.Unmarshal(raw, &settings); err != nil || settings.CAFile == "" {
		t.Fatalf("%s: %v", raw, err)
	}
	ca, err := os.ReadFile(settings.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(t.TempDir(), "ca.pem")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := strings.ReplaceAll(string(text), settings.CAFile, own)
	write(own, string(ca))
	write(file, before)
	p := startProcess(t, "orchestrator", []string{"-config", file}, nil)
	c := newCaller(t, p.base)
	reload := func(faults int) {
		t.Helper()
		var done struct {
			Faults  []struct{ Route, Reason string }
			Changed []string
		}
		c.must(http.MethodPost, "/v1/routes/reload", nil, &done, http.StatusOK)
		if len(done.Faults) != faults {
			t.Errorf("faults: %v, want %d", done.Faults, faults)
		}
		if faults > 0 && (!strings.Contains(done.Faults[0].Reason, "ca_file") || !strings.Contains(done.Faults[0].Reason, "the route goes on as it was")) || len(done.Changed) > 0 {
			t.Errorf("told: %+v", done)
		}
	}
	sent := func(when string) {
		t.Helper()
		var got accepted
		c.must(http.MethodPost, "/v1/notifications", `{"to":[{"email":"ann@example.com"}],"content":{"title":"x"}}`, &got, http.StatusAccepted)
		id := c.deliveries(got.ID)[0].ID
		eventually(t, time.Minute, "the mail is there "+when, func() bool { return len(world.Messages(sandbox.Filter{Service: sandbox.SMTP, ID: id})) == 1 })
	}
	if err := os.Remove(own); err != nil {
		t.Fatal(err)
	}
	write(file, strings.ReplaceAll(before, "kind: email, timeout: 5s", "kind: email, timeout: 6s"))
	reload(1)
	reload(1)
	sent("meanwhile")
	write(own, string(ca))
	write(file, before)
	reload(0)
	sent("afterwards")
}
