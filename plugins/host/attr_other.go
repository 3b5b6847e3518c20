//go:build unix && !linux

package host

import "syscall"

// childAttr makes the child the leader of a process group of its own.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// offerToKernel does nothing: only Linux lets itself be told.
func offerToKernel(int) {}

// keepFiles does nothing: there is no call for it.
func keepFiles() {}
