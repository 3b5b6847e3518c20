package apns_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/sideshow/apns2"
	apnstoken "github.com/sideshow/apns2/token"
	"golang.org/x/net/http2" //nolint:staticcheck // SA1019: what apns2 itself uses

	"github.com/carillon-notify/carillon/providers/apns"
	"github.com/carillon-notify/carillon/providers/sandbox"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { sandboxtest.Main(m) }

// BenchmarkDeliver delivers batches of 100, eight side by side, and the same number of messages in a
// loop of the bare apns2 client with as many callers, to one sandbox in another process. The two take
// turns in each round, so that the ratio holds on a machine with other work.
func BenchmarkDeliver(b *testing.B) {
	const size, callers = 100, 8
	raw := sandboxtest.Apart(b, "apns")
	p, same := sandboxtest.Open(b, apns.Kind(), raw), batch(size)
	bare := bareClient(b, raw)
	sandboxtest.Compare(b, max(b.N, 20_000), 5,
		func(n int) { sandboxtest.Loop(b, p, same, n, callers) },
		func(n int) {
			sandboxtest.BareLoop(b, n, size*callers, func(_, i int) error { return barePush(bare, i) })
		})
}

func bareClient(b *testing.B, raw []byte) *apns2.Client {
	var s map[string]string
	if err := json.Unmarshal(raw, &s); err != nil {
		b.Fatal(err)
	}
	key, err := apnstoken.AuthKeyFromFile(s["key_file"])
	if err != nil {
		b.Fatal(err)
	}
	pem, err := os.ReadFile(s["ca_file"])
	if err != nil {
		b.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	c := apns2.NewTokenClient(&apnstoken.Token{AuthKey: key, KeyID: s["key_id"], TeamID: s["team_id"]})
	c.Host = s["endpoint"]
	c.HTTPClient = &http.Client{Transport: &http2.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}, Timeout: 10 * time.Second}
	return c
}

func barePush(c *apns2.Client, i int) error {
	r, err := c.Push(&apns2.Notification{ApnsID: id(i), DeviceToken: token, Topic: sandbox.Topic, Priority: 10, PushType: apns2.PushTypeAlert,
		Expiration: time.Now().Add(time.Hour),
		Payload:    []byte(`{"aps":{"alert":{"title":"Hello","body":"World"}},"delivery_id":"` + id(i) + `"}`)})
	if err == nil && !r.Sent() {
		err = fmt.Errorf("refused: %+v", r)
	}
	return err
}

// BenchmarkLoneMessage is the way of one message on an idle provider.
func BenchmarkLoneMessage(b *testing.B) {
	sandboxtest.Lone(b, sandboxtest.Open(b, apns.Kind(), sandboxtest.Apart(b, "apns")), batch(1)[0])
}
