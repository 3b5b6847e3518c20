package queue_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/queue"
)

// of is a wake of an app.
func of(app string) core.Wake {
	w := wake()
	w.App = app
	return w
}

// many are n wakes of an app, due at once or later.
func many(app string, n int, at time.Time) []core.Wake {
	ws := make([]core.Wake, n)
	for i := range ws {
		ws[i] = of(app)
		ws[i].At = at
	}
	return ws
}

// TestWindowShare tells how much of a queue one app gets: its share, of that queue alone, apart for
// what is due at once and later; and that another app has room meanwhile.
func TestWindowShare(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		q := open(t, queue.Options{URL: url})
		later := of("flood")
		later.At = time.Now().Add(time.Minute)
		bulk := of("flood")
		bulk.Lane = "bulk"
		check := func(when string, now, then, other int) {
			t.Helper()
			for _, c := range []struct {
				what string
				w    core.Wake
				want int
			}{{"now", of("flood"), now}, {"later", later, then}, {"another app", of("lone"), other}, {"another lane", bulk, queue.Share}} {
				// What is put in while somebody looks is counted twice until the next look.
				eventually(t, fmt.Sprintf("%s: room for %d %s", when, c.want, c.what), func() bool { return q.Room(c.w) == c.want })
			}
		}
		check("at first", queue.Share, queue.Share, queue.Share)
		enqueue(t, q, many("flood", queue.Share-1, time.Time{})...)
		check("nearly full", 1, queue.Share, queue.Share)
		enqueue(t, q, many("flood", 1, time.Time{})...)
		check("full", 0, queue.Share, queue.Share)
		enqueue(t, q, many("flood", queue.Share, later.At)...)
		check("full of both", 0, 0, queue.Share)
		if d := depths(t, q)["a.normal"]; d.Pending != queue.Share || d.Scheduled != queue.Share {
			t.Errorf("the queue holds %+v", d)
		}
	})
}

// TestWindowBound tells that any number of apps that take all the room they are given stay within
// twice the window, and that each has at least one wake in it until then.
func TestWindowBound(t *testing.T) {
	t.Parallel()
	const size = 40
	q := open(t, queue.Options{URL: queue.Embedded, Window: size})
	total, first := 0, 0
	for i := range 10 * size {
		app := fmt.Sprint("app", i)
		eventually(t, "the depth is known", func() bool {
			q.Room(of(app))
			pending, _ := q.Known("a", "normal")
			return pending == total
		})
		n := q.Room(of(app))
		enqueue(t, q, many(app, n, time.Time{})...)
		total += n
		if i == 0 {
			first = n
		}
		if again := q.Room(of(app)); again > 0 {
			t.Fatalf("app %d took %d and has room for %d", i, n, again)
		}
		if n == 0 && total < 2*size {
			t.Fatalf("app %d has no room at %d", i, total)
		}
	}
	if first != size/4 || total != 2*size {
		t.Errorf("the first app got %d, all together %d", first, total)
	}
}

// TestWindowTaken tells that room comes back as wakes are taken: by a worker of this process at once,
// by one of another process when this one looks, which it does unasked.
func TestWindowTaken(t *testing.T) {
	t.Parallel()
	addr := coretest.Redis(t)
	here := open(t, queue.Options{URL: "redis://" + addr})
	there := open(t, queue.Options{URL: "redis://" + addr})
	for _, server := range []*queue.Queue{here, there} {
		enqueue(t, here, many("flood", queue.Share, time.Time{})...)
		if n := here.Room(of("flood")); n != 0 {
			t.Errorf("room for %d beyond the share", n)
		}
		got := make(inbox, queue.Share)
		s := serve(t, server, got.handle)
		for range queue.Share {
			got.next(t)
		}
		eventually(t, "it is known that the queue is empty", func() bool {
			pending, _ := here.Known("a", "normal")
			return pending == 0
		})
		eventually(t, "there is room", func() bool { return here.Room(of("flood")) == queue.Share })
		if err := s.Shutdown(limit(t)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWindowForward tells that wakes which were due later count as waiting once asynq moved them.
func TestWindowForward(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		q := open(t, queue.Options{URL: url})
		release := make(chan struct{})
		began := make(chan core.Wake, 1000)
		serveAs(t, q, queue.ServeOptions{Concurrency: map[core.Lane]int{"normal": 1}, Timeout: soon, Handler: func(_ context.Context, w core.Wake) error {
			began <- w
			<-release
			return nil
		}})
		defer close(release)
		at := time.Now().Add(1200 * time.Millisecond)
		enqueue(t, q, many("flood", 50, at)...)
		later := of("flood")
		later.At = time.Now().Add(time.Hour)
		if now, then := q.Room(of("flood")), q.Room(later); now != queue.Share || then != queue.Share-50 {
			t.Errorf("room for %d now and %d later", now, then)
		}
		<-began // they were moved, and one is being worked on
		eventually(t, "they are counted among those that wait", func() bool {
			return q.Room(of("flood")) == queue.Share-49 && q.Room(later) == queue.Share
		})
		if n := q.Room(of("lone")); n != queue.Share {
			t.Errorf("another app has room for %d", n)
		}
	})
}

// TestWindowBehind tells that an app that is behind has no room for what is due now, but for what is
// due later and for what the relay brings in; and that this ends by being told, or by itself.
func TestWindowBehind(t *testing.T) {
	t.Parallel()
	q := open(t, queue.Options{URL: queue.Embedded})
	later := of("flood")
	later.At = time.Now().Add(time.Minute)
	eventually(t, "the depth is known", func() bool { return q.Room(of("flood")) == queue.Share })
	check := func(want int) {
		t.Helper()
		if n := q.Room(of("flood")); n != want {
			t.Errorf("room for %d, want %d", n, want)
		}
		if n := q.Room(later); n != queue.Share {
			t.Errorf("room for %d later", n)
		}
		if n := q.Refill("flood", "a", "normal"); n != queue.Share {
			t.Errorf("room for %d of the relay's", n)
		}
		if n := q.Room(of("lone")); n != queue.Share {
			t.Errorf("another app has room for %d", n)
		}
	}
	q.Behind("flood", "a", "normal", true)
	check(0)
	q.Behind("flood", "a", "normal", false)
	check(queue.Share)
	q.Behind("flood", "a", "normal", true)
	check(0)
	eventually(t, "it is forgotten", func() bool { return q.Room(of("flood")) == queue.Share })
}

// TestWindowLost tells that room comes back when Redis loses what it held, and is counted by what it
// holds when this process began.
func TestWindowLost(t *testing.T) {
	t.Parallel()
	r := coretest.StartRedis(t)
	q := open(t, queue.Options{URL: "redis://" + r.Addr, Window: 100})
	enqueue(t, q, many("flood", 25, time.Time{})...)
	enqueue(t, q, many("other", 200, time.Time{})...)
	late := open(t, queue.Options{URL: "redis://" + r.Addr, Window: 100})
	for name, q := range map[string]*queue.Queue{"who filled it": q, "who came later": late} {
		if n := q.Room(of("lone")); n != 0 {
			t.Errorf("%s: the window is full twice over and has room for %d", name, n)
		}
	}
	r.FlushAll()
	for name, q := range map[string]*queue.Queue{"who filled it": q, "who came later": late} {
		eventually(t, name+" has room again", func() bool { return q.Room(of("flood")) == 25 && q.Room(of("lone")) == 25 })
	}
}

// TestDrainedDue tells that a queue is not drained while a wake waits in it whose time has come, though asynq has not moved
// it yet.
func TestDrainedDue(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		q := open(t, queue.Options{URL: url}) // nobody serves it
		normal := []core.RouteLane{{Route: "a", Lane: "normal"}}
		w := wake()
		w.At = time.Now().Add(600 * time.Millisecond)
		enqueue(t, q, w)
		if d := depths(t, q)["a.normal"]; d.Scheduled != 1 {
			t.Fatalf("the queue holds %+v", d)
		}
		eventually(t, "it is due", func() bool {
			got, err := q.Drained(limit(t), normal)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) == 0 && time.Now().Before(w.At.Add(-core.EarlyWake)) {
				t.Errorf("not drained %v before it is due", time.Until(w.At))
			}
			return len(got) == 0
		})
	})
}

// TestDrained tells when no wake that is due waits in a queue: before there is one, while one is due later,
// and when somebody took what there was, whatever became of it.
func TestDrained(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		q := open(t, queue.Options{URL: url})
		normal, bulk := core.RouteLane{Route: "a", Lane: "normal"}, core.RouteLane{Route: "a", Lane: "bulk"}
		check := func(when string, want ...core.RouteLane) {
			t.Helper()
			got, err := q.Drained(limit(t), []core.RouteLane{normal, bulk})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: %s", when, diff)
			}
		}
		check("at first", normal, bulk)
		later := wake()
		later.At = time.Now().Add(time.Minute)
		enqueue(t, q, later)
		check("with one due later", normal, bulk)
		enqueue(t, q, wake())
		check("with one", bulk)
		taken, release := make(inbox, 1), make(chan struct{})
		serve(t, q, func(ctx context.Context, w core.Wake) error {
			err := taken.handle(ctx, w)
			<-release
			return err
		})
		defer close(release)
		taken.next(t)
		check("with one in a worker's hands", normal, bulk)
		if got, err := q.Drained(limit(t), nil); len(got) != 0 || err != nil {
			t.Errorf("of none: %v %v", got, err)
		}
	})
}

// TestWindowAtOnce tells what is known without another look: that a wake taken makes room for its app, and that there is none
// once Redis cannot be reached, until it can. A caller that went away says nothing about Redis.
func TestWindowAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := queue.NewWindow(10 * queue.Share)
		want := func(when string, room int) {
			t.Helper()
			if n := w.Room("a"); n != room {
				t.Errorf("%s: room for %d, not %d", when, n, room)
			}
		}
		nothing := func() {}
		want("at first", queue.Share)
		for range queue.Share {
			w.Add("a")
		}
		want("full", 0)
		for range 3 {
			w.Taken()
		}
		want("three were taken", 3)
		w.Fail(context.Canceled)
		want("a caller went away", 3)
		for name, err := range map[string]error{"refused": errors.New("connection refused"), "silent": context.DeadlineExceeded} {
			w.Fail(err)
			want(name, 0)
			if !w.Look(0, 0, err, nothing) {
				t.Errorf("%s: nobody looks", name)
			}
			want(name+" still", 0)
			if w.Look(0, 0, nil, nothing) {
				t.Errorf("%s: looked twice at once", name)
			}
			time.Sleep(time.Second) // synctest's clock
			looked := w.Look(queue.Share-3, 0, nil, func() {
				if w.Look(0, 0, nil, nothing) {
					t.Error("two look at the same time")
				}
			})
			if !looked {
				t.Errorf("%s: nobody looks again", name)
			}
			want("it is back", 3)
		}
		time.Sleep(time.Second)
		w.Look(queue.Share-3, 0, nil, func() { w.Add("a") })
		want("one was put in while somebody looked", 2)
	})
}
