package queue_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/queue"
)

// TestTask tells what asynq is told of a wake: that it is to be left alone for as long as any round takes, may be tried
// again, and is to be forgotten when it is done.
func TestTask(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		q := open(t, queue.Options{URL: url})
		w, later, plan := wake(), wake(), core.CampaignWake{Campaign: core.NewID(time.Now()), Fence: 1}
		later.At = time.Now().Add(time.Minute)
		enqueue(t, q, w, later)
		if err := q.Plan(limit(t), plan); err != nil {
			t.Fatal(err)
		}
		c := q.ConnOpt().MakeRedisClient().(redis.UniversalClient)
		t.Cleanup(func() { _ = c.Close() })
		inspector := asynq.NewInspectorFromRedisClient(c)
		for id, on := range map[string]string{fmt.Sprint(w.Batch, ":1"): "a.normal", fmt.Sprint(later.Batch, ":1"): "a.normal", fmt.Sprint(plan.Campaign, ":1"): queue.PlanQueue} {
			task, err := inspector.GetTaskInfo(on, id)
			if err != nil {
				t.Fatal(err)
			}
			if task.Timeout != time.Hour || task.MaxRetry < 10 || task.Retention != 0 || !task.Deadline.IsZero() {
				t.Errorf("timeout %v, %d retries, kept for %v, deadline %v", task.Timeout, task.MaxRetry, task.Retention, task.Deadline)
			}
		}
	})
}

// TestTaskLost tells that a wake whose dequeue was lost on the wire, or whose worker died, comes again where asynq finds it,
// within seconds of that: it is not put away.
func TestTaskLost(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		q := open(t, queue.Options{URL: url})
		c := q.ConnOpt().MakeRedisClient().(redis.UniversalClient)
		t.Cleanup(func() { _ = c.Close() })
		w := wake()
		enqueue(t, q, w)
		// As the dequeue leaves it, with a lease that ended long ago.
		const key = "asynq:{a.normal}:"
		id := fmt.Sprint(w.Batch, ":1")
		pipe := c.TxPipeline()
		pipe.LRem(t.Context(), key+"pending", 0, id)
		pipe.LPush(t.Context(), key+"active", id)
		pipe.HSet(t.Context(), key+"t:"+id, "state", "active")
		pipe.HDel(t.Context(), key+"t:"+id, "pending_since")
		pipe.ZAdd(t.Context(), key+"lease", redis.Z{Score: float64(time.Now().Add(-time.Minute).Unix()), Member: id})
		if _, err := pipe.Exec(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := make(inbox, 10)
		serve(t, q, got.handle)
		if g := got.next(t); g != w {
			t.Errorf("%+v came", g)
		}
	})
}
