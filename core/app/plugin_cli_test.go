package app_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// runCommand runs the orchestrator's command line to its end in a directory.
func runCommand(t *testing.T, dir string, args ...string) (out string, err error) {
	t.Helper()
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // an examination takes a minute on a busy machine
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "orchestrator"), args...)
	cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH")}
	text, err := cmd.CombinedOutput()
	return string(text), err
}

// TestPluginCommands is what a plugin's author and an operator see of the plugins directory.
func TestPluginCommands(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ledger := filepath.Join(dir, "ledger")
	if out, err := runCommand(t, dir, "plugin", "list"); err != nil || !strings.Contains(out, "there is no plugin in ./plugins.d") {
		t.Errorf("an empty list: %v %s", err, out)
	}
	putPager(t, filepath.Join(dir, "plugins.d"), "v1", ledger)
	if err := os.WriteFile(filepath.Join(dir, "plugins.d", "dud"), []byte("#!/bin/sh\nexit 9\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want []string
		fail bool
	}{
		{[]string{"plugin", "list"}, []string{"pager (by itself)", "cannot be had", "exit code 9"}, false},
		{[]string{"plugin", "inspect", "plugins.d/pager"}, []string{"kind      pager", "channel   beep", "sha256    ", `"beeps"`, "routes:\n  pager: {command: plugins.d/pager"}, false},
		{[]string{"plugin", "inspect", "plugins.d/dud"}, []string{"exit code 9"}, true},
		{[]string{"plugin", "inspect", "plugins.d/none"}, []string{"no such file"}, true},
		{[]string{"plugin", "test", "plugins.d/pager", "--address", "4711"}, []string{"Kind pager of the channel beep", "ok      test_message", " 0 failed"}, false},
		{[]string{"plugin", "test", "plugins.d/dud"}, []string{"does not start as a plugin"}, true},
		{[]string{"plugin", "test", "plugins.d/pager", "--settings", "plugins.d/none"}, []string{"no such file"}, true},
		{[]string{"config", "check"}, []string{"warning: plugin dud cannot be had", "the configuration is in order"}, false},
		{[]string{"provider", "apns"}, []string{"a provider plugin of Carillon", "Carillon starts it"}, true},
		{[]string{"provider", "fax"}, []string{`there is no built-in kind "fax"`}, true},
	} {
		out, err := runCommand(t, dir, c.args...)
		if (err != nil) != c.fail {
			t.Errorf("%v: %v\n%s", c.args, err, out)
		}
		for _, want := range c.want {
			if !strings.Contains(out, want) {
				t.Errorf("%v does not say %q:\n%s", c.args, want, out)
			}
		}
	}
}

// TestHangup: SIGHUP reads the file anew; a route appears, changes and goes, and a file with a mistake
// changes nothing.
func TestHangup(t *testing.T) {
	t.Parallel()
	world := startSandbox(t)
	file := writeConfig(t, world, "data: "+t.TempDir())
	p := startProcess(t, "orchestrator", []string{"-config", file}, nil)
	c := newCaller(t, p.base)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	ledger := filepath.Join(t.TempDir(), "ledger")
	pluginDir := t.TempDir()
	putPager(t, pluginDir, "v1", ledger)
	for _, step := range []struct {
		what, more string
		there      func(map[string]routeState) bool
	}{
		{"added", "  beeper: {command: " + filepath.Join(pluginDir, "pager") + "}\n", func(r map[string]routeState) bool { return r["beeper"].State == "ok" }},
		{"a mistake", "  beeper: {command: " + filepath.Join(pluginDir, "pager") + ", rate: fast}\n", func(map[string]routeState) bool {
			return strings.Contains(p.said(), "the settings are not reloaded") && strings.Contains(p.said(), "routes.beeper.rate")
		}},
		{"removed", "", func(r map[string]routeState) bool { _, there := r["beeper"]; return !there }},
	} {
		if err := os.WriteFile(file, append(append([]byte{}, text...), step.more...), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, time.Minute, step.what, func() bool { return step.there(c.routes()) })
		if step.what == "a mistake" && c.routes()["beeper"].State != "ok" {
			t.Error("a mistake in the file took the route away")
		}
	}
}
