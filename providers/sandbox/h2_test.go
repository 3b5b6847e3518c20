package sandbox_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

// These tests speak HTTP/2 frame by frame, where net/http's client shows only its own ways.

// block encodes a request's header.
func (p *rawPusher) encode(extra ...hpack.HeaderField) []byte {
	p.block.Reset()
	for _, f := range append(append([]hpack.HeaderField{}, p.fixed...), extra...) {
		p.enc.WriteField(f) //nolint:errcheck // into memory
	}
	return bytes.Clone(p.block.Bytes())
}

// until reads frames up to the first for which f returns true.
func (p *rawPusher) until(t *testing.T, f func(http2.Frame) bool) {
	t.Helper()
	if err := p.out.Flush(); err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := p.framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f(frame) {
			return
		}
	}
}

func check(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func status(h *http2.HeadersFrame) string {
	fields, err := hpack.NewDecoder(4096, nil).DecodeFull(h.HeaderBlockFragment()) // we are sent nothing indexed
	if err != nil || len(fields) == 0 {
		return ""
	}
	return fields[0].Value
}

func TestHTTP2Settings(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	check(t, s.Script(sandbox.APNs, sandbox.Script{MaxStreams: 7}))
	p := dialRaw(t, s, "", 1)
	p.until(t, func(f http2.Frame) bool {
		sf, ok := f.(*http2.SettingsFrame)
		if ok && !sf.IsAck() {
			if v, _ := sf.Value(http2.SettingMaxConcurrentStreams); v != 7 {
				t.Errorf("MAX_CONCURRENT_STREAMS is %d", v)
			}
		}
		return ok && sf.IsAck()
	})
	check(t, p.framer.WritePing(false, [8]byte{1, 2, 3}))
	p.until(t, func(f http2.Frame) bool {
		ping, ok := f.(*http2.PingFrame)
		return ok && ping.IsAck() && ping.Data == [8]byte{1, 2, 3}
	})
}

// TestHTTP2Pieces sends one push in as many frames as the protocol lets it.
func TestHTTP2Pieces(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	p := dialRaw(t, s, providerToken(t, s, nil), 1)
	block := p.encode(hpack.HeaderField{Name: "te", Value: "trailers"})
	check(t, p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:10], PadLength: 3,
		Priority: http2.PriorityParam{Weight: 5}}))
	for i := 10; i < len(block); i++ {
		check(t, p.framer.WriteContinuation(1, i == len(block)-1, block[i:i+1]))
	}
	for _, c := range []byte(payload) {
		check(t, p.framer.WriteDataPadded(1, false, []byte{c}, make([]byte, 7)))
	}
	p.block.Reset()
	check(t, p.enc.WriteField(hpack.HeaderField{Name: "x-trailer", Value: "v"}),
		p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block.Bytes(), EndHeaders: true, EndStream: true}))
	p.until(t, func(f http2.Frame) bool {
		h, ok := f.(*http2.HeadersFrame)
		if ok && (status(h) != "200" || !h.StreamEnded()) {
			t.Errorf("answered %s", status(h))
		}
		return ok
	})
	if m := s.Messages(sandbox.Filter{}); len(m) != 1 || m[0].Content != payload {
		t.Errorf("ledger has %+v", m)
	}
}

// TestHTTP2Windows lets the server send a few bytes at a time.
func TestHTTP2Windows(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	p := dialRaw(t, s, "", 1) // no token: an answer with a body
	check(t, p.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 4}),
		p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.encode(), EndHeaders: true, EndStream: true}))
	var body strings.Builder
	for granted, ended := 4, false; !ended; granted += 5 {
		check(t, p.framer.WritePing(false, [8]byte{})) // its answer comes after all that may be sent
		p.until(t, func(f http2.Frame) bool {
			if d, ok := f.(*http2.DataFrame); ok {
				body.Write(d.Data())
				ended = d.StreamEnded()
			}
			_, ok := f.(*http2.PingFrame)
			return ok
		})
		if body.Len() > granted {
			t.Fatalf("%d bytes where %d are allowed", body.Len(), granted)
		}
		check(t, p.framer.WriteWindowUpdate(1, 5))
	}
	if body.String() != `{"reason":"InvalidProviderToken"}` && body.String() != `{"reason":"MissingProviderToken"}` {
		t.Errorf("answered %q", body.String())
	}
}

// TestHTTP2Resets gives streams up before and after they are complete.
func TestHTTP2Resets(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	check(t, s.Script(sandbox.APNs, sandbox.Script{MaxStreams: 1, Stall: 1}))
	p := dialRaw(t, s, providerToken(t, s, nil), 1)
	open := func(id uint32) {
		check(t, p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.encode(), EndHeaders: true}))
	}
	open(1)
	check(t, p.framer.WriteRSTStream(1, http2.ErrCodeCancel), p.framer.WriteData(1, true, []byte(payload)))
	open(3)
	check(t, p.framer.WriteData(3, true, []byte(payload)))
	open(5) // one more than is allowed
	p.until(t, func(f http2.Frame) bool {
		r, ok := f.(*http2.RSTStreamFrame)
		if ok && (r.StreamID != 5 || r.ErrCode != http2.ErrCodeRefusedStream) {
			t.Errorf("server sent %v", r)
		}
		return ok
	})
	check(t, s.Script(sandbox.APNs, sandbox.Script{}))
	check(t, p.framer.WriteRSTStream(3, http2.ErrCodeCancel))
	open(7)
	check(t, p.framer.WriteData(7, true, []byte(payload)))
	p.until(t, func(f http2.Frame) bool {
		h, ok := f.(*http2.HeadersFrame)
		if ok && (h.StreamID != 7 || status(h) != "200") {
			t.Errorf("stream %d answered %s", h.StreamID, status(h))
		}
		return ok
	})
	if c := s.Counts(sandbox.APNs); c.Taken != 2 {
		t.Errorf("counts are %+v", c)
	}
}

// TestHTTP2GoAway holds the server to what its GOAWAY says: up to there all is answered, nothing beyond.
func TestHTTP2GoAway(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	check(t, s.Script(sandbox.APNs, sandbox.Script{GoAwayEvery: 3}))
	p := dialRaw(t, s, providerToken(t, s, nil), 10)
	check(t, p.push(6))
	answers, last := 0, uint32(0)
	for {
		f, err := p.framer.ReadFrame()
		if errors.Is(err, io.EOF) {
			break
		}
		check(t, err)
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			last = f.LastStreamID
		case *http2.HeadersFrame:
			answers++
		}
	}
	if answers != 3 || last != 5 {
		t.Errorf("%d answers, last stream %d", answers, last)
	}
	if c := s.Counts(sandbox.APNs); c.Requests != 3 || c.Taken != 3 {
		t.Errorf("counts are %+v", c)
	}
}

// TestHTTP2GoAwayBetween has two requests under way when the first of them brings the GOAWAY.
func TestHTTP2GoAwayBetween(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	check(t, s.Script(sandbox.APNs, sandbox.Script{GoAwayEvery: 1}))
	p := dialRaw(t, s, providerToken(t, s, nil), 1)
	for _, id := range []uint32{1, 3} {
		check(t, p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.encode(), EndHeaders: true}))
	}
	check(t, p.framer.WriteData(1, true, []byte(payload)))
	p.until(t, func(f http2.Frame) bool {
		g, ok := f.(*http2.GoAwayFrame)
		if ok && g.LastStreamID != 3 {
			t.Errorf("GOAWAY disowns stream 3: the last is %d", g.LastStreamID)
		}
		return ok
	})
	check(t, p.framer.WriteData(3, true, []byte(payload)))
	p.until(t, func(f http2.Frame) bool {
		h, ok := f.(*http2.HeadersFrame)
		return ok && h.StreamID == 3 && status(h) == "200"
	})
}

// TestHTTP2Faults sends what no client may send; the server answers as RFC 9113 asks and lives on.
func TestHTTP2Faults(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	token := providerToken(t, s, nil)
	for _, tc := range []struct {
		name string
		send func(p *rawPusher) error
		code http2.ErrCode
	}{
		{"data on an idle stream", func(p *rawPusher) error { return p.framer.WriteData(9, true, []byte("x")) }, http2.ErrCodeProtocol},
		{"an even stream", func(p *rawPusher) error {
			return p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 2, BlockFragment: p.encode(), EndHeaders: true})
		}, http2.ErrCodeProtocol},
		{"reset of an idle stream", func(p *rawPusher) error { return p.framer.WriteRSTStream(9, http2.ErrCodeCancel) }, http2.ErrCodeProtocol},
		{"a header block that is none", func(p *rawPusher) error {
			return p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: bytes.Repeat([]byte{0xff}, 40), EndHeaders: true})
		}, http2.ErrCodeCompression},
		{"an endless header", func(p *rawPusher) error {
			err := p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.encode()})
			for i := 0; i < 10 && err == nil; i++ {
				err = p.framer.WriteContinuation(1, false, bytes.Repeat([]byte{0x82}, 8000))
			}
			return err
		}, http2.ErrCodeEnhanceYourCalm},
		{"too large a window", func(p *rawPusher) error { return p.framer.WriteWindowUpdate(0, 1<<31-1) }, http2.ErrCodeFlowControl},
		{"a frame too large", func(p *rawPusher) error {
			return p.framer.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 1<<15))
		}, http2.ErrCodeFrameSize},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := dialRaw(t, s, token, 1)
			check(t, tc.send(p))
			check(t, p.out.Flush())
			for {
				f, err := p.framer.ReadFrame()
				if err != nil {
					t.Fatalf("no GOAWAY: %v", err)
				}
				if g, ok := f.(*http2.GoAwayFrame); ok {
					if g.ErrCode != tc.code {
						t.Errorf("GOAWAY with %v, want %v", g.ErrCode, tc.code)
					}
					return
				}
			}
		})
	}
	if a, err := do(t, h2(t, s), pushRequest(t.Context(), t, s, token)); err != nil || a.Status != 200 {
		t.Errorf("afterwards: %+v, %v", a, err)
	}
}

// FuzzHTTP2 throws bytes at a server that must neither fall nor take a message.
func FuzzHTTP2(f *testing.F) {
	f.Add([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0})
	f.Add([]byte("\x00\x00\x01\x01\x05\x00\x00\x00\x01\x82"))
	f.Add([]byte("\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x01"))
	s := start(f, sandbox.Options{})
	f.Fuzz(func(t *testing.T, data []byte) {
		p := dialRaw(t, s, "", 1)
		if _, err := p.out.Write(data); err != nil {
			return
		}
		if p.out.Flush() != nil || p.conn.CloseWrite() != nil {
			return
		}
		io.Copy(io.Discard, p.conn) //nolint:errcheck // until the server hangs up
		if n := s.Counts(sandbox.APNs).Taken; n != 0 {
			t.Errorf("%d messages were taken without a token", n)
		}
	})
}
