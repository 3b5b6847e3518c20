package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core"
)

// Embedded is the URL of the Redis inside this process.
const Embedded = "embedded"

// Windows are the wakes that a queue may hold when Options.Window is 0.
const (
	WindowEmbedded = 1_000
	WindowRedis    = 10_000
)

// Options are what a Queue is opened with.
type Options struct {
	// URL is Embedded, redis://, rediss://, redis-sentinel:// (as asynq.ParseRedisURI reads them) or
	// redis-cluster://user:password@host:port,host:port.
	URL string
	// Window is how many wakes each queue may hold; 0 is WindowEmbedded or WindowRedis.
	Window int
	// Logger is slog.Default() if nil.
	Logger *slog.Logger
	// Routes are the configured routes: each has one queue for each lane.
	Routes []string
}

// Queue carries wakes. It is safe for concurrent use.
type Queue struct {
	url      string // without password
	embedded *embedded
	opt      asynq.RedisConnOpt
	client   redis.UniversalClient
	enqueue  *asynq.Client
	pipe     io.Closer // the AutoPipeliner, nil for a cluster
	log      *slog.Logger
	window   window
	bells    bells
	epoch    epoch
	stop     context.CancelFunc
	work     sync.WaitGroup
}

// Open connects to Redis and checks that it will do: 6.2 or newer, and maxmemory-policy noeviction,
// for one that evicts keys breaks asynq. Its errors name the URL without the password. ctx bounds the
// opening only.
func Open(ctx context.Context, o Options) (*Queue, error) {
	quiet()
	q := &Queue{url: redacted(o.URL), log: o.Logger}
	if q.log == nil {
		q.log = slog.Default()
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
		return nil, errors.Join(err, q.disconnect())
	}
	q.window.init(o.Window, names(o.Routes))
	q.bells.init(q.embedded == nil)
	if _, err := q.Epoch(ctx); err != nil {
		return nil, errors.Join(err, q.disconnect())
	}
	background, stop := context.WithCancel(context.Background())
	q.stop = stop
	if q.embedded == nil {
		q.work.Go(func() { q.publish(background) })
		q.work.Go(func() { q.subscribe(background) })
	}
	return q, nil
}

// connect makes the clients. It does not touch the network.
func (q *Queue) connect(rawURL string) (err error) {
	if rawURL == Embedded {
		q.embedded, err = newEmbedded()
		if err != nil {
			return fmt.Errorf("start the embedded Redis: %w", err)
		}
		q.opt = q.embedded
	} else if q.opt, err = parse(rawURL); err != nil {
		return fmt.Errorf("queue URL %s: %w", q.url, err)
	}
	q.client = q.opt.MakeRedisClient().(redis.UniversalClient)
	if single, ok := q.client.(*redis.Client); ok {
		ap, err := single.AutoPipeline()
		if err != nil {
			return fmt.Errorf("make the enqueuing client: %w", err)
		}
		q.pipe, q.enqueue = ap, asynq.NewClientFromRedisClient(ap)
		return nil
	}
	q.enqueue = asynq.NewClientFromRedisClient(q.client)
	return nil
}

// check says whether this Redis will do.
func (q *Queue) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := q.client.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("reach Redis at %s: %w", q.url, err)
	}
	if q.embedded != nil {
		return nil
	}
	info, err := q.client.Info(ctx, "server", "memory").Result()
	if err != nil {
		return fmt.Errorf("ask Redis at %s for its version: %w", q.url, err)
	}
	version, policy := field(info, "redis_version"), field(info, "maxmemory_policy")
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
		q.log.Warn("Redis does not tell its version; 6.2 or newer is needed", "url", q.url)
	} else if major < 6 || major == 6 && minor < 2 {
		return fmt.Errorf("redis at %s is version %s: 6.2 or newer is needed", q.url, version)
	}
	switch policy {
	case "noeviction":
	case "":
		q.log.Warn("Redis does not tell its maxmemory-policy; it must be noeviction", "url", q.url)
	default:
		return fmt.Errorf("redis at %s has maxmemory-policy %s, which loses wakes: set it to noeviction", q.url, policy)
	}
	return nil
}

// ConnOpt is how asynqmon reaches the same Redis. The clients it makes are their user's to close.
func (q *Queue) ConnOpt() asynq.RedisConnOpt { return q.opt }

// Close ends the connections. Workers started with Serve are shut down before.
func (q *Queue) Close() error {
	q.stop()
	err := q.disconnect()
	q.work.Wait()
	return err
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

// parse reads a URL of a real Redis.
func parse(rawURL string) (asynq.RedisConnOpt, error) {
	if !strings.HasPrefix(rawURL, "redis-cluster://") {
		opt, err := asynq.ParseRedisURI(rawURL)
		if err != nil {
			return nil, errors.New("it is not a valid redis://, rediss:// or redis-sentinel:// URL")
		}
		if c, ok := opt.(asynq.RedisClientOpt); ok {
			c.DialTimeout, c.ReadTimeout, c.WriteTimeout = 2*time.Second, 2*time.Second, 2*time.Second
			return c, nil
		}
		return opt, nil
	}
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" {
		return nil, errors.New("it is not a valid redis-cluster:// URL")
	}
	password, _ := u.User.Password()
	return asynq.RedisClusterClientOpt{
		Addrs: strings.Split(u.Host, ","), Username: u.User.Username(), Password: password,
		DialTimeout: 2 * time.Second, ReadTimeout: 2 * time.Second, WriteTimeout: 2 * time.Second,
	}, nil
}

// redacted is a URL without what may be secret in it.
func redacted(rawURL string) string {
	if rawURL == Embedded {
		return rawURL
	}
	u, err := url.Parse(rawURL)
	if err != nil {
		return "(unreadable)"
	}
	return u.Scheme + "://" + u.Host + u.Path
}

// field is one value of INFO's answer.
func field(info, name string) string {
	for line := range strings.Lines(info) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), name+":"); ok {
			return v
		}
	}
	return ""
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
