//go:build linux

package coretest

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
	"testing"
)

const diskPrefix = "carillon-disk-"

// SmallDisk mounts a file system of some bytes in memory until the test ends. The error says why it
// cannot: that takes root.
func SmallDisk(t testing.TB, size int) (*Disk, error) {
	t.Helper()
	for _, d := range stale(diskPrefix) {
		_ = syscall.Unmount(d, syscall.MNT_DETACH)
		_ = os.Remove(d)
	}
	dir, err := os.MkdirTemp("", diskPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=1777", size)); err != nil {
		return nil, fmt.Errorf("mount a small disk: %w", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return &Disk{Dir: dir}, nil
}

// dieWith has a command get a signal when the thread that started it ends, unless it names one already.
func dieWith(a *syscall.SysProcAttr, by syscall.Signal) {
	if a.Pdeathsig == 0 {
		a.Pdeathsig = by
	}
}
