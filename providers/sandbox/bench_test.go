package sandbox_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/carillon-notify/carillon/providers/sandbox"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

// rawPusher is the cheapest client that HTTP/2 allows: one goroutine that writes, one that reads, a
// window of streams. It measures the sandbox, where net/http's client would measure itself.
type rawPusher struct {
	conn   *tls.Conn
	out    *bufio.Writer
	framer *http2.Framer
	block  bytes.Buffer
	enc    *hpack.Encoder
	window chan struct{}
	next   uint32
	fixed  []hpack.HeaderField
	done   chan error
}

func dialRaw(t testing.TB, s *sandbox.Sandbox, token string, window int) *rawPusher {
	t.Helper()
	config := trust(t, s)
	config.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(s.APNsURL(), "https://"), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() }) //nolint:errcheck // at its end
	p := &rawPusher{conn: conn, out: bufio.NewWriterSize(conn, 64<<10), window: make(chan struct{}, window), next: 1, done: make(chan error, 1)}
	p.framer = http2.NewFramer(p.out, bufio.NewReaderSize(conn, 64<<10))
	p.enc = hpack.NewEncoder(&p.block)
	p.fixed = []hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "localhost"},
		{Name: ":path", Value: "/3/device/" + device}, {Name: "authorization", Value: "bearer " + token},
		{Name: "apns-topic", Value: sandbox.Topic}, {Name: "apns-push-type", Value: "alert"}, {Name: "apns-priority", Value: "10"},
	}
	if _, err := io.WriteString(p.out, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := p.framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return p
}

// push sends n pushes, not waiting for their answers.
func (p *rawPusher) push(n int) error {
	for range n {
		select {
		case p.window <- struct{}{}:
		default:
			if err := p.out.Flush(); err != nil {
				return err
			}
			p.window <- struct{}{}
		}
		p.block.Reset()
		for _, f := range p.fixed {
			p.enc.WriteField(f) //nolint:errcheck // into memory
		}
		p.enc.WriteField(hpack.HeaderField{Name: "apns-id", Value: uuid.NewString(), Sensitive: true}) //nolint:errcheck // as above
		if err := p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: p.next, BlockFragment: p.block.Bytes(), EndHeaders: true}); err != nil {
			return err
		}
		if err := p.framer.WriteData(p.next, true, []byte(payload)); err != nil {
			return err
		}
		p.next += 2
	}
	return p.out.Flush()
}

// answers reads n answers, all of which must be a 200.
func (p *rawPusher) answers(n int) error {
	for n > 0 {
		f, err := p.framer.ReadFrame()
		if err != nil {
			return err
		}
		switch f := f.(type) {
		case *http2.HeadersFrame:
			if f.HeaderBlockFragment()[0] != 0x88 {
				return fmt.Errorf("stream %d is no 200", f.StreamID)
			}
			<-p.window
			n--
		case *http2.GoAwayFrame, *http2.RSTStreamFrame:
			return fmt.Errorf("server sent %v", f)
		}
	}
	return nil
}

// cpu is what the process has used of the processors.
func report(b *testing.B, name string, used time.Duration) {
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), name+"/s")
	b.ReportMetric(float64(used.Microseconds())/float64(b.N), "cpu-µs/"+name)
}

// BenchmarkAPNs pushes over raw HTTP/2; client and server share the processors.
func BenchmarkAPNs(b *testing.B) {
	for _, tc := range []struct {
		conns   int
		latency time.Duration
	}{{1, 0}, {4, 0}, {4, 5 * time.Millisecond}} {
		b.Run(fmt.Sprintf("raw/conns=%d/latency=%s", tc.conns, tc.latency), func(b *testing.B) {
			conns := tc.conns
			s := start(b, sandbox.Options{})
			if err := s.Script(sandbox.APNs, sandbox.Script{Latency: tc.latency}); err != nil {
				b.Fatal(err)
			}
			token := providerToken(b, s, nil)
			pushers := make([]*rawPusher, conns)
			for i := range pushers {
				pushers[i] = dialRaw(b, s, token, 500)
			}
			before := sandboxtest.CPU()
			b.ResetTimer()
			var wg sync.WaitGroup
			for i, p := range pushers {
				n := b.N / conns
				if i == 0 {
					n += b.N % conns
				}
				wg.Go(func() {
					if err := p.push(n); err != nil {
						b.Error(err)
					}
				})
				wg.Go(func() {
					if err := p.answers(n); err != nil {
						b.Error(err)
					}
				})
			}
			wg.Wait()
			report(b, "push", sandboxtest.CPU()-before)
			if got := s.Counts(sandbox.APNs).Distinct; got != uint64(b.N) {
				b.Errorf("%d of %d arrived", got, b.N)
			}
		})
	}
	b.Run("net-http", func(b *testing.B) {
		s := start(b, sandbox.Options{})
		token, client := providerToken(b, s, nil), h2(b, s)
		run(b, "push", 200, func() error {
			a, err := do(b, client, pushRequest(context.Background(), b, s, token))
			if err == nil && a.Status != 200 {
				err = fmt.Errorf("answered %+v", a)
			}
			return err
		})
	})
}

// run does one thing b.N times from many goroutines.
func run(b *testing.B, name string, callers int, once func() error) {
	b.Helper()
	if err := once(); err != nil { // connections and tokens
		b.Fatal(err)
	}
	before := sandboxtest.CPU()
	b.ResetTimer()
	var wg sync.WaitGroup
	var n atomic.Int64
	for range callers {
		wg.Go(func() {
			for n.Add(1) <= int64(b.N) {
				if err := once(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	report(b, name, sandboxtest.CPU()-before)
}

// BenchmarkFCM sends over net/http's client, its cost included.
func BenchmarkFCM(b *testing.B) {
	s := start(b, sandbox.Options{})
	client := googleClient(b, s)
	run(b, "message", 100, func() error {
		a, err := do(b, client, sendRequest(b, s, fcmBody(b, "fcm-token-1", uuid.NewString())))
		if err == nil && a.Status != 200 {
			err = fmt.Errorf("answered %+v", a)
		}
		return err
	})
}

// BenchmarkSMTP sends mails over sessions that are kept open: one command a round trip, or pipelined.
func BenchmarkSMTP(b *testing.B) {
	b.Run("net-smtp", func(b *testing.B) {
		s := start(b, sandbox.Options{})
		sessions := make(chan func() error, 16)
		for range cap(sessions) {
			c := login(b, s)
			sessions <- func() error { return sendMail(c, "ann@example.com", mailText(uuid.NewString())) }
		}
		run(b, "mail", cap(sessions), func() error {
			send := <-sessions
			defer func() { sessions <- send }()
			return send()
		})
	})
	b.Run("pipelined", func(b *testing.B) {
		s := start(b, sandbox.Options{})
		sessions := make(chan *rawMail, 4)
		for range cap(sessions) {
			sessions <- dialMail(b, s)
		}
		run(b, "mail", cap(sessions), func() error {
			m := <-sessions
			defer func() { sessions <- m }()
			if err := m.exchange("MAIL FROM:<"+sandbox.From+">\r\nRCPT TO:<ann@example.com>\r\nDATA\r\n", "250", "250", "354"); err != nil {
				return err
			}
			return m.exchange(string(mailText(uuid.NewString()))+".\r\n", "250")
		})
	})
}
