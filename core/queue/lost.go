package queue

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/carillon-notify/carillon/core"
)

const (
	// mostLost is how many lost wakes are remembered. Those beyond come back by their alarm clocks.
	mostLost = 10_000
	// probeKey is written to learn whether Redis takes writes.
	probeKey  = "carillon:probe"
	probeLife = time.Minute
)

// lost remembers the wakes that could not be enqueued: Redis was away, full, read-only or loading.
type lost struct {
	mu    sync.Mutex
	wakes []core.Wake
}

func (l *lost) add(wakes []core.Wake) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wakes = append(l.wakes, wakes[:min(len(wakes), mostLost-len(l.wakes))]...)
}

func (l *lost) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.wakes)
}

func (l *lost) take() []core.Wake {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.wakes
	l.wakes = nil
	return out
}

// Lost returns, once Redis takes writes again, the wakes that this process could not enqueue since the
// last call. Their batches would wait for their alarm clocks otherwise. A wake whose answer was lost is
// among them although it may be in the queue.
func (q *Queue) Lost(ctx context.Context) ([]core.Wake, error) {
	if q.lost.len() == 0 {
		return nil, nil
	}
	if err := q.client.Set(ctx, probeKey, "", probeLife).Err(); err != nil {
		return nil, fmt.Errorf("write to Redis at %s: %w", q.url, err)
	}
	return q.lost.take(), nil
}
