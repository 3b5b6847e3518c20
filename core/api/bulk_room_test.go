package api_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/carillon-notify/carillon/core/api"
	"github.com/carillon-notify/carillon/core/intake"
)

// stuck accepts nothing until it may.
type stuck struct {
	api.Intake
	held atomic.Int64
	may  chan struct{}
}

func (s *stuck) Accept(context.Context, string, *intake.Request, intake.Key) (*intake.Accepted, error) {
	s.held.Add(1)
	<-s.may
	return &intake.Accepted{Deliveries: 1}, nil
}

// TestBulkRoom: however many bulk streams there are, what they hold of lines that are being accepted is bounded; each
// comes to its end.
func TestBulkRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const lines, size, room = 20, 100_000, 1_000_000
		s := &stuck{may: make(chan struct{})}
		r := newRig(t, func(o *api.Options) { s.Intake, o.Intake, o.BulkRoom = o.Intake, s, room })
		body := strings.Repeat(mail(`"content":{"title":"`+strings.Repeat("x", size)+`"}`)+"\n", lines)
		ended := make(chan answer, 3)
		for range cap(ended) {
			go func() {
				ended <- r.do("POST", "/v1/notifications/bulk", sendKey, body, "Content-Type", "application/x-ndjson")
			}()
		}
		synctest.Wait()
		if n := s.held.Load(); n < 5 || n*size > room {
			t.Errorf("%d lines of %d bytes are held", n, size)
		}
		close(s.may)
		for range cap(ended) {
			if a := <-ended; a.status != 200 || strings.Count(string(a.body), `"status":202`) != lines {
				t.Errorf("%d %.300s", a.status, a.body)
			}
		}
	})
}
