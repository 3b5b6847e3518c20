package queue_test

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/queue"
)

// playing is a Redis that says of itself what a test wants, and takes one section of INFO only, as
// those before 7.0 do.
func playing(t *testing.T, info string) string {
	m := miniredis.RunT(t)
	m.Server().SetPreHook(func(p *server.Peer, cmd string, args ...string) bool {
		switch {
		case cmd != "INFO":
			return false
		case info == "":
			p.WriteError("NOPERM this user has no permissions to run the 'info' command")
		case len(args) > 1:
			p.WriteError("ERR syntax error")
		default:
			p.WriteBulk(info)
		}
		return true
	})
	return m.Addr()
}

// TestOpenRefuses tells that a Redis that will not do is refused in one line that says where and why,
// and holds no password.
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	evicting := coretest.StartRedis(t, "--maxmemory-policy", "allkeys-lru").Addr
	closed := coretest.StartRedis(t, "--requirepass", "right").Addr
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and never answers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	pki := coretest.NewTLS(t)
	encrypted, _ := coretest.RedisTLS(t, pki)
	asking, _ := coretest.RedisTLS(t, pki, "--tls-auth-clients", "yes")
	plain := coretest.StartRedis(t)
	replica := coretest.StartRedis(t, "--replicaof", strings.ReplaceAll(plain.Addr, ":", " ")).Addr
	sentinel := coretest.StartSentinel(t, "--requirepass", "right")
	open := coretest.StartSentinel(t)
	node := coretest.StartRedisCluster(t)[0].Addr
	for name, c := range map[string]struct{ url, want string }{
		"unknown authority": {"rediss://:geheim@" + encrypted, "certificate signed by unknown authority"},
		"TLS for plain":     {"redis://:geheim@" + encrypted, "reach Redis at redis://" + encrypted},
		"no such file":      {"rediss://:geheim@" + encrypted + "?ca_file=/no/such.pem", "read ca_file: open /no/such.pem"},
		"no certificate":    {"rediss://:geheim@" + encrypted + "?ca_file=" + pki.KeyFile, "holds no certificate"},
		"useless ca_file":   {"redis://:geheim@" + encrypted + "?ca_file=" + pki.CAFile, "it is not redis://"},
		"who are you":       {"rediss://:geheim@" + asking + "?ca_file=" + pki.CAFile, "cert_file=/path/client.pem&key_file=/path/client.key"},
		"half of us":        {"rediss://:geheim@" + asking + "?cert_file=" + pki.CertFile, "cert_file and key_file go together"},
		"none of us":        {"rediss://:geheim@" + asking + "?cert_file=" + pki.CertFile + "&key_file=/no/such.key", "read cert_file and key_file: open /no/such.key"},
		"useless cert_file": {"redis://:geheim@" + asking + "?cert_file=a&key_file=b", "it is not redis://"},
		"TLS's remedy":      {"redis://:geheim@" + encrypted, "if it speaks TLS, write rediss://"},
		"authority's":       {"rediss://:geheim@" + encrypted, "ca_file=/path/ca.pem"},
		"no TLS's":          {"rediss://" + plain.Addr, "if the server speaks no TLS, write redis://"},
		"password's":        {"redis://:geheim@" + closed, "correct the user or the password in the URL"},
		"no password's":     {"redis://" + closed, "write the password into the URL"},
		"database 99":       {"redis://" + plain.Addr + "/99", "correct the database's number"},
		"replica":           {"redis://" + replica, "this is a replica"},
		"no cluster's":      {"redis-cluster://" + plain.Addr, "this is no Redis Cluster: write redis://"},
		"node of a cluster": {"redis://" + node, "write redis-cluster://"},
		"cluster, database": {"redis-cluster://u:geheim@" + node + "/3", "has one database"},
		"no sentinel's":     {"redis-sentinel://" + plain.Addr + "?master=m", "a Redis answers there and no Sentinel"},
		"sentinel's secret": {"redis-sentinel://" + sentinel + "?master=m", "set sentinel_password="},
		"its wrong secret":  {"redis-sentinel://" + sentinel + "?master=m&sentinel_password=geheim", "correct sentinel_password="},
		"unknown master":    {"redis-sentinel://" + open + "?master=m", "correct master= in the URL"},
		"a sentinel":        {"redis://" + open, "a Sentinel answers there: write redis-sentinel://"},
		"evicts":            {"redis://" + evicting, "maxmemory-policy allkeys-lru, which loses wakes: set it to noeviction"},
		"old":               {"redis://:geheim@" + playing(t, "redis_version:6.0.16\r\nmaxmemory_policy:noeviction\r\n"), "is version 6.0.16: 6.2 or newer is needed"},
		"very old":          {"redis://" + playing(t, "redis_version:2.8.4\r\n"), "is version 2.8.4"},
		"nobody there":      {"redis://:geheim@127.0.0.1:1/3", "reach Redis at redis://127.0.0.1:1/3: dial tcp 127.0.0.1:1: connect: connection refused"},
		"no such host":      {"redis://:geheim@no-such-host.invalid", "reach Redis at redis://no-such-host.invalid:6379/0: "},
		"silent":            {"redis://:geheim@" + silent.Addr().String(), "reach Redis at redis://" + silent.Addr().String()},
		"wrong password":    {"redis://:geheim@" + closed, "WRONGPASS"},
		"no password":       {"redis://" + closed, "NOAUTH"},
		"no TLS":            {"rediss://:geheim@" + evicting, "reach Redis at rediss://" + evicting},
		"no sentinel":       {"redis-sentinel://:geheim@127.0.0.1:1,127.0.0.1:2?master=m&sentinel_password=geheim", "reach Redis at redis-sentinel://127.0.0.1:1,127.0.0.1:2/0: "},
		"not a cluster":     {"redis-cluster://:geheim@" + evicting, "reach Redis at redis-cluster://"},
		"no scheme":         {"geheim", "read the queue's URL: it is not redis://"},
		"empty":             {"", "it is not redis://"},
		"other scheme":      {"amqp://u:geheim@h", "it is not redis://"},
		"no host":           {"redis://u:geheim@/0", "it is not redis://"},
		"no port":           {"redis://u:geheim@h:/0", "it is not redis://"},
		"bad database":      {"redis://u:geheim@h/x", "it is not redis://"},
		"negative":          {"redis://u:geheim@h/-1", "it is not redis://"},
		"bad escape":        {"redis://u:geheim%zz@h/0", "it is not redis://"},
		"two hosts":         {"redis://u:geheim@h,i/0", "it is not redis://"},
		"no master":         {"redis-sentinel://u:geheim@h,i", "it is not redis://"},
		"mistyped":          {"redis://u:geheim@h/0?tsl=true", "there is no parameter tsl for redis://; there are tls, ca_file"},
		"mistyped ca_file":  {"redis://u:geheim@h/0?ca_fil=/nope", "there is no parameter ca_fil for redis://; there are tls, ca_file"},
		"sentinel's":        {"redis-cluster://u:geheim@h?tls=true&master=m", "there is no parameter master for redis-cluster://; there are tls, ca_file"},
		"sentinel mistyped": {"redis-sentinel://u:geheim@h?master=m&sentinelpassword=geheim", "there is no parameter sentinelpassword for redis-sentinel://; there are tls, ca_file, cert_file, key_file, master, sentinel_password"},
		"tls=1":             {"redis://u:geheim@h/0?tls=1", "the parameter tls must be true or false"},
		"tls=yes":           {"redis-cluster://u:geheim@h?tls=yes&x=1", "there is no parameter x"},
		"tls=":              {"redis://u:geheim@h/0?tls", "the parameter tls must be true or false"},
		"tls twice":         {"redis://u:geheim@h/0?tls=true&tls=false", "the parameter tls is given more than once"},
		"TLS and not":       {"rediss://u:geheim@h/0?tls=false", "rediss:// is TLS"},
		"bad query":         {"redis://u:geheim@h/0?tls=true;ca_file=x", "it is not redis://"},
		"? in a password":   {"redis://u:6379?geheim=x@h/0", "it is not redis://"},
		"half a password":   {"redis://u:ge/heim@h/0", "it is not redis://"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			q, err := queue.Open(limit(t), queue.Options{URL: c.url, Logger: slog.New(slog.DiscardHandler)})
			if err == nil {
				_ = q.Close()
				t.Fatal("it was taken")
			}
			said := err.Error()
			if !strings.Contains(said, c.want) || strings.Contains(said, "geheim") || strings.Contains(said, "\n") {
				t.Errorf("it says %q, not %q", said, c.want)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %v", took)
			}
			t.Log(said)
		})
	}
}

// TestOpenAsksWhatItMay: a user who lacks something that wakes need is refused at once, and not only found out when
// nothing is delivered, or Redis is restarted and scripts are to be loaded again.
func TestOpenAsksWhatItMay(t *testing.T) {
	t.Parallel()
	s := coretest.StartRedis(t)
	base := []any{"on", ">geheim", "resetkeys", "~asynq:*", "~carillon*", "resetchannels", "&asynq:*", "&carillon*",
		"-@all", "+@read", "+@write", "+@pubsub", "+@connection", "-@dangerous", "+eval", "+evalsha", "+script|load", "+info"}
	user := func(name string, change ...any) string {
		s.Do(slices.Concat([]any{"ACL", "SETUSER", name}, base, change)...)
		return "redis://" + name + ":geheim@" + s.Addr
	}
	for lacks, c := range map[string]struct{ url, want string }{
		"nothing":          {user("all"), ""},
		"eval":             {user("a", "-eval"), "run a script: "},
		"evalsha":          {user("b", "-evalsha"), "run a script again: "},
		"publish":          {user("c", "-publish"), "publish to carillon:doorbell: "},
		"subscribe":        {user("d", "-subscribe"), "subscribe to carillon:doorbell and asynq:cancel: "},
		"asynq's channel":  {user("e", "resetchannels", "&carillon*"), "subscribe to carillon:doorbell and asynq:cancel: "},
		"our channel":      {user("f", "resetchannels", "&asynq:*"), "publish to carillon:doorbell: "},
		"asynq's keys":     {user("g", "resetkeys", "~carillon*"), "run a script: "},
		"our keys":         {user("h", "resetkeys", "~asynq:*"), "read the epoch of Redis"},
		"writing to a set": {user("i", "-sadd"), "name the queues on Redis"},
	} {
		t.Run(lacks, func(t *testing.T) {
			t.Parallel()
			q, err := queue.Open(limit(t), queue.Options{URL: c.url, Logger: slog.New(slog.DiscardHandler), Routes: []string{"mail"}})
			if err == nil {
				_ = q.Close()
			}
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "permissions that docs/operations.md lists") || strings.Contains(err.Error(), "geheim") {
				t.Errorf("it says %v, not %q", err, c.want)
			}
		})
	}
}

// TestOpenBound tells that opening ends with its context, and leaves nothing behind when it fails.
func TestOpenBound(t *testing.T) {
	t.Parallel()
	r := coretest.StartRedis(t)
	r.Pause()
	leakless(t, func() {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		began := time.Now()
		if _, err := queue.Open(ctx, queue.Options{URL: "redis://" + r.Addr}); err == nil {
			t.Error("a Redis that does not answer was taken")
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// TestOpenTakes tells that each kind of Redis that will do carries a wake from queue to handler.
func TestOpenTakes(t *testing.T) {
	t.Parallel()
	locked := func() *coretest.RedisServer { return coretest.StartRedis(t, "--requirepass", "p@ss/word") }
	acl := coretest.StartRedis(t, "--user", "default", "on", ">x", "~*", "&*", "+@all", "--user", "ann", "on", ">p", "~*", "&*", "+@all", "-info").Addr
	for name, c := range map[string]struct {
		url  func(t *testing.T) string
		warn int
	}{
		"6.2": {url: func(t *testing.T) string {
			return "redis://" + playing(t, "redis_version:6.2.14\r\nmaxmemory_policy:noeviction\r\n")
		}},
		"8": {url: func(t *testing.T) string {
			return "redis://" + playing(t, "redis_version:8.0.1\r\nmaxmemory_policy:noeviction\r\n")
		}},
		"tells nothing":  {url: func(t *testing.T) string { return "redis://" + playing(t, "# Server\r\n") }, warn: 2},
		"may not tell":   {url: func(t *testing.T) string { return "redis://" + playing(t, "") }, warn: 2},
		"other database": {url: func(t *testing.T) string { return "redis://" + coretest.Redis(t) + "/7" }},
		"password":       {url: func(*testing.T) string { return "redis://:p%40ss%2Fword@" + locked().Addr }},
		"user":           {url: func(*testing.T) string { return "redis://ann:p@" + acl + "/0" }, warn: 2},
		"cluster":        {url: startCluster},
		"sentinel":       {url: func(t *testing.T) string { return startSentinel(t, locked()) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log lines
			q := open(t, queue.Options{URL: c.url(t), Logger: log.logger()})
			if warned := log.with("WARN"); len(warned) != c.warn {
				t.Errorf("%d warnings: %v", len(warned), warned)
			}
			got := make(inbox, 10)
			serve(t, q, got.handle)
			w := wake()
			enqueue(t, q, w)
			if g := got.next(t); g != w {
				t.Errorf("%+v came", g)
			}
			eventually(t, "nothing is left", func() bool { return depths(t, q)["a.normal"].Total() == 0 })
			if changed, err := q.Epoch(limit(t)); err != nil || !changed {
				t.Errorf("%v %v", changed, err)
			}
		})
	}
}

// startCluster starts a Redis Cluster of one node.
func startCluster(t *testing.T) string {
	addr := coretest.StartRedis(t, "--cluster-enabled", "yes", "--cluster-port", "0").Addr
	c := client(t, addr)
	if err := c.ClusterAddSlotsRange(t.Context(), 0, 16383).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cluster is up", func() bool {
		s, err := c.ClusterInfo(t.Context()).Result()
		return err == nil && strings.Contains(s, "cluster_state:ok")
	})
	return "redis-cluster://" + addr
}

// startSentinel starts a sentinel that watches a Redis.
func startSentinel(t *testing.T, master *coretest.RedisServer) string {
	addr := coretest.StartSentinel(t)
	c := redis.NewSentinelClient(&redis.Options{Addr: addr})
	t.Cleanup(func() { _ = c.Close() })
	host, port, _ := net.SplitHostPort(master.Addr)
	if err := c.Monitor(t.Context(), "main", host, port, "1").Err(); err != nil {
		t.Fatal(err)
	}
	if err := c.Set(t.Context(), "main", "auth-pass", "p@ss/word").Err(); err != nil {
		t.Fatal(err)
	}
	return "redis-sentinel://:p%40ss%2Fword@" + addr + "?master=main"
}

// TestEmbeddedForgetsInTime tells that the embedded Redis ages its keys: asynq's own would pile up.
func TestEmbeddedForgetsInTime(t *testing.T) {
	t.Parallel()
	q := open(t, queue.Options{URL: queue.Embedded})
	c := q.ConnOpt().MakeRedisClient().(redis.UniversalClient)
	t.Cleanup(func() { _ = c.Close() })
	if err := c.Set(t.Context(), "x", "y", 1500*time.Millisecond).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the key is gone", func() bool { return c.Exists(t.Context(), "x").Val() == 0 })
}

// TestEmbeddedPipes tells that the embedded Redis takes pipelines longer than any buffer, from many
// at once.
func TestEmbeddedPipes(t *testing.T) {
	t.Parallel()
	q := open(t, queue.Options{URL: queue.Embedded})
	c := q.ConnOpt().MakeRedisClient().(redis.UniversalClient)
	t.Cleanup(func() { _ = c.Close() })
	var done atomic.Int64
	for range 4 {
		go func() {
			pipe := c.Pipeline()
			for range 1000 {
				pipe.Echo(t.Context(), strings.Repeat("x", 100))
			}
			if _, err := pipe.Exec(t.Context()); err != nil {
				t.Error(err)
			}
			done.Add(1)
		}()
	}
	eventually(t, "all have their answers", func() bool { return done.Load() == 4 })
}
