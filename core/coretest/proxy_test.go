package coretest_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/coretest"
)

// echo serves a socket that answers each line with itself.
func echo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c) }()
		}
	}()
	return "unix:" + path
}

type client struct {
	net.Conn
	lines *bufio.Reader
}

func dial(t *testing.T, addr string) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &client{c, bufio.NewReader(c)}
}

// ask sends a line and waits so long for its echo.
func (c *client) ask(within time.Duration) error {
	if _, err := c.Write([]byte("hello\n")); err != nil {
		return err
	}
	return c.hear(within)
}

func (c *client) hear(within time.Duration) error {
	_ = c.SetReadDeadline(time.Now().Add(within))
	_, err := c.lines.ReadString('\n')
	return err
}

const long, short = 10 * time.Second, 50 * time.Millisecond

func TestProxy(t *testing.T) {
	t.Parallel()
	p := coretest.StartProxy(t, echo(t))
	c := dial(t, p.Addr)
	if err := c.ask(long); err != nil {
		t.Fatal(err)
	}
	if n, asked := p.Spoilt(), p.Asked(); n != 0 || asked != 1 {
		t.Errorf("a proxy that passed one piece on counts %d and has spoilt %d", asked, n)
	}
	spoilt := func(what string, atLeast int) {
		t.Helper()
		if n := p.Spoilt(); n < atLeast {
			t.Errorf("%s: it says that it has spoilt %d, want %d", what, n, atLeast)
		}
	}
	for name, stop := range map[string]func(){"hang": p.Hang, "mute": p.Mute} {
		stop()
		if err := c.ask(short); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: an answer came, or another error: %v", name, err)
		}
		p.Heal()
		if err := c.hear(long); err != nil {
			t.Errorf("%s: what was held did not come after healing: %v", name, err)
		}
	}
	spoilt("hang and mute", 2) // of the first the answer may have come after
	p.Slow(100*time.Millisecond, 100)
	began := time.Now()
	if err := c.ask(long); err != nil || time.Since(began) < 2*(100+60)*time.Millisecond {
		t.Errorf("slow: %v after %v", err, time.Since(began))
	}
	spoilt("slow", 4)
	p.Cut()
	spoilt("cut", 5)
	if err := c.ask(long); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("cut: %v, not a reset", err)
	}
	if n := p.Connections(); n != 0 {
		t.Errorf("cut: %d connections are left", n)
	}
	if conn, err := net.Dial("tcp", p.Addr); err == nil { // it may be reset as soon as that
		if (&client{conn, bufio.NewReader(conn)}).ask(long) == nil {
			t.Error("cut: a new connection was served")
		}
		conn.Close()
	}
	p.Heal()
	before := p.Spoilt()
	if err := dial(t, p.Addr).ask(long); err != nil || p.Spoilt() != before {
		t.Errorf("healed: %v, and spoilt %d, %d before", err, p.Spoilt(), before)
	}
	dead := coretest.StartProxy(t, "unix:"+filepath.Join(t.TempDir(), "nobody"))
	if conn, err := net.Dial("tcp", dead.Addr); err == nil { // it may be reset as soon as that
		if (&client{conn, bufio.NewReader(conn)}).ask(long) == nil {
			t.Error("nobody there: it was served")
		}
		conn.Close()
	}
	if dead.Spoilt() == 0 {
		t.Error("nobody there: it says that it has spoilt nothing")
	}
}

// TestReset: each connection ends with a reset, also when the proxy's own end of the server is closed
// first.
func TestReset(t *testing.T) {
	t.Parallel()
	p := coretest.StartProxy(t, echo(t))
	clients := make([]*client, 64)
	for i := range clients {
		clients[i] = dial(t, p.Addr)
		if err := clients[i].ask(long); err != nil {
			t.Fatal(err)
		}
	}
	p.Reset()
	for i, c := range clients {
		if err := c.hear(long); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("connection %d: %v, not a reset", i, err)
		}
	}
}
