package app_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"firebase.google.com/go/v4/messaging"
	"github.com/sideshow/apns2"
	"github.com/sideshow/apns2/token"
	gomail "github.com/wneessen/go-mail"
	"golang.org/x/net/http2"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
	"google.golang.org/api/option"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

// The raw loops: what each client library does by itself on the same sandbox.

// loop sends n messages with so many callers side by side.
func loop(b *testing.B, n, callers int, send func(caller, i int) error) {
	b.Helper()
	var wg sync.WaitGroup
	var next, failed atomic.Int64
	for caller := range callers {
		wg.Go(func() {
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				if err := send(caller, i); err != nil {
					b.Log(err)
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if failed.Load() > 0 {
		b.Fatalf("%d messages of the raw loop failed", failed.Load())
	}
}

// trust is the TLS configuration that knows the sandbox's authority.
func trust(b *testing.B, settings map[string]string) *tls.Config {
	b.Helper()
	pem, err := os.ReadFile(settings["ca_file"])
	if err != nil {
		b.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &tls.Config{RootCAs: roots}
}

func rawAPNs(b *testing.B, w *world) func(n int) {
	b.Helper()
	s := w.settings["apns"]
	key, err := token.AuthKeyFromFile(s["key_file"])
	if err != nil {
		b.Fatal(err)
	}
	c := apns2.NewTokenClient(&token.Token{AuthKey: key, KeyID: s["key_id"], TeamID: s["team_id"]})
	c.Host = s["endpoint"]
	c.HTTPClient = &http.Client{Timeout: 20 * time.Second, Transport: &http2.Transport{TLSClientConfig: trust(b, s)}} //nolint:staticcheck // as apns2 itself uses it
	b.Cleanup(c.CloseIdleConnections)
	return func(n int) {
		loop(b, n, 200, func(_, i int) error {
			resp, err := c.PushWithContext(context.Background(), &apns2.Notification{DeviceToken: hexToken(i), Topic: s["topic"],
				Payload: []byte(`{"aps":{"alert":{"title":"Message","body":"of the benchmark"}}}`), Expiration: time.Now().Add(time.Hour), PushType: apns2.PushTypeAlert, Priority: 10})
			if err == nil && !resp.Sent() {
				err = errors.New(resp.Reason)
			}
			return err
		})
	}
}

func rawFCM(b *testing.B, w *world) func(n int) {
	b.Helper()
	s := w.settings["fcm"]
	text, err := os.ReadFile(s["credentials_file"])
	if err != nil {
		b.Fatal(err)
	}
	account, err := google.JWTConfigFromJSON(text, "https://www.googleapis.com/auth/firebase.messaging")
	if err != nil {
		b.Fatal(err)
	}
	plain := &http.Client{Transport: &http.Transport{TLSClientConfig: trust(b, s), ForceAttemptHTTP2: true}}
	b.Cleanup(plain.CloseIdleConnections)
	c, err := rawMessaging(context.Background(), messaging.NewClient, sandbox.Project,
		option.WithHTTPClient(account.Client(context.WithValue(context.Background(), oauth2.HTTPClient, plain))), option.WithEndpoint(s["endpoint"]+"/v1"))
	if err != nil {
		b.Fatal(err)
	}
	ttl := time.Hour
	return func(n int) {
		loop(b, n, 200, func(_, i int) error {
			_, err := c.Send(context.Background(), &messaging.Message{
				Token: "device:" + hexToken(i), Data: map[string]string{"delivery_id": strconv.Itoa(i)},
				Notification: &messaging.Notification{Title: "Message", Body: "of the benchmark"},
				Android:      &messaging.AndroidConfig{Priority: "normal", TTL: &ttl},
			})
			return err
		})
	}
}

// rawMessaging makes the library's client without its root package, whose configuration's type is internal.
func rawMessaging[T any](ctx context.Context, f func(context.Context, *T) (*messaging.Client, error), project string, opts ...option.ClientOption) (*messaging.Client, error) {
	conf := new(T)
	v := reflect.ValueOf(conf).Elem()
	v.FieldByName("ProjectID").SetString(project)
	v.FieldByName("Version").SetString("raw")
	v.FieldByName("Opts").Set(reflect.ValueOf(opts))
	return f(ctx, conf)
}

// The parts of the e-mail, 2.5 KB together.
var (
	mailText = strings.Repeat("It is on its way. ", 56)
	mailHTML = "<html><body><p>" + strings.Repeat("It is on its way. ", 56) + "</p></body></html>"
)

// mailSessions are eight sessions of go-mail that are kept open, without the commands that cost time.
func mailSessions(b *testing.B, w *world) (sessions []*gomail.Client) {
	b.Helper()
	s := w.settings["email"]
	host, portText, err := net.SplitHostPort(s["addr"])
	if err != nil {
		b.Fatal(err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		b.Fatal(err)
	}
	conf := trust(b, s)
	conf.ServerName = host
	for range 8 {
		c, err := gomail.NewClient(host, gomail.WithPort(port), gomail.WithTLSPolicy(gomail.TLSMandatory), gomail.WithTLSConfig(conf),
			gomail.WithSMTPAuth(gomail.SMTPAuthPlain), gomail.WithUsername(s["username"]), gomail.WithPassword(s["password"]), gomail.WithoutNoop(), gomail.WithoutRset())
		if err != nil {
			b.Fatal(err)
		}
		if err := c.DialWithContext(context.Background()); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = c.Close() })
		sessions = append(sessions, c)
	}
	return sessions
}

// rawEmail sends the benchmark's mail over go-mail's sessions.
func rawEmail(b *testing.B, w *world) func(n int) {
	b.Helper()
	return rawMails(b, w, func(i int) rawMail {
		return rawMail{fmt.Sprintf("user%d@example.org", i), "Hi", mailText, mailHTML}
	})
}

// rawMail is what is different between one mail and the next.
type rawMail struct{ to, subject, text, html string }

// rawMails sends mails over go-mail's sessions, the i-th as it is written.
func rawMails(b *testing.B, w *world, write func(i int) rawMail) func(n int) {
	b.Helper()
	sessions := mailSessions(b, w)
	return func(n int) {
		loop(b, n, len(sessions), func(session, i int) error {
			mail, m := write(i), gomail.NewMsg()
			if err := errors.Join(m.From("no-reply@example.com"), m.To(mail.to)); err != nil {
				return err
			}
			m.Subject(mail.subject)
			m.SetMessageIDWithValue(fmt.Sprintf("%d.%d@example.com", time.Now().UnixNano(), i))
			m.SetBodyString(gomail.TypeTextPlain, mail.text)
			m.AddAlternativeString(gomail.TypeTextHTML, mail.html)
			return sessions[session].Send(m)
		})
	}
}
