package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/queue"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

const redisSecret = "s3cret"

// aclRule is the rule that docs/operations.md gives for the Redis user.
func aclRule(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "ACL SETUSER carillon ")
	rule, _, end := strings.Cut(rest, "```")
	if !ok || !end {
		t.Fatal("docs/operations.md gives no rule for the Redis user")
	}
	return strings.Fields(strings.ReplaceAll(strings.ReplaceAll(rule, "\\\n", " "), ">PASSWORD", ">"+redisSecret))
}

// TestRedisKinds: orchestrators and workers over each kind of Redis, as the one user that the documentation
// describes. Two of each, so that wakes, rings and live messages cross processes: a client at one hears
// what another's worker delivers. Redis holds no address and no content meanwhile.
func TestRedisKinds(t *testing.T) {
	t.Parallel()
	user := func(t *testing.T) []string { return append([]string{"--user", "carillon"}, aclRule(t)...) }
	for name, start := range map[string]func(t *testing.T) (url string, nodes []string){
		"single": func(t *testing.T) (string, []string) {
			s := coretest.StartRedis(t, user(t)...)
			return "redis://carillon:" + redisSecret + "@" + s.Addr + "/0", []string{s.Addr}
		},
		"tls": func(t *testing.T) (string, []string) {
			pki := coretest.NewTLS(t)
			addr, plain := coretest.RedisTLS(t, pki, append(user(t), "--tls-auth-clients", "yes")...)
			return "rediss://carillon:" + redisSecret + "@" + addr + "/0?ca_file=" + pki.CAFile + "&cert_file=" + pki.CertFile + "&key_file=" + pki.KeyFile, []string{plain}
		},
		"cluster": func(t *testing.T) (string, []string) {
			var addrs []string
			for _, s := range coretest.StartRedisCluster(t, user(t)...) {
				addrs = append(addrs, s.Addr)
			}
			return "redis-cluster://carillon:" + redisSecret + "@" + strings.Join(addrs, ","), addrs
		},
		"cluster, tls": func(t *testing.T) (string, []string) {
			pki := coretest.NewTLS(t)
			addrs, nodes := coretest.RedisClusterTLS(t, pki, user(t)...)
			var plain []string
			for _, s := range nodes {
				plain = append(plain, s.Addr)
			}
			return "redis-cluster://carillon:" + redisSecret + "@" + strings.Join(addrs, ",") + "?tls=true&ca_file=" + pki.CAFile, plain
		},
		"sentinel": func(t *testing.T) (string, []string) {
			s := coretest.StartRedis(t, user(t)...)
			return "redis-sentinel://carillon:" + redisSecret + "@" + watched(t, coretest.StartSentinel(t), s.Addr) + "?master=main", []string{s.Addr}
		},
		"sentinel, tls": func(t *testing.T) (string, []string) {
			pki := coretest.NewTLS(t)
			addr, plain := coretest.RedisTLS(t, pki, user(t)...)
			sentinel, words := coretest.SentinelTLS(t, pki)
			watched(t, words, addr)
			return "redis-sentinel://carillon:" + redisSecret + "@" + sentinel + "?master=main&tls=true&ca_file=" + pki.CAFile, []string{plain}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, nodes := start(t)
			redisKind(t, url, nodes)
		})
	}
}

// watched tells a Sentinel to watch a Redis under the name main, and returns the Sentinel's address.
func watched(t *testing.T, sentinel, addr string) string {
	t.Helper()
	c := redis.NewSentinelClient(&redis.Options{Addr: sentinel})
	defer c.Close()
	host, port, _ := net.SplitHostPort(addr)
	if err := c.Monitor(t.Context(), "main", host, port, "1").Err(); err != nil {
		t.Fatal(err)
	}
	return sentinel
}

const (
	secretAddress = "nobody-may-read-this"
	secretContent = "nor-this-content"
)

func redisKind(t *testing.T, redisURL string, nodes []string) {
	world := startSandbox(t)
	slow(t, world, 20*time.Millisecond)
	file := writeConfig(t, world, fmt.Sprintf("data: %s\nstore: %q\nqueue: %q", t.TempDir(), coretest.Postgres(t), redisURL))
	front := startProcess(t, "orchestrator", []string{"-config", file, "-workers=false"}, nil)
	both := startProcess(t, "orchestrator", []string{"-config", file}, nil)
	startProcess(t, "worker", []string{"-config", file}, nil)
	c := newCaller(t, front.base)
	scanning, stop := context.WithCancel(t.Context())
	seen := make(chan int, 1)
	go func() { seen <- watchContent(scanning, t, nodes) }()

	var acked []string
	for i := range 150 {
		var got accepted
		c.must(http.MethodPost, "/v1/notifications", fmt.Sprintf(`{"to":[{"apns":%q},{"email":"%s-%d@example.com"}],"content":{"title":%q}}`,
			hexToken(i), secretAddress, i, secretContent), &got, http.StatusAccepted)
		acked = append(acked, got.ID)
	}
	var later accepted
	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"email":"later@example.com"}],"content":{"title":"later"},"delay":"2s"}`, &later, http.StatusAccepted)
	settled(t, c, world, acked, 2)
	settled(t, c, world, []string{later.ID}, 1)

	crossings(t, front, both)
	asynqmon(t, front)
	stop()
	if n := <-seen; n == 0 {
		t.Error("nothing was seen in Redis")
	}
	for _, addr := range nodes {
		denied(t, addr)
	}
	if world.Counts(sandbox.APNs).Taken != 150 {
		t.Errorf("%+v", world.Counts(sandbox.APNs))
	}
	for _, p := range []*process{front, both} {
		p.terminate(t)
	}
}

// crossings has clients at either process hear what any delivers.
func crossings(t *testing.T, ps ...*process) {
	t.Helper()
	for i, p := range ps {
		who := fmt.Sprintf("live-%d", i)
		arrived := live(t, newCaller(t, p.base), who)
		for j, from := range ps {
			title := fmt.Sprintf("from %d", j)
			newCaller(t, from.base).must(http.MethodPost, "/v1/notifications", fmt.Sprintf(`{"to":[{"websocket":%q}],"content":{"title":%q}}`, who, title), nil, http.StatusAccepted)
			select {
			case m := <-arrived:
				if m["title"] != title {
					t.Errorf("%v came, not %s", m, title)
				}
			case <-time.After(30 * time.Second):
				t.Errorf("a client of process %d did not hear what process %d took\n%s", i, j, p.said())
			}
		}
	}
}

// asynqmon uses the pages that come with asynq, which speak as the same user.
func asynqmon(t *testing.T, p *process) {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Jar: jar}
	do := func(method, path string, body url.Values) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, p.base+path, strings.NewReader(body.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		if resp.StatusCode >= 400 {
			t.Errorf("%s %s answered %d: %s", method, path, resp.StatusCode, text)
		}
	}
	do(http.MethodPost, "/console/login", url.Values{"key": {testKey}})
	const api = "/console/queues/api"
	for _, path := range []string{"/queues", "/queues/apns.normal", "/queues/apns.normal/pending_tasks", "/queues/apns.normal/active_tasks",
		"/queues/apns.normal/scheduled_tasks", "/queues/apns.normal/retry_tasks", "/queue_stats", "/servers", "/redis_info", "/scheduler_entries"} {
		do(http.MethodGet, api+path, nil)
	}
	do(http.MethodPost, api+"/queues/apns.normal:pause", nil)
	do(http.MethodPost, api+"/queues/apns.normal:resume", nil)
}

// TestRedisUserIsConfined: what the documented user may not do.
func TestRedisUserIsConfined(t *testing.T) {
	t.Parallel()
	s := coretest.StartRedis(t, append([]string{"--user", "carillon"}, aclRule(t)...)...)
	s.Do("SET", "foreign", "x")
	c := redis.NewClient(&redis.Options{Addr: s.Addr, Username: "carillon", Password: redisSecret})
	defer c.Close()
	if err := c.Set(t.Context(), "carillon:x", "y", 0).Err(); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]any{{"FLUSHALL"}, {"FLUSHDB"}, {"CONFIG", "GET", "*"}, {"CONFIG", "SET", "dir", "/"}, {"KEYS", "*"}, {"GET", "foreign"}, {"SET", "foreign", "y"},
		{"SHUTDOWN"}, {"ACL", "LIST"}, {"REPLICAOF", "h", "1"}, {"SCRIPT", "FLUSH"}, {"FUNCTION", "LIST"}, {"MONITOR"}, {"SAVE"}, {"MIGRATE", "h", "1", "", "0", "1"},
		{"PUBLISH", "foreign", "x"}, {"SUBSCRIBE", "foreign"}, {"CLIENT", "KILL", "TYPE", "normal"}, {"CLUSTER", "RESET"}} {
		if err := c.Do(t.Context(), command...).Err(); !redis.HasErrorPrefix(err, "NOPERM") {
			t.Errorf("%v: %v", command, err)
		}
	}
}

// denied reports what the user was refused.
func denied(t *testing.T, addr string) {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr})
	defer c.Close()
	log, err := c.Do(t.Context(), "ACL", "LOG").Slice()
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range log {
		t.Errorf("the user was refused: %v", entry)
	}
}

// watchContent reads all keys and values that Redis holds, again and again until ctx ends, and fails where one
// holds an address or a content. It returns how many keys it saw.
func watchContent(ctx context.Context, t *testing.T, nodes []string) (seen int) {
	var clients []*redis.Client
	for _, addr := range nodes {
		c := redis.NewClient(&redis.Options{Addr: addr})
		defer c.Close()
		clients = append(clients, c)
	}
	for ctx.Err() == nil {
		for _, c := range clients {
			keys, err := c.Keys(ctx, "*").Result()
			if err != nil {
				continue
			}
			if len(keys) > 20_000 {
				t.Errorf("%d keys", len(keys))
			}
			for _, key := range keys {
				text := key + dump(ctx, c, key)
				seen++
				// The centrifuge broker keeps a recipient's recent messages on purpose; it is not the queue.
				for _, secret := range []string{secretAddress, secretContent, hexToken(1)[:40]} {
					if strings.Contains(text, secret) {
						t.Errorf("Redis holds %q in %s", secret, key)
					}
				}
			}
		}
	}
	return seen
}

// dump is all that a key holds, as text.
func dump(ctx context.Context, c *redis.Client, key string) string {
	var v any
	kind, _ := c.Type(ctx, key).Result()
	switch kind {
	case "string":
		v, _ = c.Get(ctx, key).Result()
	case "list":
		v, _ = c.LRange(ctx, key, 0, -1).Result()
	case "hash":
		v, _ = c.HGetAll(ctx, key).Result()
	case "set":
		v, _ = c.SMembers(ctx, key).Result()
	case "zset":
		v, _ = c.ZRange(ctx, key, 0, -1).Result()
	case "stream":
		v, _ = c.XRange(ctx, key, "-", "+").Result()
	}
	text, _ := json.Marshal(v)
	return string(text)
}

// TestRedisStaysSmall: while nobody delivers, a backlog grows in the database and not in Redis, which holds one
// app's share of the window and no word of what waits; all of it is delivered in the end.
func TestRedisStaysSmall(t *testing.T) {
	t.Parallel()
	world := startSandbox(t)
	server := coretest.StartRedis(t)
	file := writeConfig(t, world, fmt.Sprintf("data: %s\nstore: %q\nqueue: redis://%s/0", t.TempDir(), coretest.Postgres(t), server.Addr))
	front := startProcess(t, "orchestrator", []string{"-config", file, "-workers=false"}, nil)
	c := newCaller(t, front.base)
	scanning, stop := context.WithCancel(t.Context())
	seen := make(chan int, 1)
	go func() { seen <- watchContent(scanning, t, []string{server.Addr}) }()
	const each = 500
	acked := make([][]string, 2)
	var clients sync.WaitGroup
	for i := range acked {
		clients.Go(func() { // few at a time, so that few share a batch
			for n := range each {
				var got accepted
				status, err := c.do(t.Context(), http.MethodPost, "/v1/notifications",
					fmt.Sprintf(`{"to":[{"email":"%s-%d-%d@example.com"}],"content":{"title":%q}}`, secretAddress, i, n, secretContent), &got)
				if err != nil || status != http.StatusAccepted {
					t.Errorf("%d %v", status, err)
					return
				}
				acked[i] = append(acked[i], got.ID)
			}
		})
	}
	clients.Wait()
	var routes struct {
		Data []struct {
			Name  string
			Queue []struct {
				Lane            string
				Pending, Queued int
			}
		}
	}
	c.must(http.MethodGet, "/v1/routes", nil, &routes, http.StatusOK)
	batches := 0
	for _, r := range routes.Data {
		for _, q := range r.Queue {
			batches += q.Pending + q.Queued
		}
	}
	const most = queue.Share + 20 // and asynq's own
	if batches <= most {
		t.Fatalf("%d batches wait: too few to tell", batches)
	}
	r := redis.NewClient(&redis.Options{Addr: server.Addr})
	defer r.Close()
	keys, err := r.Keys(t.Context(), "*").Result()
	if err != nil || len(keys) > most {
		t.Errorf("%d batches wait, and Redis holds %d keys: %v", batches, len(keys), err)
	}
	t.Logf("%d batches wait, %d keys", batches, len(keys))
	stop()
	if <-seen == 0 {
		t.Error("nothing was seen in Redis")
	}
	startProcess(t, "worker", []string{"-config", file}, nil)
	settled(t, c, world, append(acked[0], acked[1]...), 1)
}
