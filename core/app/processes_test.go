package app_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/queue"
)

// TestTwoProcesses: an orchestrator that only accepts and a worker that only delivers, over a real
// Redis and a real PostgreSQL; the worker is killed on the way, Redis wiped.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	dsn := coretest.Postgres(t)
	redis := coretest.StartRedis(t)
	world := startSandbox(t)
	file := writeConfig(t, world, fmt.Sprintf("data: %s\nstore: %q\nqueue: redis://%s/0\nworkers: false", t.TempDir(), dsn, redis.Addr))
	front := startProcess(t, "orchestrator", []string{"-config", file}, nil)
	metrics := coretest.FreeAddr(t)
	back := startProcess(t, "worker", []string{"-config", file}, []string{"CARILLON_METRICS_LISTEN=" + metrics})
	c := newCaller(t, front.base)
	const n = 300
	var mu sync.Mutex
	var ids []string
	send := func(i int) {
		var got accepted
		c.must(http.MethodPost, "/v1/notifications", fmt.Sprintf(`{"to":[{"apns":%q},{"email":"u%d@example.com"}],"content":{"title":"two processes"}}`, hexToken(i), i), &got, http.StatusAccepted)
		mu.Lock()
		ids = append(ids, got.ID)
		mu.Unlock()
	}
	for i := range n {
		send(i)
		switch i {
		case n / 3:
			back.kill()
			back = startProcess(t, "worker", []string{"-config", file}, []string{"CARILLON_METRICS_LISTEN=" + metrics})
		case 2 * n / 3:
			redis.FlushAll()
		}
	}
	arrived := live(t, c, "u_live") // through the broker: the worker has no clients of its own
	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"websocket":"u_live"}],"content":{"title":"live"}}`, nil, http.StatusAccepted)
	select {
	case <-arrived:
	case <-time.After(30 * time.Second):
		t.Errorf("nothing arrived live through the broker\nfront: %s\nback: %s", front.said(), back.said())
	}
	for _, id := range ids {
		eventually(t, time.Minute, "every delivery sent", func() bool {
			var v notification
			c.must(http.MethodGet, "/v1/notifications/"+id, nil, &v, http.StatusOK)
			return v.Counts.Sent == 2
		})
	}
	eventually(t, 30*time.Second, "the front tells of the worker's pools", func() bool {
		r := c.routes()["apns"]
		return r.Processes == 1 && r.State == "ok" && r.Pool.Open > 0
	})
	for path, want := range map[string]string{"/metrics": `carillon_pool_open{route="apns"} `, "/metrics?": `carillon_backlog_age_seconds{lane="critical",route="apns"} 0` + "\n",
		"/metrics?x": `carillon_batches{lane="critical",route="apns",state="pending"} 0` + "\n", "/metrics?y": "\ncarillon_queue_up 1\n", "/livez": "ok", "/readyz": "ok"} {
		resp, err := http.Get("http://" + metrics + path)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(text), want) {
			t.Errorf("the worker's %s answered %d: %v", path, resp.StatusCode, err)
		}
	}
	for _, s := range serviceOf {
		for id, copies := range world.Duplicates(s) {
			t.Logf("%s received %s %d times", s, id, copies)
		}
	}
	if err := front.interrupt(); err != nil {
		t.Errorf("front: %v", err)
	}
	if err := back.interrupt(); err != nil {
		t.Errorf("back: %v", err)
	}
}

// TestWrongClock: what is due is due by the database's clock. A process that is alone and whose own is ten minutes off sends at
// once what is to go at once, and what is held for a moment when that is over.
func TestWrongClock(t *testing.T) {
	t.Parallel()
	for name, off := range map[string]time.Duration{"slow": -10 * time.Minute, "fast": 10 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			world := startSandbox(t)
			file := writeConfig(t, world, fmt.Sprintf("data: %s\nstore: %q\nqueue: redis://%s/0", t.TempDir(), coretest.Postgres(t), coretest.StartRedis(t).Addr))
			p := startProcess(t, "orchestrator", []string{"-config", file}, nil)
			c := newCaller(t, p.base)
			switch err := coretest.ShiftClock(p.cmd.Process.Pid, off); {
			case errors.Is(err, errors.ErrUnsupported):
				t.Skip(err)
			case err != nil:
				t.Fatal(err)
			}
			best := time.Hour
			for i := range 3 { // the machine may be busy with something else once or twice
				var got accepted
				began := time.Now()
				c.must(http.MethodPost, "/v1/notifications", fmt.Sprintf(`{"to":[{"apns":%q}],"content":{"title":"the time"}}`, hexToken(i)), &got, http.StatusAccepted)
				eventually(t, 30*time.Second, "it is sent", func() bool {
					var v notification
					c.must(http.MethodGet, "/v1/notifications/"+got.ID, nil, &v, http.StatusOK)
					return v.Counts.Sent == 1
				})
				best = min(best, time.Since(began))
			}
			if best > core.DispatchTimeout/2 {
				t.Errorf("the quickest of three took %v", best)
			}
		})
	}
}

// TestNobodyDelivers: an orchestrator that leaves delivery to workers says when its routes are its own sandbox's,
// over which no worker delivers; one with routes does not.
func TestNobodyDelivers(t *testing.T) {
	t.Parallel()
	shared := fmt.Sprintf("data: %s\nstore: %q\nqueue: redis://%s/0\nworkers: false", t.TempDir(), coretest.Postgres(t), coretest.Redis(t))
	bare := filepath.Join(t.TempDir(), "bare.yaml")
	if err := os.WriteFile(bare, []byte("listen: 127.0.0.1:0\n"+shared), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]bool{bare: true, writeConfig(t, startSandbox(t), shared): false} {
		p := startProcess(t, "orchestrator", []string{"-config", file}, nil)
		if err := p.interrupt(); err != nil { // after which all is here that it said
			t.Error(err)
		}
		if got := strings.Contains(p.said(), "this process delivers nothing to its sandbox"); got != want {
			t.Errorf("warned: %t, want %t: %s", got, want, p.said())
		}
	}
}

// TestCircuitOfOne: one of two workers cannot reach a service. While its circuit is open it leaves what there is
// to the other, instead of taking its share and holding it.
func TestCircuitOfOne(t *testing.T) {
	t.Parallel()
	world := startSandbox(t)
	on := servers(t)
	file := writeConfig(t, world, fmt.Sprintf("data: %s\nstore: %q\nqueue: %q", t.TempDir(), on.store, on.queue))
	front := startProcess(t, "orchestrator", []string{"-config", file, "-workers=false"}, nil)
	startProcess(t, "worker", []string{"-config", file}, []string{"CARILLON_METRICS_LISTEN=" + coretest.FreeAddr(t)})

	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	real := strings.TrimPrefix(world.APNsURL(), "https://")
	link := coretest.StartProxy(t, real)
	far := filepath.Join(t.TempDir(), "far.yaml")
	apart := strings.NewReplacer(real, link.Addr, "timeout: 5s,", "timeout: 5s, breaker: {min: 10m, max: 10m},").Replace(string(text))
	if err := os.WriteFile(far, []byte(apart), 0o600); err != nil {
		t.Fatal(err)
	}
	metrics := coretest.FreeAddr(t)
	startProcess(t, "worker", []string{"-config", far}, []string{"CARILLON_METRICS_LISTEN=" + metrics})

	c := newCaller(t, front.base)
	eventually(t, time.Minute, "two processes deliver", func() bool { return c.routes()["apns"].Processes == 2 })
	link.Cut()
	next := 0
	send := func(n int) (ids []string) {
		for range n {
			var got accepted
			c.must(http.MethodPost, "/v1/notifications", fmt.Sprintf(`{"to":[{"apns":%q}],"content":{"title":"one of two"}}`, hexToken(next)), &got, http.StatusAccepted)
			next++
			ids = append(ids, got.ID)
		}
		return ids
	}
	sent := func(ids []string, within time.Duration) {
		for _, id := range ids {
			eventually(t, within, "it is sent", func() bool {
				var v notification
				c.must(http.MethodGet, "/v1/notifications/"+id, nil, &v, http.StatusOK)
				return v.Counts.Sent == 1
			})
		}
	}
	var first []string
	eventually(t, time.Minute, "the circuit of the one opens", func() bool {
		first = append(first, send(20)...)
		return c.routes()["apns"].Circuit == "open"
	})
	settled := func() string {
		resp, err := http.Get("http://" + metrics + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		_, count, _ := strings.Cut(string(text), `carillon_round_seconds_count{lane="normal",route="apns"} `)
		count, _, _ = strings.Cut(count, "\n")
		return count
	}
	sent(first, time.Minute) // what the one held comes to the other as well
	before := settled()
	sent(send(100), 20*time.Second)
	if after := settled(); after != before {
		t.Errorf("the one whose circuit is open took rounds: %s, then %s", before, after)
	}
}

// TestWipedQueue: wakes that a wiped Redis lost are back long before the alarm clocks behind them ring.
// Nobody works here: they are to be found in the queue again.
func TestWipedQueue(t *testing.T) {
	t.Parallel()
	redis := coretest.StartRedis(t)
	file := writeConfig(t, startSandbox(t), fmt.Sprintf("data: %s\nstore: %q\nqueue: redis://%s/0", t.TempDir(), coretest.Postgres(t), redis.Addr))
	front := startProcess(t, "orchestrator", []string{"-config", file, "-workers=false"}, nil)
	c := newCaller(t, front.base)
	q, err := queue.Open(t.Context(), queue.Options{URL: "redis://" + redis.Addr + "/0", Routes: []string{"email"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	waiting := func() (n int) {
		ds, err := q.Depth(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range ds {
			n += d.Pending
		}
		return n
	}
	began := time.Now()
	for i := range 5 {
		c.must(http.MethodPost, "/v1/notifications", fmt.Sprintf(`{"to":[{"email":"u%d@example.com"}],"content":{"title":"wiped"}}`, i), nil, http.StatusAccepted)
	}
	eventually(t, time.Minute, "five wakes in the queue", func() bool { return waiting() == 5 })
	redis.FlushAll()
	eventually(t, time.Minute, "five wakes in the queue again", func() bool { return waiting() == 5 })
	if took := time.Since(began); took > core.DispatchTimeout {
		t.Errorf("they were back after %v, by their alarm clocks", took)
	}
	if err := front.interrupt(); err != nil {
		t.Errorf("front: %v", err)
	}
}

// TestLostWakes: a wake that somebody took out of the queue and died with is back there long before the alarm
// clock behind it rings; one that waits for a worker is not made anew.
func TestLostWakes(t *testing.T) {
	t.Parallel()
	var back time.Duration
	var others int
	for range 3 { // the alarm clocks ring in real time, and the machine may be busy with something else once or twice
		if back, others = lostWake(t); back < core.DispatchTimeout/2 && others == 1 {
			return
		}
	}
	t.Errorf("three times; the last time it was back after %v, and of the one that waits for a worker there were %d", back, others)
}

// lostWake loses a wake to one route. It returns how long after it was asked for it is back, and how many there are then
// to another route that was asked for one.
func lostWake(t *testing.T) (back time.Duration, others int) {
	t.Helper()
	redis := coretest.StartRedis(t)
	redis.Do("SET", "carillon:epoch", "not new") // or all that is queued would be due anyhow
	file := writeConfig(t, startSandbox(t), fmt.Sprintf("data: %s\nstore: %q\nqueue: redis://%s/0", t.TempDir(), coretest.Postgres(t), redis.Addr))
	front := startProcess(t, "orchestrator", []string{"-config", file, "-workers=false"}, nil)
	c := newCaller(t, front.base)
	ask := func(kind, address string) {
		c.must(http.MethodPost, "/v1/notifications", fmt.Sprintf(`{"to":[{%q:%q}],"content":{"title":"lost"}}`, kind, address), nil, http.StatusAccepted)
	}
	q, err := queue.Open(t.Context(), queue.Options{URL: "redis://" + redis.Addr + "/0", Routes: []string{"email", "apns"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	pending := func(route string) (n int) {
		ds, err := q.Depth(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range ds {
			if d.Route == route {
				n += d.Pending
			}
		}
		return n
	}
	began := time.Now()
	ask("apns", hexToken(1))
	ask("email", "u@example.com")
	eventually(t, time.Minute, "both wakes in their queues", func() bool { return pending("email") >= 1 && pending("apns") >= 1 })
	redis.Do("DEL", "asynq:{email.normal}:pending")
	eventually(t, time.Minute, "the lost wake in the queue again", func() bool { return pending("email") >= 1 })
	back, others = time.Since(began), pending("apns")
	if err := front.interrupt(); err != nil {
		t.Errorf("front: %v", err)
	}
	return back, others
}
