package sandbox

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// This is an HTTP/2 server (RFC 9113) for requests and answers of a few kilobytes. It answers on the
// goroutine that reads, without a goroutine per stream and with one write for all answers that are
// ready, which costs a fifth of what net/http's server does; and it can misbehave where the script says
// so, which net/http's server cannot.

const (
	streamWindow = 1 << 20  // what a client may send on a stream
	connWindow   = 16 << 20 // and on a connection before it hears of more
	maxBody      = 256 << 10
	maxHeader    = 16 << 10 // SETTINGS_MAX_HEADER_LIST_SIZE
	maxUnsent    = 8 << 20  // answers that a client may leave unread
	writeTimeout = 10 * time.Second
)

// verdict is what happens to a request.
type verdict struct {
	status                          int
	apnsID, contentType, retryAfter string
	body                            []byte
	delay                           time.Duration
	drop, silent                    bool   // close the connection | never answer
	entry                           *entry // what was taken, or nil
}

// request is one request as it came.
type request struct {
	method, path string
	header       []field // without the pseudo header fields
	body         []byte
}

// get returns the first value of a header field; names are in lower case.
func (r *request) get(name string) string {
	for i := range r.header {
		if r.header[i].name == name {
			return r.header[i].value
		}
	}
	return ""
}

// peer is what a handler may want to know and keep of a connection.
type peer struct {
	certificate bool // the client showed one that we signed
	// token is the last bearer token found good on this connection, until good.
	token string
	good  time.Time
}

// h2Server serves HTTP/2 connections of one service.
type h2Server struct {
	plan   func() *plan
	handle func(*peer, *request) verdict // called by one goroutine per connection; must not block
}

type h2Stream struct {
	request
	id      uint32
	window  int64 // what we may still send on it
	unsent  []byte
	handled bool
}

type h2Conn struct {
	server   *h2Server
	conn     net.Conn
	in       *bufio.Reader
	framer   *http2.Framer
	decoder  *hpack.Decoder
	peer     peer
	requests int
	received int64 // bytes of DATA since the last WINDOW_UPDATE
	lastID   uint32
	limit    uint32

	// What the header decoder fills.
	fields     []field
	method     string
	path       string
	headerSize int
	malformed  bool

	mu       sync.Mutex
	streams  map[uint32]*h2Stream
	out      []byte
	spare    []byte
	flushing bool
	closed   bool
	gone     bool // GOAWAY was sent
	window   int64
	initial  int64 // the client's SETTINGS_INITIAL_WINDOW_SIZE
	blocked  []*h2Stream
}

func (s *h2Server) serve(conn *tls.Conn) {
	c := &h2Conn{
		server: s, conn: conn, in: bufio.NewReaderSize(conn, 64<<10), streams: map[uint32]*h2Stream{},
		window: 65535, initial: 65535, limit: s.plan().MaxStreams,
		peer: peer{certificate: len(conn.ConnectionState().PeerCertificates) > 0},
	}
	c.framer = http2.NewFramer(io.Discard, c.in)
	c.framer.SetReuseFrames()
	c.framer.SetMaxReadFrameSize(16 << 10)
	c.decoder = hpack.NewDecoder(4096, c.field)
	c.decoder.SetMaxStringLength(maxHeader)
	defer c.close()
	if !c.greet() {
		return
	}
	for {
		if !c.buffered() && !c.flush() {
			io.Copy(io.Discard, c.conn) //nolint:errcheck // it ends either way, see finish
			return
		}
		f, err := c.framer.ReadFrame()
		if err == nil {
			err = c.frame(f)
		}
		var se http2.StreamError
		var ce http2.ConnectionError
		switch {
		case err == nil:
		case errors.As(err, &se):
			c.reset(se.StreamID, se.Code)
		case errors.As(err, &ce):
			c.fail(http2.ErrCode(ce))
			return
		case errors.Is(err, http2.ErrFrameTooLarge):
			c.fail(http2.ErrCodeFrameSize)
			return
		default:
			return
		}
	}
}

// greet says our settings, at once so that a client does not open more streams than it may, and reads
// the client's preface.
func (c *h2Conn) greet() bool {
	c.out = appendFrameHeader(c.out, 18, http2.FrameSettings, 0, 0)
	for _, s := range []http2.Setting{
		{ID: http2.SettingMaxConcurrentStreams, Val: c.limit},
		{ID: http2.SettingInitialWindowSize, Val: streamWindow}, {ID: http2.SettingMaxHeaderListSize, Val: maxHeader},
	} {
		c.out = append(c.out, byte(s.ID>>8), byte(s.ID))
		c.out = appendUint32(c.out, s.Val)
	}
	c.out = appendWindowUpdate(c.out, 0, connWindow-65535)
	if !c.flush() {
		return false
	}
	var preface [len(http2.ClientPreface)]byte
	c.conn.SetReadDeadline(time.Now().Add(writeTimeout)) //nolint:errcheck // the read fails then
	if _, err := io.ReadFull(c.in, preface[:]); err != nil || string(preface[:]) != http2.ClientPreface {
		return false
	}
	c.conn.SetReadDeadline(time.Time{}) //nolint:errcheck // as above
	return true
}

// buffered says whether another frame can be read without waiting for the network.
func (c *h2Conn) buffered() bool {
	if c.in.Buffered() < 9 {
		return false
	}
	h, err := c.in.Peek(3)
	return err == nil && c.in.Buffered() >= 9+int(h[0])<<16|int(h[1])<<8|int(h[2])
}

func (c *h2Conn) frame(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.HeadersFrame:
		return c.headers(f)
	case *http2.DataFrame:
		return c.data(f)
	case *http2.SettingsFrame:
		return c.settings(f)
	case *http2.PingFrame:
		if !f.IsAck() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.out = appendFrameHeader(c.out, 8, http2.FramePing, http2.FlagPingAck, 0)
			c.out = append(c.out, f.Data[:]...)
		}
	case *http2.WindowUpdateFrame:
		return c.windowUpdate(f)
	case *http2.RSTStreamFrame:
		if f.StreamID > c.lastID {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.streams, f.StreamID)
	case *http2.PushPromiseFrame, *http2.ContinuationFrame:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil // PRIORITY, the client's GOAWAY and unknown frames need no answer
}

// field is called by the header decoder with each field.
func (c *h2Conn) field(f hpack.HeaderField) {
	c.headerSize += int(f.Size())
	switch {
	case c.headerSize > maxHeader:
		c.malformed = true
	case f.Name == ":method":
		c.method = f.Value
	case f.Name == ":path":
		c.path = f.Value
	case f.Name != "" && f.Name[0] == ':':
		c.malformed = c.malformed || f.Name != ":scheme" && f.Name != ":authority" || len(c.fields) > 0
	default:
		c.fields = append(c.fields, field{f.Name, f.Value})
	}
}

func (c *h2Conn) headers(f *http2.HeadersFrame) error {
	c.fields, c.method, c.path, c.headerSize, c.malformed = make([]field, 0, 12), "", "", 0, false
	id, end, fragment, ended := f.StreamID, f.StreamEnded(), f.HeaderBlockFragment(), f.HeadersEnded()
	for size := 0; ; {
		if size += len(fragment); size > 2*maxHeader {
			return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
		}
		if _, err := c.decoder.Write(fragment); err != nil {
			return http2.ConnectionError(http2.ErrCodeCompression)
		}
		if ended {
			break
		}
		next, err := c.framer.ReadFrame()
		if err != nil {
			return err
		}
		cont, ok := next.(*http2.ContinuationFrame) // the Framer lets nothing else pass
		if !ok {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		fragment, ended = cont.HeaderBlockFragment(), cont.HeadersEnded()
	}
	if err := c.decoder.Close(); err != nil {
		return http2.ConnectionError(http2.ErrCodeCompression)
	}
	if id <= c.lastID {
		return c.trailers(id, end)
	}
	if id%2 == 0 {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	c.lastID = id
	c.mu.Lock()
	if c.gone { // after our GOAWAY: the client sends it again elsewhere
		c.mu.Unlock()
		return nil
	}
	if uint32(len(c.streams)) >= c.limit {
		c.mu.Unlock()
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeRefusedStream}
	}
	s := &h2Stream{id: id, window: c.initial, request: request{method: c.method, path: c.path, header: c.fields}}
	c.streams[id] = s
	c.mu.Unlock()
	if c.malformed || c.method == "" || c.path == "" {
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
	}
	if end {
		return c.complete(s)
	}
	return nil
}

// trailers ends a request that had more header fields after its body.
func (c *h2Conn) trailers(id uint32, end bool) error {
	c.mu.Lock()
	s := c.streams[id]
	c.mu.Unlock()
	switch {
	case s == nil || s.handled:
		return nil // answered or reset already
	case !end:
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeProtocol}
	}
	return c.complete(s)
}

func (c *h2Conn) data(f *http2.DataFrame) error {
	c.received += int64(f.Length)
	c.mu.Lock()
	if c.received >= connWindow/2 {
		c.out = appendWindowUpdate(c.out, 0, uint32(c.received))
		c.received = 0
	}
	s := c.streams[f.StreamID]
	c.mu.Unlock()
	if s == nil {
		if f.StreamID > c.lastID {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		return nil // reset, refused, or after our GOAWAY
	}
	if s.handled {
		return nil // the rest of a body that was too long
	}
	s.body = append(s.body, f.Data()...)
	if f.StreamEnded() {
		return c.complete(s)
	}
	if len(s.body) > maxBody { // answered as it stands, which is too long for any service
		if err := c.complete(s); err != nil {
			return err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.out = appendFrameHeader(c.out, 4, http2.FrameRSTStream, 0, s.id)
		c.out = appendUint32(c.out, uint32(http2.ErrCodeNo))
	}
	return nil
}

var errDropped = errors.New("sandbox: connection dropped by the script")

// complete hands a whole request to the service.
func (c *h2Conn) complete(s *h2Stream) error {
	s.handled = true
	v := c.server.handle(&c.peer, &s.request)
	c.requests++
	if n := c.server.plan().GoAwayEvery; n > 0 && c.requests >= n {
		c.goAway()
	}
	switch {
	case v.drop:
		c.flush() // what was answered before was answered
		return errDropped
	case v.silent:
	case v.delay > 0:
		later := v // a copy, so that only a delayed verdict lives on the heap
		time.AfterFunc(v.delay, func() {
			c.reply(s, &later)
			c.flush()
		})
	default:
		c.reply(s, &v)
	}
	return nil
}

// goAway tells the client that no more streams than those begun are served here (RFC 9113, section 6.8).
func (c *h2Conn) goAway() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.gone {
		c.gone = true
		c.out = appendGoAway(c.out, c.lastID, http2.ErrCodeNo)
	}
}

// reply puts an answer among those to be written.
func (c *h2Conn) reply(s *h2Stream, v *verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, open := c.streams[s.id]; !open || c.closed {
		if v.entry != nil {
			v.entry.lost.Store(true)
		}
		return
	}
	start := len(c.out)
	c.out = appendFrameHeader(c.out, 0, http2.FrameHeaders, http2.FlagHeadersEndHeaders, s.id)
	c.out = appendStatus(c.out, v.status)
	for _, f := range [...]field{{"apns-id", v.apnsID}, {"content-type", v.contentType}, {"retry-after", v.retryAfter}} {
		if f.value != "" {
			c.out = append(c.out, 0) // a literal with a new name, not indexed (RFC 7541, section 6.2.2)
			c.out = appendHpack(appendHpack(c.out, f.name), f.value)
		}
	}
	n := len(c.out) - start - 9
	c.out[start+1], c.out[start+2] = byte(n>>8), byte(n)
	if len(v.body) == 0 {
		c.out[start+4] |= byte(http2.FlagHeadersEndStream)
		delete(c.streams, s.id)
		return
	}
	s.unsent = v.body
	c.send(s)
}

// send writes as much of a stream's body as the windows allow. c.mu is held.
func (c *h2Conn) send(s *h2Stream) {
	for len(s.unsent) > 0 {
		n := min(int64(len(s.unsent)), s.window, c.window, 16<<10)
		if n <= 0 {
			c.blocked = append(c.blocked, s)
			return
		}
		s.window -= n
		c.window -= n
		var flags http2.Flags
		if int(n) == len(s.unsent) {
			flags = http2.FlagDataEndStream
		}
		c.out = appendFrameHeader(c.out, int(n), http2.FrameData, flags, s.id)
		c.out = append(c.out, s.unsent[:n]...)
		s.unsent = s.unsent[n:]
	}
	delete(c.streams, s.id)
}

// unblock goes on with the bodies that waited for a window. c.mu is held.
func (c *h2Conn) unblock() {
	waiting := c.blocked
	c.blocked = nil
	for _, s := range waiting {
		if c.streams[s.id] == s {
			c.send(s)
		}
	}
}

func (c *h2Conn) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
		if v > 1<<31-1 {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
		for _, s := range c.streams {
			s.window += int64(v) - c.initial
		}
		c.initial = int64(v)
		c.unblock()
	}
	c.out = appendFrameHeader(c.out, 0, http2.FrameSettings, http2.FlagSettingsAck, 0)
	return nil
}

func (c *h2Conn) windowUpdate(f *http2.WindowUpdateFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.StreamID == 0 {
		if c.window += int64(f.Increment); c.window > 1<<31-1 {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
	} else if s := c.streams[f.StreamID]; s != nil {
		s.window += int64(f.Increment)
	}
	c.unblock()
	return nil
}

func (c *h2Conn) reset(id uint32, code http2.ErrCode) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.streams, id)
	c.out = appendFrameHeader(c.out, 4, http2.FrameRSTStream, 0, id)
	c.out = appendUint32(c.out, uint32(code))
}

// flush writes what there is to write. If another goroutine is at it, that one takes ours along. It
// says whether the connection still serves.
func (c *h2Conn) flush() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flushing {
		return !c.closed && len(c.out) < maxUnsent
	}
	c.flushing = true
	for len(c.out) > 0 && !c.closed {
		out := c.out
		c.out = c.spare[:0]
		c.mu.Unlock()
		c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)) //nolint:errcheck // the write fails then
		_, err := c.conn.Write(out)
		c.mu.Lock()
		c.spare = out
		if err != nil {
			c.closed = true
			hangUp(c.conn)
		}
	}
	c.flushing = false
	if c.gone && len(c.streams) == 0 && !c.closed {
		c.finish()
	}
	return !c.closed
}

// fail ends a connection because of what the client did.
func (c *h2Conn) fail(code http2.ErrCode) {
	c.mu.Lock()
	c.out = appendGoAway(c.out, c.lastID, code)
	c.mu.Unlock()
	if c.flush() {
		c.mu.Lock()
		c.finish()
		c.mu.Unlock()
	}
	io.Copy(io.Discard, c.conn) //nolint:errcheck // it ends either way, see finish
}

// finish ends a connection after GOAWAY. It is closed a little later, for a close with data unread would reset it and take the last answers away. c.mu is held.
func (c *h2Conn) finish() {
	c.closed = true
	if t, ok := c.conn.(*tls.Conn); ok {
		t.CloseWrite() //nolint:errcheck // the connection is at its end
	}
	c.conn.SetReadDeadline(time.Now().Add(time.Second)) //nolint:errcheck // as above
}

func (c *h2Conn) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	hangUp(c.conn)
}

// hangUp closes a connection as a crash would: without TLS's good-bye.
func hangUp(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	conn.Close() //nolint:errcheck // nothing depends on it
}
