package gate

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// bucket is a route's rate: a token bucket whose tokens go to the most urgent lane that waits. A campaign
// that waits for its share must not stand in line before a password code, so a plain limiter, which serves
// in the order of arrival, will not do. A lane that always wants more than the rate starves those below.
// It is safe for concurrent use.
type bucket struct {
	rate  float64 // tokens a second
	burst float64

	mu     sync.Mutex
	tokens float64
	at     time.Time // when tokens was right
	lanes  [][]*waiter
	timer  *time.Timer // nil: nobody waits
}

// waiter is one who waits for n tokens.
type waiter struct {
	n       float64
	granted chan struct{} // closed when it has them
}

func newBucket(rate float64, burst int) *bucket {
	return &bucket{rate: rate, burst: float64(burst), tokens: float64(burst), at: time.Now(), lanes: make([][]*waiter, len(core.Lanes))}
}

// take waits for up to n tokens, no more than a burst, for as long as ctx lets it and returns how many it got. What
// can certainly not come before the deadline of ctx is not waited for.
func (b *bucket) take(ctx context.Context, lane core.Lane, n int) int {
	n = min(n, int(b.burst))
	if !b.wait(ctx, max(slices.Index(core.Lanes, lane), 0), n) {
		return 0
	}
	return n
}

func (b *bucket) wait(ctx context.Context, rank, n int) bool {
	if ctx.Err() != nil {
		return false
	}
	b.mu.Lock()
	b.refill()
	ahead := 0.0
	for _, ws := range b.lanes[:rank+1] {
		for _, w := range ws {
			ahead += w.n
		}
	}
	missing := ahead + float64(n) - b.tokens
	if ahead == 0 && missing <= 0 {
		b.tokens -= float64(n)
		b.mu.Unlock()
		return true
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < b.span(missing) {
		b.mu.Unlock()
		return false
	}
	w := &waiter{n: float64(n), granted: make(chan struct{})}
	b.lanes[rank] = append(b.lanes[rank], w)
	b.arm()
	b.mu.Unlock()
	select {
	case <-w.granted:
		return true
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-w.granted: // just now
		return true
	default:
	}
	b.lanes[rank] = slices.DeleteFunc(b.lanes[rank], func(o *waiter) bool { return o == w })
	b.serve()
	return false
}

// refill brings the tokens up to now.
func (b *bucket) refill() {
	now := time.Now()
	b.tokens = min(b.burst, b.tokens+now.Sub(b.at).Seconds()*b.rate)
	b.at = now
}

// span is how long n tokens take to come.
func (b *bucket) span(n float64) time.Duration {
	return time.Duration(max(n, 0) / b.rate * float64(time.Second))
}

// serve gives what there is to those who wait, the most urgent first, and sets the timer for the next.
func (b *bucket) serve() {
	b.refill()
	for w, lane := b.next(); w != nil && w.n <= b.tokens; w, lane = b.next() {
		b.tokens -= w.n
		b.lanes[lane] = b.lanes[lane][1:]
		close(w.granted)
	}
	b.arm()
}

// next is who has the first claim, nil for nobody.
func (b *bucket) next() (w *waiter, lane int) {
	for lane, ws := range b.lanes {
		if len(ws) > 0 {
			return ws[0], lane
		}
	}
	return nil, 0
}

// arm sets the timer for the one who has the first claim.
func (b *bucket) arm() {
	if b.timer != nil {
		b.timer.Stop()
		b.timer = nil
	}
	if w, _ := b.next(); w != nil {
		// A microsecond more, for what rounding leaves out.
		b.timer = time.AfterFunc(b.span(w.n-b.tokens)+time.Microsecond, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.serve()
		})
	}
}
