package app

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/carillon-notify/carillon/core/api"
	"github.com/carillon-notify/carillon/core/config"
	"github.com/carillon-notify/carillon/providers"
)

const (
	// mendEvery is how often a plugin that could not be had is tried again.
	mendEvery = 15 * time.Second
	// drainTimeout bounds how long the calls of a provider that is exchanged may take: longer than any call.
	drainTimeout = 10*time.Minute + 5*time.Second
)

// mend tries plugins that could not be had again, for a file may be copied while it is looked at.
func (a *App) mend(ctx context.Context) {
	t := time.NewTicker(mendEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			had := a.routes.fault()
			if len(had) == 0 {
				continue
			}
			a.reloading.Lock()
			out, err := a.apply(ctx, a.config())
			a.reloading.Unlock()
			a.tellFaults(out.Faults, had)
			if ctx.Err() == nil {
				a.log.Debug("the plugins that cannot be had were tried again", "error", err)
			}
		}
	}
}

// readFrom says where Reload finds the settings.
func (a *App) readFrom(source func() (config.Config, error)) {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	a.source = source
}

// Reload reads the settings and the template files anew, looks into the plugins directory, and brings routes and
// categories to what they say: a route's provider is exchanged while the route is in use, and no message is lost by it;
// a request is decided by the categories before or by those after, never by some of each. What is wrong with the
// settings is an error, and changes nothing; a route that cannot be had as it is written now goes on as it was and is
// told of. Settings other than routes, channels, plugins and categories need a restart: which have changed is logged and told.
func (a *App) Reload(ctx context.Context) (api.Reloaded, error) {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	c := *a.config()
	fresh := c
	if a.source != nil {
		var err error
		if fresh, err = a.source(); err != nil {
			return api.Reloaded{}, err
		}
		c.Routes, c.Channels, c.Plugins, c.Categories = fresh.Routes, fresh.Channels, fresh.Plugins, fresh.Categories
		if len(c.Routes) == 0 && a.sandbox != nil {
			c.Routes = maps.Clone(a.sandboxRoutes)
		}
		if err := a.secretsOf(c.Routes); err != nil {
			return api.Reloaded{}, err
		}
	}
	out, err := a.apply(ctx, &c)
	a.tellFaults(out.Faults, nil)
	if err == nil {
		fresh.Routes = c.Routes // those to the sandbox are in no file
		out.Restart = append(out.Restart, a.tellRestart(&c, &fresh)...)
		if a.catalog != nil {
			a.readTemplates(a.intake.Routing())
		}
	}
	for _, r := range a.routes.all() {
		r.retry()
	}
	return out, err
}

// tellRestart logs, and returns, which settings changed that only a restart applies: what they are called, not what they
// are.
func (a *App) tellRestart(now, fresh *config.Config) []string {
	names := config.Changed(*now, *fresh)
	if len(names) > 0 {
		a.log.Warn("settings have changed that take a restart; they stay as they were", "settings", names)
	}
	return names
}

// apply brings the routes to a configuration, and makes it the current one. The caller holds reloading.
func (a *App) apply(ctx context.Context, c *config.Config) (api.Reloaded, error) {
	want, faults, err := describe(ctx, c, a.kinds)
	if err != nil {
		return api.Reloaded{}, err
	}
	if a.intake != nil { // before anything changes
		if _, err := routingOf(c, want); err != nil {
			return api.Reloaded{}, &config.Error{Faults: []string{err.Error()}}
		}
	}
	out := api.Reloaded{Added: []string{}, Changed: []string{}, Removed: []string{}, Faults: []api.RouteFault{}, Restart: []string{}}
	have := a.routes.all()
	var gone []*route
	for _, name := range slices.Sorted(maps.Keys(want)) {
		now, is := have[name]
		switch {
		case is && now.print == want[name].print && !now.empty():
			continue
		case is:
			if err = a.change(ctx, c, now, want[name]); err == nil {
				out.Changed = append(out.Changed, name)
			}
		default:
			if err = a.add(ctx, c, want[name]); err == nil {
				out.Added = append(out.Added, name)
			}
		}
		if err != nil {
			faults[name] = err.Error()
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if want[name] == nil && faults[name] == "" {
			out.Removed = append(out.Removed, name)
			gone = append(gone, have[name])
			a.routes.remove(name)
		}
	}
	categories := changedCategories(a.config(), c)
	a.adopt(c)
	a.routes.setFaults(faults)
	if err = a.reroute(); err == nil && len(categories) > 0 { // and not before they are in force
		a.log.Info("categories reloaded", "changed", categories)
	}
	for _, r := range gone {
		err = errors.Join(err, a.discard(ctx, r))
	}
	for _, name := range slices.Sorted(maps.Keys(faults)) {
		out.Faults = append(out.Faults, api.RouteFault{Route: name, Reason: faults[name]})
	}
	if n := len(out.Added) + len(out.Changed) + len(out.Removed); n > 0 {
		a.log.Info("routes reloaded", "added", out.Added, "changed", out.Changed, "removed", out.Removed)
	}
	return out, err
}

// tellFaults logs why routes cannot be had, but for what is known.
func (a *App) tellFaults(faults []api.RouteFault, known map[string]string) {
	for _, f := range faults {
		if known[f.Route] != f.Reason {
			a.log.Error("a route cannot be had as it is configured", "route", f.Route, "reason", f.Reason)
		}
	}
}

// changedCategories are those that are not the same in two configurations, or not there.
func changedCategories(before, after *config.Config) []string {
	all := map[string]config.Category{}
	maps.Copy(all, before.Categories)
	maps.Copy(all, after.Categories)
	return slices.DeleteFunc(slices.Sorted(maps.Keys(all)), func(name string) bool {
		x, was := before.Categories[name]
		y, is := after.Categories[name]
		return was == is && reflect.DeepEqual(x, y)
	})
}

// reroute has intake, relay, wakes, tokens and live connections follow the routes.
func (a *App) reroute() error {
	a.relay.SetRoutes(a.routes.names())
	a.relay.Nudge()
	if a.intake == nil {
		return nil
	}
	r, err := a.routing()
	if err != nil {
		return err
	}
	a.intake.SetRouting(r)
	return a.findGateway()
}

// add opens a new route.
func (a *App) add(ctx context.Context, c *config.Config, r *route) error {
	if r.delivers(c) {
		p, err := r.open(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		r.slot = newSlot(p)
	}
	a.gate.Set(r.Name, r.gate)
	if err := a.startRoute(ctx, r); err != nil {
		return errors.Join(err, r.slot.Close(ctx))
	}
	a.routes.set(r)
	return nil
}

// change exchanges a route's provider: the next one is opened first, and the one before closed when its
// last call has returned. Where the next one cannot be opened, the one before stays. Only where both want one port
// does it make room, and comes back if the next one cannot be opened even so.
func (a *App) change(ctx context.Context, c *config.Config, now, next *route) error {
	next.running = now.running
	if now.slot == nil {
		a.gate.Set(next.Name, next.gate)
		a.routes.set(next)
		return nil
	}
	lasting := context.WithoutCancel(ctx)
	p, err := next.open(lasting)
	if err != nil && (now.empty() || portInUse(err)) {
		a.log.Debug("the next provider of a route cannot be opened beside the one before", "route", next.Name, "error", err)
		p, err = a.makeRoom(lasting, now, next)
	}
	switch {
	case err != nil && now.empty():
		return err
	case err != nil:
		return fmt.Errorf("%w; the route goes on as it was", err)
	}
	old := now.slot.replace(p)
	a.gate.Set(next.Name, next.gate)
	var workersErr error
	if next.concurrency != now.concurrency || next.limits.Timeout != now.limits.Timeout {
		before := now.workers
		if workersErr = a.startRoute(lasting, next); workersErr == nil && before != nil {
			ending, cancel := context.WithTimeout(lasting, drainTimeout)
			workersErr = before.Shutdown(ending)
			cancel()
		}
	}
	a.routes.set(next)
	return errors.Join(workersErr, a.drain(lasting, old))
}

// makeRoom closes a route's provider, and opens the next one in its place: itself again, where that cannot be opened.
func (a *App) makeRoom(ctx context.Context, now, next *route) (providers.Provider, error) {
	if err := a.drain(ctx, now.slot.replace(nil)); err != nil {
		a.log.Warn("a provider could not be closed in order", "route", next.Name, "error", err)
	}
	p, err := next.open(ctx)
	if err == nil {
		return p, nil
	}
	back, backErr := now.open(ctx)
	if backErr != nil {
		return nil, errors.Join(err, fmt.Errorf("go back to what it was: %w", backErr))
	}
	now.slot.replace(back)
	return nil, err
}

// portInUse reports whether a provider could not be opened because somebody listens where it wants to: the one before it,
// maybe. From another process comes a text alone, which is that of the system in whatever language a plugin is written.
func portInUse(err error) bool {
	return errors.Is(err, syscall.EADDRINUSE) || strings.Contains(strings.ToLower(err.Error()), syscall.EADDRINUSE.Error())
}

// drain sees a provider that was exchanged to its end.
func (a *App) drain(ctx context.Context, t *tenant) error {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	return t.leave(ctx)
}

// discard ends a route that is not configured any more. What waits for it stays in the store.
func (a *App) discard(ctx context.Context, r *route) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	_, err := r.stop(ctx)
	if r.slot != nil {
		err = errors.Join(err, r.slot.Close(ctx))
	}
	a.gate.Remove(r.Name)
	return err
}

// channelDocs are the content blocks of the channels that there are, for /openapi.yaml.
func (a *App) channelDocs() []api.ChannelDoc {
	all := a.routes.all()
	by := channels(a.config(), all)
	var out []api.ChannelDoc
	for _, channel := range slices.Sorted(maps.Keys(by)) {
		seen := map[string]bool{}
		for _, name := range by[channel] {
			k := all[name].kind
			if !seen[k.Name] {
				seen[k.Name] = true
				out = append(out, api.ChannelDoc{Channel: channel, Kind: k.Name, Doc: k.Doc, Content: k.Content, Address: k.Address})
			}
		}
	}
	return out
}
