package fcm

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"sync/atomic"
	"time"

	"firebase.google.com/go/v4/messaging"
	"golang.org/x/net/http2"
	"google.golang.org/api/option"

	"github.com/carillon-notify/carillon/providers/pool"
)

const (
	// sdkVersion is what the library says of itself in its headers; the root package, which knows it,
	// is not imported.
	sdkVersion = "4.19.0"
	// maxReply bounds what is read of an answer.
	maxReply = 64 << 10
	// freshTries bounds how often a message that certainly did not reach FCM is handed to another
	// connection.
	freshTries = 10
)

// newMessaging makes the library's messaging client without its root package, which would add 15 MB and
// 200 packages for databases and storage. The configuration's type is internal to the library but is
// inferred from NewClient; a test holds its fields against the pinned version.
func newMessaging[T any](ctx context.Context, f func(context.Context, *T) (*messaging.Client, error), project string, opts ...option.ClientOption) (*messaging.Client, error) {
	conf := new(T)
	v := reflect.ValueOf(conf).Elem()
	for name, value := range map[string]any{"ProjectID": project, "Version": sdkVersion, "Opts": opts} {
		field := v.FieldByName(name)
		if !field.IsValid() || !field.CanSet() || field.Type() != reflect.TypeOf(value) {
			return nil, fmt.Errorf("the FCM library's configuration has no field %s of type %T: it is not version %s", name, value, sdkVersion)
		}
		field.Set(reflect.ValueOf(value))
	}
	return f(ctx, conf)
}

// client gives the library's client, speaking through rt alone.
func client(rt http.RoundTripper, endpoint, project string) (*messaging.Client, error) {
	hc := &http.Client{Transport: rt}
	return newMessaging(context.Background(), messaging.NewClient, project,
		option.WithHTTPClient(hc), option.WithEndpoint(endpoint+"/v1"))
}

// attempt is one message's one request. The library retries network errors and 503 up to four times on
// its own, out of our sight (v4.19.0, internal/http_client.go), and cannot be told not to. So the wire
// below records here what really happened, shows the library an answer that it does not retry, and
// refuses to be called again: what is recorded is the truth, whatever the library returns.
type attempt struct {
	token  string
	calls  int
	handed bool // all of the request was given to a connection: FCM may have taken it
	status int  // 0: no answer
	header http.Header
	body   []byte
	err    error // why there is no answer
}

type attemptKey struct{}

// wire is the http.RoundTripper below the library: it puts requests on the pool's connections.
type wire struct {
	pool *pool.Shared[*link]
}

// link is one HTTP/2 connection.
type link struct {
	*http.ClientConn
	known atomic.Bool // the peer's stream limit was learnt
}

// RoundTrip implements http.RoundTripper.
func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	a, _ := req.Context().Value(attemptKey{}).(*attempt)
	if a == nil {
		return nil, errors.New("a request of the FCM library that is not ours")
	}
	if a.calls++; a.calls > 1 {
		return failed(req, nil), nil
	}
	payload, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+a.token)
	a.err = w.send(req, payload, a)
	if a.err != nil || a.status < 200 || a.status > 299 {
		return failed(req, a.body), nil //nolint:nilerr // whoever called the library reads a.err
	}
	return response(req, a.status, a.body), nil
}

// failed is what the library sees of whatever went wrong: 500, which it does not retry.
func failed(req *http.Request, body []byte) *http.Response {
	return response(req, http.StatusInternalServerError, body)
}

func response(req *http.Request, status int, body []byte) *http.Response {
	return &http.Response{
		StatusCode: status, Status: http.StatusText(status), Proto: "HTTP/2.0", ProtoMajor: 2,
		Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Request: req,
	}
}

// send does the exchange. A request that FCM certainly did not process goes to another connection, which
// is no second attempt; any other error ends it.
func (w *wire) send(req *http.Request, payload []byte, a *attempt) error {
	for try := 1; ; try++ {
		conn, err := w.acquire(req.Context())
		if err != nil {
			return err
		}
		body := &watched{r: bytes.NewReader(payload)}
		err = exchange(conn.Value(), req, body, a)
		if conn.Value().Err() != nil {
			conn.Retire()
		}
		if err == nil {
			learn(conn, false)
		}
		conn.Release()
		a.handed = body.done.Load()
		if err == nil {
			return nil
		}
		if a.handed && unprocessed(err) {
			a.handed = false
		}
		if a.handed || try == freshTries || req.Context().Err() != nil {
			return err
		}
	}
}

// acquire gives a connection with a stream reserved on it.
func (w *wire) acquire(ctx context.Context) (*pool.Conn[*link], error) {
	for {
		conn, err := w.pool.Acquire(ctx)
		if err != nil {
			return nil, err
		}
		l := conn.Value()
		if l.Reserve() == nil {
			return conn, nil
		}
		if l.InFlight() < conn.Streams() {
			// Not full, and yet it takes nothing: either the peer is going away, or a stream ended in
			// this very moment.
			if l.Reserve() == nil {
				return conn, nil
			}
			conn.Retire()
			conn.Release()
			continue
		}
		learn(conn, true) // the peer allows fewer streams than it did
		conn.Release()
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for a free stream: %w", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// learn takes over the peer's limit of concurrent streams, once after the first answer and whenever
// there is reason to.
func learn(conn *pool.Conn[*link], again bool) {
	l := conn.Value()
	if l.known.Swap(true) && !again {
		return
	}
	if n := l.Available() + l.InFlight(); n > 0 {
		conn.SetStreams(n)
	}
}

// exchange sends one request on one connection and reads the answer whole.
func exchange(l *link, req *http.Request, body *watched, a *attempt) error {
	out := req.Clone(req.Context())
	out.Body, out.GetBody = body, nil
	resp, err := l.RoundTrip(out)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	a.status, a.header = resp.StatusCode, resp.Header
	// The status has answered already; what is missing of the text is no matter.
	a.body, _ = io.ReadAll(io.LimitReader(resp.Body, maxReply))
	return nil
}

// watched notes when all of a request's body was read: from then on FCM may have it.
type watched struct {
	r    *bytes.Reader
	done atomic.Bool
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if w.r.Len() == 0 {
		w.done.Store(true)
	}
	return n, err
}

func (w *watched) Close() error { return nil }

// unprocessed says whether the peer vouches that it did not look at the request: the stream was refused
// (RFC 9113, 8.7), or is above the last one of its GOAWAY (6.8). net/http keeps the second error to
// itself, so its text is what there is; should it change, the message is Unknown, which is safe.
func unprocessed(err error) bool {
	var s http2.StreamError
	if errors.As(err, &s) {
		return s.Code == http2.ErrCodeRefusedStream
	}
	return err.Error() == "http2: Transport received Server's graceful shutdown GOAWAY"
}

// dialer opens connections to the endpoint.
func dialer(endpoint *url.URL, roots *x509.CertPool, cfg pool.Config) func(context.Context, *pool.Conn[*link]) (*link, error) {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	t := &http.Transport{
		Proxy:           http.ProxyFromEnvironment,
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		Protocols:       protocols,
		HTTP2:           &http.HTTP2Config{SendPingTimeout: cfg.HealthEvery, PingTimeout: 5 * time.Second},
	}
	address := endpoint.Host
	if endpoint.Port() == "" {
		address = net.JoinHostPort(endpoint.Hostname(), "443")
	}
	return func(ctx context.Context, conn *pool.Conn[*link]) (*link, error) {
		cc, err := t.NewClientConn(ctx, "https", address)
		if err != nil {
			return nil, err
		}
		cc.SetStateHook(func(cc *http.ClientConn) {
			if cc.Err() != nil {
				conn.Retire() // closed by the peer, or a ping without an answer
			}
		})
		// One at first: until the peer's SETTINGS are here net/http assumes a limit of 100, and should it
		// turn out lower, requests beyond it wait for each other until they time out (Go 1.26, which
		// counts reserved streams of requests that stand in line behind the one that waits for them).
		// The first answer comes after the SETTINGS.
		conn.SetStreams(1)
		return &link{ClientConn: cc}, nil
	}
}
