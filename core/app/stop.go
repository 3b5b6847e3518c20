package app

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// handBack is how much of a shutdown is kept for settling what was cut short, at most; of a short one it is
// a quarter.
const handBack = 5 * time.Second

// Run waits until ctx ends or a part fails, and stops everything within drain_delay and shutdown_timeout: for
// the first /readyz says no while requests are still taken; then come no new requests, rounds under way
// finish, providers are closed, the store last. A round that does not finish in time is cut short and
// settled as what it came to: what has no answer is unknown. What is left waits in the store.
func (a *App) Run(ctx context.Context) error {
	var err error
	select {
	case <-ctx.Done():
		a.linger()
	case err = <-a.failed:
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.cfg.ShutdownTimeout)
	defer cancel()
	// What waits for a database that hangs would keep the process for longer than it was given.
	defer context.AfterFunc(stop, a.store.Abandon)()
	return errors.Join(err, a.close(stop))
}

// linger lets whoever sends requests here notice that this process is going, and go elsewhere.
func (a *App) linger() {
	a.draining.Store(true)
	if a.cfg.DrainDelay <= 0 || a.role != Orchestrator {
		return
	}
	a.log.Info("stopping: requests are still taken for a while", "drain_delay", a.cfg.DrainDelay)
	select {
	case <-time.After(a.cfg.DrainDelay):
	case err := <-a.failed: // nothing left to wait for
		a.log.Error("a part failed while stopping", "error", err)
	}
}

// leaving has clients whose requests come while the process drains make their next connection elsewhere.
func (a *App) leaving(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.draining.Load() {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// stopServing ends the API: no new connections; requests under way may take half of what is left.
func (a *App) stopServing(ctx context.Context) error {
	half, cancel := part(ctx, 2)
	defer cancel()
	// Live connections and streams are not idle ones: they are ended before the server waits for them.
	close(a.unserved)
	a.closeGateways(half)
	err := a.server.Shutdown(half)
	if errors.Is(err, context.DeadlineExceeded) {
		a.log.Warn("requests were cut off: they took too long to end in order", "shutdown_timeout", a.cfg.ShutdownTimeout)
		err = a.server.Close()
	}
	return ignoreClosed(err)
}

// part is a context that ends when one n-th of the time until ctx's end is over.
func part(ctx context.Context, n int) (context.Context, context.CancelFunc) {
	end, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(end)/time.Duration(n))
}

// stop ends what startRoute started. It reports whether rounds had to be cut short.
func (r *route) stop(ctx context.Context) (cut bool, err error) {
	if r.workers != nil {
		cut, err = r.finish(ctx)
	}
	if r.deaf != nil {
		r.deaf()
	}
	return cut, err
}

// finish lets the rounds under way end, and ends their calls while there is still time to settle them.
func (r *route) finish(ctx context.Context) (cut bool, err error) {
	first := ctx
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		left := time.Until(end)
		first, cancel = context.WithTimeout(ctx, left-min(handBack, left/4))
		defer cancel()
	}
	if err := r.workers.Shutdown(first); err == nil || ctx.Err() != nil {
		return false, err
	}
	return true, r.workers.Shutdown(ctx)
}

// stopRoutes lets the rounds under way finish, on all routes at once, and then stops receiving.
func (a *App) stopRoutes(ctx context.Context) error {
	all := a.routes.all()
	errs := make(chan error, len(all))
	for _, r := range all {
		go func() {
			cut, err := r.stop(ctx)
			if cut && err == nil {
				a.log.Warn("rounds were cut short and handed back: they took too long to end in order", "route", r.Name)
			}
			errs <- err
		}()
	}
	var out []error
	for range all {
		out = append(out, <-errs)
	}
	a.receiving.Wait()
	return errors.Join(out...)
}

// closeGateways ends live connections. The rounds of their routes finish first, for whoever they are for
// would be gone.
func (a *App) closeGateways(ctx context.Context) {
	for _, name := range a.routes.names() {
		r := a.routes.get(name)
		if r == nil || r.Kind != websocketKind || r.slot == nil {
			continue
		}
		var err error
		if r.workers != nil {
			_, err = r.finish(ctx)
		}
		if err := errors.Join(err, r.slot.Close(ctx)); err != nil {
			a.log.Warn("live connections could not be closed in order", "error", err)
		}
	}
}

// ready reports whether requests can be taken: the process is not on its way out, and the store answers. A
// queue that is away delays deliveries and refuses nothing.
func (a *App) ready(ctx context.Context) error {
	if a.draining.Load() {
		return core.ErrStopping
	}
	if err := a.store.Ping(ctx); err != nil {
		return fmt.Errorf("the store does not answer: %w", err)
	}
	return nil
}
