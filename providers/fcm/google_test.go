package fcm_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/fcm"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

// google is FCM and its token endpoint on one HTTP/2 server, for answers that have to be exact to the
// byte; the faults of a whole service come from the sandbox.
type google struct {
	*httptest.Server
	t     testing.TB
	dir   string
	conns atomic.Int64 // opened

	mu       sync.Mutex
	requests []request
	grants   int
	answer   func(w http.ResponseWriter, r request)
	grant    func(w http.ResponseWriter, n int)
}

// request is a message that arrived.
type request struct {
	n       int // from 1
	proto   string
	header  http.Header
	dryRun  bool
	id      string
	message map[string]any
	conn    net.Conn
	ctx     context.Context
}

type connKey struct{}

func startGoogle(t testing.TB) *google { return startGoogleWith(t, func(*http.Server) {}) }

func startGoogleWith(t testing.TB, configure func(*http.Server)) *google {
	g := &google{t: t, dir: t.TempDir()}
	g.answer = func(w http.ResponseWriter, r request) {
		fmt.Fprintf(w, `{"name":"projects/acme/messages/%d"}`, r.n)
	}
	g.grant = func(w http.ResponseWriter, n int) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":"access-%d","token_type":"Bearer","expires_in":3600}`, n)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/projects/acme/messages:send", g.send)
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		g.grants++
		n, grant := g.grants, g.grant
		g.mu.Unlock()
		if r.FormValue("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" || strings.Count(r.FormValue("assertion"), ".") != 2 {
			http.Error(w, `{"error":"invalid_grant"}`, http.StatusBadRequest)
			return
		}
		grant(w, n)
	})
	g.Server = httptest.NewUnstartedServer(mux)
	g.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes that a client gave up
	g.EnableHTTP2 = true
	g.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		g.conns.Add(1)
		return context.WithValue(ctx, connKey{}, c)
	}
	configure(g.Config)
	g.StartTLS()
	t.Cleanup(func() { g.CloseClientConnections(); g.Close() })
	g.write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.Certificate().Raw}))
	g.write("account.json", g.account(nil))
	return g
}

func (g *google) send(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client went away
	}
	var body struct {
		ValidateOnly bool `json:"validate_only"`
		Message      map[string]any
	}
	if err := json.Unmarshal(b, &body); err != nil {
		g.t.Errorf("the request is not JSON: %v", err)
	}
	data, _ := body.Message["data"].(map[string]any)
	id, _ := data["delivery_id"].(string)
	conn, _ := r.Context().Value(connKey{}).(net.Conn)
	g.mu.Lock()
	got := request{n: len(g.requests) + 1, proto: r.Proto, header: r.Header, dryRun: body.ValidateOnly, id: id, message: body.Message, conn: conn, ctx: r.Context()}
	g.requests = append(g.requests, got)
	answer := g.answer
	g.mu.Unlock()
	answer(w, got)
}

func (g *google) got() []request {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.requests)
}

func (g *google) granted() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.grants
}

func (g *google) answers(f func(w http.ResponseWriter, r request)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answer = f
}

func (g *google) write(name string, b []byte) {
	if err := os.WriteFile(filepath.Join(g.dir, name), b, 0o600); err != nil {
		g.t.Fatal(err)
	}
}

var signingKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

// account is a service account's key file, its members changed by with.
func (g *google) account(with map[string]string) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(signingKey())
	if err != nil {
		g.t.Fatal(err)
	}
	m := map[string]string{
		"type": "service_account", "project_id": "acme", "private_key_id": "1",
		"private_key":  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		"client_email": "sender@acme.iam.gserviceaccount.com", "token_uri": g.URL + "/token",
	}
	for k, v := range with {
		m[k] = v
	}
	b, err := json.Marshal(m)
	if err != nil {
		g.t.Fatal(err)
	}
	return b
}

// settings point at g, changed by with.
func (g *google) settings(with map[string]any) []byte {
	m := map[string]any{"credentials_file": filepath.Join(g.dir, "account.json"), "endpoint": g.URL, "ca_file": filepath.Join(g.dir, "ca.pem")}
	for k, v := range with {
		m[k] = v
	}
	b, err := json.Marshal(m)
	if err != nil {
		g.t.Fatal(err)
	}
	return b
}

func (g *google) open(with map[string]any) providers.Provider {
	return openWith(g.t, g.settings(with))
}

func openWith(t testing.TB, settings []byte) providers.Provider {
	t.Helper()
	return sandboxtest.Open(t, fcm.Kind(), settings)
}

// batchOf makes n live messages.
func batchOf(n int) []providers.Message {
	out := make([]providers.Message, n)
	for i := range out {
		out[i] = *message(func(m *providers.Message) {
			m.ID = fmt.Sprintf("01998a3e-5b1c-7d00-8000-%012d", i)
			m.Address = fmt.Sprintf("fcm-token-%06d", i)
			m.CreatedAt = time.Now()
			m.ExpiresAt = m.CreatedAt.Add(time.Hour)
		})
	}
	return out
}
