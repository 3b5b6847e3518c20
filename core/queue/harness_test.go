package queue_test

import (
	"bytes"
	"context"
	"log/slog"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/queue"
)

// both runs a test on the embedded Redis and on a real one.
func both(t *testing.T, test func(t *testing.T, url string)) {
	t.Helper()
	t.Run("embedded", func(t *testing.T) { t.Parallel(); test(t, queue.Embedded) })
	t.Run("redis", func(t *testing.T) { t.Parallel(); test(t, "redis://"+coretest.Redis(t)) })
}

// soon bounds everything that should happen at once, generously: the machine may be busy.
const soon = 30 * time.Second

// limit is a context that ends a test which waits for what never comes.
func limit(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	t.Cleanup(cancel)
	return ctx
}

// open opens a queue with the one route "a", and closes it after the test.
func open(t testing.TB, o queue.Options) *queue.Queue {
	t.Helper()
	if o.Routes == nil {
		o.Routes = []string{"a"}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	q, err := queue.Open(limit(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return q
}

// serve serves the normal lane of the route "a" with two workers, and shuts down after the test.
func serve(t testing.TB, q *queue.Queue, handler func(context.Context, core.Wake) error) *queue.Server {
	t.Helper()
	return serveAs(t, q, queue.ServeOptions{Handler: handler})
}

// serveAs is serve with options of the test's own.
func serveAs(t testing.TB, q *queue.Queue, o queue.ServeOptions) *queue.Server {
	t.Helper()
	if o.Route == "" {
		o.Route = "a"
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Concurrency == nil {
		o.Concurrency = map[core.Lane]int{"normal": 2}
	}
	s, err := q.Serve(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Shutdown(limit(t)); err != nil {
			t.Errorf("shut down: %v", err)
		}
	})
	return s
}

// inbox hands what a server gets to the test.
type inbox chan core.Wake

func (in inbox) handle(_ context.Context, w core.Wake) error {
	in <- w
	return nil
}

// next is the next wake that comes.
func (in inbox) next(t testing.TB) core.Wake {
	t.Helper()
	select {
	case w := <-in:
		return w
	case <-time.After(soon):
		t.Fatal("no wake came")
		return core.Wake{}
	}
}

// wake is a new one of the normal lane of route "a", due at once.
func wake() core.Wake {
	return core.Wake{Batch: core.NewID(time.Now()), Fence: 1, Route: "a", Lane: "normal"}
}

func enqueue(t testing.TB, q *queue.Queue, ws ...core.Wake) {
	t.Helper()
	if err := q.Wake(limit(t), ws...); err != nil {
		t.Fatal(err)
	}
}

// eventually asks until it is so.
func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	end := time.After(soon)
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for !so() {
		select {
		case <-again.C:
		case <-end:
			t.Fatalf("never: %s", what)
		}
	}
}

// client is a plain client of a test's own Redis.
func client(t testing.TB, addr string) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// lines is a log that can be looked at.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// with are the lines that hold a text.
func (l *lines) with(text string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}

// leakless runs fn and fails if a goroutine that it started, or one of those did, outlives it.
func leakless(t *testing.T, fn func()) {
	t.Helper()
	pprof.Do(context.Background(), pprof.Labels("leakless", t.Name()), func(context.Context) { fn() })
	var left string
	defer func() {
		if t.Failed() {
			t.Log(left)
		}
	}()
	eventually(t, "no goroutine is left", func() bool {
		var b bytes.Buffer
		if err := pprof.Lookup("goroutine").WriteTo(&b, 1); err != nil {
			t.Fatal(err)
		}
		left = ""
		for block := range strings.SplitSeq(b.String(), "\n\n") {
			if strings.Contains(block, `"leakless":"`+t.Name()+`"`) {
				left += block + "\n\n"
			}
		}
		return left == ""
	})
}
