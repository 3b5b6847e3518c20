package app_test

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

// The routes of a house: the shortest timeout that there may be.
const (
	houseTimeout = time.Second
	houseLease   = houseTimeout + core.LeaseSlack
	// recovery is how soon after the end of a fault all that was accepted before must be terminal.
	recovery = 15 * time.Second
)

// house is everything that a fault test runs: processes of ours, the servers they stand on, the world
// they deliver to, and a proxy between any two of these.
type house struct {
	t         *testing.T
	c         *caller
	rng       *rand.Rand // drawn from by the test's goroutine alone
	seed      uint64
	world     *sandbox.Sandbox
	hooks     *hooks
	members   []*member
	links     map[string]*coretest.Proxy // by "process/server"
	redis     *coretest.RedisServer      // nil: the queue is embedded
	pg        *coretest.PostgresServer   // nil: the store is SQLite
	disk      *coretest.Disk             // under the store; nil where none can be mounted
	ledger    *ledger
	campaigns *campaigns
	base      map[string]footprint // of each process, before the faults
	worst     time.Duration        // that a recovery took
}

// newHouse begins a house with its world; the seed is of the test's name.
func newHouse(t *testing.T) *house {
	t.Helper()
	seed := *faultSeed
	if seed == 0 {
		seed = rand.Uint64() >> 1 // fits the flag
	}
	t.Logf("faults are drawn from -fault.seed=%d", seed)
	name := fnv.New64a()
	name.Write([]byte(t.Name()))
	h := &house{t: t, seed: seed ^ name.Sum64(), links: map[string]*coretest.Proxy{}, base: map[string]footprint{}}
	h.rng = rand.New(rand.NewPCG(h.seed, 0))
	world, err := sandbox.Start(sandbox.Options{Dir: t.TempDir(), Seed: h.seed | 1, Capacity: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = world.Close() })
	h.world, h.hooks = world, startHooks(t, h.seed)
	h.link("all/webhook", h.hooks.addr) // an address is the same for all processes
	h.calm()
	h.ledger = &ledger{h: h, done: map[string]bool{}, refusals: map[int]int{}}
	h.campaigns = &campaigns{h: h, rng: rand.New(rand.NewPCG(h.seed, 1<<40)), over: make(chan struct{})}
	return h
}

// embeddedHouse is one process that keeps everything.
func embeddedHouse(t *testing.T, bin func() (string, error)) *house {
	t.Helper()
	h := newHouse(t)
	data := t.TempDir()
	if disk, err := coretest.SmallDisk(t, 384<<20); err == nil {
		h.disk, data = disk, filepath.Join(disk.Dir, "data")
	} else {
		t.Log("no small disk:", err)
	}
	h.join("solo", "orchestrator", bin, "data: "+data)
	return h.open()
}

// cluster is an orchestrator that only accepts, one that does everything and a worker, over Redis and
// PostgreSQL servers of their own.
func cluster(t *testing.T, bin func() (string, error)) *house {
	t.Helper()
	h := newHouse(t)
	dir := ""
	if disk, err := coretest.SmallDisk(t, 512<<20); err == nil {
		h.disk, dir = disk, filepath.Join(disk.Dir, "postgres")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	} else {
		t.Log("no small disk:", err)
	}
	h.redis, h.pg = coretest.StartRedis(t), coretest.StartPostgres(t, dir)
	h.join("front", "orchestrator", bin, "workers: false")
	h.join("both", "orchestrator", bin, "")
	h.join("worker", "worker", bin, "")
	return h.open()
}

// join adds a process with a configuration of its own: each of its connections has its own proxy.
func (h *house) join(name, program string, bin func() (string, error), more string) {
	h.t.Helper()
	m := &member{name: name, program: program, bin: bin, dir: h.t.TempDir()}
	var err error
	if m.log, err = os.Create(filepath.Join(h.t.ArtifactDir(), name+".log")); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { m.log.Close() })
	address := coretest.FreeAddr(h.t)
	var b strings.Builder
	fmt.Fprintf(&b, "listen: %s\napi_key: %s\n%s\n", address, testKey, more)
	if program == "worker" {
		fmt.Fprintf(&b, "metrics_listen: %s\n", address)
	} else {
		m.api = "http://" + address
	}
	m.metrics = "http://" + address + "/metrics"
	if h.redis != nil {
		fmt.Fprintf(&b, "data: %s\nstore: %q\nqueue: redis://%s/0\n", h.t.TempDir(), h.pg.DSN(h.link(name+"/postgres", "unix:"+h.pg.Socket())), h.link(name+"/redis", h.redis.Addr))
	}
	patient := fmt.Sprintf("timeout: %s, ", houseTimeout) + "retry: {min: 200ms, max: 1s, max_attempts: 10000, max_unknown: 1000}, breaker: {min: 500ms, max: 2s}"
	fmt.Fprintf(&b, "routes:\n  websocket: {kind: websocket, %s, settings: {secret: 0123456789abcdef0123456789abcdef}}\n", patient)
	for kind, service := range serviceOf {
		text, _ := h.world.Settings(kind)
		var settings map[string]string
		if err := json.Unmarshal(text, &settings); err != nil {
			h.t.Fatal(err)
		}
		for _, key := range []string{"endpoint", "addr"} {
			if at, ok := settings[key]; ok {
				real := strings.TrimPrefix(at, "https://")
				settings[key] = strings.TrimSuffix(at, real) + h.link(name+"/"+string(service), real)
			}
		}
		text, err := json.Marshal(settings)
		if err != nil {
			h.t.Fatal(err)
		}
		isolation := "none"
		if kind == "apns" {
			isolation = "process"
		}
		fmt.Fprintf(&b, "  %s: {kind: %s, isolation: %s, %s, pool: {idle_timeout: 10s}, settings: %s}\n", kind, kind, isolation, patient, text)
	}
	plugin, err := webhookPlugin()
	if err != nil {
		h.t.Fatal(err)
	}
	b.WriteString(h.hooks.route(plugin, patient))
	m.config = filepath.Join(m.dir, "carillon.yaml")
	if err := os.WriteFile(m.config, []byte(b.String()), 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.members = append(h.members, m)
}

func (h *house) link(name, target string) string {
	p := coretest.StartProxy(h.t, target)
	h.links[name] = p
	return p.Addr
}

// open starts the processes, one after the other.
func (h *house) open() *house {
	h.t.Helper()
	for _, m := range h.members {
		h.t.Cleanup(m.stop)
		m.start()
		if err := m.await(h.t.Context()); err != nil {
			h.t.Fatal(err)
		}
	}
	h.c = newCaller(h.t, h.apis()[0])
	h.t.Cleanup(func() {
		if h.t.Failed() {
			for _, m := range h.members {
				h.t.Logf("%s said last:\n%s", m.name, m.tail())
			}
		}
	})
	return h
}

// apis are the URLs of those who accept.
func (h *house) apis() (urls []string) {
	for _, m := range h.members {
		if m.api != "" {
			urls = append(urls, m.api)
		}
	}
	return urls
}

// member is one process. It is started again whenever it ends, as systemd would do, unless it is held.
type member struct {
	name, program string
	bin           func() (string, error)
	config, dir   string
	api, metrics  string
	log           *os.File    // what all of its processes say; go test's -artifacts keeps it
	kills         []time.Time // of its isolated providers, of late; of the test's goroutine alone

	mu     sync.Mutex
	p      *process
	held   bool
	crash  string // CARILLON_CRASH of the next start
	starts int
	ended  chan struct{} // closed when it is held and gone
}

// start starts the process unless it is kept running already, by the end of another fault, and returns it as
// it is at first.
func (m *member) start() *process {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.p != nil && !m.held {
		return m.p
	}
	m.held, m.ended, m.p = false, make(chan struct{}), m.launch()
	go m.supervise(m.p, m.ended)
	return m.p
}

func (m *member) supervise(p *process, ended chan<- struct{}) {
	defer close(ended)
	for {
		<-p.done
		pause(context.Background(), 100*time.Millisecond)
		m.mu.Lock()
		if m.held {
			m.mu.Unlock()
			return
		}
		p = m.launch()
		m.p = p
		m.mu.Unlock()
	}
}

func (m *member) launch() *process {
	dir, err := m.bin()
	if err != nil {
		panic(err) // nothing can be tested
	}
	cmd := exec.Command(filepath.Join(dir, m.program), "-config", m.config)
	cmd.Dir = m.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + m.dir}
	if m.crash != "" {
		cmd.Env = append(cmd.Env, "CARILLON_CRASH="+m.crash)
	}
	m.crash = ""
	m.starts++
	fmt.Fprintf(m.log, "--- start %d\n", m.starts)
	p := &process{}
	if err := p.launch(cmd, m.log); err != nil {
		panic(err)
	}
	return p
}

// now is the process as it is now.
func (m *member) now() *process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.p
}

// await waits until the process is up, whichever it is by then.
func (m *member) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if p := m.now(); p != nil {
			select {
			case <-p.up:
				return nil
			case <-p.done:
			case <-ctx.Done():
				return fmt.Errorf("%s is not up: %w\n%s", m.name, ctx.Err(), m.tail())
			}
		}
		pause(ctx, 20*time.Millisecond)
		if ctx.Err() != nil {
			return fmt.Errorf("%s is not up: %w\n%s", m.name, ctx.Err(), m.tail())
		}
	}
}

// stop is SIGKILL, and the process stays down until start.
func (m *member) stop() { m.end((*process).kill) }

// leave is Ctrl-C, and the process stays down until start. One that is not up yet may end as it likes.
func (m *member) leave() { m.end(func(p *process) { _ = p.interrupt() }) }

func (m *member) end(how func(*process)) {
	m.mu.Lock()
	m.held = true
	p, ended := m.p, m.ended
	m.mu.Unlock()
	if p != nil {
		how(p)
	}
	if ended != nil {
		<-ended
	}
}

// signal sends a signal to the process, and to its children if all is set.
func (m *member) signal(s syscall.Signal, all bool) {
	pid := m.now().cmd.Process.Pid
	if all {
		for _, child := range providersOf(pid) {
			_ = syscall.Kill(child, s)
		}
	}
	_ = syscall.Kill(pid, s)
}

// providersOf are the processes of isolated providers and plugins that a process has started.
func providersOf(pid int) (out []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for _, field := range strings.Fields(string(text)) {
			child, _ := strconv.Atoi(field)
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child))
			if strings.Contains(string(line), "\x00provider\x00") || strings.HasSuffix(string(line), "/webhook\x00") {
				out = append(out, child)
			}
		}
	}
	return out
}

// tail is what the process said last.
func (m *member) tail() string {
	text, err := os.ReadFile(m.log.Name())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// footprint is what a process holds.
type footprint struct{ goroutines, files, memory float64 }

// footprint asks the process itself.
func (m *member) footprint(ctx context.Context) (f footprint, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.metrics, nil)
	if err != nil {
		return f, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return f, err
	}
	defer resp.Body.Close()
	places := map[string]*float64{"go_goroutines": &f.goroutines, "process_open_fds": &f.files, "process_resident_memory_bytes": &f.memory}
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if at := places[name]; at != nil {
			if *at, err = strconv.ParseFloat(value, 64); err != nil {
				return f, fmt.Errorf("%s: %w", name, err)
			}
			delete(places, name)
		}
	}
	if len(places) > 0 {
		return f, fmt.Errorf("%s does not tell all of its footprint", m.name)
	}
	return f, nil
}

// within reports whether a process is back near its base: a tenth more, and what a few connections or
// the garbage between two collections come to.
func (f footprint) within(base footprint) bool {
	return f.goroutines <= base.goroutines*1.1+20 && f.files <= base.files*1.1+20 && f.memory <= base.memory*1.1+96<<20
}

// connections counts a process's TCP connections by the other end.
func (h *house) connections(m *member) map[string]int {
	pid := m.now().cmd.Process.Pid
	names := map[string]string{}
	for name, p := range h.links {
		_, port, _ := net.SplitHostPort(p.Addr)
		n, _ := strconv.Atoi(port)
		names[fmt.Sprintf("%04X", n)] = name
	}
	ours := map[string]bool{}
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, f := range files {
		to, _ := os.Readlink(f)
		ours[strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]")] = true
	}
	out := map[string]int{"files": len(files)}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 9 && ours[fields[9]] {
			_, port, _ := strings.Cut(fields[2], ":")
			out[cmp.Or(names[port], port)]++
		}
	}
	return out
}

func (f footprint) String() string {
	return fmt.Sprintf("%.0f goroutines, %.0f files, %.0f MiB", f.goroutines, f.files, f.memory/(1<<20))
}

// calm has the world misbehave as it always does: a tenth of all messages meets an error, one in a hundred
// a dropped connection.
func (h *house) calm() {
	h.t.Helper()
	script(h.t, h.world)
}

// measure notes what each process holds before the faults.
func (h *house) measure() {
	h.t.Helper()
	h.c.http.CloseIdleConnections()
	for _, m := range h.members {
		f, err := m.footprint(h.t.Context())
		if err != nil {
			h.t.Fatal(err)
		}
		h.base[m.name] = f
	}
}

// footprints waits until each process is back near its base.
func (h *house) footprints() {
	h.t.Helper()
	h.c.http.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	for _, m := range h.members {
		for {
			f, err := m.footprint(h.t.Context())
			if err == nil && f.within(h.base[m.name]) {
				h.t.Logf("%s: %v; before the faults %v", m.name, f, h.base[m.name])
				break
			}
			pause(ctx, 200*time.Millisecond)
			if ctx.Err() != nil {
				h.t.Errorf("%s holds %v after the faults, %v before; connections: %v; %v", m.name, f, h.base[m.name], h.connections(m), err)
				break
			}
		}
	}
}
