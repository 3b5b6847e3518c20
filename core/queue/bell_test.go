package queue_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/queue"
)

// script is a call of a script as asynq makes it.
func script(keys ...string) *redis.Cmd {
	args := []any{"evalsha", "0123", len(keys)}
	for _, k := range keys {
		args = append(args, k)
	}
	return redis.NewCmd(context.Background(), append(args, "argument")...)
}

func dequeue() *redis.Cmd {
	return script("asynq:{a.normal}:pending", "asynq:{a.normal}:paused", "asynq:{a.normal}:active", "asynq:{a.normal}:lease")
}

func forward(from string) *redis.Cmd {
	return script("asynq:{a.normal}:"+from, "asynq:{a.normal}:pending")
}

// asked is a bell before a Redis that gives the answer set, and how often that was asked.
type asked struct {
	queue.Bell
	n, lost, taken int
	answer         error
	moved          int64 // by a forward
}

func newAsked() *asked {
	a := &asked{answer: redis.Nil}
	a.Bell = queue.NewBell("a.normal", func() { a.lost++ }, func() { a.taken++ })
	return a
}

// run sends a command through the bell and reports the error and how long it took.
func (a *asked) run(cmd *redis.Cmd) (time.Duration, error) {
	began := time.Now()
	err := a.Hook().ProcessHook(func(_ context.Context, c redis.Cmder) error {
		a.n++
		if a.answer == nil {
			c.(*redis.Cmd).SetVal(a.moved)
			return nil
		}
		c.SetErr(a.answer)
		return a.answer
	})(context.Background(), cmd)
	return time.Since(began), err
}

// TestBell tells when a dequeue asks Redis and when it waits instead.
func TestBell(t *testing.T) {
	t.Parallel()
	empty := func(t *testing.T, a *asked, took time.Duration, asks int) {
		t.Helper()
		cmd := dequeue()
		n := a.n
		d, err := a.run(cmd)
		if !errors.Is(err, redis.Nil) || !errors.Is(cmd.Err(), redis.Nil) || d != took || a.n-n != asks {
			t.Fatalf("%v after %v and %d questions; want nothing after %v and %d", err, d, a.n-n, took, asks)
		}
	}
	for name, test := range map[string]func(t *testing.T, a *asked){
		"silent": func(t *testing.T, a *asked) {
			empty(t, a, 0, 1)
			for range 3 {
				empty(t, a, 250*time.Millisecond, 0)
			}
			empty(t, a, 250*time.Millisecond, 1) // a second is over
			empty(t, a, 250*time.Millisecond, 0)
		},
		"silent, after a task that took its time": func(t *testing.T, a *asked) {
			empty(t, a, 0, 1)
			time.Sleep(100 * time.Millisecond) // synctest's clock
			for range 3 {
				empty(t, a, 250*time.Millisecond, 0)
			}
			empty(t, a, 150*time.Millisecond, 1) // a second is over
		},
		"rung while it waits": func(t *testing.T, a *asked) {
			empty(t, a, 0, 1)
			time.AfterFunc(100*time.Millisecond, a.Ring)
			empty(t, a, 100*time.Millisecond, 1)
			empty(t, a, 250*time.Millisecond, 0)
		},
		"rung before it waits": func(t *testing.T, a *asked) {
			empty(t, a, 0, 1)
			a.Ring()
			empty(t, a, 0, 1)
			empty(t, a, 250*time.Millisecond, 0)
		},
		"rung while Redis answers": func(t *testing.T, a *asked) {
			cmd := dequeue()
			err := a.Hook().ProcessHook(func(context.Context, redis.Cmder) error {
				a.Ring() // after the script looked
				return redis.Nil
			})(context.Background(), cmd)
			if !errors.Is(err, redis.Nil) {
				t.Fatal(err)
			}
			empty(t, a, 0, 1)
		},
		"a task": func(t *testing.T, a *asked) {
			a.answer = nil
			for range 3 {
				if d, err := a.run(dequeue()); err != nil || d != 0 {
					t.Fatal(d, err)
				}
			}
			if a.taken != 3 {
				t.Errorf("told of %d tasks", a.taken)
			}
			a.answer = redis.Nil
			empty(t, a, 0, 1)
		},
		"Redis away": func(t *testing.T, a *asked) {
			a.answer = errors.New("connection refused")
			var waits []time.Duration
			for range 8 {
				d, err := a.run(dequeue())
				if err == nil || errors.Is(err, redis.Nil) {
					t.Fatal(err)
				}
				waits = append(waits, d/time.Millisecond)
			}
			for i, want := range []time.Duration{50, 100, 200, 400, 800, 1000, 1000, 1000} {
				if waits[i] != want {
					t.Fatalf("waits %v ms", waits)
				}
			}
			time.AfterFunc(10*time.Millisecond, a.Ring) // a wake got through: Redis is back
			if d, _ := a.run(dequeue()); d != 10*time.Millisecond {
				t.Errorf("waits %v for a ring", d)
			}
			a.answer = redis.Nil
			empty(t, a, 0, 1)
			a.answer = errors.New("away again")
			a.Ring()
			if d, _ := a.run(dequeue()); d != 50*time.Millisecond {
				t.Errorf("the pauses begin at %v again", d)
			}
		},
		"script not loaded": func(t *testing.T, a *asked) {
			a.answer = notLoaded{}
			if d, _ := a.run(dequeue()); d != 0 {
				t.Errorf("waits %v", d)
			}
			a.answer = redis.Nil
			empty(t, a, 0, 1)
		},
		"closed": func(t *testing.T, a *asked) {
			empty(t, a, 0, 1)
			time.AfterFunc(time.Millisecond, a.Close)
			empty(t, a, time.Millisecond, 0)
			a.answer = nil
			empty(t, a, 0, 0) // takes nothing more, though there is something
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { test(t, newAsked()) })
		})
	}
}

type notLoaded struct{}

func (notLoaded) Error() string { return "NOSCRIPT No matching script" }
func (notLoaded) RedisError()   {}

// TestBellForward tells when asynq's forwarder asks for what has become due: every time while a wake
// is expected, every two seconds otherwise; and that what it moves rings.
func TestBellForward(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAsked()
		a.answer = nil
		asks := func(want int, d time.Duration) {
			t.Helper()
			before := a.n
			for range d / (500 * time.Millisecond) {
				for _, from := range []string{"scheduled", "retry"} {
					cmd := forward(from)
					if _, err := a.run(cmd); err != nil {
						t.Fatal(err)
					}
					if n, err := cmd.Int64(); err != nil || n != a.moved && n != 0 {
						t.Fatal(n, err)
					}
				}
				time.Sleep(500 * time.Millisecond)
			}
			if a.n-before != want {
				t.Errorf("%d questions in %v, want %d", a.n-before, d, want)
			}
		}
		asks(2*5, 10*time.Second)
		a.Expect(time.Now().Add(10 * time.Second))
		a.Expect(time.Now().Add(time.Second)) // an earlier one changes nothing
		asks(2*20, 10*time.Second)
		asks(2*4+2*2, 6*time.Second) // two seconds of grace, then as before
		// What is moved rings: a dequeue does not wait.
		a.answer = redis.Nil
		_, _ = a.run(dequeue())
		a.answer, a.moved = nil, 1
		time.Sleep(2 * time.Second)
		_, _ = a.run(forward("scheduled"))
		before := a.n
		if d, _ := a.run(dequeue()); d != 0 || a.n == before {
			t.Errorf("the dequeue waited %v", d)
		}
	})
}

// TestBellUnknown tells that a dequeue the bell does not know is polled with at a fair pace, is told
// of once, and is still rung for.
func TestBellUnknown(t *testing.T) {
	t.Parallel()
	for name, cmd := range map[string]func() *redis.Cmd{
		"other keys":    func() *redis.Cmd { return script("q:{a.normal}:ready", "q:{a.normal}:paused") },
		"one key":       func() *redis.Cmd { return script("asynq:{a.normal}:pending") },
		"other command": func() *redis.Cmd { return redis.NewCmd(context.Background(), "lmove", "x", "y", "right", "left") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a := newAsked()
				for range 1000 {
					_, _ = a.run(cmd())
				}
				before := a.n
				for began := time.Now(); time.Since(began) < 10*time.Second; {
					_, _ = a.run(cmd())
				}
				if n := a.n - before; n != 200 {
					t.Errorf("%d questions in ten seconds", n)
				}
				time.AfterFunc(time.Millisecond, a.Ring)
				if d, _ := a.run(cmd()); d != time.Millisecond {
					t.Errorf("the ring came after %v", d)
				}
				a.answer = nil
				if d, _ := a.run(cmd()); d != 0 {
					t.Errorf("a task waited %v", d)
				}
				if a.lost != 1 {
					t.Errorf("told %d times", a.lost)
				}
			})
		})
	}
	t.Run("pipeline", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			a := newAsked()
			next := a.Hook().ProcessPipelineHook(func(_ context.Context, cmds []redis.Cmder) error {
				a.n++
				cmds[0].SetErr(redis.Nil)
				return redis.Nil
			})
			for range 1000 {
				_ = next(context.Background(), []redis.Cmder{dequeue()})
			}
			before, began := a.n, time.Now()
			for time.Since(began) < 10*time.Second {
				_ = next(context.Background(), []redis.Cmder{dequeue()})
			}
			if n := a.n - before; n != 200 || a.lost != 1 {
				t.Errorf("%d questions in ten seconds, told %d times", n, a.lost)
			}
		})
	})
}

// TestRecognised says when a new asynq changed its dequeue script: then this fails, and bell.go has to
// learn the new one. Until it does, wakes are polled for (TestUnrecognised).
func TestRecognised(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		var log lines
		q := open(t, queue.Options{URL: url, Logger: log.logger()})
		got := make(inbox, 10)
		s := serveAs(t, q, queue.ServeOptions{Handler: got.handle, Concurrency: map[core.Lane]int{"critical": 1, "normal": 1, "bulk": 1}})
		enqueue(t, q, wake())
		got.next(t)
		eventually(t, "asynq's dequeue is recognised on each lane", func() bool { return s.Recognised() == 3 })
		if w := log.with("not recognised"); len(w) > 0 {
			t.Error(w)
		}
	})
}

// TestUnrecognised tells that wakes come, by plain polling, if asynq's scripts are not known.
func TestUnrecognised(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		var log lines
		q := open(t, queue.Options{URL: url, Logger: log.logger()})
		q.MisreadKeys()
		got := make(inbox, 10)
		s := serve(t, q, got.handle)
		eventually(t, "it is said", func() bool { return len(log.with("not recognised")) == 1 })
		later := wake()
		later.At = time.Now().Add(1200 * time.Millisecond)
		w := wake()
		enqueue(t, q, w, later)
		if g := got.next(t); g != w {
			t.Errorf("%+v", g)
		}
		if g := got.next(t); g.Batch != later.Batch {
			t.Errorf("%+v", g)
		}
		if s.Recognised() != 0 {
			t.Error("recognised after all")
		}
	})
}

// TestRing tells that a wake comes by its ring alone, in process and from another process, at once and
// after its due time: the server that waits would not ask for an hour.
func TestRing(t *testing.T) {
	t.Parallel()
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		q := open(t, queue.Options{URL: queue.Embedded})
		ring(t, q, q)
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		q := open(t, queue.Options{URL: "redis://" + coretest.Redis(t)})
		ring(t, q, q)
	})
	t.Run("other process", func(t *testing.T) {
		t.Parallel()
		addr := coretest.Redis(t)
		here := open(t, queue.Options{URL: "redis://" + addr})
		there := open(t, queue.Options{URL: "redis://" + addr})
		c := client(t, addr)
		eventually(t, "both are subscribed", func() bool {
			subs, err := c.PubSubNumSub(t.Context(), "carillon:doorbell").Result()
			return err == nil && subs["carillon:doorbell"] == 2
		})
		ring(t, here, there)
	})
	t.Run("other process, cluster", func(t *testing.T) {
		t.Parallel()
		nodes := coretest.StartRedisCluster(t)
		here := open(t, queue.Options{URL: "redis-cluster://" + nodes[0].Addr})
		there := open(t, queue.Options{URL: "redis-cluster://" + nodes[2].Addr})
		eventually(t, "both are subscribed", func() bool {
			n := int64(0) // a cluster tells every node what is published, and each counts its own subscribers
			for _, s := range nodes {
				subs, err := client(t, s.Addr).PubSubNumSub(t.Context(), "carillon:doorbell").Result()
				if err != nil {
					return false
				}
				n += subs["carillon:doorbell"]
			}
			return n == 2
		})
		ring(t, here, there)
	})
}

// TestClusterSpreads tells that the queues of a cluster are spread over its nodes, each whole on one, and that
// wakes of all of them come.
func TestClusterSpreads(t *testing.T) {
	t.Parallel()
	nodes := coretest.StartRedisCluster(t)
	routes := []string{"a", "b", "c", "d", "e"}
	q := open(t, queue.Options{URL: "redis-cluster://" + nodes[0].Addr, Routes: routes})
	sent := map[core.ID]bool{}
	for _, route := range routes {
		for _, lane := range core.Lanes {
			w := wake()
			w.Route, w.Lane = route, lane
			enqueue(t, q, w)
			sent[w.Batch] = true
		}
	}
	at := map[string]int{}
	holding := 0
	for i, s := range nodes {
		keys, err := client(t, s.Addr).Keys(t.Context(), "asynq:{*").Result()
		if err != nil {
			t.Fatal(err)
		}
		if len(keys) > 0 {
			holding++
		}
		for _, key := range keys {
			on, _, _ := strings.Cut(key, "}")
			if node, known := at[on]; known && node != i {
				t.Errorf("queue %s is on two nodes", on)
			}
			at[on] = i
		}
	}
	if holding < 2 || len(at) != len(sent) {
		t.Errorf("%d nodes hold %d queues", holding, len(at))
	}
	got := make(inbox, 100)
	for _, route := range routes {
		serveAs(t, q, queue.ServeOptions{Route: route, Handler: got.handle, Concurrency: map[core.Lane]int{"critical": 1, "normal": 1, "bulk": 1}})
	}
	for range sent {
		w := got.next(t)
		if !sent[w.Batch] {
			t.Errorf("%+v came", w)
		}
		delete(sent, w.Batch)
	}
}

func ring(t *testing.T, from, to *queue.Queue) {
	waiting := make(chan string, 100)
	to.DoNotPoll()
	to.TellWaiting(func(q string) { waiting <- q })
	got := make(inbox, 10)
	serve(t, to, got.handle)
	for i := range 4 {
		select {
		case <-waiting:
		case <-time.After(soon):
			t.Fatal("the dequeue does not wait for its bell")
		}
		w := wake()
		if i%2 == 1 {
			w.At = time.Now().Add(1100 * time.Millisecond)
		}
		enqueue(t, from, w)
		if g := got.next(t); g.Batch != w.Batch {
			t.Errorf("%+v", g)
		}
	}
}

// TestDoorbellChannel tells that whatever is published on the doorbell's channel harms nobody.
func TestDoorbellChannel(t *testing.T) {
	t.Parallel()
	addr := coretest.Redis(t)
	q := open(t, queue.Options{URL: "redis://" + addr})
	got := make(inbox, 10)
	serve(t, q, got.handle)
	c := client(t, addr)
	for _, m := range []string{"", " ", "x", "x y", "x 0 unknown", "x -1 a.normal", "x 99999999999999999999 a.normal", "x 9999999999 a.normal", strings.Repeat("x ", 1000)} {
		if err := c.Publish(t.Context(), "carillon:doorbell", m).Err(); err != nil {
			t.Fatal(err)
		}
	}
	w := wake()
	enqueue(t, q, w)
	if g := got.next(t); g != w {
		t.Errorf("%+v", g)
	}
}
