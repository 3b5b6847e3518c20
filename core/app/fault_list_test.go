package app_test

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

// fault is something that goes wrong for a while.
type fault struct {
	name   string
	strike func(h *house) blow
	// It lasts from min to max, drawn.
	min, max time.Duration
	kills    bool // processes of ours end, and with them all that they hold
}

// blow is a fault that has struck.
type blow struct {
	what string // what was drawn
	end  func() // puts right what the fault has spoilt
	// bites reports whether it has done harm that can be seen from outside of what it strikes; nil: it did as it struck.
	bites func() bool
	late  bool // that can be seen only when it is over
}

func nothing() {}

// never is of what could not strike at all, and proves nothing alone.
func never() bool { return false }

// Isolated providers of a process are killed so often within a time at the most: one that dies for the fifth time
// within a minute is quarantined for another, as it should be. One of these deaths may be by a missed ping.
const (
	maxKills    = 3
	killsWithin = time.Minute + 10*time.Second
)

// Of processes.
var (
	killAPI = fault{"kill -9 of the process that accepts", func(h *house) blow { return h.down(h.apiMember()) }, 200 * time.Millisecond, 2 * time.Second, true}
	killOne = fault{"kill -9 of a process that delivers", func(h *house) blow { return h.down(h.worker()) }, 0, 2 * time.Second, true}
	// killAll leaves nobody to find what is overdue.
	killAll = fault{"kill -9 of all processes", func(h *house) blow { return h.down(h.members...) }, 0, time.Second, true}
	// killRelays leaves one process alone to repair what the others left, and it does not deliver.
	killRelays = fault{"kill -9 of all processes but one", func(h *house) blow {
		alone := h.rng.IntN(len(h.members))
		return h.down(slices.Delete(slices.Clone(h.members), alone, alone+1)...)
	}, houseLease + time.Second, houseLease + 3*time.Second, true}
	// killLeader ends whoever relays for all; the others have to wait for the end of its lease, and to do without.
	killLeader   = fault{"kill -9 of the process that relays", leaderDown, 0, 2 * time.Second, true}
	killProvider = fault{"kill -9 of isolated providers", providersDown, time.Second, 2 * time.Second, false}
	stopWorker   = fault{"SIGSTOP for longer than a lease", stopped, houseLease + 500*time.Millisecond, houseLease + 3*time.Second, false}
	wrongClock   = fault{"a clock two hours off", misled, 2 * time.Second, 4 * time.Second, false}
)

// Of the servers below.
var (
	killRedis = fault{"kill -9 of Redis", func(h *house) blow {
		bites := h.spoilt("redis")
		h.redis.Kill()
		return blow{"", h.redis.Restart, bites, false}
	}, 500 * time.Millisecond, 4 * time.Second, false}
	flushAll  = fault{"FLUSHALL", flush, 0, time.Second, false}
	fullRedis = fault{"Redis out of memory", func(h *house) blow { return h.configure("OOM", "maxmemory", "1", "0") }, 2 * time.Second, 4 * time.Second, false}
	readonly  = fault{"Redis is a replica", func(h *house) blow {
		bites := h.refused("READONLY")
		h.redis.Do("REPLICAOF", "127.0.0.1", "1")
		return blow{"", func() { h.redis.Do("REPLICAOF", "NO", "ONE") }, bites, false}
	}, 2 * time.Second, 4 * time.Second, false}
	noReplicas = fault{"Redis misses its replicas", func(h *house) blow { return h.configure("NOREPLICAS", "min-replicas-to-write", "1", "0") }, time.Second, 3 * time.Second, false}
	loading    = fault{"Redis comes back with old data, loading", func(h *house) blow {
		h.redis.Reload(3 * time.Second)
		return blow{"", nothing, h.refused("LOADING"), false}
	}, 3 * time.Second, 4 * time.Second, false}
	hungRedis = fault{"Redis hangs", func(h *house) blow {
		h.redis.Pause()
		return blow{"", h.redis.Resume, h.grows(1, h.sum("redis", (*coretest.Proxy).Asked)), false}
	}, time.Second, 4 * time.Second, false}
	killPG = fault{"kill -9 of PostgreSQL", func(h *house) blow {
		bites := h.spoilt("postgres")
		h.pg.Kill()
		return blow{"", func() { h.pg.Restart(h.t) }, bites, false}
	}, 0, 3 * time.Second, false}
	fullDisk    = fault{"the store's disk is full", noRoom, time.Second, 3 * time.Second, false}
	undecodable = fault{"tasks that are none", poison, time.Second, 2 * time.Second, false}
)

// Of the connections between any two, and of the world.
var (
	cutLink    = fault{"a connection is cut", func(h *house) blow { return h.spoil((*coretest.Proxy).Cut) }, time.Second, 4 * time.Second, false}
	hungLink   = fault{"a connection passes nothing", func(h *house) blow { return h.spoil((*coretest.Proxy).Hang) }, time.Second, 5 * time.Second, false}
	muteLink   = fault{"a connection passes no answers", func(h *house) blow { return h.spoil((*coretest.Proxy).Mute) }, time.Second, 5 * time.Second, false}
	slowLink   = fault{"a connection is slow", func(h *house) blow { return h.spoil(slowed) }, 2 * time.Second, 5 * time.Second, false}
	resetLinks = fault{"all connections are reset", func(h *house) blow {
		bites := h.spoilt("")
		for _, p := range h.links {
			p.Reset()
		}
		return blow{"", nothing, bites, false}
	}, 0, time.Second, false}
	stall = fault{"a provider stalls", func(h *house) blow {
		s := h.service()
		h.script(s, sandbox.Script{Stall: 0.7, DropAfter: 0.1})
		return blow{string(s), h.calm, h.grows(5, func() int { return unanswered(h.world.Counts(s)) }), false}
	}, 2 * time.Second, 4 * time.Second, false}
	refuse = fault{"a provider refuses everything", func(h *house) blow {
		s := h.service()
		code := map[sandbox.Service]string{sandbox.APNs: "ServiceUnavailable", sandbox.FCM: "UNAVAILABLE", sandbox.SMTP: "421 4.3.2"}[s]
		h.script(s, sandbox.Script{Errors: map[string]float64{code: 1}})
		return blow{string(s), h.calm, h.grows(1, func() int { return int(h.world.Counts(s).Answers[code]) }), false}
	}, time.Second, 4 * time.Second, false}
	sameKey = fault{"the same key from many clients", twins, 0, time.Second, false}
)

// inOrder are faults that strike in this order when two come at once. Each does something with a server that a
// later one keeps from answering, or from starting again: nothing can be put into a Redis that takes nothing.
var inOrder = []*fault{&undecodable, &flushAll, &loading, &fullRedis, &readonly, &noReplicas, &hungRedis, &killRedis, &killPG, &fullDisk}

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

// drawn is how long a fault lasts this time.
func (f *fault) drawn(rng *rand.Rand) time.Duration {
	return f.min + time.Duration(rng.Int64N(int64(f.max-f.min)+1))
}
