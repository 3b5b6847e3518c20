// Command receiver is somebody's webhook, to try the plugin with and to copy from: it takes requests over
// HTTPS with a certificate that it makes for itself, checks their signature, and prints them. A path such
// as /status/503 is answered with that status.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:9443", "where to listen")
	secret := flag.String("secret", "", "the key that requests must be signed with, whsec_…")
	ca := flag.String("ca", "receiver.pem", "the file that the certificate is written to, for the plugin's setting ca_file")
	flag.Parse()
	if err := run(*listen, *secret, *ca); err != nil {
		log.Fatal(err)
	}
}

func run(listen, secret, ca string) error {
	text, ok := strings.CutPrefix(secret, "whsec_")
	key, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(key) == 0 {
		return errors.New("-secret must be whsec_ and base64, such as: whsec_$(openssl rand -base64 32)")
	}
	cert, err := certificate(ca)
	if err != nil {
		return err
	}
	server := &http.Server{
		Addr: listen, Handler: &receiver{key: key, seen: map[string]bool{}},
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
	}
	log.Printf("listening on https://%s, certificate in %s", listen, ca)
	return server.ListenAndServeTLS("", "")
}

// receiver takes requests.
type receiver struct {
	key []byte

	mu   sync.Mutex
	seen map[string]bool
}

// ServeHTTP implements http.Handler.
func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, 1<<20))
	if err != nil {
		http.Error(w, "the body cannot be read", http.StatusBadRequest)
		return
	}
	if err := r.verify(req.Header, body, time.Now()); err != nil {
		log.Printf("refused: %s", err)
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	id := req.Header.Get("Webhook-Id")
	if text, ok := strings.CutPrefix(req.URL.Path, "/status/"); ok {
		if status, err := strconv.Atoi(text); err == nil && status >= 200 && status <= 599 {
			log.Printf("%s is answered with %d", id, status)
			w.WriteHeader(status)
			return
		}
	}
	// A request comes again when its answer was lost. It is taken and not acted on twice.
	r.mu.Lock()
	again := r.seen[id]
	r.seen[id] = true
	r.mu.Unlock()
	if again {
		log.Printf("%s came again", id)
		return
	}
	log.Printf("%s\n%s", id, body)
}

// verify checks a request as Standard Webhooks 1.0.0 says, "Verifying signatures": one of the signatures
// is ours, and it is fresh.
func (r *receiver) verify(h http.Header, body []byte, now time.Time) error {
	id, stamp := h.Get("Webhook-Id"), h.Get("Webhook-Timestamp")
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || now.Sub(time.Unix(seconds, 0)).Abs() > 5*time.Minute {
		return errors.New("the timestamp is more than five minutes away")
	}
	mac := hmac.New(sha256.New, r.key)
	mac.Write([]byte(id + "." + stamp + "."))
	mac.Write(body)
	want := mac.Sum(nil)
	for signature := range strings.FieldsSeq(h.Get("Webhook-Signature")) {
		text, ok := strings.CutPrefix(signature, "v1,")
		got, err := base64.StdEncoding.DecodeString(text)
		if ok && err == nil && hmac.Equal(got, want) {
			return nil
		}
	}
	return errors.New("no signature is made with the secret")
}

// certificate makes a certificate for this machine, good for a day, and writes it to a file.
func certificate(file string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), NotBefore: now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a certificate: %w", err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return tls.Certificate{}, fmt.Errorf("write the certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
