// Package h2 is the client's side of one HTTP/2 connection (RFC 9113), for services that are asked
// small things very often. Frames of many requests leave in one write, no request has a goroutine of
// its own, and a request that fails says whether the server can have taken it.
//
// It is no general client: requests and answers are small and kept whole in memory, there are no
// trailers, no pushes and no Expect, and priorities are not sent.
package h2

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/http2/hpack"
)

// Options are what a connection is begun with. OnLimit and OnEnd are called from the connection's own
// goroutines and must not wait for it.
type Options struct {
	// WriteTimeout is how long a write may take before the connection counts as broken; 0: for ever.
	WriteTimeout time.Duration
	// PingAfter is how long the server may be silent before it is asked whether it is there, and
	// PingTimeout how long its answer may take. 0 asks nothing.
	PingAfter, PingTimeout time.Duration
	// DeafAfter is after how long a request that is given up ends the connection for further ones, if not
	// one was answered meanwhile: a proxy answers PINGs whatever became of the server behind it. 0: never.
	DeafAfter time.Duration
	// Varying are the headers, in lower case, that differ from request to request: they are kept out
	// of the compression table. The path always is.
	Varying []string
	// OnLimit is told how many streams at a time the server allows, whenever it says so.
	OnLimit func(streams int)
	// OnEnd is told once that the connection takes no more requests: the server said GOAWAY, or it broke.
	OnEnd func()
}

// Limits of our own. An answer of more than that is none.
const (
	maxBody       = 60 << 10 // below the window that every stream begins with, which is never enlarged
	maxHeaders    = 16 << 10
	maxFragment   = 64 << 10 // of a block of header fields, before what there is of it is decoded
	maxBlock      = 1 << 20  // of header fields as they come, in all their frames; more ends the connection
	maxQueued     = 4 << 20  // written by us and not taken by the server
	connWindow    = 1 << 20  // what the server may send before it hears from us
	lastStream    = 1<<31 - 1
	defaultWindow = 65535
	defaultFrame  = 16384
	unlimited     = 1000 // streams, if the server announces no limit
)

var (
	// ErrUnprocessed marks the error of a request that the server has not taken and never will: it may
	// be made again elsewhere.
	ErrUnprocessed = errors.New("the server has not processed the request")
	// ErrEnded is the error of a request that was not begun because the connection takes no more. It
	// is ErrUnprocessed, too.
	ErrEnded = fmt.Errorf("the connection takes no more requests: %w", ErrUnprocessed)
	// ErrClosed is why a connection ended that we closed.
	ErrClosed = errors.New("the connection was closed")
)

// StreamError is the error of a request whose stream the server reset.
type StreamError struct {
	Code uint32 // of RFC 9113, 7
}

// Error names the code.
func (e *StreamError) Error() string {
	return fmt.Sprintf("the server reset the stream with code %d", e.Code)
}

// Is says that a refused stream was not processed (RFC 9113, 8.7).
func (e *StreamError) Is(target error) bool {
	return target == ErrUnprocessed && e.Code == codeRefused
}

// Conn is one connection. It is safe for concurrent use.
type Conn struct {
	nc      net.Conn
	o       Options
	varying map[string]bool

	wake  chan struct{} // the writer has something to do
	ended chan struct{} // closed when the connection broke or was closed

	mu     sync.Mutex
	out    []byte // frames that wait to be written
	queued int64  // bytes put into out so far
	handed int64  // of them, given to the network, or being so
	enc    *hpack.Encoder
	block  blockBuffer

	next    uint32 // the next stream's id
	streams map[uint32]*stream
	begun   int           // streams reserved that have no id yet
	resets  int           // streams that we gave up and the server may not know of yet
	answers uint64        // to any stream, late ones and resets too
	room    chan struct{} // closed when a stream may be begun again; nil while nobody waits

	limit      int   // streams at a time, as the server has it
	peerWindow int32 // with which it begins streams
	peerFrame  int   // its largest frame
	window     int64 // what we may send on the connection
	last       uint32
	closing    bool // no new streams
	err        error
	pings      map[[8]byte]func()
	pinged     uint64

	heard time.Time // when the last frame came
	watch *time.Timer
}

// stream is one request and its answer.
type stream struct {
	id     uint32
	window int64
	sent   int64         // what queued was when the request was complete; 0: it is not
	began  time.Time     // and how many answers there had been by then
	before uint64        //
	done   chan struct{} // closed when it ended; guards what follows
	more   chan struct{} // tells whoever waits to send that the window has grown

	status int
	header http.Header
	body   []byte
	err    error
}

// New begins HTTP/2 on a connection, on which TLS has agreed on it. The caller must Close it.
func New(nc net.Conn, o Options) *Conn {
	c := &Conn{nc: nc, o: o, varying: map[string]bool{":path": true, "content-length": true}, wake: make(chan struct{}, 1), ended: make(chan struct{}),
		next: 1, streams: map[uint32]*stream{}, limit: 100, peerWindow: defaultWindow, peerFrame: defaultFrame, window: defaultWindow,
		last: lastStream, pings: map[[8]byte]func(){}, heard: time.Now()}
	for _, name := range o.Varying {
		c.varying[name] = true
	}
	c.enc = hpack.NewEncoder(&c.block)
	c.mu.Lock()
	c.out = append(c.out, preface...)
	c.settingsLocked()
	c.windowUpdateLocked(0, connWindow-defaultWindow)
	c.queued = int64(len(c.out))
	c.mu.Unlock()
	c.poke()
	go c.write()
	go c.read()
	if o.PingAfter > 0 {
		c.o.PingTimeout = cmp.Or(o.PingTimeout, o.PingAfter)
		c.mu.Lock()
		c.watch = time.AfterFunc(o.PingAfter, c.look)
		c.mu.Unlock()
	}
	return c
}

// Close ends the connection and fails the requests under way.
func (c *Conn) Close() error {
	c.fail(ErrClosed)
	return nil
}

// Ping waits for the server's answer to a PING, which comes after its first SETTINGS.
func (c *Conn) Ping(ctx context.Context) error {
	came := make(chan struct{})
	c.mu.Lock()
	if err := c.err; err != nil {
		c.mu.Unlock()
		return err
	}
	c.pingLocked(func() { close(came) })
	c.mu.Unlock()
	c.poke()
	select {
	case <-came:
		return nil
	case <-c.ended:
		return c.why()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Conn) why() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// fail ends the connection for a reason.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	tell := c.closeLocked()
	if c.watch != nil {
		c.watch.Stop()
	}
	for _, s := range c.streams {
		c.endLocked(s, c.broken(s, err))
	}
	close(c.ended)
	c.mu.Unlock()
	_ = c.nc.Close() // the reason is known
	tell()
}

// broken is the error of a stream whose connection broke: what never left this machine whole was not
// processed.
func (c *Conn) broken(s *stream, err error) error {
	if s.sent == 0 || s.sent > c.handed {
		return fmt.Errorf("%w: %w", ErrUnprocessed, err)
	}
	return err
}

// closeLocked lets no more streams begin. What it returns is to be called without the lock.
func (c *Conn) closeLocked() (tell func()) {
	if c.closing {
		return func() {}
	}
	c.closing = true
	c.roomLocked()
	if c.o.OnEnd == nil {
		return func() {}
	}
	return c.o.OnEnd
}

// roomLocked lets those look again who wait to begin a stream.
func (c *Conn) roomLocked() {
	if c.room != nil {
		close(c.room)
		c.room = nil
	}
}

// endLocked ends a stream.
func (c *Conn) endLocked(s *stream, err error) {
	if c.streams[s.id] != s {
		return
	}
	delete(c.streams, s.id)
	s.err = err
	close(s.done)
	c.roomLocked()
}

// look asks a silent server whether it is there.
func (c *Conn) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	if silent := time.Since(c.heard); silent < c.o.PingAfter {
		c.watch.Reset(c.o.PingAfter - silent)
		return
	}
	asked := c.heard
	c.pingLocked(func() {})
	c.poke()
	c.watch = time.AfterFunc(c.o.PingTimeout, func() {
		c.mu.Lock()
		answered := c.heard.After(asked)
		if answered && c.err == nil {
			c.watch = time.AfterFunc(c.o.PingAfter, c.look)
		}
		c.mu.Unlock()
		if !answered {
			c.fail(errors.New("the server is silent"))
		}
	})
}
