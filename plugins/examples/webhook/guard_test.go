package main

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

func TestGuard(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		to, allow string
		want      bool
	}{
		{"93.184.215.14:443", "", true},
		{"93.184.215.14:80", "", true},
		{"93.184.215.14:8443", "", false},
		{"93.184.215.14:22", "", false},
		{"[2606:2800:21f:cb07:6820:80da:af6b:8b2c]:443", "", true},
		{"[2606:2800:21f:cb07:6820:80da:af6b:8b2c]:8443", "", false},
		{"0.0.0.0:443", "", false},
		{"10.1.2.3:443", "", false},
		{"100.64.0.1:443", "", false},
		{"127.0.0.1:443", "", false},
		{"127.255.255.254:443", "", false},
		{"169.254.169.254:80", "", false}, // metadata services
		{"168.63.129.16:80", "", false},
		{"172.16.0.1:443", "", false},
		{"172.31.255.255:443", "", false},
		{"172.32.0.1:443", "", true},
		{"192.0.0.192:80", "", false},
		{"192.0.2.1:443", "", false},
		{"192.88.99.1:443", "", false},
		{"192.168.1.1:443", "", false},
		{"198.19.255.1:443", "", false},
		{"198.51.100.1:443", "", false},
		{"203.0.113.1:443", "", false},
		{"224.0.0.1:443", "", false},
		{"240.0.0.1:443", "", false},
		{"255.255.255.255:443", "", false},
		{"[::]:443", "", false},
		{"[::1]:443", "", false},
		{"[::127.0.0.1]:443", "", false},
		{"[::ffff:127.0.0.1]:443", "", false},
		{"[::ffff:93.184.215.14]:443", "", true},
		{"[64:ff9b::7f00:1]:443", "", false},
		{"[64:ff9b:1::1]:443", "", false},
		{"[100::1]:443", "", false},
		{"[2001::1]:443", "", false},
		{"[2001:20::1]:443", "", false},
		{"[2001:db8::1]:443", "", false},
		{"[2001:4860:4860::8888]:443", "", true},
		{"[2002:7f00:1::1]:443", "", false},
		{"[3fff::1]:443", "", false},
		{"[5f00::1]:443", "", false},
		{"[fc00::1]:443", "", false},
		{"[fd00:ec2::254]:80", "", false},
		{"[fe80::1]:443", "", false},
		{"[fe80::1%lo]:443", "", false},
		{"[fec0::1]:443", "", false},
		{"[ff02::1]:443", "", false},
		{"10.1.2.3:8443", "10.1.0.0/16", true},
		{"10.2.2.3:8443", "10.1.0.0/16", false},
		{"10.1.2.3:443", "10.1.2.99/16", true}, // the bits of a host do not matter
		{"[::ffff:10.1.2.3]:443", "10.1.0.0/16", true},
		{"[fe80::1%lo]:443", "fe80::/10", true},
		{"[fd00::1]:9443", "fd00::/8", true},
		{"[64:ff9b::5db8:d70e]:443", "64:ff9b::/96", true},
	} {
		var allow []string
		if tt.allow != "" {
			allow = []string{tt.allow}
		}
		g, err := newGuard(allow)
		if err != nil {
			t.Fatal(err)
		}
		if got := g.permits(netip.MustParseAddrPort(tt.to)); got != tt.want {
			t.Errorf("to %s with allow %q: %t, want %t", tt.to, tt.allow, got, tt.want)
		}
		if err := g.control(t.Context(), "tcp", tt.to, nil); (err == nil) != tt.want {
			t.Errorf("dialling %s with allow %q: %v", tt.to, tt.allow, err)
		}
	}
	if err := (&guard{}).control(t.Context(), "tcp", "no address", nil); err == nil {
		t.Error("an address that cannot be read was let through")
	}
}

// TestForbidden: nothing connects to an address that is not allowed, whatever it is called.
func TestForbidden(t *testing.T) {
	t.Parallel()
	var connected atomic.Int64
	s := receiver(t, func(http.ResponseWriter, *http.Request) {}, func(http.ConnState) { connected.Add(1) })
	port := s.URL[strings.LastIndex(s.URL, ":")+1:]
	p := opened(t, settingsFor(t, s, map[string]any{"allow": []string{}}))
	for _, url := range []string{s.URL, "https://localhost:" + port, "https://[::ffff:127.0.0.1]:" + port, "https://[::ffff:7f00:1]:" + port, "https://93.184.215.14:8443"} {
		m := message(url + "/" + token)
		got, err := deliver(t, p, 30*time.Second, m)
		if r := got[m.ID]; err != nil || r.Outcome != providers.Rejected || r.Code != "address" {
			t.Errorf("%s: %+v, %v", url, r, err)
		}
	}
	if n := connected.Load(); n > 0 {
		t.Errorf("%d connections were made", n)
	}
}

// TestNoProxy: a proxy named in the environment would connect for us, past the guard.
func TestNoProxy(t *testing.T) {
	var asked atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer proxy.Close()
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "ALL_PROXY"} {
		t.Setenv(name, proxy.URL)
	}
	s := receiver(t, func(http.ResponseWriter, *http.Request) {}, nil)
	p := opened(t, settingsFor(t, s, nil))
	m := message("https://93.184.215.14:8443/" + token) // is refused if we connect ourselves
	if got, err := deliver(t, p, 30*time.Second, m); err != nil || got[m.ID].Code != "address" {
		t.Error(got, err)
	}
	if asked.Load() > 0 {
		t.Error("the proxy was asked")
	}
}
