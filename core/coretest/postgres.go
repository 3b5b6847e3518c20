// Package coretest starts private throw-away servers for tests.
package coretest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// RequireServers is the environment variable that, set to 1, makes tests fail instead of skip where a
// server they need is not installed.
const RequireServers = "CARILLON_REQUIRE_SERVERS"

const pgDirPrefix = "carillon-pg-"

// pg is the one PostgreSQL server of this test process.
var pg struct {
	once sync.Once
	bin  string // "" where it is not installed
	dir  string // holds data and the socket
	err  error
	cmd  *exec.Cmd
	gone chan struct{}
	made atomic.Int64
}

// Postgres returns the DSN of a fresh database on a private PostgreSQL server that the tests of one
// process share: it listens on a socket in a temporary directory only, syncs to disk as a real one does,
// and dies with the process. Where no server is installed the test is skipped, or fails if
// CARILLON_REQUIRE_SERVERS is 1. The database is dropped when the test ends; StopServers, called by
// TestMain, removes the rest, and so does the next process that finds it.
func Postgres(t testing.TB) string {
	t.Helper()
	pg.once.Do(startPostgres)
	if pg.bin == "" {
		if os.Getenv(RequireServers) == "1" {
			t.Fatal("PostgreSQL is not installed in /usr/lib/postgresql, and " + RequireServers + " is 1")
		}
		t.Skip("PostgreSQL is not installed in /usr/lib/postgresql")
	}
	if pg.err != nil {
		t.Fatalf("start PostgreSQL: %v", pg.err)
	}
	name := "t" + strconv.FormatInt(pg.made.Add(1), 10)
	if err := pgRun(context.Background(), "createdb", "-h", pg.dir, "-U", "postgres", name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pgRun(context.Background(), "dropdb", "--force", "-h", pg.dir, "-U", "postgres", name); err != nil {
			t.Error(err)
		}
	})
	return "postgres://postgres@/" + name + "?host=" + pg.dir
}

// StopServers stops what Postgres and Chromium started and removes its files. Call it in TestMain after
// m.Run.
func StopServers() {
	stopChromium()
	if pg.cmd != nil {
		_ = pg.cmd.Process.Signal(syscall.SIGQUIT) // at once: nobody needs the data
		<-pg.gone
	}
	if pg.dir != "" {
		_ = os.RemoveAll(pg.dir)
	}
}

func startPostgres() {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		return
	}
	slices.SortFunc(found, func(a, b string) int { return version(a) - version(b) })
	pg.bin = filepath.Dir(found[len(found)-1])
	removeStale(pgDirPrefix)
	pg.err = initAndStart()
}

func version(path string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	return n
}

// removeStale removes what processes that were killed left behind in directories named prefix<pid>-….
func removeStale(prefix string) {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	for _, d := range dirs {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(d), prefix), "-")
		if n, err := strconv.Atoi(pid); err == nil && syscall.Kill(n, 0) == syscall.ESRCH {
			_ = os.RemoveAll(d)
		}
	}
}

// unprivileged is whom the server runs as: postgres refuses to run as root.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, fmt.Errorf("root cannot run PostgreSQL, and there is no user postgres or nobody")
}

func initAndStart() error {
	cred, err := unprivileged()
	if err != nil {
		return err
	}
	pg.dir, err = os.MkdirTemp("", pgDirPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return err
	}
	if cred != nil {
		if err := os.Chown(pg.dir, int(cred.Uid), int(cred.Gid)); err != nil {
			return err
		}
	}
	data := filepath.Join(pg.dir, "data")
	cmd := exec.Command(filepath.Join(pg.bin, "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-instructions")
	cmd.Dir, cmd.SysProcAttr = pg.dir, &syscall.SysProcAttr{Credential: cred}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	pg.cmd = exec.Command(filepath.Join(pg.bin, "postgres"), "-D", data, "-k", pg.dir, "-c", "listen_addresses=",
		"-c", "fsync=on", "-c", "synchronous_commit=on", "-c", "max_connections=200")
	var log bytes.Buffer
	pg.cmd.Dir, pg.cmd.Stdout, pg.cmd.Stderr = pg.dir, &log, &log
	pg.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Pdeathsig: syscall.SIGQUIT, Setpgid: true}
	pg.gone = make(chan struct{})
	started := make(chan error)
	go func() {
		// The parent-death signal is tied to the thread that forked, so that one has to stay.
		runtime.LockOSThread()
		err := pg.cmd.Start()
		started <- err
		if err == nil {
			_ = pg.cmd.Wait()
		}
		close(pg.gone)
	}()
	if err := <-started; err != nil {
		pg.cmd = nil
		return err
	}
	return awaitPostgres(&log)
}

// awaitPostgres waits until the server answers.
func awaitPostgres(log *bytes.Buffer) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if exec.CommandContext(ctx, filepath.Join(pg.bin, "pg_isready"), "-q", "-h", pg.dir).Run() == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL did not answer within 30 s")
		case <-pg.gone:
			return fmt.Errorf("PostgreSQL ended: %s", log.String())
		case <-tick.C:
		}
	}
}

func pgRun(ctx context.Context, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, filepath.Join(pg.bin, name), args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}
