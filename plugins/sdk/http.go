package sdk

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

const (
	maxRetryAfter = time.Hour
	maxHeader     = 64 << 10    // bytes of an answer's header
	maxRest       = 64 << 10    // bytes of an answer's body that are read to use its connection again
	restTime      = time.Second // how long that may take
	dialTimeout   = 5 * time.Second
)

// ErrClosed is HTTP.Do's answer after Close.
var ErrClosed = errors.New("the provider is closed")

// HTTPOptions bound an HTTP. Zero fields take the value in brackets.
type HTTPOptions struct {
	// MaxPerHost is how many connections may be open to one host at once [16]. Further requests to it
	// wait for one.
	MaxPerHost int
	// Idle is how many unused connections are kept, to all hosts together [MaxPerHost].
	Idle int
	// IdleTimeout is how long an unused connection is kept [30 s].
	IdleTimeout time.Duration
	// TLS is how HTTPS is spoken [the system's certificates, TLS 1.2 at least].
	TLS *tls.Config
	// Control is net.Dialer.ControlContext: it is asked about the resolved address of every connection,
	// before it is made, and its error is Do's.
	Control func(ctx context.Context, network, address string, c syscall.RawConn) error
}

// HTTP sends requests for a provider. It keeps connections for the next request, bounds them and counts
// them for Health, and it tells what net/http does not: whether a request that has no answer may have
// arrived. One that may have is never sent again, be it a GET or one with an Idempotency-Key. It speaks HTTP/1.1, which gives each request a connection to itself. It follows no redirects
// and uses no proxy. It is safe for concurrent use.
type HTTP struct {
	client    *http.Client
	transport *http.Transport
	max       int

	opened, closed, failed, reused atomic.Uint64
	waiting, inUse                 atomic.Int64

	mu       sync.Mutex
	shut     bool // nothing is sent any more
	over     bool // no connection is kept any more
	conns    map[*countedConn]struct{}
	inFlight sync.WaitGroup // grows under mu, and not once it is shut
	life     context.Context
	stop     context.CancelFunc // ends life, and with it what is in flight
}

// NewHTTP returns an HTTP. It connects to nobody yet.
func NewHTTP(o HTTPOptions) *HTTP {
	if o.MaxPerHost <= 0 {
		o.MaxPerHost = 16
	}
	if o.Idle <= 0 {
		o.Idle = o.MaxPerHost
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = 30 * time.Second
	}
	if o.TLS == nil {
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	h := &HTTP{max: o.MaxPerHost, conns: map[*countedConn]struct{}{}}
	h.life, h.stop = context.WithCancel(context.Background())
	dialer := &net.Dialer{Timeout: dialTimeout, ControlContext: o.Control}
	h.transport = &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				h.failed.Add(1)
				return nil, err
			}
			return h.count(c)
		},
		TLSClientConfig:        o.TLS,
		TLSHandshakeTimeout:    dialTimeout,
		Protocols:              new(http.Protocols),
		MaxConnsPerHost:        o.MaxPerHost,
		MaxIdleConns:           o.Idle,
		MaxIdleConnsPerHost:    o.MaxPerHost,
		IdleConnTimeout:        o.IdleTimeout,
		DisableCompression:     true, // an answer is as long as it looks
		MaxResponseHeaderBytes: maxHeader,
	}
	h.transport.Protocols.SetHTTP1(true)
	h.client = &http.Client{
		Transport:     h.transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return h
}

// Do sends a request within its context. After an error, handed says whether the service may have got it:
// then nobody knows what became of the message, else it certainly did not arrive. The error does not
// hold the URL; it may hold the address that was connected to. The body of an answer must be closed.
func (h *HTTP) Do(req *http.Request) (resp *http.Response, handed bool, err error) {
	h.mu.Lock()
	if h.shut {
		h.mu.Unlock()
		return nil, false, ErrClosed
	}
	h.inFlight.Add(1)
	h.mu.Unlock()
	ctx, cancel := context.WithCancel(req.Context())
	u := &use{http: h, cancel: cancel, unlink: context.AfterFunc(h.life, cancel), replayable: replayable(req)}
	h.waiting.Add(1)
	resp, err = h.client.Do(req.WithContext(httptrace.WithClientTrace(ctx, u.trace())))
	if err != nil {
		u.end()
		var wrapped *url.Error
		switch {
		case u.repeats:
			err = errNoAnswer
		case errors.As(err, &wrapped):
			err = wrapped.Err
		}
		return nil, u.handed.Load(), fmt.Errorf("send the request: %w", err)
	}
	resp.Body = &answerBody{ReadCloser: resp.Body, ended: sync.OnceFunc(u.end), cancel: cancel}
	return resp, true, nil
}

// Stats are the figures for Health. Max is that of one host.
func (h *HTTP) Stats() providers.PoolStats {
	s := providers.PoolStats{Max: h.max, InUse: int(h.inUse.Load()), Waiting: int(h.waiting.Load()),
		Closed: h.closed.Load(), Failed: h.failed.Load(), Reused: h.reused.Load()}
	s.Opened = h.opened.Load() // after Closed: none is closed before it was opened
	s.Open = int(s.Opened - s.Closed)
	// A connection may serve the next request before the one before is noted to be over.
	s.InUse = min(s.InUse, s.Open)
	s.Idle = max(s.Open-s.InUse, 0)
	return s
}

// Close lets go of every connection, after what is in flight is answered or ctx ends; what is in flight
// then is cut off, and Close says so. It may be called more than once.
func (h *HTTP) Close(ctx context.Context) error {
	h.mu.Lock()
	h.shut = true
	h.mu.Unlock()
	answered := make(chan struct{})
	go func() {
		h.inFlight.Wait()
		close(answered)
	}()
	var err error
	select {
	case <-answered:
	case <-ctx.Done():
		err = fmt.Errorf("wait for the requests in flight: %w", ctx.Err())
	}
	h.stop()
	h.transport.CloseIdleConnections()
	// What a request has just given back may not be among the idle ones yet.
	h.mu.Lock()
	h.over = true
	left := slices.Collect(maps.Keys(h.conns))
	h.mu.Unlock()
	for _, c := range left {
		_ = c.Close()
	}
	return err
}

// count takes a new connection among those that Close ends.
func (h *HTTP) count(c net.Conn) (net.Conn, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over {
		_ = c.Close()
		return nil, ErrClosed
	}
	h.opened.Add(1)
	counted := &countedConn{Conn: c}
	counted.ended = sync.OnceFunc(func() {
		h.closed.Add(1)
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.conns, counted)
	})
	h.conns[counted] = struct{}{}
	return counted, nil
}

var errNoAnswer = errors.New("the connection ended without an answer")

// replayable says whether net/http may send a request again that was written already (net/http's
// Request.isReplayable).
func replayable(req *http.Request) bool {
	for _, key := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		if _, ok := req.Header[key]; ok {
			return true
		}
	}
	return slices.Contains([]string{"", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace}, req.Method)
}

// use is one request's use of a connection.
type use struct {
	http       *HTTP
	cancel     context.CancelFunc
	unlink     func() bool
	replayable bool
	conn       *countedConn // which it was given last
	before     int64        // what had been written to it by then
	repeats    bool         // net/http wants to send it again, and must not
	connected  bool
	handed     atomic.Bool
}

// again is called when net/http looks for a connection. The second time, a kept connection turned out to
// be dead: mostly before anything was written. A request that may have arrived is not sent again.
func (u *use) again() {
	if u.handed.Load() && u.replayable && (u.conn == nil || u.conn.written.Load() != u.before) {
		u.repeats = true
		u.cancel()
		return
	}
	u.handed.Store(false)
}

func (u *use) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GetConn: func(string) { u.again() },
		GotConn: func(info httptrace.GotConnInfo) {
			if u.repeats { // the context's end may be seen too late
				_ = info.Conn.Close()
				return
			}
			u.conn = counted(info.Conn)
			if u.conn != nil {
				u.before = u.conn.written.Load()
			}
			if info.Reused {
				u.http.reused.Add(1)
			}
			if !u.connected {
				u.connected = true
				u.http.waiting.Add(-1)
				u.http.inUse.Add(1)
			}
		},
		// The header is written to a buffer before the connection gets its end, so that what was not
		// noted here has not arrived as a whole.
		WroteHeaders: func() { u.handed.Store(true) },
	}
}

func (u *use) end() {
	u.unlink()
	u.cancel()
	if u.connected {
		u.http.inUse.Add(-1)
	} else {
		u.http.waiting.Add(-1)
	}
	u.http.inFlight.Done()
}

// answerBody is an answer's body whose connection is used again if its rest comes soon.
type answerBody struct {
	io.ReadCloser
	ended  func()
	cancel context.CancelFunc
}

// Close implements io.Closer.
func (b *answerBody) Close() error {
	defer b.ended()
	hurry := time.AfterFunc(restTime, b.cancel)
	defer hurry.Stop()
	_, _ = io.CopyN(io.Discard, b.ReadCloser, maxRest)
	return b.ReadCloser.Close()
}

// countedConn is a connection whose end is counted, and what is written to it.
type countedConn struct {
	net.Conn
	ended   func()
	written atomic.Int64
}

// counted finds the connection below TLS; nil is none of ours.
func counted(c net.Conn) *countedConn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	found, _ := c.(*countedConn)
	return found
}

// Write implements net.Conn.
func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	c.ended()
	return c.Conn.Close()
}

// RetryAfter reads the header of that name, in seconds or as a date (RFC 9110, 10.2.3): an hour at most, and
// 0 where there is none or it makes no sense.
func RetryAfter(h http.Header) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if at, err := http.ParseTime(v); err == nil {
		return min(max(time.Until(at), 0), maxRetryAfter)
	}
	if v == "" || strings.Trim(v, "0123456789") != "" {
		return 0
	}
	seconds, err := strconv.ParseInt(v, 10, 32)
	if err != nil { // more digits than anybody's patience
		return maxRetryAfter
	}
	return min(time.Duration(seconds)*time.Second, maxRetryAfter)
}
