package host

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// reapScript keeps a list of process groups and their marks, and kills them when its standard input ends:
// that is when this process ends, however it does. A process that left its group is known by the mark in
// its environment, which it has from the plugin.
const reapScript = `g=""
IFS=" "
while read -r op x; do
	n=""
	for y in $g; do [ "$x" = "$y" ] || n="$n $y"; done
	[ "$op" = + ] && n="$n $x"
	g="$n"
done
for x in $g; do
	kill -s KILL -- "-${x%%:*}"
	for again in 1 2; do
		grep -lsF -e "${x#*:}" /proc/[0-9]*/environ | while IFS=/ read -r _ _ p _; do kill -s KILL "$p"; done
	done
done`

// reaper is a small shell beside this process. The parent-death signal ends a plugin when its host is
// killed; this ends the plugin's own children as well.
type reaper struct {
	mu sync.Mutex
	to io.WriteCloser // nil: there is no shell here
}

var theReaper = sync.OnceValue(func() *reaper {
	r := &reaper{}
	cmd := exec.Command("/bin/sh", "-c", reapScript)
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no signal to our group is for it
	to, err := cmd.StdinPipe()
	if err != nil || cmd.Start() != nil {
		return r
	}
	r.to = to
	go func() { _ = cmd.Wait() }()
	return r
})

// watch has a process group, and whatever has the mark, killed when this process ends; forget takes that
// back.
func (r *reaper) watch(pid int, mark string)  { r.tell("+", pid, mark) }
func (r *reaper) forget(pid int, mark string) { r.tell("-", pid, mark) }

func (r *reaper) tell(op string, pid int, mark string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.to != nil {
		// The end of the mark will do, and has no blanks.
		_, _ = fmt.Fprintf(r.to, "%s %d:%s\n", op, pid, filepath.Base(mark)) // a shell that somebody killed is no loss but its own
	}
}

// killMarked kills the processes that have a variable in their environment.
func killMarked(mark string) {
	for range 5 { // one may start another while we look
		any := false
		environs, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, path := range environs {
			b, err := os.ReadFile(path)
			if err != nil || !hasVariable(b, mark) {
				continue // another user's, or it ended
			}
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil && pid != os.Getpid() {
				any = syscall.Kill(pid, syscall.SIGKILL) == nil || any
			}
		}
		if !any {
			return
		}
	}
}

func hasVariable(environ []byte, mark string) bool {
	for v := range bytes.SplitSeq(environ, []byte{0}) {
		if string(v) == mark {
			return true
		}
	}
	return false
}
