package coretest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// PostgresServer is a throw-away PostgreSQL server of one test, which may kill it.
type PostgresServer struct {
	dir  string // holds data and the socket
	cred *syscall.Credential

	mu   sync.Mutex
	log  bytes.Buffer
	cmd  *exec.Cmd
	gone chan struct{}
}

// StartPostgres starts a PostgreSQL server for this test alone; where dir is not empty it keeps its data
// there. Like Postgres it listens on a socket only, skips the test where none is installed, and syncs to
// disk as a real one does. It stops when the test ends.
func StartPostgres(t testing.TB, dir string) *PostgresServer {
	t.Helper()
	findPostgres(t)
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", pgDirPrefix+strconv.Itoa(os.Getpid())+"-"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
	}
	s, err := newPostgres(dir, "--wal-segsize=4")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	return s
}

// Socket is the path of the socket that it listens on, the same after a restart.
func (s *PostgresServer) Socket() string { return filepath.Join(s.dir, ".s.PGSQL.5432") }

// DSN leads to the server's one database over a proxy that passes on to Socket.
func (s *PostgresServer) DSN(proxy string) string {
	return "postgres://postgres@" + proxy + "/postgres?sslmode=disable"
}

// Ask runs a query over a connection of its own, past any proxy, and returns what psql prints of its rows.
func (s *PostgresServer) Ask(ctx context.Context, query string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(pg.bin, "psql"), "-X", "-A", "-t", "-h", s.dir, "-U", "postgres", "-c", query)
	cmd.Dir = s.dir
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("ask PostgreSQL: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Kill kills every process of the server as kill -9 does and waits for the end of the first.
func (s *PostgresServer) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	// The first goes first, so that it starts no others. They have left its group.
	rest := children(s.cmd.Process.Pid)
	_ = s.cmd.Process.Kill()
	for _, pid := range rest {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-s.gone
	s.cmd = nil
}

// Restart starts the server on its data, killing it first if it runs, and waits until it takes
// connections.
func (s *PostgresServer) Restart(t testing.TB) {
	t.Helper()
	s.Kill()
	var err error
	for range 20 { // what Kill left may hold its memory for a moment
		if err = s.start(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// Runs reports whether the server runs: it gives up by itself where it cannot write its log.
func (s *PostgresServer) Runs() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return false
	}
	select {
	case <-s.gone:
		return false
	default:
		return true
	}
}

// newPostgres makes a server's data, with arguments added to initdb's.
func newPostgres(dir string, args ...string) (*PostgresServer, error) {
	cred, err := unprivileged()
	if err != nil {
		return nil, err
	}
	if cred != nil {
		if err := os.Chown(dir, int(cred.Uid), int(cred.Gid)); err != nil {
			return nil, err
		}
	}
	s := &PostgresServer{dir: dir, cred: cred}
	cmd := exec.Command(filepath.Join(pg.bin, "initdb"), append([]string{"-D", filepath.Join(dir, "data"), "-U", "postgres", "-A", "trust",
		"-E", "UTF8", "--locale=C", "--no-instructions"}, args...)...)
	cmd.Dir, cmd.SysProcAttr = dir, &syscall.SysProcAttr{Credential: cred}
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	return s, nil
}

func (s *PostgresServer) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log.Reset()
	cmd := exec.Command(filepath.Join(pg.bin, "postgres"), "-D", filepath.Join(s.dir, "data"), "-k", s.dir, "-c", "listen_addresses=",
		"-c", "fsync=on", "-c", "synchronous_commit=on", "-c", "max_connections=200")
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, &s.log, &s.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Setpgid: true}
	dieWith(cmd.SysProcAttr, syscall.SIGQUIT)
	gone := make(chan struct{})
	if err := Start(cmd); err != nil {
		return err
	}
	go func() {
		_ = cmd.Wait()
		close(gone)
	}()
	s.cmd, s.gone = cmd, gone
	return s.await()
}

// await waits until the server answers.
func (s *PostgresServer) await() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if exec.CommandContext(ctx, filepath.Join(pg.bin, "pg_isready"), "-q", "-h", s.dir).Run() == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL did not answer within a minute")
		case <-s.gone:
			return fmt.Errorf("PostgreSQL ended: %s", s.log.String())
		case <-tick.C:
		}
	}
}

// stop ends the server at once: nobody needs the data.
func (s *PostgresServer) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGQUIT)
	<-s.gone
	s.cmd = nil
}

// children are the processes that a process has started and that live.
func children(pid int) (pids []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for _, field := range strings.Fields(string(text)) {
			if n, err := strconv.Atoi(field); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}
