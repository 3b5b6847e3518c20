package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
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
	// isolated is how many processes of providers and plugins one that delivers has.
	isolated = 2
	// idle is how long a pool of theirs keeps a connection that nobody uses.
	idle = 3 * time.Second
	// leaving is more than a process needs that is told to stop: its shutdown_timeout is 30 s.
	leaving = 45 * time.Second
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
	links     map[string]*coretest.Proxy // by "process/server"; "clients/process" for those who ask
	deck      []string                   // of the links, those whose turn to be spoilt is still to come
	redis     *coretest.RedisServer      // nil: the queue is embedded
	pg        *coretest.PostgresServer   // nil: the store is SQLite
	disk      *coretest.Disk             // under the store; nil where none can be mounted
	ledger    *ledger
	campaigns *campaigns
	base      map[string]footprint // of each process, before the faults
	heavy     map[string]bool      // those that hold more after them
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
	m := &member{t: h.t, name: name, program: program, bin: bin, dir: h.t.TempDir()}
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
		m.api = "http://" + h.link("clients/"+name, address)
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
		fmt.Fprintf(&b, "  %s: {kind: %s, isolation: %s, %s, pool: {idle_timeout: %s}, settings: %s}\n", kind, kind, isolation, patient, idle, text)
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
		ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
		err := m.await(ctx)
		cancel()
		if err != nil {
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
	t             *testing.T
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
		m.mu.Lock()
		held := m.held
		m.mu.Unlock()
		if !held {
			m.amiss(p)
		}
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

// amiss reports a process that ended by itself. One that cannot start may, as systemd starts it again, if it says why.
func (m *member) amiss(p *process) {
	exit := p.cmd.ProcessState
	select {
	case <-p.up:
	default:
		if exit.ExitCode() == 1 {
			return
		}
	}
	if !killed(p) {
		m.t.Errorf("%s ended by itself: %v\n%s", m.name, exit, m.tail())
	}
}

// killed reports whether a process that ended was killed as kill -9 does.
func killed(p *process) bool {
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
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

// leave is SIGTERM, and the process stays down until start. One that is not up yet may end as it likes. (Not SIGINT: where the
// test itself runs in the background of a shell, its processes ignore that until they ask for it.)
func (m *member) leave() {
	m.end(func(p *process) {
		up := false
		select {
		case <-p.up:
			up = true
		default:
		}
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
			if up && p.err != nil && !killed(p) { // by its crash point, a moment ago
				m.t.Errorf("%s was told to stop: %v\n%s", m.name, p.err, m.tail())
			}
		case <-time.After(leaving):
			m.t.Errorf("%s was told to stop and runs on after %v", m.name, leaving)
			p.kill()
		}
	})
}

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
