package app

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/api"
	"github.com/carillon-notify/carillon/core/gate"
	"github.com/carillon-notify/carillon/providers"
)

// RouteStates says how every route is: its provider, its circuit, its connections, what waits for it; and
// which plugins cannot be had.
func (a *App) RouteStates(ctx context.Context) ([]api.RouteState, error) {
	paused, err := a.store.Paused(ctx)
	if err != nil {
		return nil, fmt.Errorf("read which routes are paused: %w", err)
	}
	backlog, err := a.store.Backlog(ctx)
	if err != nil {
		return nil, fmt.Errorf("read what waits: %w", err)
	}
	all := a.routes.all()
	by := channels(a.config(), all)
	out := make([]api.RouteState, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		s := a.routeState(ctx, all[name])
		for _, channel := range slices.Sorted(maps.Keys(by)) {
			if slices.Contains(by[channel], name) {
				s.Channels = append(s.Channels, channel)
			}
		}
		if paused[name] {
			s.State = "paused"
		}
		s.Queue = depths(name, backlog)
		out = append(out, s)
	}
	faults := a.routes.fault()
	for _, name := range slices.Sorted(maps.Keys(faults)) {
		if all[name] != nil {
			continue // the one before goes on
		}
		out = append(out, api.RouteState{Name: name, Channels: []string{}, State: string(providers.HealthDown), Reason: faults[name], Queue: depths(name, backlog)})
	}
	return out, nil
}

// routeState is what the process itself knows of a route.
func (a *App) routeState(ctx context.Context, r *route) api.RouteState {
	s := api.RouteState{Name: r.Name, Kind: r.Kind, State: string(providers.HealthOK), Rate: r.rate, Isolation: r.isolation, Channels: []string{}}
	if r.slot != nil {
		h := r.slot.Health(ctx)
		s.State, s.Reason = string(h.Status), h.Reason
		s.Pool = api.PoolState{Max: h.Pool.Max, Open: h.Pool.Open, Idle: h.Pool.Idle, InUse: h.Pool.InUse, Waiting: h.Pool.Waiting,
			Opened: int64(h.Pool.Opened), Closed: int64(h.Pool.Closed), Failed: int64(h.Pool.Failed), Reused: int64(h.Pool.Reused)}
	}
	if g, ok := a.gate.State(r.Name); ok {
		s.Circuit = string(g.Circuit)
		if g.Reason != "" && s.Reason == "" {
			s.Reason = g.Reason
		}
	}
	if why := a.routes.fault()[r.Name]; why != "" {
		s.Reason = "the last reload could not be applied to it: " + why
	}
	return s
}

// depths is what waits for a route in each lane, in batches.
func depths(route string, backlog []core.Backlog) []api.QueueDepth {
	out := make([]api.QueueDepth, 0, len(core.Lanes))
	for _, lane := range core.Lanes {
		d := api.QueueDepth{Lane: string(lane)}
		for _, b := range backlog {
			if b.Route == route && b.Lane == lane {
				d.Pending, d.Queued, d.Sending = b.Pending, b.Queued, b.Sending
			}
		}
		out = append(out, d)
	}
	return out
}

// PauseRoute pauses or resumes a route.
func (a *App) PauseRoute(ctx context.Context, name string, paused bool) error {
	r := a.routes.get(name)
	if r == nil {
		return core.ErrNotFound
	}
	if err := a.store.PauseRoute(ctx, name, paused); err != nil {
		return err
	}
	a.paused.forget()
	if paused {
		return nil
	}
	// An operator who resumes a route has mended it.
	a.gate.Reset(name)
	r.retry()
	a.relay.Nudge()
	return nil
}

// retry ends the quarantine of a route's process, if it is in one: somebody mended it.
func (r *route) retry() {
	if r.slot == nil {
		return
	}
	t, _, _ := r.slot.now()
	if p, ok := providerOf(t).(interface{ Retry() }); ok {
		p.Retry()
	}
}

// usable reports whether a route delivers now, as far as this process knows: it is not paused, and its
// circuit is not open.
func (a *App) usable(name string) bool {
	if a.paused.now(a.store.Paused)[name] {
		return false
	}
	s, ok := a.gate.State(name)
	return !ok || s.Circuit != gate.Open || !time.Now().Before(s.Until)
}

const (
	// pausedFor is how old the list of paused routes may be when a stand-in is chosen. A message for a
	// route that was paused meanwhile is held there.
	pausedFor = time.Second
	// pausedWait bounds how long an accept waits for the list.
	pausedWait = 200 * time.Millisecond
)

// pausedRoutes remembers which routes are paused.
type pausedRoutes struct {
	mu   sync.Mutex
	list map[string]bool
	at   time.Time
}

func (p *pausedRoutes) now(ask func(context.Context) (map[string]bool, error)) map[string]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.at) < pausedFor {
		return p.list
	}
	ctx, cancel := context.WithTimeout(context.Background(), pausedWait)
	defer cancel()
	if list, err := ask(ctx); err == nil {
		p.list = list
	}
	p.at = time.Now() // a store that does not answer is not asked for each address
	return p.list
}

// forget has the list read anew.
func (p *pausedRoutes) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at = time.Time{}
}
