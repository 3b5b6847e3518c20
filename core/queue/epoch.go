package queue

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core"
)

// epochKey is gone when Redis was wiped.
const epochKey = "carillon:epoch"

type epoch struct {
	mu    sync.Mutex
	known string
	// fresh: this process found Redis without an epoch as it opened it and nobody was told yet.
	fresh bool
	// heard: the last Epoch had an answer.
	heard atomic.Bool
}

// Up reports whether Redis answered the last Epoch, which is called every second. One that answers and takes no writes,
// for it is full, is up; one that is embedded always is.
func (q *Queue) Up() bool { return q.epoch.heard.Load() }

// Epoch reports whether Redis lost its wakes since the last call: it was wiped or restarted empty, or,
// at the first call, was empty when the queue was opened. The relay then makes queued batches due at
// once instead of waiting for their alarm clocks.
func (q *Queue) Epoch(ctx context.Context) (changed bool, err error) {
	q.epoch.mu.Lock()
	defer q.epoch.mu.Unlock()
	now, err := q.client.Get(ctx, epochKey).Result()
	if ctx.Err() == nil { // else nobody waited for the answer
		q.epoch.heard.Store(err == nil || errors.Is(err, redis.Nil))
	}
	made := errors.Is(err, redis.Nil)
	if made {
		if err = q.client.SetNX(ctx, epochKey, rand.Text(), 0).Err(); err == nil {
			now, err = q.client.Get(ctx, epochKey).Result()
		}
	}
	if err != nil {
		return false, fmt.Errorf("read the epoch of Redis at %s: %w", q.url, err)
	}
	opening := q.epoch.known == ""
	changed = q.epoch.fresh || !opening && now != q.epoch.known
	if opening || now != q.epoch.known {
		// asynq writes the list of queues once in a process's life only.
		if queues := q.window.names(); len(queues) > 0 {
			members := make([]any, len(queues))
			for i, on := range queues {
				members[i] = on
			}
			if err := q.client.SAdd(ctx, "asynq:queues", members...).Err(); err != nil {
				return false, fmt.Errorf("name the queues on Redis at %s: %w", q.url, err)
			}
		}
	}
	q.epoch.known, q.epoch.fresh = now, opening && made
	return changed, nil
}

// split is name's reverse.
func split(queue string) (route string, lane core.Lane) {
	i := strings.LastIndexByte(queue, '.')
	return queue[:i], core.Lane(queue[i+1:])
}
