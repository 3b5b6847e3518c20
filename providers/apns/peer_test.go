package apns_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/apns"
)

// peer is an HTTP/2 server made of bare frames, for what a well-behaved server never does.
type peer struct {
	ln    net.Listener
	files map[string]string // settings that name the files a client needs

	// onRequest answers a request; it runs on the connection's reading goroutine.
	onRequest func(c *peerConn, r *peerRequest)
	streams   uint32 // announced; 0 announces nothing
	onConn    func(c *peerConn)

	mu      sync.Mutex
	conns   []*peerConn
	reqs    []*peerRequest
	most    int // streams open at once on one connection
	arrived chan *peerRequest
}

type peerConn struct {
	n    int // 1 is the first
	nc   net.Conn
	fr   *http2.Framer
	wmu  sync.Mutex
	henc *hpack.Encoder
	hbuf bytes.Buffer
	peer *peer

	requests int
	open     map[uint32]bool
}

type peerRequest struct {
	conn   int
	stream uint32
	header map[string]string
	body   []byte
}

func newPeer(t testing.TB, onRequest func(*peerConn, *peerRequest)) *peer {
	t.Helper()
	cert, files := credentials(t)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{ln: ln, files: files, onRequest: onRequest, streams: 100, arrived: make(chan *peerRequest, 10_000)}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		_ = ln.Close()
		p.mu.Lock()
		for _, c := range p.conns {
			_ = c.nc.Close()
		}
		p.mu.Unlock()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(nc) })
		}
	})
	return p
}

func (p *peer) serve(nc net.Conn) {
	defer nc.Close()
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := readFull(nc, preface); err != nil {
		return
	}
	c := &peerConn{nc: nc, fr: http2.NewFramer(nc, nc), peer: p, open: map[uint32]bool{}}
	c.henc = hpack.NewEncoder(&c.hbuf)
	c.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.mu.Lock()
	p.conns = append(p.conns, c)
	c.n = len(p.conns)
	p.mu.Unlock()
	c.settings(p.streams)
	if p.onConn != nil {
		p.onConn(c)
	}
	reqs := map[uint32]*peerRequest{}
	for {
		f, err := c.fr.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				c.write(func() { _ = c.fr.WriteSettingsAck() })
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				c.write(func() { _ = c.fr.WritePing(true, f.Data) })
			}
		case *http2.RSTStreamFrame:
			c.closed(f.StreamID)
		case *http2.MetaHeadersFrame:
			r := &peerRequest{conn: c.n, stream: f.StreamID, header: map[string]string{}}
			for _, h := range f.Fields {
				r.header[h.Name] = h.Value
			}
			reqs[f.StreamID] = r
			p.mu.Lock()
			c.open[f.StreamID] = true
			p.most = max(p.most, len(c.open))
			p.mu.Unlock()
		case *http2.DataFrame:
			r := reqs[f.StreamID]
			r.body = append(r.body, f.Data()...)
			if f.StreamEnded() {
				c.requests++
				p.mu.Lock()
				p.reqs = append(p.reqs, r)
				p.mu.Unlock()
				p.arrived <- r
				p.onRequest(c, r)
			}
		}
	}
}

func readFull(nc net.Conn, b []byte) (int, error) {
	for n := 0; n < len(b); {
		m, err := nc.Read(b[n:])
		if err != nil {
			return n, err
		}
		n += m
	}
	return len(b), nil
}

func (c *peerConn) write(f func()) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	f()
}

func (c *peerConn) closed(stream uint32) {
	c.peer.mu.Lock()
	defer c.peer.mu.Unlock()
	delete(c.open, stream)
}

// settings announces a stream limit.
func (c *peerConn) settings(streams uint32) {
	c.write(func() {
		if streams == 0 {
			_ = c.fr.WriteSettings()
			return
		}
		_ = c.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: streams})
	})
}

// answer answers with a status, a body and further headers (name, value, ...).
func (c *peerConn) answer(r *peerRequest, status int, body string, headers ...string) {
	c.closed(r.stream)
	c.write(func() {
		c.hbuf.Reset()
		_ = c.henc.WriteField(hpack.HeaderField{Name: ":status", Value: strconv.Itoa(status)})
		if id := r.header["apns-id"]; id != "" {
			_ = c.henc.WriteField(hpack.HeaderField{Name: "apns-id", Value: id})
		}
		for i := 0; i < len(headers); i += 2 {
			_ = c.henc.WriteField(hpack.HeaderField{Name: headers[i], Value: headers[i+1]})
		}
		_ = c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: r.stream, BlockFragment: c.hbuf.Bytes(), EndHeaders: true, EndStream: body == ""})
		if body != "" {
			_ = c.fr.WriteData(r.stream, true, []byte(body))
		}
	})
}

func (c *peerConn) ok(r *peerRequest) { c.answer(r, 200, "") }

func (c *peerConn) goAway(last uint32, code http2.ErrCode) {
	c.write(func() { _ = c.fr.WriteGoAway(last, code, nil) })
}

func (c *peerConn) reset(r *peerRequest, code http2.ErrCode) {
	c.closed(r.stream)
	c.write(func() { _ = c.fr.WriteRSTStream(r.stream, code) })
}

func (p *peer) requests() []*peerRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]*peerRequest(nil), p.reqs...)
}

func (p *peer) counts() (conns, requests, most int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns), len(p.reqs), p.most
}

// open opens the provider on the peer; more are members of the settings object laid over its own.
func (p *peer) open(t testing.TB, more map[string]any) providers.Provider {
	t.Helper()
	s := map[string]any{"endpoint": "https://" + p.ln.Addr().String(), "topic": "com.example.app", "key_id": "ABC123DEFG", "team_id": "DEF123GHIJ",
		"ca_file": p.files["ca_file"], "key_file": p.files["key_file"], "timeout": "10s"}
	for name, v := range more {
		if s[name] = v; v == nil {
			delete(s, name)
		}
	}
	raw, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	pr, err := apns.Kind().Open(context.Background(), raw)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := pr.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return pr
}

// credentials makes a server certificate for 127.0.0.1, and the files of a client: the authority, a
// signing key and a client certificate with the topic in its subject.
func credentials(t testing.TB) (tls.Certificate, map[string]string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, blocks ...*pem.Block) string {
		var b []byte
		for _, block := range blocks {
			b = append(b, pem.EncodeToMemory(block)...)
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	newKey := func() (*ecdsa.PrivateKey, *pem.Block) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return k, &pem.Block{Type: "PRIVATE KEY", Bytes: der}
	}
	key, _ := newKey()
	client := func(name string, expires time.Duration) string {
		k, block := newKey()
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(expires),
			Subject: pkix.Name{CommonName: "Apple Push Services", ExtraNames: []pkix.AttributeTypeAndValue{
				{Type: asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}, Value: "com.example.cert"}}},
		}, &x509.Certificate{Subject: pkix.Name{CommonName: "ca"}}, k.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return write(name, &pem.Block{Type: "CERTIFICATE", Bytes: der}, block)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		Subject: pkix.Name{CommonName: "ca"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	_, signing := newKey()
	files := map[string]string{
		"ca_file":   write("ca.pem", &pem.Block{Type: "CERTIFICATE", Bytes: der}),
		"key_file":  write("AuthKey.p8", signing),
		"cert_file": client("client.pem", 365*24*time.Hour),
		"cert_soon": client("soon.pem", 24*time.Hour),
		"cert_past": client("past.pem", -time.Minute),
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, files
}
