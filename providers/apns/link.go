package apns

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/sideshow/apns2"

	"github.com/carillon-notify/carillon/providers/h2"
	"github.com/carillon-notify/carillon/providers/pool"
)

const (
	keepAlive   = 15 * time.Second // of TCP
	pingTimeout = 5 * time.Second  // for the answer to a PING on a silent connection
)

// varying are the headers that differ from push to push.
var varying = []string{"apns-id", "apns-expiration", "apns-collapse-id"}

// link is one apns2 client on exactly one HTTP/2 connection of ours. apns2's own transport opens
// further connections as it likes, ignores the context as it dials, and has no way to tell which
// streams were processed when a connection ends.
type link struct {
	client apns2.Client
	conn   *h2.Conn
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
	// APNs may begin with one stream and allow more when it has seen a valid provider token.
	l := &link{conn: h2.New(conn, h2.Options{WriteTimeout: p.cfg.timeout, PingAfter: p.cfg.pool.HealthEvery, PingTimeout: pingTimeout,
		DeafAfter: min(p.cfg.timeout/2, pingTimeout), Varying: varying, OnLimit: slot.SetStreams, OnEnd: slot.Retire})}
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
	return l, nil
}

// call is the context of one request, and what the transport saw of it that apns2 does not tell.
type call struct {
	context.Context
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

// RoundTrip implements http.RoundTripper for apns2. It keeps the status and Retry-After, which apns2
// loses.
func (l *link) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := l.conn.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if c, ok := req.Context().Value(callKey{}).(*call); ok {
		c.status = resp.StatusCode
		c.retryAfter = resp.Header.Get("Retry-After")
	}
	return resp, nil
}

// bare takes an error out of url.Error, whose text has the device token in it.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
