package websocket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/centrifugal/centrifuge"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/carillon-notify/carillon/providers"
)

// historyMeta is how much longer than its messages a channel's position is remembered; a client that
// comes back within it learns that it missed something even when the messages are gone.
const historyMeta = 7 * 24 * time.Hour

// idempotency is how long a message id is remembered per channel, so that another attempt after one
// whose outcome is unknown shows nothing twice.
const idempotency = 15 * time.Minute

// The delays between attempts to reach a Redis that was not there at Open.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// farewell is how long a client may take to answer that its connection is closed.
const farewell = time.Second

// Gateway is a centrifuge node with the clients connected to it. It implements providers.Provider and
// providers.Receiver, and prometheus.Gatherer for the library's own figures. It is safe for concurrent use.
type Gateway struct {
	settings Settings
	tokens   *Tokens // nil when it does not serve
	origins  map[string]bool
	redis    *centrifuge.RedisShardConfig // nil: memory
	publish  [2]centrifuge.PublishOption
	log      *slog.Logger

	live  atomic.Pointer[live] // nil until started and after Close
	calls sync.RWMutex         // held for reading by each Deliver, and taken for good by Close
	tried chan struct{}        // closed once the first start was tried
	stop  context.CancelFunc
	done  chan struct{} // closed once nothing starts any more

	closing sync.Once
	quiet   chan struct{} // closed once no Deliver is under way any more
	leaving atomic.Bool   // the clients are being told

	receipts receipts
	ackSlots chan struct{}

	trouble atomic.Pointer[string] // why the broker does not answer; nil when it does

	open                                    atomic.Int64
	opened, closed, refused, reused, failed atomic.Uint64
}

// live is a node that runs.
type live struct {
	node      *centrifuge.Node
	shard     *centrifuge.RedisShard // nil: memory
	endpoints endpoints
	metrics   *prometheus.Registry
}

var (
	_ providers.Provider  = (*Gateway)(nil)
	_ providers.Receiver  = (*Gateway)(nil)
	_ prometheus.Gatherer = (*Gateway)(nil)
)

// New opens a gateway. With Redis it does not wait for it: until Redis is reached, clients are answered
// 503 and messages Deferred, and Health says so.
func New(s Settings) (*Gateway, error) {
	if err := s.validate(); err != nil {
		return nil, fmt.Errorf("websocket settings: %w", err)
	}
	g := &Gateway{
		settings: s,
		origins:  make(map[string]bool, len(s.Origins)),
		log:      slog.Default().With("provider", "websocket"),
		tried:    make(chan struct{}),
		done:     make(chan struct{}),
		quiet:    make(chan struct{}),
		ackSlots: make(chan struct{}, maxAcks),
		publish: [2]centrifuge.PublishOption{
			centrifuge.WithHistory(s.HistorySize, time.Duration(s.HistoryTTL), time.Duration(s.HistoryTTL)+historyMeta),
			centrifuge.WithIdempotentResultTTL(idempotency),
		},
	}
	for _, o := range s.Origins {
		origin, err := parseOrigin(o)
		if err != nil {
			return nil, fmt.Errorf("websocket settings: %w", err)
		}
		g.origins[origin] = true
	}
	if s.Serve {
		tokens, err := NewTokens(s.Secret, s.PreviousSecrets...)
		if err != nil {
			return nil, fmt.Errorf("websocket settings: %w", err)
		}
		g.tokens = tokens
	}
	ctx, stop := context.WithCancel(context.Background())
	g.stop = stop
	if s.Redis == "" {
		defer close(g.done)
		defer close(g.tried)
		if err := g.start(); err != nil {
			stop()
			return nil, fmt.Errorf("start websocket gateway: %w", err)
		}
		return g, nil
	}
	config, err := parseRedis(s.Redis)
	if err != nil {
		stop()
		return nil, fmt.Errorf("websocket settings: %w", err)
	}
	g.redis = &config
	go g.startUntil(ctx)
	return g, nil
}

// startUntil tries to start until it succeeds or ctx ends.
func (g *Gateway) startUntil(ctx context.Context) {
	defer close(g.done)
	for delay := firstRetry; ; delay = min(2*delay, lastRetry) {
		err := g.start()
		if err != nil {
			g.failed.Add(1)
			g.inTrouble(err)
			if delay == firstRetry {
				g.log.Warn("websocket gateway cannot reach its Redis; trying on", "error", err)
			}
		}
		if delay == firstRetry {
			close(g.tried)
		}
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
	}
}

// start makes a node and runs it. A node that failed to start cannot be run again, so each try makes
// its own, with its own registry: the process's default one would take a second gateway for a clash.
func (g *Gateway) start() error {
	s := &g.settings
	metrics := prometheus.NewRegistry()
	node, err := centrifuge.New(centrifuge.Config{
		LogLevel:   logLevel(g.log),
		LogHandler: logHandler(g.log),

		ClientPresenceUpdateInterval:    presenceInterval,
		ClientChannelPositionCheckDelay: positionCheck,

		ClientExpiredCloseDelay:     time.Duration(s.ExpiredGrace),
		ClientStaleCloseDelay:       time.Duration(s.StaleTimeout),
		ClientQueueMaxSize:          s.ClientQueueMaxSize,
		ClientChannelLimit:          2, // a client's own, and one to be refused with the right word
		UserConnectionLimit:         s.MaxConnectionsPerRecipient,
		HistoryMaxPublicationLimit:  s.HistorySize,
		RecoveryMaxPublicationLimit: s.HistorySize,
		HistoryMetaTTL:              time.Duration(s.HistoryTTL) + historyMeta,
		// UseSingleFlight stays off: its groups are the package's, keyed by channel alone, so two gateways
		// in one process would get each other's answers (centrifuge v0.40.1, node.go).
		Metrics: centrifuge.MetricsConfig{MetricsNamespace: "carillon_websocket", RegistererGatherer: metrics},
	})
	if err != nil {
		return err
	}
	l := &live{node: node, metrics: metrics}
	if g.redis != nil {
		if l.shard, err = joinRedis(node, *g.redis, s.RedisPrefix); err != nil {
			return err
		}
	}
	node.OnConnecting(g.connecting)
	node.OnConnect(g.connected)
	if err := node.Run(); err != nil {
		_ = l.shutdown(context.Background()) // err is why
		return err
	}
	if s.Serve {
		l.endpoints = newEndpoints(node, s)
	}
	g.trouble.Store(nil)
	g.live.Store(l)
	return nil
}

// shutdown asks the clients to come back elsewhere and lets go of everything.
func (l *live) shutdown(ctx context.Context) error {
	err := l.node.Shutdown(ctx)
	if l.shard != nil {
		l.shard.Close()
	}
	return err
}

// running waits for the first try to start, and returns nil when there is no running node.
func (g *Gateway) running(ctx context.Context) *live {
	select {
	case <-g.tried:
	case <-ctx.Done():
	}
	return g.live.Load()
}

// Gather implements prometheus.Gatherer with centrifuge's own metrics, named carillon_websocket_….
func (g *Gateway) Gather() ([]*dto.MetricFamily, error) {
	l := g.live.Load()
	if l == nil {
		return nil, nil
	}
	return l.metrics.Gather()
}

// Tokens mints and verifies the tokens of this gateway's clients; nil when it does not serve.
func (g *Gateway) Tokens() *Tokens { return g.tokens }

// Health implements providers.Provider. Of the pool, Open are the connections, InUse those that have
// shown a token, Idle those that have not yet, and Reused the messages that found a live connection.
// Failed counts connections refused and, with Redis, failed starts.
func (g *Gateway) Health(context.Context) providers.Health {
	h := providers.Health{Status: providers.HealthOK, Pool: providers.PoolStats{
		Open: int(g.open.Load()), Opened: g.opened.Load(), Closed: g.closed.Load(),
		Failed: g.refused.Load() + g.failed.Load(), Reused: g.reused.Load(),
	}}
	if g.settings.Serve {
		h.Pool.Max = g.settings.MaxConnections
	}
	l := g.live.Load()
	if l != nil {
		h.Pool.InUse = min(l.node.Hub().NumClients(), h.Pool.Open)
		h.Pool.Idle = h.Pool.Open - h.Pool.InUse
	}
	switch reason := g.trouble.Load(); {
	case l == nil && reason == nil:
		h.Status, h.Reason = providers.HealthDown, "not started yet, or closed"
	case l == nil:
		h.Status, h.Reason = providers.HealthDown, *reason
	case reason != nil:
		h.Status, h.Reason = providers.HealthDegraded, *reason
	}
	return h
}

// inTrouble notes what the broker answered last; nil is all is well.
func (g *Gateway) inTrouble(err error) {
	if err == nil {
		if g.trouble.Load() != nil {
			g.trouble.Store(nil)
		}
		return
	}
	reason := "Redis: " + err.Error()
	g.trouble.Store(&reason)
}

// Close implements providers.Provider. Clients are told to reconnect (disconnect code 3001), here or to
// another gateway, and recover there what they miss meanwhile when the gateways share a Redis. What is
// being delivered is waited for, for whoever it is for would be gone.
func (g *Gateway) Close(ctx context.Context) error {
	g.stop()
	g.closing.Do(func() {
		go func() {
			g.calls.Lock()
			close(g.quiet)
		}()
	})
	ended := make(chan error, 1)
	go func() { // a Redis that does not answer is waited for by the library, and not by us
		select {
		case <-g.quiet:
		case <-ctx.Done():
		}
		<-g.done
		if l := g.live.Swap(nil); l != nil {
			g.leaving.Store(true)
			ended <- l.shutdown(ctx)
			return
		}
		ended <- nil
	}()
	select {
	case err := <-ended:
		if err != nil {
			return fmt.Errorf("close websocket gateway: %w", err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close websocket gateway: %w", ctx.Err())
	}
}

var errAlreadyReceiving = errors.New("websocket gateway: Receive is already running")

// receipts hands what clients report to whoever runs Receive.
type receipts struct {
	mu     sync.RWMutex // held for reading while a receipt is reported
	report func(providers.Receipt) error
}

// Receive implements providers.Receiver: clients' RPCs are reported until ctx ends. One call at a time.
func (g *Gateway) Receive(ctx context.Context, report func(providers.Receipt) error) error {
	r := &g.receipts
	r.mu.Lock()
	if r.report != nil {
		r.mu.Unlock()
		return errAlreadyReceiving
	}
	r.report = report
	r.mu.Unlock()
	<-ctx.Done()
	r.mu.Lock() // waits for what is being reported
	r.report = nil
	r.mu.Unlock()
	return ctx.Err()
}
