package host_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/plugins/host"
	"github.com/carillon-notify/carillon/providers"
)

// TestMemory has a plugin take more memory than it may: in a call, and before it shakes hands.
func TestMemory(t *testing.T) {
	t.Parallel()
	s := spec(t, "obedient")
	s.Memory = 400 << 20
	s.Timing.PingTimeout = patient // who leaks on a busy machine is slow to answer, and is killed for that else
	l := newLog(t)
	s.Logger = l.logger()
	p := open(t, s, `{}`)
	pid := pidOf(t, p)
	if got, err := deliver(t, p, patient, messages("a", "leak")); err == nil || len(got) != 1 {
		t.Errorf("the call that leaked: %v, %v", got, err)
	}
	if again := pidOf(t, p); again == pid {
		t.Error("the same process delivers")
	}
	var reason string
	if r := l.find("the plugin is started again"); len(r) == 1 {
		reason = attr(r[0], "reason").(string)
	}
	var used int
	if _, err := fmt.Sscanf(reason, "it used %d MiB of memory, its limit is 400 MiB", &used); err != nil || used < 400 || used > 1500 {
		t.Errorf("the reason of the restart: %q", reason)
	}
	s = spec(t, "glutton")
	s.Memory = 400 << 20
	if _, err := host.Describe(t.Context(), s); err == nil || !strings.Contains(err.Error(), "its limit is 400 MiB before it was ready") {
		t.Errorf("a plugin that leaks before its handshake: %v", err)
	}
}

// TestMemoryOfChildren has a plugin start a process that takes more memory than both may: in its group, in a
// session of its own, and there without the plugin's environment. Both are killed.
func TestMemoryOfChildren(t *testing.T) {
	t.Parallel()
	for _, order := range []string{"eater", "eater-apart", "eater-bare"} {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			s := spec(t, "obedient")
			s.Memory = 400 << 20
			s.Timing.PingTimeout = patient
			l := newLog(t)
			s.Logger = l.logger()
			p := open(t, s, `{}`)
			pid := pidOf(t, p)
			got, err := deliver(t, p, patient, messages(order))
			child, _ := strconv.Atoi(got["id-0"].ProviderID)
			if err != nil || child == 0 {
				t.Fatalf("%v, %v", got, err)
			}
			t.Cleanup(func() { _ = syscall.Kill(child, syscall.SIGKILL) })
			eventually(t, "both are gone", func() bool { return gone(pid) && gone(child) })
			eventually(t, "the restart is told", func() bool { return len(l.find("the plugin is started again")) > 0 })
			if reason := attr(l.find("the plugin is started again")[0], "reason").(string); !strings.Contains(reason, "its limit is 400 MiB") {
				t.Errorf("the reason of the restart: %q", reason)
			}
		})
	}
}

// TestFlood has a plugin write far more than is logged, over all of its ways.
func TestFlood(t *testing.T) {
	t.Parallel()
	s := spec(t, "obedient")
	l := newLog(t)
	s.Logger = l.logger()
	p := open(t, s, `{}`)
	pid := pidOf(t, p)
	began := time.Now()
	got, err := deliver(t, p, patient, messages("flood:50"))
	took := time.Since(began)
	if err != nil || got["id-0"].Outcome != providers.Accepted {
		t.Errorf("%v, %v", got, err)
	}
	if again := pidOf(t, p); again != pid {
		t.Error("a flood cost the process its life")
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	lines, dropped := len(l.find("the plugin wrote")), 0
	told := l.find("the plugin wrote faster than it is logged")
	for _, r := range told {
		dropped += int(attr(r, "dropped").(int64))
	}
	const all = 3 * 50 * (1 << 20 / 60)
	t.Logf("150 MB in %s: %d lines logged, %d dropped", took, lines, dropped)
	if most := 500 + int(100*(time.Since(began).Seconds()+1)); lines > most || lines+dropped < all*9/10 || lines+dropped > all {
		t.Errorf("%d lines logged, at most %d should be; %d of %d dropped", lines, most, dropped, all)
	}
	if len(told) > 2+int(took/(10*time.Second)) {
		t.Errorf("told %d times that lines were dropped", len(told))
	}
}

// TestLongLine has a plugin write lines without an end.
func TestLongLine(t *testing.T) {
	t.Parallel()
	s := spec(t, "obedient")
	l := newLog(t)
	s.Logger = l.logger()
	p := open(t, s, `{}`)
	for range 3 {
		if got, err := deliver(t, p, patient, messages("line")); err != nil || got["id-0"].Outcome != providers.Accepted {
			t.Errorf("%v, %v", got, err)
		}
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	text := 0
	for _, r := range l.find("the plugin wrote") {
		text += len(attr(r, "text").(string))
	}
	if text != 8<<10 {
		t.Errorf("%d bytes of a line of 1.8 MB are logged", text)
	}
}

// TestStream has a plugin print over go-plugin's own stream.
func TestStream(t *testing.T) {
	t.Parallel()
	s := spec(t, "raw", "prints")
	l := newLog(t)
	s.Logger = l.logger()
	p := open(t, s, `{}`)
	if got, err := deliver(t, p, patient, messages("misbehave")); err != nil || len(got) != 1 {
		t.Errorf("%v, %v", got, err)
	}
	eventually(t, "it is logged", func() bool { return len(l.find("the plugin wrote")) == 2 })
	for _, r := range l.find("the plugin wrote") {
		want := "a line on the standard output"
		if attr(r, "stream") == "stderr" {
			want = strings.Repeat("z", 8<<10)
		}
		if attr(r, "text") != want {
			t.Errorf("logged %d bytes of %s: %.60s", len(attr(r, "text").(string)), attr(r, "stream"), attr(r, "text"))
		}
	}
	s = spec(t, "raw", "prints-much")
	l = newLog(t)
	s.Logger = l.logger()
	p = open(t, s, `{}`)
	if got, err := deliver(t, p, patient, messages("misbehave")); err != nil || len(got) != 1 {
		t.Errorf("%v, %v", got, err)
	}
	eventually(t, "much is logged", func() bool { return len(l.find("the plugin wrote")) >= 500 })
	if err := p.Close(t.Context()); err != nil && err.Error() != "close the plugin raw: I will not" {
		t.Error(err)
	}
	if n := len(l.find("the plugin wrote")); n > 2000 || len(l.find("the plugin wrote faster than it is logged")) == 0 {
		t.Errorf("%d of 5001 lines are logged", n)
	}
}

// TestGrandchild has plugins leave processes behind that hold their output, in their group and out of it.
func TestGrandchild(t *testing.T) {
	t.Parallel()
	s := spec(t, "obedient")
	p := open(t, s, `{}`)
	pid := pidOf(t, p)
	got, err := deliver(t, p, patient, messages("child", "daemon"))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := deliver(t, p, patient, messages("exit")); err == nil {
		t.Error("a call whose process ended has no error")
	}
	if again := pidOf(t, p); again == pid {
		t.Error("the same process delivers")
	}
	t.Logf("delivered again after %s", time.Since(began))
	for id, r := range got {
		grandchild, _ := strconv.Atoi(r.ProviderID)
		eventually(t, id+" is gone", func() bool { return gone(grandchild) })
	}
	// An orderly end leaves none either.
	if got, err = deliver(t, p, patient, messages("child", "daemon")); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	for id, r := range got {
		grandchild, _ := strconv.Atoi(r.ProviderID)
		eventually(t, id+" is gone", func() bool { return gone(grandchild) })
	}
}

// TestHostKilled kills a host: within 5 s there is no orphan, be it a child or a grandchild.
func TestHostKilled(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	base, err := os.MkdirTemp("", "k")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	cmd := exec.Command(self, "play", "host", base)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	lines := bufio.NewScanner(out)
	var family []int
	for len(family) < 3 && lines.Scan() {
		pid, err := strconv.Atoi(lines.Text())
		if err != nil || gone(pid) {
			t.Fatalf("the host says %q", lines.Text())
		}
		family = append(family, pid)
	}
	if len(family) != 3 {
		t.Fatalf("the host told of %d processes", len(family))
	}
	kill(t, cmd.Process.Pid, syscall.SIGKILL)
	began := time.Now()
	for _, pid := range family {
		eventually(t, fmt.Sprintf("%d is gone", pid), func() bool { return gone(pid) })
	}
	took := time.Since(began)
	t.Logf("a family of %d is gone %s after its host", len(family), took)
	if took > 5*time.Second {
		t.Errorf("orphans lived for %s", took)
	}
	// The next host clears away, once this one has ended altogether: its children may be gone before.
	_ = cmd.Wait()
	s := spec(t, "obedient")
	s.Dir = base
	if _, err := host.Describe(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(base, "*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
