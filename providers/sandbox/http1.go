package sandbox

import (
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// http1Handler serves a service to clients without HTTP/2, FCM's curl users for example.
func http1Handler(handle func(*peer, *request) verdict) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in := &request{method: r.Method, path: r.URL.RequestURI()}
		if v := r.Header.Get("Authorization"); v != "" {
			in.header = append(in.header, field{"authorization", v})
		}
		var err error
		if in.body, err = io.ReadAll(io.LimitReader(r.Body, maxBody+1)); err != nil {
			return
		}
		v := handle(&peer{}, in)
		if v.delay > 0 {
			t := time.NewTimer(v.delay)
			defer t.Stop()
			select {
			case <-t.C:
			case <-r.Context().Done():
				if v.entry != nil {
					v.entry.lost.Store(true)
				}
				panic(http.ErrAbortHandler)
			}
		}
		switch {
		case v.silent:
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		case v.drop:
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Content-Type", v.contentType)
		if v.retryAfter != "" {
			w.Header().Set("Retry-After", v.retryAfter)
		}
		w.WriteHeader(v.status)
		w.Write(v.body) //nolint:errcheck // the client is gone then
	})
}

// oneConn is a listener with one connection. Accept gives it once and then waits until it is closed.
type oneConn struct {
	conn net.Conn
	give sync.Once
	done chan struct{}
}

func newOneConn(conn net.Conn) *oneConn {
	return &oneConn{conn: conn, done: make(chan struct{})}
}

func (l *oneConn) Accept() (conn net.Conn, err error) {
	l.give.Do(func() { conn = &watchedConn{Conn: l.conn, closed: sync.OnceFunc(func() { close(l.done) })} })
	if conn != nil {
		return conn, nil
	}
	<-l.done
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

type watchedConn struct {
	net.Conn
	closed func()
}

func (c *watchedConn) Close() error {
	c.closed()
	return c.Conn.Close()
}
