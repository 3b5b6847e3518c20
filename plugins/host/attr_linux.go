package host

import (
	"math"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// childAttr makes the child the leader of a process group of its own, which dies with us.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// offerToKernel has the kernel kill the child first should the machine run out of memory.
func offerToKernel(pid int) {
	// Raising one's own child's score needs no privilege; where /proc is not there, nothing is lost.
	_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("1000"), 0)
}

// keepFiles has no child inherit what this process inherited itself, such as the sockets of a service
// manager. Whatever Go opens is marked so already.
func keepFiles() {
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // from Linux 5.11 on
}
