package queue_test

import (
	"context"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/queue"
)

// TestWake tells that a wake, one in the queue already, and a delayed one reach the handler once each.
func TestWake(t *testing.T) {
	t.Parallel()
	t.Run("embedded", func(t *testing.T) { t.Parallel(); testWake(t, queue.Embedded) })
	t.Run("redis", func(t *testing.T) { t.Parallel(); testWake(t, "redis://"+coretest.Redis(t)) })
}

func testWake(t *testing.T, url string) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	q, err := queue.Open(ctx, queue.Options{URL: url, Routes: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan core.Wake, 10)
	s, err := q.Serve(ctx, queue.ServeOptions{
		Route: "a", Concurrency: map[core.Lane]int{"critical": 2, "normal": 2, "bulk": 2}, Timeout: 5 * time.Second,
		Handler: func(_ context.Context, w core.Wake) error { got <- w; return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	receive := func() core.Wake {
		select {
		case w := <-got:
			return w
		case <-ctx.Done():
			t.Fatal("no wake came")
			return core.Wake{}
		}
	}
	now := time.Now()
	first := core.Wake{Batch: core.NewID(now), Fence: 1, Route: "a", Lane: "normal"}
	late := core.Wake{Batch: core.NewID(now), Fence: 2, Route: "a", Lane: "bulk", At: now.Add(2 * time.Second)}
	if err := q.Wake(ctx, late, late); err != nil {
		t.Fatalf("a wake twice: %v", err)
	}
	if err := q.Wake(ctx, first); err != nil {
		t.Fatal(err)
	}
	if w := receive(); w != first {
		t.Errorf("first came %+v, want %+v", w, first)
	}
	w := receive()
	early := time.Until(late.At)
	if w.At = late.At; w != late {
		t.Errorf("then came %+v, want %+v", w, late)
	}
	if early > core.EarlyWake {
		t.Errorf("it came %v early", early)
	}
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if len(got) != 0 {
		t.Errorf("%d wakes came twice", len(got))
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
}
