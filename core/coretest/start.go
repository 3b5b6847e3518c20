package coretest

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// starter starts commands on one thread that never ends.
var starter struct {
	once sync.Once
	todo chan start
}

type start struct {
	cmd *exec.Cmd
	err chan error
}

// Start starts a command that on Linux dies with this process, by the signal that its SysProcAttr.Pdeathsig names
// or, if it names none, SIGKILL. The kernel ties that signal to the thread that forked, and a thread ends
// with a goroutine that was locked to it: commands started elsewhere may be killed by a goroutine's end.
func Start(cmd *exec.Cmd) error {
	starter.once.Do(func() {
		starter.todo = make(chan start)
		go func() {
			runtime.LockOSThread()
			for s := range starter.todo {
				s.err <- s.cmd.Start()
			}
		}()
	})
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	dieWith(cmd.SysProcAttr, syscall.SIGKILL)
	s := start{cmd, make(chan error, 1)}
	starter.todo <- s
	return <-s.err
}
