package pool_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carillon-notify/carillon/providers/pool"
)

func (s *service) dialed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next
}

// TestSharedChurn has a service end its connections: one that does so after a request or two is not given
// a new one for each.
func TestSharedChurn(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		uses, untaken int           // of each connection
		life          time.Duration // of each connection
		least, most   int           // connections in a minute
		churns        bool
	}{
		"after one request":      {1, 0, 0, 60, 75, true},
		"after one of a crowd's": {1, 99, 0, 60, 75, true},
		"after half of enough":   {50, 0, 0, 120, 150, true},
		"after enough":           {100, 0, 10 * time.Millisecond, 5000, 6001, false},
		"after a while":          {1, 0, 10 * time.Second, 6, 7, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &service{}
				p := newShared(s, pool.Config{Max: 2, Streams: 1000})
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				for ctx.Err() == nil && s.dialed() <= test.most {
					c, err := p.Acquire(ctx)
					if err != nil {
						break // the minute is over: nobody is told of a failure
					}
					var crowd []*pool.Conn[int]
					for range test.uses + test.untaken - 1 {
						if again, err := p.Acquire(ctx); err == nil {
							crowd = append(crowd, again)
						}
					}
					time.Sleep(test.life)
					c.Release()
					for range min(test.uses-1, len(crowd)) {
						crowd[0].Release()
						crowd = crowd[1:]
					}
					c.Retire()
					for _, c := range crowd {
						c.ReleaseUntaken()
					}
				}
				if ctx.Err() == nil && s.dialed() <= test.most {
					t.Error("somebody was refused")
				}
				if n := s.dialed(); n < test.least || n > test.most {
					t.Errorf("%d connections in a minute, want %d to %d", n, test.least, test.most)
				}
				if p.Churns() != test.churns {
					t.Errorf("it churns: %v", p.Churns())
				}
				time.Sleep(time.Minute)
				if p.Churns() {
					t.Error("a minute later it churns")
				}
				began := time.Now()
				for range 2 {
					mustUse(t, p).Retire()
				}
				if took := time.Since(began); took != 0 {
					t.Errorf("a minute later a connection waits %s", took)
				}
			})
		})
	}
}
