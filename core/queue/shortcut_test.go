package queue_test

import (
	"context"
	"crypto/sha1" //nolint:gosec // Redis names scripts by it
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core/queue"
)

// texts collects the scripts that a client sends, by their SHA-1.
type texts struct {
	mu  sync.Mutex
	all map[string]string
}

func (x *texts) DialHook(next redis.DialHook) redis.DialHook { return next }

func (x *texts) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (x *texts) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "eval" {
			text := cmd.Args()[1].(string)
			sum := sha1.Sum([]byte(text)) //nolint:gosec // as above
			x.mu.Lock()
			x.all[hex.EncodeToString(sum[:])] = text
			x.mu.Unlock()
		}
		return next(ctx, cmd)
	}
}

func clientOf(t *testing.T, mr *miniredis.Miniredis, hooks ...redis.Hook) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: mr.Addr(), Protocol: 2, MaxRetries: -1,
		Dialer: func(ctx context.Context, _, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}})
	for _, h := range hooks {
		c.AddHook(h)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// asynqScripts are the scripts that this asynq sends for a task's whole life.
func asynqScripts(t *testing.T) map[string]string {
	x := &texts{all: map[string]string{}}
	c := clientOf(t, miniredis.RunT(t), x)
	done := make(chan struct{})
	srv := asynq.NewServerFromRedisClient(c, asynq.Config{Queues: map[string]int{"q": 1}, TaskCheckInterval: time.Millisecond, LogLevel: asynq.FatalLevel})
	if err := srv.Start(asynq.HandlerFunc(func(context.Context, *asynq.Task) error { close(done); return nil })); err != nil {
		t.Fatal(err)
	}
	if _, err := asynq.NewClientFromRedisClient(c).Enqueue(asynq.NewTask("t", nil), asynq.Queue("q")); err != nil {
		t.Fatal(err)
	}
	<-done
	srv.Shutdown() // after the task was marked done
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.all
}

// TestShortcut tells that the scripts run in Go answer and leave what their Lua texts do, whatever state
// they find. Where it says that asynq does not send one of them any more, its successor is to be
// written.
func TestShortcut(t *testing.T) {
	t.Parallel()
	known := asynqScripts(t)
	for _, what := range []string{"enqueue", "dequeue", "done"} {
		if known[queue.ShortcutOf(what)] == "" {
			t.Fatalf("asynq's script to %s is another one now", what)
		}
	}
	lua, direct := miniredis.RunT(t), miniredis.RunT(t)
	left, right := clientOf(t, lua), clientOf(t, direct, queue.Shortcut(direct))
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for n := range 2000 {
		var cmds [2]redis.Cmder
		what := ""
		for i, c := range []*redis.Client{left, right} {
			draw := rand.New(rand.NewPCG(seed, uint64(n)))
			cmds[i], what = step(draw, c, known)
		}
		if diff := cmp.Diff(answer(cmds[0]), answer(cmds[1])); diff != "" {
			t.Fatalf("step %d, %s: %s", n, what, diff)
		}
		if r.IntN(20) == 0 {
			if diff := cmp.Diff(lua.Dump(), direct.Dump()); diff != "" {
				t.Fatalf("after step %d, %s: %s", n, what, diff)
			}
			if diff := cmp.Diff(expiring(lua), expiring(direct)); diff != "" {
				t.Fatalf("after step %d, %s: what expires: %s", n, what, diff)
			}
		}
	}
}

// expiring are the keys that will be gone by themselves.
func expiring(mr *miniredis.Miniredis) (keys []string) {
	for _, key := range mr.Keys() {
		if mr.TTL(key) > 0 {
			keys = append(keys, key)
		}
	}
	return keys
}

// step does one thing that is drawn: mostly a script, now and then something that confuses them.
func step(r *rand.Rand, c *redis.Client, known map[string]string) (redis.Cmder, string) {
	ctx := context.Background()
	const q = "asynq:{q}:"
	id := fmt.Sprint(r.IntN(6))
	run := func(what string, keys []string, argv ...any) (redis.Cmder, string) {
		return redis.NewScript(known[queue.ShortcutOf(what)]).Run(ctx, c, keys, argv...), what + " " + id
	}
	switch n := r.IntN(100); {
	case n < 35:
		return run("enqueue", []string{q + "t:" + id, q + "pending"}, []byte("message \x00 of "+id), id, int64(1000+r.IntN(9)))
	case n < 65:
		return run("dequeue", []string{q + "pending", q + "paused", q + "active", q + "lease"}, int64(2000+r.IntN(9)), q+"t:")
	case n < 85:
		return run("done", []string{q + "active", q + "lease", q + "t:" + id, q + "processed:today", q + "processed"}, id, int64(4_000_000_000), int64(math.MaxInt64))
	case n < 88:
		return c.Set(ctx, q+"paused", 1, 0), "pause"
	case n < 91:
		return c.Del(ctx, q+"paused"), "resume"
	case n < 93:
		return c.Del(ctx, q+"t:"+id), "lose task " + id
	case n < 95:
		return c.ZRem(ctx, q+"lease", id), "lose lease " + id
	case n < 97:
		return c.Set(ctx, q+"processed", int64(math.MaxInt64)-int64(r.IntN(2)), 0), "count far"
	case n < 99:
		return c.Del(ctx, q+"processed:today"), "another day"
	}
	return c.FlushAll(ctx), "flush"
}

// answer is what a command came to, for comparing: the value, nothing, or that it failed.
func answer(c redis.Cmder) string {
	switch reply, ok := c.(*redis.Cmd); {
	case errors.Is(c.Err(), redis.Nil):
		return "nothing"
	case c.Err() != nil:
		return "error"
	case ok:
		return fmt.Sprintf("%T %v", reply.Val(), reply.Val())
	}
	return ""
}
