package app

import (
	"context"
	"errors"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/lead"
)

const (
	// sweepMost and sweepLeast bound how often a pass begins; what is kept for days need not go to the minute.
	sweepMost, sweepLeast = 10 * time.Minute, time.Second
	// sweepShare is how much of the time a pass works; for the rest it leaves the database to others.
	sweepShare = 5
)

// sweep removes what is past its time while this process holds the lease for it, until ctx ends.
func (a *App) sweep(ctx context.Context) {
	keep := a.cfg.Retention
	every := min(sweepMost, max(sweepLeast, keep.Idempotency/20))
	if keep.Finished > 0 {
		every = min(every, max(sweepLeast, keep.Finished/20))
	}
	lead.Run(ctx, lead.Options{Leases: a.store, Name: "retention", Holder: a.name, Logger: a.log}, func(ctx context.Context, l core.Lease) {
		for wait(ctx, every) {
			if err := a.sweepOnce(ctx, l, keep.Finished); err != nil && ctx.Err() == nil && !errors.Is(err, core.ErrLeaseLost) {
				a.log.Warn("old notifications could not be removed; it is tried again", "error", err, "in", every)
			}
		}
	})
}

// leadRelay makes one process's relay the one that looks often. Nothing depends on its being one: whatever a
// relay does is conditional on a batch's fence.
func (a *App) leadRelay(ctx context.Context) {
	lead.Run(ctx, lead.Options{Leases: a.store, Name: "relay", Holder: a.name, Logger: a.log}, func(ctx context.Context, _ core.Lease) {
		a.relay.Lead(true)
		<-ctx.Done()
		a.relay.Lead(false)
	})
}

// sweepOnce is one pass: short transactions with rests between them, that others need not wait for long.
func (a *App) sweepOnce(ctx context.Context, l core.Lease, keep time.Duration) error {
	began, all := time.Now(), 0
	for at := (core.ID{}); ; {
		start := time.Now()
		n, err := a.store.Sweep(ctx, l, keep, at)
		if err != nil {
			return err
		}
		all += n.Notifications
		if at = n.Next; n.Done {
			if all > 0 {
				a.log.Debug("old notifications were removed", "notifications", all, "took", time.Since(began))
			}
			return a.sweepCampaigns(ctx, l, keep)
		}
		if !wait(ctx, (sweepShare-1)*time.Since(start)) {
			return ctx.Err()
		}
	}
}

// sweepCampaigns removes the campaigns whose pages are gone.
func (a *App) sweepCampaigns(ctx context.Context, l core.Lease, keep time.Duration) error {
	for at, more := (core.ID{}), true; more; {
		start := time.Now()
		var err error
		if _, at, more, err = a.store.SweepCampaigns(ctx, l, keep, at); err != nil {
			return err
		}
		if more && !wait(ctx, (sweepShare-1)*time.Since(start)) {
			return ctx.Err()
		}
	}
	return nil
}

// wait waits, and reports false if ctx ended before.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
