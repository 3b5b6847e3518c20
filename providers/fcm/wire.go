package fcm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"

	"firebase.google.com/go/v4/messaging"
	"google.golang.org/api/option"

	"github.com/carillon-notify/carillon/providers/h2"
	"github.com/carillon-notify/carillon/providers/pool"
)

const (
	// sdkVersion is what the library says of itself in its headers; the root package, which knows it,
	// is not imported.
	sdkVersion = "4.19.0"
	// maxReply bounds what is read of an answer.
	maxReply = 64 << 10
	// maxRequest bounds a request. The longest that Check lets pass is a payload and a token, every character
	// of which may be escaped. More than that FCM would refuse, and a service that is sent a megabyte may
	// close the connection that others' messages are on.
	maxRequest = maxPayload + 6*maxToken + 256
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
	token   string
	payload []byte // goes out in place of the library's, if not nil
	calls   int
	handed  bool // all of the request was given to a connection: FCM may have taken it
	status  int  // 0: no answer
	header  http.Header
	body    []byte
	tooBig  bool  // longer than maxRequest: it was not sent
	err     error // why there is no answer
}

type attemptKey struct{}

// wire is the http.RoundTripper below the library: it puts requests on the pool's connections.
type wire struct {
	pool *pool.Shared[*h2.Conn]
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
	payload := a.payload
	if payload == nil {
		var err error
		if payload, err = io.ReadAll(req.Body); err != nil {
			return nil, fmt.Errorf("read the request: %w", err)
		}
	}
	if a.tooBig = len(payload) > maxRequest; a.tooBig {
		return failed(req, nil), nil
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
		conn, err := w.pool.Acquire(req.Context())
		if err != nil {
			return err
		}
		err = exchange(conn.Value(), req, payload, a)
		if errors.Is(err, h2.ErrEnded) {
			conn.Retire() // the pool may not have heard yet, and would give it to us again
		}
		if a.handed = err == nil || !errors.Is(err, h2.ErrUnprocessed); a.handed {
			conn.Release()
		} else {
			conn.ReleaseUntaken()
		}
		if a.handed || try == freshTries || req.Context().Err() != nil {
			return err
		}
	}
}

// exchange sends one request on one connection and reads the answer whole.
func exchange(conn *h2.Conn, req *http.Request, payload []byte, a *attempt) error {
	out := req.WithContext(req.Context()) // a copy
	out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(payload)), int64(len(payload))
	resp, err := conn.RoundTrip(out)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	a.status, a.header = resp.StatusCode, resp.Header
	// The status has answered already; what is missing of the text is no matter.
	a.body, _ = io.ReadAll(io.LimitReader(resp.Body, maxReply))
	return nil
}
