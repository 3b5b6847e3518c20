// Package coretest starts private throw-away servers for tests.
package coretest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
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
	once   sync.Once
	found  sync.Once
	bin    string // "" where it is not installed
	dir    string // holds data and the socket
	err    error
	server *PostgresServer
	made   atomic.Int64
}

// Postgres returns the DSN of a fresh database on a private PostgreSQL server that the tests of one
// process share: it listens on a socket in a temporary directory only, syncs to disk as a real one does,
// and dies with the process. Where no server is installed the test is skipped, or fails if
// CARILLON_REQUIRE_SERVERS is 1. The database is dropped when the test ends; StopServers, called by
// TestMain, removes the rest, and so does the next process that finds it.
func Postgres(t testing.TB) string {
	t.Helper()
	findPostgres(t)
	pg.once.Do(func() { pg.err = initAndStart() })
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
	if pg.server != nil {
		pg.server.stop()
	}
	if pg.dir != "" {
		_ = os.RemoveAll(pg.dir)
	}
}

// findPostgres looks for the newest server that is installed. Without one it skips the test, or fails it
// where servers are required.
func findPostgres(t testing.TB) {
	t.Helper()
	pg.found.Do(func() {
		found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
		if len(found) == 0 {
			return
		}
		slices.SortFunc(found, func(a, b string) int { return version(a) - version(b) })
		pg.bin = filepath.Dir(found[len(found)-1])
		removeStale(pgDirPrefix)
	})
	if pg.bin != "" {
		return
	}
	if os.Getenv(RequireServers) == "1" {
		t.Fatal("PostgreSQL is not installed in /usr/lib/postgresql, and " + RequireServers + " is 1")
	}
	t.Skip("PostgreSQL is not installed in /usr/lib/postgresql")
}

func version(path string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	return n
}

// removeStale removes what processes that were killed left behind in directories named prefix<pid>-….
func removeStale(prefix string) {
	for _, d := range stale(prefix) {
		_ = os.RemoveAll(d)
	}
}

// stale lists the directories named prefix<pid>-… whose process is gone.
func stale(prefix string) (gone []string) {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	for _, d := range dirs {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(d), prefix), "-")
		if n, err := strconv.Atoi(pid); err == nil && syscall.Kill(n, 0) == syscall.ESRCH {
			gone = append(gone, d)
		}
	}
	return gone
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

func initAndStart() (err error) {
	pg.dir, err = os.MkdirTemp("", pgDirPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return err
	}
	pg.server, err = newPostgres(pg.dir)
	if err != nil {
		return err
	}
	return pg.server.start()
}

func pgRun(ctx context.Context, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, filepath.Join(pg.bin, name), args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}
