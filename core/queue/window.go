package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core"
)

// fresh is how old the known depth of the queues may be when room is asked for.
const fresh = 150 * time.Millisecond

// window is what is known of how full the queues are.
type window struct {
	size int

	mu     sync.Mutex
	depth  map[string]int // by queue
	added  map[string]int // since the look under way began
	at     time.Time      // of the last look
	asking bool
	down   bool // Redis could not be reached
}

func (w *window) init(size int, queues []string) {
	w.size, w.depth, w.added = size, map[string]int{}, map[string]int{}
	for _, q := range queues {
		w.depth[q] = 0
	}
}

// know counts queues in that were not there as the window was made.
func (w *window) know(queues []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, q := range queues {
		if _, known := w.depth[q]; !known {
			w.depth[q] = 0
		}
	}
}

func (w *window) add(queue string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.depth[queue]++
	if w.asking {
		w.added[queue]++
	}
}

// taken notes that a task left a queue's pending list.
func (w *window) taken(queue string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.depth[queue] = max(0, w.depth[queue]-1)
}

// fail notes that Redis could not be reached: there is no room until it can. A caller that went away
// says nothing about Redis.
func (w *window) fail(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down, w.at = true, time.Time{}
}

// begin reports whether the caller has to look.
func (w *window) begin() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.asking || time.Since(w.at) < fresh {
		return false
	}
	w.asking = true
	clear(w.added)
	return true
}

func (w *window) end(depths []Depth, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asking, w.at, w.down = false, time.Now(), err != nil
	for _, d := range depths {
		on := name(d.Route, d.Lane)
		w.depth[on] = d.Total() + w.added[on]
	}
}

// left is how many more wakes a queue may take.
func (w *window) left(queue string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down {
		return 0
	}
	return max(0, w.size-w.depth[queue])
}

func (w *window) queues() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]string, 0, len(w.depth))
	for q := range w.depth {
		out = append(out, q)
	}
	return out
}

// Room says how many more wakes the window of a route and lane takes from an app now: half of what is
// left, so that no single app shuts the others out; none while Redis cannot be reached. It never
// waits: it answers from a figure at most some 150 ms old, kept up with this process's own wakes.
func (q *Queue) Room(_, route string, lane core.Lane) int {
	if q.window.begin() {
		q.spawn(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			q.window.end(q.Depth(ctx))
		})
	}
	return (q.window.left(name(route, lane)) + 1) / 2
}

// Depth is how many wakes a queue holds.
type Depth struct {
	Route     string
	Lane      core.Lane
	Pending   int
	Scheduled int // due later, or to be tried again by asynq
	Active    int
}

// Total is the sum: what counts against the window.
func (d Depth) Total() int { return d.Pending + d.Scheduled + d.Active }

// Depth asks Redis how full each queue is, in one round trip.
func (q *Queue) Depth(ctx context.Context) ([]Depth, error) {
	queues := q.window.queues()
	pipe := q.client.Pipeline()
	counts := make([][4]*redis.IntCmd, len(queues))
	for i, on := range queues {
		key := "asynq:{" + on + "}:"
		counts[i] = [4]*redis.IntCmd{
			pipe.LLen(ctx, key+"pending"), pipe.ZCard(ctx, key+"scheduled"),
			pipe.ZCard(ctx, key+"retry"), pipe.LLen(ctx, key+"active"),
		}
	}
	if len(queues) == 0 {
		return nil, nil
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("ask Redis at %s for the depth of the queues: %w", q.url, err)
	}
	out := make([]Depth, len(queues))
	for i, on := range queues {
		route, lane := split(on)
		c := counts[i]
		out[i] = Depth{
			Route: route, Lane: lane, Pending: int(c[0].Val()),
			Scheduled: int(c[1].Val() + c[2].Val()), Active: int(c[3].Val()),
		}
	}
	return out, nil
}
