package app_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

// terminate is what a service manager does: SIGTERM. It returns how long the process took to end.
func (p *process) terminate(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(2 * time.Minute):
		t.Fatalf("it does not end\n%s", p.said())
	}
	if p.err != nil {
		t.Errorf("it ended with %v\n%s", p.err, p.said())
	}
	return time.Since(began)
}

// slow makes every service take its time to answer.
func slow(t *testing.T, world *sandbox.Sandbox, latency time.Duration) {
	t.Helper()
	for _, s := range serviceOf {
		if err := world.Script(s, sandbox.Script{Latency: latency}); err != nil {
			t.Fatal(err)
		}
	}
}

// settled waits until all that was acknowledged is terminal, and expects all of it sent once, with no
// outcome unknown.
func settled(t *testing.T, c *caller, world *sandbox.Sandbox, acked []string, each int) {
	t.Helper()
	for _, id := range acked {
		eventually(t, 2*time.Minute, "every delivery of "+id+" sent", func() bool {
			var v notification
			c.must(http.MethodGet, "/v1/notifications/"+id, nil, &v, http.StatusOK)
			return v.Counts.Sent == each
		})
		for _, d := range c.deliveries(id) {
			if d.Unknown != 0 || d.Attempts > 1 {
				t.Errorf("delivery %s has %d attempts, %d of them unknown", d.ID, d.Attempts, d.Unknown)
			}
		}
	}
	for name, s := range serviceOf {
		if d := world.Duplicates(s); len(d) > 0 {
			t.Errorf("%s received %d messages twice", name, len(d))
		}
	}
}

// TestTerminate: a process that is told to stop while it sends ends with 0 within its bound; nothing is
// lost, doubled or unknown, and the next one goes on.
func TestTerminate(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]func(t *testing.T) string{
		"embedded": func(*testing.T) string { return "" },
		"redis and postgres": func(t *testing.T) string {
			return fmt.Sprintf("store: %q\nqueue: redis://%s/0\n", coretest.Postgres(t), coretest.Redis(t))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			world := startSandbox(t)
			slow(t, world, 700*time.Millisecond)
			const bound = 20 * time.Second
			file := writeConfig(t, world, fmt.Sprintf("shutdown_timeout: %s\ndata: %s\n%s", bound, t.TempDir(), more(t)))
			p := startProcess(t, "orchestrator", []string{"-config", file}, nil)
			c := newCaller(t, p.base)
			var acked []string
			for i := range 60 {
				var got accepted
				c.must(http.MethodPost, "/v1/notifications", fmt.Sprintf(`{"to":[{"apns":%q},{"email":"u%d@example.com"}],"content":{"title":"stop"}}`, hexToken(i), i), &got, http.StatusAccepted)
				acked = append(acked, got.ID)
			}
			if err := world.Wait(t.Context(), sandbox.APNs, 1); err != nil { // it is in the middle of it
				t.Fatal(err)
			}
			if took := p.terminate(t); took > bound {
				t.Errorf("it took %s", took)
			}
			if strings.Contains(p.said(), "cut short") {
				t.Errorf("rounds were cut short:\n%s", p.said())
			}
			next := startProcess(t, "orchestrator", []string{"-config", file}, nil)
			settled(t, newCaller(t, next.base), world, acked, 2)
		})
	}
}

// TestTerminateBound: what does not finish within the bound is cut short and handed back: the process ends
// with 0 all the same, nothing is lost, and what has no answer is on record as unknown, once.
func TestTerminateBound(t *testing.T) {
	t.Parallel()
	world := startSandbox(t)
	if err := world.Script(sandbox.APNs, sandbox.Script{Stall: 1}); err != nil { // taken, and never answered
		t.Fatal(err)
	}
	const bound = 4 * time.Second
	file := writeConfig(t, world, fmt.Sprintf("shutdown_timeout: %s\ndata: %s", bound, t.TempDir()))
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(text), "timeout: 5s", "timeout: 60s")), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startProcess(t, "orchestrator", []string{"-config", file}, nil)
	c := newCaller(t, p.base)
	var acked accepted
	c.must(http.MethodPost, "/v1/notifications", fmt.Sprintf(`{"to":[{"apns":%q}],"content":{"title":"stop"}}`, hexToken(1)), &acked, http.StatusAccepted)
	if err := world.Wait(t.Context(), sandbox.APNs, 1); err != nil {
		t.Fatal(err)
	}
	if took := p.terminate(t); took > bound+2*time.Second { // and what a loaded machine takes to end a process
		t.Errorf("it took %s", took)
	}
	if !strings.Contains(p.said(), "cut short and handed back") {
		t.Errorf("it does not say so:\n%s", p.said())
	}
	if err := world.Script(sandbox.APNs, sandbox.Script{}); err != nil {
		t.Fatal(err)
	}
	c = newCaller(t, startProcess(t, "orchestrator", []string{"-config", file}, nil).base)
	eventually(t, time.Minute, "sent after all", func() bool {
		var v notification
		c.must(http.MethodGet, "/v1/notifications/"+acked.ID, nil, &v, http.StatusOK)
		return v.Counts.Sent == 1
	})
	if ds := c.deliveries(acked.ID); ds[0].Unknown != 1 {
		t.Errorf("%+v", ds)
	}
}

// balancer passes connections on to whichever of some addresses says that it is ready, in turn. It is a
// plain TCP one: it cannot send a request again, and a connection stays with whom it was given to.
type balancer struct {
	t       *testing.T
	l       net.Listener
	targets []string
	mu      sync.Mutex
	up      map[string]bool
	turn    int
	refusal string // the last answer of one that was not ready
}

const checkEvery = 50 * time.Millisecond

func startBalancer(t *testing.T, targets ...string) *balancer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{t: t, l: l, targets: targets, up: map[string]bool{}}
	t.Cleanup(func() { l.Close() })
	for _, target := range targets {
		go b.check(target)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go b.pass(c)
		}
	}()
	return b
}

// check asks a target whether it is ready, until the test ends.
func (b *balancer) check(target string) {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		select {
		case <-b.t.Context().Done():
			return
		case <-tick.C:
		}
		resp, err := client.Get("http://" + target + "/readyz")
		var text []byte
		if err == nil {
			text, _ = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		b.mu.Lock()
		if err == nil && resp.StatusCode != http.StatusOK {
			b.refusal = string(text)
		}
		b.up[target] = err == nil && resp.StatusCode == http.StatusOK
		b.mu.Unlock()
	}
}

func (b *balancer) ready(target string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.up[target]
}

func (b *balancer) pick() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	for range b.targets {
		b.turn++
		if target := b.targets[b.turn%len(b.targets)]; b.up[target] {
			return target
		}
	}
	return ""
}

func (b *balancer) pass(c net.Conn) {
	defer c.Close()
	out, err := net.Dial("tcp", b.pick())
	if err != nil {
		return
	}
	defer out.Close()
	go func() {
		_, _ = out.(*net.TCPConn).ReadFrom(c)
		_ = out.(*net.TCPConn).CloseWrite()
	}()
	_, _ = c.(*net.TCPConn).ReadFrom(out)
}

// rolling is load through a balancer: clients that keep one connection each, and count what fails.
type rolling struct {
	mu     sync.Mutex
	acked  []string
	failed []string
	busy   sync.WaitGroup
}

func (r *rolling) client(t *testing.T, url string, who int, stop <-chan struct{}) {
	c := newCaller(t, url)
	tick := time.NewTicker(40 * time.Millisecond)
	defer tick.Stop()
	for i := who * 100_000; ; i++ {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		var got accepted
		status, err := c.do(t.Context(), http.MethodPost, "/v1/notifications", fmt.Sprintf(`{"to":[{"apns":%q}],"content":{"title":"rolling"}}`, hexToken(i)), &got)
		r.mu.Lock()
		if err != nil || status != http.StatusAccepted {
			r.failed = append(r.failed, fmt.Sprintf("%d %v", status, err))
		} else {
			r.acked = append(r.acked, got.ID)
		}
		r.mu.Unlock()
	}
}

// TestRollingUpgrade replaces two orchestrators and a worker one by one under load, on a real Redis and
// PostgreSQL, behind a balancer that knows nothing but /readyz: no request fails, and nothing is lost,
// doubled or unknown.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
	world := startSandbox(t)
	slow(t, world, 100*time.Millisecond)
	file := writeConfig(t, world, fmt.Sprintf("drain_delay: 3s\nshutdown_timeout: 30s\ndata: %s\nstore: %q\nqueue: redis://%s/0", t.TempDir(), coretest.Postgres(t), coretest.Redis(t)))
	addresses := []string{coretest.FreeAddr(t), coretest.FreeAddr(t)}
	start := func(address string) *process {
		return startProcess(t, "orchestrator", []string{"-config", file, "-listen", address}, nil)
	}
	ps := []*process{start(addresses[0]), start(addresses[1])}
	worker := startProcess(t, "worker", []string{"-config", file}, nil)
	b := startBalancer(t, addresses...)
	bothUp := func() bool { return b.ready(addresses[0]) && b.ready(addresses[1]) }
	eventually(t, time.Minute, "both are ready", bothUp)

	var load rolling
	stop := make(chan struct{})
	for who := range 6 {
		load.busy.Go(func() { load.client(t, "http://"+b.l.Addr().String(), who, stop) })
	}
	for i, address := range addresses {
		if took := ps[i].terminate(t); took < 3*time.Second {
			t.Errorf("it ended after %s, before its drain delay", took)
		}
		ps[i] = start(address)
		eventually(t, time.Minute, "both are ready again", bothUp)
	}
	worker.terminate(t)
	worker = startProcess(t, "worker", []string{"-config", file}, nil)
	close(stop)
	load.busy.Wait()
	t.Logf("%d requests were taken", len(load.acked))
	if !strings.Contains(b.refusal, "stopping") {
		t.Errorf("/readyz said %q of the drain", b.refusal)
	}
	for _, why := range load.failed {
		t.Errorf("a request failed: %s", why)
	}
	settled(t, newCaller(t, ps[0].base), world, load.acked, 1)
	for _, p := range append(ps, worker) {
		p.terminate(t)
	}
}

// TestLeaderDies: when the process that leads is killed, another brings in what is due within a second or
// two, long before the dead one's lease is over.
func TestLeaderDies(t *testing.T) {
	t.Parallel()
	world := startSandbox(t)
	file := writeConfig(t, world, fmt.Sprintf("data: %s\nstore: %q\nqueue: redis://%s/0", t.TempDir(), coretest.Postgres(t), coretest.Redis(t)))
	leader := startProcess(t, "orchestrator", []string{"-config", file}, nil) // alone, so it leads
	c := newCaller(t, startProcess(t, "orchestrator", []string{"-config", file}, nil).base)
	const delay = 3 * time.Second
	began := time.Now()
	var got accepted
	c.must(http.MethodPost, "/v1/notifications", fmt.Sprintf(`{"to":[{"apns":%q}],"content":{"title":"due"},"delay":"%s"}`, hexToken(1), delay), &got, http.StatusAccepted)
	leader.kill()
	eventually(t, time.Minute, "it is sent", func() bool {
		var v notification
		c.must(http.MethodGet, "/v1/notifications/"+got.ID, nil, &v, http.StatusOK)
		return v.Counts.Sent == 1
	})
	if took := time.Since(began); took > delay+8*time.Second {
		t.Errorf("it took %s", took)
	}
}

// TestSecondProcess: a SQLite store belongs to one process. A second one ends with a line that says so and
// what to do, and after kill -9 of the first it goes on at once.
func TestSecondProcess(t *testing.T) {
	t.Parallel()
	world := startSandbox(t)
	if err := world.Script(sandbox.APNs, sandbox.Script{Errors: map[string]float64{"ServiceUnavailable": 1}}); err != nil {
		t.Fatal(err)
	}
	file := writeConfig(t, world, "data: "+t.TempDir())
	first := startProcess(t, "orchestrator", []string{"-config", file}, nil)
	var got accepted
	newCaller(t, first.base).must(http.MethodPost, "/v1/notifications", fmt.Sprintf(`{"to":[{"apns":%q}],"content":{"title":"kept"}}`, hexToken(1)), &got, http.StatusAccepted)
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	second := exec.CommandContext(t.Context(), filepath.Join(dir, "orchestrator"), "-config", file)
	second.Dir = t.TempDir()
	out, err := second.CombinedOutput()
	line := strings.TrimSpace(string(out))
	if err == nil || !strings.Contains(line, "another process has this data directory open") || !strings.Contains(line, "PostgreSQL") || strings.Contains(line, "\n") {
		t.Errorf("%v: %s", err, out)
	}
	first.kill()
	if err := world.Script(sandbox.APNs, sandbox.Script{}); err != nil {
		t.Fatal(err)
	}
	c := newCaller(t, startProcess(t, "orchestrator", []string{"-config", file}, nil).base)
	began := time.Now()
	eventually(t, time.Minute, "it is sent", func() bool {
		var v notification
		c.must(http.MethodGet, "/v1/notifications/"+got.ID, nil, &v, http.StatusOK)
		return v.Counts.Sent == 1
	})
	if took := time.Since(began); took > 8*time.Second { // a back-off of 2 s at most; a lease would take 10 s
		t.Errorf("it took %s", took)
	}
}
