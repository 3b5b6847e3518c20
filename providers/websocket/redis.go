package websocket

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/centrifugal/centrifuge"

	"github.com/carillon-notify/carillon/providers/redistls"
)

// Redis bounds: a command is given up after redisIOTimeout, so that a Redis that went away costs a
// message one Deferred and not its call's whole time.
const (
	redisConnectTimeout = time.Second
	redisIOTimeout      = 3 * time.Second
	// presenceTTL is how long a client of a gateway that died without a word still counts as present.
	presenceTTL      = 60 * time.Second
	presenceInterval = 25 * time.Second
	// positionCheck is how old a look at what a client has of its history must be for another, which comes
	// with the presence: what was published while a gateway did not hear its Redis is missed by its clients
	// until then. The library's own 40 s would make it each second time.
	positionCheck = 15 * time.Second
)

var errRedisURL = errors.New("redis: is not redis://[user:password@]host[:port][/db], rediss://…, redis-sentinel://host,host?master=name[&sentinel_password=…] or redis-cluster://host,host (with tls=true for TLS, and ca_file=/path for an authority of your own)")

// parseRedis reads a Redis URL. It takes it apart by hand because net/url refuses several hosts with
// ports, and because its errors repeat the whole URL with the password.
func parseRedis(raw string) (centrifuge.RedisShardConfig, error) {
	c := centrifuge.RedisShardConfig{ConnectTimeout: redisConnectTimeout, IOTimeout: redisIOTimeout, ClientName: "carillon-websocket"}
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return c, errRedisURL
	}
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
	userinfo, hosts := "", authority
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		userinfo, hosts = authority[:i+1], authority[i+1:]
	}
	u, err := url.Parse("redis://" + userinfo + "host" + tail)
	if err != nil || hosts == "" {
		return c, errRedisURL
	}
	if path := strings.Trim(u.Path, "/"); path != "" {
		if c.DB, err = strconv.Atoi(path); err != nil || c.DB < 0 {
			return c, errRedisURL
		}
	}
	c.User = u.User.Username()
	c.Password, _ = u.User.Password()
	query, err := readQuery(scheme, u.RawQuery)
	if err != nil {
		return c, err
	}
	if scheme == "rediss" || query.Get("tls") == "true" {
		if c.TLSConfig, err = redistls.Config(query); err != nil {
			return c, fmt.Errorf("redis: %w", err)
		}
	} else if query.Has("ca_file") || query.Has("cert_file") || query.Has("key_file") {
		return c, errRedisURL // they would not be looked at
	}
	switch scheme {
	case "redis", "rediss":
		addresses, err := hostPorts(hosts, "6379")
		if err != nil || len(addresses) != 1 {
			return c, errRedisURL
		}
		c.Address = addresses[0]
		return c, nil
	case "redis-cluster":
		if c.DB != 0 { // SELECT would be refused, again and again
			return c, errors.New("redis: a Redis Cluster has one database: leave the number at the end of redis-cluster:// out")
		}
		c.ClusterAddresses, err = hostPorts(hosts, "6379")
		return c, err
	case "redis-sentinel":
		c.SentinelMasterName, c.SentinelPassword, c.SentinelTLSConfig = query.Get("master"), query.Get("sentinel_password"), c.TLSConfig
		if c.SentinelMasterName == "" {
			return c, errRedisURL
		}
		c.SentinelAddresses, err = hostPorts(hosts, "26379")
		return c, err
	}
	return c, errRedisURL
}

// redisParameters are what a URL's query may say, by its scheme.
var redisParameters = map[string][]string{
	"redis": {"tls", "ca_file", "cert_file", "key_file"}, "rediss": {"tls", "ca_file", "cert_file", "key_file"}, "redis-cluster": {"tls", "ca_file", "cert_file", "key_file"},
	"redis-sentinel": {"tls", "ca_file", "cert_file", "key_file", "master", "sentinel_password"},
}

// readQuery reads a URL's query. What is not known is refused: a mistyped tls would send the password in clear.
func readQuery(scheme, raw string) (url.Values, error) {
	query, err := url.ParseQuery(raw)
	known := redisParameters[scheme]
	if err != nil || known == nil {
		return nil, errRedisURL
	}
	for name, values := range query {
		switch {
		case slices.Contains(known, name):
			if len(values) > 1 {
				return nil, fmt.Errorf("redis: the parameter %s is given more than once", name)
			}
		default: // not which: it may be of a password with a ? in it
			return nil, fmt.Errorf("redis: there is a parameter that %s:// does not have; there are %s", scheme, strings.Join(known, ", "))
		}
	}
	tls := query.Get("tls")
	if query.Has("tls") && tls != "true" && tls != "false" || scheme == "rediss" && tls == "false" {
		return nil, errors.New("redis: the parameter tls must be true or false, and not false for rediss://")
	}
	return query, nil
}

func hostPorts(list, port string) ([]string, error) {
	var out []string
	for h := range strings.SplitSeq(list, ",") {
		host, p, err := net.SplitHostPort(h)
		if err != nil {
			host, p = strings.Trim(h, "[]"), port
		}
		if host == "" || p == "" {
			return nil, errRedisURL
		}
		out = append(out, net.JoinHostPort(host, p))
	}
	return out, nil
}

// joinRedis gives the node a broker and presence on Redis; the caller closes the shard.
func joinRedis(node *centrifuge.Node, config centrifuge.RedisShardConfig, prefix string) (*centrifuge.RedisShard, error) {
	shard, err := centrifuge.NewRedisShard(node, config)
	if err != nil {
		return nil, err
	}
	shards := []*centrifuge.RedisShard{shard}
	broker, err := centrifuge.NewRedisBroker(node, centrifuge.RedisBrokerConfig{Prefix: prefix, Shards: shards})
	if err != nil {
		shard.Close()
		return nil, err
	}
	presence, err := centrifuge.NewRedisPresenceManager(node, centrifuge.RedisPresenceManagerConfig{Prefix: prefix, Shards: shards, PresenceTTL: presenceTTL})
	if err != nil {
		shard.Close()
		return nil, err
	}
	node.SetBroker(broker) // and controller, through which gateways find each other
	node.SetPresenceManager(presence)
	return shard, nil
}
