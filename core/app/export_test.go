package app

import (
	"context"
	"net/http"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
	"github.com/carillon-notify/carillon/core/store"
)

// forgetful is a store that answers an acceptance at once and keeps nothing of it.
type forgetful struct{ *store.Store }

func (forgetful) Record(context.Context, *core.Acceptance) (core.Recorded, error) {
	return core.Recorded{}, nil
}

// Forgetful is the app's handler, made anew on a store that keeps no acceptance: what accepting costs
// without being durable.
func (a *App) Forgetful() (http.Handler, error) {
	kept := a.intake
	defer func() { a.intake = kept }()
	a.intake = intake.New(intake.Options{Store: forgetful{a.store}, Queue: a.queue, Templates: a.catalog, Routing: kept.Routing(), Usable: a.usable, Logger: a.log})
	return a.edges(context.Background(), a.catalog)
}

// Listen is how a start takes its port.
var Listen = listen
