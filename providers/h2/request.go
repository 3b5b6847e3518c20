package h2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"
)

// RoundTrip implements http.RoundTripper. It waits while the server allows no further stream. An error
// that is ErrUnprocessed says that the server has not taken the request; any other leaves that open.
// An answer that broke off in its body is one whose Body fails.
func (c *Conn) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := readBody(req)
	if err != nil {
		return nil, fmt.Errorf("%w: read the request's body: %w", ErrUnprocessed, err)
	}
	if err := check(req); err != nil {
		return nil, err
	}
	ctx := req.Context()
	if err := c.reserve(ctx); err != nil {
		return nil, err
	}
	s, rest, err := c.begin(req, body)
	if err != nil {
		return nil, err
	}
	c.poke()
	for len(rest) > 0 {
		if rest, err = c.send(ctx, s, rest); err != nil {
			return nil, err
		}
	}
	select {
	case <-s.done:
	case <-ctx.Done():
		c.giveUp(s)
		<-s.done // it may have been answered in the same moment
	}
	return s.response(req)
}

// readBody reads a request's body and closes it.
func readBody(req *http.Request) ([]byte, error) {
	if req.Body == nil || req.Body == http.NoBody {
		return nil, nil
	}
	defer req.Body.Close()
	if n := req.ContentLength; n > 0 && n < 1<<20 {
		body := make([]byte, n)
		if _, err := io.ReadFull(req.Body, body); err != nil {
			return nil, err
		}
		return body, nil
	}
	return io.ReadAll(req.Body)
}

// check refuses what cannot be put into header fields.
func check(req *http.Request) error {
	for name, values := range req.Header {
		for _, v := range values {
			if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(v) {
				return fmt.Errorf("%w: the header %q is not valid", ErrUnprocessed, name)
			}
		}
	}
	return nil
}

// reserve waits until a stream may begin, and counts it.
func (c *Conn) reserve(ctx context.Context) error {
	for {
		c.mu.Lock()
		if c.closing {
			c.mu.Unlock()
			return ErrEnded
		}
		if len(c.streams)+c.begun+c.resets < c.limit {
			c.begun++
			c.mu.Unlock()
			return nil
		}
		if c.room == nil {
			c.room = make(chan struct{})
		}
		room := c.room
		c.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return fmt.Errorf("%w: wait for a stream: %w", ErrUnprocessed, ctx.Err())
		}
	}
}

// begin opens a stream with a request's headers and as much of its body as the windows let through.
func (c *Conn) begin(req *http.Request, body []byte) (s *stream, rest []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begun--
	if c.closing {
		c.roomLocked()
		return nil, nil, ErrEnded
	}
	if len(c.out) > maxQueued {
		c.roomLocked()
		return nil, nil, fmt.Errorf("%w: the server takes nothing", ErrUnprocessed)
	}
	s = &stream{id: c.next, window: int64(c.peerWindow), done: make(chan struct{}), began: time.Now(), before: c.answers}
	c.streams[s.id] = s
	c.next += 2
	c.headersLocked(s.id, req, len(body))
	if len(body) == 0 {
		s.sent = c.queued
	} else {
		rest = c.dataLocked(s, body)
	}
	if c.next > lastStream-2 { // a billion requests: the ids are used up
		tell := c.closeLocked()
		go tell() // not under the lock
	}
	return s, rest, nil
}

// send sends more of a body when the windows have grown.
func (c *Conn) send(ctx context.Context, s *stream, body []byte) (rest []byte, err error) {
	c.mu.Lock()
	if s.more == nil {
		s.more = make(chan struct{}, 1)
	}
	if c.streams[s.id] == s {
		body = c.dataLocked(s, body)
	}
	c.mu.Unlock()
	c.poke()
	if len(body) == 0 {
		return nil, nil
	}
	select {
	case <-s.more:
		return body, nil
	case <-s.done: // answered, or refused, before it was all sent
		return nil, nil
	case <-ctx.Done():
		c.giveUp(s)
		return nil, fmt.Errorf("%w: send the request's body: %w", ErrUnprocessed, ctx.Err())
	}
}

// giveUp resets a stream whose answer nobody waits for. Until the server has seen that, it counts as
// open. A server that answers nobody is not asked again on this connection.
func (c *Conn) giveUp(s *stream) {
	c.mu.Lock()
	if c.streams[s.id] != s {
		c.mu.Unlock()
		return
	}
	c.resets++
	c.resetLocked(s.id, codeCancel)
	c.pingLocked(func() {
		c.resets--
		c.roomLocked()
	})
	c.endLocked(s, errGivenUp)
	tell := func() {}
	if c.o.DeafAfter > 0 && c.answers == s.before && time.Since(s.began) >= c.o.DeafAfter {
		tell = c.closeLocked()
	}
	c.mu.Unlock()
	c.poke()
	tell()
}

var errGivenUp = errors.New("the request was given up")

// response is what came for a stream that ended.
func (s *stream) response(req *http.Request) (*http.Response, error) {
	if s.status == 0 {
		if errors.Is(s.err, errGivenUp) {
			return nil, req.Context().Err()
		}
		return nil, s.err
	}
	r := &http.Response{Status: strconv.Itoa(s.status), StatusCode: s.status, Proto: "HTTP/2.0", ProtoMajor: 2, Header: s.header,
		ContentLength: int64(len(s.body)), Body: http.NoBody, Request: req}
	switch {
	case s.err != nil:
		r.ContentLength = -1
		r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(s.body), failing{s.err}))
	case len(s.body) > 0:
		r.Body = io.NopCloser(bytes.NewReader(s.body))
	}
	return r, nil
}

// failing is a reader that fails.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// fieldLocked encodes a header field.
func (c *Conn) fieldLocked(name, value string) {
	// Not an error: the buffer takes all.
	_ = c.enc.WriteField(hpack.HeaderField{Name: name, Value: value, Sensitive: c.varying[name]})
}

// fieldsLocked encodes a request's header fields into c.block.
func (c *Conn) fieldsLocked(req *http.Request, length int) {
	c.block.Reset()
	host := req.Host
	if host == "" {
		host = req.URL.Host
	}
	c.fieldLocked(":method", req.Method)
	c.fieldLocked(":scheme", req.URL.Scheme)
	c.fieldLocked(":authority", host)
	c.fieldLocked(":path", req.URL.RequestURI())
	for name, values := range req.Header {
		name = lower(name)
		switch name {
		case "connection", "host", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade", "content-length":
			continue // of another protocol, or ours
		}
		for _, v := range values {
			c.fieldLocked(name, v)
		}
	}
	if length > 0 {
		c.fieldLocked("content-length", strconv.Itoa(length))
	}
}

// lower is a header's name as HTTP/2 writes it.
func lower(name string) string {
	if known, ok := lowered[name]; ok {
		return known
	}
	return strings.ToLower(name)
}

// lowered saves making the same text over and over.
var lowered = func() map[string]string {
	out := map[string]string{}
	for _, name := range []string{"apns-id", "apns-topic", "apns-push-type", "apns-priority", "apns-expiration", "apns-collapse-id", "authorization",
		"content-type", "user-agent", "accept", "accept-encoding"} {
		out[http.CanonicalHeaderKey(name)] = name
	}
	return out
}()

// canonical is lowered the other way, for the headers of answers.
func canonical(name string) string {
	if known, ok := raised[name]; ok {
		return known
	}
	return http.CanonicalHeaderKey(name)
}

var raised = func() map[string]string {
	out := map[string]string{}
	for _, name := range []string{"apns-id", "apns-unique-id", "content-type", "content-length", "date", "retry-after", "server"} {
		out[name] = http.CanonicalHeaderKey(name)
	}
	return out
}()
