//go:build crashpoints

package crash

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// where is the moment of CARILLON_CRASH, and left how many times it is still passed.
var (
	where Point
	left  atomic.Int64
)

func init() {
	text := os.Getenv("CARILLON_CRASH")
	if text == "" {
		return
	}
	name, times, _ := strings.Cut(text, "@")
	n, err := strconv.ParseInt(times, 10, 64)
	if err != nil || n < 1 {
		fmt.Fprintf(os.Stderr, "CARILLON_CRASH is a step and a number, such as settle.2@3, not %q\n", text)
		os.Exit(2)
	}
	where = Point(name)
	left.Store(n)
}

// At kills the process when the moment has come.
func At(p Point) {
	if p != where || left.Add(-1) != 0 {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // until the signal arrives
}
