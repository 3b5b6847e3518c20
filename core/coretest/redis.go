package coretest

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// RedisServer is a throw-away redis-server of one test. It keeps nothing on disk.
type RedisServer struct {
	// Addr is its host:port, the same after a restart.
	Addr string
	t    testing.TB
	args []string
	cmd  *exec.Cmd
}

// Redis starts a throw-away redis-server on a free loopback port and returns its address. It skips the
// test if none is installed, and fails it instead with CARILLON_REQUIRE_SERVERS=1.
func Redis(t testing.TB) string { return StartRedis(t).Addr }

// StartRedis is Redis with a handle on the server, and arguments added to its command line.
func StartRedis(t testing.TB, args ...string) *RedisServer {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		if os.Getenv("CARILLON_REQUIRE_SERVERS") == "1" {
			t.Fatal("redis-server is not installed")
		}
		t.Skip("redis-server is not installed")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &RedisServer{Addr: l.Addr().String(), t: t, args: args}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s.Restart()
	t.Cleanup(s.Kill)
	return s
}

// StartSentinel starts a throw-away Redis Sentinel that watches nothing yet, and returns its address.
func StartSentinel(t testing.TB) string {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "sentinel.conf") // it writes there what it is told
	if err := os.WriteFile(conf, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return StartRedis(t, conf, "--sentinel").Addr
}

// Kill kills the server as kill -9 does and waits for its end.
func (s *RedisServer) Kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// Restart starts the server, empty, on its address, killing it first if it runs.
func (s *RedisServer) Restart() {
	s.t.Helper()
	s.Kill()
	_, port, _ := net.SplitHostPort(s.Addr)
	if _, err := strconv.Atoi(port); err != nil {
		s.t.Fatal(err)
	}
	args := append(slices.Clone(s.args), "--port", port, "--bind", "127.0.0.1", "--dir", s.t.TempDir())
	if !slices.Contains(s.args, "--sentinel") {
		args = append(args, "--save", "", "--appendonly", "no")
	}
	s.cmd = exec.Command("redis-server", args...)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.do(func(ctx context.Context, c *redis.Client) error {
		err := c.Ping(ctx).Err()
		if redis.HasErrorPrefix(err, "NOAUTH") {
			return nil // it answers
		}
		return err
	})
}

// Pause stops the server in its tracks, as a machine that hangs does: it keeps its connections and
// answers nothing until Resume.
func (s *RedisServer) Pause() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		s.t.Fatal(err)
	}
}

// Resume lets a paused server go on.
func (s *RedisServer) Resume() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		s.t.Fatal(err)
	}
}

// FlushAll wipes the server.
func (s *RedisServer) FlushAll() {
	s.t.Helper()
	s.do(func(ctx context.Context, c *redis.Client) error { return c.FlushAll(ctx).Err() })
}

// do tries until it works, for at most ten seconds.
func (s *RedisServer) do(what func(context.Context, *redis.Client) error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c := redis.NewClient(&redis.Options{Addr: s.Addr})
	defer func() { _ = c.Close() }()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		err := what(ctx, c)
		if err == nil {
			return
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			s.t.Fatalf("redis-server at %s: %v", s.Addr, err)
		}
	}
}
