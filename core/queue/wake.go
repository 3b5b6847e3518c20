package queue

import (
	"cmp"
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

// decode reads a task. Its errors quote nothing of it.
func decode(kind string, body []byte) (payload, error) {
	var p payload
	switch err := json.Unmarshal(body, &p); {
	case kind != taskType:
		return payload{}, errors.New("its type is another")
	case err != nil:
		return payload{}, errors.New("its payload cannot be read")
	case p.Batch.IsZero() || p.Fence <= 0:
		return payload{}, errors.New("its payload names no batch or no fence")
	}
	return p, nil
}

// Wake enqueues. A wake that is in the queue already is no error. One that could not be enqueued is
// lost, which does no harm but delay: the error says how many and why. Wake returns when ctx ends,
// whatever Redis does; what is on the wire then may still arrive. After the first failure nothing more
// is tried, for the next would fail like it.
func (q *Queue) Wake(ctx context.Context, wakes ...core.Wake) error {
	if len(wakes) == 0 {
		return nil
	}
	e := &enqueuing{wakes: wakes, kept: make([]bool, len(wakes)), ended: make(chan struct{})}
	var wg sync.WaitGroup
	run := func() {
		for i := e.take(); i >= 0; i = e.take() {
			e.tell(i, q.wake(ctx, wakes[i]))
		}
	}
	started := q.spawn(func() {
		defer close(e.ended)
		for range min(enqueuers, len(wakes)) - 1 {
			wg.Go(run)
		}
		run()
		wg.Wait()
	})
	if !started {
		return fmt.Errorf("enqueue %d wakes: the queue is closed", len(wakes))
	}
	select {
	case <-e.ended:
	case <-ctx.Done():
		q.window.fail(ctx.Err())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.done == len(wakes) {
		return nil
	}
	e.err = cmp.Or(e.err, ctx.Err()) // nothing more is begun
	q.lost.add(e.missing())
	return fmt.Errorf("enqueue %d of %d wakes on Redis at %s: %w", len(wakes)-e.done, len(wakes), q.url, e.err)
}

// enqueuing is one call of Wake.
type enqueuing struct {
	wakes []core.Wake
	ended chan struct{}

	mu   sync.Mutex
	next int
	done int
	kept []bool
	err  error // the first
}

// take is the next wake's index, or less than zero.
func (e *enqueuing) take() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil || e.next == len(e.wakes) {
		return -1
	}
	e.next++
	return e.next - 1
}

// missing are the wakes that were not enqueued, as far as is known.
func (e *enqueuing) missing() (out []core.Wake) {
	for i, kept := range e.kept {
		if !kept {
			out = append(out, e.wakes[i])
		}
	}
	return out
}

func (e *enqueuing) tell(i int, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case err == nil:
		e.done++
		e.kept[i] = true
	case e.err == nil:
		e.err = err
	}
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
	if at := q.here(w.At); time.Until(at) > atOnce {
		due = at.Add(skew)
		opts = append(opts, asynq.ProcessAt(due))
	}
	_, err = q.enqueue.EnqueueContext(ctx, asynq.NewTask(taskType, body), opts...)
	if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
		q.window.fail(err)
		return err
	}
	if err == nil {
		q.window.add(on, w.App, due)
	}
	q.bells.ring(on, due)
	return nil
}
