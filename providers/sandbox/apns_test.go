package sandbox_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	"golang.org/x/net/http2"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

const (
	device  = "00fc13adff785122b4ad28809a3420982341241421348097878e577c991de8f0"
	payload = `{"aps":{"alert":{"title":"Hi","body":"there"}},"order":7}`
)

// start runs a sandbox for one test.
func start(t testing.TB, o sandbox.Options) *sandbox.Sandbox {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	s, err := sandbox.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("sandbox seed %d", s.Seed())
		}
	})
	return s
}

func trust(t testing.TB, s *sandbox.Sandbox) *tls.Config {
	t.Helper()
	pem, err := os.ReadFile(s.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate in the CA file")
	}
	return &tls.Config{RootCAs: pool}
}

// h2 is an HTTP/2 client with connections of its own.
func h2(t testing.TB, s *sandbox.Sandbox) *http.Client {
	t.Helper()
	tr := &http2.Transport{TLSClientConfig: trust(t, s)}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

func providerToken(t testing.TB, s *sandbox.Sandbox, change func(*jwt.Token)) string {
	t.Helper()
	pem, err := os.ReadFile(s.KeyFile())
	if err != nil {
		t.Fatal(err)
	}
	key, err := jwt.ParseECPrivateKeyFromPEM(pem)
	if err != nil {
		t.Fatal(err)
	}
	tok := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"iss": sandbox.TeamID, "iat": time.Now().Unix()})
	tok.Header["kid"] = sandbox.KeyID
	if change != nil {
		change(tok)
	}
	signed, err := tok.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// pushRequest is a good push with a new id; header lines "name: value" are laid over it, an empty value
// removes the field.
func pushRequest(ctx context.Context, t testing.TB, s *sandbox.Sandbox, token string, header ...string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.APNsURL()+"/3/device/"+device, strings.NewReader(payload))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range append([]string{
		"authorization: bearer " + token, "apns-id: " + uuid.NewString(), "apns-topic: " + sandbox.Topic,
		"apns-push-type: alert", "apns-priority: 10", "apns-expiration: 0",
	}, header...) {
		name, value, _ := strings.Cut(line, ": ")
		if value == "" {
			r.Header.Del(name)
		} else {
			r.Header.Set(name, value)
		}
	}
	return r
}

type answer struct {
	Status    int
	Reason    string
	Timestamp int64
	Header    http.Header `json:"-"`
	Body      string      `json:"-"`
}

func do(t testing.TB, c *http.Client, r *http.Request) (answer, error) {
	t.Helper()
	resp, err := c.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}
	var a answer
	if bytes.HasPrefix(body, []byte("{")) {
		if err := json.Unmarshal(body, &a); err != nil {
			return answer{}, fmt.Errorf("body %q: %w", body, err)
		}
	}
	a.Status, a.Header, a.Body = resp.StatusCode, resp.Header, string(body)
	return a, nil
}

func TestAPNsTakesAPush(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	r := pushRequest(t.Context(), t, s, providerToken(t, s, nil))
	a, err := do(t, h2(t, s), r)
	if err != nil {
		t.Fatal(err)
	}
	id := r.Header.Get("apns-id")
	if a.Status != 200 || a.Header.Get("apns-id") != id || a.Body != "" {
		t.Errorf("answered %+v", a)
	}
	m := s.Messages(sandbox.Filter{Service: sandbox.APNs, ID: id})
	if len(m) != 1 {
		t.Fatalf("%d messages", len(m))
	}
	if m[0].Title != "Hi" || m[0].Content != payload || m[0].Address != device || m[0].Answered != "200" || m[0].Copy != 1 ||
		m[0].Headers["apns-topic"] != sandbox.Topic {
		t.Errorf("ledger has %+v", m[0])
	}
	if _, leaked := m[0].Headers["authorization"]; leaked {
		t.Error("the ledger shows the provider token")
	}
}
