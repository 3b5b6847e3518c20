package apns_test

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

	"github.com/sideshow/apns2"
	apnstoken "github.com/sideshow/apns2/token"
	"golang.org/x/net/http2" //nolint:staticcheck // SA1019: what apns2 itself uses

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/apns"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

// sandboxDir makes the test binary a sandbox of its own, so that a benchmark's CPU time is the client's.
const sandboxDir = "CARILLON_APNS_TEST_SANDBOX"

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
	raw, _ := s.Settings("apns")
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

func measure(n int, f func()) measured {
	began, used := time.Now(), cpu()
	f()
	took, used := time.Since(began), cpu()-used
	return measured{float64(n) / took.Seconds(), float64(used.Microseconds()) / float64(n)}
}

// BenchmarkDeliver delivers batches of 100, eight side by side, and the same number of messages in a
// loop of the bare apns2 client with as many callers, to one sandbox in another process. The two take
// turns in each round, so that the ratio holds on a machine with other work.
func BenchmarkDeliver(b *testing.B) {
	const size, callers = 100, 8
	raw := apart(b)
	p, err := apns.Kind().Open(context.Background(), raw)
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close(context.Background())
	bare := bareClient(b, raw)
	n := max(b.N, 20_000)
	var ours, theirs measured
	const rounds = 5
	b.ResetTimer()
	for round := range rounds + 1 {
		o := measure(n, func() { ourLoop(b, p, n, size, callers) })
		t := measure(n, func() { bareLoop(b, bare, n, size*callers) })
		if round == 0 {
			continue // warm up
		}
		ours.rate, ours.cpu = ours.rate+o.rate/rounds, ours.cpu+o.cpu/rounds
		theirs.rate, theirs.cpu = theirs.rate+t.rate/rounds, theirs.cpu+t.cpu/rounds
	}
	b.ReportMetric(ours.rate, "msg/s")
	b.ReportMetric(ours.cpu, "µs-cpu/msg")
	b.ReportMetric(theirs.rate, "apns2-msg/s")
	b.ReportMetric(theirs.cpu, "µs-cpu/apns2-msg")
	b.ReportMetric(ours.rate/theirs.rate, "ratio")
	b.ReportMetric(0, "ns/op")
}

func ourLoop(b *testing.B, p providers.Provider, n, size, callers int) {
	var next, accepted atomic.Int64
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for int(next.Add(int64(size))) <= n {
				err := p.Deliver(context.Background(), batch(size), func(r providers.Result) {
					if r.Outcome == providers.Accepted {
						accepted.Add(1)
					}
				})
				if err != nil {
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

func bareLoop(b *testing.B, c *apns2.Client, n, callers int) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for i := next.Add(1); int(i) <= n; i = next.Add(1) {
				r, err := c.Push(&apns2.Notification{ApnsID: id(int(i)), DeviceToken: token, Topic: sandbox.Topic, Priority: 10, PushType: apns2.PushTypeAlert,
					Expiration: time.Now().Add(time.Hour),
					Payload:    []byte(`{"aps":{"alert":{"title":"Hello","body":"World"}},"delivery_id":"` + id(int(i)) + `"}`)})
				if err != nil || !r.Sent() {
					b.Errorf("push: %v %+v", err, r)
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkLoneMessage is the way of one message on an idle provider.
func BenchmarkLoneMessage(b *testing.B) {
	p, err := apns.Kind().Open(context.Background(), apart(b))
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close(context.Background())
	one := batch(1)
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Deliver(context.Background(), one, func(providers.Result) {}); err != nil {
			b.Fatal(err)
		}
	}
}
