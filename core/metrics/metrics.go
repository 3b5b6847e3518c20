// Package metrics counts what happens, for /metrics in the Prometheus text format. No label holds an
// address, an id or an app's own words.
package metrics

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/providers"
)

// Metrics are the counters of one process. It implements dispatch.Observer.
type Metrics struct {
	registry  *prometheus.Registry
	attempts  *prometheus.CounterVec
	states    *prometheus.CounterVec
	rounds    *prometheus.HistogramVec
	stale     *prometheus.CounterVec
	repaired  *prometheus.CounterVec
	received  *prometheus.CounterVec
	requests  *prometheus.HistogramVec
	poolDesc  map[string]*prometheus.Desc
	depthDesc *prometheus.Desc
	ageDesc   *prometheus.Desc
	queueDesc *prometheus.Desc
	state     State
}

// State is asked at each scrape for what is not counted but measured. Each may be nil.
type State struct {
	Pools func() map[string]providers.PoolStats // by route
	Depth func() []core.Backlog                 // of the whole database; nothing where it does not answer
	Queue func() bool                           // whether Redis answered this process when it was last asked
	Now   func() time.Time                      // the clock of Depth's times; nil: time.Now
}

// New returns the counters, with the Go runtime's and the process's own beside them.
func New(state State) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "carillon", Name: name, Help: help}, labels)
	}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		attempts: counter("attempts_total", "Attempts by what the service answered.", "route", "outcome"),
		states:   counter("deliveries_total", "Deliveries that a round left in a state; pending: held for another.", "route", "lane", "state"),
		rounds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "carillon", Name: "round_seconds", Help: "From claim to settlement.",
			Buckets: []float64{.002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}}, []string{"route", "lane"}),
		stale:    counter("rounds_stale_total", "Rounds whose batch was in other hands when they ended.", "route"),
		repaired: counter("relay_total", "Batches that the relay took up: due ones, those whose wakes were lost (unclaimed), lapsed leases, strays.", "what"),
		received: counter("receipts_total", "Receipts by event; found says whether it is of a delivery of ours.", "route", "event", "found"),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "carillon", Name: "http_request_seconds", Help: "Requests of the API.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, 1, 5}}, []string{"method", "code"}),
		poolDesc: map[string]*prometheus.Desc{},
		depthDesc: prometheus.NewDesc("carillon_batches", "Batches that are not done, by state, in the whole database, whichever process is asked: pending ones wait there, "+
			"most for a later time; queued ones are due, or will be within five minutes.", []string{"route", "lane", "state"}, nil),
		ageDesc: prometheus.NewDesc("carillon_backlog_age_seconds", "For how long the oldest batch has been due, in the whole database, whichever process is asked; 0: none is due.",
			[]string{"route", "lane"}, nil),
		queueDesc: prometheus.NewDesc("carillon_queue_up", "1: Redis answered this process when it was last asked, which is every second; 0: it did not.", nil, nil),
		state:     state,
	}
	for name, help := range map[string]string{
		"max": "Most connections the pool opens.", "open": "Connections open.", "idle": "Connections open and not in use.",
		"in_use": "Connections in use.", "waiting": "Callers that wait for a connection.", "opened_total": "Connections opened.",
		"closed_total": "Connections closed.", "failed_total": "Attempts to open a connection that failed.", "reused_total": "Uses of a connection that was open.",
	} {
		m.poolDesc[name] = prometheus.NewDesc("carillon_pool_"+name, help, []string{"route"}, nil)
	}
	if m.state.Now == nil {
		m.state.Now = time.Now
	}
	m.registry.MustRegister(m.attempts, m.states, m.rounds, m.stale, m.repaired, m.received, m.requests, measured{m},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler serves the counters.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry})
}

// Settled implements dispatch.Observer.
func (m *Metrics) Settled(route string, lane core.Lane, s *core.Settlement, took time.Duration) {
	var attempts [providers.Denied + 1]int
	states := map[core.State]int{}
	for i := range s.Results {
		r := &s.Results[i]
		if !r.None && int(r.Outcome) < len(attempts) {
			attempts[r.Outcome]++
		}
		states[r.State]++
	}
	for o, n := range attempts {
		if n > 0 {
			m.attempts.WithLabelValues(route, providers.Outcome(o).String()).Add(float64(n))
		}
	}
	for state, n := range states {
		m.states.WithLabelValues(route, string(lane), state.String()).Add(float64(n))
	}
	m.rounds.WithLabelValues(route, string(lane)).Observe(took.Seconds())
}

// Stale implements dispatch.Observer.
func (m *Metrics) Stale(route string) { m.stale.WithLabelValues(route).Inc() }

// Repaired implements dispatch.Observer.
func (m *Metrics) Repaired(what string, n int) { m.repaired.WithLabelValues(what).Add(float64(n)) }

// Received implements dispatch.Observer.
func (m *Metrics) Received(route string, e providers.Event, found bool) {
	label := "false"
	if found {
		label = "true"
	}
	m.received.WithLabelValues(route, string(e), label).Inc()
}

// measured collects what is asked for at each scrape.
type measured struct{ m *Metrics }

// Describe implements prometheus.Collector.
func (c measured) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.m.poolDesc {
		ch <- d
	}
	ch <- c.m.depthDesc
	ch <- c.m.ageDesc
	ch <- c.m.queueDesc
}

// Collect implements prometheus.Collector.
func (c measured) Collect(ch chan<- prometheus.Metric) {
	if c.m.state.Pools != nil {
		for route, p := range c.m.state.Pools() {
			for name, v := range map[string]float64{"max": float64(p.Max), "open": float64(p.Open), "idle": float64(p.Idle), "in_use": float64(p.InUse), "waiting": float64(p.Waiting)} {
				ch <- prometheus.MustNewConstMetric(c.m.poolDesc[name], prometheus.GaugeValue, v, route)
			}
			for name, v := range map[string]uint64{"opened_total": p.Opened, "closed_total": p.Closed, "failed_total": p.Failed, "reused_total": p.Reused} {
				ch <- prometheus.MustNewConstMetric(c.m.poolDesc[name], prometheus.CounterValue, float64(v), route)
			}
		}
	}
	if c.m.state.Queue != nil {
		up := 0.0
		if c.m.state.Queue() {
			up = 1
		}
		ch <- prometheus.MustNewConstMetric(c.m.queueDesc, prometheus.GaugeValue, up)
	}
	if c.m.state.Depth == nil {
		return
	}
	depth, now := c.m.state.Depth(), c.m.state.Now()
	for _, b := range depth {
		age := 0.0
		if !b.Oldest.IsZero() {
			age = max(0, now.Sub(b.Oldest).Seconds())
		}
		ch <- prometheus.MustNewConstMetric(c.m.ageDesc, prometheus.GaugeValue, age, b.Route, string(b.Lane))
		for state, n := range map[string]int{"pending": b.Pending, "queued": b.Queued, "sending": b.Sending} {
			ch <- prometheus.MustNewConstMetric(c.m.depthDesc, prometheus.GaugeValue, float64(n), b.Route, string(b.Lane), state)
		}
	}
}

// Requests counts the requests that next serves, by method and status code.
func (m *Metrics) Requests(next http.Handler) http.Handler {
	return promhttp.InstrumentHandlerDuration(m.requests, next)
}
