package queue_test

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/queue"
)

// TestRestart tells what a server does while its Redis is dead, and that it comes back by itself.
func TestRestart(t *testing.T) {
	t.Parallel()
	r := coretest.StartRedis(t)
	var log lines
	q := open(t, queue.Options{URL: "redis://" + r.Addr, Logger: log.logger()})
	got := make(inbox, 100)
	serve(t, q, got.handle)
	enqueue(t, q, wake())
	got.next(t)

	if !q.Up() {
		t.Error("Redis is not up")
	}
	r.Kill()
	const span = 3 * time.Second
	dials := countDials(t, r.Addr, span, func() {
		if err := q.Wake(limit(t), wake()); err == nil {
			t.Error("a wake was enqueued on a dead Redis")
		}
		if n := q.Room(wake()); n != 0 {
			t.Errorf("there is room for %d on a dead Redis", n)
		}
		if _, err := q.Epoch(limit(t)); err == nil {
			t.Error("a dead Redis has an epoch")
		}
		if q.Up() {
			t.Error("a dead Redis is up")
		}
	})
	// One lane: the dequeue backs off to one try a second; the rest are the forwarder and two subscriptions.
	if dials > 100*int64(span/time.Second) {
		t.Errorf("%d connections tried in %v", dials, span)
	}
	t.Logf("%d connections tried in %v, %d log lines", dials, span, len(log.with("")))
	if n := len(log.with("")); n > 10 {
		t.Errorf("%d log lines about one outage", n)
	}

	r.Restart()
	var lost bool
	eventually(t, "the epoch is told to have changed", func() bool {
		changed, err := q.Epoch(limit(t))
		lost = lost || changed
		return err == nil && lost
	})
	if !q.Up() {
		t.Error("Redis is back, and not up")
	}
	w := wake()
	eventually(t, "a wake is taken", func() bool { return q.Wake(limit(t), w) == nil })
	if g := got.next(t); g != w {
		t.Errorf("%+v came", g)
	}
	eventually(t, "there is room", func() bool { return q.Room(wake()) > 0 })

	c := client(t, r.Addr)
	before := calls(t, c)
	<-time.After(span)
	if n := calls(t, c) - before; n > 30*int(span/time.Second) {
		t.Errorf("an idle server of one lane sent %d commands in %v", n, span)
	} else {
		t.Logf("an idle server of one lane sent %d commands in %v", n, span)
	}
}

// TestConnectionsEnd: what a burst opened is closed again.
func TestConnectionsEnd(t *testing.T) {
	t.Parallel()
	const workers = 20                                 // asynq tells Redis of each task's end at its own time, over a connection of its own
	some := min(workers, 10*runtime.GOMAXPROCS(0)) / 2 // go-redis has up to ten connections for each processor
	link := coretest.StartProxy(t, coretest.StartRedis(t).Addr)
	q := open(t, queue.Options{URL: "redis://" + link.Addr})
	var together sync.WaitGroup
	serveAs(t, q, queue.ServeOptions{Concurrency: map[core.Lane]int{"normal": workers}, Handler: func(context.Context, core.Wake) error {
		together.Done()
		together.Wait()
		return nil
	}})
	eventually(t, "its first connections are open", func() bool { return link.Connections() > 2 })
	before := link.Connections()
	link.Slow(20*time.Millisecond, 0)
	together.Add(workers)
	for range workers {
		enqueue(t, q, wake())
	}
	eventually(t, "the burst opened connections", func() bool { return link.Connections() > before+some })
	link.Heal()
	eventually(t, "they are closed", func() bool { return link.Connections() < before+some })
}

// countDials counts the connections that somebody tries to open to an address within a span, and
// closes them at once.
func countDials(t *testing.T, addr string, span time.Duration, meanwhile func()) int64 {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var n atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n.Add(1)
			_ = c.Close()
		}
	}()
	over := time.After(span)
	meanwhile()
	<-over
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	<-done
	return n.Load()
}

// calls is how many commands Redis has run.
func calls(t *testing.T, c *redis.Client) (n int) {
	t.Helper()
	info, err := c.InfoMap(t.Context(), "stats").Result()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(info["Stats"]["total_commands_processed"], &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestComplaints tells that asynq may say each kind of thing once a minute: what it repeats in between
// goes to the debug log.
func TestComplaints(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log lines
		l := queue.NewLoggers(log.logger(), "a.bulk")[0] // from info on
		for minute := 1; minute <= 3; minute++ {
			for i := range 100 {
				l.Error(fmt.Sprintf("Failed to forward scheduled tasks: %d", i))
				l.Warn(fmt.Sprintf("Retry exhausted for task id=%d", i))
				l.Debug("All queues are empty")
			}
			for _, kind := range []string{"level=ERROR msg=\"asynq: Failed to forward", "level=WARN msg=\"asynq: Retry exhausted"} {
				if n := len(log.with(kind)); n != minute {
					t.Errorf("%q was said %d times in %d minutes", kind, n, minute)
				}
			}
			time.Sleep(61 * time.Second)
		}
		if n := len(log.with("")); n != 6 {
			t.Errorf("%d lines", n)
		}
	})
}

// TestComplaintsOfAll tells that what the servers of all queues say in the same words is said once, and what one of them
// alone says is said as well.
func TestComplaintsOfAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log lines
		ls := queue.NewLoggers(log.logger(), "a.bulk", "a.normal", "b.bulk")
		for minute := 1; minute <= 2; minute++ {
			for i, l := range ls {
				on := []string{"a.bulk", "a.normal", "b.bulk"}[i]
				l.Error("Dequeue error: connection refused")
				l.Error(fmt.Sprintf("Failed to delete expired completed tasks from queue %q: connection refused", on))
			}
			ls[1].Error("Dequeue error: WRONGTYPE")
			for said, want := range map[string]int{"Dequeue error: connection refused": minute, "Failed to delete": minute, "WRONGTYPE\" queue=a.normal": minute, "": 3 * minute} {
				if n := len(log.with(said)); n != want {
					t.Errorf("%q was said %d times in %d minutes, not %d", said, n, minute, want)
				}
			}
			time.Sleep(61 * time.Second)
		}
	})
}

// TestFlush tells that each process learns once that Redis was wiped, that the queues are named again
// for asynqmon, and that work goes on.
func TestFlush(t *testing.T) {
	t.Parallel()
	r := coretest.StartRedis(t)
	qs := []*queue.Queue{open(t, queue.Options{URL: "redis://" + r.Addr, Routes: []string{"a", "b"}})}
	if changed, err := qs[0].Epoch(limit(t)); err != nil || !changed {
		t.Errorf("a Redis that was empty at the opening lost everything: %v %v", changed, err)
	}
	qs = append(qs, open(t, queue.Options{URL: "redis://" + r.Addr, Routes: []string{"a", "b"}}))
	got := make(inbox, 100)
	serve(t, qs[0], got.handle)
	c := client(t, r.Addr)
	for range 3 {
		for i, q := range qs {
			if changed, err := q.Epoch(limit(t)); err != nil || changed {
				t.Errorf("process %d: nothing happened, yet %v %v", i, changed, err)
			}
		}
		r.FlushAll()
		for i, q := range qs {
			if changed, err := q.Epoch(limit(t)); err != nil || !changed {
				t.Errorf("process %d: wiped, yet %v %v", i, changed, err)
			}
		}
		names, err := c.SMembers(t.Context(), "asynq:queues").Result()
		if err != nil || len(names) != 6 || !slices.Contains(names, "b.bulk") {
			t.Errorf("queues named: %v %v", names, err)
		}
		w := wake()
		enqueue(t, qs[1], w)
		if g := got.next(t); g != w {
			t.Errorf("%+v came", g)
		}
	}
}

// TestPoison tells that a task which cannot be read is dropped with one line in the log that quotes
// nothing of it, and holds nobody up.
func TestPoison(t *testing.T) {
	t.Parallel()
	r := coretest.StartRedis(t)
	var log lines
	q := open(t, queue.Options{URL: "redis://" + r.Addr, Logger: log.logger()})
	c := client(t, r.Addr)
	other := asynq.NewClientFromRedisClient(c)
	enc := func(kind, body string) {
		if _, err := other.Enqueue(asynq.NewTask(kind, []byte(body)), asynq.Queue("a.normal")); err != nil {
			t.Fatal(err)
		}
	}
	enc(queue.TaskType, `{"b":"secret"}`)
	enc(queue.TaskType, `secret`)
	enc(queue.TaskType, ``)
	enc(queue.TaskType, `{"b":"`+core.NewID(time.Now()).String()+`"}`)
	enc("secret", `{}`)
	// And some that asynq itself cannot read.
	for id, msg := range map[string]string{"x": "secret", "y": "", "z": "\x00\xff\x07"} {
		if err := c.HSet(t.Context(), "asynq:{a.normal}:t:"+id, "msg", msg, "state", "pending").Err(); err != nil {
			t.Fatal(err)
		}
		if err := c.LPush(t.Context(), "asynq:{a.normal}:pending", id).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.LPush(t.Context(), "asynq:{a.normal}:pending", "no such task").Err(); err != nil {
		t.Fatal(err)
	}
	w := wake()
	enqueue(t, q, w)
	got := make(inbox, 10)
	serve(t, q, got.handle)
	if g := got.next(t); g != w {
		t.Errorf("%+v came", g)
	}
	// Six: asynq takes an empty message for an empty task. Of the other two it complains itself, once.
	eventually(t, "the dropped ones are in the log", func() bool { return len(log.with("was dropped")) == 6 })
	if n := len(log.with("Dequeue error")); n != 1 {
		t.Errorf("asynq complains in %d lines", n)
	}
	if n := len(log.with("secret")); n > 0 {
		t.Errorf("%d lines quote a task: %v", n, log.with("secret"))
	}
	eventually(t, "nothing waits", func() bool { return depths(t, q)["a.normal"].Pending == 0 })
}

// TestWorkerLost tells that a wake whose worker lost its Redis for a while, and ended meanwhile, is not
// the end of the server.
func TestWorkerLost(t *testing.T) {
	t.Parallel()
	r := coretest.StartRedis(t)
	q := open(t, queue.Options{URL: "redis://" + r.Addr})
	began, release := make(chan struct{}, 10), make(chan struct{})
	serveAs(t, q, queue.ServeOptions{Concurrency: map[core.Lane]int{"normal": 1}, Handler: func(context.Context, core.Wake) error {
		began <- struct{}{}
		<-release
		return nil
	}})
	enqueue(t, q, wake())
	<-began
	r.Restart() // empty: the task, its lease and the scripts are gone
	close(release)
	w := wake()
	eventually(t, "a wake is taken", func() bool { return q.Wake(limit(t), w) == nil })
	select {
	case <-began:
	case <-time.After(soon):
		t.Error("the only worker never came back")
	}
}
