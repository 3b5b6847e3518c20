package queue_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/queue"
)

// plans are the wakes of campaigns that a handler got.
type plans chan core.CampaignWake

func (p plans) handle(_ context.Context, w core.CampaignWake) error {
	p <- w
	return nil
}

func (p plans) next(t *testing.T) core.CampaignWake {
	t.Helper()
	select {
	case w := <-p:
		return w
	case <-time.After(soon):
		t.Fatal("no campaign's wake came")
		return core.CampaignWake{}
	}
}

// servePlan serves the plan queue, and shuts down after the test.
func servePlan(t *testing.T, q *queue.Queue, handler func(context.Context, core.CampaignWake) error) *queue.Server {
	t.Helper()
	s, err := q.ServePlan(context.Background(), queue.PlanOptions{Concurrency: 1, Timeout: soon, Handler: handler})
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

// TestPlan tells that a campaign's wake comes whole, by its ring alone; that one which is in the queue already is no error
// and comes once; and that the same campaign under the next fence is another wake.
func TestPlan(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		q := open(t, queue.Options{URL: url})
		q.DoNotPoll()
		waiting := make(chan string, 100)
		q.TellWaiting(func(q string) { waiting <- q })
		got := make(plans, 10)
		first := core.CampaignWake{Campaign: core.NewID(time.Now()), Fence: 7}
		second := core.CampaignWake{Campaign: core.NewID(time.Now()), Fence: 1}
		third := second
		third.Fence++
		if err := q.Plan(limit(t), second, second, third); err != nil {
			t.Fatal(err)
		}
		if err := q.Plan(limit(t), second); err != nil {
			t.Error(err)
		}
		s := servePlan(t, q, got.handle)
		if diff := cmp.Diff([]core.CampaignWake{second, third}, []core.CampaignWake{got.next(t), got.next(t)}); diff != "" {
			t.Error(diff)
		}
		select {
		case <-waiting:
		case <-time.After(soon):
			t.Fatal("the dequeue does not wait for its bell")
		}
		if err := q.Plan(limit(t), first); err != nil {
			t.Fatal(err)
		}
		if w := got.next(t); w != first {
			t.Errorf("%+v came", w)
		}
		if err := s.Shutdown(limit(t)); err != nil || len(got) > 0 {
			t.Errorf("%d more came, %v", len(got), err)
		}
	})
}

// TestPlanHarm tells that a handler that panics or fails, and a task that is no campaign's wake, cost nobody else anything and
// quote nothing in the log.
func TestPlanHarm(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, url string) {
		var log lines
		q := open(t, queue.Options{URL: url, Logger: log.logger()})
		c := q.ConnOpt().MakeRedisClient().(redis.UniversalClient)
		t.Cleanup(func() { _ = c.Close() })
		other := asynq.NewClientFromRedisClient(c)
		id := core.NewID(time.Now()).String()
		for _, poison := range []struct{ kind, body string }{
			{"campaign", `secret`}, {"campaign", ``}, {"campaign", `{"c":"secret","f":1}`}, {"campaign", `{"c":"` + id + `"}`}, {"campaign", `{"f":1}`}, {"secret", `{"c":"` + id + `","f":1}`},
		} {
			if _, err := other.EnqueueContext(t.Context(), asynq.NewTask(poison.kind, []byte(poison.body)), asynq.Queue(queue.PlanQueue)); err != nil {
				t.Fatal(err)
			}
		}
		panics, fails, ends, well := core.CampaignWake{Campaign: core.NewID(time.Now()), Fence: 1}, core.CampaignWake{Campaign: core.NewID(time.Now()), Fence: 1},
			core.CampaignWake{Campaign: core.NewID(time.Now()), Fence: 1}, core.CampaignWake{Campaign: core.NewID(time.Now()), Fence: 1}
		if err := q.Plan(limit(t), panics, fails, ends, well); err != nil {
			t.Fatal(err)
		}
		got := make(plans, 10)
		s, err := q.ServePlan(context.Background(), queue.PlanOptions{Concurrency: 1, Timeout: 100 * time.Millisecond, Handler: func(ctx context.Context, w core.CampaignWake) error {
			switch w {
			case panics:
				panic("secret")
			case fails:
				return errors.New("the store is away")
			case ends:
				<-ctx.Done()
				return ctx.Err()
			}
			return got.handle(ctx, w)
		}})
		if err != nil {
			t.Fatal(err)
		}
		if w := got.next(t); w != well {
			t.Errorf("%+v came", w)
		}
		if err := s.Shutdown(limit(t)); err != nil || len(got) > 0 {
			t.Errorf("%d more came, %v", len(got), err)
		}
		for said, n := range map[string]int{"no campaign's wake": 6, "a planner panicked": 1, "the store is away": 1, "deadline exceeded": 1, "secret": 0} {
			if got := log.with(said); len(got) != n {
				t.Errorf("%q is said in %d lines, not %d: %v", said, len(got), n, got)
			}
		}
		for _, o := range []queue.PlanOptions{{Timeout: soon, Handler: got.handle}, {Concurrency: 1, Handler: got.handle}, {Concurrency: 1, Timeout: soon}} {
			if _, err := q.ServePlan(t.Context(), o); err == nil {
				t.Errorf("%+v is served", o)
			}
		}
	})
}
