package fcm

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/carillon-notify/carillon/providers/h2"
	"github.com/carillon-notify/carillon/providers/pool"
)

const (
	keepAlive   = 15 * time.Second // of TCP
	pingTimeout = 5 * time.Second  // for the answer to a PING on a silent connection
)

// dialer opens connections to one endpoint.
type dialer struct {
	endpoint *url.URL
	tls      *tls.Config
	timeout  time.Duration // of a write
	ping     time.Duration // after so much silence
	proxy    func(*url.URL) (*url.URL, error)
}

func newDialer(endpoint *url.URL, roots *x509.CertPool, timeout time.Duration, cfg pool.Config) *dialer {
	return &dialer{endpoint: endpoint, timeout: timeout, ping: cfg.HealthEvery, proxy: httpproxy.FromEnvironment().ProxyFunc(),
		tls: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, ServerName: endpoint.Hostname(), NextProtos: []string{"h2"}}}
}

// connect opens a connection and waits until it works: the answer to a PING comes after the peer's
// SETTINGS, so its limit of streams is known before the first request.
func (d *dialer) connect(ctx context.Context, slot *pool.Conn[*h2.Conn]) (*h2.Conn, error) {
	raw, err := d.reach(ctx)
	if err != nil {
		return nil, err
	}
	secure := tls.Client(raw, d.tls)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = raw.Close() // the handshake's error says it all
		return nil, err
	}
	if secure.ConnectionState().NegotiatedProtocol != "h2" {
		_ = secure.Close()
		return nil, errors.New("the server does not speak HTTP/2 and cannot be FCM")
	}
	c := h2.New(secure, h2.Options{WriteTimeout: d.timeout, PingAfter: d.ping, PingTimeout: pingTimeout,
		DeafAfter: min(d.timeout/2, pingTimeout), OnLimit: slot.SetStreams, OnEnd: slot.Retire})
	if err := c.Ping(ctx); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("begin HTTP/2: %w", err)
	}
	return c, nil
}

// reach opens a connection to the endpoint, through the proxy of the environment (HTTPS_PROXY, NO_PROXY)
// if there is one.
func (d *dialer) reach(ctx context.Context) (net.Conn, error) {
	proxy, err := d.proxy(d.endpoint)
	if err != nil {
		return nil, errors.New("the environment's HTTPS_PROXY is no URL") // which may hold a password
	}
	n := net.Dialer{KeepAlive: keepAlive}
	if proxy == nil {
		return n.DialContext(ctx, "tcp", address(d.endpoint))
	}
	conn, err := n.DialContext(ctx, "tcp", address(proxy))
	if err != nil {
		return nil, fmt.Errorf("connect to the proxy: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	switch proxy.Scheme {
	case "http":
	case "https":
		conn = tls.Client(conn, &tls.Config{ServerName: proxy.Hostname(), MinVersion: tls.VersionTLS12})
	default:
		_ = conn.Close()
		return nil, fmt.Errorf("the proxy's scheme is %q; FCM is reached through http and https ones", proxy.Scheme)
	}
	if err := tunnel(conn, proxy.User, address(d.endpoint)); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// tunnel asks a proxy for a way to an address (RFC 9110, 9.3.6).
func tunnel(conn net.Conn, user *url.Userinfo, to string) error {
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: to}, Host: to, Header: http.Header{}}
	if user != nil {
		password, _ := user.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
	}
	if err := req.Write(conn); err != nil {
		return fmt.Errorf("ask the proxy: %w", err)
	}
	// The server says nothing before the client does (TLS), so that nothing of it is lost in the buffer.
	resp, err := http.ReadResponse(bufio.NewReader(conn), req) //nolint:bodyclose // it is the way
	if err != nil {
		return fmt.Errorf("ask the proxy: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the proxy refused: %s", resp.Status)
	}
	return nil
}

// address is where a URL's server listens.
func address(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}
