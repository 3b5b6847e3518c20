package app

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/api"
	"github.com/carillon-notify/carillon/core/config"
	"github.com/carillon-notify/carillon/core/dispatch"
	"github.com/carillon-notify/carillon/core/gate"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/builtin"
)

// route is a configured provider instance, open or (where another process delivers) only described.
type route struct {
	core.Route
	kind        providers.Kind
	limits      dispatch.Limits
	concurrency int
	rate        string
	provider    providers.Provider // nil: this process does not deliver
}

// routes are the routes of this process. They implement dispatch.Routes.
type routes map[string]*route

// Provider implements dispatch.Routes.
func (rs routes) Provider(name string) (providers.Provider, dispatch.Limits, bool) {
	r, ok := rs[name]
	if !ok || r.provider == nil {
		return nil, dispatch.Limits{}, false
	}
	return r.provider, r.limits, true
}

func (rs routes) names() []string { return slices.Sorted(maps.Keys(rs)) }

func (rs routes) maxBatch(name string) int {
	if r, ok := rs[name]; ok {
		return r.kind.MaxBatch
	}
	return 1
}

// emailTimeout: a batch of mails shares few sessions, and a server may take its time at the final dot.
const emailTimeout = 30 * time.Second

// describe makes the routes that are configured, without opening anything.
func describe(c *config.Config) (routes, map[string]providers.Kind, error) {
	kinds := map[string]providers.Kind{}
	for _, k := range builtin.Kinds() {
		kinds[k.Name] = k
	}
	out := routes{}
	var faults []string
	for _, name := range slices.Sorted(maps.Keys(c.Routes)) {
		rc := c.Routes[name]
		k, ok := kinds[rc.Kind]
		if !ok {
			faults = append(faults, fmt.Sprintf("routes.%s.kind: there is no kind %q; there are %v", name, rc.Kind, slices.Sorted(maps.Keys(kinds))))
			continue
		}
		if _, bad := settingsJSON(name, k, rc); len(bad) > 0 {
			faults = append(faults, bad...)
		}
		r := &route{Route: core.Route{Name: name, Kind: rc.Kind, Channel: k.Channel, Apps: rc.Apps, Policy: policy(rc.Retry)}, kind: k, concurrency: rc.Concurrency, rate: rc.Rate}
		r.limits = dispatch.Limits{Timeout: rc.Timeout, Policy: r.Policy}
		if r.limits.Timeout == 0 {
			r.limits.Timeout = config.DefaultTimeout
			if rc.Kind == "email" {
				r.limits.Timeout = emailTimeout
			}
		}
		if r.concurrency == 0 {
			r.concurrency = config.DefaultConcurrency
		}
		out[name] = r
	}
	if len(faults) > 0 {
		return nil, nil, &config.Error{Faults: faults}
	}
	return out, kinds, nil
}

func policy(r config.Retry) core.Policy {
	p := core.DefaultPolicy
	if r.MaxAttempts > 0 {
		p.MaxAttempts = r.MaxAttempts
	}
	if r.MaxUnknown > 0 {
		p.MaxUnknown = r.MaxUnknown
	}
	if r.Min > 0 {
		p.Min = r.Min
	}
	if r.Max > 0 {
		p.Max = r.Max
	}
	return p
}

// channels are the configured ones, or what follows from the routes' kinds.
func channels(c *config.Config, rs routes) map[string][]string {
	if len(c.Channels) > 0 {
		return c.Channels
	}
	out := map[string][]string{}
	for _, k := range builtin.Kinds() {
		for _, name := range rs.names() {
			if rs[name].Kind == k.Name {
				out[k.Channel] = append(out[k.Channel], name)
			}
		}
	}
	return out
}

// open opens the providers that this process needs: all where it delivers, only those with live
// clients where it does not.
func (rs routes) open(ctx context.Context, c *config.Config) error {
	for _, name := range rs.names() {
		r := rs[name]
		if !c.Workers && r.Kind != websocketKind {
			continue
		}
		text, _ := settingsJSON(name, r.kind, c.Routes[name]) // describe checked it
		p, err := r.kind.Open(ctx, text)
		if err != nil {
			return fmt.Errorf("open route %s: %w", name, err)
		}
		r.provider = p
	}
	return nil
}

// close closes the providers, all of them at once.
func (rs routes) close(ctx context.Context) error {
	errs := make(chan error, len(rs))
	n := 0
	for name, r := range rs {
		if r.provider == nil {
			continue
		}
		n++
		go func() {
			if err := r.provider.Close(ctx); err != nil {
				errs <- fmt.Errorf("close route %s: %w", name, err)
				return
			}
			errs <- nil
		}()
	}
	var all []error
	for range n {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// pools are the figures of the open providers' connections.
func (rs routes) pools() map[string]providers.PoolStats {
	out := map[string]providers.PoolStats{}
	for name, r := range rs {
		if r.provider != nil {
			out[name] = r.provider.Health(context.Background()).Pool
		}
	}
	return out
}

// gates are the limits that the gate guards.
func (rs routes) gates(c *config.Config) map[string]gate.Config {
	out := map[string]gate.Config{}
	for name := range rs {
		rate, _ := config.ParseRate(c.Routes[name].Rate) // config.Check read it
		b := c.Routes[name].Breaker
		out[name] = gate.Config{Rate: rate, Breaker: gate.Breaker{Ratio: b.Ratio, Least: b.Least, Window: b.Window, Min: b.Min, Max: b.Max}}
	}
	return out
}

// RouteStates says how every route is: its provider, its circuit, its connections, what waits for it.
func (a *App) RouteStates(ctx context.Context) ([]api.RouteState, error) {
	paused, err := a.store.Paused(ctx)
	if err != nil {
		return nil, fmt.Errorf("read which routes are paused: %w", err)
	}
	backlog, err := a.store.Backlog(ctx)
	if err != nil {
		return nil, fmt.Errorf("read what waits: %w", err)
	}
	by := channels(&a.cfg, a.routes)
	out := make([]api.RouteState, 0, len(a.routes))
	for _, name := range a.routes.names() {
		r := a.routes[name]
		s := api.RouteState{Name: name, Kind: r.Kind, State: string(providers.HealthOK), Rate: r.rate, Channels: []string{}}
		for _, channel := range slices.Sorted(maps.Keys(by)) {
			if slices.Contains(by[channel], name) {
				s.Channels = append(s.Channels, channel)
			}
		}
		if r.provider != nil {
			h := r.provider.Health(ctx)
			s.State, s.Reason = string(h.Status), h.Reason
			s.Pool = api.PoolState{Max: h.Pool.Max, Open: h.Pool.Open, Idle: h.Pool.Idle, InUse: h.Pool.InUse, Waiting: h.Pool.Waiting,
				Opened: int64(h.Pool.Opened), Closed: int64(h.Pool.Closed), Failed: int64(h.Pool.Failed), Reused: int64(h.Pool.Reused)}
		}
		if g, ok := a.gate.State(name); ok {
			s.Circuit = string(g.Circuit)
			if g.Reason != "" {
				s.Reason = g.Reason
			}
		}
		if paused[name] {
			s.State = "paused"
		}
		s.Queue = depths(name, backlog)
		out = append(out, s)
	}
	return out, nil
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
	if _, ok := a.routes[name]; !ok {
		return core.ErrNotFound
	}
	if err := a.store.PauseRoute(ctx, name, paused); err != nil {
		return err
	}
	if !paused {
		a.gate.Reset(name) // an operator who resumes a route has mended it
		a.relay.Nudge()
	}
	return nil
}
