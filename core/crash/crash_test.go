package crash_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/carillon-notify/carillon/core/crash"
)

// TestPoints: the steps have names of their own, in the form that CARILLON_CRASH takes.
func TestPoints(t *testing.T) {
	t.Parallel()
	seen := map[crash.Point]bool{}
	for _, p := range crash.Points {
		if seen[p] {
			t.Errorf("%s names two steps", p)
		}
		seen[p] = true
	}
}

const program = `package main

import "github.com/carillon-notify/carillon/core/crash"

func main() {
	for range 3 {
		crash.At(crash.SettleWritten)
		println("passed")
	}
}
`

// TestAt builds a program with the tag and without: with it, it dies by SIGKILL at the second passing;
// without it the variable means nothing.
func TestAt(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp(".", "_program-") // inside the module, where the package can be had, and seen by no pattern
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		tags, env, said string
		killed          bool
		code            int
	}{
		"normal": {"", "settle.2@2", "passed\npassed\npassed\n", false, 0},
		"tagged": {"crashpoints", "settle.2@2", "passed\n", true, -1},
		"other":  {"crashpoints", "settle.3@2", "passed\npassed\npassed\n", false, 0},
		"wrong":  {"crashpoints", "settle.2", "CARILLON_CRASH is a step and a number, such as settle.2@3, not \"settle.2\"\n", false, 2},
	} {
		bin := filepath.Join(t.TempDir(), name)
		if out, err := exec.CommandContext(t.Context(), "go", "build", "-tags", c.tags, "-o", bin, "./"+dir).CombinedOutput(); err != nil {
			t.Fatalf("build: %v: %s", err, out)
		}
		cmd := exec.CommandContext(t.Context(), bin)
		cmd.Env = []string{"CARILLON_CRASH=" + c.env}
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		status := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if string(out) != c.said || cmd.ProcessState.ExitCode() != c.code || (status.Signaled() && status.Signal() == syscall.SIGKILL) != c.killed {
			t.Errorf("%s: said %q and ended with %v", name, out, cmd.ProcessState)
		}
	}
}
