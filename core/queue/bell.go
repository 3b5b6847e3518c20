package queue

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// tempo is how long the doorbells wait.
type tempo struct {
	// longestWait is how long one dequeue waits for the bell before it answers "empty".
	longestWait time.Duration
	// askAnyway is how often a silent queue is asked all the same: what a missed ring costs at most.
	askAnyway time.Duration
	// forwardAnyway is the same for wakes due later, while none is known.
	forwardAnyway time.Duration
	// prefix begins asynq's keys of a queue.
	prefix string
	// waiting is told, if not nil, when a dequeue begins to wait for the bell.
	waiting func(queue string)
}

var usual = tempo{longestWait: 250 * time.Millisecond, askAnyway: time.Second, forwardAnyway: 2 * time.Second, prefix: "asynq:{"}

const (
	// plainPolling is the pace if asynq's dequeue is not recognised, or Redis does not answer.
	plainPolling = 50 * time.Millisecond
	// slowestPolling is what plainPolling grows to while Redis does not answer.
	slowestPolling = time.Second
	// unrecognised is after how many answers of "nothing" to something else than a dequeue the doorbell
	// is given up.
	unrecognised = 500
)

// bell is one server's doorbell: a go-redis hook that knows asynq's dequeue and forward scripts by
// their keys, and lets them wait rather than ask while nothing can have come.
type bell struct {
	tempo
	queue string
	base  string      // what the keys of the queue begin with
	lost  func()      // told once if asynq's dequeue is not recognised
	taken func()      // told of each task that a dequeue brings
	leave func() bool // nil, or says that the tasks are left to others

	mu       sync.Mutex
	rung     uint64
	changed  chan struct{}
	closed   bool
	expected time.Time // when the last wake known to be due later is due

	// Of the dequeue loop, which is one goroutine.
	heard  uint64
	empty  bool
	asked  time.Time
	failed int // answers in a row that were errors

	// Of the forwarder, which is one goroutine.
	forwarded map[string]time.Time // by source key: the last empty answer

	recognised atomic.Bool
	nothings   atomic.Int64
}

func newBell(queue string, t tempo, lost, taken func()) *bell {
	return &bell{tempo: t, queue: queue, base: t.prefix + queue + "}:", lost: lost, taken: taken, changed: make(chan struct{}), forwarded: map[string]time.Time{}}
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

// ProcessPipelineHook implements redis.Hook. asynq's server sends no pipelines; one that dequeued by
// them would be paced like anything that is not recognised.
func (b *bell) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		if len(cmds) > 0 {
			b.pace(ctx, cmds[len(cmds)-1].Err())
		}
		return err
	}
}

// ProcessHook implements redis.Hook.
func (b *bell) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		first, second := scriptKeys(cmd)
		switch {
		case first == b.base+"pending" && second == b.base+"paused":
			return b.dequeue(ctx, cmd, next)
		case second == b.base+"pending" && (first == b.base+"scheduled" || first == b.base+"retry"):
			return b.forward(ctx, cmd, next, first)
		}
		err := next(ctx, cmd)
		b.pace(ctx, err)
		return err
	}
}

// scriptKeys are the first two keys of a script, empty where there are none.
func scriptKeys(cmd redis.Cmder) (first, second string) {
	args := cmd.Args()
	if n := strings.ToLower(cmd.Name()); n != "evalsha" && n != "eval" || len(args) < 5 {
		return "", ""
	}
	first, _ = args[3].(string)
	second, _ = args[4].(string)
	return first, second
}

func (b *bell) dequeue(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
	b.recognised.Store(true)
	if b.left(ctx) {
		cmd.SetErr(redis.Nil)
		return redis.Nil
	}
	rung, changed, closed := b.look()
	if b.empty && rung == b.heard && !closed && time.Since(b.asked) < b.askAnyway {
		if b.waiting != nil {
			b.waiting(b.queue)
		}
		wait(ctx, changed, min(b.longestWait, b.askAnyway-time.Since(b.asked)))
		rung, changed, closed = b.look()
		if rung == b.heard && time.Since(b.asked) < b.askAnyway {
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
	switch {
	case err == nil:
		b.taken()
		b.failed = 0
	case b.empty || redis.HasErrorPrefix(err, "NOSCRIPT"):
		b.failed = 0
	default: // asynq asks again at once
		wait(ctx, changed, min(plainPolling<<min(b.failed, 10), slowestPolling))
		b.failed++
	}
	return err
}

// left waits, if the tasks are left to others, as long as one dequeue waits, and says whether they still are.
func (b *bell) left(ctx context.Context) bool {
	if b.leave == nil || !b.leave() {
		return false
	}
	for end := time.Now().Add(b.longestWait); ; {
		_, changed, closed := b.look()
		rest := time.Until(end)
		if closed || rest <= 0 || ctx.Err() != nil || !b.leave() {
			return !closed && b.leave()
		}
		wait(ctx, changed, rest)
	}
}

func (b *bell) forward(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook, source string) error {
	c, ok := cmd.(*redis.Cmd)
	if !ok {
		return next(ctx, cmd)
	}
	b.mu.Lock()
	expecting := time.Since(b.expected) < b.forwardAnyway
	b.mu.Unlock()
	if !expecting && time.Since(b.forwarded[source]) < b.forwardAnyway {
		c.SetVal(int64(0))
		return nil
	}
	err := next(ctx, cmd)
	if err != nil {
		return err
	}
	if n, err := c.Int64(); err == nil && n == 0 {
		b.forwarded[source] = time.Now()
		return nil
	}
	delete(b.forwarded, source)
	b.ring()
	return nil
}

// pace slows down whatever answers "nothing" if no dequeue was ever recognised: that is what an
// unknown dequeue does.
func (b *bell) pace(ctx context.Context, err error) {
	if b.recognised.Load() || !errors.Is(err, redis.Nil) {
		return
	}
	n := b.nothings.Add(1)
	if n == unrecognised {
		b.lost()
	}
	if n >= unrecognised {
		_, changed, _ := b.look()
		wait(ctx, changed, plainPolling)
	}
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
