package coretest_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/coretest"
)

// timeTeller is the environment variable that makes this binary run tellTime.
const timeTeller = "CORETEST_TELL_TIME"

// tellTime answers each line with the wall clock and the monotonic one, and asks for both without end.
func tellTime() {
	began := time.Now()
	for range 2 {
		go func() {
			for time.Now().Year() > 0 {
			}
		}()
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		now := time.Now()
		fmt.Println(now.UnixMilli(), now.Sub(began).Milliseconds())
	}
}

// TestShiftClock sets the clock of a running process off, forward, back and right again, while it asks
// for the time without end. Its monotonic clock goes on as before.
func TestShiftClock(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = []string{timeTeller + "=1"}
	in, out := ends(t, cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	answers := bufio.NewReader(out)
	began := time.Now()
	for _, off := range []time.Duration{0, 2 * time.Hour, -2 * time.Hour, 0} {
		if err := coretest.ShiftClock(cmd.Process.Pid, off); errors.Is(err, errors.ErrUnsupported) {
			if os.Getenv(coretest.RequireServers) == "1" {
				t.Fatal(err)
			}
			t.Skip("not on this kind of machine")
		} else if err != nil {
			t.Fatal(err)
		}
		var wall, mono int64
		before := time.Now()
		if _, err := fmt.Fprintln(in); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fscanln(answers, &wall, &mono); err != nil {
			t.Fatal(err)
		}
		got := time.UnixMilli(wall).Sub(before)
		if got < off-time.Second || got > off+10*time.Second {
			t.Errorf("its clock is off by %v, not by %v", got, off)
		}
		if mono < 0 || mono > time.Since(began).Milliseconds()+10_000 {
			t.Errorf("its monotonic clock shows %d ms", mono)
		}
	}
}

func ends(t *testing.T, cmd *exec.Cmd) (io.Writer, io.Reader) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	return in, out
}
