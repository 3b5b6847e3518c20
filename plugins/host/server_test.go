package host_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/carillon-notify/carillon/plugins/providerv1"
	"github.com/carillon-notify/carillon/providers"
)

// gateway serves a plugin's own clients, as an orchestrator does.
func gateway(t *testing.T) (p providers.Provider, url string) {
	t.Helper()
	p = open(t, spec(t, "server"), `{}`)
	s, ok := p.(providers.Server)
	if !ok {
		t.Fatal("the provider serves nobody")
	}
	front := httptest.NewServer(s.Handler())
	t.Cleanup(front.Close)
	return p, front.URL
}

func get(t *testing.T, url string) (status int, header http.Header, body map[string]string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Forwarded-For", "198.51.100.7") // anybody can say that
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
			t.Fatal(err)
		}
	}
	return resp.StatusCode, resp.Header, body
}

func TestProxy(t *testing.T) {
	t.Parallel()
	p, url := gateway(t)
	status, header, body := get(t, url+"/connection/about?a=1;b=%2F")
	if status != http.StatusOK || body["host"] != strings.TrimPrefix(url, "http://") || body["for"] != "127.0.0.1" || body["proto"] != "http" || body["query"] != "a=1;b=%2F" {
		t.Errorf("%d %v %v", status, header, body)
	}
	pid := pidOf(t, p)
	kill(t, pid, syscall.SIGKILL)
	eventually(t, "another process serves", func() bool {
		status, header, _ := get(t, url+"/connection/about")
		switch status {
		case http.StatusOK:
			return header.Get("Pid") != fmt.Sprint(pid)
		case http.StatusServiceUnavailable:
			if header.Get("Retry-After") == "" {
				t.Error("it does not say when to come again")
			}
		default:
			t.Fatalf("meanwhile it answers %d", status)
		}
		return false
	})
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if status, _, _ := get(t, url+"/connection/about"); status != http.StatusServiceUnavailable {
		t.Errorf("after its end it answers %d", status)
	}
}

// TestProxyStreams passes on each part as it comes, both ways, and a broken answer as broken.
func TestProxyStreams(t *testing.T) {
	t.Parallel()
	_, url := gateway(t)
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	in, out := io.Pipe()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/connection/stream", in)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for _, say := range []string{"one", "two", "three"} {
		if _, err := fmt.Fprintln(out, say); err != nil {
			t.Fatal(err)
		}
		if !lines.Scan() || lines.Text() != strings.ToUpper(say) {
			t.Fatalf("%q is answered %q: %v", say, lines.Text(), lines.Err())
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if lines.Scan() {
		t.Errorf("after the end comes %q", lines.Text())
	}
	resp, err = http.Get(url + "/connection/break")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("an answer that broke off is whole: %q", b)
	}
}

// TestProxyWebsocket keeps a connection open through the proxy; it ends with its process, and the next one
// is with the next process.
func TestProxyWebsocket(t *testing.T) {
	t.Parallel()
	p, url := gateway(t)
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	pid := pidOf(t, p)
	for range 2 {
		conn, _, err := websocket.Dial(ctx, url+"/connection/websocket", &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {url}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, say := range []string{"hello", strings.Repeat("x", 30_000)} {
			if err := conn.Write(ctx, websocket.MessageText, []byte(say)); err != nil {
				t.Fatal(err)
			}
			if _, got, err := conn.Read(ctx); err != nil || string(got) != fmt.Sprintf("%d: %s", pid, say) {
				t.Fatalf("answered %.50q: %v", got, err)
			}
		}
		kill(t, pid, syscall.SIGKILL)
		if _, _, err := conn.Read(ctx); err == nil || ctx.Err() != nil {
			t.Errorf("the connection outlived its process: %v", err)
		}
		_ = conn.CloseNow()
		old := pid
		eventually(t, "another process", func() bool { pid = pidOf(t, p); return pid != old })
	}
	if _, resp, err := websocket.Dial(ctx, url+"/connection/websocket", &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {"https://elsewhere.test"}}}); err == nil || resp == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("another origin: %v", err)
	}
}

// TestProxyUpgradeEnds closes a client's connection whole when its process is gone, though the client does
// not close its side: it would hold the connection for ever.
func TestProxyUpgradeEnds(t *testing.T) {
	t.Parallel()
	p := open(t, spec(t, "server"), `{}`)
	served := make(chan struct{})
	handler := p.(providers.Server).Handler()
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(served)
		handler.ServeHTTP(w, r)
	}))
	defer front.Close()
	conn, err := net.Dial("tcp", front.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprint(conn, "GET /connection/websocket HTTP/1.1\r\nHost: front\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	kill(t, pidOf(t, p), syscall.SIGKILL)
	select {
	case <-served:
	case <-time.After(patient):
		t.Error("the connection is held open")
	}
}

// TestStranger knocks at a plugin's socket without the host's certificate.
func TestStranger(t *testing.T) {
	t.Parallel()
	base, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	s := spec(t, "obedient")
	s.Dir = base
	open(t, s, `{}`)
	sockets, err := filepath.Glob(filepath.Join(base, "*", "plugin*"))
	if err != nil {
		t.Fatal(err)
	}
	var socket string
	for _, path := range sockets {
		if info, err := os.Stat(path); err == nil && info.Mode().Type() == os.ModeSocket {
			socket = path
		}
	}
	if socket == "" {
		t.Fatalf("there is no socket: %v", sockets)
	}
	for name, creds := range map[string]credentials.TransportCredentials{
		"no TLS":         insecure.NewCredentials(),
		"no certificate": credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}),
		"another one":    credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{ownCert(t)}}),
	} {
		conn, err := grpc.NewClient("passthrough:///plugin", grpc.WithTransportCredentials(creds), grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patient)
		_, err = providerv1.NewProviderClient(conn).Health(ctx, &providerv1.HealthRequest{})
		if err == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

// ownCert is a certificate that nobody asked for.
func ownCert(t *testing.T) tls.Certificate {
	t.Helper()
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	defer s.Close()
	return s.TLS.Certificates[0]
}
