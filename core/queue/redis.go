package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/carillon-notify/carillon/providers/redistls"
)

// patience is how long one dial, read or write may take. A command is never tried twice: a dequeue
// whose answer was lost would take a second task, and rows are the truth for all the rest.
const patience = 2 * time.Second

// once is go-redis's word for no second try.
const once = -1

// connect makes the clients. It does not touch the network.
func (q *Queue) connect(rawURL string) (err error) {
	if rawURL == Embedded {
		q.embedded, err = newEmbedded()
		if err != nil {
			return fmt.Errorf("start the embedded Redis: %w", err)
		}
		q.opt = q.embedded
	} else {
		r, err := parse(rawURL)
		if err != nil {
			return fmt.Errorf("read the queue's URL: %w", err)
		}
		q.opt, q.url = r, r.String()
	}
	q.client = q.opt.MakeRedisClient().(redis.UniversalClient)
	if one, ok := q.client.(*redis.Client); ok && q.embedded == nil { // a pipe in memory has no round trips to share
		ap, err := one.AutoPipeline()
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
		return fmt.Errorf("reach Redis at %s: %w", q.url, oneLine{err})
	}
	if q.embedded != nil {
		return nil
	}
	// Not by section: before 7.0, INFO takes one only.
	info, err := q.client.Info(ctx).Result()
	if err != nil && !redis.HasErrorPrefix(err, "NOPERM") {
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
	if err := q.permits(ctx); err != nil {
		return fmt.Errorf("try Redis at %s: %w", q.url, oneLine{err})
	}
	return nil
}

// oneLine is an error in one line: go-redis gives one for each of several hosts.
type oneLine struct{ error }

// Error implements error.
func (o oneLine) Error() string { return strings.ReplaceAll(o.error.Error(), "\n", "; ") }

// Unwrap gives the error as it was.
func (o oneLine) Unwrap() error { return o.error }

// errURL is all that is said of a URL that cannot be read, for it may hold a password.
var errURL = errors.New("it is not redis://[user:password@]host[:port][/db], rediss://…, " +
	"redis-sentinel://host,host?master=name[&sentinel_password=…] or redis-cluster://host,host (with tls=true for TLS, and ca_file=/path for an authority of your own)")

// parameters are what a URL's query may say, by its scheme.
var parameters = map[string][]string{
	"redis": {"tls", "ca_file", "cert_file", "key_file"}, "rediss": {"tls", "ca_file", "cert_file", "key_file"}, "redis-cluster": {"tls", "ca_file", "cert_file", "key_file"},
	"redis-sentinel": {"tls", "ca_file", "cert_file", "key_file", "master", "sentinel_password"},
}

// CheckURL says what is wrong with a queue's URL, as Open would, without touching the network; Embedded is
// right. It reads the files that the URL names. No error holds what may be secret.
func CheckURL(rawURL string) error {
	if rawURL == Embedded {
		return nil
	}
	_, err := parse(rawURL)
	return err
}

// readQuery reads a URL's query. What is not known is refused: a mistyped tls would send the password in clear.
func readQuery(scheme string, u *url.URL) (url.Values, error) {
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, errURL
	}
	known := parameters[scheme]
	for _, name := range slices.Sorted(maps.Keys(query)) {
		switch {
		case slices.Contains(known, name):
			if len(query[name]) > 1 {
				return nil, fmt.Errorf("the parameter %s is given more than once", name)
			}
		case strings.Contains(u.RawQuery, "@"), !plainName.MatchString(name):
			return nil, errURL // it may be a password with a ? in it
		default:
			return nil, fmt.Errorf("there is no parameter %s for %s://; there are %s", name, scheme, strings.Join(known, ", "))
		}
	}
	if query.Has("tls") && query.Get("tls") != "true" && query.Get("tls") != "false" {
		return nil, errors.New("the parameter tls must be true or false")
	}
	if scheme == "rediss" && query.Get("tls") == "false" {
		return nil, errors.New("rediss:// is TLS, and tls=false says that it is not; write redis:// for none")
	}
	return query, nil
}

// plainName is a parameter's name that may be repeated in an error.
var plainName = regexp.MustCompile(`^[A-Za-z_-]{1,32}$`)

// remote is how a real Redis is reached. It implements asynq.RedisConnOpt.
type remote struct {
	scheme  string
	options redis.UniversalOptions
}

// parse reads a URL of a real Redis. asynq's own reader loses the user's name and the default port, and
// net/url need not take several hosts with ports.
func parse(rawURL string) (*remote, error) {
	scheme, rest, _ := strings.Cut(rawURL, "://")
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
	at := strings.LastIndexByte(authority, '@') + 1
	u, err := url.Parse("redis://" + authority[:at] + "host" + tail)
	if err != nil {
		return nil, errURL
	}
	r := &remote{scheme: scheme, options: redis.UniversalOptions{
		Username: u.User.Username(), DialTimeout: patience, ReadTimeout: patience, WriteTimeout: patience,
		ContextTimeoutEnabled: true, MaxRetries: once, DialerRetries: 1,
		// They cost a look-up in DNS for each client, and are Redis Enterprise's alone.
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}}
	if parameters[scheme] == nil {
		return nil, errURL
	}
	query, err := readQuery(scheme, u)
	if err != nil {
		return nil, err
	}
	o, port := &r.options, "6379"
	o.Password, _ = u.User.Password()
	if path := strings.Trim(u.Path, "/"); path != "" {
		if o.DB, err = strconv.Atoi(path); err != nil || o.DB < 0 {
			return nil, errURL
		}
	}
	if scheme == "redis-cluster" && o.DB != 0 {
		return nil, errOneDatabase
	}
	if scheme == "rediss" || query.Get("tls") == "true" {
		if o.TLSConfig, err = redistls.Config(query); err != nil {
			return nil, err
		}
	} else if query.Has("ca_file") || query.Has("cert_file") || query.Has("key_file") {
		return nil, errURL // they would not be looked at
	}
	if scheme == "redis-sentinel" {
		port, o.MasterName, o.SentinelPassword = "26379", query.Get("master"), query.Get("sentinel_password")
	}
	o.Addrs = addresses(authority[at:], port)
	if several := strings.HasPrefix(scheme, "redis-"); len(o.Addrs) == 0 || !several && len(o.Addrs) > 1 || scheme == "redis-sentinel" && o.MasterName == "" {
		return nil, errURL
	}
	return r, nil
}

// addresses gives each host of a list its port; none if one is empty.
func addresses(list, port string) (out []string) {
	for h := range strings.SplitSeq(list, ",") {
		host, p, err := net.SplitHostPort(h)
		if err != nil {
			host, p = strings.Trim(h, "[]"), port
		}
		if host == "" || p == "" {
			return nil
		}
		out = append(out, net.JoinHostPort(host, p))
	}
	return out
}

// idleConn is how long a connection of a lane's workers may be idle. What a burst opened is closed by the
// next commands after it: go-redis would keep it, ten connections a CPU for each lane, for as long as the
// process lives. A lane's own polling keeps a few open.
const idleConn = 2 * time.Second

// clusterReload is how old what a client knows of a Redis Cluster may be, once it is used. A node that is dead says MOVED
// to nobody, so this is all that leads away from it; by itself go-redis would go there for a minute.
const clusterReload = 2 * time.Second

// MakeRedisClient implements asynq.RedisConnOpt.
func (r *remote) MakeRedisClient() any { return r.client(r.options) }

// serving is a client for one lane's workers.
func (r *remote) serving() redis.UniversalClient {
	o := r.options
	// The one that was idle the longest is taken first, or none would ever be seen to be.
	o.PoolFIFO, o.ConnMaxIdleTime = true, idleConn
	return r.client(o)
}

func (r *remote) client(o redis.UniversalOptions) redis.UniversalClient {
	switch r.scheme {
	case "redis-cluster":
		c := o.Cluster()
		c.ClusterStateReloadInterval = clusterReload
		return redis.NewClusterClient(c)
	case "redis-sentinel":
		return redis.NewFailoverClient(o.Failover())
	}
	return redis.NewClient(o.Simple())
}

// String is where it is, without what may be secret: the URL's user, password and query.
func (r *remote) String() string {
	return fmt.Sprintf("%s://%s/%d", r.scheme, strings.Join(r.options.Addrs, ","), r.options.DB)
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
