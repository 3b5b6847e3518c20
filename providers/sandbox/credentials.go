package sandbox

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// The files of a sandbox's directory.
const (
	caFile             = "ca.pem"
	caKeyFile          = "ca-key.pem"
	authKeyFile        = "AuthKey.p8"
	clientCertFile     = "client.pem"
	serviceAccountFile = "service-account.json"
	addressesFile      = "addresses.json"
)

// credentials are the keys that a sandbox's services and their clients share.
type credentials struct {
	ca         *x509.Certificate
	caKey      *ecdsa.PrivateKey
	apnsKey    *ecdsa.PublicKey
	accountKey *rsa.PrivateKey
}

// accountKey makes the service accounts' RSA key, once a process: it costs a tenth of a second, and
// nothing is gained by telling the sandboxes of one process apart.
var accountKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// loadCredentials reads the keys kept in dir and makes those that are missing.
func loadCredentials(dir string) (*credentials, error) {
	if dir == "" {
		return nil, errors.New("sandbox: Options.Dir is required")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("sandbox: make directory: %w", err)
	}
	c := &credentials{}
	for _, step := range []func(string) error{c.loadCA, c.loadAuthKey, c.loadClientCert, c.loadAccountKey} {
		if err := step(dir); err != nil {
			return nil, fmt.Errorf("sandbox: %w", err)
		}
	}
	return c, nil
}

func (c *credentials) loadCA(dir string) error {
	key, err := loadECKey(filepath.Join(dir, caKeyFile))
	if err != nil {
		return err
	}
	c.caKey = key
	path := filepath.Join(dir, caFile)
	if data, err := os.ReadFile(path); err == nil {
		block, _ := pem.Decode(data)
		if block == nil {
			return fmt.Errorf("%s holds no certificate; remove it to have a new one made", path)
		}
		if c.ca, err = x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("parse %s: %w", path, err)
		}
		if key.PublicKey.Equal(c.ca.PublicKey) && time.Now().Before(c.ca.NotAfter.Add(-24*time.Hour)) {
			return nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read certificate authority: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Carillon sandbox CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return fmt.Errorf("make certificate authority: %w", err)
	}
	if c.ca, err = x509.ParseCertificate(der); err != nil {
		return fmt.Errorf("parse new certificate authority: %w", err)
	}
	return writeFile(path, pemBlock("CERTIFICATE", der))
}

func (c *credentials) loadAuthKey(dir string) error {
	key, err := loadECKey(filepath.Join(dir, authKeyFile))
	if err != nil {
		return err
	}
	c.apnsKey = &key.PublicKey
	return nil
}

// loadClientCert keeps a client certificate that the present CA signed, and else makes one.
func (c *credentials) loadClientCert(dir string) error {
	path := filepath.Join(dir, clientCertFile)
	if pair, err := tls.LoadX509KeyPair(path, path); err == nil && pair.Leaf.CheckSignatureFrom(c.ca) == nil &&
		time.Now().Before(pair.Leaf.NotAfter.Add(-24*time.Hour)) {
		return nil
	}
	// Apple's certificates carry the bundle id as the user id (RFC 4519, section 2.39).
	subject := pkix.Name{CommonName: "Apple Push Services: " + Topic, ExtraNames: []pkix.AttributeTypeAndValue{
		{Type: asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}, Value: Topic}}}
	cert, key, err := c.issue(subject, x509.ExtKeyUsageClientAuth, nil)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode client key: %w", err)
	}
	return writeFile(path, append(pemBlock("CERTIFICATE", cert), pemBlock("PRIVATE KEY", keyDER)...))
}

func (c *credentials) loadAccountKey(dir string) error {
	var account serviceAccount
	path := filepath.Join(dir, serviceAccountFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		c.accountKey, err = accountKey()
		return err
	}
	if err != nil {
		return fmt.Errorf("read service account: %w", err)
	}
	if err := json.Unmarshal(data, &account); err != nil {
		return fmt.Errorf("parse %s (remove it to have a new one made): %w", path, err)
	}
	block, _ := pem.Decode([]byte(account.PrivateKey))
	if block == nil {
		return fmt.Errorf("%s holds no private key; remove it to have a new one made", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return fmt.Errorf("parse key of %s: %w", path, err)
	}
	rsaKey, ok := key.(*rsa.PrivateKey)
	if !ok {
		return fmt.Errorf("the key of %s is no RSA key", path)
	}
	c.accountKey = rsaKey
	return nil
}

// serviceAccount is the JSON that Google Cloud hands out for a service account's key.
type serviceAccount struct {
	Type           string `json:"type"`
	ProjectID      string `json:"project_id"`
	PrivateKeyID   string `json:"private_key_id"`
	PrivateKey     string `json:"private_key"`
	ClientEmail    string `json:"client_email"`
	ClientID       string `json:"client_id"`
	AuthURI        string `json:"auth_uri"`
	TokenURI       string `json:"token_uri"`
	AuthProvider   string `json:"auth_provider_x509_cert_url"`
	ClientCertURL  string `json:"client_x509_cert_url"`
	UniverseDomain string `json:"universe_domain"`
}

// writeServiceAccount writes the service account's JSON, its endpoints below base.
func (c *credentials) writeServiceAccount(dir, base string) error {
	der, err := x509.MarshalPKCS8PrivateKey(c.accountKey)
	if err != nil {
		return fmt.Errorf("encode service account key: %w", err)
	}
	sum := sha256.Sum256(c.accountKey.N.Bytes())
	data, err := json.MarshalIndent(serviceAccount{
		Type: "service_account", ProjectID: Project, PrivateKeyID: hex.EncodeToString(sum[:20]),
		PrivateKey: string(pemBlock("PRIVATE KEY", der)), ClientEmail: clientEmail, ClientID: "100000000000000000001",
		AuthURI: base + "/auth", TokenURI: base + "/token", AuthProvider: base + "/certs",
		ClientCertURL: base + "/certs/sandbox", UniverseDomain: "googleapis.com",
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode service account: %w", err)
	}
	return writeFile(filepath.Join(dir, serviceAccountFile), append(data, '\n'))
}

// serverCert makes a certificate for the servers, anew at each start.
func (c *credentials) serverCert(hosts []string) (tls.Certificate, error) {
	cert, key, err := c.issue(pkix.Name{CommonName: "localhost"}, x509.ExtKeyUsageServerAuth, append([]string{"localhost", "127.0.0.1", "::1"}, hosts...))
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{cert, c.ca.Raw}, PrivateKey: key}, nil
}

func (c *credentials) issue(subject pkix.Name, usage x509.ExtKeyUsage, hosts []string) ([]byte, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key for %s: %w", subject, err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(), Subject: subject,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.ca, &key.PublicKey, c.caKey)
	if err != nil {
		return nil, nil, fmt.Errorf("sign certificate for %s: %w", subject, err)
	}
	return der, key, nil
}

// loadECKey reads a P-256 key in PKCS #8, the form of Apple's .p8 files, or makes one.
func loadECKey(path string) (*ecdsa.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("make key: %w", err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, fmt.Errorf("encode key: %w", err)
		}
		return key, writeFile(path, pemBlock("PRIVATE KEY", der))
	}
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no key; remove it to have a new one made", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", path, err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s is no ECDSA key", path)
	}
	return ec, nil
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) //nolint:errcheck // crypto/rand.Read never fails since Go 1.24
	return new(big.Int).SetBytes(b[:])
}

// writeFile replaces a file whole, so that a reader never finds half of it.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone after the rename
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
