package queue

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
)

// shortcut is a go-redis hook that runs asynq's three scripts of every wake (enqueue, dequeue, done) on
// the embedded Redis in Go. There, each run of a script makes a new Lua machine and compiles the text,
// which costs half a millisecond of CPU. A script is known by its SHA-1: what another asynq sends runs
// in Lua as before.
type shortcut struct {
	mr *miniredis.Miniredis
	// Held by a script run here, shared by everything else: scripts are atomic.
	mu sync.RWMutex
}

// script is one of asynq's. It returns the reply, or ok false having changed nothing: then Lua runs it.
type script func(mr *miniredis.Miniredis, keys, argv []string) (reply any, ok bool, err error)

// The scripts of asynq v0.26 (internal/rdb/rdb.go), by the SHA-1 of their text.
const (
	enqueueSHA = "98d28b42650870a743450ffda9791e9e19c6991b"
	dequeueSHA = "a8153319360adc71cdc370107f8ab9786f204765"
	doneSHA    = "1241eaa1c73409baaf1fea0c08d203a4911bda15"
)

var scripts = map[string]script{enqueueSHA: enqueueScript, dequeueSHA: dequeueScript, doneSHA: doneScript}

// enqueueScript: keys are the task and the pending list, arguments its message, its id, the time.
func enqueueScript(mr *miniredis.Miniredis, keys, argv []string) (any, bool, error) {
	if len(keys) != 2 || len(argv) != 3 {
		return nil, false, nil
	}
	if mr.Exists(keys[0]) {
		return int64(0), true, nil
	}
	mr.HSet(keys[0], "msg", argv[0], "state", "pending", "pending_since", argv[2])
	_, err := mr.Lpush(keys[1], argv[1])
	return int64(1), true, err
}

// dequeueScript: keys are the pending list, the pause mark, the active list and the leases; arguments
// the lease's end and what the keys of tasks begin with.
func dequeueScript(mr *miniredis.Miniredis, keys, argv []string) (any, bool, error) {
	if len(keys) != 4 || len(argv) != 2 {
		return nil, false, nil
	}
	until, err := strconv.ParseFloat(argv[0], 64)
	if err != nil {
		return nil, false, nil //nolint:nilerr // Lua finds its own words for it
	}
	if mr.Exists(keys[1]) || !mr.Exists(keys[0]) {
		return nil, true, nil
	}
	id, err := mr.Pop(keys[0])
	if err != nil {
		return nil, true, err
	}
	if _, err := mr.Lpush(keys[2], id); err != nil {
		return nil, true, err
	}
	task := argv[1] + id
	mr.HSet(task, "state", "active")
	mr.HDel(task, "pending_since")
	if _, err := mr.ZAdd(keys[3], until, id); err != nil {
		return nil, true, err
	}
	if message := mr.HGet(task, "msg"); message != "" {
		return message, true, nil
	}
	return nil, true, nil
}

// errNotFound is what the script answers where a task is not where it should be.
var errNotFound = errors.New("NOT FOUND")

// doneScript: keys are the active list, the leases, the task, today's count and the count of all;
// arguments the task's id, when today's count expires, and the largest count.
func doneScript(mr *miniredis.Miniredis, keys, argv []string) (any, bool, error) {
	if len(keys) != 5 || len(argv) != 3 {
		return nil, false, nil
	}
	if n, err := call(mr, "LREM", keys[0], "0", argv[0]); err != nil || n == 0 {
		return nil, true, cmp.Or(err, errNotFound)
	}
	if had, err := mr.ZRem(keys[1], argv[0]); err != nil || !had {
		return nil, true, errNotFound
	}
	if !mr.Del(keys[2]) {
		return nil, true, errNotFound
	}
	n, err := mr.Incr(keys[3], 1)
	if err == nil && n == 1 {
		_, err = call(mr, "EXPIREAT", keys[3], argv[1])
	}
	if err != nil {
		return nil, true, err
	}
	total, err := mr.Get(keys[4])
	if err == nil && sameNumber(total, argv[2]) {
		return "OK", true, mr.Set(keys[4], "1")
	}
	_, err = mr.Incr(keys[4], 1)
	return "OK", true, err
}

// sameNumber compares as Lua does, whose numbers are floats.
func sameNumber(a, b string) bool {
	x, errX := strconv.ParseFloat(a, 64)
	y, errY := strconv.ParseFloat(b, 64)
	return errX == nil && errY == nil && x == y
}

// call runs a command that miniredis has no function for, and returns its number.
func call(mr *miniredis.Miniredis, args ...string) (int64, error) {
	var reply bytes.Buffer
	w := bufio.NewWriter(&reply)
	peer := server.NewPeer(w)
	mr.Server().Dispatch(peer, args)
	peer.Flush()
	n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimPrefix(reply.String(), ":")), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s answered %q", args[0], reply.String())
	}
	return n, nil
}

// DialHook implements redis.Hook.
func (s *shortcut) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook implements redis.Hook.
func (s *shortcut) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if done, err := s.run(cmd); done {
			return err
		}
		ctx, leave := s.enter(ctx)
		defer leave()
		return next(ctx, cmd)
	}
}

// ProcessPipelineHook implements redis.Hook. Scripts in a pipeline stay there: whoever pipelines wants
// an order.
func (s *shortcut) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		ctx, leave := s.enter(ctx)
		defer leave()
		return next(ctx, cmds)
	}
}

type entered struct{}

// enter keeps the scripts run here out until leave. A command may cause others, to set up its connection.
func (s *shortcut) enter(ctx context.Context) (inner context.Context, leave func()) {
	if ctx.Value(entered{}) != nil {
		return ctx, func() {}
	}
	s.mu.RLock()
	return context.WithValue(ctx, entered{}, true), s.mu.RUnlock
}

// run runs a command that is one of the scripts.
func (s *shortcut) run(cmd redis.Cmder) (done bool, err error) {
	c, ok := cmd.(*redis.Cmd)
	if !ok || cmd.Name() != "evalsha" {
		return false, nil
	}
	args := cmd.Args()
	if len(args) < 3 {
		return false, nil
	}
	sha, _ := args[1].(string)
	n, ok := args[2].(int)
	do := scripts[sha]
	if do == nil || !ok || n < 0 || n > len(args)-3 {
		return false, nil
	}
	texts := make([]string, len(args)-3)
	for i, a := range args[3:] {
		if texts[i], ok = text(a); !ok {
			return false, nil
		}
	}
	s.mu.Lock()
	reply, ok, err := do(s.mr, texts[:n], texts[n:])
	s.mu.Unlock()
	switch {
	case !ok:
		return false, nil
	case err != nil:
		c.SetErr(err)
	case reply == nil:
		c.SetErr(redis.Nil)
	default:
		c.SetVal(reply)
	}
	return true, c.Err()
}

// text is an argument as it would go over the wire.
func text(a any) (string, bool) {
	switch v := a.(type) {
	case string:
		return v, true
	case []byte:
		return string(v), true
	case int:
		return strconv.Itoa(v), true
	case int64:
		return strconv.FormatInt(v, 10), true
	}
	return "", false
}
