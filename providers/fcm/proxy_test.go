package fcm_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/providers"
)

// TestProxy reaches FCM through the proxy of the environment, which asks for a password. The certificate
// of the test's server is good for example.com, which is not asked.
func TestProxy(t *testing.T) {
	g := startGoogle(t)
	var asked atomic.Pointer[http.Request]
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r)
		if r.Header.Get("Proxy-Authorization") != "Basic dXNlcjpwYXNz" { // user:pass
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		up, err := net.Dial("tcp", g.Listener.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		w.WriteHeader(http.StatusOK)
		down, early, err := http.NewResponseController(w).Hijack() // the client may have begun already
		if err != nil {
			t.Error(err)
			return
		}
		go func() { _, _ = io.Copy(up, early); _ = up.Close() }()
		go func() { _, _ = io.Copy(down, up); _ = down.Close() }()
	}))
	defer proxy.Close()
	for name, user := range map[string]*url.Userinfo{"password": url.UserPassword("user", "pass"), "no password": nil} {
		t.Run(name, func(t *testing.T) {
			at := url.URL{Scheme: "http", User: user, Host: proxy.Listener.Addr().String()}
			t.Setenv("HTTPS_PROXY", at.String())
			p := g.open(map[string]any{"endpoint": "https://example.com"})
			var got []providers.Outcome
			if err := p.Deliver(context.Background(), batchOf(1), func(r providers.Result) { got = append(got, r.Outcome) }); err != nil {
				t.Fatal(err)
			}
			want := []providers.Outcome{providers.Accepted}
			if user == nil {
				want = []providers.Outcome{providers.Deferred} // it was not sent
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if r := asked.Load(); r == nil || r.Method != http.MethodConnect || r.Host != "example.com:443" {
				t.Errorf("the proxy was asked for %+v", r)
			}
		})
	}
}
