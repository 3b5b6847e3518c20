package queue

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// channel is what wakes are announced on to other processes.
const channel = "carillon:doorbell"

// bells are the doorbells of this process, by queue.
type bells struct {
	mu     sync.Mutex
	byName map[string][]*bell
	remote bool
	dirty  map[string]int64 // queues to be announced to other processes, and the latest due time
	kick   chan struct{}
	self   string
}

func (b *bells) init(remote bool) {
	b.byName, b.dirty, b.remote = map[string][]*bell{}, map[string]int64{}, remote
	b.kick, b.self = make(chan struct{}, 1), rand.Text()
}

func (b *bells) hang(queue string, one *bell) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.byName[queue] = append(b.byName[queue], one)
}

func (b *bells) unhang(queue string, one *bell) {
	b.mu.Lock()
	defer b.mu.Unlock()
	kept := []*bell{}
	for _, o := range b.byName[queue] {
		if o != one {
			kept = append(kept, o)
		}
	}
	b.byName[queue] = kept
}

// ring rings for a queue here and has it announced elsewhere. due is not zero for a wake due later.
func (b *bells) ring(queue string, due time.Time) {
	b.ringHere(queue, due)
	if !b.remote {
		return
	}
	var at int64
	if !due.IsZero() {
		at = due.Unix()
	}
	b.mu.Lock()
	b.dirty[queue] = max(b.dirty[queue], at)
	b.mu.Unlock()
	select {
	case b.kick <- struct{}{}:
	default:
	}
}

func (b *bells) ringHere(queue string, due time.Time) {
	b.mu.Lock()
	hung := b.byName[queue]
	b.mu.Unlock()
	for _, one := range hung {
		if due.IsZero() {
			one.ring()
		} else {
			one.expect(due)
		}
	}
}

func (b *bells) announcements() map[string]int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.dirty
	b.dirty = map[string]int64{}
	return out
}

// publish announces rings to other processes: one message per queue for all the wakes since the last.
func (q *Queue) publish(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.bells.kick:
		}
		pipe := q.client.Pipeline()
		for on, due := range q.bells.announcements() {
			pipe.Publish(ctx, channel, fmt.Sprintf("%s %d %s", q.bells.self, due, on))
		}
		if _, err := pipe.Exec(ctx); err != nil && ctx.Err() == nil {
			q.log.Debug("other processes were not told of new wakes; they ask within a second", "error", err)
		}
	}
}

// subscribe hears what other processes announce.
func (q *Queue) subscribe(ctx context.Context) {
	sub := q.client.Subscribe(ctx, channel)
	stop := context.AfterFunc(ctx, func() { _ = sub.Close() })
	defer stop()
	for m := range sub.Channel() {
		f := strings.SplitN(m.Payload, " ", 3)
		if len(f) != 3 || f[0] == q.bells.self {
			continue
		}
		var due time.Time
		if at, err := strconv.ParseInt(f[1], 10, 64); err == nil && at > 0 {
			due = time.Unix(at, 0)
			q.bells.ringHere(f[2], due)
		}
		q.bells.ringHere(f[2], time.Time{})
	}
}
