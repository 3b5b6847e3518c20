package app_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

// fault is something that goes wrong for a while.
type fault struct {
	name string
	// strike begins it, and says what was drawn; end puts right what strike has spoilt.
	strike func(h *house) (what string, end func())
	// It lasts from min to max, drawn.
	min, max time.Duration
}

func nothing() {}

// Isolated providers of a process are killed so often within a time at the most: one that dies for the fifth time
// within a minute is quarantined for another, as it should be. One of these deaths may be by a missed ping.
const (
	maxKills    = 3
	killsWithin = time.Minute + 10*time.Second
)

// Of processes.
var (
	killAPI = fault{"kill -9 of the process that accepts", func(h *house) (string, func()) { return h.down(h.apiMember()) }, 200 * time.Millisecond, 2 * time.Second}
	killOne = fault{"kill -9 of a process that delivers", func(h *house) (string, func()) { return h.down(h.worker()) }, 0, 2 * time.Second}
	// killAll leaves nobody to find what is overdue: whoever relays is among them.
	killAll = fault{"kill -9 of all processes", func(h *house) (string, func()) {
		var ends []func()
		for _, m := range h.members {
			_, end := h.down(m)
			ends = append(ends, end)
		}
		return "all", func() {
			for _, end := range ends {
				end()
			}
		}
	}, 0, time.Second}
	// killRelays leaves one process alone to repair what the others left, and it does not deliver.
	killRelays = fault{"kill -9 of all processes but one", func(h *house) (string, func()) {
		alone := h.rng.IntN(len(h.members))
		var ends []func()
		for i, m := range h.members {
			if i != alone {
				_, end := h.down(m)
				ends = append(ends, end)
			}
		}
		return "all but " + h.members[alone].name, func() {
			for _, end := range ends {
				end()
			}
		}
	}, houseLease + time.Second, houseLease + 3*time.Second}
	killProvider = fault{"kill -9 of isolated providers", func(h *house) (string, func()) {
		m := h.worker()
		m.kills = slices.DeleteFunc(m.kills, func(at time.Time) bool { return time.Since(at) > killsWithin })
		if len(m.kills) == maxKills {
			return "none of " + m.name + ", whose were killed often of late", nothing
		}
		m.kills = append(m.kills, time.Now())
		pids := providersOf(m.now().cmd.Process.Pid)
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		return fmt.Sprintf("%d of %s", len(pids), m.name), nothing
	}, time.Second, 2 * time.Second}
	stopWorker = fault{"SIGSTOP for longer than a lease", func(h *house) (string, func()) {
		m, all := h.worker(), h.rng.IntN(2) == 0
		m.signal(syscall.SIGSTOP, all)
		return fmt.Sprintf("%s, its providers too: %t", m.name, all), func() { m.signal(syscall.SIGCONT, all) }
	}, houseLease + 500*time.Millisecond, houseLease + 3*time.Second}
	wrongClock = fault{"a clock two hours off", func(h *house) (string, func()) {
		m, by := h.members[h.rng.IntN(len(h.members))], []time.Duration{2 * time.Hour, -2 * time.Hour}[h.rng.IntN(2)]
		p := m.now()
		if err := coretest.ShiftClock(p.cmd.Process.Pid, by); err != nil {
			h.t.Log(err) // on another kind of machine it cannot be done
			return err.Error(), nothing
		}
		return fmt.Sprintf("%s by %v", m.name, by), func() {
			if err := coretest.ShiftClock(p.cmd.Process.Pid, 0); err != nil && p == m.now() {
				h.t.Error(err)
			}
		}
	}, 2 * time.Second, 4 * time.Second}
)

// Of the servers below.
var (
	killRedis = fault{"kill -9 of Redis", func(h *house) (string, func()) { h.redis.Kill(); return "", h.redis.Restart }, 500 * time.Millisecond, 4 * time.Second}
	flushAll  = fault{"FLUSHALL", func(h *house) (string, func()) { h.redis.FlushAll(); return "", nothing }, 0, time.Second}
	fullRedis = fault{"Redis out of memory", func(h *house) (string, func()) { return configure(h, "maxmemory", "1", "0") }, 2 * time.Second, 4 * time.Second}
	readonly  = fault{"Redis is a replica", func(h *house) (string, func()) {
		h.redis.Do("REPLICAOF", "127.0.0.1", "1")
		return "", func() { h.redis.Do("REPLICAOF", "NO", "ONE") }
	}, 2 * time.Second, 4 * time.Second}
	noReplicas  = fault{"Redis misses its replicas", func(h *house) (string, func()) { return configure(h, "min-replicas-to-write", "1", "0") }, time.Second, 3 * time.Second}
	loading     = fault{"Redis comes back with old data, loading", func(h *house) (string, func()) { h.redis.Reload(3 * time.Second); return "", nothing }, 3 * time.Second, 4 * time.Second}
	hungRedis   = fault{"Redis hangs", func(h *house) (string, func()) { h.redis.Pause(); return "", h.redis.Resume }, time.Second, 4 * time.Second}
	killPG      = fault{"kill -9 of PostgreSQL", func(h *house) (string, func()) { h.pg.Kill(); return "", func() { h.pg.Restart(h.t) } }, 0, 3 * time.Second}
	fullDisk    = fault{"the store's disk is full", func(h *house) (string, func()) { return h.fill() }, time.Second, 3 * time.Second}
	undecodable = fault{"tasks that are none", poison, time.Second, 2 * time.Second}
)

// Of the connections between any two, and of the world.
var (
	cutLink  = fault{"a connection is cut", func(h *house) (string, func()) { return h.spoil((*coretest.Proxy).Cut) }, time.Second, 4 * time.Second}
	hungLink = fault{"a connection passes nothing", func(h *house) (string, func()) { return h.spoil((*coretest.Proxy).Hang) }, time.Second, 5 * time.Second}
	muteLink = fault{"a connection passes no answers", func(h *house) (string, func()) { return h.spoil((*coretest.Proxy).Mute) }, time.Second, 5 * time.Second}
	slowLink = fault{"a connection is slow", func(h *house) (string, func()) {
		return h.spoil(func(p *coretest.Proxy) { p.Slow(300*time.Millisecond, 20_000) })
	}, 2 * time.Second, 5 * time.Second}
	resetLinks = fault{"all connections are reset", func(h *house) (string, func()) {
		for _, p := range h.links {
			p.Reset()
		}
		return "", nothing
	}, 0, time.Second}
	stall = fault{"a provider stalls", func(h *house) (string, func()) {
		s := h.service()
		if err := h.world.Script(s, sandbox.Script{Stall: 0.7, DropAfter: 0.1}); err != nil {
			h.t.Fatal(err)
		}
		return string(s), h.calm
	}, 2 * time.Second, 4 * time.Second}
	refuse = fault{"a provider refuses everything", func(h *house) (string, func()) {
		s := h.service()
		code := map[sandbox.Service]string{sandbox.APNs: "ServiceUnavailable", sandbox.FCM: "UNAVAILABLE", sandbox.SMTP: "421 4.3.2"}[s]
		if err := h.world.Script(s, sandbox.Script{Errors: map[string]float64{code: 1}}); err != nil {
			h.t.Fatal(err)
		}
		return string(s), h.calm
	}, time.Second, 4 * time.Second}
	sameKey = fault{"the same key from many clients", twins, 0, time.Second}
)

// inOrder are faults that strike in this order when two come at once. Each does something with a server that a
// later one keeps from answering, or from starting again: nothing can be put into a Redis that takes nothing.
var inOrder = []*fault{&undecodable, &flushAll, &loading, &fullRedis, &readonly, &noReplicas, &hungRedis, &killRedis, &killPG, &fullDisk}

// down kills a process and keeps it down until end.
func (h *house) down(m *member) (string, func()) {
	m.stop()
	return m.name, func() { m.start() }
}

// apiMember draws a process that accepts, worker one that delivers.
func (h *house) apiMember() *member {
	return h.drawMember(func(m *member) bool { return m.api != "" })
}

func (h *house) worker() *member {
	return h.drawMember(func(m *member) bool { return m.name != "front" })
}

func (h *house) drawMember(which func(*member) bool) *member {
	all := slices.DeleteFunc(slices.Clone(h.members), func(m *member) bool { return !which(m) })
	return all[h.rng.IntN(len(all))]
}

func (h *house) service() sandbox.Service {
	return []sandbox.Service{sandbox.APNs, sandbox.FCM, sandbox.SMTP}[h.rng.IntN(3)]
}

// stallAll has every service stall, so that rounds are under way.
func (h *house) stallAll() {
	for _, s := range serviceOf {
		if err := h.world.Script(s, sandbox.Script{Stall: 1}); err != nil {
			h.t.Fatal(err)
		}
	}
}

// spoil does something to the connections between two, drawn, or from all processes to one server.
func (h *house) spoil(how func(*coretest.Proxy)) (string, func()) {
	names := make([]string, 0, len(h.links))
	for name := range h.links {
		if _, server, _ := strings.Cut(name, "/"); !strings.HasPrefix(name, "front/") || server == "redis" || server == "postgres" {
			names = append(names, name) // who only accepts speaks to no service
		}
	}
	slices.Sort(names)
	chosen := []string{names[h.rng.IntN(len(names))]}
	if h.rng.IntN(3) == 0 {
		_, server, _ := strings.Cut(chosen[0], "/")
		chosen = slices.DeleteFunc(names, func(n string) bool { return !strings.HasSuffix(n, "/"+server) })
	}
	for _, name := range chosen {
		how(h.links[name])
	}
	return strings.Join(chosen, ", "), func() {
		for _, name := range chosen {
			h.links[name].Heal()
		}
	}
}

// configure sets a setting of Redis and sets it back.
func configure(h *house, setting, to, back string) (string, func()) {
	h.redis.Do("CONFIG", "SET", setting, to)
	return setting, func() { h.redis.Do("CONFIG", "SET", setting, back) }
}

// fill fills the disk that the store is on. A PostgreSQL that gave up is started again, as an operator
// would who made room.
func (h *house) fill() (string, func()) {
	if h.disk == nil {
		return "not here: it takes root to mount a small disk", nothing
	}
	h.disk.Fill(h.t)
	return "", func() {
		h.disk.Free(h.t)
		if h.pg != nil && !h.pg.Runs() {
			h.t.Log("PostgreSQL gave up on the full disk and is started again")
			h.pg.Restart(h.t)
		}
	}
}

// poison puts tasks into Redis that nobody can read, that are not ours, and that name no batch there is.
func poison(h *house) (string, func()) {
	task := func(kind, id, queue string, payload []byte) []byte {
		b := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), kind)
		b = protowire.AppendBytes(protowire.AppendTag(b, 2, protowire.BytesType), payload)
		b = protowire.AppendString(protowire.AppendTag(b, 3, protowire.BytesType), id)
		return protowire.AppendString(protowire.AppendTag(b, 4, protowire.BytesType), queue)
	}
	for i, kind := range []string{"apns", "fcm", "email"} {
		queue := kind + ".normal"
		id := func(what string) string { return fmt.Sprintf("%s-%d-%d", what, i, h.rng.Uint64()) }
		msgs := map[string][]byte{id("torn"): []byte("\xff\xfe\x00no protocol buffer")}
		for what, payload := range map[string]string{"other": "{", "blind": `{"b":"01890000-0000-7000-8000-000000000000","f":3}`, "empty": ""} {
			of := id(what)
			msgs[of] = task("batch", of, queue, []byte(payload))
		}
		strange := id("strange")
		msgs[strange] = task("email:welcome", strange, queue, []byte("\x80\x81"))
		for id, msg := range msgs {
			h.redis.Do("HSET", "asynq:{"+queue+"}:t:"+id, "msg", msg, "state", "pending", "pending_since", "1")
			h.redis.Do("LPUSH", "asynq:{"+queue+"}:pending", id)
		}
	}
	return "", nothing
}

// twins has 25 clients ask under each of a few keys at once. It does not wait for their answers: what else
// is amiss may keep the APIs down.
func twins(h *house) (string, func()) {
	for range 5 {
		h.ledger.mu.Lock()
		h.ledger.next++
		r := h.ledger.compose(h.ledger.next)
		h.ledger.mu.Unlock()
		h.ledger.running.Go(func() { h.ledger.crowd(r, 25) })
	}
	return "", nothing
}

// drawn is how long a fault lasts this time.
func (f *fault) drawn(rng *rand.Rand) time.Duration {
	return f.min + time.Duration(rng.Int64N(int64(f.max-f.min)+1))
}
