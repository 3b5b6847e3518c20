//go:build unix

package sdk

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// guardStdout keeps the file descriptor of the standard output for go-plugin's one line, and lets whatever
// else writes to descriptor 1 (a C library, a child) write to the standard error: nobody reads beyond
// that line for the plugin's sake.
func guardStdout() error {
	fd, err := unix.FcntlInt(1, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("keep the standard output: %w", err)
	}
	if err := unix.Dup2(2, 1); err != nil {
		return fmt.Errorf("lead the standard output to the standard error: %w", err)
	}
	keep = os.Stdout
	os.Stdout = os.NewFile(uintptr(fd), "handshake")
	return nil
}

// keep holds the file of descriptor 1, which would be closed with it when it is collected: whatever is
// opened next would have its number, and get what is printed.
var keep *os.File //nolint:unused // to be held is its use
