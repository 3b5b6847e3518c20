package sandbox_test

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/smtp"
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

func mailText(id string) []byte {
	return []byte("From: a@b.example\r\nTo: ann@example.com\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nMessage-ID: <" + id + "@" +
		sandbox.Domain + ">\r\n\r\nText\r\n.dot\r\n")
}

// login opens a session as far as a client gets before its first mail.
func login(t testing.TB, s *sandbox.Sandbox) *smtp.Client {
	t.Helper()
	c, err := smtp.Dial(s.SMTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() }) //nolint:errcheck // often closed by the server
	tls := trust(t, s)
	tls.ServerName = "localhost"
	if err := c.StartTLS(tls); err != nil {
		t.Fatal(err)
	}
	if err := c.Auth(smtp.PlainAuth("", sandbox.Username, sandbox.Password, "127.0.0.1")); err != nil {
		t.Fatal(err)
	}
	return c
}

// sendMail sends one mail and returns the first error.
func sendMail(c *smtp.Client, to string, text []byte) error {
	if err := c.Mail(sandbox.From); err != nil {
		return err
	}
	if err := c.Rcpt(to); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write(text); err != nil {
		return err
	}
	return w.Close()
}

func TestSMTPTakesAMail(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	c := login(t, s)
	if err := sendMail(c, "ann@example.com", mailText("m-1")); err != nil {
		t.Fatal(err)
	}
	if err := c.Quit(); err != nil {
		t.Fatal(err)
	}
	m := s.Messages(sandbox.Filter{Service: sandbox.SMTP})
	if len(m) != 1 {
		t.Fatalf("%d messages", len(m))
	}
	if m[0].ID != "m-1" || m[0].Address != "ann@example.com" || m[0].Title != "Grüße" || m[0].Content != string(mailText("m-1")) ||
		m[0].Answered != "250" {
		t.Errorf("ledger has %+v", m[0])
	}
}

// rawMail is an SMTP session spoken by hand.
type rawMail struct {
	conn net.Conn
	in   *bufio.Reader
}

// dialTLS opens a session as far as the EHLO after STARTTLS.
func dialTLS(t testing.TB, s *sandbox.Sandbox) *rawMail {
	t.Helper()
	m := dialPlain(t, s)
	check(t, m.exchange("EHLO test.example\r\nSTARTTLS\r\n", "250", "220"))
	config := trust(t, s)
	config.ServerName = "localhost"
	m.conn = tls.Client(m.conn, config)
	m.in.Reset(m.conn)
	check(t, m.exchange("EHLO test.example\r\n", "250"))
	return m
}

// dialMail opens a session with TLS and logs in.
func dialMail(t testing.TB, s *sandbox.Sandbox) *rawMail {
	t.Helper()
	m := dialTLS(t, s)
	plain := base64.StdEncoding.EncodeToString([]byte("\x00" + sandbox.Username + "\x00" + sandbox.Password))
	check(t, m.exchange("AUTH PLAIN "+plain+"\r\n", "235"))
	return m
}

func dialPlain(t testing.TB, s *sandbox.Sandbox) *rawMail {
	t.Helper()
	conn, err := net.Dial("tcp", s.SMTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() }) //nolint:errcheck // at its end
	m := &rawMail{conn, bufio.NewReader(conn)}
	if err := m.exchange("", "220"); err != nil {
		t.Fatal(err)
	}
	return m
}

// exchange writes text in one piece and expects replies that begin as told.
func (m *rawMail) exchange(text string, replies ...string) error {
	if _, err := io.WriteString(m.conn, text); err != nil {
		return err
	}
	for _, want := range replies {
		reply, err := m.reply()
		if err != nil {
			return fmt.Errorf("waiting for %s: %w", want, err)
		}
		if !strings.HasPrefix(reply, want) {
			return fmt.Errorf("answered %q, not %s", reply, want)
		}
	}
	return nil
}

// reply reads one reply of one or more lines.
func (m *rawMail) reply() (string, error) {
	var all string
	for {
		line, err := m.in.ReadString('\n')
		if err != nil {
			return "", err
		}
		all += line
		if len(line) < 4 || line[3] != '-' {
			return strings.TrimRight(all, "\r\n"), nil
		}
	}
}
