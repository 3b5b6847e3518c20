package redistls_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/providers/redistls"
)

// TestConfig: what is configured trusts the authorities of ca_file alone, holds the server to the name that is dialled, and
// speaks nothing older than TLS 1.2.
func TestConfig(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = nil
	server.StartTLS()
	t.Cleanup(server.Close)
	file := func(name, text string) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca := file("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	cert := server.TLS.Certificates[0]
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	key := file("key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	for name, tc := range map[string]struct {
		query, host, refused string
		certificates         int
	}{
		"its authority":  {query: "ca_file=" + ca, host: "127.0.0.1"},
		"and ours":       {query: "ca_file=" + ca + "&cert_file=" + ca + "&key_file=" + key, host: "127.0.0.1", certificates: 1},
		"the system's":   {query: "", host: "127.0.0.1", refused: "unknown authority"},
		"another's name": {query: "ca_file=" + ca, host: "redis.internal", refused: "not redis.internal"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			query, err := url.ParseQuery(tc.query)
			if err != nil {
				t.Fatal(err)
			}
			c, err := redistls.Config(query)
			if err != nil {
				t.Fatal(err)
			}
			if c.MinVersion != tls.VersionTLS12 || c.InsecureSkipVerify || len(c.Certificates) != tc.certificates {
				t.Errorf("version %x, not verified %t, %d certificates", c.MinVersion, c.InsecureSkipVerify, len(c.Certificates))
			}
			c.ServerName = tc.host
			conn, err := tls.Dial("tcp", server.Listener.Addr().String(), c)
			if err == nil {
				conn.Close()
			}
			if (err != nil) != (tc.refused != "") || err != nil && !strings.Contains(err.Error(), tc.refused) {
				t.Errorf("dial: %v, want %q", err, tc.refused)
			}
		})
	}
	for query, want := range map[string]string{
		"ca_file=/no/such.pem":                   "read ca_file: open /no/such.pem",
		"ca_file=" + key:                         "holds no certificate",
		"cert_file=" + ca:                        "go together",
		"key_file=" + key:                        "go together",
		"cert_file=" + ca + "&key_file=/no/such": "read cert_file and key_file: open /no/such",
		"cert_file=" + key + "&key_file=" + key:  "read cert_file and key_file",
	} {
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := redistls.Config(values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", query, err, want)
		}
	}
}
