package email_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"testing"

	gomail "github.com/wneessen/go-mail"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/email"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { sandboxtest.Main(m) }

// BenchmarkDeliver delivers batches of 20, eight side by side over eight sessions, and the same number
// of messages in a loop of the bare library over eight sessions of its own that are never given up, to
// one sandbox in another process. The two take turns in each round, so that the ratio holds on a
// machine with other work.
func BenchmarkDeliver(b *testing.B) {
	const size, sessions = 20, 8
	raw := sandboxtest.Apart(b, "email")
	bare := bareSessions(b, raw, sessions)
	p, batch := openWith(b, append(raw[:len(raw)-1], `,"max_messages":100000}`...)), batchOf(size)
	for i := range batch {
		mailOf(&batch[i])
	}
	sandboxtest.Compare(b, max(b.N, 8_000), 3,
		func(n int) { sandboxtest.Loop(b, p, batch, n, sessions) },
		func(n int) {
			sandboxtest.BareLoop(b, n, sessions, func(session, i int) error { return bareSend(bare[session], i) })
		})
}

// mailOf is a message with text and HTML, 2.5 KB together.
func mailOf(m *providers.Message) {
	m.Body = string(filler(1000))
	m.Content = json.RawMessage(`{"html":"<html><body><p>` + string(filler(1000)) + `</p></body></html>"}`)
}

func filler(n int) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = "abcdefg hijklmn. "[i%17]
	}
	return out
}

// bareSessions are go-mail's clients as its documentation has them, without the commands that cost time.
func bareSessions(b *testing.B, raw []byte, n int) []*gomail.Client {
	var s struct {
		Addr, Username, Password string
		CAFile                   string `json:"ca_file"`
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		b.Fatal(err)
	}
	ca, err := os.ReadFile(s.CAFile)
	if err != nil {
		b.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	host, portText, err := net.SplitHostPort(s.Addr)
	if err != nil {
		b.Fatal(err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		b.Fatal(err)
	}
	var out []*gomail.Client
	for range n {
		c, err := gomail.NewClient(host, gomail.WithPort(port), gomail.WithTLSPolicy(gomail.TLSMandatory), gomail.WithTLSConfig(&tls.Config{RootCAs: roots, ServerName: host}),
			gomail.WithSMTPAuth(gomail.SMTPAuthPlain), gomail.WithUsername(s.Username), gomail.WithPassword(s.Password), gomail.WithoutNoop(), gomail.WithoutRset())
		if err != nil {
			b.Fatal(err)
		}
		if err := c.DialWithContext(context.Background()); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = c.Close() })
		out = append(out, c)
	}
	return out
}

func bareSend(c *gomail.Client, i int) error {
	text, html := string(filler(1000)), "<html><body><p>"+string(filler(1000))+"</p></body></html>"
	m := gomail.NewMsg()
	if err := errors.Join(m.From("no-reply@example.com"), m.To("user@example.org")); err != nil {
		return err
	}
	m.Subject("Hi")
	m.SetMessageIDWithValue(fmt.Sprintf("%d@example.com", i))
	m.SetBodyString(gomail.TypeTextPlain, text)
	m.AddAlternativeString(gomail.TypeTextHTML, html)
	return c.Send(m)
}

// BenchmarkLoneMessage is the time of one message over an open session.
func BenchmarkLoneMessage(b *testing.B) {
	sandboxtest.Lone(b, openWith(b, sandboxtest.Apart(b, "email")), batchOf(1)[0])
}

// BenchmarkCheck is the price of a message at accept.
func BenchmarkCheck(b *testing.B) {
	check := email.Kind().Check
	m := message(mailOf)
	b.ReportAllocs()
	for b.Loop() {
		if err := check(m); err != nil {
			b.Fatal(err)
		}
	}
}
