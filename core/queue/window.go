package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core"
)

const (
	// Share is the most wakes that one app may have waiting in one queue, and as many due later: what
	// another app's wake waits behind, at most, for each app that floods.
	Share = 200
	// fresh is how old the known depth of a queue may be when room is asked for.
	fresh = 50 * time.Millisecond
	// behindFor is how long an app stays behind if nobody says so again.
	behindFor = time.Second
)

// window is what is known of how full the queues are, and with whose wakes.
type window struct {
	size int

	mu     sync.Mutex
	queues map[string]*place
	down   bool // Redis could not be reached
}

// place is one queue's part of the window.
type place struct {
	now, later part
	behind     map[string]time.Time // apps whose wakes wait in the store, and until when that holds
	asking     bool
	at         time.Time // of the last look
}

// part is what waits in a queue: for a worker, or for its time.
type part struct {
	depth int // as of the last look, kept up with what this process puts in and takes out
	added int // since the look under way began
	// mine are the apps of the wakes that this process put in, oldest first. A queue is worked off in
	// that order, so that of these at most the last depth are there still.
	mine []entry
	held map[string]int // by app, what mine holds
}

type entry struct {
	app string
	due time.Time
}

func (w *window) init(size int, queues []string) {
	w.size, w.queues = size, map[string]*place{}
	for _, q := range queues {
		w.place(q)
	}
}

// know counts queues in that were not there as the window was made.
func (w *window) know(queues []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, q := range queues {
		w.place(q)
	}
}

// place finds or makes a queue's.
func (w *window) place(queue string) *place {
	p := w.queues[queue]
	if p == nil {
		p = &place{behind: map[string]time.Time{}, now: part{held: map[string]int{}}, later: part{held: map[string]int{}}}
		w.queues[queue] = p
	}
	return p
}

func (p *part) add(e entry) {
	p.depth++
	p.added++
	p.mine = append(p.mine, e)
	p.held[e.app]++
}

// drop takes the first n entries out.
func (p *part) drop(n int) {
	for _, e := range p.mine[:n] {
		if p.held[e.app]--; p.held[e.app] == 0 {
			delete(p.held, e.app)
		}
	}
	p.mine = p.mine[n:]
}

// trim forgets what is not there any more.
func (p *part) trim() {
	p.drop(max(0, len(p.mine)-p.depth))
}

// room is a dynamic threshold: each app may have a quarter of what nobody has, Share at most and one at
// least. However many apps flood, the next one gets in; only at twice the size nobody does.
func (p *part) room(size int, app string) int {
	if p.depth >= 2*size {
		return 0
	}
	return max(0, max(1, min(Share, (size-p.depth)/4))-p.held[app])
}

// add notes a wake that was put into a queue; due is zero for one due at once.
func (w *window) add(queue, app string, due time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.place(queue)
	if due.IsZero() {
		p.now.add(entry{app: app})
	} else {
		p.later.add(entry{app: app, due: due})
	}
}

// taken notes that a worker of this process took a wake out of a queue.
func (w *window) taken(queue string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.place(queue)
	p.now.depth = max(0, p.now.depth-1)
	p.now.trim()
}

// setBehind notes whether an app's wakes wait in the store.
func (w *window) setBehind(queue, app string, is bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.place(queue); is {
		p.behind[app] = time.Now().Add(behindFor)
	} else {
		delete(p.behind, app)
	}
}

// fail notes that Redis could not be reached: there is no room until it can. A caller that went away
// says nothing about Redis.
func (w *window) fail(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = true
	for _, p := range w.queues {
		p.at = time.Time{}
	}
}

// begin reports whether the caller has to look how deep a queue is.
func (w *window) begin(queue string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.place(queue)
	if p.asking || time.Since(p.at) < fresh {
		return false
	}
	p.asking, p.now.added, p.later.added = true, 0, 0
	return true
}

// end takes in what was seen: what was added meanwhile may be in it or not.
func (w *window) end(queue string, pending, scheduled int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p, now := w.place(queue), time.Now()
	p.asking, p.at, w.down = false, now, err != nil
	for app, until := range p.behind {
		if now.After(until) {
			delete(p.behind, app)
		}
	}
	if err != nil {
		return
	}
	p.now.depth, p.later.depth = pending+p.now.added, scheduled+p.later.added
	p.forward(now)
	p.now.trim()
}

// forward moves what asynq moved: of what was due later, the earliest, as many as are not there any more.
func (p *place) forward(now time.Time) {
	gone := len(p.later.mine) - p.later.depth
	if gone <= 0 {
		return
	}
	slices.SortStableFunc(p.later.mine, func(a, b entry) int { return a.due.Compare(b.due) })
	for _, e := range p.later.mine[:gone] {
		if e.due.Before(now.Add(core.EarlyWake)) { // else it was deleted
			p.now.mine = append(p.now.mine, e)
			p.now.held[e.app]++
		}
	}
	p.later.drop(gone)
}

// room is how many more wakes of an app a queue takes.
func (w *window) room(queue, app string, later, direct bool) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.place(queue)
	switch {
	case w.down:
		return 0
	case later:
		return p.later.room(w.size, app)
	case direct && time.Now().Before(p.behind[app]):
		return 0
	}
	return p.now.room(w.size, app)
}

// stale lists the queues that held wakes when somebody last looked, a while ago.
func (w *window) stale() (queues []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for q, p := range w.queues {
		if p.now.depth > 0 && time.Since(p.at) > fresh {
			queues = append(queues, q)
		}
	}
	return queues
}

func (w *window) names() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]string, 0, len(w.queues))
	for q := range w.queues {
		out = append(out, q)
	}
	return out
}

// Room says how many more wakes like this one, of its app, route, lane and due time, the queue takes
// now: of one app a quarter of what is free, Share at most and one at least; none while the app is
// behind, or Redis cannot be reached. It never waits: it answers from a figure at most some 50 ms old, kept up with what
// this process puts in and takes out.
func (q *Queue) Room(like core.Wake) int {
	return q.room(like.App, name(like.Route, like.Lane), time.Until(q.here(like.At)) > atOnce, true)
}

// Refill is Room for the relay: for wakes due now, of an app that may be behind.
func (q *Queue) Refill(app, route string, lane core.Lane) int {
	return q.room(app, name(route, lane), false, false)
}

// Behind notes whether an app has overdue batches in the store which the queue had no room for: then
// Room has none for its wakes that are due now, so that they overtake none. It holds for a second.
func (q *Queue) Behind(app, route string, lane core.Lane, is bool) {
	q.window.setBehind(name(route, lane), app, is)
}

func (q *Queue) room(app, queue string, later, direct bool) int {
	if q.window.begin(queue) && !q.spawn(func() { q.look(queue) }) {
		return 0 // closed
	}
	return q.window.room(queue, app, later, direct)
}

// watch looks after queues that others work off: the next one to ask for room should not be told of
// wakes that went long ago.
func (q *Queue) watch(ctx context.Context) {
	t := time.NewTicker(2 * fresh)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			for _, queue := range q.window.stale() {
				if q.window.begin(queue) {
					q.look(queue)
				}
			}
		}
	}
}

// look asks Redis how deep one queue is.
func (q *Queue) look(queue string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	key := q.key(queue)
	pipe := q.client.Pipeline()
	pending, scheduled := pipe.LLen(ctx, key+"pending"), pipe.ZCard(ctx, key+"scheduled")
	_, err := pipe.Exec(ctx)
	q.window.end(queue, int(pending.Val()), int(scheduled.Val()), err)
}

// key begins asynq's keys of a queue.
func (q *Queue) key(queue string) string { return "asynq:{" + queue + "}:" }

// Depth is how many wakes a queue holds.
type Depth struct {
	Route     string
	Lane      core.Lane
	Pending   int
	Scheduled int // due later, or to be tried again by asynq
	Active    int
}

// Total is the sum.
func (d Depth) Total() int { return d.Pending + d.Scheduled + d.Active }

// Depth asks Redis how full each queue is, in one round trip.
func (q *Queue) Depth(ctx context.Context) ([]Depth, error) {
	queues := q.window.names()
	if len(queues) == 0 {
		return nil, nil
	}
	pipe := q.client.Pipeline()
	counts := make([][4]*redis.IntCmd, len(queues))
	for i, on := range queues {
		key := q.key(on)
		counts[i] = [4]*redis.IntCmd{
			pipe.LLen(ctx, key+"pending"), pipe.ZCard(ctx, key+"scheduled"),
			pipe.ZCard(ctx, key+"retry"), pipe.LLen(ctx, key+"active"),
		}
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
