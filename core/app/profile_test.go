package app_test

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"syscall"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/app"
)

// Profiles of the benchmarks. CARILLON_PROFILE names a directory: the orchestrator that is measured is
// then this test binary under another environment, which writes its CPU and allocation profiles of the
// measured span there. The product itself has no way to be profiled from outside.
const (
	profileDir = "CARILLON_PROFILE"
	profiled   = "CARILLON_PROFILED_ROLE" // set: be the orchestrator, not the tests
)

// runProfiled is the orchestrator's main in the test binary. SIGUSR1 begins a profile, SIGUSR2 ends it.
func runProfiled() int {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	go func() {
		dir := os.Getenv(profileDir)
		var file *os.File
		for s := range signals {
			if s == syscall.SIGUSR1 {
				writeAllocs(filepath.Join(dir, "allocs-before.pb.gz"))
				file = create(filepath.Join(dir, "cpu.pb.gz"))
				if err := pprof.StartCPUProfile(file); err != nil {
					panic(err)
				}
				continue
			}
			pprof.StopCPUProfile()
			if err := file.Close(); err != nil {
				panic(err)
			}
			writeAllocs(filepath.Join(dir, "allocs.pb.gz"))
			_ = os.Remove(filepath.Join(dir, "running")) // the benchmark waits for that
		}
	}()
	return app.Main(app.Orchestrator, os.Args[1:])
}

func create(path string) *os.File {
	f, err := os.Create(path)
	if err != nil {
		panic(err)
	}
	return f
}

func writeAllocs(path string) {
	f := create(path)
	if err := pprof.Lookup("allocs").WriteTo(f, 0); err != nil {
		panic(err)
	}
	if err := f.Close(); err != nil {
		panic(err)
	}
}

// measured starts the orchestrator that a benchmark measures. The function it returns begins a profile,
// where one is asked for, and gives another that ends it.
func measured(b *testing.B, args []string) (p *process, profile func() (end func())) {
	b.Helper()
	dir := os.Getenv(profileDir)
	if dir == "" {
		return startProcess(b, "orchestrator", args, nil), func() func() { return func() {} }
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = []string{profiled + "=orchestrator", profileDir + "=" + dir}
	p = startCommand(b, cmd)
	return p, func() func() {
		create(filepath.Join(dir, "running")).Close()
		if err := p.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			b.Fatal(err)
		}
		return func() {
			if err := p.cmd.Process.Signal(syscall.SIGUSR2); err != nil {
				b.Fatal(err)
			}
			eventually(b, 10*time.Second, "the profile written", func() bool {
				_, err := os.Stat(filepath.Join(dir, "running"))
				return os.IsNotExist(err)
			})
			for _, name := range []string{"cpu", "allocs", "allocs-before"} {
				from := filepath.Join(dir, name+".pb.gz")
				to := filepath.Join(dir, fmt.Sprintf("%s-%s.pb.gz", filepath.Base(b.Name()), name))
				if err := os.Rename(from, to); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
}
