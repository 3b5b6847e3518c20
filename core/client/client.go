// Package client is the Go client of Carillon's REST API. A Client sends each request until it has an
// answer that counts: 429, 503, 409 of a key in flight and broken connections are tried again, which is
// safe because every sending carries an Idempotency-Key.
package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Defaults and bounds of a Client.
const (
	DefaultTries   = 5
	DefaultTimeout = 30 * time.Second
	firstWait      = 100 * time.Millisecond
	maxWait        = 30 * time.Second
	maxAnswer      = 16 << 20
)

// Options are what a Client works with.
type Options struct {
	URL   string        // of the server, such as http://127.0.0.1:8080
	Key   string        // an API key
	HTTP  *http.Client  // nil: one with DefaultTimeout a try
	Tries int           // how often a request is sent at most; 0: DefaultTries
	Wait  time.Duration // before the second try, doubled for each further one; 0: 100 ms
}

// Client calls the API. It is safe for concurrent use.
type Client struct {
	base  string
	key   string
	http  *http.Client
	tries int
	wait  time.Duration
}

// New returns a Client. The error says what is wrong with the options.
func New(o Options) (*Client, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("client: URL must be such as https://carillon.example.com")
	}
	if o.Key == "" {
		return nil, errors.New("client: an API key is required")
	}
	c := &Client{base: strings.TrimSuffix(o.URL, "/"), key: o.Key, http: o.HTTP, tries: o.Tries, wait: o.Wait}
	if c.http == nil {
		c.http = &http.Client{Timeout: DefaultTimeout}
	}
	if c.tries <= 0 {
		c.tries = DefaultTries
	}
	if c.wait <= 0 {
		c.wait = firstWait
	}
	return c, nil
}

// Fault is one thing wrong with a request.
type Fault struct {
	Pointer string `json:"pointer"` // RFC 6901, into the request
	Code    string `json:"code"`
	Detail  string `json:"detail"`
}

// Problem is the error of an answer that is none of success (RFC 9457).
type Problem struct {
	Type      string  `json:"type"`
	Title     string  `json:"title"`
	Status    int     `json:"status"`
	Detail    string  `json:"detail"`
	RequestID string  `json:"request_id"`
	Errors    []Fault `json:"errors"`
	// RetryAfter is how long the server asks to wait, 0 if it does not.
	RetryAfter time.Duration `json:"-"`
}

// Error implements error. It has the faults' pointers, codes and details.
func (p *Problem) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s: %s", p.Status, p.Title, p.Detail)
	for _, f := range p.Errors {
		fmt.Fprintf(&b, "; %s: %s (%s)", f.Pointer, f.Detail, f.Code)
	}
	if p.RequestID != "" {
		fmt.Fprintf(&b, " [request %s]", p.RequestID)
	}
	return b.String()
}

// Temporary reports whether the same request may be taken later.
func (p *Problem) Temporary() bool {
	switch p.Status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	case http.StatusConflict:
		return p.RetryAfter > 0
	}
	return false
}

// IsNotFound reports whether an error is the API's word that there is no such thing.
func IsNotFound(err error) bool {
	var p *Problem
	return errors.As(err, &p) && p.Status == http.StatusNotFound
}

// NewKey makes an idempotency key.
func NewKey() string { return rand.Text() }

// ask is one request of the API.
type ask struct {
	method, path string
	key          string // idempotency key, "" for none
	body, answer any    // nil: none
}

// do sends a request until it has an answer that counts, and decodes that.
func (c *Client) do(ctx context.Context, q ask) (http.Header, error) {
	var body []byte
	if q.body != nil {
		b, err := json.Marshal(q.body)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		body = b
	}
	for try := 1; ; try++ {
		header, err := c.once(ctx, q, body)
		if err == nil || try >= c.tries || !again(ctx, err) {
			return header, err
		}
		if stopped := sleep(ctx, c.pause(try, err)); stopped != nil {
			return nil, errors.Join(stopped, err)
		}
	}
}

// again reports whether a failed try may be followed by another.
func again(ctx context.Context, err error) bool {
	var p *Problem
	if errors.As(err, &p) {
		return p.Temporary()
	}
	var broken *url.Error
	return errors.As(err, &broken) && ctx.Err() == nil
}

// pause is the wait after the n-th try: doubled each time with half of it at random, or what the server
// asked for if that is longer.
func (c *Client) pause(n int, err error) time.Duration {
	d := min(c.wait<<min(n-1, 16), maxWait)
	d = d/2 + mathrand.N(d/2+1)
	var p *Problem
	if errors.As(err, &p) {
		d = max(d, min(p.RetryAfter, maxWait))
	}
	return d
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Client) request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	r.Header.Set("Authorization", "Bearer "+c.key)
	r.Header.Set("Accept", "application/json, application/problem+json")
	return r, nil
}

func (c *Client) once(ctx context.Context, q ask, body []byte) (http.Header, error) {
	var content io.Reader
	if body != nil {
		content = bytes.NewReader(body)
	}
	r, err := c.request(ctx, q.method, q.path, content)
	if err != nil {
		return nil, err
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if q.key != "" {
		r.Header.Set("Idempotency-Key", q.key)
	}
	a, err := c.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", q.method, route(q.path), err)
	}
	defer a.Body.Close()
	if a.StatusCode >= 300 {
		return nil, problem(a)
	}
	if q.answer == nil || a.StatusCode == http.StatusNoContent {
		return a.Header, nil
	}
	text, err := io.ReadAll(io.LimitReader(a.Body, maxAnswer))
	if err != nil { // the connection broke within the answer: ask again
		return nil, &url.Error{Op: q.method, URL: route(q.path), Err: err}
	}
	if err := json.Unmarshal(text, q.answer); err != nil {
		return nil, fmt.Errorf("decode the answer to %s %s: %w", q.method, route(q.path), err)
	}
	return a.Header, nil
}

// segment is a name as a part of a path. Dots alone would lead up in it, to somebody else's.
func segment(name string) string {
	if name == "." || name == ".." {
		return strings.ReplaceAll(name, ".", "%2E")
	}
	return url.PathEscape(name)
}

// route is a path without what may be personal in it.
func route(path string) string {
	parts := strings.SplitN(path, "/", 4)
	return strings.Join(parts[:min(3, len(parts))], "/")
}

// problem reads the error out of an answer; one that is no problem (of a proxy) becomes one.
func problem(a *http.Response) error {
	p := &Problem{}
	text, err := io.ReadAll(io.LimitReader(a.Body, 1<<20))
	if err != nil || json.Unmarshal(text, p) != nil || p.Title == "" {
		*p = Problem{Title: http.StatusText(a.StatusCode)}
	}
	p.Status = a.StatusCode
	if s, err := strconv.Atoi(a.Header.Get("Retry-After")); err == nil && s > 0 {
		p.RetryAfter = time.Duration(s) * time.Second
	}
	return p
}
