package fcm_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"os"
	"testing"
	"time"

	"firebase.google.com/go/v4/messaging"
	"golang.org/x/oauth2"
	goauth "golang.org/x/oauth2/google"
	"google.golang.org/api/option"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/fcm"
	"github.com/carillon-notify/carillon/providers/sandbox"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { sandboxtest.Main(m) }

// BenchmarkDeliver delivers batches of 100, eight side by side, and the same number of messages in a
// loop of the bare library with as many callers, to one sandbox in another process. The two take turns
// in each round, so that the ratio holds on a machine with other work.
func BenchmarkDeliver(b *testing.B) {
	const size, callers = 100, 4
	raw := sandboxtest.Apart(b, "fcm")
	p, batch := openWith(b, raw), batchOf(size)
	bare := bareClient(b, raw)
	sandboxtest.Compare(b, max(b.N, 8_000), 3,
		func(n int) { sandboxtest.Loop(b, p, batch, n, callers) },
		func(n int) {
			sandboxtest.BareLoop(b, n, size*callers, func(_, i int) error { return bareSend(bare, &batch[i%size]) })
		})
}

// bareClient is the library as its documentation has it: an oauth2 client over HTTP/2.
func bareClient(b *testing.B, raw []byte) *messaging.Client {
	var s struct {
		CredentialsFile string `json:"credentials_file"`
		Endpoint        string `json:"endpoint"`
		CAFile          string `json:"ca_file"`
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
	plain := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}}
	key, err := os.ReadFile(s.CredentialsFile)
	if err != nil {
		b.Fatal(err)
	}
	conf, err := goauth.JWTConfigFromJSON(key, "https://www.googleapis.com/auth/firebase.messaging")
	if err != nil {
		b.Fatal(err)
	}
	hc := conf.Client(context.WithValue(context.Background(), oauth2.HTTPClient, plain))
	c, err := fcm.NewMessaging(context.Background(), messaging.NewClient, sandbox.Project, option.WithHTTPClient(hc), option.WithEndpoint(s.Endpoint+"/v1"))
	if err != nil {
		b.Fatal(err)
	}
	return c
}

func bareSend(c *messaging.Client, m *providers.Message) error {
	left := time.Until(m.ExpiresAt).Truncate(time.Second)
	_, err := c.Send(context.Background(), &messaging.Message{
		Token: m.Address, Data: map[string]string{"delivery_id": m.ID},
		Notification: &messaging.Notification{Title: m.Title, Body: m.Body},
		Android:      &messaging.AndroidConfig{Priority: "normal", TTL: &left},
	})
	return err
}

// BenchmarkLoneMessage is the time of one message on an open connection.
func BenchmarkLoneMessage(b *testing.B) {
	sandboxtest.Lone(b, openWith(b, sandboxtest.Apart(b, "fcm")), batchOf(1)[0])
}

// BenchmarkCheck is the price of a message at accept.
func BenchmarkCheck(b *testing.B) {
	check := fcm.Kind().Check
	for name, with := range map[string]func(*providers.Message){
		"plain": nil,
		"block": func(m *providers.Message) {
			m.Content = json.RawMessage(`{"fcm":{"android":{"notification":{"channel_id":"c"}},"apns":{"payload":{"aps":{"badge":1}}}}}`)
		},
	} {
		m := message(with)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := check(m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
