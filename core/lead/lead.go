// Package lead runs what one process at a time should do, while this process holds its lease.
package lead

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// Leases is the store's side of leadership.
type Leases interface {
	Acquire(ctx context.Context, name, holder string, ttl time.Duration) (core.Lease, bool, error)
	Renew(ctx context.Context, l core.Lease, ttl time.Duration) (core.Lease, error)
	Release(ctx context.Context, l core.Lease) error
}

// DefaultTTL is how long a leader that died keeps the others waiting.
const DefaultTTL = 15 * time.Second

// Options are what a process leads with.
type Options struct {
	Leases Leases
	Name   string        // of the work
	Holder string        // this process, for people
	TTL    time.Duration // 0: DefaultTTL. The lease is renewed three times as often
	Logger *slog.Logger  // nil: slog.Default()
}

// Run does the work whenever this process leads, until ctx ends. The work's context ends with the lease:
// when somebody else has it, or when it could not be renewed in its time, by this process's monotonic
// clock. A process that is stopped in its tracks learns that late, so what the work writes has to be
// conditional on the lease's fence all the same. Work that returns by itself gives the lease back and is
// begun again, here or elsewhere, a third of TTL later.
func Run(ctx context.Context, o Options, work func(context.Context, core.Lease)) {
	if o.TTL <= 0 {
		o.TTL = DefaultTTL
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	failing := false
	for {
		began := time.Now()
		l, ok, err := o.Leases.Acquire(ctx, o.Name, o.Holder, o.TTL)
		if err != nil && !failing && ctx.Err() == nil {
			o.Logger.Warn("who leads cannot be told now; it is tried again", "work", o.Name, "error", err)
		}
		failing = err != nil
		if ok {
			o.hold(ctx, l, began, work)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(o.TTL / 3):
		}
	}
}

// hold does the work under a lease that was asked for at a time, until ctx ends, the lease does or the work.
func (o *Options) hold(ctx context.Context, l core.Lease, asked time.Time, work func(context.Context, core.Lease)) {
	o.Logger.Debug("this process leads", "work", o.Name, "fence", l.Fence)
	working, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		work(working, l)
	}()
	lost := o.keep(working, l, asked, ended)
	stop()
	<-ended
	if lost {
		o.Logger.Warn("another process leads now", "work", o.Name)
		return
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.TTL/3)
	defer cancel()
	if err := o.Leases.Release(end, l); err != nil {
		o.Logger.Debug("the lease was not given back; it ends by itself", "work", o.Name, "error", err)
	}
}

// keep renews a lease until ctx or the work ends, and reports whether it is somebody else's. While the
// store does not answer it goes on nearly to the lease's end: what is left is for the work to stop in.
func (o *Options) keep(ctx context.Context, l core.Lease, asked time.Time, ended <-chan struct{}) (lost bool) {
	life := o.TTL - o.TTL/6
	again := time.NewTicker(o.TTL / 3)
	defer again.Stop()
	end := asked.Add(life)
	over := time.NewTimer(time.Until(end))
	defer over.Stop()
	for {
		select {
		case <-ended:
			return false
		case <-ctx.Done():
			return false
		case <-over.C:
			o.Logger.Warn("a lease could not be renewed in time; this process leads no longer", "work", o.Name)
			return false
		case <-again.C:
		}
		asked = time.Now()
		ask, cancel := context.WithDeadline(ctx, end)
		_, err := o.Leases.Renew(ask, l, o.TTL)
		cancel()
		switch {
		case err == nil:
			end = asked.Add(life)
			over.Reset(time.Until(end))
		case errors.Is(err, core.ErrLeaseLost):
			return true
		}
	}
}
