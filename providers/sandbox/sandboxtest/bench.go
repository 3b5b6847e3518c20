package sandboxtest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

// The environment that makes a test binary a sandbox: for which kind, and where it keeps its files.
const (
	kindVariable = "CARILLON_SANDBOXTEST_KIND"
	dirVariable  = "CARILLON_SANDBOXTEST_DIR"
)

// Main is the TestMain of a package whose benchmarks use Apart.
func Main(m *testing.M) {
	kind := os.Getenv(kindVariable)
	if kind == "" {
		os.Exit(m.Run())
	}
	s, err := sandbox.Start(sandbox.Options{Dir: os.Getenv(dirVariable), Capacity: 100})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	raw, _ := s.Settings(kind)
	fmt.Println(string(raw))
	_, _ = io.Copy(io.Discard, os.Stdin) // until the benchmark ends
	_ = s.Close()
}

// Apart runs a sandbox in a process of its own, the test binary once more, so that the CPU time of this
// one is the client's. It returns settings that lead a kind there. The package's TestMain must be Main.
func Apart(b testing.TB, kind string) []byte {
	b.Helper()
	cmd := Again(b)
	cmd.Env = append(os.Environ(), kindVariable+"="+kind, dirVariable+"="+b.TempDir())
	_, out := StartChild(b, cmd)
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		b.Fatalf("the sandbox said nothing: %v", err)
	}
	return line[:len(line)-1]
}

// Again is a command that runs the test binary once more.
func Again(b testing.TB, args ...string) *exec.Cmd {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	return exec.Command(self, args...)
}

// StartChild starts a child that ends when its input is closed, which is at the end of the test. It returns that
// input and the child's output; its errors go to ours.
func StartChild(b testing.TB, cmd *exec.Cmd) (in io.Writer, out io.Reader) {
	b.Helper()
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	return stdin, stdout
}

// CPU is the processor time that this process has used.
func CPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// side is one of the two that Compare compares.
type side struct{ rate, cpu float64 } // messages/s, microseconds of CPU each

func (s *side) add(n int, loop func(n int)) {
	began, used := time.Now(), CPU()
	loop(n)
	took, spent := time.Since(began), CPU()-used
	s.rate += float64(n) / took.Seconds()
	s.cpu += float64(spent.Microseconds()) / float64(n)
}

// Compare has a provider and the bare library that it stands on deliver n messages each, in turns, so
// that the ratio of the two holds on a machine with other work. Both are warmed up before. It reports
// msg/s and µs-cpu/msg of each, and the ratio of the rates.
func Compare(b *testing.B, n, rounds int, ours, bare func(n int)) {
	b.Helper()
	ours(n / 4)
	bare(n / 4)
	var we, they side
	b.ResetTimer()
	for range rounds {
		we.add(n, ours)
		they.add(n, bare)
	}
	times := float64(rounds)
	b.ReportMetric(we.rate/times, "msg/s")
	b.ReportMetric(we.cpu/times, "µs-cpu/msg")
	b.ReportMetric(they.rate/times, "bare-msg/s")
	b.ReportMetric(they.cpu/times, "µs-cpu/bare-msg")
	b.ReportMetric(we.rate/they.rate, "ratio")
	b.ReportMetric(0, "ns/op")
}

// Loop delivers about n messages, the same batch over and over, with so many callers side by side. The
// benchmark fails unless they are accepted.
func Loop(b *testing.B, p providers.Provider, batch []providers.Message, n, callers int) {
	b.Helper()
	var next, accepted atomic.Int64
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for int(next.Add(int64(len(batch)))) <= n {
				err := p.Deliver(context.Background(), batch, func(r providers.Result) {
					if r.Outcome == providers.Accepted {
						accepted.Add(1)
					}
				})
				if err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if int(accepted.Load()) < n-len(batch)*callers {
		b.Errorf("%d of %d accepted", accepted.Load(), n)
	}
}

// BareLoop calls send n times, each with its number from 1 on, with so many callers side by side.
func BareLoop(b *testing.B, n, callers int, send func(caller, i int) error) {
	b.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	for caller := range callers {
		wg.Go(func() {
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				if err := send(caller, i); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// Lone measures the way of one message on a provider that has nothing else to do.
func Lone(b *testing.B, p providers.Provider, m providers.Message) {
	b.Helper()
	one := []providers.Message{m}
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Deliver(context.Background(), one, func(providers.Result) {}); err != nil {
			b.Fatal(err)
		}
	}
}
