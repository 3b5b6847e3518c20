package host_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/plugins/host"
)

// hostSecret is a variable of this process that no plugin may see.
const hostSecret = "CARILLON_TEST_SECRET"

// TestMain lets the test binary play the plugins: called as "play PART" it is one. After the tests it looks
// for what they left behind, however often they ran.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "play" {
		play(os.Args[2], os.Args[3:])
		return
	}
	if err := os.Setenv(hostSecret, "hunter2hunter2"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// What the first plugin starts stays: the reaper and the launcher.
	self, err := os.Executable()
	if err == nil {
		_, err = host.Describe(context.Background(), host.Spec{Name: "first", Command: self, Args: []string{"play", "obedient"}})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "describe the first plugin:", err)
		os.Exit(1)
	}
	before := possessions()
	code := m.Run()
	if left := leaked(before); code == 0 && left != "" {
		fmt.Fprintln(os.Stderr, "the tests left behind:", left)
		code = 1
	}
	os.Exit(code)
}

// held is what a process may forget to give back.
type held struct {
	goroutines, files int
	processes, dirs   []string
}

func possessions() held {
	h := held{goroutines: pprof.Lookup("goroutine").Count()}
	files, _ := os.ReadDir("/proc/self/fd")
	h.files = len(files)
	children, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range children {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		rest := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		environ, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "environ"))
		if rest[1] == fmt.Sprint(os.Getpid()) || strings.Contains(string(environ), dirPrefix()) {
			command, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
			h.processes = append(h.processes, fmt.Sprintf("%s %.60q", filepath.Dir(path), command))
		}
	}
	h.dirs, _ = filepath.Glob(filepath.Join(os.TempDir(), dirPrefix()+"*"))
	return h
}

// dirPrefix begins the names of this process's private directories.
func dirPrefix() string { return fmt.Sprintf("carillon-plugin-%d-", os.Getpid()) }

// leaked says what is there now and was not before. What has just ended may take a moment to be gone.
func leaked(before held) string {
	var now held
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); <-tick.C {
		now = possessions()
		if now.goroutines <= before.goroutines && now.files <= before.files && len(now.processes) <= len(before.processes) && len(now.dirs) == 0 {
			fmt.Printf("held before and after: %d and %d goroutines, %d and %d file descriptors, %d and %d processes, %d directories\n",
				before.goroutines, now.goroutines, before.files, now.files, len(before.processes), len(now.processes), len(now.dirs))
			return ""
		}
	}
	if now.goroutines > before.goroutines {
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
	}
	files, _ := os.ReadDir("/proc/self/fd")
	for _, f := range files {
		to, _ := os.Readlink("/proc/self/fd/" + f.Name())
		fmt.Fprintln(os.Stderr, f.Name(), to)
	}
	return fmt.Sprintf("before %+v, now %+v", before, now)
}
