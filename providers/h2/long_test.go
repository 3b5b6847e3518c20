package h2_test

import (
	"context"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/carillon-notify/carillon/providers/h2"
)

// long answers with a header block in as many frames as it needs, none larger than that.
func (s *server) long(stream uint32, frame int, fields ...string) {
	s.t.Helper()
	block := s.block(fields...)
	n := min(frame, len(block))
	err := s.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block[:n], EndHeaders: n == len(block), EndStream: true})
	for block = block[n:]; err == nil && len(block) > 0; block = block[n:] {
		n = min(frame, len(block))
		err = s.fr.WriteContinuation(stream, n == len(block), block[:n])
	}
	if err != nil {
		s.t.Error(err)
	}
}

// TestLongHeaders has an answer with more header fields than are kept: it is that request's loss alone. What
// the block put into the compression table is used by the next answers on the same connection.
func TestLongHeaders(t *testing.T) {
	t.Parallel()
	many := func(n, size int) (fields []string) {
		for range n {
			fields = append(fields, "x-pad", strings.Repeat("^", size))
		}
		return fields
	}
	for name, test := range map[string]struct {
		frame  int
		fields []string
		status int // 0: an error
	}{
		"one long value":            {16384, append([]string{":status", "200"}, many(1, 17_000)...), 200},
		"a value of many frames":    {16384, append([]string{":status", "410"}, many(1, 300_000)...), 410},
		"many fields":               {16384, append([]string{":status", "200"}, many(2_000, 100)...), 200},
		"small frames":              {100, append([]string{":status", "200"}, many(20, 4_000)...), 200},
		"without a status":          {16384, many(30, 1_000), 0},
		"the status comes too late": {16384, append(many(30, 1_000), ":status", "200"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, s := connect(t, h2.Options{})
			long := ask(t.Context(), c, "{}")
			stream := next[*http2.DataFrame](s).StreamID
			neighbour := ask(t.Context(), c, "{}")
			other := next[*http2.DataFrame](s).StreamID
			s.long(stream, test.frame, append(test.fields, "x-kept", "in the table")...)
			if a := get(t, long); a.status != test.status || a.err == nil {
				t.Errorf("the long answer: %d, %v; want %d and an error", a.status, a.err, test.status)
			}
			if reset := next[*http2.RSTStreamFrame](s); reset.StreamID != stream {
				t.Errorf("stream %d was reset", reset.StreamID)
			}
			s.headers(other, true, ":status", "200", "x-kept", "in the table")
			if a := get(t, neighbour); a.err != nil || a.header.Get("x-kept") != "in the table" {
				t.Errorf("its neighbour: %+v", a)
			}
			again := ask(t.Context(), c, "{}")
			s.headers(next[*http2.DataFrame](s).StreamID, true, ":status", "200", "x-kept", "in the table")
			if a := get(t, again); a.err != nil || a.header.Get("x-kept") != "in the table" {
				t.Errorf("the next request: %+v", a)
			}
		})
	}
}

// TestLongInterim has long header fields come before the answer, which is taken.
func TestLongInterim(t *testing.T) {
	t.Parallel()
	c, s := connect(t, h2.Options{})
	a := ask(t.Context(), c, "{}")
	stream := next[*http2.DataFrame](s).StreamID
	if err := s.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream,
		BlockFragment: s.block(":status", "103"), EndHeaders: false}); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if err := s.fr.WriteContinuation(stream, i == 19, s.block("link", strings.Repeat("^", 1000))); err != nil {
			t.Fatal(err)
		}
	}
	s.headers(stream, true, ":status", "200", "apns-id", "7")
	if got := get(t, a); got.status != 200 || got.err != nil || got.header.Get("link") != "" || got.header.Get("apns-id") != "7" {
		t.Errorf("%+v", got)
	}
}

// TestInterimIsNoAnswer has the server end a stream with an answer that announces another.
func TestInterimIsNoAnswer(t *testing.T) {
	t.Parallel()
	c, s := connect(t, h2.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	a := ask(ctx, c, "{}")
	s.headers(next[*http2.DataFrame](s).StreamID, true, ":status", "103")
	if got := get(t, a); got.err == nil || ctx.Err() != nil {
		t.Errorf("%+v", got)
	}
}
