package coretest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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
	dir  string
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
	s := &RedisServer{Addr: FreeAddr(t), t: t, dir: t.TempDir(), args: args}
	s.Restart()
	t.Cleanup(s.Kill)
	return s
}

// StartSentinel starts a throw-away Redis Sentinel that watches nothing yet, and returns its address; with
// arguments added to its command line.
func StartSentinel(t testing.TB, args ...string) string {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "sentinel.conf") // it writes there what it is told
	if err := os.WriteFile(conf, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return StartRedis(t, append([]string{conf, "--sentinel"}, args...)...).Addr
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
	if err := os.Remove(filepath.Join(s.dir, "dump.rdb")); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Fatal(err)
	}
	s.start()
	s.do(func(ctx context.Context, c *redis.Client) error {
		err := c.Ping(ctx).Err()
		if redis.HasErrorPrefix(err, "NOAUTH") {
			return nil // it answers
		}
		return err
	})
}

// Reload kills the server and starts it again on what it held, which takes about as long as said: it
// answers all commands with LOADING meanwhile. Reload returns when the first one was.
func (s *RedisServer) Reload(took time.Duration) {
	s.t.Helper()
	var keys int64
	s.do(func(ctx context.Context, c *redis.Client) (err error) {
		for i := range 200 { // someone else's, so that there is something to load
			if err := c.Set(ctx, "foreign:"+strconv.Itoa(i), strings.Repeat(strconv.Itoa(i), 1024), 0).Err(); err != nil {
				return err
			}
		}
		if keys, err = c.DBSize(ctx).Result(); err != nil {
			return err
		}
		return c.Save(ctx).Err()
	})
	s.Kill()
	// It answers between two pieces of its file, and the delay is of each key.
	s.start("--key-load-delay", strconv.FormatInt(took.Microseconds()/keys, 10), "--loading-process-events-interval-bytes", "1024")
	s.do(func(ctx context.Context, c *redis.Client) error {
		if err := c.Get(ctx, "foreign:1").Err(); !redis.HasErrorPrefix(err, "LOADING") {
			return fmt.Errorf("it is not loading: %w", err)
		}
		return nil
	})
}

// Do runs a command, such as CONFIG SET.
func (s *RedisServer) Do(args ...any) {
	s.t.Helper()
	s.do(func(ctx context.Context, c *redis.Client) error { return c.Do(ctx, args...).Err() })
}

// Refused is how often it has answered with an error of that name, such as OOM or READONLY, since it was started; 0 if it
// does not answer within a second.
func (s *RedisServer) Refused(name string) (n int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c := redis.NewClient(&redis.Options{Addr: s.Addr, MaxRetries: -1})
	defer func() { _ = c.Close() }()
	text, _ := c.Info(ctx, "errorstats").Result()
	if _, after, ok := strings.Cut(text, "errorstat_"+name+":count="); ok {
		digits, _, _ := strings.Cut(after, "\r")
		n, _ = strconv.Atoi(digits)
	}
	return n
}

// Eval runs a script that returns a number on whatever it holds; 0 if it does not answer within a second.
func (s *RedisServer) Eval(script string, args ...any) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c := redis.NewClient(&redis.Options{Addr: s.Addr, MaxRetries: -1})
	defer func() { _ = c.Close() }()
	n, _ := c.Eval(ctx, script, nil, args...).Int()
	return n
}

func (s *RedisServer) start(more ...string) {
	s.t.Helper()
	_, port, _ := net.SplitHostPort(s.Addr)
	if _, err := strconv.Atoi(port); err != nil {
		s.t.Fatal(err)
	}
	args := append(slices.Clone(s.args), "--port", port, "--bind", "127.0.0.1", "--dir", s.dir)
	if !slices.Contains(s.args, "--sentinel") {
		args = append(args, "--save", "", "--appendonly", "no")
	}
	s.cmd = exec.Command("redis-server", append(args, more...)...)
	if err := Start(s.cmd); err != nil {
		s.t.Fatal(err)
	}
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

// do tries until it works, for at most a minute.
func (s *RedisServer) do(what func(context.Context, *redis.Client) error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
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
