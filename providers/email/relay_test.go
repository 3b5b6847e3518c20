package email_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/email"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

// relay is an SMTP server whose every reply can be said, for what no well-behaved server answers.
type relay struct {
	t    testing.TB
	ln   net.Listener
	cert tls.Certificate
	dir  string

	// reply says what is answered at a phase, n counting that phase's from 1 over all connections: "" is
	// what a server says that takes everything, hangUp and stall are not to say anything.
	reply     func(ph string, n int, line string) string
	extension []string // of EHLO, besides STARTTLS and AUTH
	implicit  bool     // TLS from the first byte
	noTLS     bool     // no STARTTLS is offered
	auth      string   // mechanisms
	eager     bool     // DATA is accepted although no recipient was
	lenient   bool     // RCPT is accepted although MAIL was not
	forgetful bool     // what came with a command is thrown away once that is answered
	confused  string   // is answered to a MAIL or RCPT that came with more

	mu    sync.Mutex
	seen  map[string]int
	lines []string // commands, in order
	mails []mailed
	conns int
	open  map[net.Conn]bool // whether it carried a message
}

type mailed struct{ from, to, data string }

const (
	hangUp     = "<hang up>"
	hangUpLate = "<take it, then hang up>"
	stall      = "<stall>"
	user       = "ann"
	password   = "s3cret-password"
)

func startRelay(t testing.TB, configure func(*relay)) *relay {
	r := &relay{t: t, dir: t.TempDir(), open: map[net.Conn]bool{}, seen: map[string]int{}, extension: []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "SIZE 10485760"}, auth: "PLAIN LOGIN"}
	if configure != nil {
		configure(r)
	}
	r.certificate()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.ln = ln
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			r.conns++
			r.open[c] = false
			r.mu.Unlock()
			go r.serve(c)
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done; r.drop(false) })
	return r
}

// drop closes every connection, or those alone that carried a message.
func (r *relay) drop(used bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c, carried := range r.open {
		if carried || !used {
			_ = c.Close()
			delete(r.open, c)
		}
	}
}

func (r *relay) certificate() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		r.t.Fatal(err)
	}
	r.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(filepath.Join(r.dir, "ca.pem"), ca, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// says gives the reply for a phase, counted and overridden.
func (r *relay) says(ph, line, usual string) string {
	r.mu.Lock()
	r.seen[ph]++
	n := r.seen[ph]
	if line != "" {
		r.lines = append(r.lines, line)
	}
	reply := r.reply
	r.mu.Unlock()
	if reply != nil {
		if s := reply(ph, n, line); s != "" {
			return s
		}
	}
	return usual
}

type relayConn struct {
	net.Conn
	raw    net.Conn
	in     *bufio.Reader
	secure bool
}

func (r *relay) serve(raw net.Conn) {
	c := &relayConn{Conn: raw, raw: raw}
	defer func() { _ = c.Close() }()
	if r.implicit {
		c.Conn, c.secure = tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{r.cert}}), true
	}
	c.in = bufio.NewReader(c.Conn)
	if !say(c, r.says("banner", "", "220 relay.test ESMTP")) {
		return
	}
	var m mailed
	for {
		line, err := c.in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		if r.confused != "" && c.in.Buffered() > 0 {
			if !say(c, r.confused) {
				return
			}
			continue
		}
		if !r.command(c, &m, line) {
			return
		}
		if r.forgetful {
			_, _ = c.in.Discard(c.in.Buffered())
		}
	}
}

// say writes a reply; false ends the connection.
func say(c *relayConn, s string) bool {
	switch s {
	case hangUp:
		return false
	case stall:
		_, _ = io.Copy(io.Discard, c.in)
		return false
	}
	_, err := io.WriteString(c, s+"\r\n")
	return err == nil && !strings.HasPrefix(s, "421")
}

func (r *relay) command(c *relayConn, m *mailed, line string) bool {
	verb, _, _ := strings.Cut(strings.ToUpper(line), " ")
	switch verb {
	case "EHLO":
		ext := slices.Clone(r.extension)
		if !c.secure && !r.noTLS {
			ext = append(ext, "STARTTLS")
		}
		if r.auth != "" {
			ext = append(ext, "AUTH "+r.auth)
		}
		lines := append([]string{"relay.test"}, ext...)
		var b strings.Builder
		for i, l := range lines {
			sep := "-"
			if i == len(lines)-1 {
				sep = " "
			}
			fmt.Fprintf(&b, "250%s%s\r\n", sep, l)
		}
		return say(c, r.says("EHLO", line, strings.TrimSuffix(b.String(), "\r\n")))
	case "HELO":
		return say(c, r.says("HELO", line, "250 relay.test"))
	case "STARTTLS":
		s := r.says("STARTTLS", line, "220 go ahead")
		if !say(c, s) {
			return false
		}
		if strings.HasPrefix(s, "220") {
			c.Conn, c.secure = tls.Server(c.Conn, &tls.Config{Certificates: []tls.Certificate{r.cert}}), true
			c.in = bufio.NewReader(c.Conn)
		}
		return true
	case "AUTH":
		return r.login(c, line)
	case "MAIL":
		r.mu.Lock()
		r.open[c.raw] = true
		r.mu.Unlock()
		s := r.says("MAIL", line, "250 2.1.0 ok")
		if *m = (mailed{}); strings.HasPrefix(s, "250") {
			m.from = line
		}
		return say(c, s)
	case "RCPT":
		if m.from == "" && !r.lenient {
			return say(c, "503 5.5.1 MAIL first")
		}
		s := r.says("RCPT", line, "250 2.1.5 ok")
		if strings.HasPrefix(s, "25") {
			m.to = line
		}
		return say(c, s)
	case "DATA":
		return r.data(c, m, line)
	case "RSET", "NOOP":
		*m = mailed{}
		return say(c, r.says(verb, line, "250 2.0.0 ok"))
	case "QUIT":
		say(c, r.says("QUIT", line, "221 2.0.0 bye"))
		return false
	}
	return say(c, r.says("?", line, "500 5.5.2 what?"))
}

func (r *relay) login(c *relayConn, line string) bool {
	words := strings.Fields(line)
	usual := "535 5.7.8 no"
	ask := func(prompt string) string {
		if !say(c, "334 "+base64.StdEncoding.EncodeToString([]byte(prompt))) {
			return ""
		}
		s, _ := c.in.ReadString('\n')
		b, _ := base64.StdEncoding.DecodeString(strings.TrimSpace(s))
		return string(b)
	}
	switch {
	case words[1] == "PLAIN" && len(words) == 3:
		b, _ := base64.StdEncoding.DecodeString(words[2])
		if string(b) == "\x00"+user+"\x00"+password {
			usual = "235 2.7.0 ok"
		}
	case words[1] == "LOGIN":
		if ask("Username:") == user && ask("Password:") == password {
			usual = "235 2.7.0 ok"
		}
	}
	return say(c, r.says("AUTH", words[0]+" "+words[1], usual))
}

func (r *relay) data(c *relayConn, m *mailed, line string) bool {
	usual := "354 go on"
	if m.to == "" && !r.eager {
		usual = "554 5.5.1 no valid recipients"
	}
	s := r.says("DATA", line, usual)
	if !say(c, s) {
		return false
	}
	if !strings.HasPrefix(s, "354") {
		return true
	}
	var b strings.Builder
	for {
		l, err := c.in.ReadString('\n')
		if err != nil {
			return false
		}
		if l == ".\r\n" {
			break
		}
		b.WriteString(l)
	}
	m.data = b.String()
	usual = "250 2.0.0 Ok: queued as 4ZQ1"
	if m.to == "" {
		usual = "554 5.5.1 no valid recipients"
	}
	s = r.says("final dot", "", usual)
	if strings.HasPrefix(s, "250") || s == hangUpLate || s == stall {
		r.mu.Lock()
		r.mails = append(r.mails, *m)
		r.mu.Unlock()
	}
	*m = mailed{}
	if s == hangUpLate {
		return false
	}
	return say(c, s)
}

func (r *relay) got() []mailed {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.mails)
}

func (r *relay) said() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lines)
}

func (r *relay) connections() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conns
}

// replies changes what is said from now on.
func (r *relay) replies(f func(ph string, n int, line string) string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reply, r.seen = f, map[string]int{}
}

// settings point at r, changed by with.
func (r *relay) settings(with map[string]any) []byte {
	m := map[string]any{"addr": r.ln.Addr().String(), "from": "Example <no-reply@example.com>", "ca_file": filepath.Join(r.dir, "ca.pem"), "helo": "client.test"}
	for k, v := range with {
		m[k] = v
	}
	b, err := json.Marshal(m)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

func (r *relay) provider(with map[string]any) providers.Provider {
	return openWith(r.t, r.settings(with))
}

func openWith(t testing.TB, settings []byte) providers.Provider {
	t.Helper()
	return sandboxtest.Open(t, email.Kind(), settings)
}

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// message is a small one, changed by with.
func message(with func(*providers.Message)) *providers.Message {
	m := &providers.Message{
		ID: "01998a3e-5b1c-7d00-8000-000000000001", Address: "ann@example.org", Name: "Ann", Title: "Hi", Body: "Text",
		Priority: providers.Normal, CreatedAt: noon, ExpiresAt: noon.Add(time.Hour), Attempt: 1,
	}
	if with != nil {
		with(m)
	}
	return m
}

// batchOf makes n live messages.
func batchOf(n int) []providers.Message {
	out := make([]providers.Message, n)
	for i := range out {
		out[i] = *message(func(m *providers.Message) {
			m.ID = fmt.Sprintf("01998a3e-5b1c-7d00-8000-%012d", i)
			m.Address = fmt.Sprintf("user%d@example.org", i)
			m.CreatedAt = time.Now()
			m.ExpiresAt = m.CreatedAt.Add(time.Hour)
		})
	}
	return out
}
