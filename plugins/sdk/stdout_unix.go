//go:build unix

package sdk

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// guardStdout keeps the file descriptor of the standard output for go-plugin's one line, and lets whatever
// else writes to descriptor 1 (a C library, a child) write to the standard error: nobody reads beyond
// that line for the plugin's sake. It returns the file of descriptor 1, which must be held: it would be
// closed when it is collected, and whatever is opened next would get what is printed.
func guardStdout() (*os.File, error) {
	fd, err := unix.FcntlInt(1, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return os.Stdout, fmt.Errorf("keep the standard output: %w", err)
	}
	if err := unix.Dup2(2, 1); err != nil {
		return os.Stdout, fmt.Errorf("lead the standard output to the standard error: %w", err)
	}
	stdout := os.Stdout
	os.Stdout = os.NewFile(uintptr(fd), "handshake")
	return stdout, nil
}
