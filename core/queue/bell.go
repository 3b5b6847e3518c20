package queue

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// longestWait is how long one dequeue waits for the bell before it answers "empty".
	longestWait = 250 * time.Millisecond
	// askAnyway is how often a silent queue is asked all the same: what a missed ring costs at most.
	askAnyway = time.Second
	// forwardAnyway is the same for wakes due later, while none is known.
	forwardAnyway = 2 * time.Second
	// plainPolling is the pace if asynq's dequeue is not recognised, or Redis does not answer.
	plainPolling = 50 * time.Millisecond
	// unrecognised is after how many scripts without a dequeue among them the doorbell is given up.
	unrecognised = 500
	channel      = "carillon:doorbell"
)

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

// bell is one server's doorbell: a go-redis hook that knows asynq's dequeue and forward scripts by
// their keys, and lets them wait rather than ask while nothing can have come.
type bell struct {
	pending string // the key of the queue's pending list
	base    string
	lost    func() // told once if asynq's dequeue is not recognised

	mu       sync.Mutex
	rung     uint64
	changed  chan struct{}
	closed   bool
	expected time.Time // when the last wake known to be due later is due

	// Of the dequeue loop, which is one goroutine.
	heard uint64
	empty bool
	asked time.Time

	scripts   atomic.Int64 // -1: a dequeue was recognised
	forwarded sync.Map     // source key: time.Time of the last empty answer
}

func newBell(queue string, lost func()) *bell {
	base := "asynq:{" + queue + "}:"
	return &bell{base: base, pending: base + "pending", lost: lost, changed: make(chan struct{})}
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rung++
	close(b.changed)
	b.changed = make(chan struct{})
}

// expect notes a wake due later.
func (b *bell) expect(due time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if due.After(b.expected) {
		b.expected = due
	}
}

// close lets everybody in for good.
func (b *bell) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.ring()
}

func (b *bell) look() (rung uint64, changed <-chan struct{}, closed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rung, b.changed, b.closed
}

// DialHook implements redis.Hook.
func (b *bell) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessPipelineHook implements redis.Hook.
func (b *bell) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// ProcessHook implements redis.Hook.
func (b *bell) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		first, second, ok := scriptKeys(cmd)
		switch {
		case !ok:
			return next(ctx, cmd)
		case first == b.pending && second == b.base+"paused":
			return b.dequeue(ctx, cmd, next)
		case second == b.pending && (first == b.base+"scheduled" || first == b.base+"retry"):
			return b.forward(ctx, cmd, next)
		}
		return b.other(ctx, cmd, next)
	}
}

// scriptKeys are the first two keys of a script with two or more.
func scriptKeys(cmd redis.Cmder) (first, second string, ok bool) {
	args := cmd.Args()
	if n := strings.ToLower(cmd.Name()); n != "evalsha" && n != "eval" || len(args) < 4 {
		return "", "", false
	}
	first, _ = args[3].(string)
	if len(args) > 4 {
		second, _ = args[4].(string)
	}
	return first, second, true
}

func (b *bell) dequeue(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
	b.scripts.Store(-1)
	rung, changed, closed := b.look()
	if b.empty && rung == b.heard && !closed && time.Since(b.asked) < askAnyway {
		wait(ctx, changed, min(longestWait, askAnyway-time.Since(b.asked)))
		rung, _, closed = b.look()
		if rung == b.heard && time.Since(b.asked) < askAnyway {
			cmd.SetErr(redis.Nil)
			return redis.Nil
		}
	}
	if closed {
		cmd.SetErr(redis.Nil) // the server is stopping: take nothing more
		return redis.Nil
	}
	err := next(ctx, cmd)
	b.heard, b.empty, b.asked = rung, errors.Is(err, redis.Nil), time.Now()
	if err != nil && !b.empty && !redis.HasErrorPrefix(err, "NOSCRIPT") {
		// asynq asks again at once after an error.
		wait(ctx, changed, plainPolling)
	}
	return err
}

func (b *bell) forward(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
	c, ok := cmd.(*redis.Cmd)
	if !ok {
		return next(ctx, cmd)
	}
	source, _, _ := scriptKeys(cmd)
	b.mu.Lock()
	expecting := time.Since(b.expected) < forwardAnyway
	b.mu.Unlock()
	if last, ok := b.forwarded.Load(source); ok && !expecting && time.Since(last.(time.Time)) < forwardAnyway {
		c.SetVal(int64(0))
		return nil
	}
	err := next(ctx, cmd)
	if err != nil {
		return err
	}
	if n, err := c.Int64(); err == nil && n == 0 {
		b.forwarded.Store(source, time.Now())
		return nil
	}
	b.forwarded.Delete(source)
	b.ring()
	return nil
}

// other passes scripts that are none of the doorbell's, and notices if the dequeue is never among
// them: then it paces whatever answers "nothing", which is what a dequeue does.
func (b *bell) other(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
	err := next(ctx, cmd)
	n := b.scripts.Load()
	if n < 0 || !errors.Is(err, redis.Nil) {
		return err
	}
	if b.scripts.CompareAndSwap(n, n+1) && n+1 == unrecognised {
		b.lost()
	}
	if n+1 >= unrecognised {
		_, changed, _ := b.look()
		wait(ctx, changed, plainPolling)
	}
	return err
}

func wait(ctx context.Context, changed <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	case <-ctx.Done():
	}
}
