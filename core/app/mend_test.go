package app_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBrokenPluginIsToldOnce: that a plugin still cannot be had is no news each time that it is tried again; whoever
// reloads is told.
func TestBrokenPluginIsToldOnce(t *testing.T) {
	t.Parallel()
	plugins := t.TempDir()
	if err := os.WriteFile(filepath.Join(plugins, "broken"), []byte("#!/bin/sh\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	file := writeConfig(t, startSandbox(t), fmt.Sprintf("data: %s\nplugins: {dir: %s}\nlog_level: debug", t.TempDir(), plugins))
	p := startProcess(t, "orchestrator", []string{"-config", file}, nil)
	eventually(t, time.Minute, "it is tried again", func() bool { return strings.Contains(p.said(), "were tried again") })
	const told = "plugin broken: it ended"
	if n := strings.Count(p.said(), told); n != 1 {
		t.Errorf("it is told of %d times:\n%s", n, p.said())
	}
	newCaller(t, p.base).must(http.MethodPost, "/v1/routes/reload", nil, nil, http.StatusOK)
	eventually(t, time.Minute, "who reloads is told", func() bool { return strings.Count(p.said(), told) == 2 }) // the log comes by a way of its own
}
