package host_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/carillon-notify/carillon/plugins/host"
	"github.com/carillon-notify/carillon/providers"
)

func TestDeliver(t *testing.T) {
	t.Parallel()
	kind, err := host.Describe(t.Context(), spec(t, "obedient"))
	if err != nil {
		t.Fatal(err)
	}
	want := obedientKind()
	if d := cmp.Diff(want, kind, cmpopts.IgnoreFields(providers.Kind{}, "Check", "Open"), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("described: %s", d)
	}
	p := openKind(t, kind, `{"greeting":"hello"}`)
	got, err := deliver(t, p, patient, messages("a", "b", "c"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]providers.Outcome{"id-0": providers.Accepted, "id-1": providers.Accepted, "id-2": providers.Accepted}, got.outcomes()); d != "" {
		t.Error(d)
	}
	if h := p.Health(t.Context()); h.Status != providers.HealthOK || h.Pool.Max != 3 {
		t.Errorf("health is %+v", h)
	}
}

// TestKilled kills a process in the middle of a batch: the answers given so far are kept, the rest is
// Unknown, and the next batch is delivered within a second.
func TestKilled(t *testing.T) {
	t.Parallel()
	began := time.Now()
	p := open(t, spec(t, "obedient"), `{}`)
	start := time.Since(began) // what the machine takes for a process now
	fastest := time.Hour
	for range 3 { // the machine may be busy with something else once or twice
		var killed time.Time
		got, err := deliverTold(t, p, patient, messages("a", "b", "hang", "c"), func(r providers.Result) {
			if r.ID == "id-1" {
				pid, _ := strconv.Atoi(r.ProviderID)
				killed = time.Now()
				kill(t, pid, syscall.SIGKILL)
			}
		})
		if err == nil {
			t.Error("a call whose process died has no error")
		}
		if d := cmp.Diff(map[string]providers.Outcome{"id-0": providers.Accepted, "id-1": providers.Accepted}, got.outcomes()); d != "" {
			t.Error(d)
		}
		pidOf(t, p)
		fastest = min(fastest, time.Since(killed))
	}
	t.Logf("delivered again %s after the kill, with starts of %s", fastest, start)
	if fastest > time.Second+start {
		t.Errorf("the fastest of three restarts took %s, the first start %s", fastest, start)
	}
}

// TestBackoff kills a process as often as it is started: each restart waits longer, and then it is
// quarantined.
func TestBackoff(t *testing.T) {
	t.Parallel()
	s := spec(t, "obedient")
	l := newLog(t)
	s.Logger = l.logger()
	p := open(t, s, `{}`)
	for range 4 {
		pid := pidOf(t, p)
		kill(t, pid, syscall.SIGKILL)
		eventually(t, "another process", func() bool { return pidOf(t, p) != pid })
	}
	kill(t, pidOf(t, p), syscall.SIGKILL)
	eventually(t, "the quarantine", func() bool {
		return len(l.find("the plugin is quarantined: mend it, then reload the routes or resume this one")) == 1
	})
	var waits []time.Duration
	for _, r := range l.find("the plugin is started again") {
		d, _ := attr(r, "after").(time.Duration)
		waits = append(waits, d)
	}
	if d := cmp.Diff([]time.Duration{0, quick.BackoffMin, 2 * quick.BackoffMin, 4 * quick.BackoffMin}, waits); d != "" {
		t.Error(d)
	}
}

// TestStopped stops a process in its tracks.
func TestStopped(t *testing.T) {
	t.Parallel()
	s := spec(t, "obedient")
	s.Timing.Ping, s.Timing.PingTimeout = 50*time.Millisecond, 500*time.Millisecond
	l := newLog(t)
	s.Logger = l.logger()
	p := open(t, s, `{}`)
	pid := 0
	got, err := deliverTold(t, p, patient, messages("a", "hang"), func(r providers.Result) {
		pid, _ = strconv.Atoi(r.ProviderID)
		kill(t, pid, syscall.SIGSTOP)
	})
	if err == nil || len(got) != 1 {
		t.Errorf("a call to a stopped process: %v, %v", got, err)
	}
	if again := pidOf(t, p); again == pid {
		t.Error("the stopped process delivers")
	}
	eventually(t, "the stopped process is gone", func() bool { return gone(pid) })
	if r := l.find("the plugin is started again"); len(r) != 1 || attr(r[0], "reason") != "it does not answer" {
		t.Errorf("the reason of the restart: %v", l.all())
	}
}

// TestHang has calls hang: each ends soon after its context, with what was answered until then, and costs
// no other. After some in a row the process is given up.
func TestHang(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"hang", "deaf"} { // one that minds its context, and one that does not
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			s := spec(t, "obedient")
			l := newLog(t)
			s.Logger = l.logger()
			p := open(t, s, `{}`)
			pid := pidOf(t, p)
			for range 2 {
				began := time.Now()
				got, err := deliver(t, p, 300*time.Millisecond, messages("a", how))
				if d := cmp.Diff(map[string]providers.Outcome{"id-0": providers.Accepted}, got.outcomes()); d != "" || err == nil {
					t.Error(d, err)
				}
				if took := time.Since(began); took > 10*time.Second {
					t.Errorf("the call ended after %s", took)
				}
			}
			if again := pidOf(t, p); again != pid {
				t.Error("two calls that hung cost the process its life")
			}
			if how == "hang" {
				return
			}
			for range 3 {
				_, _ = deliver(t, p, 300*time.Millisecond, messages("a", how))
			}
			eventually(t, "another process", func() bool { return pidOf(t, p) != pid })
			if r := l.find("the plugin is started again"); len(r) != 1 || attr(r[0], "reason") != "3 calls in a row had to be cut off" {
				t.Errorf("the reason of the restart: %v", r)
			}
		})
	}
}

// TestPanic has a call panic, which costs its own messages, and a goroutine, which ends the process.
func TestPanic(t *testing.T) {
	t.Parallel()
	p := open(t, spec(t, "obedient"), `{}`)
	pid := pidOf(t, p)
	gate := filepath.Join(t.TempDir(), "gate")
	other := make(chan error, 1)
	go func() {
		got, err := deliver(t, p, patient, messages("gate:"+gate))
		if err == nil && got["id-0"].Outcome != providers.Accepted {
			err = fmt.Errorf("%v", got)
		}
		other <- err
	}()
	got, err := deliver(t, p, patient, messages("a", "panic", "c"))
	if d := cmp.Diff(map[string]providers.Outcome{"id-0": providers.Accepted}, got.outcomes()); d != "" {
		t.Error(d)
	}
	if err == nil || err.Error() != "Deliver panicked: string" {
		t.Errorf("the error of a call that panicked: %v", err) // its value may hold an address
	}
	if again := pidOf(t, p); again != pid {
		t.Error("a panic in a call cost the process its life")
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-other; err != nil {
		t.Errorf("a call beside the one that panicked: %v", err)
	}
	next := filepath.Join(t.TempDir(), "next")
	if got, err = deliverTold(t, p, patient, messages("a", "panic-apart:"+next), func(providers.Result) {
		if err := os.WriteFile(next, nil, 0o600); err != nil {
			t.Error(err)
		}
	}); err == nil || len(got) != 1 {
		t.Errorf("a panic in a goroutine: %v, %v", got, err)
	}
	eventually(t, "another process", func() bool { return pidOf(t, p) != pid })
}

// TestCrashLoop has a plugin that ends as soon as it is started.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	s := spec(t, "exit")
	const why = `it ended with the exit code 7 before it was ready; it wrote "ModuleNotFoundError: No module named 'grpc'"`
	if _, err := host.Describe(t.Context(), s); err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("described: %v", err)
	}
	mended := filepath.Join(t.TempDir(), "mended")
	s = spec(t, "exit-without", mended)
	l := newLog(t)
	s.Logger = l.logger()
	began := time.Now()
	p := openKind(t, host.Isolate(obedientKind(), s), `{}`)
	var got answers
	eventually(t, "the quarantine", func() bool {
		var err error
		if got, err = deliver(t, p, patient, messages("a", "b")); err != nil {
			t.Fatal(err)
		}
		return got["id-0"].Code == host.CodeQuarantined
	})
	took := time.Since(began)
	for id, r := range got {
		if r.Outcome != providers.Denied || r.After < 30*time.Minute || !strings.Contains(r.Reason, "exit code 7") {
			t.Errorf("%s in quarantine: %+v", id, r)
		}
	}
	if len(got) != 2 {
		t.Errorf("%d of 2 messages are answered", len(got))
	}
	if h := p.Health(t.Context()); h.Status != providers.HealthDown || !strings.Contains(h.Reason, "exit code 7") {
		t.Errorf("health in quarantine: %+v", h)
	}
	if n := len(l.find("the plugin is started again")); n != quick.Crashes-1 {
		t.Errorf("started again %d times before the quarantine", n)
	}
	// In quarantine the answer comes at once.
	if _, err := deliver(t, p, patient, messages("a")); err != nil {
		t.Error(err)
	}
	t.Logf("quarantined after %s", took)

	// It is still broken: one crash is enough now, and the quarantine is twice as long.
	retry(t, p)
	eventually(t, "the second quarantine", func() bool {
		got, err := deliver(t, p, patient, messages("a"))
		if err != nil {
			t.Fatal(err)
		}
		return len(l.find("the plugin is started again")) == 2*(quick.Crashes-1) && got["id-0"].Code == host.CodeQuarantined
	})
	if err := os.WriteFile(mended, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	retry(t, p)
	pidOf(t, p)
}

// retry is what an operator asks for.
func retry(t *testing.T, p providers.Provider) {
	t.Helper()
	r, ok := p.(interface{ Retry() })
	if !ok {
		t.Fatal("it cannot be retried")
	}
	r.Retry()
}

// TestProbation lets a quarantine end: the next crash leads to one of twice the length.
func TestProbation(t *testing.T) {
	t.Parallel()
	s := spec(t, "exit")
	s.Timing.Quarantine, s.Timing.MaxQuarant = 20*time.Millisecond, 50*time.Millisecond
	l := newLog(t)
	s.Logger = l.logger()
	openKind(t, host.Isolate(obedientKind(), s), `{}`)
	quarantined := "the plugin is quarantined: mend it, then reload the routes or resume this one"
	eventually(t, "some quarantines", func() bool { return len(l.find(quarantined)) >= 4 })
	var waits []time.Duration
	for _, r := range l.find(quarantined)[:4] {
		d, _ := attr(r, "for").(time.Duration)
		waits = append(waits, d)
	}
	if d := cmp.Diff([]time.Duration{20 * time.Millisecond, 40 * time.Millisecond, 50 * time.Millisecond, 50 * time.Millisecond}, waits); d != "" {
		t.Error(d)
	}
	if n := len(l.find("the plugin is started again")); n != quick.Crashes-1 {
		t.Errorf("started again %d times without a quarantine", n)
	}
}

// TestExitWhileOpening ends, fails and hangs in Open.
func TestExitWhileOpening(t *testing.T) {
	t.Parallel()
	for greeting, why := range map[string]string{
		"exit": "it does not start: it ended with the exit code 4 while it was opened",
		"hang": "it does not start: it did not open within",
	} {
		t.Run(greeting, func(t *testing.T) {
			t.Parallel()
			s := spec(t, "obedient")
			if greeting == "hang" {
				s.Timing.Start = 8 * time.Second // of which a busy machine takes some to start it
			}
			p := open(t, s, `{"greeting":"`+greeting+`"}`)
			if h := p.Health(t.Context()); h.Status != providers.HealthDown || !strings.Contains(h.Reason, why) {
				t.Errorf("health: %+v", h)
			}
		})
	}
}

// TestReady has a batch wait for a process that is on its way.
func TestReady(t *testing.T) {
	t.Parallel()
	p := open(t, spec(t, "obedient"), `{}`)
	var accepted, other atomic.Int32
	for range 3 {
		kill(t, pidOf(t, p), syscall.SIGKILL)
		got, _ := deliver(t, p, patient, messages("a"))
		switch got["id-0"].Outcome {
		case providers.Accepted:
			accepted.Add(1)
		case providers.Unknown: // it was on its way when the process died
		default:
			other.Add(1)
			t.Errorf("while it is started again: %+v", got)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	kill(t, pidOf(t, p), syscall.SIGKILL)
	if err := p.Deliver(ctx, messages("a"), func(r providers.Result) {
		if r.Outcome != providers.Throttled && r.Outcome != providers.Deferred {
			t.Errorf("without time: %+v", r)
		}
	}); err != nil {
		t.Errorf("without time: %v", err)
	}
}
