package dispatch_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/providers"
)

// errDown is what a worker that died goes on with, errAway what a live one is told: that one asks again.
var (
	errDown = errors.New("the store is down")
	errAway = fmt.Errorf("%w: the connection broke", core.ErrUnavailable)
	// errUnread is what comes with a round that has no contents.
	errUnread = fmt.Errorf("read a page: %w", errAway)
)

// mishap is what goes wrong with one call of the store.
type mishap struct {
	before, after time.Duration // how long it takes until and after the commit
	refused       bool          // an error, nothing committed
	lost          bool          // an error, but it was committed
	diesBefore    bool          // the worker dies: the call never returns
	diesAfter     bool
	unread        bool // committed, and the contents of what was claimed cannot be read
}

func (f mishap) String() string {
	if f.refused {
		return "refused"
	}
	return "the worker died"
}

// memory keeps batches and deliveries by the rules that core/store's SQL has, and looks after every
// write whether the rules of docs/architecture.md hold.
type memory struct {
	mu         sync.Mutex
	batches    map[core.ID]*core.Batch
	deliveries map[core.ID]*core.Delivery
	claimed    map[core.ID][]core.ID // what a batch's current round consists of
	cancelling map[core.ID]bool
	paused     map[string]bool   // by route
	quiet      map[core.ID]bool  // the batch's current round began while its route was paused
	begun      map[core.ID]bool  // a worker claimed the batch since its last settlement
	unread     map[core.ID]bool  // nobody has the contents of the batch's current round
	fences     map[core.ID]int64 // the greatest that a batch has had
	settled    []core.Settlement
	late       int
	strays     int
	open       int
	idle       chan struct{} // closed when nothing is open any more
	end        chan struct{} // closed when the test is over: dead workers are let go
	ahead      time.Duration // of the processes' clocks the store's is so much
	mishap     func(op string, batch core.ID) mishap
	note       func(format string, args ...any) // writes a step down; batches in args are named for people
	violation  func(format string, args ...any)
}

func newMemory(violation func(string, ...any)) *memory {
	return &memory{batches: map[core.ID]*core.Batch{}, deliveries: map[core.ID]*core.Delivery{}, claimed: map[core.ID][]core.ID{},
		cancelling: map[core.ID]bool{}, paused: map[string]bool{}, quiet: map[core.ID]bool{}, begun: map[core.ID]bool{}, unread: map[core.ID]bool{}, fences: map[core.ID]int64{}, idle: make(chan struct{}), end: make(chan struct{}),
		violation: violation, note: func(string, ...any) {}, mishap: func(string, core.ID) mishap { return mishap{} }}
}

// now is the store's clock.
func (m *memory) now() time.Time { return time.Now().Add(m.ahead) }

// put records batches and their deliveries.
func (m *memory) put(ds []core.Delivery, bs ...core.Batch) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range bs {
		m.batches[b.ID], m.begun[b.ID] = &b, b.State == core.BatchSending
	}
	for _, d := range ds {
		m.deliveries[d.ID] = &d
		m.open++
	}
}

// call does a transaction with whatever goes wrong about it.
func (m *memory) call(op string, batch core.ID, tx func(now time.Time)) error {
	f := m.mishap(op, batch)
	m.pause(f.before)
	if f.refused || f.diesBefore { // who died goes on with nothing; a relay that did is begun again
		m.note("%s %v: nothing was committed (%s)", op, batch, f)
		if f.refused {
			return errAway
		}
		return errDown
	}
	m.mu.Lock()
	tx(m.now())
	m.look()
	m.mu.Unlock()
	if f.diesAfter {
		m.note("%s %v: committed, and the worker died", op, batch)
		return errDown
	}
	m.pause(f.after)
	if f.lost {
		m.note("%s %v: committed, and the reply was lost", op, batch)
		return errAway
	}
	if f.unread {
		return errUnread
	}
	return nil
}

func (m *memory) pause(d time.Duration) {
	if d > 0 {
		select {
		case <-time.After(d):
		case <-m.end:
		}
	}
}

// look checks what must hold after every write: each delivery that is not terminal is in one batch
// that is not done and has an alarm clock within reach; fences only grow.
func (m *memory) look() {
	for id, b := range m.batches {
		if b.Fence < m.fences[id] {
			m.violation("the fence of %s went from %d to %d", id, m.fences[id], b.Fence)
		}
		m.fences[id] = b.Fence
	}
	open := 0
	for id, d := range m.deliveries {
		if d.State != core.Pending {
			continue
		}
		open++
		b := m.batches[d.Batch]
		if b == nil || b.State == core.BatchDone {
			m.violation("delivery %s is pending in a batch that is not there or done: %+v", id, b)
		} else if b.RunAt.IsZero() || b.RunAt.After(m.now().Add(time.Hour)) {
			m.violation("delivery %s has its alarm clock at %s", id, b.RunAt)
		}
	}
	if open == 0 && m.open > 0 {
		m.note("nothing is left to do")
		close(m.idle)
	}
	if open > m.open {
		m.violation("%d deliveries are open, %d were", open, m.open)
	}
	m.open = open
}

func (m *memory) pending(batch core.ID) []core.Delivery {
	var ds []core.Delivery
	for _, d := range m.deliveries {
		if d.Batch == batch && d.State == core.Pending {
			ds = append(ds, *d)
		}
	}
	slices.SortFunc(ds, func(a, b core.Delivery) int { return cmp.Compare(a.ID.String(), b.ID.String()) })
	return ds
}

var batchStates = [...]string{"", "pending", "queued", "sending", "done"}

func (m *memory) Claim(_ context.Context, w core.Wake, worker string, lease time.Duration) (r *core.Round, err error) {
	err = m.call("claim", w.Batch, func(now time.Time) {
		b := m.batches[w.Batch]
		if b == nil {
			m.violation("a wake of batch %s, which was never recorded", w.Batch)
			return
		}
		if b.Fence != w.Fence || b.State > core.BatchQueued || b.DueAt.After(now.Add(core.EarlyWake)) {
			m.note("claim %v with fence %d: it is at %d, %s, due in %s", b.ID, w.Fence, b.Fence, batchStates[b.State], b.DueAt.Sub(now))
			return
		}
		b.State, b.RunAt = core.BatchSending, now.Add(lease)
		m.begun[b.ID] = true
		r = m.round(b, now)
		m.note("claim %v with fence %d: %d deliveries, paused %t", b.ID, w.Fence, len(m.claimed[b.ID]), m.paused[b.Route])
	})
	switch {
	case r != nil && errors.Is(err, errUnread):
		m.mu.Lock()
		defer m.mu.Unlock()
		m.note("claim %v: its contents cannot be read", w.Batch)
		m.unread[w.Batch], r.Contents = true, nil
		return r, err
	case err != nil && !errors.Is(err, errUnread):
		return nil, err
	}
	return r, nil
}

// round begins one for what is pending in a batch; without anything the batch is closed.
func (m *memory) round(b *core.Batch, now time.Time) *core.Round {
	ds := m.pending(b.ID)
	m.claimed[b.ID], m.quiet[b.ID], m.unread[b.ID] = nil, m.paused[b.Route], false
	if len(ds) == 0 {
		b.State = core.BatchDone
		b.Fence++
		return nil
	}
	for i := range ds {
		m.claimed[b.ID] = append(m.claimed[b.ID], ds[i].ID)
	}
	return &core.Round{Batch: *b, Now: now, LeaseEnd: b.RunAt, Paused: m.quiet[b.ID], Deliveries: ds, Contents: map[core.ContentRef]*core.Content{{}: {Title: "T"}}}
}

func (m *memory) Cancelling(_ context.Context, batch core.ID) (ids []core.ID, err error) {
	err = m.call("cancelling", batch, func(time.Time) {
		for _, id := range m.claimed[batch] {
			if m.cancelling[id] {
				ids = append(ids, id)
			}
		}
	})
	return ids, err
}

func (m *memory) Settle(_ context.Context, s *core.Settlement) (stale bool, err error) {
	err = m.call("settle", s.Batch.ID, func(time.Time) {
		b := m.batches[s.Batch.ID]
		if slices.ContainsFunc(m.settled, func(x core.Settlement) bool {
			return x.Batch.ID == s.Batch.ID && x.Batch.Fence == s.Batch.Fence && x.At.Equal(s.At)
		}) {
			m.note("settle %v with fence %d: it was kept before", b.ID, s.Batch.Fence)
			return
		}
		if stale = b.Fence != s.Batch.Fence || b.State != core.BatchSending; stale {
			m.note("settle %v with fence %d: stale, it is at %d", b.ID, s.Batch.Fence, b.Fence)
			m.late += len(s.Results)
			return
		}
		if s.Stay.Fence <= s.Batch.Fence {
			m.violation("a settlement under fence %d leaves the batch at %d", s.Batch.Fence, s.Stay.Fence)
		}
		*b = s.Stay
		for i := range s.Moves {
			moved := s.Moves[i].Batch
			if m.batches[moved.ID] != nil {
				m.violation("batch %s was made twice", moved.ID)
			}
			m.batches[moved.ID] = &moved
		}
		m.verdicts(s)
		m.begun[b.ID] = false
		m.settled = append(m.settled, *s)
	})
	return stale, err
}

// SettleAll settles one after the other: a seed has to repeat itself.
func (m *memory) SettleAll(ctx context.Context, all []*core.Settlement) (stale []bool, errs []error) {
	stale, errs = make([]bool, len(all)), make([]error, len(all))
	for i, s := range all {
		stale[i], errs[i] = m.Settle(ctx, s)
	}
	return stale, errs
}

// verdicts writes them: one for each delivery of the round, and none for one that is terminal.
func (m *memory) verdicts(s *core.Settlement) {
	var ids []core.ID
	for i := range s.Verdicts {
		v := &s.Verdicts[i]
		ids = append(ids, v.Delivery.ID)
		old := m.deliveries[v.Delivery.ID]
		if old.State != core.Pending {
			m.violation("delivery %s was %s and is settled again as %s", old.ID, old.State, v.Delivery.State)
		}
		if i < len(s.Results) {
			m.burnt(old, &v.Delivery, &s.Results[i])
			if !m.begun[s.Batch.ID] && !s.Results[i].None {
				m.violation("delivery %s was settled as %s though no worker had it", old.ID, s.Results[i].Outcome)
			}
			if m.unread[s.Batch.ID] && !s.Results[i].None {
				m.violation("delivery %s was settled as %s though its content could not be read", old.ID, s.Results[i].Outcome)
			}
		}
		if v.Held && m.batches[v.Delivery.Batch].DueAt.Before(v.DueAt) {
			m.violation("delivery %s is held till %s in a batch due at %s", old.ID, v.DueAt, m.batches[v.Delivery.Batch].DueAt)
		}
		d := v.Delivery
		if v.Held && m.cancelling[d.ID] {
			d.State = core.Cancelled
		}
		m.deliveries[d.ID] = &d
		m.note("settle %v: %v is %s %s, %d attempts, %d unknown, due at %s in %v", s.Batch.ID, d.ID, d.State, d.Code, d.Attempts, d.Unknowns, since(v.DueAt), d.Batch)
	}
	sort := func(a, b core.ID) int { return cmp.Compare(a.String(), b.String()) }
	slices.SortFunc(ids, sort)
	if want := m.claimed[s.Batch.ID]; !slices.Equal(ids, want) {
		m.violation("a round of %d deliveries was settled for %d", len(want), len(ids))
	}
	if len(s.Results) != len(s.Verdicts) {
		m.violation("%d verdicts and %d attempts on record", len(s.Verdicts), len(s.Results))
	}
}

// since is a time of a simulation, whose clock begins with the year 2000; zero stays so.
func since(at time.Time) time.Duration {
	if at.IsZero() {
		return 0
	}
	return at.Sub(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))
}

// burnt checks that an attempt costs what its outcome says, and nothing without one.
func (m *memory) burnt(old, now *core.Delivery, a *core.Attempt) {
	attempts, unknowns := 1, 0
	switch {
	case a.None, a.Outcome == providers.Throttled, a.Outcome == providers.Denied:
		attempts = 0
	case a.Outcome == providers.Unknown, a.Outcome > providers.Denied:
		attempts, unknowns = 0, 1
	}
	if now.Attempts != old.Attempts+attempts || now.Unknowns != old.Unknowns+unknowns {
		m.violation("%s after an attempt (none: %t): %d attempts and %d unknown became %d and %d", a.Outcome, a.None, old.Attempts, old.Unknowns, now.Attempts, now.Unknowns)
	}
}

// cancel does what core/store does: now what waits, at its settlement what is in a round.
func (m *memory) cancel(id core.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.deliveries[id]
	switch {
	case d.State != core.Pending:
	case m.batches[d.Batch].State == core.BatchSending:
		m.note("cancel %v: it is in a round", id)
		m.cancelling[id] = true
	default:
		m.note("cancel %v", id)
		d.State = core.Cancelled
		m.look()
	}
}

// pauseRoute pauses a route or lets it go on, for the rounds that begin from then on.
func (m *memory) pauseRoute(route string, paused bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note("route %s is paused: %t", route, paused)
	m.paused[route] = paused
}

func (m *memory) Overdue(context.Context) (due, unclaimed bool, err error) {
	err = m.call("overdue", core.ID{}, func(now time.Time) {
		for _, b := range m.batches {
			due = due || b.State != core.BatchDone && !b.RunAt.After(now)
			unclaimed = unclaimed || isUnclaimed(b, now, core.Unclaimed)
		}
	})
	return due, unclaimed, err
}

func isUnclaimed(b *core.Batch, now time.Time, longer time.Duration) bool {
	return b.State == core.BatchQueued && b.RunAt.After(now) && !b.RunAt.After(now.Add(core.DispatchTimeout-longer))
}

func (m *memory) Unclaimed(_ context.Context, on core.RouteLane, longer time.Duration) (n int, err error) {
	err = m.call("unclaimed", core.ID{}, func(now time.Time) {
		for _, b := range m.batches {
			if b.Route == on.Route && b.Lane == on.Lane && isUnclaimed(b, now, longer) {
				b.RunAt = now
				n++
			}
		}
	})
	return n, err
}

// overdue lists what is, of some states, the longest overdue first.
func (m *memory) overdue(now time.Time, limit int, want func(*core.Batch) bool) []*core.Batch {
	var bs []*core.Batch
	for _, b := range m.batches {
		if want(b) && !b.RunAt.After(now) {
			bs = append(bs, b)
		}
	}
	slices.SortFunc(bs, func(a, b *core.Batch) int {
		return cmp.Or(a.RunAt.Compare(b.RunAt), bytes.Compare(a.ID[:], b.ID[:])) // a map has no order of its own
	})
	return bs[:min(limit, len(bs))]
}

func (m *memory) Due(_ context.Context, route string, lane core.Lane, limit int, room func(string) int) (wakes []core.Wake, err error) {
	if limit <= 0 {
		return nil, fmt.Errorf("Due was asked for %d", limit)
	}
	err = m.call("due", core.ID{}, func(now time.Time) {
		if m.paused[route] {
			return
		}
		left := map[string]int{}
		for _, b := range m.overdue(now, len(m.batches), func(b *core.Batch) bool { return b.State <= core.BatchQueued && b.Route == route && b.Lane == lane }) {
			if _, asked := left[b.App]; !asked {
				left[b.App] = room(b.App)
			}
			if left[b.App] <= 0 || len(wakes) == limit {
				continue
			}
			left[b.App]--
			b.Fence++
			b.State, b.RunAt = core.BatchQueued, now.Add(core.DispatchTimeout)
			m.note("due %v: fence %d", b.ID, b.Fence)
			wakes = append(wakes, core.Wake{Batch: b.ID, Fence: b.Fence, App: b.App, Route: b.Route, Lane: b.Lane, At: b.DueAt})
		}
	})
	return wakes, err
}

func (m *memory) Lapsed(_ context.Context, limit int, lease time.Duration) (rounds []*core.Round, err error) {
	err = m.call("lapsed", core.ID{}, func(now time.Time) {
		for _, b := range m.overdue(now, limit, func(b *core.Batch) bool { return b.State == core.BatchSending }) {
			b.Fence++
			b.RunAt = now.Add(lease)
			m.note("lapsed %v: fence %d", b.ID, b.Fence)
			if r := m.round(b, now); r != nil {
				r.Unsent = !m.begun[b.ID]
				rounds = append(rounds, r)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return rounds, nil
}

func (m *memory) Strays(_ context.Context, routes []string, limit int, until, lease time.Duration) (rounds []*core.Round, n int, err error) {
	err = m.call("strays", core.ID{}, func(now time.Time) {
		for _, b := range m.overdue(now, limit, func(b *core.Batch) bool {
			return b.State <= core.BatchQueued && !slices.Contains(routes, b.Route)
		}) {
			n++
			b.RunAt = now.Add(until)
			if !slices.ContainsFunc(m.pending(b.ID), func(d core.Delivery) bool { return !d.ExpiresAt.After(now) }) {
				continue
			}
			b.Fence++
			b.State, b.RunAt = core.BatchSending, now.Add(lease)
			m.note("stray %v: fence %d", b.ID, b.Fence)
			rounds = append(rounds, m.round(b, now))
		}
		m.strays += n
	})
	if err != nil {
		return nil, 0, err
	}
	return rounds, n, nil
}

// sending holds a message that is handed to a provider against what is on record: it is in a round that
// is committed and whose lease holds, it may still go and is due, and it is of the attempt that it says.
// It returns the batch as that round claimed it.
func (m *memory) sending(msg *providers.Message) core.Batch {
	m.mu.Lock()
	defer m.mu.Unlock()
	id, err := core.ParseID(msg.ID)
	d := m.deliveries[id]
	if err != nil || d == nil {
		m.violation("a message was sent that is no delivery's")
		return core.Batch{}
	}
	b, now := m.batches[d.Batch], m.now()
	switch {
	case b.State != core.BatchSending || !now.Before(b.RunAt) || !slices.Contains(m.claimed[b.ID], id):
		m.violation("delivery %s was sent outside of a round on record: %+v", id, b)
	case d.State != core.Pending:
		m.violation("delivery %s was sent though it is %s", id, d.State)
	case m.unread[b.ID]:
		m.violation("delivery %s was sent without its content", id)
	case m.quiet[b.ID]:
		m.violation("delivery %s was sent in a round that began while its route was paused", id)
	case now.Before(b.DueAt):
		m.violation("delivery %s was sent %s early", id, b.DueAt.Sub(now))
	case !now.Before(msg.ExpiresAt):
		m.violation("delivery %s was sent %s after it had expired", id, now.Sub(msg.ExpiresAt))
	case msg.Attempt != d.Attempts+d.Unknowns+1:
		m.violation("delivery %s: attempt %d after %d and %d unknown", id, msg.Attempt, d.Attempts, d.Unknowns)
	}
	return *b
}

// states counts the deliveries by state.
func (m *memory) states() (c core.Counts) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.deliveries {
		c.Add(d.State, 1)
	}
	return c
}

// get is a delivery as it stands.
func (m *memory) get(id core.ID) core.Delivery {
	m.mu.Lock()
	defer m.mu.Unlock()
	return *m.deliveries[id]
}

// batch is a batch as it stands.
func (m *memory) batch(id core.ID) core.Batch {
	m.mu.Lock()
	defer m.mu.Unlock()
	return *m.batches[id]
}

// provider adapts functions.
type provider struct {
	deliver func(ctx context.Context, batch []providers.Message, report func(providers.Result)) error
	receive func(ctx context.Context, report func(providers.Receipt) error) error
}

func (p provider) Deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	return p.deliver(ctx, batch, report)
}

func (p provider) Receive(ctx context.Context, report func(providers.Receipt) error) error {
	return p.receive(ctx, report)
}

func (provider) Health(context.Context) providers.Health { return providers.Health{} }
func (provider) Close(context.Context) error             { return nil }
