package host

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// ErrDigest says that a plugin's file is not the one that the configuration names.
var ErrDigest = errors.New("the file's SHA-256 is not the configured one")

// errShared says that others than this process's user and root decide what the file holds.
var errShared = errors.New("whoever writes it decides what this server runs")

// executable checks the command and returns what to run: the file that was digested by its descriptor
// where that can be, else the path. The caller closes the file.
func executable(spec *Spec) (path string, file *os.File, err error) {
	if path, err = located(spec.Command); err != nil {
		return "", nil, err
	}
	if spec.SHA256 == "" {
		return path, nil, nil
	}
	return digested(spec, path)
}

// located returns where a command's file really is, once it is known that nobody else can change it.
func located(command string) (string, error) {
	path, err := filepath.Abs(command)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", command, err)
	}
	// What the name leads to is what is looked at.
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return "", fmt.Errorf("find the plugin's file: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("find the plugin's file: %w", err)
	}
	if !runnable(info) {
		return "", fmt.Errorf("%s is no executable file; make it one with chmod +x", command)
	}
	if err := unshared(path, info); err != nil {
		return "", err
	}
	dir := filepath.Dir(path)
	if info, err = os.Stat(dir); err != nil {
		return "", fmt.Errorf("look at the plugin's directory: %w", err)
	}
	if err := owned(dir, info); err != nil {
		return "", err
	}
	if !sticky(info) {
		if err := unshared(dir, info); err != nil {
			return "", err
		}
	}
	// Whoever may write a directory further up can put another one in the place of this one.
	for dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		if info, err = os.Stat(dir); err != nil {
			return "", fmt.Errorf("look at the plugin's directory: %w", err)
		}
		if info.Mode().Perm()&0o002 != 0 && !sticky(info) {
			return "", unshared(dir, info)
		}
	}
	return path, nil
}

// unshared says who else may write a file or a directory: nobody but root and this process's user should.
func unshared(path string, info fs.FileInfo) error {
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s may be written by others than its owner (%s), and %w; chmod go-w it", path, info.Mode().Perm(), errShared)
	}
	return owned(path, info)
}

// owned says whose a file or a directory is, if not root's or this process's user's.
func owned(path string, info fs.FileInfo) error {
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid != 0 && int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, and %w; chown it to this server's user or to root", path, s.Uid, errShared)
	}
	return nil
}

// sticky reports whether it is a directory such as /tmp: others may add files there, and cannot replace
// those that are not theirs.
func sticky(info fs.FileInfo) bool { return info.IsDir() && info.Mode()&fs.ModeSticky != 0 }

// digested opens the file, compares its digest, and returns it to be run by its descriptor: a file that
// took its name meanwhile is not.
func digested(spec *Spec, path string) (string, *os.File, error) {
	want, err := hex.DecodeString(strings.TrimSpace(spec.SHA256))
	if err != nil || len(want) != sha256.Size {
		return "", nil, fmt.Errorf("sha256 must be %d hexadecimal digits, such as sha256sum prints", 2*sha256.Size)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", nil, fmt.Errorf("read the plugin's file: %w", err)
	}
	start := make([]byte, 4)
	n, _ := io.ReadFull(f, start)
	h := sha256.New()
	h.Write(start[:n])
	if _, err := io.Copy(h, f); err != nil {
		return "", nil, errors.Join(fmt.Errorf("read the plugin's file: %w", err), f.Close())
	}
	if got := h.Sum(nil); !bytes.Equal(got, want) {
		return "", nil, errors.Join(fmt.Errorf("%w: %s has %x; if you trust that file, put this where the other one is written: the route's sha256 or the file beside it", ErrDigest, spec.Command, got), f.Close())
	}
	if runtime.GOOS != "linux" || !bytes.Equal(start, []byte("\x7fELF")) {
		return path, nil, f.Close() // an interpreter opens a script by its name
	}
	return "/proc/self/fd/3", f, nil // the first of exec.Cmd.ExtraFiles
}

// Digest returns the SHA-256 of a file in hexadecimal, as Spec.SHA256 wants it.
func Digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read the plugin's file: %w", err)
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read the plugin's file: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
