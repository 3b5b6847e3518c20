package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/hibiken/asynq"

	"github.com/carillon-notify/carillon/core"
)

const (
	// PlanQueue is the queue of the wakes of campaigns.
	PlanQueue = "plan"
	planType  = "campaign"
)

// planPayload is what a task of the plan queue carries.
type planPayload struct {
	Campaign core.ID `json:"c"`
	Fence    int64   `json:"f"`
}

// Plan enqueues wakes of campaigns. One that is in the queue already is no error; one that could not be
// enqueued is lost, which does no harm but delay.
func (q *Queue) Plan(ctx context.Context, wakes ...core.CampaignWake) error {
	for i, w := range wakes {
		body, err := json.Marshal(planPayload(w))
		if err != nil {
			return fmt.Errorf("encode a campaign's wake: %w", err)
		}
		_, err = q.enqueue.EnqueueContext(ctx, asynq.NewTask(planType, body), asynq.Queue(PlanQueue), asynq.TaskID(fmt.Sprintf("%s:%d", w.Campaign, w.Fence)),
			asynq.Timeout(taskTimeout), asynq.MaxRetry(retries))
		if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
			return fmt.Errorf("enqueue %d of %d campaigns' wakes on Redis at %s: %w", len(wakes)-i, len(wakes), q.url, err)
		}
		q.bells.ring(PlanQueue, time.Time{})
	}
	return nil
}

// PlanOptions say how the wakes of campaigns are worked on.
type PlanOptions struct {
	// Concurrency is how many handlers run at once.
	Concurrency int
	// Timeout is what a handler may take; its context ends then, and as the server is shut down.
	Timeout time.Duration
	// Handler works on one wake. Its error is for the log alone.
	Handler func(context.Context, core.CampaignWake) error
}

// ServePlan starts to work on the wakes of campaigns and returns. See Serve.
func (q *Queue) ServePlan(ctx context.Context, o PlanOptions) (*Server, error) {
	if o.Timeout <= 0 || o.Handler == nil || o.Concurrency <= 0 {
		return nil, errors.New("serve the plan queue: a timeout, a concurrency and a handler are needed")
	}
	s := &Server{queue: q, o: ServeOptions{Route: PlanQueue, Timeout: o.Timeout}, ended: make(chan struct{})}
	s.base, s.cancel = context.WithCancel(ctx)
	err := s.start(PlanQueue, o.Concurrency, func(t *asynq.Task) { s.plan(t, o) })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve the plan queue: %w", err), s.Shutdown(ctx))
	}
	return s, nil
}

// plan runs the handler. Whatever becomes of it is known to the store, so asynq is told nothing.
func (s *Server) plan(t *asynq.Task, o PlanOptions) {
	log := s.queue.log.With("queue", PlanQueue)
	defer func() {
		if v := recover(); v != nil {
			log.Error("a planner panicked", "panic", fmt.Sprintf("%T", v), "stack", string(debug.Stack()))
		}
	}()
	var p planPayload
	if t.Type() != planType || json.Unmarshal(t.Payload(), &p) != nil || p.Campaign.IsZero() || p.Fence <= 0 {
		log.Warn("a task that is no campaign's wake was dropped")
		return
	}
	ctx, cancel := context.WithTimeout(s.base, o.Timeout)
	defer cancel()
	if err := o.Handler(ctx, core.CampaignWake(p)); err != nil {
		log.Error("a campaign's turn failed; it comes back by its alarm clock", "campaign", p.Campaign.String(), "error", err)
	}
}
