package email

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// maxReply bounds what is read of a server between two of our commands, replies and TLS together.
const maxReply = 256 << 10

var errFlood = errors.New("the mail server talks without end")

// conn is a net.Conn that can be cut short at any moment, counts what went out, and ends when the
// server floods it.
type conn struct {
	net.Conn
	written atomic.Int64 // bytes that the system took
	unread  atomic.Int64 // what may still be read before expect is called again

	mu  sync.Mutex
	cut bool
}

func newConn(c net.Conn) *conn {
	w := &conn{Conn: c}
	w.unread.Store(maxReply)
	return w
}

// within gives the next exchange until t, and a new allowance for what is read.
func (c *conn) within(t time.Time) {
	c.unread.Store(maxReply)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.cut {
		_ = c.SetDeadline(t)
	}
}

// interrupt ends whatever runs on the connection, now and later.
func (c *conn) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = true
	_ = c.SetDeadline(time.Unix(1, 0))
}

func (c *conn) Read(p []byte) (int, error) {
	if c.unread.Load() <= 0 {
		return 0, errFlood
	}
	n, err := c.Conn.Read(p)
	c.unread.Add(-int64(n))
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}
