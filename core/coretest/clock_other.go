//go:build !linux || !amd64

package coretest

import (
	"errors"
	"time"
)

// ShiftClock sets the wall clock of one running process off. It is written for Linux on amd64 alone.
func ShiftClock(int, time.Duration) error {
	return errors.ErrUnsupported
}
