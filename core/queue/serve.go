package queue

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core"
)

// ServeOptions say how one route's wakes are worked on.
type ServeOptions struct {
	Route string
	// Concurrency is how many handlers run at once, by lane. A lane that is not named is not served.
	Concurrency map[core.Lane]int
	// Timeout is what a handler may take; its context ends then.
	Timeout time.Duration
	// Handler works on one wake (Wake.At is not carried and zero). Its error is for the log alone.
	Handler func(context.Context, core.Wake) error
	// Leave says, while it is true, that this process leaves the route's wakes to others: it takes none. It is
	// asked some four times a second and at each ring, and must not block. Nil: never.
	Leave func() bool
}

// Server works on one route's wakes, each lane with workers of its own.
type Server struct {
	queue    *Queue
	o        ServeOptions
	base     context.Context // of the handlers
	cancel   context.CancelFunc
	lanes    []*laneServer
	closing  sync.Once
	ended    chan struct{}
	mu       sync.Mutex
	stopping bool
	running  sync.WaitGroup // handlers under way; grows under mu, until stopping
}

type laneServer struct {
	name   string
	srv    *asynq.Server
	bell   *bell
	client redis.UniversalClient
}

// Serve starts to work on a route's wakes and returns. Handlers' contexts come from ctx: it should
// outlive the Shutdown, unless they are to be cut short.
func (q *Queue) Serve(ctx context.Context, o ServeOptions) (*Server, error) {
	if o.Timeout <= 0 || o.Handler == nil {
		return nil, fmt.Errorf("serve route %s: a timeout and a handler are needed", o.Route)
	}
	q.window.know(names([]string{o.Route}))
	s := &Server{queue: q, o: o, ended: make(chan struct{})}
	s.base, s.cancel = context.WithCancel(ctx)
	for _, lane := range core.Lanes {
		n := o.Concurrency[lane]
		if n <= 0 {
			continue
		}
		on := name(o.Route, lane)
		if err := s.start(on, n, func(t *asynq.Task) { s.handle(lane, t) }); err != nil {
			return nil, errors.Join(fmt.Errorf("serve %s: %w", on, err), s.Shutdown(ctx))
		}
	}
	return s, nil
}

func (s *Server) start(on string, n int, handle func(*asynq.Task)) error {
	q := s.queue
	b := newBell(on, q.tempo, func() {
		q.log.Warn("this asynq's dequeue is not recognised; wakes are polled for instead", "queue", on)
	}, func() { q.window.taken(on) })
	b.leave = s.o.Leave
	client := q.clientWith(b)
	srv := asynq.NewServerFromRedisClient(client, asynq.Config{
		Concurrency: n, Queues: map[string]int{on: 1},
		TaskCheckInterval: time.Millisecond, DelayedTaskCheckInterval: 500 * time.Millisecond,
		ShutdownTimeout: s.o.Timeout + core.LeaseSlack,
		BaseContext:     func() context.Context { return context.WithoutCancel(s.base) },
		RetryDelayFunc:  func(int, error, *asynq.Task) time.Duration { return time.Second },
		Logger:          &logger{log: q.log, queue: on, words: &q.words}, LogLevel: asynq.WarnLevel,
	})
	// asynq lets go of a worker whose lease it lost, though the handler still runs: this one counts.
	slots := make(chan struct{}, n)
	q.bells.hang(on, b) // before the first dequeue: a ring in between would not be heard
	err := srv.Start(asynq.HandlerFunc(func(_ context.Context, t *asynq.Task) error {
		if !s.enter() {
			return errStopping // back to the queue, by asynq's own retry
		}
		defer s.running.Done()
		slots <- struct{}{}
		defer func() { <-slots }()
		handle(t)
		return nil
	}))
	if err != nil {
		q.bells.unhang(on, b)
		return errors.Join(err, client.Close())
	}
	s.lanes = append(s.lanes, &laneServer{name: on, srv: srv, bell: b, client: client})
	return nil
}

// clientWith makes a client with a hook.
func (q *Queue) clientWith(h redis.Hook) redis.UniversalClient {
	if q.embedded != nil {
		return q.embedded.clientWith(h)
	}
	c := q.opt.(*remote).serving()
	c.AddHook(h)
	return c
}

var errStopping = errors.New("this process is stopping")

// enter counts a handler in, unless nobody waits for it any more.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return false
	}
	s.running.Add(1)
	return true
}

// handle runs the handler. Whatever becomes of it is known to the store, so asynq is told nothing.
func (s *Server) handle(lane core.Lane, t *asynq.Task) {
	log := s.queue.log.With("route", s.o.Route, "lane", string(lane))
	defer func() {
		if v := recover(); v != nil {
			// Not its value: it may hold content.
			log.Error("a worker panicked", "panic", fmt.Sprintf("%T", v), "stack", string(debug.Stack()))
		}
	}()
	p, err := decode(t.Type(), t.Payload())
	if err != nil {
		log.Warn("a task that is no wake was dropped", "error", err)
		return
	}
	ctx, cancel := context.WithTimeout(s.base, s.o.Timeout)
	defer cancel()
	if err := s.o.Handler(ctx, core.Wake{Batch: p.Batch, Fence: p.Fence, Route: s.o.Route, Lane: lane}); err != nil {
		log.Error("a round failed; its batch comes back by its alarm clock", "batch", p.Batch.String(), "error", err)
	}
}

// Shutdown takes no more wakes and waits until the handlers under way have really returned. When ctx
// ends before, their contexts are cancelled and its error is returned; what is left ends by itself as
// they return. A second Shutdown waits like the first.
func (s *Server) Shutdown(ctx context.Context) error {
	s.closing.Do(func() { go s.shutDown() })
	select {
	case <-s.ended:
		return nil
	case <-ctx.Done():
		s.refuse()
		s.cancel()
		return fmt.Errorf("wait for the rounds of route %s: %w", s.o.Route, ctx.Err())
	}
}

// shutDown waits as long as handlers and Redis make it wait.
func (s *Server) shutDown() {
	defer close(s.ended)
	defer s.cancel()
	var stops sync.WaitGroup
	for _, l := range s.lanes {
		l.bell.close()
		stops.Go(l.srv.Stop)
	}
	stops.Wait()
	s.refuse()
	s.running.Wait()
	for _, l := range s.lanes {
		stops.Go(l.srv.Shutdown)
	}
	stops.Wait()
	for _, l := range s.lanes {
		s.queue.bells.unhang(l.name, l.bell)
		_ = l.client.Close() // nothing is under way on it
	}
}

// refuse lets no further handler begin.
func (s *Server) refuse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = true
}
