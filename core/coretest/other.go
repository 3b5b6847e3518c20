//go:build !linux

package coretest

import (
	"errors"
	"syscall"
	"testing"
)

// SmallDisk is described at its Linux version.
func SmallDisk(testing.TB, int) (*Disk, error) {
	return nil, errors.New("a small disk is mounted on Linux alone")
}

// dieWith does nothing: only Linux tells a process that its parent died.
func dieWith(*syscall.SysProcAttr, syscall.Signal) {}
