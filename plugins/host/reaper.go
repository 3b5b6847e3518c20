package host

import (
	"fmt"
	"io"
	"os/exec"
	"sync"
	"syscall"
)

// reapScript keeps a list of process groups, and kills them when its standard input ends: that is when
// this process ends, however it does.
const reapScript = `g=""
while read -r op p; do
	n=""
	for x in $g; do [ "$x" = "$p" ] || n="$n $x"; done
	[ "$op" = + ] && n="$n $p"
	g="$n"
done
for x in $g; do kill -s KILL -- "-$x"; done`

// reaper is a small shell beside this process. The parent-death signal ends a plugin when its host is
// killed; this ends the plugin's own children as well.
type reaper struct {
	mu sync.Mutex
	to io.WriteCloser // nil: there is no shell here
}

var theReaper = sync.OnceValue(func() *reaper {
	r := &reaper{}
	cmd := exec.Command("/bin/sh", "-c", reapScript)
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no signal to our group is for it
	to, err := cmd.StdinPipe()
	if err != nil || cmd.Start() != nil {
		return r
	}
	r.to = to
	go func() { _ = cmd.Wait() }()
	return r
})

func (r *reaper) tell(op string, pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.to != nil {
		_, _ = fmt.Fprintf(r.to, "%s %d\n", op, pid) // a shell that somebody killed is no loss but its own
	}
}

// watched has a process group killed when this process ends; unwatched takes that back.
func watched(pid int)   { theReaper().tell("+", pid) }
func unwatched(pid int) { theReaper().tell("-", pid) }
