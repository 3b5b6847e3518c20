package fcm_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"firebase.google.com/go/v4/messaging"
	"golang.org/x/oauth2"
	goauth "golang.org/x/oauth2/google"
	"google.golang.org/api/option"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/fcm"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

// sandboxDir makes the test binary a sandbox of its own, so that a benchmark's CPU time is the client's.
const sandboxDir = "CARILLON_FCM_TEST_SANDBOX"

func TestMain(m *testing.M) {
	dir := os.Getenv(sandboxDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	s, err := sandbox.Start(sandbox.Options{Dir: dir, Capacity: 100})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	raw, _ := s.Settings("fcm")
	fmt.Println(string(raw))
	_, _ = io.Copy(io.Discard, os.Stdin) // until the benchmark ends
	_ = s.Close()
}

// apart runs a sandbox in a process of its own and returns settings that lead there.
func apart(b *testing.B) []byte {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), sandboxDir+"="+b.TempDir())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		b.Fatal(err)
	}
	return line
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

type measured struct{ rate, cpu float64 } // messages/s, microseconds of CPU each

func (m *measured) add(n int, f func()) {
	began, used := time.Now(), cpu()
	f()
	took, spent := time.Since(began), cpu()-used
	m.rate += float64(n) / took.Seconds()
	m.cpu += float64(spent.Microseconds()) / float64(n)
}

// BenchmarkDeliver delivers batches of 100, eight side by side, and the same number of messages in a
// loop of the bare library with as many callers, to one sandbox in another process. The two take turns
// in each round, so that the ratio holds on a machine with other work.
func BenchmarkDeliver(b *testing.B) {
	const size, callers, rounds = 100, 4, 3
	raw := apart(b)
	p := openWith(b, raw)
	bare := bareClient(b, raw)
	n := max(b.N, 8_000)
	ourLoop(b, p, n/4, size, callers) // warm up
	bareLoop(b, bare, n/4, size*callers)
	var ours, theirs measured
	b.ResetTimer()
	for range rounds {
		ours.add(n, func() { ourLoop(b, p, n, size, callers) })
		theirs.add(n, func() { bareLoop(b, bare, n, size*callers) })
	}
	b.ReportMetric(ours.rate/rounds, "msg/s")
	b.ReportMetric(ours.cpu/rounds, "µs-cpu/msg")
	b.ReportMetric(theirs.rate/rounds, "bare-msg/s")
	b.ReportMetric(theirs.cpu/rounds, "µs-cpu/bare-msg")
	b.ReportMetric(ours.rate/theirs.rate, "ratio")
	b.ReportMetric(0, "ns/op")
}

func ourLoop(b *testing.B, p providers.Provider, n, size, callers int) {
	var next, accepted atomic.Int64
	var wg sync.WaitGroup
	batch := batchOf(size)
	for range callers {
		wg.Go(func() {
			for int(next.Add(int64(size))) <= n {
				if err := p.Deliver(context.Background(), batch, func(r providers.Result) {
					if r.Outcome == providers.Accepted {
						accepted.Add(1)
					}
				}); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if int(accepted.Load()) < n-size*callers {
		b.Errorf("%d of %d accepted", accepted.Load(), n)
	}
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

func bareLoop(b *testing.B, c *messaging.Client, n, callers int) {
	var next atomic.Int64
	var wg sync.WaitGroup
	batch := batchOf(100)
	for range callers {
		wg.Go(func() {
			for i := next.Add(1); int(i) <= n; i = next.Add(1) {
				m := &batch[int(i)%len(batch)]
				left := time.Until(m.ExpiresAt).Truncate(time.Second)
				if _, err := c.Send(context.Background(), &messaging.Message{
					Token: m.Address, Data: map[string]string{"delivery_id": m.ID},
					Notification: &messaging.Notification{Title: m.Title, Body: m.Body},
					Android:      &messaging.AndroidConfig{Priority: "normal", TTL: &left},
				}); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkLoneMessage is the time of one message on an open connection.
func BenchmarkLoneMessage(b *testing.B) {
	p := openWith(b, apart(b))
	one := batchOf(1)
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Deliver(context.Background(), one, func(providers.Result) {}); err != nil {
			b.Fatal(err)
		}
	}
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
