package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"syscall"
)

// dirPrefix begins the name of a plugin's private directory; the host's process id follows.
const dirPrefix = "carillon-plugin-"

// dirPattern is the whole of such a name.
var dirPattern = regexp.MustCompile(`^` + dirPrefix + `\d+-\d+$`)

// maxSocket is the longest path of a socket on the systems we know (108 bytes on Linux, 104 elsewhere,
// with the final zero).
const maxSocket = 103

// socketName is as long as the name that go-plugin gives a plugin's socket.
const socketName = "/plugin1234567890"

// privateDir is a directory that only this user can enter, locked for as long as it is in use.
type privateDir struct {
	path string
	lock *os.File
}

// dirs keeps the making of a directory and its lock together: a sweep in between would take it away.
var dirs sync.Mutex

// newPrivateDir makes a directory in base, "" for the system's, and clears away those that a host which
// was killed left there.
func newPrivateDir(base string) (*privateDir, error) {
	if base == "" {
		base = os.TempDir()
	}
	base, err := filepath.Abs(base)
	if err != nil {
		return nil, fmt.Errorf("make a private directory: %w", err)
	}
	dirs.Lock()
	defer dirs.Unlock()
	sweepDirs(base)
	for {
		path, err := os.MkdirTemp(base, dirPrefix+strconv.Itoa(os.Getpid())+"-") // mode 0700
		if err != nil {
			return nil, fmt.Errorf("make a private directory: %w", err)
		}
		if n := len(path) + len(socketName); n > maxSocket {
			return nil, errors.Join(fmt.Errorf("the directory %s is too deep for sockets by %d bytes; give plugins a shorter one", base, n-maxSocket), os.Remove(path))
		}
		lock, err := openDir(path)
		if err == nil {
			// Where a file system has no locks, no sweep gets one either.
			_ = syscall.Flock(int(lock.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
			if _, err = os.Lstat(path); err == nil {
				return &privateDir{path: path, lock: lock}, nil
			}
			_ = lock.Close()
		}
		if !errors.Is(err, os.ErrNotExist) { // else another host's sweep was faster: once more
			return nil, errors.Join(fmt.Errorf("make a private directory: %w", err), os.Remove(path))
		}
	}
}

// remove takes the directory and all that is in it away.
func (d *privateDir) remove() {
	_ = os.RemoveAll(d.path)
	_ = d.lock.Close()
}

// openDir opens a directory, and nothing else that has its name.
func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
}

// sweepDirs removes the private directories of hosts that are gone: those that nobody holds the lock of.
func sweepDirs(base string) {
	left, _ := filepath.Glob(filepath.Join(base, dirPrefix+"*"))
	for _, path := range left {
		if !dirPattern.MatchString(filepath.Base(path)) {
			continue
		}
		lock, err := openDir(path)
		if err != nil {
			continue // another user's
		}
		info, err := lock.Stat()
		if err == nil && owned(path, info) == nil && syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			_ = os.RemoveAll(path)
		}
		_ = lock.Close()
	}
}
