package queue_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/queue"
)

// TestShutdown tells that a shutdown takes no more wakes, waits for the handlers under way without
// ending their contexts, and leaves what is in the queue to the next server.
func TestShutdown(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		q := open(t, queue.Options{URL: url})
		began, release := make(chan struct{}, 10), make(chan struct{})
		var cut error
		s, err := q.Serve(t.Context(), queue.ServeOptions{
			Route: "a", Timeout: soon, Concurrency: map[core.Lane]int{"normal": 1},
			Handler: func(ctx context.Context, _ core.Wake) error {
				began <- struct{}{}
				<-release
				cut = ctx.Err()
				return nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		second := wake()
		enqueue(t, q, wake())
		<-began
		enqueue(t, q, second)
		down := make(chan error, 2)
		for range 2 { // a second caller waits as the first
			go func() { down <- s.Shutdown(limit(t)) }()
		}
		third := wake()
		enqueue(t, q, third)
		select {
		case err := <-down:
			t.Fatalf("it did not wait: %v", err)
		case <-time.After(500 * time.Millisecond):
		}
		close(release)
		for range 2 {
			if err := <-down; err != nil {
				t.Error(err)
			}
		}
		if cut != nil {
			t.Errorf("the handler was cut short: %v", cut)
		}
		if d := depths(t, q)["a.normal"]; len(began) != 0 || d.Total() != 2 || d.Active != 0 {
			t.Errorf("%d more began, the queue holds %+v", len(began), d)
		}
		got := make(inbox, 10)
		serve(t, q, got.handle)
		if a, b := got.next(t), got.next(t); a != second && b != second || a != third && b != third {
			t.Errorf("the next server got %+v and %+v", a, b)
		}
	})
}

// TestShutdownBound tells that a shutdown returns as its context ends, ends the handlers' contexts
// then, and that nothing new begins after.
func TestShutdownBound(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		q := open(t, queue.Options{URL: url})
		began, ended := make(chan struct{}, 10), make(chan error, 10)
		s, err := q.Serve(t.Context(), queue.ServeOptions{
			Route: "a", Timeout: soon, Concurrency: map[core.Lane]int{"normal": 1},
			Handler: func(ctx context.Context, _ core.Wake) error {
				began <- struct{}{}
				<-ctx.Done()
				ended <- ctx.Err()
				return nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		enqueue(t, q, wake(), wake())
		<-began
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the handler's context: %v", err)
		}
		if err := s.Shutdown(limit(t)); err != nil || len(began) > 0 {
			t.Errorf("%v, %d more began", err, len(began))
		}
	})
}

// TestShutdownLate tells that a wake whose dequeue is answered after a shutdown was given up does not begin any more, and that
// the next server has it.
func TestShutdownLate(t *testing.T) {
	t.Parallel()
	r := coretest.StartRedis(t)
	link := coretest.StartProxy(t, r.Addr)
	q := open(t, queue.Options{URL: "redis://" + link.Addr})
	q.DoNotPoll()
	waiting := make(chan string, 100)
	q.TellWaiting(func(q string) { waiting <- q })
	late := make(inbox, 10)
	s := serve(t, q, late.handle)
	select {
	case <-waiting:
	case <-time.After(soon):
		t.Fatal("the dequeue does not wait")
	}
	direct := open(t, queue.Options{URL: "redis://" + r.Addr})
	eventually(t, "it is subscribed", func() bool {
		n, err := client(t, r.Addr).PubSubNumSub(t.Context(), "carillon:doorbell").Result()
		return err == nil && n["carillon:doorbell"] == 2
	})
	link.Mute() // what Redis says stays away, from here on also that something was announced
	w := wake()
	enqueue(t, direct, w)
	s.Ring("normal")
	eventually(t, "Redis has given it out", func() bool { return depths(t, direct)["a.normal"].Active == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	link.Heal()
	if err := s.Shutdown(limit(t)); err != nil {
		t.Error(err)
	}
	if len(late) > 0 {
		t.Error("it began all the same")
	}
	got := make(inbox, 10)
	serve(t, direct, got.handle)
	if g := got.next(t); g != w {
		t.Errorf("%+v came", g)
	}
}

// TestShutdownOverstayed tells that a shutdown waits for a handler that goes on for longer than it may, and than asynq waits
// for it; and that nothing is rung for a server that is down.
func TestShutdownOverstayed(t *testing.T) {
	t.Parallel()
	q := open(t, queue.Options{URL: queue.Embedded})
	began, release := make(chan struct{}), make(chan struct{})
	s := serveAs(t, q, queue.ServeOptions{Timeout: time.Millisecond, Concurrency: map[core.Lane]int{"normal": 1}, Handler: func(context.Context, core.Wake) error {
		close(began)
		<-release
		return nil
	}})
	if n := q.Bells("a", "normal"); n != 1 {
		t.Errorf("%d servers are rung for", n)
	}
	enqueue(t, q, wake())
	<-began
	down := make(chan error)
	go func() { down <- s.Shutdown(limit(t)) }()
	select {
	case err := <-down:
		t.Errorf("it did not wait: %v", err)
		close(release)
	case <-time.After(core.LeaseSlack + 500*time.Millisecond):
		close(release)
		if err := <-down; err != nil {
			t.Error(err)
		}
	}
	if n := q.Bells("a", "normal"); n != 0 {
		t.Errorf("%d servers are rung for after the shutdown", n)
	}
}

// TestShutdownRings tells that a shutdown does not wait for a dequeue that waits for its bell.
func TestShutdownRings(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		q := open(t, queue.Options{URL: url})
		q.DoNotPoll()
		waiting := make(chan string, 10)
		q.TellWaiting(func(q string) { waiting <- q })
		s := serve(t, q, func(context.Context, core.Wake) error { return nil })
		select {
		case <-waiting:
		case <-time.After(soon):
			t.Fatal("the dequeue does not wait")
		}
		if err := s.Shutdown(limit(t)); err != nil {
			t.Error(err)
		}
	})
}

// TestShutdownHung tells that neither a shutdown nor a wake waits longer than its context for a Redis
// that does not answer, and that there is no room in its window.
func TestShutdownHung(t *testing.T) {
	t.Parallel()
	r := coretest.StartRedis(t)
	q := open(t, queue.Options{URL: "redis://" + r.Addr})
	got := make(inbox, 10)
	s, err := q.Serve(t.Context(), queue.ServeOptions{Route: "a", Timeout: soon, Concurrency: map[core.Lane]int{"normal": 1}, Handler: got.handle})
	if err != nil {
		t.Fatal(err)
	}
	enqueue(t, q, wake())
	got.next(t)
	r.Pause()
	for name, call := range map[string]func(ctx context.Context) error{
		"wake":     func(ctx context.Context) error { return q.Wake(ctx, wake()) },
		"wakes":    func(ctx context.Context) error { return q.Wake(ctx, wake(), wake(), wake()) },
		"shutdown": s.Shutdown,
		"epoch": func(ctx context.Context) error {
			_, err := q.Epoch(ctx)
			return err
		},
		"depth": func(ctx context.Context) error {
			_, err := q.Depth(ctx)
			return err
		},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		began := time.Now()
		if err := call(ctx); err == nil || errors.Unwrap(err) == nil {
			t.Errorf("%s: %v, which says no cause", name, err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
		cancel()
	}
	if n := q.Room(wake()); n != 0 {
		t.Errorf("there is room for %d", n)
	}
	r.Resume()
	if err := s.Shutdown(limit(t)); err != nil {
		t.Error(err)
	}
	eventually(t, "there is room again", func() bool { return q.Room(wake()) > 0 })
}

// TestClose tells that nothing is left of a queue and its servers: no goroutine, and no connection.
func TestClose(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		leakless(t, func() {
			q, err := queue.Open(limit(t), queue.Options{URL: url, Routes: []string{"a", "b"}})
			if err != nil {
				t.Fatal(err)
			}
			got := make(inbox, 1000)
			var servers []*queue.Server
			for _, route := range []string{"a", "b"} {
				s, err := q.Serve(context.Background(), queue.ServeOptions{
					Route: route, Timeout: soon, Handler: got.handle, Concurrency: map[core.Lane]int{"critical": 1, "normal": 2, "bulk": 3},
				})
				if err != nil {
					t.Fatal(err)
				}
				servers = append(servers, s)
			}
			for range 100 {
				enqueue(t, q, wake())
				q.Room(wake())
			}
			for range 100 {
				got.next(t)
			}
			for _, s := range servers {
				if err := s.Shutdown(limit(t)); err != nil {
					t.Error(err)
				}
			}
			for range 2 {
				if err := q.Close(); err != nil {
					t.Error(err)
				}
			}
			if err := q.Wake(t.Context(), wake()); err == nil {
				t.Error("a wake after Close")
			}
			q.Room(wake())
		})
	})
}
