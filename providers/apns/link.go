//nolint:staticcheck // SA1019: x/net's ClientConn is deprecated, see link
package apns

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sideshow/apns2"
	"golang.org/x/net/http2"

	"github.com/carillon-notify/carillon/providers/pool"
)

const (
	keepAlive   = 15 * time.Second // of TCP
	pingTimeout = 5 * time.Second  // for the answer to a PING on a silent connection
	// settleTime is how long to wait for a stream that the pool counts as free and x/net still as used:
	// microseconds after an answer, a round trip after a request was given up.
	settleTime = 500 * time.Millisecond
	// lookEvery is how often at most the peer's stream limit is looked at, which takes x/net's locks.
	lookEvery = 2 * time.Millisecond
)

// link is one apns2 client on exactly one HTTP/2 connection of ours. apns2's own transport opens
// further connections as it likes, ignores the context as it dials, and has no way to tell which
// streams were processed when a connection ends.
//
// x/net's ClientConn is deprecated for net/http's, which tells neither the stream limit that the peer
// announced nor that a GOAWAY came; both are needed here.
type link struct {
	client apns2.Client
	conn   *http2.ClientConn
	slot   *pool.Conn[*link]

	limited atomic.Bool  // the peer carries fewer streams than we would use
	looked  atomic.Int64 // when its limit was last looked at, in Unix nanoseconds
	looking atomic.Bool  // it will be looked at
}

// connect opens a connection and waits until it works: the answer to a PING comes after the peer's
// SETTINGS, so its stream limit is known before the first request.
func (p *provider) connect(ctx context.Context, slot *pool.Conn[*link]) (*link, error) {
	l, err := p.dial(ctx, slot)
	if err != nil {
		why := err.Error()
		p.lastDial.Store(&why)
		return nil, err
	}
	p.lastDial.Store(nil)
	return l, nil
}

func (p *provider) dial(ctx context.Context, slot *pool.Conn[*link]) (*link, error) {
	d := net.Dialer{KeepAlive: keepAlive}
	raw, err := d.DialContext(ctx, "tcp", p.cfg.addr)
	if err != nil {
		return nil, fmt.Errorf("connect to APNs: %w", err)
	}
	conn := tls.Client(raw, p.cfg.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close() // the handshake's error says it all
		return nil, fmt.Errorf("TLS handshake with APNs at %s: %w", p.cfg.addr, err)
	}
	if proto := conn.ConnectionState().NegotiatedProtocol; proto != "h2" {
		_ = conn.Close()
		return nil, fmt.Errorf("the server at %s does not speak HTTP/2 and cannot be APNs", p.cfg.addr)
	}
	l := &link{slot: slot}
	t := &http2.Transport{
		ConnPool:           retirer{slot},
		DisableCompression: true,
		ReadIdleTimeout:    p.cfg.pool.HealthEvery,
		PingTimeout:        pingTimeout,
		WriteByteTimeout:   p.cfg.timeout,
	}
	if l.conn, err = t.NewClientConn(conn); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("begin HTTP/2 with APNs at %s: %w", p.cfg.addr, err)
	}
	if err := l.conn.Ping(ctx); err != nil {
		_ = l.conn.Close()
		return nil, fmt.Errorf("begin HTTP/2 with APNs at %s: %w", p.cfg.addr, err)
	}
	l.client = apns2.Client{
		Host:  p.cfg.host,
		Token: p.bearer.token,
		HTTPClient: &http.Client{
			Transport:     l,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	l.look()
	return l, nil
}

// retirer is told by x/net when a connection got a GOAWAY or broke, in use or not.
type retirer struct{ slot *pool.Conn[*link] }

func (r retirer) MarkDead(*http2.ClientConn) { r.slot.Retire() }

func (retirer) GetClientConn(*http.Request, string) (*http2.ClientConn, error) {
	return nil, http2.ErrNoCachedConn
}

// look takes over the stream limit that the peer announced last: APNs may begin with one stream and
// allow more when it has seen a valid provider token.
func (l *link) look() {
	l.looked.Store(time.Now().UnixNano())
	s := l.conn.State()
	if s.Closed || s.Closing {
		l.slot.Retire()
		return
	}
	l.slot.SetStreams(int(s.MaxConcurrentStreams))
	l.limited.Store(l.slot.Streams() == int(s.MaxConcurrentStreams))
}

// used is called after each request, with the error of one that got no answer.
func (l *link) used(err error) {
	switch {
	case errors.Is(err, errUnusable):
		l.slot.Retire()
	case err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded):
		l.look() // it may have ended, or its limit may have been lowered
	case l.limited.Load() && l.looking.CompareAndSwap(false, true):
		wait := lookEvery - time.Duration(time.Now().UnixNano()-l.looked.Load())
		time.AfterFunc(max(wait, 0), func() {
			l.looking.Store(false)
			l.look()
		})
	}
}

// call is the context of one request, and what the transport saw of it that apns2 does not tell.
type call struct {
	context.Context
	body       sealed
	status     int    // 0: no answer
	retryAfter string // the header
}

type callKey struct{}

// Value finds the call itself.
func (c *call) Value(key any) any {
	if key == (callKey{}) {
		return c
	}
	return c.Context.Value(key)
}

// sealed is a request body that knows whether it was read, and that can be sealed before: APNs cannot
// have taken a push whose body was never read.
type sealed struct {
	io.ReadCloser
	state atomic.Int32
}

const (
	untouched int32 = iota
	touched
	shut
)

var errSealed = errors.New("the request was given up")

func (s *sealed) Read(b []byte) (int, error) {
	if s.state.CompareAndSwap(untouched, touched) || s.state.Load() == touched {
		return s.ReadCloser.Read(b)
	}
	return 0, errSealed
}

func (s *sealed) Close() error {
	s.seal()
	return s.ReadCloser.Close()
}

// seal makes sure that the body will not be read any more, if it was not, and says whether it was not.
func (s *sealed) seal() bool {
	return s.state.CompareAndSwap(untouched, shut) || s.state.Load() == shut
}

// errUnusable says that a connection took no request.
var errUnusable = errors.New("the connection takes no more requests")

// RoundTrip implements http.RoundTripper for apns2. It keeps the status and Retry-After, which apns2
// loses, and what tells a request that was written from one that was not.
func (l *link) RoundTrip(req *http.Request) (*http.Response, error) {
	c, ok := req.Context().Value(callKey{}).(*call)
	if !ok {
		return nil, errors.New("apns: a request without its call")
	}
	c.body.ReadCloser = req.Body
	if err := l.reserve(c); err != nil {
		_ = c.body.Close()
		return nil, err
	}
	own := req.WithContext(c)
	own.Body = &c.body
	resp, err := l.conn.RoundTrip(own)
	if err != nil {
		return nil, err
	}
	c.status = resp.StatusCode
	c.retryAfter = resp.Header.Get("Retry-After")
	return resp, nil
}

// reserve takes one of the connection's streams. The pool keeps callers within the peer's limit; x/net
// counts a stream for a moment longer than we do.
func (l *link) reserve(ctx context.Context) error {
	if l.conn.ReserveNewRequest() {
		return nil
	}
	tick := time.NewTicker(100 * time.Microsecond)
	defer tick.Stop()
	for end := time.Now().Add(settleTime); time.Now().Before(end); {
		if s := l.conn.State(); s.Closed || s.Closing {
			return errUnusable
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if l.conn.ReserveNewRequest() {
			return nil
		}
	}
	return errUnusable
}

// verdict is what became of a request that got no answer.
type verdict uint8

const (
	unprocessed verdict = iota // APNs has not taken it and never will
	ambiguous                  // it may have
)

// judge decides about a request without an answer. RFC 9113, 8.7: a stream that was reset with
// REFUSED_STREAM or lies above a GOAWAY's last stream was not processed.
func judge(c *call, err error) verdict {
	if c.body.seal() {
		return unprocessed
	}
	var reset http2.StreamError
	if errors.As(err, &reset) && reset.Code == http2.ErrCodeRefusedStream {
		return unprocessed
	}
	// x/net has no values for these two; both mean that GOAWAY came and the stream lies above it.
	if s := err.Error(); strings.Contains(s, "Transport received Server's graceful shutdown GOAWAY") ||
		strings.Contains(s, "Transport received GOAWAY from server") {
		return unprocessed
	}
	return ambiguous
}

// bare takes an error out of url.Error, whose text has the device token in it.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
