package websocket

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/centrifugal/centrifuge"
)

// bodyTimeout bounds reading the one body that a streaming client sends.
const bodyTimeout = 10 * time.Second

// endpoints are the handlers of one running node.
type endpoints struct {
	websocket, httpStream, sse, emulation http.Handler
}

func newEndpoints(node *centrifuge.Node, s *Settings) endpoints {
	ping := centrifuge.PingPongConfig{PingInterval: time.Duration(s.PingInterval), PongTimeout: time.Duration(s.PongTimeout)}
	return endpoints{
		websocket: centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{
			CheckOrigin:        func(*http.Request) bool { return true }, // the door has looked already
			MessageSizeLimit:   s.MaxMessageSize,
			WriteTimeout:       time.Duration(s.WriteTimeout),
			UseWriteBufferPool: true,
			// Most connections are idle most of the time; this halves the stack each keeps.
			ProcessCommandsOffReadLoop: true,
			PingPongConfig:             ping,
		}),
		httpStream: centrifuge.NewHTTPStreamHandler(node, centrifuge.HTTPStreamConfig{MaxRequestBodySize: s.MaxMessageSize, PingPongConfig: ping}),
		sse:        centrifuge.NewSSEHandler(node, centrifuge.SSEConfig{MaxRequestBodySize: s.MaxMessageSize, PingPongConfig: ping}),
		emulation:  centrifuge.NewEmulationHandler(node, centrifuge.EmulationConfig{MaxRequestBodySize: s.MaxMessageSize}),
	}
}

// Handler serves the clients' side under /connection/: websocket, http_stream, sse, and emulation, by
// which clients of the latter two send. Mount it at the root of a host or behind http.StripPrefix, and
// keep the query out of access logs: an SSE client's holds its token. The server's read and write
// timeouts do not cut the streams. A gateway that does not serve answers 404.
func (g *Gateway) Handler() http.Handler {
	mux := http.NewServeMux()
	if !g.settings.Serve {
		return mux
	}
	mux.Handle("GET /connection/websocket", g.door(func(l *live, w http.ResponseWriter, r *http.Request) {
		g.stream(w, func(w http.ResponseWriter) { l.endpoints.websocket.ServeHTTP(w, r) })
	}))
	mux.Handle("POST /connection/http_stream", g.door(func(l *live, w http.ResponseWriter, r *http.Request) {
		g.httpStream(l.endpoints.httpStream, w, r)
	}))
	mux.Handle("GET /connection/sse", g.door(func(l *live, w http.ResponseWriter, r *http.Request) {
		g.httpStream(l.endpoints.sse, w, r)
	}))
	mux.Handle("POST /connection/emulation", g.door(func(l *live, w http.ResponseWriter, r *http.Request) {
		l.endpoints.emulation.ServeHTTP(w, r)
	}))
	mux.HandleFunc("OPTIONS /connection/", g.preflight)
	return mux
}

// door lets through who may come from where they come, while the gateway is running.
func (g *Gateway) door(next func(l *live, w http.ResponseWriter, r *http.Request)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !g.allowOrigin(w, r) {
			g.refused.Add(1)
			http.Error(w, "origin not allowed", http.StatusForbidden)
			return
		}
		l := g.live.Load()
		if l == nil {
			w.Header().Set("Retry-After", "1")
			http.Error(w, "gateway is not ready", http.StatusServiceUnavailable)
			return
		}
		next(l, w, r)
	})
}

func (g *Gateway) preflight(w http.ResponseWriter, r *http.Request) {
	if !g.allowOrigin(w, r) {
		http.Error(w, "origin not allowed", http.StatusForbidden)
		return
	}
	w.Header().Set("Access-Control-Allow-Methods", "GET, POST, OPTIONS")
	w.Header().Set("Access-Control-Allow-Headers", "Content-Type")
	w.Header().Set("Access-Control-Max-Age", "300")
	w.WriteHeader(http.StatusNoContent)
}

// allowOrigin decides about the Origin header: none is not a browser, the server's own host is its own
// page, everything else must be on the list. No cookie is ever looked at, so credentials need no CORS.
func (g *Gateway) allowOrigin(w http.ResponseWriter, r *http.Request) bool {
	values := r.Header.Values("Origin")
	if len(values) == 0 {
		return true
	}
	if len(values) > 1 {
		return false
	}
	origin := values[0]
	w.Header().Add("Vary", "Origin")
	if !g.origins["*"] && !g.origins[strings.ToLower(origin)] {
		u, err := url.Parse(origin)
		return err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host)
	}
	w.Header().Set("Access-Control-Allow-Origin", origin)
	return true
}

// stream serves one connection within the limit on open ones.
func (g *Gateway) stream(w http.ResponseWriter, serve func(http.ResponseWriter)) {
	if g.open.Add(1) > int64(g.settings.MaxConnections) {
		g.open.Add(-1)
		g.refused.Add(1)
		w.Header().Set("Retry-After", "5")
		http.Error(w, "too many connections", http.StatusServiceUnavailable)
		return
	}
	slot := &slot{gateway: g}
	g.opened.Add(1)
	hw := &hijackable{ResponseWriter: w, slot: slot}
	serve(hw)
	if !hw.taken.Load() {
		slot.release()
	}
}

// httpStream serves a stream over a plain response. It takes the body before it lifts the deadline that
// the server set for reading the request, which would end the stream; centrifuge sets its own for writes.
func (g *Gateway) httpStream(next http.Handler, w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTimeout)) // a writer that has no deadlines has none to lift
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(g.settings.MaxMessageSize)))
	if err != nil {
		status := http.StatusBadRequest
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			status = http.StatusRequestEntityTooLarge
		}
		http.Error(w, "cannot read the body", status)
		return
	}
	_ = r.Body.Close()
	r.Body = io.NopCloser(bytes.NewReader(body))
	_ = rc.SetReadDeadline(time.Time{})
	g.stream(w, func(http.ResponseWriter) { next.ServeHTTP(w, r) })
}

// slot is one of the connections that may be open at once.
type slot struct {
	gateway *Gateway
	once    sync.Once
}

func (s *slot) release() {
	s.once.Do(func() {
		s.gateway.open.Add(-1)
		s.gateway.closed.Add(1)
	})
}

// hijackable passes the slot on to the connection when it is taken over: the WebSocket handler returns
// long before its connection ends.
type hijackable struct {
	http.ResponseWriter
	slot  *slot
	taken atomic.Bool
}

// Unwrap serves http.ResponseController.
func (h *hijackable) Unwrap() http.ResponseWriter { return h.ResponseWriter }

// Hijack implements http.Hijacker.
func (h *hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	h.taken.Store(true)
	return &slotConn{Conn: conn, slot: h.slot}, rw, nil
}

type slotConn struct {
	net.Conn
	slot *slot
	told atomic.Bool
}

// Write implements net.Conn. What is written once the gateway closes ends with the notice of it, and a client
// that does not answer that within farewell is cut: the library would wait 5 s, which may be more than Close has.
func (c *slotConn) Write(p []byte) (int, error) {
	if c.slot.gateway.leaving.Load() && c.told.CompareAndSwap(false, true) {
		time.AfterFunc(farewell, func() { _ = c.Close() })
	}
	return c.Conn.Write(p)
}

// Close closes the connection and gives its slot back.
func (c *slotConn) Close() error {
	c.slot.release()
	return c.Conn.Close()
}
