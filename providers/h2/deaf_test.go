package h2_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/carillon-notify/carillon/providers/h2"
)

// TestDeaf gives a request up: the connection takes no more if the server has answered nobody for long.
func TestDeaf(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		after    time.Duration
		answered string // another request, meanwhile: "", "answer" or "reset"
		ended    bool
	}{
		"nobody is answered":     {time.Nanosecond, "", true},
		"another one is":         {time.Nanosecond, "answer", false},
		"another one is refused": {time.Nanosecond, "reset", false},
		"not for long":           {time.Hour, "", false},
		"never":                  {0, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ended := make(chan struct{}, 2)
			c, s := connect(t, h2.Options{DeafAfter: test.after, OnEnd: func() { ended <- struct{}{} }})
			s.settle(c)
			ctx, giveUp := context.WithCancel(t.Context())
			defer giveUp()
			silent := ask(ctx, c, "{}")
			next[*http2.DataFrame](s)
			if test.answered != "" {
				other := ask(t.Context(), c, "{}")
				stream := next[*http2.DataFrame](s).StreamID
				if test.answered == "answer" {
					s.headers(stream, true, ":status", "200")
				} else if err := s.fr.WriteRSTStream(stream, http2.ErrCodeInternal); err != nil {
					t.Error(err)
				}
				get(t, other)
			}
			giveUp()
			if a := get(t, silent); !errors.Is(a.err, context.Canceled) {
				t.Errorf("given up: %+v", a)
			}
			again := ask(t.Context(), c, "{}")
			if test.ended {
				if a := get(t, again); !errors.Is(a.err, h2.ErrEnded) || len(ended) != 1 {
					t.Errorf("the next request: %+v; told %d times", a, len(ended))
				}
				return
			}
			s.headers(next[*http2.DataFrame](s).StreamID, true, ":status", "200")
			if a := get(t, again); a.status != 200 || len(ended) != 0 {
				t.Errorf("the next request: %+v; told %d times", a, len(ended))
			}
		})
	}
}
