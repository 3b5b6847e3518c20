package app

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/config"
	"github.com/carillon-notify/carillon/core/dispatch"
	"github.com/carillon-notify/carillon/core/gate"
	"github.com/carillon-notify/carillon/core/queue"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/builtin"
)

// route is a configured provider instance, open or (where another process delivers) only described. What
// is above running does not change; a reload makes another route of the same name.
type route struct {
	core.Route
	kind        providers.Kind
	settings    []byte
	limits      dispatch.Limits
	gate        gate.Config
	concurrency int
	rate        string
	isolation   string
	print       [32]byte // tells one configuration of it from another

	running // carried over from one to the next
}

// running is what a route has going in this process.
type running struct {
	slot    *slot              // nil: this process does not deliver
	workers *queue.Server      // nil: likewise
	deaf    context.CancelFunc // stops receiving; nil: nothing is received
}

// routes are the routes of this process. They implement dispatch.Routes.
type routes struct {
	mu     sync.RWMutex
	byName map[string]*route
	faults map[string]string // why a route cannot be had, by its name or its plugin's
}

// Provider implements dispatch.Routes.
func (rs *routes) Provider(name string) (providers.Provider, dispatch.Limits, bool) {
	r := rs.get(name)
	if r == nil || r.slot == nil {
		return nil, dispatch.Limits{}, false
	}
	limits := r.limits
	limits.Silent = r.slot.silent()
	return r.slot, limits, true
}

// get is the route of a name, nil for none.
// Policy implements dispatch.Routes.
func (rs *routes) Policy(name string) core.Policy {
	if r := rs.get(name); r != nil {
		return r.limits.Policy
	}
	return core.DefaultPolicy
}

func (rs *routes) get(name string) *route {
	rs.mu.RLock()
	defer rs.mu.RUnlock()
	return rs.byName[name]
}

func (rs *routes) set(r *route) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.byName[r.Name] = r
}

func (rs *routes) remove(name string) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	delete(rs.byName, name)
}

// all are the routes as they are now, by name.
func (rs *routes) all() map[string]*route {
	rs.mu.RLock()
	defer rs.mu.RUnlock()
	return maps.Clone(rs.byName)
}

func (rs *routes) names() []string { return slices.Sorted(maps.Keys(rs.all())) }

func (rs *routes) fault() map[string]string {
	rs.mu.RLock()
	defer rs.mu.RUnlock()
	return maps.Clone(rs.faults)
}

func (rs *routes) setFaults(faults map[string]string) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.faults = faults
}

func (rs *routes) maxBatch(name string) int {
	if r := rs.get(name); r != nil {
		return r.kind.MaxBatch
	}
	return 1
}

// emailTimeout: a batch of mails shares few sessions, and a server may take its time at the final dot.
const emailTimeout = 30 * time.Second

// describe makes the routes that are configured, and those of plugins that need no configuration, without
// opening anything. faults are plugins' troubles, which keep a route from being had; the error is an
// *config.Error of mistakes in the configuration.
func describe(ctx context.Context, c *config.Config, k *kinds) (out map[string]*route, faults map[string]string, err error) {
	out, faults = map[string]*route{}, map[string]string{}
	plugins, err := k.discover(ctx, c.Plugins.Dir)
	if err != nil {
		return nil, nil, fmt.Errorf("find plugins: %w; or set plugins.dir to another directory", err)
	}
	for _, f := range plugins {
		if f.err != nil {
			faults[f.Name] = f.err.Error()
		}
	}
	all := unasked(c, plugins, k.log)
	maps.Copy(all, c.Routes)
	var wrong []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		c, err := k.of(ctx, name, all[name], plugins)
		switch {
		case err != nil: // also where it is why there is no such kind
			faults[name] = err.Error()
			continue
		case c.fault != "":
			wrong = append(wrong, c.fault)
			continue
		}
		r, bad := newRoute(name, c.kind, all[name])
		r.isolation = c.isolation
		r.stamp(c.digest)
		wrong = append(wrong, bad...)
		out[name] = r
	}
	if len(faults) == 0 { // else it may be the route of what could not be had
		wrong = append(wrong, strayRoutes(c, all)...)
	}
	if len(wrong) > 0 {
		return nil, nil, &config.Error{Faults: wrong}
	}
	return out, faults, nil
}

// sandboxKinds are the routes of a sandbox while none is configured.
var sandboxKinds = []string{"apns", "fcm", "email", websocketKind}

// strayRoutes are the faults of channels that name a route that does not exist.
func strayRoutes(c *config.Config, all map[string]config.Route) (out []string) {
	for _, channel := range slices.Sorted(maps.Keys(c.Channels)) {
		for _, name := range c.Channels[channel] {
			_, there := all[name]
			if !there && !(len(c.Routes) == 0 && c.SandboxRuns() && slices.Contains(sandboxKinds, name)) {
				out = append(out, fmt.Sprintf("channels.%s: there is no route %q", channel, name))
			}
		}
	}
	return out
}

// strayDefaults are what categories say of channels that nothing serves: it has no effect.
func strayDefaults(c *config.Config, rs map[string]*route) (out []string) {
	known := map[string]bool{}
	for _, k := range builtin.Kinds() {
		known[k.Channel] = true
	}
	for _, r := range rs {
		known[r.Channel] = true
	}
	for channel := range c.Channels {
		known[channel] = true
	}
	for _, name := range slices.Sorted(maps.Keys(c.Categories)) {
		for _, channel := range slices.Sorted(maps.Keys(c.Categories[name].Defaults)) {
			if !known[channel] {
				out = append(out, fmt.Sprintf("categories.%s.defaults.%s: there is no such channel; there are %s", name, channel, strings.Join(slices.Sorted(maps.Keys(known)), ", ")))
			}
		}
	}
	return out
}

// newRoute makes a route that is not open, and says what is wrong with its settings.
func newRoute(name string, kind providers.Kind, rc config.Route) (*route, []string) {
	settings, bad := settingsJSON(name, kind, rc)
	r := &route{Route: core.Route{Name: name, Kind: kind.Name, Channel: kind.Channel, Apps: rc.Apps, Policy: policy(rc.Retry)},
		kind: kind, settings: settings, concurrency: rc.Concurrency, rate: rc.Rate}
	rate, _ := config.ParseRate(rc.Rate) // config.Check read it
	b := rc.Breaker
	r.gate = gate.Config{Rate: rate, Breaker: gate.Breaker{Ratio: b.Ratio, Least: b.Least, Window: b.Window, Min: b.Min, Max: b.Max}}
	r.limits = dispatch.Limits{Timeout: rc.Timeout, Policy: r.Policy}
	if r.limits.Timeout == 0 {
		r.limits.Timeout = config.DefaultTimeout
		if kind.Name == "email" {
			r.limits.Timeout = emailTimeout
		}
	}
	if r.concurrency == 0 {
		r.concurrency = config.DefaultConcurrency
	}
	return r, bad
}

// stamp sets what tells this configuration of a route from another: all that is configured, and the file
// of a plugin.
func (r *route) stamp(digest string) {
	r.print = sha256.Sum256(fmt.Appendf(nil, "%v\x00%s\x00%v\x00%+v\x00%d\x00%s\x00%s\x00%s",
		r.Route, r.settings, r.limits, r.gate, r.concurrency, r.rate, r.isolation, digest))
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

// channels are the configured ones, or what follows from the routes' kinds. A channel that only plugins
// serve follows from their routes in any case: it is there as soon as they are.
func channels(c *config.Config, rs map[string]*route) map[string][]string {
	out := map[string][]string{}
	for name, list := range c.Channels {
		for _, r := range list {
			if rs[r] != nil { // a route that cannot be had serves nothing
				out[name] = append(out[name], r)
			}
		}
	}
	builtIn := map[string]bool{}
	names := slices.Sorted(maps.Keys(rs))
	for _, k := range builtin.Kinds() {
		builtIn[k.Channel] = true
		for _, name := range names {
			if len(c.Channels) == 0 && rs[name].Kind == k.Name {
				out[k.Channel] = append(out[k.Channel], name)
			}
		}
	}
	for _, name := range names {
		_, ours := builtInKind(rs[name].Kind)
		channel := rs[name].Channel
		if _, listed := c.Channels[channel]; !ours && !listed && (len(c.Channels) == 0 || !builtIn[channel]) {
			out[channel] = append(out[channel], name)
		}
	}
	return out
}

// kindsOf are the kinds of routes by name; of several plugins with one kind, the first route's.
func kindsOf(rs map[string]*route) map[string]providers.Kind {
	out := map[string]providers.Kind{}
	for _, name := range slices.Sorted(maps.Keys(rs)) {
		if _, done := out[rs[name].Kind]; !done {
			out[rs[name].Kind] = rs[name].kind
		}
	}
	return out
}

func coreRoutes(rs map[string]*route) []core.Route {
	out := make([]core.Route, 0, len(rs))
	for _, name := range slices.Sorted(maps.Keys(rs)) {
		out = append(out, rs[name].Route)
	}
	return out
}

// delivers reports whether this process opens a route's provider: it does where it delivers, and where
// the provider has live clients.
func (r *route) delivers(c *config.Config) bool { return c.Workers || r.Kind == websocketKind }

// open opens the route's provider.
func (r *route) open(ctx context.Context) (providers.Provider, error) {
	p, err := r.kind.Open(ctx, r.settings)
	if err != nil {
		return nil, fmt.Errorf("open route %s: %w", r.Name, err)
	}
	return p, nil
}

// close closes the providers, all of them at once.
func (rs *routes) close(ctx context.Context) error {
	all := rs.all()
	errs := make(chan error, len(all))
	n := 0
	for name, r := range all {
		if r.slot == nil {
			continue
		}
		n++
		go func() {
			if err := r.slot.Close(ctx); err != nil {
				errs <- fmt.Errorf("close route %s: %w", name, err)
				return
			}
			errs <- nil
		}()
	}
	var out []error
	for range n {
		out = append(out, <-errs)
	}
	return errors.Join(out...)
}

// pools are the figures of the open providers' connections.
func (rs *routes) pools() map[string]providers.PoolStats {
	out := map[string]providers.PoolStats{}
	for name, r := range rs.all() {
		if r.slot != nil {
			out[name] = r.slot.Health(context.Background()).Pool
		}
	}
	return out
}

// gates are the limits that the gate guards.
func (rs *routes) gates() map[string]gate.Config {
	out := map[string]gate.Config{}
	for name, r := range rs.all() {
		out[name] = r.gate
	}
	return out
}
