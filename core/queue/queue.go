package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core"
)

// Embedded is the URL of the Redis inside this process.
const Embedded = "embedded"

// Windows are the wakes that a queue may hold when Options.Window is 0: that many due at once, and as
// many due later.
const (
	WindowEmbedded = 1_000
	WindowRedis    = 10_000
)

// Options are what a Queue is opened with.
type Options struct {
	// URL is Embedded, redis://[user:password@]host[:port][/db], rediss:// for TLS,
	// redis-sentinel://host,host?master=name[&sentinel_password=...] or redis-cluster://host,host;
	// tls=true makes the last two speak TLS, and ca_file names the certificates (PEM) that the server's has
	// to come from, in place of the system's; cert_file and key_file are what we show a server that asks who we are.
	URL string
	// Window is how many wakes each queue may hold; 0 is WindowEmbedded or WindowRedis.
	Window int
	// Logger is slog.Default() if nil.
	Logger *slog.Logger
	// Routes are the configured routes: each has one queue for each lane.
	Routes []string
	// Now is the clock that due times are by, the store's: this process's may be another. It must not block. Nil: time.Now.
	Now func() time.Time
}

// Queue carries wakes. It is safe for concurrent use.
type Queue struct {
	url      string // without password
	embedded *embedded
	opt      asynq.RedisConnOpt
	client   redis.UniversalClient
	enqueue  *asynq.Client
	pipe     io.Closer // the AutoPipeliner, nil for a cluster and the embedded Redis
	log      *slog.Logger
	words    said             // by asynq's servers
	now      func() time.Time // of due times
	tempo    tempo
	window   window
	bells    bells
	epoch    epoch
	lost     lost
	stop     context.CancelFunc

	mu     sync.Mutex
	closed bool
	work   sync.WaitGroup // whatever runs in the background; grows under mu, until closed
}

// Open connects to Redis and checks that it will do: 6.2 or newer, and maxmemory-policy noeviction,
// for one that evicts keys breaks asynq. Its errors name the host, never the password. ctx bounds the
// opening only, which gives up after five seconds by itself.
func Open(ctx context.Context, o Options) (*Queue, error) {
	quiet()
	q := &Queue{url: Embedded, log: o.Logger, now: o.Now, tempo: usual}
	if q.log == nil {
		q.log = slog.Default()
	}
	if q.now == nil {
		q.now = time.Now
	}
	if o.Window == 0 {
		o.Window = WindowRedis
		if o.URL == Embedded {
			o.Window = WindowEmbedded
		}
	}
	if err := q.connect(o.URL); err != nil {
		return nil, err
	}
	if err := q.check(ctx); err != nil {
		return nil, errors.Join(q.remedy(err), q.disconnect())
	}
	q.window.init(o.Window, names(o.Routes))
	q.bells.init(q.embedded == nil)
	if _, err := q.Epoch(ctx); err != nil {
		return nil, errors.Join(q.remedy(err), q.disconnect())
	}
	for _, on := range q.window.names() { // what an earlier process left
		q.window.begin(on)
		q.look(on)
	}
	background, stop := context.WithCancel(context.Background())
	q.stop = stop
	q.spawn(func() { q.watch(background) })
	if q.embedded == nil {
		q.spawn(func() { q.publish(background) })
		q.spawn(func() { q.subscribe(background) })
	}
	return q, nil
}

// spawn runs fn beside its caller, and reports whether it does: not after Close, which waits for it.
func (q *Queue) spawn(fn func()) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.work.Go(fn)
	return true
}

// ConnOpt is how asynqmon reaches the same Redis. The clients it makes are their user's to close.
func (q *Queue) ConnOpt() asynq.RedisConnOpt { return q.opt }

// Close ends the connections and waits for what runs in the background. Servers are to be shut down
// before; wakes after it fail. A second Close does nothing.
func (q *Queue) Close() error {
	q.mu.Lock()
	again := q.closed
	q.closed = true
	q.mu.Unlock()
	if again {
		return nil
	}
	q.stop()
	err := q.disconnect()
	q.work.Wait()
	if err != nil {
		return fmt.Errorf("close the queue at %s: %w", q.url, err)
	}
	return nil
}

func (q *Queue) disconnect() error {
	var errs []error
	if q.pipe != nil {
		errs = append(errs, q.pipe.Close())
	}
	errs = append(errs, q.client.Close())
	if q.embedded != nil {
		q.embedded.close()
	}
	return errors.Join(errs...)
}

// here is a due time by this process's clock, which asynq goes by. It is never early.
func (q *Queue) here(due time.Time) time.Time {
	ahead := due.Sub(q.now())
	return time.Now().Add(ahead)
}

// name is the asynq queue of a route and lane.
func name(route string, lane core.Lane) string { return route + "." + string(lane) }

func names(routes []string) []string {
	out := make([]string, 0, len(routes)*len(core.Lanes))
	for _, r := range routes {
		for _, l := range core.Lanes {
			out = append(out, name(r, l))
		}
	}
	return out
}
