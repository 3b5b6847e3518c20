package store

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/crash"
)

// member is one caller's part of a group commit. One of its first four fields is set.
type member struct {
	record *recording
	claim  *claim
	settle *settling
	run    func(tx) error
	guard  bool     // run may fail by its own rules: undo it alone
	of     *finding // the delivery that run is about, nil: none

	ctx  context.Context
	err  error
	done chan struct{}
	// decided says that it is settled whether the caller hears of the commit: it left before, or it waits for done.
	decided atomic.Bool
}

// decide settles whether the caller hears of the commit, and reports whether nobody had before.
func (m *member) decide() bool { return m.decided.CompareAndSwap(false, true) }

func (m *member) weight() int {
	switch {
	case m.record != nil:
		return len(m.record.a.Deliveries)
	case m.settle != nil:
		return len(m.settle.s.Verdicts)
	}
	return 1
}

// rideTimeout is how long a member waits on PostgreSQL, for the groups before it and its own: a server that hangs
// has every committer wait for it.
const rideTimeout = 10 * time.Second

var errLate = fmt.Errorf("%w: it did not answer within %v; the outcome is unknown", core.ErrUnavailable, rideTimeout)

// ride hands m to the next group and waits for its commit. When ctx ends first the outcome is unknown
// to the caller: the error is the context's, and m may still be committed. So it is after rideTimeout, with
// core.ErrUnavailable.
func (s *Store) ride(ctx context.Context, m *member) error {
	m.ctx, m.done = ctx, make(chan struct{})
	var late <-chan time.Time
	if s.aside != nil {
		t := time.NewTimer(rideTimeout)
		defer t.Stop()
		late = t.C
	}
	if !s.line.join(m) {
		return errClosed
	}
	var err error
	select {
	case <-m.done:
		return m.err
	case <-ctx.Done():
		err = ctx.Err()
	case <-late:
		err = errLate
	}
	if !m.decide() {
		<-m.done // it is committed, and its wakes are for this caller alone to pass on
		return m.err
	}
	return err
}

var errClosed = fmt.Errorf("%w: it is closed", core.ErrUnavailable)

// commitGroups commits one group after the other until the store closes. The next one forms while this
// one is being synced.
func (s *Store) commitGroups() {
	for group := s.line.gather(); group != nil; group = s.line.gather() {
		s.commit(group)
		s.line.done(group)
	}
}

// left reports whether the caller went away, so that nothing of m is to be begun.
func (m *member) left() bool {
	if m.err = m.ctx.Err(); m.err == nil && m.decided.Load() {
		m.err = errLate
	}
	return m.err != nil
}

// commit runs a group in one transaction. If that fails by one member's fault, each is tried alone, so
// that only the bad one fails. An error of the connection is everybody's: to try again could do twice
// what was done.
func (s *Store) commit(group []*member) {
	live := group[:0:0]
	for _, m := range group {
		if m.left() {
			close(m.done)
			continue
		}
		live = append(live, m)
	}
	if len(live) == 0 {
		return
	}
	// A group outlives any one member's context.
	ctx := context.Background()
	err := s.b.update(ctx, func(t tx) error { return s.apply(ctx, t, live) })
	if err == nil {
		handOver(live)
	}
	var unheard []*member
	for _, m := range live {
		switch {
		case err == nil:
		case len(live) == 1 || s.b.unavailable(err):
			m.err = err
		case m.left():
		default:
			one := []*member{m}
			if e := s.b.update(ctx, func(t tx) error { return s.apply(ctx, t, one) }); e != nil {
				m.err = e
			}
		}
		if m.err == nil && m.record != nil {
			s.keep(m.record)
		}
		if m.err == nil && m.claim != nil && !m.decide() && m.claim.round != nil {
			unheard = append(unheard, m)
		}
		close(m.done)
	}
	s.handBack(ctx, unheard)
}

// handBack settles the rounds of claims whose callers left during the commit: nobody has them, and nothing of them was
// sent. Left to their leases each of their messages would count as unknown, and one for at most once would fail. Where
// the store cannot do it they do.
func (s *Store) handBack(ctx context.Context, claims []*member) {
	if len(claims) == 0 {
		return
	}
	back := make([]*member, len(claims))
	for i, m := range claims {
		back[i] = &member{settle: newSettling(m.claim.unbegun(s.Now()))}
	}
	if err := s.b.update(ctx, func(t tx) error { return s.apply(ctx, t, back) }); err != nil {
		s.log.Warn("rounds that nobody waited for could not be handed back; their messages count as unknown when their leases end",
			"rounds", len(back), "error", err)
	}
}

// unbegun is the settlement of a round of which nothing was sent: all of it is held, and due as it was.
func (c *claim) unbegun(now time.Time) *core.Settlement {
	r := c.round
	until := now
	if r.DueAt.After(now) { // a wake may be early
		until = r.DueAt
	}
	st := &core.Settlement{Batch: r.Batch, Worker: c.worker, At: now}
	for i := range r.Deliveries {
		st.Add(r.Deliveries[i].Hold(core.CodeStopped, until, now), nil)
	}
	st.Split(now, false)
	return st
}

// handOver passes the wakes of acceptances whose callers left during the commit to another of the group: the batches
// may be of others who did not leave. One that was not recorded passes none on. Where everybody left, the relay
// finds the batches, seconds later; the same where members are tried alone, for those share no batch.
func handOver(group []*member) {
	var left []core.Wake
	var heir *recording
	for _, m := range group {
		switch r := m.record; {
		case r == nil:
		case !m.decide():
			left = append(left, r.out.Wakes...)
		case heir == nil && r.err == nil && !r.out.Replayed:
			heir = r
		}
	}
	if heir != nil {
		heir.out.Wakes = append(heir.out.Wakes, left...)
	}
}

// apply does what a group asks for, in an order that keeps two groups from waiting for each other:
// keys, batches, deliveries.
func (s *Store) apply(ctx context.Context, t tx, group []*member) error {
	var records []*recording
	var claims []*claim
	var settles []*settling
	var touched []core.ID
	for _, m := range group {
		m.err = nil
		switch {
		case m.record != nil:
			m.record.reset()
			records = append(records, m.record)
		case m.claim != nil:
			m.claim.round = nil
			claims, touched = append(claims, m.claim), append(touched, m.claim.wake.Batch)
		case m.settle != nil:
			m.settle.stale = false
			settles, touched = append(settles, m.settle), append(touched, m.settle.s.Batch.ID)
		}
	}
	runs, ahead, err := lookAhead(ctx, t, group)
	if err != nil {
		return err
	}
	now := s.Now()
	if err := s.recordAll(ctx, t, now, records); err != nil {
		return err
	}
	if len(records) > 0 {
		crash.At(crash.AcceptWritten)
	}
	// A settlement by itself locks its batch as it begins. A claim must not: what it reads would be of before it had to wait.
	if len(claims) > 0 || len(settles) > 1 || len(ahead) > 0 {
		if err := t.lock(ctx, append(touched, ahead...)); err != nil {
			return fmt.Errorf("lock batches: %w", err)
		}
	}
	if err := s.settleAll(ctx, t, settles); err != nil {
		return err
	}
	if len(settles) > 0 {
		crash.At(crash.SettleWritten)
	}
	if err := s.claimAll(ctx, t, now, claims); err != nil {
		return err
	}
	if len(claims) > 0 {
		crash.At(crash.ClaimWritten)
	}
	for _, m := range runs {
		if err := runAlone(ctx, t, m, len(group) == 1); err != nil {
			return err
		}
	}
	return nil
}

// runAlone runs a member's own statements; if they may fail by their own rules they are undone alone.
func runAlone(ctx context.Context, t tx, m *member, only bool) error {
	if !m.guard || only {
		return m.run(t)
	}
	if _, err := t.exec(ctx, "SAVEPOINT member"); err != nil {
		return err
	}
	if m.err = m.run(t); m.err != nil {
		if _, err := t.exec(ctx, "ROLLBACK TO member"); err != nil {
			return err
		}
	}
	_, err := t.exec(ctx, "RELEASE member")
	return err
}
