package host

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"

	"github.com/carillon-notify/carillon/providers"
)

// server is a Process whose provider serves clients of its own. It implements providers.Server.
type server struct{ *Process }

var (
	_ providers.Provider = (*Process)(nil)
	_ providers.Receiver = (*Process)(nil)
	_ providers.Server   = (*server)(nil)
)

var errDown = errors.New("the plugin does not run")

// Handler implements providers.Server: a proxy to wherever the process that runs now serves.
func (s *server) Handler() http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "plugin"
			r.Out.Host = r.In.Host // what an Origin is compared with
			r.SetXForwarded()
		},
		Transport:     &http.Transport{DialContext: s.dial, DisableCompression: true, MaxIdleConnsPerHost: 16},
		FlushInterval: -1, // streams
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() != nil {
				return // the client went away
			}
			s.log.Debug("a client of the plugin's could not be served", "error", err)
			w.Header().Set("Retry-After", "1")
			http.Error(w, "try again in a moment", http.StatusServiceUnavailable)
		},
	}
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
