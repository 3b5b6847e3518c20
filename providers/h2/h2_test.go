package h2_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/carillon-notify/carillon/providers/h2"
)

// server is the other end of a connection, made of bare frames.
type server struct {
	t    *testing.T
	nc   net.Conn
	fr   *http2.Framer
	enc  *hpack.Encoder
	hbuf bytes.Buffer
}

const soon = 20 * time.Second

// connect begins a connection and its other end. The server has read the preface and announces what is
// given.
func connect(t *testing.T, o h2.Options, settings ...http2.Setting) (*h2.Conn, *server) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = theirs.SetDeadline(time.Now().Add(soon))
	c := h2.New(nc, o)
	s := &server{t: t, nc: theirs, fr: http2.NewFramer(theirs, theirs)}
	s.enc = hpack.NewEncoder(&s.hbuf)
	s.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	t.Cleanup(func() { _ = c.Close(); _ = theirs.Close() })
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(theirs, preface); err != nil || string(preface) != http2.ClientPreface {
		t.Fatalf("%q %v", preface, err)
	}
	if err := s.fr.WriteSettings(settings...); err != nil {
		t.Fatal(err)
	}
	return c, s
}

// settle waits until the client has taken over the settings.
func (s *server) settle(c *h2.Conn) {
	s.t.Helper()
	done := make(chan error, 1)
	go func() { done <- c.Ping(s.t.Context()) }()
	ping := next[*http2.PingFrame](s)
	if err := s.fr.WritePing(true, ping.Data); err != nil {
		s.t.Error(err)
	}
	if err := <-done; err != nil {
		s.t.Error(err)
	}
}

// next reads up to the next frame of a kind.
func next[F http2.Frame](s *server) (f F) {
	s.t.Helper()
	for {
		got, err := s.fr.ReadFrame()
		if err != nil {
			s.t.Fatalf("wait for a %T: %v", f, err)
		}
		if f, ok := got.(F); ok {
			return f
		}
	}
}

func (s *server) headers(stream uint32, end bool, fields ...string) {
	s.t.Helper()
	if err := s.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: s.block(fields...), EndHeaders: true, EndStream: end}); err != nil {
		s.t.Error(err)
	}
}

func (s *server) block(fields ...string) []byte {
	s.hbuf.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = s.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(s.hbuf.Bytes())
}

type answer struct {
	status int
	header http.Header
	body   string
	err    error
}

// ask makes a request beside the test.
func ask(ctx context.Context, c *h2.Conn, body string) <-chan answer {
	out := make(chan answer, 1)
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "https://push.example/3/device/aa?x=1", strings.NewReader(body))
	req.Header.Set("apns-id", "7")
	req.Header.Set("Content-Type", "application/json")
	go func() {
		resp, err := c.RoundTrip(req)
		if err != nil {
			out <- answer{err: err}
			return
		}
		b, err := io.ReadAll(resp.Body)
		out <- answer{resp.StatusCode, resp.Header, string(b), err}
	}()
	return out
}

func get(t *testing.T, a <-chan answer) answer {
	t.Helper()
	select {
	case x := <-a:
		return x
	case <-time.After(soon):
		t.Fatal("no answer")
		return answer{}
	}
}

// TestRequest tells what a request and its answer are on the wire, one after the other on one connection.
func TestRequest(t *testing.T) {
	t.Parallel()
	c, s := connect(t, h2.Options{Varying: []string{"apns-id"}})
	for i := range 3 {
		a := ask(t.Context(), c, `{"a":1}`)
		h := next[*http2.MetaHeadersFrame](s)
		if h.StreamID != uint32(2*i+1) || h.StreamEnded() {
			t.Errorf("stream %d, ended %v", h.StreamID, h.StreamEnded())
		}
		got := map[string]string{}
		for _, f := range h.Fields {
			got[f.Name] = f.Value
			if varies := f.Name == ":path" || f.Name == "apns-id" || f.Name == "content-length"; f.Sensitive != varies {
				t.Errorf("%s in the compression table: %v", f.Name, !f.Sensitive)
			}
		}
		want := map[string]string{":method": "POST", ":scheme": "https", ":authority": "push.example", ":path": "/3/device/aa?x=1", "apns-id": "7",
			"content-type": "application/json", "content-length": "7"}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%v", got)
		}
		if d := next[*http2.DataFrame](s); string(d.Data()) != `{"a":1}` || !d.StreamEnded() {
			t.Errorf("%q %v", d.Data(), d.StreamEnded())
		}
		s.headers(h.StreamID, false, ":status", "103", "link", "x")
		s.headers(h.StreamID, false, ":status", "400", "apns-id", "9", "x-n", strconv.Itoa(i))
		_ = s.fr.WriteDataPadded(h.StreamID, false, []byte(`{"reason"`), []byte{0, 0, 0})
		_ = s.fr.WriteData(h.StreamID, false, []byte(`:"no"}`))
		s.headers(h.StreamID, true, "trailer", "x")
		if got := get(t, a); got.status != 400 || got.body != `{"reason":"no"}` || got.err != nil || got.header.Get("apns-id") != "9" ||
			got.header.Get("X-N") != strconv.Itoa(i) || got.header.Get("trailer") != "" || got.header.Get("link") != "" {
			t.Errorf("%+v", got)
		}
	}
}

// TestContinuation tells that header fields longer than a frame go and come in several.
func TestContinuation(t *testing.T) {
	t.Parallel()
	c, s := connect(t, h2.Options{})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://push.example/", nil)
	long := strings.Repeat("^~", 10_000) // which Huffman coding only makes longer
	req.Header.Set("x-long", long)
	out := make(chan error, 1)
	go func() {
		resp, err := c.RoundTrip(req)
		if err == nil && len(resp.Header.Get("x-far")) != 9000 {
			err = fmt.Errorf("%d", len(resp.Header.Get("x-far")))
		}
		out <- err
	}()
	h := next[*http2.MetaHeadersFrame](s)
	if !h.StreamEnded() || h.RegularFields()[0].Value != long {
		t.Errorf("%v", h.StreamEnded())
	}
	block := s.block(":status", "200", "x-far", strings.Repeat("y", 9000))
	_ = s.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:5], EndStream: true})
	_ = s.fr.WriteContinuation(1, false, block[5:10])
	_ = s.fr.WriteContinuation(1, true, block[10:])
	if err := <-out; err != nil {
		t.Error(err)
	}
}

// TestUnprocessed tells which failures say that the server has not taken the request.
func TestUnprocessed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do          func(s *server)
		unprocessed bool
	}{
		"refused stream":        {func(s *server) { _ = s.fr.WriteRSTStream(1, http2.ErrCodeRefusedStream) }, true},
		"another reset":         {func(s *server) { _ = s.fr.WriteRSTStream(1, http2.ErrCodeInternal) }, false},
		"goaway above":          {func(s *server) { _ = s.fr.WriteGoAway(0, http2.ErrCodeNo, nil) }, true},
		"goaway below, dropped": {func(s *server) { _ = s.fr.WriteGoAway(1, http2.ErrCodeNo, nil); _ = s.nc.Close() }, false},
		"dropped":               {func(s *server) { _ = s.nc.Close() }, false},
		"data without headers":  {func(s *server) { _ = s.fr.WriteData(1, true, []byte("x")) }, false},
		"no status":             {func(s *server) { s.headers(1, true, "a", "b") }, false},
		"two statuses":          {func(s *server) { s.headers(1, true, ":status", "200", ":status", "200") }, false},
		"unknown stream":        {func(s *server) { _ = s.fr.WriteRSTStream(1, 2); s.headers(9, true, ":status", "200") }, false},
		"push": {func(s *server) {
			_ = s.fr.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		}, false},
		"frame too large": {func(s *server) { _ = s.fr.WriteData(1, true, make([]byte, 20_000)) }, false},
		"broken headers": {func(s *server) {
			_ = s.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff}, EndHeaders: true})
		}, false},
		"headers without end": {func(s *server) {
			_ = s.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, 16000)})
			for range 70 {
				_ = s.fr.WriteContinuation(1, false, make([]byte, 16000))
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, s := connect(t, h2.Options{})
			a := ask(t.Context(), conn, "x")
			next[*http2.DataFrame](s)
			c.do(s)
			if got := get(t, a); got.err == nil || errors.Is(got.err, h2.ErrUnprocessed) != c.unprocessed {
				t.Errorf("%+v", got)
			}
		})
	}
}

// TestEnd tells that OnEnd is told once, that what is under way is answered after a GOAWAY, and that
// nothing begins any more.
func TestEnd(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{}, 5)
	c, s := connect(t, h2.Options{OnEnd: func() { ended <- struct{}{} }})
	a := ask(t.Context(), c, "x")
	next[*http2.DataFrame](s)
	_ = s.fr.WriteGoAway(1<<31-1, http2.ErrCodeNo, nil)
	<-ended
	if got := get(t, ask(t.Context(), c, "y")); !errors.Is(got.err, h2.ErrEnded) || !errors.Is(got.err, h2.ErrUnprocessed) {
		t.Errorf("%+v", got)
	}
	s.headers(1, true, ":status", "200")
	if got := get(t, a); got.status != 200 {
		t.Errorf("%+v", got)
	}
	_ = c.Close()
	if len(ended) != 0 {
		t.Error("told twice")
	}
}

// TestStreams tells that the server's limit is kept, as it rises and falls, and that a stream given up
// counts until the server knows.
func TestStreams(t *testing.T) {
	t.Parallel()
	limits := make(chan int, 5)
	c, s := connect(t, h2.Options{OnLimit: func(n int) { limits <- n }}, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
	s.settle(c)
	if n := <-limits; n != 1 {
		t.Errorf("limit %d", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := ask(ctx, c, "1")
	next[*http2.DataFrame](s)
	waits, stop := context.WithCancel(t.Context())
	second := ask(waits, c, "2")
	stop()
	if got := get(t, second); !errors.Is(got.err, h2.ErrUnprocessed) || !errors.Is(got.err, context.Canceled) {
		t.Errorf("%+v", got)
	}
	cancel()
	if got := get(t, first); !errors.Is(got.err, context.Canceled) || errors.Is(got.err, h2.ErrUnprocessed) {
		t.Errorf("%+v", got)
	}
	if f := next[*http2.RSTStreamFrame](s); f.StreamID != 1 || f.ErrCode != http2.ErrCodeCancel {
		t.Errorf("%v", f)
	}
	ping := next[*http2.PingFrame](s)
	third := ask(t.Context(), c, "3")
	s.silent("a stream began that the server still counts")
	_ = s.fr.WritePing(true, ping.Data)
	if h := next[*http2.MetaHeadersFrame](s); h.StreamID != 3 {
		t.Errorf("%v", h)
	}
	_ = s.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 2})
	fourth := ask(t.Context(), c, "4")
	if h := next[*http2.MetaHeadersFrame](s); h.StreamID != 5 {
		t.Errorf("%v", h)
	}
	s.headers(3, true, ":status", "200")
	s.headers(5, true, ":status", "201")
	if a, b := get(t, third), get(t, fourth); a.status != 200 || b.status != 201 {
		t.Errorf("%+v %+v", a, b)
	}
}

// silent fails if a request comes within a short time.
func (s *server) silent(what string) {
	s.t.Helper()
	_ = s.nc.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	defer s.nc.SetReadDeadline(time.Now().Add(soon))
	for {
		f, err := s.fr.ReadFrame()
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			return
		}
		if err != nil {
			s.t.Fatal(err)
		}
		switch f.(type) {
		case *http2.MetaHeadersFrame, *http2.DataFrame:
			s.t.Error(what)
		}
	}
}

// TestWindows tells that no byte goes beyond the windows of stream and connection, whatever order they
// grow in.
func TestWindows(t *testing.T) {
	t.Parallel()
	c, s := connect(t, h2.Options{}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 3})
	s.settle(c)
	a := ask(t.Context(), c, "0123456789")
	read := func(want string, end bool) {
		t.Helper()
		if d := next[*http2.DataFrame](s); string(d.Data()) != want || d.StreamEnded() != end {
			t.Errorf("%q %v", d.Data(), d.StreamEnded())
		}
	}
	read("012", false)
	s.silent("data beyond the stream's window")
	_ = s.fr.WriteWindowUpdate(1, 2)
	read("34", false)
	_ = s.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 6}) // three more for every stream
	read("567", false)
	_ = s.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}) // now below nothing
	_ = s.fr.WriteWindowUpdate(1, 5)
	s.silent("data beyond a window that shrank")
	_ = s.fr.WriteWindowUpdate(1, 100)
	read("89", true)
	s.headers(1, true, ":status", "200")
	if got := get(t, a); got.status != 200 {
		t.Errorf("%+v", got)
	}
	// A request that cannot be sent whole was not processed.
	ctx, cancel := context.WithCancel(t.Context())
	a = ask(ctx, c, "abc")
	read("a", false)
	cancel()
	if got := get(t, a); !errors.Is(got.err, h2.ErrUnprocessed) {
		t.Errorf("%+v", got)
	}
}

// TestConnectionWindow tells that the server's window of the connection is kept, and ours renewed.
func TestConnectionWindow(t *testing.T) {
	t.Parallel()
	c, s := connect(t, h2.Options{}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	s.settle(c)
	a := ask(t.Context(), c, strings.Repeat("x", 70_000))
	got := 0
	for got < 65535 {
		got += len(next[*http2.DataFrame](s).Data())
	}
	s.silent("data beyond the connection's window")
	_ = s.fr.WriteWindowUpdate(0, 10_000)
	for got < 70_000 {
		got += len(next[*http2.DataFrame](s).Data())
	}
	s.headers(1, true, ":status", "200")
	if x := get(t, a); x.status != 200 || got != 70_000 {
		t.Errorf("%+v %d", x, got)
	}
	renewed := uint32(0)
	for i := uint32(3); renewed == 0; i += 2 {
		a := ask(t.Context(), c, "")
		next[*http2.MetaHeadersFrame](s)
		s.headers(i, false, ":status", "200")
		for range 5 {
			_ = s.fr.WriteData(i, false, make([]byte, 10_000))
		}
		_ = s.fr.WriteData(i, true, nil)
		if x := get(t, a); len(x.body) != 50_000 {
			t.Fatalf("%d %v", len(x.body), x.err)
		}
		if i > 21 {
			s.settleFor(func(n uint32) { renewed += n }, c)
		}
	}
	if renewed < 500_000 {
		t.Errorf("renewed by %d", renewed)
	}
}

// settleFor is settle that tells of window updates of the connection.
func (s *server) settleFor(tell func(n uint32), c *h2.Conn) {
	s.t.Helper()
	done := make(chan error, 1)
	go func() { done <- c.Ping(s.t.Context()) }()
	for {
		f, err := s.fr.ReadFrame()
		if err != nil {
			s.t.Fatal(err)
		}
		switch f := f.(type) {
		case *http2.WindowUpdateFrame:
			if f.StreamID == 0 && f.Increment < 1<<20-65535 {
				tell(f.Increment)
			}
		case *http2.PingFrame:
			_ = s.fr.WritePing(true, f.Data)
			if err := <-done; err != nil {
				s.t.Error(err)
			}
			return
		}
	}
}

// TestBrokenAnswer tells that an answer that breaks off in its body keeps its status and fails there.
func TestBrokenAnswer(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(*server){
		"reset":    func(s *server) { _ = s.fr.WriteRSTStream(1, http2.ErrCodeInternal) },
		"dropped":  func(s *server) { _ = s.nc.Close() },
		"too long": func(s *server) { _ = s.fr.WriteData(1, false, make([]byte, 16384)); s.fill() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, s := connect(t, h2.Options{})
			a := ask(t.Context(), c, "x")
			next[*http2.DataFrame](s)
			s.headers(1, false, ":status", "410")
			_ = s.fr.WriteData(1, false, []byte("begin"))
			do(s)
			if got := get(t, a); got.status != 410 || got.err == nil || !strings.HasPrefix(got.body, "begin") {
				t.Errorf("%d %v", got.status, got.err)
			}
		})
	}
}

func (s *server) fill() {
	for range 3 {
		_ = s.fr.WriteData(1, false, make([]byte, 16384))
	}
}

// TestEarlyAnswer tells that an answer before the request's end is taken, and the rest not sent.
func TestEarlyAnswer(t *testing.T) {
	t.Parallel()
	c, s := connect(t, h2.Options{}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
	s.settle(c)
	a := ask(t.Context(), c, "long")
	next[*http2.DataFrame](s)
	s.headers(1, true, ":status", "413")
	if got := get(t, a); got.status != 413 {
		t.Errorf("%+v", got)
	}
	if f := next[*http2.RSTStreamFrame](s); f.StreamID != 1 || f.ErrCode != http2.ErrCodeNo {
		t.Errorf("%v", f)
	}
}

// TestSilence tells that a server that stops answering is given up, and one that answers is not.
func TestSilence(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{})
	c, s := connect(t, h2.Options{PingAfter: 50 * time.Millisecond, PingTimeout: 2 * time.Second, OnEnd: func() { close(ended) }})
	a := ask(t.Context(), c, "x")
	for range 3 {
		_ = s.fr.WritePing(true, next[*http2.PingFrame](s).Data)
	}
	select {
	case <-ended:
		t.Error("given up though it answered")
	default:
	}
	next[*http2.PingFrame](s) // this one is not answered
	<-ended
	if got := get(t, a); got.err == nil || errors.Is(got.err, h2.ErrUnprocessed) {
		t.Errorf("%+v", got)
	}
}

// TestPingIsAnswered tells that the server's own pings are.
func TestPingIsAnswered(t *testing.T) {
	t.Parallel()
	_, s := connect(t, h2.Options{})
	_ = s.fr.WritePing(false, [8]byte{1, 2, 3})
	if f := next[*http2.PingFrame](s); !f.IsAck() || f.Data != [8]byte{1, 2, 3} {
		t.Errorf("%v", f)
	}
}

// TestNotListening tells that a server that asks without end and reads nothing does not fill memory.
func TestNotListening(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{})
	_, s := connect(t, h2.Options{OnEnd: func() { close(ended) }})
	for {
		if err := s.fr.WritePing(false, [8]byte{}); err != nil {
			break // it hung up
		}
		select {
		case <-ended:
			return
		default:
		}
	}
	<-ended
}

// TestMany has many requests under way at once, against a real server of another make.
func TestMany(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	go (&http2.Server{MaxConcurrentStreams: 20}).ServeConn(theirs, &http2.ServeConnOpts{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("apns-id", r.Header.Get("apns-id"))
		w.WriteHeader(400 + len(b)%7)
		_, _ = w.Write(b)
	})})
	c := h2.New(ours, h2.Options{Varying: []string{"apns-id"}})
	t.Cleanup(func() { _ = c.Close(); _ = theirs.Close() })
	if err := c.Ping(t.Context()); err != nil { // from then on its limit is known
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 50 {
		wg.Go(func() {
			for i := range 40 {
				body := strings.Repeat("x", (g*40+i)%9000)
				req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://push.example/"+strconv.Itoa(i), strings.NewReader(body))
				id := fmt.Sprint(g, "-", i)
				req.Header.Set("apns-id", id)
				resp, err := c.RoundTrip(req)
				if err != nil {
					t.Error(err)
					return
				}
				b, err := io.ReadAll(resp.Body)
				if err != nil || string(b) != body || resp.StatusCode != 400+len(body)%7 || resp.Header.Get("apns-id") != id {
					t.Errorf("%s: %d, %d of %d bytes, %v", id, resp.StatusCode, len(b), len(body), err)
				}
			}
		})
	}
	wg.Wait()
}
