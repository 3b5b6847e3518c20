package app_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/crash"
)

// The fault tests are one program: `go test ./core/app -run Fault`. docs/faults.md says how to run its long
// form.
var (
	faultN    = flag.Int("fault.n", 400, "notifications of TestFaultProviders, four deliveries each; the long form is 5000 (20,000 deliveries)")
	faultSeed = flag.Uint64("fault.seed", 0, "what the faults, their order, their length and the requests are drawn from; 0: drawn and printed")
	faultFor  = flag.Duration("fault.for", 0, "how long each test goes on with faults at random after it has met each of its own once; the long form is 10m")
	faultRate = flag.Int("fault.rate", 8, "notifications a second asked for while faults strike")
)

// burst is how many notifications are asked for at once as a fault strikes.
const burst = 20

// standstill is longer than any timer of a queue's that asks Redis for something, but the rarest.
const standstill = 9 * time.Second

// meet has one fault strike, waits until it has had an effect, for its end, and for everything accepted until then to be
// terminal.
func (h *house) meet(f *fault) {
	h.t.Helper()
	h.ledger.ask(burst)
	b, began := f.strike(h), time.Now()
	pause(h.t.Context(), f.drawn(h.rng))
	bitten := b.bites == nil || b.bites()
	if !bitten && !b.late {
		h.bitten(f.name, &b)
	}
	b.end()
	h.recover(f.name, b.what, time.Since(began))
	if !bitten && b.late {
		h.bitten(f.name, &b)
	}
}

// recover waits until every process is up, every API accepts again, and all that was acknowledged before is terminal.
func (h *house) recover(name, what string, lasted time.Duration) {
	h.t.Helper()
	began, moves := time.Now(), h.campaigns.moves.Load()
	ids := h.ledger.open()
	ctx, cancel := context.WithTimeout(h.t.Context(), recovery)
	defer cancel()
	var up []error
	for _, m := range h.members {
		up = append(up, m.await(ctx))
	}
	if err := errors.Join(errors.Join(up...), h.ledger.accepts(ctx), h.ledger.settle(ctx, ids), h.campaigns.getsOn(ctx, moves)); err != nil {
		h.errorf("%s (%s) for %v: not well within %v of its end: %v", name, what, lasted.Round(time.Millisecond), recovery, err)
		// What comes next is not to be blamed for this one.
		ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
		defer cancel()
		_ = h.ledger.settle(ctx, ids)
		h.ledger.giveUp(ids)
		return
	}
	took := time.Since(began)
	h.worst = max(h.worst, took)
	if took > recovery*2/3 {
		h.logf("what it waited for last: %s", h.ledger.story(h.ledger.waited))
	}
	h.logf("%s (%s) for %v: well after %v", name, what, lasted.Round(time.Millisecond), took.Round(time.Millisecond))
}

// logf notes what happened, and when: the logs of the processes tell the rest.
func (h *house) logf(format string, args ...any) {
	h.t.Helper()
	h.t.Log(time.Now().UTC().Format("15:04:05.000"), fmt.Sprintf(format, args...))
}

func (h *house) errorf(format string, args ...any) {
	h.t.Helper()
	h.logf(format, args...)
	h.t.Fail()
}

// warm lets everything run for a moment, as much at once as it will ever be, and notes what it holds: pools keep what they needed
// then. Whoever waits for Redis keeps a connection busy, and what stood still for a while finds all its timers due at once.
func (h *house) warm() {
	h.t.Helper()
	h.crowd()
	h.stallAll()
	h.ledger.ask(4 * burst)
	twins(h)
	if h.redis != nil {
		h.redis.Pause()
	}
	pause(h.t.Context(), 2*houseTimeout)
	if h.redis != nil {
		h.redis.Resume()
	}
	h.calm()
	for _, m := range h.members {
		m.signal(syscall.SIGSTOP, false)
	}
	pause(h.t.Context(), standstill)
	for _, m := range h.members {
		m.signal(syscall.SIGCONT, false)
	}
	h.ledger.running.Wait()
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	if err := h.ledger.settle(ctx, h.ledger.open()); err != nil {
		h.t.Fatal(err)
	}
	for name, f := range h.rest() {
		h.base[name] = f
	}
}

// load has clients ask, and campaigns run, until the function it returns is called.
func (h *house) load() (stop func()) {
	asking, telling := h.ledger.load(*faultRate), h.campaigns.load()
	return func() {
		telling()
		asking()
	}
}

// close ends the load and compares the ledgers.
func (h *house) close(stop func()) {
	h.t.Helper()
	stop()
	h.recover("the load", "ended", 0)
	ctx, cancel := context.WithTimeout(h.t.Context(), recovery)
	defer cancel()
	// What recover itself asked for, and the campaigns, which have nothing that is due later any more.
	if err := errors.Join(h.ledger.settle(ctx, h.ledger.open()), h.campaigns.settle(ctx)); err != nil {
		h.t.Error(err)
	}
	h.footprints()
	h.ledger.compare()
	for _, m := range h.members {
		m.panics()
		if h.heavy[m.name] {
			m.dump()
		}
	}
	h.t.Logf("the longest recovery took %v", h.worst.Round(time.Millisecond))
}

// face has each fault strike once, in an order drawn, and then, for as long as is asked, any of them, at times two
// at once. What ends processes comes first, and in the last third no more: what they leave behind has to be theirs.
func (h *house) face(goOn time.Duration, faults ...*fault) {
	h.t.Helper()
	h.warm()
	stop := h.load()
	for _, kills := range []bool{true, false} {
		for _, i := range h.rng.Perm(len(faults)) {
			if faults[i].kills == kills {
				h.meet(faults[i])
			}
		}
	}
	began := time.Now()
	for time.Since(began) < goOn && h.t.Context().Err() == nil {
		if time.Since(began) > goOn*2/3 {
			faults = slices.DeleteFunc(faults, func(f *fault) bool { return f.kills })
		}
		f := faults[h.rng.IntN(len(faults))]
		if second := faults[h.rng.IntN(len(faults))]; second != f && h.rng.IntN(3) == 0 {
			f = both(f, second)
		}
		h.meet(f)
	}
	h.close(stop)
}

// both is two faults at once; the first to begin is the last to end.
func both(a, b *fault) *fault {
	if slices.Index(inOrder, a) > slices.Index(inOrder, b) {
		a, b = b, a
	}
	return &fault{a.name + " and " + b.name, func(h *house) blow {
		one, two := a.strike(h), b.strike(h)
		both := blow{what: one.what + "; " + two.what, end: func() { two.end(); one.end() }, late: one.late || two.late}
		if one.bites != nil && two.bites != nil { // one may keep the other from being felt
			both.bites = func() bool { return one.bites() || two.bites() }
		}
		return both
	}, max(a.min, b.min), max(a.max, b.max), a.kills || b.kills}
}

// TestFault runs houses side by side, for what they do most is wait; fewer than there are processors, one of which
// is for the tests beside, for what is late by the machine's fault would look like what is late by ours.
func TestFault(t *testing.T) {
	t.Parallel()
	tests := map[string]func(*testing.T, time.Duration){
		"Embedded":       faultEmbedded,
		"Processes":      faultProcesses,
		"Servers":        faultServers,
		"PointsEmbedded": func(t *testing.T, goOn time.Duration) { faultPoints(embeddedHouse(t, crashing), goOn) },
		"PointsCluster":  func(t *testing.T, goOn time.Duration) { faultPoints(cluster(t, crashing), goOn) },
	}
	var houses sync.WaitGroup
	places := make(chan struct{}, max(1, runtime.GOMAXPROCS(0)-1))
	goOn := longest(t, slices.Collect(maps.Keys(tests)), cap(places))
	for name, test := range tests {
		houses.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			t.Run(name, func(t *testing.T) { test(t, goOn) })
		})
	}
	houses.Wait()
}

// longest is -fault.for, or what go test's own -timeout leaves for each of the houses that -run names, so many of
// them at a time: a program that is cut off says nothing.
func longest(t *testing.T, names []string, places int) time.Duration {
	t.Helper()
	const besides = 3 * time.Minute // each fault once, the start and the comparison
	deadline, ok := t.Deadline()
	if !ok || *faultFor == 0 {
		return *faultFor
	}
	if _, which, some := strings.Cut(flag.Lookup("test.run").Value.String(), "/"); some {
		if chosen, err := regexp.Compile(which); err == nil {
			names = slices.DeleteFunc(names, func(name string) bool { return !chosen.MatchString(name) })
		}
	}
	turns := max(1, (len(names)+places-1)/places)
	most := max(0, time.Until(deadline)/time.Duration(turns)-besides)
	if most < *faultFor {
		t.Logf("-timeout leaves each of %d houses %v, not -fault.for=%v", len(names), most.Round(time.Second), *faultFor)
	}
	return min(most, *faultFor)
}

// faultEmbedded: one process with SQLite and the embedded queue.
func faultEmbedded(t *testing.T, goOn time.Duration) {
	embeddedHouse(t, binaries).face(goOn, &killAll, &killProvider, &stopWorker, &fullDisk, &cutLink, &hungLink, &muteLink, &slowLink, &resetLinks, &stall, &refuse, &sameKey)
}

// faultProcesses: three processes over Redis and PostgreSQL; the processes are killed, stopped and misled.
func faultProcesses(t *testing.T, goOn time.Duration) {
	cluster(t, binaries).face(goOn, &killAPI, &killOne, &killAll, &killRelays, &killLeader, &killProvider, &stopWorker, &wrongClock, &sameKey, &stall)
}

// faultServers: the same, and the servers and the connections to them fail.
func faultServers(t *testing.T, goOn time.Duration) {
	cluster(t, binaries).face(goOn, &killRedis, &flushAll, &fullRedis, &readonly, &noReplicas, &loading, &hungRedis, &killPG, &fullDisk, &undecodable,
		&cutLink, &hungLink, &muteLink, &slowLink, &resetLinks)
}

// faultPoints kills a process at each numbered step of accept, claim, send, settle, a campaign's page and
// the relay.
func faultPoints(h *house, goOn time.Duration) {
	h.warm()
	stop := h.load()
	for began, first := time.Now(), true; first || time.Since(began) < goOn; first = false {
		for n, i := range h.rng.Perm(len(crash.Points)) {
			h.crash(crash.Points[i])
			if n%4 == 3 { // a lease has to run out
				h.recover("crashes", string(crash.Points[i])+" the last", 0)
			}
		}
	}
	h.close(stop)
}

// crash has a process come to its end at a step, drawn how often it passes it before.
func (h *house) crash(p crash.Point) {
	h.t.Helper()
	m, times := h.stepper(p), 1+h.rng.IntN(5)
	others, down := slices.DeleteFunc(slices.Clone(h.members), func(o *member) bool { return o == m }), (*member).stop
	switch p[:strings.Index(string(p), ".")] {
	case "relay": // something to repair, and nobody else to do it: rounds under way and wakes in the queue are lost
		times = 1
		h.stallAll()
		before := h.ledger.count()
		h.ledger.ask(3 * burst) // some of them due later, and so in the queue
		eventually(h.t, time.Minute, "they are acknowledged", func() bool { return h.ledger.count() >= before+3*burst })
		eventually(h.t, time.Minute, "rounds are under way", h.sending)
	case "expand":
		// Who plans a campaign rings its own doorbell first, so another orchestrator has no turn while there is that one.
		// It gives the campaign back as it leaves; else its lease would have to run out.
		others, down = slices.DeleteFunc(others, func(o *member) bool { return o.api == "" }), (*member).leave
	default:
		others = nil
	}
	for _, o := range others {
		down(o)
	}
	down(m)
	if h.redis != nil && p == crash.RelayTaken {
		h.redis.FlushAll()
	}
	h.calm()
	m.crash = fmt.Sprintf("%s@%d", p, times)
	began, doomed := time.Now(), m.start()
	deadline := time.After(time.Minute)
	for ended := false; !ended; {
		h.ledger.ask(burst)
		select {
		case <-doomed.done:
			ended = true
		case <-deadline:
			h.t.Fatalf("%s never came to step %s", m.name, p)
		case <-time.After(3 * time.Second):
		}
	}
	h.logf("%s ended at step %s the %d. time, after %v: %v", m.name, p, times, time.Since(began).Round(time.Millisecond), doomed.err)
	if !killed(doomed) {
		h.errorf("%s ended by something else than step %s:\n%s", m.name, p, m.tail())
	}
	for _, o := range others {
		o.start()
	}
}

// sending reports whether a round of a route in the world is under way.
func (h *house) sending() bool {
	var list struct {
		Data []struct {
			Kind  string
			Queue []struct{ Sending int }
		}
	}
	if status, err := h.c.do(h.t.Context(), http.MethodGet, "/v1/routes", nil, &list); err != nil || status != http.StatusOK {
		return false // it is just coming back
	}
	for _, r := range list.Data {
		for _, lane := range r.Queue {
			if r.Kind != "websocket" && lane.Sending > 0 {
				return true
			}
		}
	}
	return false
}

// stepper is a process that comes to a step.
func (h *house) stepper(p crash.Point) *member {
	switch {
	case len(h.members) == 1:
		return h.members[0]
	case p[:6] == "accept", p[:6] == "expand": // planning is an orchestrator's
		return h.apiMember()
	default:
		return h.worker()
	}
}
