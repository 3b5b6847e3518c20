package coretest_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core/coretest"
)

// TestPostgresServer: it is killed with all its processes, comes back on its data, and gives up on a full
// disk that it cannot write its log to.
func TestPostgresServer(t *testing.T) {
	t.Parallel()
	dir := ""
	disk, err := coretest.SmallDisk(t, 96<<20)
	if err == nil {
		dir = filepath.Join(disk.Dir, "pg")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s := coretest.StartPostgres(t, dir)
	if !s.Runs() {
		t.Error("it does not run after its start")
	}
	c, err := net.Dial("unix", s.Socket())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	s.Kill()
	if s.Runs() {
		t.Error("it runs after it was killed")
	}
	if _, err := net.Dial("unix", s.Socket()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("its socket answers after it was killed: %v", err)
	}
	s.Restart(t)
	if !s.Runs() {
		t.Error("it does not run after its restart")
	}
}

// TestRedisReload: it says for a while that it is loading, and has what it held.
func TestRedisReload(t *testing.T) {
	t.Parallel()
	s := coretest.StartRedis(t)
	s.Do("SET", "ours", "x")
	began := time.Now()
	s.Reload(time.Second)
	c := redis.NewClient(&redis.Options{Addr: s.Addr, MaxRetries: -1})
	defer c.Close()
	for {
		got, err := c.Get(t.Context(), "ours").Result()
		if redis.HasErrorPrefix(err, "LOADING") && time.Since(began) < 30*time.Second {
			continue
		}
		if err != nil || got != "x" {
			t.Errorf("it holds %q after its restart, %v", got, err)
		}
		break
	}
	if took := time.Since(began); took < 500*time.Millisecond {
		t.Errorf("it was loading for %v only", took)
	}
	s.Restart()
	if err := c.Get(t.Context(), "ours").Err(); !errors.Is(err, redis.Nil) {
		t.Errorf("after a restart without its file: %v", err)
	}
}

func TestSmallDisk(t *testing.T) {
	t.Parallel()
	disk, err := coretest.SmallDisk(t, 4<<20)
	if errors.Is(err, syscall.EPERM) && os.Geteuid() != 0 {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(disk.Dir, "file")
	for range 2 {
		disk.Fill(t)
		if err := os.WriteFile(file, []byte("x"), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("a full disk took a byte: %v", err)
		}
		disk.Free(t)
		if err := os.WriteFile(file, make([]byte, 3<<20), 0o600); err != nil {
			t.Errorf("an empty disk: %v", err)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}
