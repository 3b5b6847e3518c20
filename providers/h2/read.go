package h2

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/net/http2/hpack"
)

// reader is the state of the goroutine that reads.
type reader struct {
	c        *Conn
	r        *bufio.Reader
	payload  []byte
	dec      *hpack.Decoder
	received uint32 // of the connection's window, since the server was told
	settled  bool   // its first settings came

	// The header block being read.
	block    []byte
	stream   uint32 // whose it is; 0: none
	end      bool   // it ends the stream
	response *stream
	status   int
	size     int    // of it so far, as it comes
	fields   int    // of it so far, as they are
	bad      string // what is wrong with it
	long     bool   // it has more fields than are kept
}

// read reads frames until the connection ends.
func (c *Conn) read() {
	r := &reader{c: c, r: bufio.NewReaderSize(c.nc, 16<<10)}
	r.dec = hpack.NewDecoder(4096, r.field)
	r.dec.SetMaxStringLength(maxBlock)
	for {
		if err := r.frame(); err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("the server closed the connection")
			}
			c.fail(err)
			return
		}
	}
}

// frame reads and handles one frame.
func (r *reader) frame() error {
	head, err := r.r.Peek(9)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	n := int(head[0])<<16 | int(head[1])<<8 | int(head[2])
	kind, flags, stream := head[3], head[4], binary.BigEndian.Uint32(head[5:])&lastStream
	if n > defaultFrame {
		return protocolError("a frame is too large")
	}
	_, _ = r.r.Discard(9) // Peek has them
	if cap(r.payload) < n {
		r.payload = make([]byte, defaultFrame)
	}
	payload := r.payload[:n]
	if _, err := io.ReadFull(r.r, payload); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if r.stream != 0 && (kind != frameContinuation || stream != r.stream) {
		return protocolError("header fields are interrupted")
	}
	if err := r.handle(kind, flags, stream, payload); err != nil {
		return err
	}
	if kind == framePing || kind == frameSettings || r.r.Buffered() == 0 {
		r.c.mu.Lock()
		defer r.c.mu.Unlock()
		r.c.heard = time.Now()
		if len(r.c.out) > maxQueued {
			return protocolError("it asks and does not listen")
		}
	}
	return nil
}

func (r *reader) handle(kind, flags byte, stream uint32, p []byte) error {
	c := r.c
	switch kind {
	case frameData:
		return r.data(flags, stream, p)
	case frameHeaders:
		return r.headers(flags, stream, p)
	case frameContinuation:
		if r.stream == 0 {
			return protocolError("a continuation of nothing")
		}
		return r.fragment(flags, p)
	case frameReset:
		if len(p) != 4 || stream == 0 {
			return protocolError("a reset that is none")
		}
		c.reset(stream, binary.BigEndian.Uint32(p))
	case frameSettings:
		return r.settings(flags, p)
	case framePing:
		if len(p) != 8 {
			return protocolError("a ping that is none")
		}
		c.ping(flags, [8]byte(p))
	case frameGoAway:
		if len(p) < 8 {
			return protocolError("a farewell that is none")
		}
		c.goAway(binary.BigEndian.Uint32(p)&lastStream, binary.BigEndian.Uint32(p[4:]))
	case frameWindow:
		if len(p) != 4 {
			return protocolError("a window update that is none")
		}
		return c.grow(stream, binary.BigEndian.Uint32(p)&lastStream)
	case framePush:
		return errPush
	}
	return nil // of priorities and what is not known yet
}

// padded takes the padding off.
func padded(flags byte, p []byte) ([]byte, error) {
	if flags&flagPadded == 0 {
		return p, nil
	}
	if len(p) == 0 || int(p[0]) >= len(p) {
		return nil, protocolError("more padding than frame")
	}
	return p[1 : len(p)-int(p[0])], nil
}

func (r *reader) data(flags byte, id uint32, p []byte) error {
	c := r.c
	whole := uint32(len(p)) //nolint:gosec // at most a frame
	p, err := padded(flags, p)
	if err != nil || id == 0 {
		return errors.Join(err, protocolError("data of no stream"))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.received += whole; r.received > connWindow/2 {
		c.windowUpdateLocked(0, r.received)
		r.received = 0
		c.poke()
	}
	s := c.streams[id]
	if s == nil {
		return c.knownLocked(id)
	}
	if s.status == 0 {
		return protocolError("data before headers")
	}
	if len(s.body)+len(p) > maxBody {
		c.resetLocked(id, codeCancel)
		c.endLocked(s, errors.New("the answer is too long"))
		c.poke()
		return nil
	}
	s.body = append(s.body, p...)
	if flags&flagEndStream != 0 {
		c.finishLocked(s)
	}
	return nil
}

// knownLocked is an error for a stream that was never begun; one that has ended is forgotten.
func (c *Conn) knownLocked(id uint32) error {
	if id >= c.next || id%2 == 0 {
		return protocolError("a frame of a stream that was not begun")
	}
	return nil
}

// finishLocked ends a stream that the server has answered. A request that it did not wait for is
// broken off.
func (c *Conn) finishLocked(s *stream) {
	if s.sent == 0 {
		c.resetLocked(s.id, 0)
		c.poke()
	}
	c.endLocked(s, nil)
}

func (r *reader) headers(flags byte, id uint32, p []byte) error {
	p, err := padded(flags, p)
	if err != nil || id == 0 {
		return errors.Join(err, protocolError("headers of no stream"))
	}
	if flags&flagPriority != 0 {
		if len(p) < 5 {
			return protocolError("a priority that is none")
		}
		p = p[5:]
	}
	r.c.mu.Lock()
	s := r.c.streams[id]
	err = r.c.knownLocked(id)
	r.c.mu.Unlock()
	if err != nil {
		return err
	}
	r.stream, r.end, r.response, r.block = id, flags&flagEndStream != 0, s, r.block[:0]
	r.status, r.size, r.fields, r.bad, r.long = 0, 0, 0, "", false
	if s != nil && s.status == 0 {
		s.header = http.Header{}
	}
	return r.fragment(flags, p)
}

// fragment takes a part of a header block. A long block is decoded as it comes: one request's answer may be
// of no use, but the table is the connection's (RFC 9113, 4.3 and 10.5.1), and so is whoever else is asked on it.
func (r *reader) fragment(flags byte, p []byte) error {
	if r.size += len(p); r.size > maxBlock {
		return protocolError("header fields without end")
	}
	last := flags&flagEndHeaders != 0
	if len(r.block) > 0 || !last {
		r.block = append(r.block, p...)
		p = r.block
	}
	if !last && len(p) < maxFragment {
		return nil
	}
	if _, err := r.dec.Write(p); err != nil {
		return fmt.Errorf("%w: %w", protocolError("header fields"), err)
	}
	if r.block = r.block[:0]; !last {
		return nil
	}
	if err := r.dec.Close(); err != nil {
		return fmt.Errorf("%w: %w", protocolError("header fields"), err)
	}
	r.dec.SetEmitEnabled(true)
	r.answered()
	return nil
}

// answered takes a whole header block, of a stream that may be gone.
func (r *reader) answered() {
	s := r.response
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	r.stream, r.response = 0, nil
	c.answers++
	if s == nil || c.streams[s.id] != s {
		return
	}
	trailers := s.status != 0
	if !trailers && r.status >= 200 && r.bad == "" {
		s.status = r.status // what the answer is, be there more to it than we keep
	}
	switch {
	case r.bad != "":
		c.resetLocked(s.id, codeProtocol)
		c.endLocked(s, protocolError(r.bad))
		c.poke()
	case trailers:
	case r.status == 0, r.status < 200 && r.end:
		c.resetLocked(s.id, codeProtocol)
		c.endLocked(s, protocolError("an answer without a status"))
		c.poke()
	case r.status < 200: // the answer is still to come
		return
	case r.long:
		c.resetLocked(s.id, codeCancel)
		c.endLocked(s, errLong)
		c.poke()
	}
	if r.end && c.streams[s.id] == s {
		c.finishLocked(s)
	}
}

// errLong ends a request whose answer has more header fields than are kept.
var errLong = errors.New("the answer's header fields are too long")

// field takes one decoded header field.
func (r *reader) field(f hpack.HeaderField) {
	s := r.response
	if s == nil || s.status != 0 {
		return
	}
	if r.fields += len(f.Name) + len(f.Value) + 32; r.fields > maxHeaders {
		r.long = true
		r.dec.SetEmitEnabled(false) // the table follows all the same
		return
	}
	if f.Name == ":status" {
		n, err := strconv.Atoi(f.Value)
		if err != nil || len(f.Value) != 3 || n < 100 || r.status != 0 {
			r.bad = "a status that is none"
			return
		}
		r.status = n
		return
	}
	if f.Name == "" || f.Name[0] == ':' {
		r.bad = "a pseudo-header of requests"
		return
	}
	name := canonical(f.Name)
	s.header[name] = append(s.header[name], f.Value)
}

// reset ends a stream that the server gave up.
func (c *Conn) reset(id, code uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers++
	if s := c.streams[id]; s != nil {
		c.endLocked(s, &StreamError{code})
	}
}

// ping answers the server's and takes the answers to ours.
func (c *Conn) ping(flags byte, data [8]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if flags&flagAck == 0 {
		c.frameLocked(framePing, flagAck, 0, data[:])
		c.poke()
		return
	}
	if answered := c.pings[data]; answered != nil {
		delete(c.pings, data)
		answered()
	}
}

// goAway lets no more streams begin and fails those that the server says it has not processed.
func (c *Conn) goAway(last, code uint32) {
	c.mu.Lock()
	tell := c.closeLocked()
	for id, s := range c.streams {
		if id > last {
			c.endLocked(s, fmt.Errorf("%w: it said GOAWAY with code %d", ErrUnprocessed, code))
		}
	}
	c.mu.Unlock()
	tell()
}

// grow enlarges a window.
func (c *Conn) grow(id, n uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id == 0 {
		if c.window += int64(n); n == 0 || c.window > lastStream {
			return protocolError("the connection's window")
		}
		for _, s := range c.streams {
			s.tell()
		}
		return nil
	}
	s := c.streams[id]
	if s == nil {
		return c.knownLocked(id)
	}
	if s.window += int64(n); n == 0 || s.window > lastStream {
		c.resetLocked(id, codeFlow)
		c.endLocked(s, protocolError("a stream's window"))
		c.poke()
		return nil
	}
	s.tell()
	return nil
}

// tell wakes whoever waits for a larger window.
func (s *stream) tell() {
	if s.more == nil {
		return
	}
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// settings takes over what the server announces.
func (r *reader) settings(flags byte, p []byte) error {
	if flags&flagAck != 0 {
		return nil
	}
	if len(p)%6 != 0 {
		return protocolError("settings that are none")
	}
	c := r.c
	c.mu.Lock()
	streams := -1
	if !r.settled {
		r.settled, streams = true, unlimited
	}
	for ; len(p) > 0; p = p[6:] {
		v := binary.BigEndian.Uint32(p[2:])
		switch binary.BigEndian.Uint16(p) {
		case settingTable:
			c.enc.SetMaxDynamicTableSizeLimit(v)
		case settingStreams:
			streams = int(min(v, lastStream))
		case settingWindow:
			if v > lastStream {
				c.mu.Unlock()
				return protocolError("a window too large")
			}
			for _, s := range c.streams {
				s.window += int64(v) - int64(c.peerWindow)
				s.tell()
			}
			c.peerWindow = int32(v) //nolint:gosec // at most 2^31-1
		case settingFrame:
			if v < defaultFrame || v > 1<<24-1 {
				c.mu.Unlock()
				return protocolError("a frame size out of range")
			}
			c.peerFrame = int(v)
		}
	}
	if streams >= 0 {
		c.limit = streams
		c.roomLocked()
	}
	c.frameLocked(frameSettings, flagAck, 0, nil)
	c.mu.Unlock()
	c.poke()
	if streams >= 0 && c.o.OnLimit != nil {
		c.o.OnLimit(streams)
	}
	return nil
}
