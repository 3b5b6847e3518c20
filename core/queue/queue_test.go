package queue_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/queue"
)

// TestWake tells that each wake of many reaches the handler of its own route and lane, whole.
func TestWake(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		q := open(t, queue.Options{URL: url, Routes: []string{"a", "b.c"}})
		got := make(inbox, 1000)
		all := map[core.Lane]int{"critical": 1, "normal": 3, "bulk": 2}
		serveAs(t, q, queue.ServeOptions{Route: "a", Handler: got.handle, Concurrency: all})
		serveAs(t, q, queue.ServeOptions{Route: "b.c", Handler: got.handle, Concurrency: all})
		want := map[core.ID]core.Wake{}
		var ws []core.Wake
		for i := range 300 {
			w := wake()
			w.Fence, w.Lane, w.Route = int64(i+1), core.Lanes[i%3], []string{"a", "b.c"}[i%2]
			want[w.Batch] = w
			ws = append(ws, w)
		}
		enqueue(t, q, ws[0])
		enqueue(t, q, ws[1:]...)
		enqueue(t, q)
		seen := map[core.ID]core.Wake{}
		for range ws {
			w := got.next(t)
			seen[w.Batch] = w
		}
		if diff := cmp.Diff(want, seen); diff != "" {
			t.Error(diff)
		}
	})
}

// TestDue tells that a wake with a due time comes neither lost nor earlier than core.EarlyWake allows,
// though asynq cuts due times down to whole seconds, and is not forgotten for long after.
func TestDue(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		q := open(t, queue.Options{URL: url})
		type arrival struct {
			id core.ID
			at time.Time
		}
		got := make(chan arrival, 100)
		serve(t, q, func(_ context.Context, w core.Wake) error {
			got <- arrival{w.Batch, time.Now()}
			return nil
		})
		due := map[core.ID]time.Time{}
		now := time.Now()
		for _, after := range []time.Duration{-time.Hour, 0, 300, 499, 501, 700, 999, 1001, 1450, 1999, 2600, 3300} {
			w := wake()
			w.At = now.Add(after * time.Millisecond)
			due[w.Batch] = w.At
			enqueue(t, q, w)
		}
		for range len(due) {
			var a arrival
			select {
			case a = <-got:
			case <-time.After(soon):
				t.Fatalf("lost: %v", due)
			}
			at, ok := due[a.id]
			if !ok {
				t.Fatal("one came twice")
			}
			delete(due, a.id)
			if early := at.Sub(a.at); early > core.EarlyWake {
				t.Errorf("the one due after %v came %v early", at.Sub(now), early)
			}
			if late := a.at.Sub(at); at.After(now) && late > 10*time.Second {
				t.Errorf("the one due after %v came %v late", at.Sub(now), late)
			}
		}
	})
}

// TestDueScore tells what asynq is told of a due time: never a second that begins as much as
// core.EarlyWake before it, with a bit to spare for clocks that differ, and none after it.
func TestDueScore(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		q := open(t, queue.Options{URL: url})
		c := q.ConnOpt().MakeRedisClient().(redis.UniversalClient)
		t.Cleanup(func() { _ = c.Close() })
		base := time.Now().Add(time.Minute).Truncate(time.Second)
		for i := range 100 {
			w := wake()
			w.At = base.Add(time.Duration(i) * 10 * time.Millisecond)
			enqueue(t, q, w)
			score, err := c.ZScore(t.Context(), "asynq:{a.normal}:scheduled", fmt.Sprintf("%s:1", w.Batch)).Result()
			if err != nil {
				t.Fatal(err)
			}
			early := w.At.Sub(time.Unix(int64(score), 0))
			if early > core.EarlyWake-50*time.Millisecond || early < -core.EarlyWake/2 {
				t.Errorf("due at .%02d s, it may come %v early", i, early)
			}
		}
	})
}

// TestStoresClock: due times are the store's, whose clock may be hours off this process's.
func TestStoresClock(t *testing.T) {
	t.Parallel()
	for name, off := range map[string]time.Duration{"ahead": 2 * time.Hour, "behind": -2 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			both(t, func(t *testing.T, url string) {
				now := func() time.Time { return time.Now().Add(off) }
				q := open(t, queue.Options{URL: url, Now: now})
				got := make(inbox, 10)
				serve(t, q, got.handle)
				w, later := wake(), wake()
				w.At = now()
				later.At = w.At.Add(1500 * time.Millisecond)
				enqueue(t, q, w, later)
				if first := got.next(t); first.Batch != w.Batch {
					t.Error("what is due later came first")
				}
				if got.next(t); now().Before(later.At.Add(-core.EarlyWake)) {
					t.Errorf("it came %v early", later.At.Sub(now()))
				}
			})
		})
	}
}

// TestTwice tells that a wake which is in the queue already is no error and comes once, at whichever
// time; and that the same batch under the next fence is another wake.
func TestTwice(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		q := open(t, queue.Options{URL: url})
		w, later := wake(), wake()
		later.At = time.Now().Add(1500 * time.Millisecond)
		enqueue(t, q, w, later)
		enqueue(t, q, w)
		enqueue(t, q, later)
		next := w
		next.Fence++
		enqueue(t, q, next)
		if d := depths(t, q)["a.normal"]; d.Pending != 2 || d.Scheduled != 1 {
			t.Errorf("the queue holds %+v", d)
		}
		got := make(inbox, 10)
		s := serve(t, q, got.handle)
		seen := map[string]int{}
		for range 3 {
			w := got.next(t)
			seen[fmt.Sprint(w.Batch, w.Fence)]++
		}
		if len(seen) != 3 {
			t.Errorf("came: %v", seen)
		}
		if err := s.Shutdown(limit(t)); err != nil || len(got) > 0 {
			t.Errorf("%d more came, %v", len(got), err)
		}
	})
}

func depths(t testing.TB, q *queue.Queue) map[string]queue.Depth {
	t.Helper()
	ds, err := q.Depth(limit(t))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]queue.Depth{}
	for _, d := range ds {
		out[d.Route+"."+string(d.Lane)] = d
	}
	return out
}

// TestPanic tells that a handler that panics or fails costs its own wake only, which does not come
// again, and that a panic's value, which may hold content, is not logged.
func TestPanic(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		var log lines
		q := open(t, queue.Options{URL: url, Logger: log.logger()})
		got := make(inbox, 10)
		var once, twice sync.Once
		s := serve(t, q, func(ctx context.Context, w core.Wake) error {
			once.Do(func() { panic("content of a message") })
			var err error
			twice.Do(func() { err = errors.New("the store is away") })
			_ = got.handle(ctx, w)
			return err
		})
		first := wake()
		enqueue(t, q, first)
		eventually(t, "the panic is logged", func() bool { return len(log.with("panic")) > 0 })
		second, third := wake(), wake()
		enqueue(t, q, second)
		if w := got.next(t); w != second {
			t.Errorf("%+v came", w)
		}
		enqueue(t, q, third)
		if w := got.next(t); w != third {
			t.Errorf("%+v came", w)
		}
		if err := s.Shutdown(limit(t)); err != nil {
			t.Fatal(err)
		}
		if d := depths(t, q)["a.normal"]; d.Total() != 0 || len(got) > 0 {
			t.Errorf("the queue still holds %+v, %d more came", d, len(got))
		}
		if len(log.with("content of a message")) > 0 {
			t.Error("the panic's value is in the log")
		}
		if len(log.with("the store is away")) != 1 {
			t.Error("the handler's error is not in the log once")
		}
	})
}

// TestConcurrency tells that no more handlers run at once than a lane has workers, and that lanes have
// workers of their own: a busy bulk lane does not hold up a critical wake.
func TestConcurrency(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		q := open(t, queue.Options{URL: url})
		var mu sync.Mutex
		running, most := 0, 0
		release, critical := make(chan struct{}), make(chan struct{})
		serveAs(t, q, queue.ServeOptions{Concurrency: map[core.Lane]int{"critical": 1, "bulk": 3}, Handler: func(_ context.Context, w core.Wake) error {
			if w.Lane == "critical" {
				close(critical)
				return nil
			}
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			<-release
			mu.Lock()
			running--
			mu.Unlock()
			return nil
		}})
		var ws []core.Wake
		for range 20 {
			w := wake()
			w.Lane = "bulk"
			ws = append(ws, w)
		}
		enqueue(t, q, ws...)
		eventually(t, "all bulk workers are busy", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return running == 3
		})
		w := wake()
		w.Lane = "critical"
		enqueue(t, q, w)
		select {
		case <-critical:
		case <-time.After(soon):
			t.Error("the critical wake waits for bulk workers")
		}
		close(release)
		eventually(t, "the queue is empty", func() bool { return depths(t, q)["a.bulk"].Total() == 0 })
		mu.Lock()
		defer mu.Unlock()
		if most != 3 {
			t.Errorf("%d handlers ran at once", most)
		}
	})
}

// TestHandlersTime tells that a handler's context ends after the route's timeout.
func TestHandlersTime(t *testing.T) {
	t.Parallel()
	q := open(t, queue.Options{URL: queue.Embedded})
	ended := make(chan error, 1)
	serveAs(t, q, queue.ServeOptions{Timeout: 50 * time.Millisecond, Handler: func(ctx context.Context, _ core.Wake) error {
		<-ctx.Done()
		ended <- ctx.Err()
		return nil
	}})
	enqueue(t, q, wake())
	select {
	case err := <-ended:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	case <-time.After(soon):
		t.Error("it goes on for ever")
	}
	if _, err := q.Serve(t.Context(), queue.ServeOptions{Route: "a", Timeout: time.Second}); err == nil {
		t.Error("a server without a handler")
	}
}

// TestNoPersonalData tells that Redis holds ids and asynq's own figures, and nothing else of a wake.
func TestNoPersonalData(t *testing.T) {
	t.Parallel()
	addr := coretest.Redis(t)
	q := open(t, queue.Options{URL: "redis://" + addr})
	w := wake()
	enqueue(t, q, w)
	c := client(t, addr)
	fields, err := c.HGetAll(t.Context(), fmt.Sprintf("asynq:{a.normal}:t:%s:1", w.Batch)).Result()
	if err != nil {
		t.Fatal(err)
	}
	msg := fields["msg"]
	for _, known := range []string{fmt.Sprintf(`{"b":"%s","f":1}`, w.Batch), fmt.Sprintf("%s:1", w.Batch), "a.normal", queue.TaskType} {
		if !strings.Contains(msg, known) {
			t.Errorf("the task does not hold %q", known)
		}
		msg = strings.Replace(msg, known, "", 1)
	}
	if len(msg) > 20 {
		t.Errorf("the task holds more: %q", msg)
	}
	if fields["state"] != "pending" || len(fields) != 3 {
		t.Errorf("%v", fields)
	}
}

// TestLeave: a server that leaves the wakes to others takes none, and all as soon as it does not. It can be
// shut down meanwhile.
func TestLeave(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		q := open(t, queue.Options{URL: url})
		var leaves atomic.Bool
		leaves.Store(true)
		asked := make(chan struct{}, 1000)
		mine := make(inbox, 10)
		s := serveAs(t, q, queue.ServeOptions{Handler: mine.handle, Leave: func() bool {
			select {
			case asked <- struct{}{}:
			default:
			}
			return leaves.Load()
		}})
		enqueue(t, q, wake(), wake(), wake())
		for range 10 { // some three times, and at the rings
			select {
			case <-asked:
			case w := <-mine:
				t.Fatalf("it took %v", w)
			case <-limit(t).Done():
				t.Fatal("it is not asked")
			}
		}
		leaves.Store(false)
		for range 3 {
			mine.next(t)
		}
		leaves.Store(true)
		if err := s.Shutdown(limit(t)); err != nil {
			t.Error(err)
		}
	})
}
