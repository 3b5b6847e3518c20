package plugintest_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/plugins/plugintest"
)

func TestCommand(t *testing.T) {
	s := newStandIn(t)
	settings := map[string]any{"url": s.URL, "token": token}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho this is no plugin >&2\nexit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		trial  plugintest.Trial
		failed bool
		said   []string
	}{
		{"sound", plugintest.Trial{Path: self(t), Args: []string{"play", "sound"}, Settings: settings, Address: "+4915112345678"}, false, []string{
			"Kind sound of the channel test, batches of 10.", "Delivers to the stand-in of a test.",
			"token                string, required, secret: What the service knows us by.", "mode                 choice, fast|safe, default fast",
			"ok      kind", "ok      open_types", "ok      test_message", "ok      leaks", "ok      supervision", " 0 failed,", ": it would deliver messages"}},
		{"no settings", plugintest.Trial{Path: self(t), Args: []string{"play", "sound"}}, false, []string{
			"ok      kind", "-       open, check, open_unknown, ", ": no provider can be opened: it wants settings", "url: set it to where the service is", " 0 failed,"}},
		{"wrong settings", plugintest.Trial{Path: self(t), Args: []string{"play", "sound"}, Settings: map[string]any{"url": s.URL, "token": token, "mode": "slow"}}, true, []string{
			"FAILED  open\n", "mode: must be fast or safe", "leaks, supervision: no provider can be opened"}},
		{"a flaw", plugintest.Trial{Path: self(t), Args: []string{"play", "test delivered"}, Settings: settings, Address: "+4915112345678gone"}, true, []string{
			"FAILED  test_message", "want accepted only"}},
		{"another flaw", plugintest.Trial{Path: self(t), Args: []string{"play", "required without a name"}, Settings: settings}, true, []string{
			"FAILED  open_required", "url is required, and the error of Open without it does not name it", "test_message: the exam has no Message"}},
		{"no plugin", plugintest.Trial{Path: script}, true, []string{"does not start as a plugin", "this is no plugin"}},
		{"nothing", plugintest.Trial{Path: "/no/such/file"}, true, []string{"does not start as a plugin", "no such file"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var report bytes.Buffer
			err := plugintest.Command(t.Context(), tt.trial, &report)
			if errors.Is(err, plugintest.ErrFailed) != tt.failed || (err != nil) != tt.failed {
				t.Errorf("the error is %v", err)
			}
			for _, want := range tt.said {
				if !strings.Contains(report.String(), want) {
					t.Errorf("the report lacks %q", want)
				}
			}
			if strings.Contains(report.String(), token) {
				t.Error("the report holds the secret")
			}
			if t.Failed() {
				t.Log(report.String())
			}
		})
	}
	if n := s.total(); n > 0 {
		t.Errorf("%d messages were delivered", n)
	}
}

// TestCommandEnds: a person who has seen enough.
func TestCommandEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var report bytes.Buffer
	err := plugintest.Command(ctx, plugintest.Trial{Path: self(t), Args: []string{"play", "sound"}}, &report)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("the disk is full") }

// TestCommandUnheard: a report that cannot be written is no success.
func TestCommandUnheard(t *testing.T) {
	err := plugintest.Command(t.Context(), plugintest.Trial{Path: self(t), Args: []string{"play", "sound"}}, full{})
	if err == nil || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("the error is %v", err)
	}
}
