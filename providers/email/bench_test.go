package email_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	gomail "github.com/wneessen/go-mail"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/email"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

// sandboxDir makes the test binary a sandbox of its own, so that a benchmark's CPU time is the client's.
const sandboxDir = "CARILLON_EMAIL_TEST_SANDBOX"

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
	raw, _ := s.Settings("email")
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

// BenchmarkDeliver delivers batches of 20, eight side by side over eight sessions, and the same number
// of messages in a loop of the bare library over eight sessions of its own that are never given up, to
// one sandbox in another process. The two take turns in each round, so that the ratio holds on a
// machine with other work.
func BenchmarkDeliver(b *testing.B) {
	const size, sessions, rounds = 20, 8, 3
	raw := apart(b)
	p := openWith(b, append(raw[:len(raw)-2], `,"max_messages":100000}`...))
	bare := bareSessions(b, raw, sessions)
	n := max(b.N, 8_000)
	ourLoop(b, p, n/4, size, sessions) // warm up
	bareLoop(b, bare, n/4)
	var ours, theirs measured
	b.ResetTimer()
	for range rounds {
		ours.add(n, func() { ourLoop(b, p, n, size, sessions) })
		theirs.add(n, func() { bareLoop(b, bare, n) })
	}
	b.ReportMetric(ours.rate/rounds, "msg/s")
	b.ReportMetric(ours.cpu/rounds, "µs-cpu/msg")
	b.ReportMetric(theirs.rate/rounds, "bare-msg/s")
	b.ReportMetric(theirs.cpu/rounds, "µs-cpu/bare-msg")
	b.ReportMetric(ours.rate/theirs.rate, "ratio")
	b.ReportMetric(0, "ns/op")
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

func ourLoop(b *testing.B, p providers.Provider, n, size, callers int) {
	var next, accepted atomic.Int64
	var wg sync.WaitGroup
	batch := batchOf(size)
	for i := range batch {
		mailOf(&batch[i])
	}
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

func bareLoop(b *testing.B, sessions []*gomail.Client, n int) {
	var next atomic.Int64
	var wg sync.WaitGroup
	text, html := string(filler(1000)), "<html><body><p>"+string(filler(1000))+"</p></body></html>"
	for _, c := range sessions {
		wg.Go(func() {
			for i := next.Add(1); int(i) <= n; i = next.Add(1) {
				m := gomail.NewMsg()
				if err := m.From("no-reply@example.com"); err != nil {
					b.Error(err)
				}
				if err := m.To("user@example.org"); err != nil {
					b.Error(err)
				}
				m.Subject("Hi")
				m.SetMessageIDWithValue(fmt.Sprintf("%d@example.com", i))
				m.SetBodyString(gomail.TypeTextPlain, text)
				m.AddAlternativeString(gomail.TypeTextHTML, html)
				if err := c.Send(m); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkLoneMessage is the time of one message over an open session.
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
	check := email.Kind().Check
	m := message(mailOf)
	b.ReportAllocs()
	for b.Loop() {
		if err := check(m); err != nil {
			b.Fatal(err)
		}
	}
}
