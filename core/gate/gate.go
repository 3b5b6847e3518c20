// Package gate answers one question: how many may this route take now? It holds each route's rate
// limit and its circuit breaker. Limits are those of this process.
package gate

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/providers"
)

// Config is a route's limits.
type Config struct {
	Rate    float64 // messages a second; 0: unlimited
	Burst   int     // messages at once; 0: what a tenth of a second lets through, at least one
	Breaker Breaker
}

// Breaker says when a route's circuit opens. Zero fields take DefaultBreaker's.
type Breaker struct {
	Ratio    float64       // share of failures from which it opens, 0 to 1
	Least    int           // fewer results in the window than that never open it
	Window   time.Duration // over which results are counted
	Min, Max time.Duration // how long it stays open: the first time, and at most
}

// DefaultBreaker opens at half of at least 20 results within 30 s, for 5 s to 5 min.
var DefaultBreaker = Breaker{Ratio: 0.5, Least: 20, Window: 30 * time.Second, Min: 5 * time.Second, Max: 5 * time.Minute}

// The purge guard: more Gone than that share, among at least that many sends, are not believed. A
// route of the wrong environment answers Gone to everything, and an hour of that would drop every
// endpoint there is.
const (
	goneRatio  = 0.2
	goneLeast  = 20
	goneWindow = 5 * time.Minute
)

// probes is how many messages a half-open circuit lets through at a time, and how many answers it is
// judged by.
const probes = 5

// Circuit is the state of a route's breaker.
type Circuit string

// The states of a circuit: all may pass, none may, or a few to try.
const (
	Closed   Circuit = "closed"
	Open     Circuit = "open"
	HalfOpen Circuit = "half_open"
)

// State is what the gate knows of a route.
type State struct {
	Circuit Circuit
	Until   time.Time // when an open circuit is tried again
	Reason  string    // why it is open, for people
	Rate    float64   // messages a second; 0: unlimited
}

// Gate guards routes. It is safe for concurrent use.
type Gate struct {
	mu        sync.RWMutex
	routes    map[string]*guard
	elsewhere func(route string) bool
}

// New returns a Gate for the routes given; any other route is not limited.
func New(routes map[string]Config) *Gate {
	g := &Gate{routes: make(map[string]*guard, len(routes))}
	for name, c := range routes {
		g.routes[name] = newGuard(c)
	}
	return g
}

// Elsewhere has others told of: may says whether another process can deliver over a route. What an open circuit holds
// here is then due again soon, for that one. It is to be called before the Gate is used, and may must not block.
func (g *Gate) Elsewhere(may func(route string) bool) { g.elsewhere = may }

// Leaves says whether this process had better leave a route's messages to others: its circuit is open, for a
// fault that may be this machine's alone, and another process can deliver.
func (g *Gate) Leaves(route string) bool {
	r, ok := g.guard(route)
	if !ok || g.elsewhere == nil {
		return false
	}
	r.mu.Lock()
	open := r.circuit == Open && time.Now().Before(r.until)
	r.mu.Unlock()
	return open && g.elsewhere(route)
}

// Set guards a route by new limits from now on. Limits that are as they were keep what is known of it.
func (g *Gate) Set(route string, c Config) {
	g.mu.Lock()
	defer g.mu.Unlock()
	fresh := newGuard(c)
	if old := g.routes[route]; old == nil || old.cfg != fresh.cfg {
		g.routes[route] = fresh
	}
}

// Remove guards a route no more.
func (g *Gate) Remove(route string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.routes, route)
}

func (g *Gate) guard(route string) (*guard, bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	r, ok := g.routes[route]
	return r, ok
}

// guard is one route's limiter and breaker.
type guard struct {
	cfg     Config
	limiter *bucket // nil: unlimited

	mu      sync.Mutex
	circuit Circuit
	until   time.Time
	reason  string
	opened  int       // times in a row, for the back-off
	probing int       // messages let through half-open and not answered yet
	probeBy time.Time // when probes without an answer are forgotten
	suspect bool      // a burst of Gone opened it: none is believed until a probe has no more of them
	results window
	gone    window
	slow    time.Time // the service asked us all to wait until then
}

func newGuard(c Config) *guard {
	d := DefaultBreaker
	if c.Breaker.Ratio > 0 {
		d.Ratio = c.Breaker.Ratio
	}
	if c.Breaker.Least > 0 {
		d.Least = c.Breaker.Least
	}
	if c.Breaker.Window > 0 {
		d.Window = c.Breaker.Window
	}
	if c.Breaker.Min > 0 {
		d.Min = c.Breaker.Min
	}
	if c.Breaker.Max > 0 {
		d.Max = c.Breaker.Max
	}
	c.Breaker = d
	g := &guard{cfg: c, circuit: Closed, results: window{span: d.Window}, gone: window{span: goneWindow}}
	if c.Rate > 0 {
		burst := c.Burst
		if burst <= 0 {
			burst = max(1, int(c.Rate/10))
		}
		g.limiter = newBucket(c.Rate, burst)
	}
	return g
}

// Admit returns how many of n messages of a lane may go over a route now. It waits within ctx for the first tokens
// of the route's rate, which the more urgent lanes get first. Where that is fewer than n and there is no code, they
// are to be sent at once, and the rest to be asked for again: tokens that are gathered are a burst. With a code
// what does not go is to be held for the time given.
func (g *Gate) Admit(ctx context.Context, route string, lane core.Lane, n int) (granted int, wait time.Duration, code string) {
	r, ok := g.guard(route)
	if !ok || n <= 0 {
		return max(n, 0), 0, ""
	}
	granted, wait, code = r.passCircuit(n)
	if code == core.CodeCircuitOpen && g.elsewhere != nil && g.elsewhere(route) {
		wait = min(wait, spread(time.Second))
	}
	if granted == 0 || r.limiter == nil {
		return granted, wait, code
	}
	tokens := r.limiter.take(ctx, lane, granted)
	r.unprobe(granted - tokens)
	switch {
	case tokens == 0:
		return 0, r.refill(n), core.CodeRate
	case tokens < granted:
		return tokens, 0, ""
	}
	return granted, wait, code
}

// passCircuit says how many the circuit lets through.
func (r *guard) passCircuit(n int) (granted int, wait time.Duration, code string) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if wait := r.slow.Sub(now); wait > 0 {
		return 0, wait, core.CodeRate
	}
	if r.circuit == Closed {
		return n, 0, ""
	}
	if wait := r.until.Sub(now); r.circuit == Open && wait > 0 {
		return 0, spread(wait), core.CodeCircuitOpen
	}
	if r.circuit == Open {
		r.circuit = HalfOpen
		r.results.clear() // what was under way when it opened is no probe
	}
	if now.After(r.probeBy) {
		r.probing = 0 // a worker was lost, or its messages expired
	}
	free := probes - r.probing
	if free <= 0 {
		return 0, spread(time.Second), core.CodeCircuitOpen
	}
	granted = min(n, free)
	r.probing += granted
	r.probeBy = now.Add(time.Minute)
	return granted, spread(time.Second), core.CodeCircuitOpen
}

// spread keeps those that wait for the same moment from coming all at once.
func spread(d time.Duration) time.Duration { return d + time.Duration(rand.Int64N(int64(d)/5+1)) }

// Return gives back the leave for n messages that were granted and not sent. A half-open circuit would wait
// for their answers. The tokens of a rate are not given back.
func (g *Gate) Return(route string, n int) {
	if r, ok := g.guard(route); ok && n > 0 {
		r.unprobe(n)
	}
}

func (r *guard) unprobe(n int) {
	if n == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.probing = max(0, r.probing-n)
}

// refill is how long n tokens take to come.
func (r *guard) refill(n int) time.Duration {
	return time.Duration(float64(n) / r.cfg.Rate * float64(time.Second))
}

// Report tells what became of the messages that were admitted. It returns false when so many are Gone
// that it is not to be believed.
func (g *Gate) Report(route string, results []providers.Result) (believeGone bool) {
	r, ok := g.guard(route)
	if !ok || len(results) == 0 {
		return true
	}
	now := time.Now()
	var failed, passed, gone int
	var denied *providers.Result
	var slow time.Duration
	throttled := 0
	for i := range results {
		switch results[i].Outcome {
		case providers.Accepted, providers.Rejected, providers.Absent:
			passed++
		case providers.Gone:
			passed++
			gone++
		case providers.Denied:
			denied = &results[i]
		case providers.Throttled:
			throttled++
			slow = max(slow, results[i].After, time.Second)
		default:
			failed++
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.probing = max(0, r.probing-len(results))
	r.results.add(now, failed, passed)
	r.gone.add(now, gone, passed-gone)
	// One address asked too often is its own message's matter; a fifth of them is the route's.
	if throttled*5 >= len(results) && slow > 0 {
		r.slow = now.Add(min(slow, core.DefaultPolicy.MaxAfter))
	}
	b := r.cfg.Breaker
	bad, all := r.results.sum(now)
	dead, sent := r.gone.sum(now)
	switch {
	case denied != nil:
		r.open(now, "refused by the service: "+denied.Code+" "+denied.Reason)
	case gone > 0 && sent >= goneLeast && float64(dead) > goneRatio*float64(sent):
		r.open(now, "a burst of dead addresses: is the route of the right environment? Nothing was dropped")
		r.suspect = true
		return false
	case r.suspect && gone > 0:
		r.open(now, r.reason)
		return false
	case r.circuit == HalfOpen && all < probes:
		// Too little to judge by: one failure in five is no outage, and would keep a service that fails
		// now and then shut for minutes.
	case r.circuit == HalfOpen && float64(bad) >= b.Ratio*float64(all):
		r.open(now, r.reason)
	case r.circuit == HalfOpen:
		r.circuit, r.reason, r.opened, r.probing, r.suspect = Closed, "", 0, 0, false
		r.results.clear()
		r.gone.clear()
	case r.circuit == Closed && all >= b.Least && float64(bad) >= b.Ratio*float64(all):
		r.open(now, "too many attempts failed")
	}
	return true
}

// open opens the circuit, each time in a row for twice as long.
func (r *guard) open(now time.Time, reason string) {
	if r.circuit == Open && now.Before(r.until) {
		return // those that were under way when it opened say the same
	}
	span := min(r.cfg.Breaker.Min<<min(r.opened, 16), r.cfg.Breaker.Max)
	r.circuit, r.until, r.reason, r.probing = Open, now.Add(span), reason, 0
	r.opened++
	r.results.clear()
}

// State is what the gate knows of a route; ok is false if it does not guard it.
func (g *Gate) State(route string) (State, bool) {
	r, ok := g.guard(route)
	if !ok {
		return State{}, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := State{Circuit: r.circuit, Reason: r.reason, Rate: r.cfg.Rate}
	if r.circuit == Open {
		s.Until = r.until
	}
	return s, true
}

// Reset closes a route's circuit: an operator mended what was wrong.
func (g *Gate) Reset(route string) {
	r, ok := g.guard(route)
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.circuit, r.reason, r.opened, r.probing, r.slow, r.suspect = Closed, "", 0, 0, time.Time{}, false
	r.results.clear()
	r.gone.clear()
}

// slots is into how many parts a window is cut.
const slots = 10

// window counts two kinds of things over a span of time.
type window struct {
	span  time.Duration
	start [slots]int64 // which slot of time each one counts
	yes   [slots]int
	no    [slots]int
}

func (w *window) add(now time.Time, yes, no int) {
	n := now.UnixNano() / int64(w.span/slots)
	i := int(n % slots)
	if w.start[i] != n {
		w.start[i], w.yes[i], w.no[i] = n, 0, 0
	}
	w.yes[i] += yes
	w.no[i] += no
}

// sum returns how many were yes, and all.
func (w *window) sum(now time.Time) (yes, all int) {
	n := now.UnixNano() / int64(w.span/slots)
	for i := range w.start {
		if n-w.start[i] < slots {
			yes += w.yes[i]
			all += w.yes[i] + w.no[i]
		}
	}
	return yes, all
}

func (w *window) clear() { *w = window{span: w.span} }
