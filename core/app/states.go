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
	others, err := a.others(ctx)
	if err != nil {
		return nil, err
	}
	by := channels(a.config(), all)
	out := make([]api.RouteState, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		s := a.routeState(ctx, all[name])
		merge(&s, others[name])
		if s.Processes == 0 {
			s.State, s.Reason = string(providers.HealthDown), "no process delivers over it: start a worker, or set workers to true"
		}
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
		addPool(&s.Pool, &h.Pool)
	}
	if r.workers != nil {
		s.Processes = 1
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

// Each process that delivers reports on its routes so often; what is older than three such times counts for
// nothing, for the process is gone.
const (
	reportEvery = 5 * time.Second
	reportAge   = 3 * reportEvery
)

// report tells the other processes how this one's routes are, until ctx ends.
func (a *App) report(ctx context.Context) {
	t := time.NewTicker(reportEvery)
	defer t.Stop()
	for {
		var reports []core.RouteReport
		for name, r := range a.routes.all() {
			if r.workers == nil {
				continue
			}
			h := r.slot.Health(ctx)
			one := core.RouteReport{Route: name, State: string(h.Status), Reason: h.Reason, Pool: h.Pool}
			if g, ok := a.gate.State(name); ok {
				one.Circuit = string(g.Circuit)
				if one.Reason == "" {
					one.Reason = g.Reason
				}
			}
			reports = append(reports, one)
		}
		if err := a.store.Report(ctx, a.name, reports); err != nil && ctx.Err() == nil {
			a.log.Debug("the other processes could not be told how this one's routes are", "error", err)
		}
		if err := a.hear(ctx); err != nil && ctx.Err() == nil {
			a.log.Debug("the other processes' reports could not be read", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// hear notes over which routes another process delivers whose circuit is not open. Where that cannot be
// known there is none.
func (a *App) hear(ctx context.Context) error {
	reports, err := a.others(ctx)
	able := map[string]bool{}
	for route, rs := range reports {
		able[route] = slices.ContainsFunc(rs, func(r core.RouteReport) bool { return r.Circuit != string(gate.Open) })
	}
	a.able.Store(&able)
	return err
}

// elsewhere says whether another process delivers over a route whose circuit is not open there.
func (a *App) elsewhere(route string) bool {
	able := a.able.Load()
	return able != nil && (*able)[route]
}

// others are the reports of other processes, by route.
func (a *App) others(ctx context.Context) (map[string][]core.RouteReport, error) {
	if a.cfg.IsSQLite() {
		return nil, nil // there is no other
	}
	all, err := a.store.Reports(ctx, reportAge)
	if err != nil {
		return nil, fmt.Errorf("read how the other processes' routes are: %w", err)
	}
	out := map[string][]core.RouteReport{}
	for _, r := range all {
		if r.Process != a.name {
			out[r.Route] = append(out[r.Route], r)
		}
	}
	return out, nil
}

// merge adds other processes' reports to what this one knows of a route: pools add up, and the worst state
// and circuit are shown, with their process.
func merge(s *api.RouteState, reports []core.RouteReport) {
	states := []string{string(providers.HealthOK), string(providers.HealthDegraded), string(providers.HealthDown)}
	circuits := []string{string(gate.Closed), string(gate.HalfOpen), string(gate.Open)}
	for i := range reports {
		r := &reports[i]
		s.Processes++
		addPool(&s.Pool, &r.Pool)
		worse := slices.Index(states, r.State) > slices.Index(states, s.State)
		if worse {
			s.State = r.State
		}
		if slices.Index(circuits, r.Circuit) > slices.Index(circuits, s.Circuit) {
			s.Circuit, worse = r.Circuit, true
		}
		if worse && r.Reason != "" {
			s.Reason = r.Process + ": " + r.Reason
		}
	}
}

func addPool(to *api.PoolState, p *providers.PoolStats) {
	to.Max, to.Open, to.Idle = to.Max+p.Max, to.Open+p.Open, to.Idle+p.Idle
	to.InUse, to.Waiting = to.InUse+p.InUse, to.Waiting+p.Waiting
	to.Opened, to.Closed = to.Opened+int64(p.Opened), to.Closed+int64(p.Closed)
	to.Failed, to.Reused = to.Failed+int64(p.Failed), to.Reused+int64(p.Reused)
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
