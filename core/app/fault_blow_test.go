package app_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/lead"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

// biteWithin is how long a fault goes on beyond its time to have an effect, while clients go on asking.
const biteWithin = 10 * time.Second

// bitten waits for a fault's effect: one that has none proves nothing.
func (h *house) bitten(name string, b *blow) {
	h.t.Helper()
	for end, next := time.Now().Add(biteWithin), time.Now(); !b.bites(); pause(h.t.Context(), 20*time.Millisecond) {
		switch now := time.Now(); {
		case now.After(end):
			h.errorf("%s (%s) had no effect", name, b.what)
			return
		case now.After(next):
			next = now.Add(2 * time.Second)
			h.ledger.ask(burst)
		}
	}
}

// grows reports whether a count grows by so many from now on.
func (h *house) grows(by int, count func() int) func() bool {
	from := count()
	return func() bool { return count() >= from+by }
}

// sum adds a count of all proxies before a server, "" for all of them.
func (h *house) sum(server string, count func(*coretest.Proxy) int) func() int {
	return func() (n int) {
		for name, p := range h.links {
			if strings.HasSuffix(name, "/"+server) || server == "" {
				n += count(p)
			}
		}
		return n
	}
}

func (h *house) spoilt(server string) func() bool {
	return h.grows(1, h.sum(server, (*coretest.Proxy).Spoilt))
}

// refused reports whether Redis answers with an error of that name from now on.
func (h *house) refused(name string) func() bool {
	return h.grows(1, func() int { return h.redis.Refused(name) })
}

// tally adds the figures of all processes that answer.
func (h *house) tally(of func(map[string]float64) float64) (sum float64) {
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Second)
	defer cancel()
	for _, m := range h.members {
		if figures, _, err := m.figures(ctx); err == nil {
			sum += of(figures)
		}
	}
	return sum
}

// unanswered are messages that a service neither took nor refused.
func unanswered(c sandbox.Counts) int {
	n := int(c.Requests)
	for _, times := range c.Answers {
		n -= int(times)
	}
	return n
}

// down kills processes and keeps them down until end.
func (h *house) down(ms ...*member) blow {
	var names []string
	for _, m := range ms {
		m.stop()
		names = append(names, m.name)
	}
	return blow{strings.Join(names, ", "), func() {
		for _, m := range ms {
			m.start()
		}
	}, nil, false}
}

// leaderDown waits for a leader that lives: after the one before was killed there is none until its lease runs out.
func leaderDown(h *house) blow {
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*lead.DefaultTTL)
	defer cancel()
	for {
		holder, err := h.pg.Ask(ctx, "SELECT holder FROM leases WHERE name = 'relay'")
		for _, m := range h.members {
			if strings.HasSuffix(holder, ":"+strconv.Itoa(m.now().cmd.Process.Pid)) {
				return h.down(m)
			}
		}
		if pause(ctx, again); ctx.Err() != nil {
			h.errorf("nobody leads the relays but %q (%v)", holder, err)
			return blow{"nobody", nothing, never, false}
		}
	}
}

func providersDown(h *house) blow {
	m := h.worker()
	m.kills = slices.DeleteFunc(m.kills, func(at time.Time) bool { return time.Since(at) > killsWithin })
	if len(m.kills) == maxKills {
		return blow{"none of " + m.name + ", whose were killed often of late", nothing, nil, false}
	}
	m.kills = append(m.kills, time.Now())
	pids := providersOf(m.now().cmd.Process.Pid)
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	// Others take their place.
	return blow{fmt.Sprintf("%d of %s", len(pids), m.name), nothing, func() bool {
		now := providersOf(m.now().cmd.Process.Pid)
		return len(pids) > 0 && len(now) == isolated && !slices.ContainsFunc(now, func(pid int) bool { return slices.Contains(pids, pid) })
	}, false}
}

// stopped has a process stand still with rounds under way, so that others take them over, or it finds itself late.
func stopped(h *house) blow {
	m, all := h.worker(), h.rng.IntN(2) == 0
	h.stallAll()
	h.ledger.ask(burst)
	for end := time.Now().Add(5 * time.Second); !h.sending() && time.Now().Before(end); {
		pause(h.t.Context(), 20*time.Millisecond)
	}
	pause(h.t.Context(), houseTimeout/5) // of this process, too
	bites := h.overdue()
	m.signal(syscall.SIGSTOP, all)
	h.calm()
	return blow{fmt.Sprintf("%s, its providers too: %t", m.name, all), func() { m.signal(syscall.SIGCONT, all) }, bites, true}
}

// overdue reports whether a round lasts for longer than its lease from now on, by whoever took its batch over, by whoever
// had it, or by how long it took.
func (h *house) overdue() func() bool {
	return h.grows(1, func() int {
		return int(h.tally(func(figures map[string]float64) (n float64) {
			for series, value := range figures {
				switch {
				case series == `carillon_relay_total{what="lapsed"}`, strings.HasPrefix(series, "carillon_rounds_stale_total{"), strings.HasPrefix(series, "carillon_round_seconds_count{"):
					n += value
				case strings.HasPrefix(series, "carillon_round_seconds_bucket{") && strings.HasSuffix(series, `le="5"}`):
					n -= value
				}
			}
			return n
		}))
	})
}

func misled(h *house) blow {
	m, by := h.members[h.rng.IntN(len(h.members))], []time.Duration{2 * time.Hour, -2 * time.Hour}[h.rng.IntN(2)]
	p := m.now()
	switch err := coretest.ShiftClock(p.cmd.Process.Pid, by); {
	case errors.Is(err, errors.ErrUnsupported):
		return blow{err.Error(), nothing, nil, false}
	case err != nil:
		h.t.Log(err) // a process that has just ended, by another fault
		return blow{err.Error(), nothing, never, false}
	}
	return blow{fmt.Sprintf("%s by %v", m.name, by), func() {
		if err := coretest.ShiftClock(p.cmd.Process.Pid, 0); err != nil && p == m.now() {
			h.t.Error(err)
		}
	}, func() bool {
		ctx, cancel := context.WithTimeout(h.t.Context(), time.Second)
		defer cancel()
		_, at, err := m.figures(ctx)
		return err == nil && (time.Until(at)-by).Abs() < time.Minute
	}, false}
}

// flush waits until there is something to lose.
func flush(h *house) blow {
	const tasks = `local n = 0
		for _, key in ipairs(redis.call('KEYS', 'asynq:{*}:pending')) do n = n + redis.call('LLEN', key) end
		for _, key in ipairs(redis.call('KEYS', 'asynq:{*}:scheduled')) do n = n + redis.call('ZCARD', key) end
		return n`
	n := h.redis.Eval(tasks)
	for end := time.Now().Add(biteWithin / 2); n == 0 && time.Now().Before(end); n = h.redis.Eval(tasks) {
		h.ledger.ask(burst)
		pause(h.t.Context(), again)
	}
	h.redis.FlushAll()
	return blow{fmt.Sprintf("%d tasks", n), nothing, func() bool { return n > 0 }, false}
}

func (h *house) script(s sandbox.Service, script sandbox.Script) {
	h.t.Helper()
	if err := h.world.Script(s, script); err != nil {
		h.t.Fatal(err)
	}
}

// stallAll has every service stall, so that rounds are under way.
func (h *house) stallAll() {
	h.t.Helper()
	for _, s := range serviceOf {
		h.script(s, sandbox.Script{Stall: 1})
	}
}

func slowed(p *coretest.Proxy) { p.Slow(300*time.Millisecond, 20_000) }

// spoil does something to the connections between two, or now and then from all processes to one server. Of the pairs it
// takes one after the other, in an order drawn, so that none is left out for long.
func (h *house) spoil(how func(*coretest.Proxy)) blow {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(h.links)) {
		if _, server, _ := strings.Cut(name, "/"); !strings.HasPrefix(name, "front/") || server == "redis" || server == "postgres" {
			names = append(names, name) // who only accepts speaks to no service
		}
	}
	if len(h.deck) == 0 {
		for _, i := range h.rng.Perm(len(names)) {
			h.deck = append(h.deck, names[i])
		}
	}
	chosen := h.deck[:1:1]
	h.deck = h.deck[1:]
	if h.rng.IntN(3) == 0 {
		_, server, _ := strings.Cut(chosen[0], "/")
		chosen = slices.DeleteFunc(names, func(n string) bool { return !strings.HasSuffix(n, "/"+server) })
	}
	bites := h.grows(1, func() (n int) {
		for _, name := range chosen {
			n += h.links[name].Spoilt()
		}
		return n
	})
	for _, name := range chosen {
		how(h.links[name])
	}
	return blow{strings.Join(chosen, ", "), func() {
		for _, name := range chosen {
			h.links[name].Heal()
		}
	}, bites, false}
}

// configure sets a setting of Redis, which then refuses by an error of that name, and sets it back.
func (h *house) configure(refuses, setting, to, back string) blow {
	bites := h.refused(refuses)
	h.redis.Do("CONFIG", "SET", setting, to)
	return blow{setting, func() { h.redis.Do("CONFIG", "SET", setting, back) }, bites, false}
}

// noRoom fills the disk that the store is on, until nothing can be accepted any more. A PostgreSQL that gave up is started
// again, as an operator would who made room.
func noRoom(h *house) blow {
	if h.disk == nil {
		return blow{"not here: it takes root to mount a small disk", nothing, nil, false}
	}
	refused := h.grows(1, func() int {
		h.ledger.mu.Lock()
		defer h.ledger.mu.Unlock()
		return h.ledger.refusals[http.StatusServiceUnavailable]
	})
	h.disk.Fill(h.t)
	return blow{"", func() {
		h.disk.Free(h.t)
		if h.pg != nil && !h.pg.Runs() {
			h.t.Log("PostgreSQL gave up on the full disk and is started again")
			h.pg.Restart(h.t)
		}
	}, func() bool { return refused() || h.pg != nil && !h.pg.Runs() }, false}
}

// poison puts tasks into Redis that nobody can read, that are not ours, and that name no batch there is. It bites once
// the queues are rid of them.
func poison(h *house) blow {
	task := func(kind, id, queue string, payload []byte) []byte {
		b := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), kind)
		b = protowire.AppendBytes(protowire.AppendTag(b, 2, protowire.BytesType), payload)
		b = protowire.AppendString(protowire.AppendTag(b, 3, protowire.BytesType), id)
		return protowire.AppendString(protowire.AppendTag(b, 4, protowire.BytesType), queue)
	}
	var keys []any
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
			key := "asynq:{" + queue + "}:t:" + id
			h.redis.Do("HSET", key, "msg", msg, "state", "pending", "pending_since", "1")
			h.redis.Do("LPUSH", "asynq:{"+queue+"}:pending", id)
			keys = append(keys, key)
		}
	}
	return blow{fmt.Sprintf("%d of them", len(keys)), nothing, func() bool {
		return h.redis.Eval(`local n = 1
			for _, key in ipairs(ARGV) do if redis.call('HGET', key, 'state') == 'pending' then n = 2 end end
			return n`, keys...) == 1
	}, false}
}

// twins has 25 clients ask under each of a few keys at once. It does not wait for their answers: what else
// is amiss may keep the APIs down.
func twins(h *house) blow {
	for range 5 {
		h.ledger.mu.Lock()
		h.ledger.next++
		r := h.ledger.compose(h.ledger.next)
		h.ledger.mu.Unlock()
		h.ledger.running.Go(func() { h.ledger.crowd(r, 25) })
	}
	return blow{"", nothing, nil, false}
}
