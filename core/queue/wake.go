package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hibiken/asynq"

	"github.com/carillon-notify/carillon/core"
)

const (
	// taskType is the only type of task.
	taskType = "batch"
	// taskTimeout is far beyond any round: a round ends itself by its lease, and asynq would free the
	// worker of one that it gave up while it still runs.
	taskTimeout = time.Hour
	// retries is headroom: with MaxRetry(0) asynq archives a task whose dequeue was lost on the wire
	// without ever running it. No handler of ours fails, so it is never counted.
	retries = 25
	// atOnce is how soon a wake has to be due to go without asynq's scheduler, which looks every half
	// second; the claim waits for it.
	atOnce = 500 * time.Millisecond
	// skew is kept from core.EarlyWake, as asynq cuts due times down to whole seconds.
	skew = 100 * time.Millisecond
	// enqueuers is how many wakes of one call are enqueued side by side: they share a pipeline.
	enqueuers = 64
)

// payload is what a task carries.
type payload struct {
	Batch core.ID `json:"b"`
	Fence int64   `json:"f"`
}

// Wake enqueues. A wake that is in the queue already is no error. One that could not be enqueued is
// lost, which does no harm but delay: the error says how many and why.
func (q *Queue) Wake(ctx context.Context, wakes ...core.Wake) error {
	if len(wakes) == 1 {
		if err := q.wake(ctx, wakes[0]); err != nil {
			return fmt.Errorf("enqueue a wake on Redis at %s: %w", q.url, err)
		}
		return nil
	}
	var (
		mu     sync.Mutex
		next   int
		failed int
		first  error
		wg     sync.WaitGroup
	)
	take := func() (core.Wake, bool) {
		mu.Lock()
		defer mu.Unlock()
		if next == len(wakes) {
			return core.Wake{}, false
		}
		next++
		return wakes[next-1], true
	}
	for range min(enqueuers, len(wakes)) {
		wg.Go(func() {
			for w, ok := take(); ok; w, ok = take() {
				if err := q.wake(ctx, w); err != nil {
					mu.Lock()
					failed++
					if first == nil {
						first = err
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if failed > 0 {
		return fmt.Errorf("enqueue %d of %d wakes on Redis at %s: %w", failed, len(wakes), q.url, first)
	}
	return nil
}

func (q *Queue) wake(ctx context.Context, w core.Wake) error {
	body, err := json.Marshal(payload{Batch: w.Batch, Fence: w.Fence})
	if err != nil {
		return err
	}
	on := name(w.Route, w.Lane)
	opts := []asynq.Option{
		asynq.Queue(on), asynq.TaskID(fmt.Sprintf("%s:%d", w.Batch, w.Fence)),
		asynq.Timeout(taskTimeout), asynq.MaxRetry(retries),
	}
	var due time.Time
	if time.Until(w.At) > atOnce {
		due = w.At.Add(skew)
		opts = append(opts, asynq.ProcessAt(due))
	}
	_, err = q.enqueue.EnqueueContext(ctx, asynq.NewTask(taskType, body), opts...)
	if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
		q.window.fail()
		return err
	}
	if err == nil {
		q.window.add(on)
	}
	q.bells.ring(on, due)
	return nil
}
