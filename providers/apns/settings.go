package apns

import (
	"bytes"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/sideshow/apns2/certificate"
	"github.com/sideshow/apns2/token"

	"github.com/carillon-notify/carillon/providers/pool"
)

const (
	endpointProduction  = "https://api.push.apple.com"
	endpointDevelopment = "https://api.sandbox.push.apple.com"
	defaultTimeout      = 10 * time.Second
)

// poolDefaults are few connections: Apple wants them kept open and takes a burst of new ones for an
// attack. One stays open, since a lone message should not wait for a handshake. Streams are below the
// 1,000 that APNs has long announced, so that none is refused.
func poolDefaults() pool.Config {
	return pool.Defaults(pool.Config{Max: 4, Idle: 1, IdleTimeout: 10 * time.Minute, MaxLifetime: 12 * time.Hour, Streams: 500})
}

// settings is the settings object as it is written.
type settings struct {
	Endpoint     string      `json:"endpoint"`
	Topic        string      `json:"topic"`
	KeyFile      string      `json:"key_file"`
	Key          string      `json:"key"`
	KeyID        string      `json:"key_id"`
	TeamID       string      `json:"team_id"`
	CertFile     string      `json:"cert_file"`
	CertPassword string      `json:"cert_password"`
	CAFile       string      `json:"ca_file"`
	Timeout      string      `json:"timeout"`
	Pool         pool.Config `json:"pool"`
}

// config is what the settings come to.
type config struct {
	host    string // "https://api.push.apple.com", as apns2 takes it
	addr    string // host:port
	topic   string
	timeout time.Duration
	tls     *tls.Config
	token   *token.Token // nil with a certificate
	expires time.Time    // of the certificate; zero without one
	pool    pool.Config
}

func readSettings(raw []byte) (*config, error) {
	s := settings{Endpoint: endpointProduction, Timeout: defaultTimeout.String(), Pool: poolDefaults()}
	if len(bytes.TrimSpace(raw)) > 0 {
		d := json.NewDecoder(bytes.NewReader(raw))
		d.DisallowUnknownFields()
		if err := d.Decode(&s); err != nil {
			return nil, settingsError(err)
		}
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			return nil, errors.New("settings must be one JSON object")
		}
	}
	c := &config{topic: s.Topic, pool: s.Pool, tls: &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}}}
	var err error
	if c.timeout, err = time.ParseDuration(s.Timeout); err != nil || c.timeout < 100*time.Millisecond || c.timeout > 5*time.Minute {
		return nil, errors.New(`timeout must be a duration from "100ms" to "5m"`)
	}
	if err := c.endpoint(s.Endpoint); err != nil {
		return nil, err
	}
	if s.CAFile != "" {
		if err := c.trust(s.CAFile); err != nil {
			return nil, err
		}
	}
	if err := c.credentials(&s); err != nil {
		return nil, err
	}
	if c.topic == "" {
		return nil, errors.New("topic is missing: set it to the app's bundle id")
	}
	if strings.ContainsAny(c.topic, " /\\:") || !printable(c.topic) || len(c.topic) > 255 {
		return nil, errors.New("topic must be a bundle id such as com.example.app")
	}
	return c, nil
}

// settingsError keeps encoding/json from repeating a value, which may be a secret.
func settingsError(err error) error {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return fmt.Errorf("%s must be a %s", wrong.Field, wrong.Type)
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("settings are not valid JSON")
	}
	return fmt.Errorf("read settings: %w", err)
}

func (c *config) endpoint(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("endpoint must be https://host or https://host:port, such as " + endpointProduction)
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	c.host, c.addr = "https://"+u.Host, net.JoinHostPort(u.Hostname(), port)
	c.tls.ServerName = u.Hostname()
	return nil
}

func (c *config) trust(file string) error {
	pem, err := os.ReadFile(file) //nolint:gosec // the operator names it
	if err != nil {
		return fmt.Errorf("read ca_file: %w", err)
	}
	c.tls.RootCAs = x509.NewCertPool()
	if !c.tls.RootCAs.AppendCertsFromPEM(pem) {
		return fmt.Errorf("ca_file %s holds no certificate in PEM", file)
	}
	return nil
}

func (c *config) credentials(s *settings) error {
	key := s.Key != "" || s.KeyFile != ""
	switch {
	case key && s.CertFile != "":
		return errors.New("give either a key or cert_file, not both")
	case s.Key != "" && s.KeyFile != "":
		return errors.New("give either key or key_file, not both")
	case s.CertFile != "":
		return c.certificate(s)
	case key:
		return c.key(s)
	}
	return errors.New("credentials are missing: set key_file, key_id and team_id, or cert_file")
}

func (c *config) key(s *settings) error {
	pem, name := []byte(s.Key), "key"
	if s.KeyFile != "" {
		var err error
		if pem, err = os.ReadFile(s.KeyFile); err != nil {
			return fmt.Errorf("read key_file: %w", err)
		}
		name = "key_file"
	}
	if s.KeyID == "" || s.TeamID == "" {
		return errors.New("key_id and team_id are required with a key")
	}
	if !printable(s.KeyID) || !printable(s.TeamID) {
		return errors.New("key_id and team_id must be the ids that Apple shows, such as ABC123DEFG")
	}
	k, err := token.AuthKeyFromBytes(pem)
	if err != nil {
		return fmt.Errorf("%s is not a signing key as Apple gives it (PEM, PKCS #8, ECDSA)", name)
	}
	if k.Curve != elliptic.P256() {
		return fmt.Errorf("%s is on the curve %s and APNs wants P-256", name, k.Curve.Params().Name)
	}
	c.token = &token.Token{AuthKey: k, KeyID: s.KeyID, TeamID: s.TeamID}
	return nil
}

func (c *config) certificate(s *settings) error {
	raw, err := os.ReadFile(s.CertFile)
	if err != nil {
		return fmt.Errorf("read cert_file: %w", err)
	}
	cert, err := parseCertificate(raw, s.CertPassword)
	if err != nil {
		return fmt.Errorf("cert_file %s: %w", s.CertFile, err)
	}
	c.tls.Certificates = []tls.Certificate{cert}
	if cert.Leaf == nil {
		return fmt.Errorf("cert_file %s: its certificate cannot be parsed", s.CertFile)
	}
	c.expires = cert.Leaf.NotAfter
	if c.topic == "" {
		c.topic = subjectTopic(cert.Leaf)
	}
	return nil
}

// parseCertificate reads PEM, the private key plain or encrypted, or PKCS #12. Its errors come without
// the libraries' own, which say nothing an operator could act on.
func parseCertificate(raw []byte, password string) (tls.Certificate, error) {
	if !bytes.Contains(raw, []byte("-----BEGIN")) {
		cert, err := certificate.FromP12Bytes(raw, password)
		if err != nil {
			return cert, errors.New("it is neither PEM nor a PKCS #12 file that cert_password opens")
		}
		return cert, nil
	}
	if cert, err := tls.X509KeyPair(raw, raw); err == nil {
		return cert, nil
	}
	cert, err := certificate.FromPemBytes(raw, password)
	if err != nil {
		return cert, errors.New("it does not hold a certificate with its private key that cert_password opens")
	}
	return cert, nil
}

// uid is the subject attribute in which Apple's push certificates carry the bundle id (RFC 4519, 2.39).
var uid = asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}

func subjectTopic(leaf *x509.Certificate) string {
	for _, name := range leaf.Subject.Names {
		if s, ok := name.Value.(string); ok && name.Type.Equal(uid) {
			return s
		}
	}
	return ""
}
