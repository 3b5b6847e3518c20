package app

import (
	"context"
	"fmt"

	"github.com/carillon-notify/carillon/core/campaign"
	"github.com/carillon-notify/carillon/core/queue"
)

// plan starts the expansion of campaigns, on orchestrators only: they render.
func (a *App) plan(ctx context.Context) error {
	if a.cfg.IsSQLite() {
		if err := a.store.VoidCampaigns(ctx); err != nil {
			return err
		}
	}
	planner := campaign.NewPlanner(campaign.Options{Campaigns: a.store, Pages: a.store, Audiences: a.store, Renderer: a.intake, Queue: a.queue, Logger: a.log})
	s, err := a.queue.ServePlan(context.WithoutCancel(ctx), queue.PlanOptions{Concurrency: campaign.Turns, Timeout: campaign.MaxTurn, Handler: planner.Turn})
	if err != nil {
		return fmt.Errorf("start the planner: %w", err)
	}
	looking, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		planner.Run(looking)
	}()
	a.closers = append(a.closers, func(ctx context.Context) error {
		cancel()
		<-done
		return s.Shutdown(ctx)
	})
	return nil
}

// manager takes what is asked of campaigns.
func (a *App) manager() *campaign.Manager {
	return &campaign.Manager{Keeper: a.store, Pages: a.store, Audiences: a.store, Checker: a.intake, Queue: a.queue}
}
