package fcm_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

// A stream that the peer refuses was not looked at (RFC 9113, 8.7): the message goes again, at once and
// as the same attempt. A stream that it resets for another reason may have been.
func TestRefusedStream(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		code     http2.ErrCode
		accepted bool
		requests int64
	}{{http2.ErrCodeRefusedStream, true, 3}, {http2.ErrCodeInternal, false, 1}, {http2.ErrCodeCancel, false, 1}} {
		t.Run(tt.code.String(), func(t *testing.T) {
			t.Parallel()
			g := startGoogle(t)
			r := startResetter(t, g, tt.code, 2)
			m := batchOf(1)[0]
			results, err := sandboxtest.Deliver(t.Context(), t, g.open(map[string]any{"endpoint": "https://" + r.ln.Addr().String()}), m)
			if got := results[m.ID].Outcome == providers.Accepted; got != tt.accepted || (err == nil) != tt.accepted {
				t.Errorf("results %v, error %v", results, err)
			}
			if n := r.requests.Load(); n != tt.requests {
				t.Errorf("%d requests, want %d", n, tt.requests)
			}
		})
	}
}

// resetter is an HTTP/2 server, frame by frame, that resets the first streams once it has them whole.
type resetter struct {
	t        *testing.T
	ln       net.Listener
	code     http2.ErrCode
	times    int64
	requests atomic.Int64
}

func startResetter(t *testing.T, g *google, code http2.ErrCode, times int64) *resetter {
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: g.TLS.Certificates, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	r := &resetter{t: t, ln: ln, code: code, times: times}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go r.serve(c)
		}
	}()
	return r
}

func (r *resetter) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	f := http2.NewFramer(c, c)
	if err := f.WriteSettings(); err != nil {
		return
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		switch v := frame.(type) {
		case *http2.SettingsFrame:
			if !v.IsAck() {
				err = f.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !v.IsAck() {
				err = f.WritePing(true, v.Data)
			}
		case *http2.DataFrame:
			if v.StreamEnded() {
				err = r.answer(f, v.StreamID)
			}
		}
		if err != nil {
			return
		}
	}
}

func (r *resetter) answer(f *http2.Framer, stream uint32) error {
	if r.requests.Add(1) <= r.times {
		return f.WriteRSTStream(stream, r.code)
	}
	var head bytes.Buffer
	if err := hpack.NewEncoder(&head).WriteField(hpack.HeaderField{Name: ":status", Value: "200"}); err != nil {
		return fmt.Errorf("encode the header: %w", err)
	}
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: head.Bytes(), EndHeaders: true}); err != nil {
		return err
	}
	return f.WriteData(stream, true, []byte(`{"name":"n"}`))
}
