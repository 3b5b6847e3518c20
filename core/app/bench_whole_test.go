package app_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/config"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

// backing is where an orchestrator keeps what it has: in itself, or on servers.
type backing struct{ store, queue string }

// servers starts PostgreSQL and Redis.
func servers(t testing.TB) backing {
	return backing{coretest.Postgres(t), "redis://" + coretest.Redis(t)}
}

// yaml is its part of a configuration: lines with a data directory of their own.
func (on backing) yaml(data string) string {
	lines := "data: " + data
	if on.store != "" {
		lines += fmt.Sprintf("\nstore: %q\nqueue: %q", on.store, on.queue)
	}
	return lines
}

// set is yaml for an orchestrator in this process.
func (on backing) set(cfg *config.Config) {
	if on.store != "" {
		cfg.Store, cfg.Queue = config.Secret(on.store), config.Secret(on.queue)
	}
}

// backed runs a benchmark on each backing.
func backed(b *testing.B, bench func(b *testing.B, on backing)) {
	b.Run("embedded", func(b *testing.B) { bench(b, backing{}) })
	b.Run("servers", func(b *testing.B) { bench(b, servers(b)) })
}

// onBoth runs a test on each backing.
func onBoth(t *testing.T, test func(t *testing.T, on backing)) {
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		test(t, backing{})
	})
	t.Run("PostgreSQL and Redis", func(t *testing.T) {
		t.Parallel()
		test(t, servers(t))
	})
}

// orchestrator starts one with a single route, to a service of the world.
func (on backing) orchestrator(b *testing.B, w *world, kind string) (p *process, profile func() (end func())) {
	b.Helper()
	text := fmt.Sprintf("listen: 127.0.0.1:0\napi_key: %s\n%s\nsandbox: false\nroutes:\n  %s\n", testKey, on.yaml(b.TempDir()), w.route(b, kind))
	file := filepath.Join(b.TempDir(), "carillon.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	return measured(b, []string{"-config", file})
}

// channel is what the whole way is measured by.
type channel struct {
	kind    string
	service sandbox.Service
	to      func(i int) string // the i-th entry of a request
	content string             // of a request, JSON
	raw     func(b *testing.B, w *world) func(n int)
	n       map[int]int // messages of a run, by how many recipients a request has
}

var pushContent = `{"title":"Message","body":"of the benchmark"}`

// BenchmarkAPNs is the whole way, accept -> store -> asynq -> provider -> sandbox, in requests of 100
// recipients and of one, beside a raw loop of apns2 on the same sandbox: 200 callers, one connection.
func BenchmarkAPNs(b *testing.B) {
	wholeWay(b, channel{
		kind: "apns", service: sandbox.APNs, content: pushContent, raw: rawAPNs, n: map[int]int{100: 20_000, 1: 10_000},
		to: func(i int) string { return fmt.Sprintf(`{"apns":%q}`, hexToken(i)) },
	})
}

// BenchmarkFCM is the same beside a raw loop of firebase's messaging client: 200 callers, one connection.
func BenchmarkFCM(b *testing.B) {
	wholeWay(b, channel{
		kind: "fcm", service: sandbox.FCM, content: pushContent, raw: rawFCM, n: map[int]int{100: 20_000},
		to: func(i int) string { return fmt.Sprintf(`{"fcm":"device:%s"}`, hexToken(i)) },
	})
}

// BenchmarkEmail is the same beside go-mail over eight sessions that stay open.
func BenchmarkEmail(b *testing.B) {
	content, err := json.Marshal(map[string]any{"title": "Hi", "body": mailText, "email": map[string]string{"html": mailHTML}})
	if err != nil {
		b.Fatal(err)
	}
	wholeWay(b, channel{
		kind: "email", service: sandbox.SMTP, content: string(content), raw: rawEmail, n: map[int]int{100: 4_000},
		to: func(i int) string { return fmt.Sprintf(`{"email":"user%d@example.org"}`, i) },
	})
}

// wholeWay reports the ratio of messages a second and of CPU a message, the raw loop's in the test's own
// process, ours in the orchestrator's.
func wholeWay(b *testing.B, c channel) {
	backed(b, func(b *testing.B, on backing) {
		for _, perRequest := range []int{100, 1} {
			if n := c.n[perRequest]; n > 0 {
				b.Run(fmt.Sprintf("to=%d", perRequest), func(b *testing.B) { c.run(b, on, n, perRequest) })
			}
		}
	})
}

func (c channel) run(b *testing.B, on backing, n, perRequest int) {
	w := startWorld(b)
	p, profile := on.orchestrator(b, w, c.kind)
	raw := c.raw(b, w)
	raw(n / 4) // warm
	c.send(b, p.base, n/4, perRequest)
	c.arrived(b, w, uint64(n/4+n/4))
	metrics := newCaller(b, p.base)
	settled := n / 4
	c.settled(b, metrics, settled)
	var took, used, rawTook, rawUsed, below time.Duration
	first := rounds(b, metrics, c.kind)
	end := profile()
	for b.Loop() {
		before, began := cpu(b, os.Getpid()), time.Now()
		raw(n)
		rawTook, rawUsed = rawTook+time.Since(began), rawUsed+cpu(b, os.Getpid())-before
		start := w.taken(b, c.service)
		before, began = cpu(b, p.cmd.Process.Pid), time.Now()
		servers := serversCPU(b)
		c.send(b, p.base, n, perRequest)
		c.arrived(b, w, start+uint64(n))
		took += time.Since(began)
		settled += n
		c.settled(b, metrics, settled) // what that costs is ours, and not to slow down the raw loop
		used, below = used+cpu(b, p.cmd.Process.Pid)-before, below+serversCPU(b)-servers
	}
	end()
	total := float64(b.N * n)
	b.ReportMetric(total/took.Seconds(), "msgs/s")
	b.ReportMetric(total/rawTook.Seconds(), "raw-msgs/s")
	b.ReportMetric(rawTook.Seconds()/took.Seconds(), "rate-ratio")
	b.ReportMetric(used.Seconds()*1000/total, "cpu-s/1000-msgs")
	b.ReportMetric(used.Seconds()/rawUsed.Seconds(), "cpu-ratio")
	if on.store != "" {
		b.ReportMetric(below.Seconds()*1000/total, "servers-cpu-s/1000-msgs")
	}
	b.ReportMetric(total/float64(rounds(b, metrics, c.kind)-first), "msgs/round")
	b.ReportMetric(0, "ns/op")
}

// send asks for n messages from 64 clients (8 for large requests).
func (c channel) send(b *testing.B, base string, n, perRequest int) {
	b.Helper()
	clients := 64
	if perRequest > 1 {
		clients = 8
	}
	err := pour(base, clients, (n+perRequest-1)/perRequest, func(request int) string {
		to := make([]string, 0, perRequest)
		for i := request * perRequest; i < min((request+1)*perRequest, n); i++ {
			to = append(to, c.to(i))
		}
		return `{"to":[` + strings.Join(to, ",") + `],"content":` + c.content + `}`
	})
	if err != nil {
		b.Fatal(err)
	}
}

// arrived waits until the service has taken so many.
func (c channel) arrived(b *testing.B, w *world, n uint64) {
	b.Helper()
	eventually(b, 2*time.Minute, "all messages taken", func() bool { return w.taken(b, c.service) >= n })
}

// settled waits until the orchestrator has settled n messages as sent.
func (c channel) settled(b *testing.B, m *caller, n int) {
	b.Helper()
	eventually(b, 2*time.Minute, "all messages settled", func() bool {
		return figure(b, m, fmt.Sprintf(`carillon_deliveries_total{lane="normal",route=%q,state="sent"} `, c.kind)) >= n
	})
}

// rounds is how many rounds the orchestrator's workers settled.
func rounds(b *testing.B, c *caller, route string) int {
	b.Helper()
	return figure(b, c, fmt.Sprintf(`carillon_round_seconds_count{lane="normal",route=%q} `, route))
}

// figure is a metric's value, 0 where it is not there.
func figure(b *testing.B, c *caller, name string) (n int) {
	b.Helper()
	resp, err := c.http.Get(c.base + "/metrics")
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), name); ok {
			f, err := strconv.ParseFloat(value, 64)
			if err != nil {
				b.Fatal(err)
			}
			n = int(f)
		}
	}
	return n
}
