// Package redistls is TLS to a Redis as the parameters of its URL say it: ca_file, cert_file and key_file. It stands below
// the two that have such a URL, core/queue and providers/websocket, which speak to Redis by libraries of their own and may
// not import each other.
package redistls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
)

// Config is TLS 1.2 or newer to a server whose certificate comes from the authorities of ca_file, or of the system where the
// query has none, and names the host that is dialled; with the client's certificate of cert_file and key_file, where
// the query has both. It reads the files. The errors name the parameter and the file, and hold nothing secret.
func Config(query url.Values) (_ *tls.Config, err error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if file := query.Get("ca_file"); file != "" {
		if c.RootCAs, err = authorities(file); err != nil {
			return nil, err
		}
	}
	cert, key := query.Get("cert_file"), query.Get("key_file")
	if cert == "" && key == "" {
		return c, nil
	}
	if cert == "" || key == "" {
		return nil, errors.New("the parameters cert_file and key_file go together")
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("read cert_file and key_file: %w", err)
	}
	c.Certificates = []tls.Certificate{pair}
	return c, nil
}

// authorities are the certificates that a server's has to come from, in place of the system's.
func authorities(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read ca_file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("read ca_file: %s holds no certificate in PEM form", file)
	}
	return pool, nil
}
