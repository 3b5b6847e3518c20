package email

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/wneessen/go-mail/smtp"

	"github.com/carillon-notify/carillon/providers"
)

// server is where sessions are opened and how.
type server struct {
	addr, host         string
	mode               string // starttls, tls, none
	tls                *tls.Config
	helo               string
	auth               string
	username, password string
	timeout            time.Duration

	lockstep atomic.Int64 // until when (Unix, in ns) sessions do not pipeline, whatever the server announces
}

// distrust is for how long a server that announces PIPELINING and does not keep to it is told one command at
// a time.
const distrust = 10 * time.Minute

// misled notes that the server has not kept to PIPELINING.
func (s *server) misled() { s.lockstep.Store(time.Now().Add(distrust).UnixNano()) }

// distrusted says that the server is not believed to pipeline.
func (s *server) distrusted() bool { return time.Now().UnixNano() < s.lockstep.Load() }

// The modes of the setting tls.
const (
	modeStartTLS = "starttls"
	modeTLS      = "tls"
	modeNone     = "none"
)

// openError says why no session could be opened, and what that means for the messages.
type openError struct {
	result providers.Result // without an ID
	err    error
}

func (e *openError) Error() string { return e.result.Reason }
func (e *openError) Unwrap() error { return e.err }

func trouble(outcome providers.Outcome, code, reason string, err error) *openError {
	return &openError{result: providers.Result{Outcome: outcome, Code: code, Reason: reason}, err: err}
}

// refused makes an openError of what the server said at a phase, or of the silence there.
func refused(ph phase, err error) *openError {
	var said *textproto.Error
	if errors.As(err, &said) {
		return &openError{result: classify(ph, reply{said.Code, said.Msg}), err: err}
	}
	return trouble(providers.Deferred, "connect", fmt.Sprintf("the mail server does not answer (at %s)", ph), err)
}

// session is one SMTP connection that is ready for a transaction.
type session struct {
	*smtp.Client
	server     *server
	conn       *conn
	pipelining bool
	utf8       bool
	maxSize    int64 // of SIZE; 0: none announced
	size       bool  // SIZE was announced
	dirty      bool  // a transaction was not finished: RSET first
	broken     bool  // nothing more can be said
	sent       int   // transactions begun
}

// open connects, greets, encrypts and logs in. Never does it go on in plain text where TLS is wanted.
func (s *server) open(ctx context.Context) (*session, error) {
	deadline := time.Now().Add(s.timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	dialer := net.Dialer{Deadline: deadline}
	plain, err := dialer.DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return nil, trouble(providers.Deferred, "connect", "the mail server cannot be reached", err)
	}
	c := newConn(plain)
	c.within(deadline)
	stop := context.AfterFunc(ctx, c.interrupt)
	out, err := s.greet(ctx, c)
	if !stop() && err == nil { // cut short in the last moment
		err = trouble(providers.Deferred, "connect", "the mail server does not answer in time", ctx.Err())
	}
	if err != nil {
		_ = plain.Close()
		return nil, err
	}
	return out, nil
}

func (s *server) greet(ctx context.Context, c *conn) (*session, error) {
	var wire net.Conn = c
	if s.mode == modeTLS {
		t := tls.Client(c, s.tls)
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, handshake(err)
		}
		wire = t
	}
	client, err := smtp.NewClient(wire, s.host)
	if err != nil {
		return nil, refused(phaseBanner, err)
	}
	if err := client.Hello(s.helo); err != nil {
		return nil, refused(phaseHello, err)
	}
	if s.mode == modeStartTLS {
		if offered, _ := client.Extension("STARTTLS"); !offered {
			return nil, trouble(providers.Denied, "STARTTLS", "the mail server does not offer STARTTLS; use tls: tls for a TLS port, and tls: none only for a server you trust the network to", nil)
		}
		if err := client.StartTLS(s.tls); err != nil {
			var said *textproto.Error
			if errors.As(err, &said) {
				return nil, refused(phaseStartTLS, err)
			}
			return nil, handshake(err)
		}
	}
	if s.username != "" {
		if err := s.login(client); err != nil {
			return nil, err
		}
	}
	out := &session{Client: client, server: s, conn: c}
	if !s.distrusted() {
		out.pipelining, _ = client.Extension("PIPELINING")
	}
	out.utf8, _ = client.Extension("SMTPUTF8")
	var limit string
	if out.size, limit = client.Extension("SIZE"); out.size {
		_, _ = fmt.Sscan(limit, &out.maxSize) // "SIZE" alone announces no limit
	}
	return out, nil
}

// handshake says what an error of the TLS handshake means. A peer that cannot be trusted, or does not
// speak TLS, needs a person; a connection that broke does not.
func handshake(err error) *openError {
	var cert *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	switch {
	case errors.As(err, &cert):
		return trouble(providers.Denied, "certificate", "the mail server's certificate is not trusted; check addr and ca_file", err)
	case errors.As(err, &record):
		return trouble(providers.Denied, "tls", "the mail server does not speak TLS on this port; check addr and tls", err)
	case errors.As(err, &alert), strings.HasPrefix(err.Error(), "tls: "), strings.HasPrefix(err.Error(), "remote error: tls: "):
		return trouble(providers.Denied, "tls", "the mail server and we find no TLS in common", err)
	}
	return trouble(providers.Deferred, "connect", "the mail server breaks off the TLS handshake", err)
}

// mechanisms are what auth: auto chooses from, best first. CRAM-MD5 comes last, many servers announce
// it and cannot do it; go-mail keeps PLAIN and LOGIN off an unencrypted line to another machine.
var mechanisms = []string{"SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN", "LOGIN", "CRAM-MD5"}

func (s *server) login(client *smtp.Client) error {
	_, line := client.Extension("AUTH")
	offered := strings.Fields(strings.ToUpper(line))
	want := strings.ToUpper(s.auth)
	if s.auth == "auto" {
		i := slices.IndexFunc(mechanisms, func(m string) bool { return slices.Contains(offered, m) })
		if i < 0 {
			return trouble(providers.Denied, "AUTH", "the mail server offers no login that we know; leave username empty if it wants none", nil)
		}
		want = mechanisms[i]
	}
	if !slices.Contains(offered, want) {
		return trouble(providers.Denied, "AUTH", "the mail server does not offer this auth mechanism; use auth: auto", nil)
	}
	var auth smtp.Auth
	switch want {
	case "SCRAM-SHA-256":
		auth = smtp.ScramSHA256Auth(s.username, s.password)
	case "SCRAM-SHA-1":
		auth = smtp.ScramSHA1Auth(s.username, s.password)
	case "PLAIN":
		auth = smtp.PlainAuth("", s.username, s.password, s.host, false)
	case "LOGIN":
		auth = smtp.LoginAuth(s.username, s.password, s.host, false)
	case "CRAM-MD5":
		auth = smtp.CRAMMD5Auth(s.username, s.password)
	case "XOAUTH2":
		auth = smtp.XOAuth2Auth(s.username, s.password)
	}
	err := client.Auth(auth)
	var said *textproto.Error
	var network net.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, smtp.ErrUnencrypted):
		return trouble(providers.Denied, "AUTH", "a password does not go over an unencrypted line; use tls: starttls or tls", err)
	case errors.As(err, &said), errors.As(err, &network), isEOF(err):
		return refused(phaseAuth, err)
	}
	return trouble(providers.Denied, "AUTH", "the mail server does not prove that it knows the password, or breaks the auth mechanism's rules", err)
}

// alive is the pool's check of a session that was silent for a while.
func (s *session) alive(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.conn.interrupt)
	defer stop()
	s.conn.within(time.Now().Add(5 * time.Second))
	if err := s.Noop(); err != nil {
		s.broken = true
		return fmt.Errorf("NOOP: %w", err)
	}
	return nil
}

// shut ends a session, politely where the server still listens.
func (s *session) shut() {
	if !s.broken {
		s.conn.within(time.Now().Add(time.Second))
		_ = s.Quit()
	}
	_ = s.conn.Close()
}
