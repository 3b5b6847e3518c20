package app_test

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/config"
)

// TestGuide builds and examines the plugin of docs/plugins.md as its reader does, in a module of its own, puts it into the
// plugins directory, and sends the guide's notification.
func TestGuide(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile("../../docs/plugins.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(guide), "```go\n")
	source, rest, _ := strings.Cut(rest, "```")
	_, rest, _ = strings.Cut(rest, "```go\n")
	exam, _, _ := strings.Cut(rest, "```")
	if !strings.Contains(source, "sdk.Serve") || !strings.Contains(exam, "plugintest.Run") {
		t.Fatal("the guide has no plugin in it, or no examination of it")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	sums, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"main.go": source, "exam_test.go": exam, "go.sum": string(sums),
		"go.mod": "module example.com/acme-notebook\n\ngo 1.26.0\n\nreplace github.com/carillon-notify/carillon => " + root + "\n\nrequire github.com/carillon-notify/carillon v0.0.0\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"build", "-mod=mod", "-o", "acme-notebook", "."}, {"test", "-mod=mod", "."}} {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", args[0], err, out)
		}
	}
	notes := filepath.Join(dir, "notebook.txt")
	_, c := startApp(t, func(cfg *config.Config) {
		cfg.Routes["notebook"] = config.Route{Command: filepath.Join(dir, "acme-notebook"), Settings: config.Settings{"path": notes}}
		cfg.Sandbox = config.SandboxOff
	})
	var got accepted
	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"kind":"notebook","address":"ann"},{"kind":"notebook","address":"nobody"}],
		"content":{"title":"Hello","body":"from a plugin","notebook":{"color":"red"}}}`, &got, http.StatusAccepted)
	eventually(t, time.Minute, "one is sent and one is failed", func() bool {
		var n notification
		c.must(http.MethodGet, "/v1/notifications/"+got.ID, nil, &n, http.StatusOK)
		return n.Counts == counts{Sent: 1, Failed: 1}
	})
	text, err := os.ReadFile(notes)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(strings.Split(string(text), "\n"), `ann: Hello from a plugin {"color":"red"}`) {
		t.Errorf("the notebook holds %q", text)
	}
}
