package host

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// server is a Process whose provider serves clients of its own. It implements providers.Server.
type server struct{ *Process }

var (
	_ providers.Provider = (*Process)(nil)
	_ providers.Receiver = (*Process)(nil)
	_ providers.Server   = (*server)(nil)
)

// idleTimeout is how long a connection to a plugin's socket is kept for the next request.
const idleTimeout = 30 * time.Second

var errDown = errors.New("the plugin does not run")

// Handler implements providers.Server: a proxy to wherever the process that runs now serves.
func (s *server) Handler() http.Handler {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "plugin"
			r.Out.URL.RawQuery = r.In.URL.RawQuery // as it came, whatever a parser makes of it
			r.Out.Host = r.In.Host                 // what an Origin is compared with
			r.SetXForwarded()
		},
		Transport:     &http.Transport{DialContext: s.dial, DisableCompression: true, MaxIdleConnsPerHost: 16, IdleConnTimeout: idleTimeout},
		FlushInterval: -1, // streams
		ErrorLog:      slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() != nil {
				return // the client went away
			}
			s.log.Debug("a client of the plugin's could not be served", "error", err)
			w.Header().Set("Retry-After", "1")
			http.Error(w, "try again in a moment", http.StatusServiceUnavailable)
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Whether a request is read whole before it is answered is the plugin's server's to say.
		_ = http.NewResponseController(w).EnableFullDuplex()
		proxy.ServeHTTP(whole{w}, r)
	})
}

// whole closes a client's connection that was upgraded as soon as the plugin has closed its side, or has
// ended: the proxy would wait for the client to do the same.
type whole struct{ http.ResponseWriter }

// Unwrap implements what http.ResponseController looks for.
func (w whole) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Hijack implements http.Hijacker.
func (w whole) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	return struct{ net.Conn }{conn}, rw, nil // without CloseWrite
}

func (s *server) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	s.mu.Lock()
	i := s.now
	s.mu.Unlock()
	if i == nil || i.http == "" {
		return nil, errDown
	}
	return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(i.http, "unix:"))
}
