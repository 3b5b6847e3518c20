package plugintest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/plugins/host"
	"github.com/carillon-notify/carillon/providers"
)

// cycles is how often a provider is opened, used and closed. What grows with them is a leak; what does
// not was made once for all (a package's own, a cache).
const cycles = 4

// traces are what this process has that a provider may leave behind.
type traces struct{ goroutines, files, children int }

func (a traces) within(b traces, slack int) bool {
	return a.goroutines <= b.goroutines+slack && a.files <= b.files+slack && a.children <= b.children+slack
}

func (a traces) String() string {
	return fmt.Sprintf("%d goroutines, %d open files, %d child processes", a.goroutines, a.files, a.children)
}

// leaks opens and closes a provider again and again.
func leaks(t testing.TB, s *sitting) {
	label := "exam " + strconv.FormatInt(time.Now().UnixNano(), 36)
	// Goroutines inherit the labels of those that start them, so the provider's can be told from others.
	pprof.Do(context.Background(), pprof.Labels("plugintest", label), func(context.Context) {
		before := count(label)
		s.cycle(t)
		eventually(s.Soon/5, func() bool { return count(label).within(before, 0) })
		once := count(label)
		for range cycles {
			s.cycle(t)
		}
		// Up to one thing each cycle is noise: the runtime's, a stand-in's that is on its way out.
		var after traces
		if eventually(s.Soon, func() bool {
			after = count(label)
			return after.within(once, 0)
		}) {
			return
		}
		if !after.within(once, cycles-1) {
			t.Errorf("opened, used and closed %d times, the provider left behind: %s before, %s after.\n%s", cycles, once, after, labelled(label))
		}
	})
}

// cycle is one life of a provider, ended before the check is.
func (s *sitting) cycle(t testing.TB) {
	t.Helper()
	life := &shortLife{TB: t}
	defer life.over()
	p := s.open(life)
	if needsDelivery(s) == "" {
		p.deliver(s.messages(min(s.kind.MaxBatch, 20), nil)).only("in one of many lives", "accepted")
	}
	if rec, ok := p.provider.(providers.Receiver); ok {
		hear := s.hear(p, rec, func(providers.Receipt) error { return nil })
		hear.end(t, s)
	}
	s.end(t, p)
}

// shortLife is a testing.TB whose cleanups run before the test ends.
type shortLife struct {
	testing.TB
	cleanups []func()
}

// Cleanup implements testing.TB.
func (l *shortLife) Cleanup(f func()) { l.cleanups = append(l.cleanups, f) }

func (l *shortLife) over() {
	for i := len(l.cleanups) - 1; i >= 0; i-- {
		l.cleanups[i]()
	}
}

// count looks at what this process has: of goroutines those with the label, of all else everything.
func count(label string) traces {
	var c traces
	for _, record := range goroutines() {
		if strings.Contains(record, label) {
			n, _, _ := strings.Cut(record, " ")
			k, _ := strconv.Atoi(n)
			c.goroutines += k
		}
	}
	if files, err := os.ReadDir("/proc/self/fd"); err == nil {
		c.files = len(files)
	}
	c.children = len(children())
	return c
}

// goroutines are the records of the goroutine profile: how many, their stack, their labels.
func goroutines() []string {
	var text bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&text, 1); err != nil {
		return nil
	}
	_, records, _ := strings.Cut(text.String(), "\n") // after the heading
	return strings.Split(records, "\n\n")
}

func labelled(label string) string {
	var out []string
	for _, record := range goroutines() {
		if strings.Contains(record, label) {
			out = append(out, record)
		}
	}
	return strings.Join(out, "\n\n")
}

// children are the ids of this process's children, where the system tells.
func children() []string {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	var out []string
	for _, thread := range threads {
		if list, err := os.ReadFile("/proc/self/task/" + thread.Name() + "/children"); err == nil {
			out = append(out, strings.Fields(string(list))...)
		}
	}
	return out
}

// supervision kills the plugin's process under its host, which starts it anew.
func supervision(t testing.TB, s *sitting) {
	p := s.open(t)
	process, ok := p.provider.(interface{ PID() int })
	if !ok {
		t.Fatalf("a %T has no process", p.provider)
	}
	first := process.PID()
	if first == 0 {
		t.Fatal("no process runs")
	}
	if dead, err := os.FindProcess(first); err != nil || dead.Kill() != nil {
		t.Fatalf("the plugin's process cannot be killed: %v", err)
	}
	if !eventually(3*s.Soon+host.DefaultTiming.Start, func() bool { pid := process.PID(); return pid != 0 && pid != first }) {
		t.Fatalf("the plugin was killed, and is not started again: %s", p.health(context.Background()).Reason)
	}
	if s.Opened != nil {
		s.Opened(t, p.provider)
	}
	if needsDelivery(s) == "" {
		s.recovers(t, p)
	}
	p.health(context.Background())
	second := process.PID()
	s.end(t, p)
	if second != 0 {
		if left, err := os.FindProcess(second); err == nil && left.Signal(syscall.Signal(0)) == nil {
			t.Errorf("the provider is closed, and its process %d is still there", second)
		}
	}
}
