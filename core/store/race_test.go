package store_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// race is a delivery that two processes on one PostgreSQL are about to change.
type race struct {
	*store.Store
	other *store.Store
	t     *testing.T
	db    *sql.DB
	a     *core.Acceptance
	wakes []core.Wake
}

// newRace records an acceptance of some deliveries, as alter has it.
func newRace(t *testing.T, n int, alter func(*core.Acceptance)) *race {
	t.Helper()
	url := coretest.Postgres(t)
	options := store.Options{URL: url, Room: func(core.Wake) int { return 1 }}
	r := &race{Store: open(t, options), other: open(t, options), t: t, db: raw(t, url)}
	for _, id := range []string{"ann", "bob"} {
		if _, err := r.PutRecipient(t.Context(), &core.Recipient{App: "shop", ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	r.a = acceptance(r.Store, n)
	for i := range r.a.Deliveries {
		r.a.Deliveries[i].MaxUnknown = 3
	}
	alter(r.a)
	rec, err := r.Record(t.Context(), r.a)
	if err != nil {
		t.Fatal(err)
	}
	r.wakes = rec.Wakes
	return r
}

func asIs(*core.Acceptance) {}

func (r *race) claim() (*core.Round, error) {
	return r.Claim(r.t.Context(), r.wakes[0], "w1", time.Minute)
}

// rounds claims all that is due.
func (r *race) rounds() (all []*core.Round) {
	r.t.Helper()
	for _, w := range r.wakes {
		if w.At.After(r.Now()) {
			continue
		}
		round, err := r.Claim(r.t.Context(), w, "w1", time.Minute)
		if err != nil || round == nil {
			r.t.Fatal(round, err)
		}
		all = append(all, round)
	}
	return all
}

// settlement has the service say one thing of a round.
func (r *race) settlement(round *core.Round, o providers.Outcome) *core.Settlement {
	st := &core.Settlement{Batch: round.Batch, Worker: "w1", At: round.Now}
	v := round.Deliveries[0].Apply(providers.Result{Outcome: o}, core.DefaultPolicy, st.At, 0)
	st.Verdicts = []core.Verdict{v}
	st.Results = []core.Attempt{{Delivery: v.Delivery.ID, Outcome: o, State: v.Delivery.State}}
	st.Split(st.At, false)
	return st
}

// tried has a first attempt end in one outcome.
func (r *race) tried(o providers.Outcome) {
	r.t.Helper()
	round, err := r.claim()
	if err != nil || round == nil {
		r.t.Fatal(round, err)
	}
	if stale, err := r.Settle(r.t.Context(), r.settlement(round, o)); err != nil || stale {
		r.t.Fatal(stale, err)
	}
}

// both starts two changes one after the other, each as soon as the one before waits for a lock, calls release, and
// waits until both have ended.
func (r *race) both(release func(), first, second func() error) {
	r.t.Helper()
	ended := make(chan error, 2)
	for i, do := range []func() error{first, second} {
		go func() { ended <- do() }()
		untilWaiting(r.t, r.db, i+1)
	}
	release()
	for range 2 {
		if err := <-ended; err != nil {
			r.t.Error(err)
		}
	}
}

func (r *race) cancel() error {
	_, err := r.other.Cancel(r.t.Context(), "shop", r.a.Notification.ID)
	return err
}

func (r *race) delivered() error {
	_, err := r.other.Receipt(r.t.Context(), "mail", providers.Receipt{ID: r.a.Deliveries[0].ID.String(), Event: providers.EventDelivered})
	return err
}

// is checks what became of the delivery, and whether it is to be cancelled.
func (r *race) is(state core.State, cancelling bool) {
	r.t.Helper()
	ds, _, err := r.Deliveries(r.t.Context(), "shop", r.a.Notification.ID, core.Page{})
	if err != nil || len(ds) != 1 {
		r.t.Fatal(ds, err)
	}
	marked, err := r.Cancelling(r.t.Context(), ds[0].Batch)
	if err != nil {
		r.t.Fatal(err)
	}
	type is struct {
		State      core.State
		Cancelling bool
	}
	if diff := cmp.Diff(is{state, cancelling}, is{ds[0].State, len(marked) > 0}); diff != "" {
		r.t.Error(diff)
	}
}

// TestReceiptBeforeCancel: what a receipt ends while somebody who cancels waits for it stays as it ended.
func TestReceiptBeforeCancel(t *testing.T) {
	t.Parallel()
	r := newRace(t, 1, asIs)
	r.tried(providers.Unknown)
	release := lockedBy(t, r.db, "SELECT 1 FROM deliveries FOR UPDATE")
	r.both(release, func() error {
		_, err := r.Receipt(t.Context(), "mail", providers.Receipt{ID: r.a.Deliveries[0].ID.String(), Event: providers.EventDelivered})
		return err
	}, r.cancel)
	r.is(core.Delivered, false)
}

// TestClaimBeforeCancel: who cancels waits for a claim of another process, and marks what that has taken: it is on the
// wire, and nobody may say that it is not.
func TestClaimBeforeCancel(t *testing.T) {
	t.Parallel()
	r := newRace(t, 1, asIs)
	release := lockedBy(t, r.db, "LOCK TABLE rounds IN SHARE MODE")
	var round *core.Round
	r.both(release, func() (err error) {
		round, err = r.claim()
		return err
	}, r.cancel)
	if round == nil || len(round.Deliveries) != 1 {
		t.Fatalf("the claim took %+v", round)
	}
	r.is(core.Pending, true)
}

// TestReceiptDuringSettlement: a receipt that comes while the settlement of its attempt is being written waits for it,
// and is not lost: neither would else see the other.
func TestReceiptDuringSettlement(t *testing.T) {
	t.Parallel()
	r := newRace(t, 1, asIs)
	round, err := r.claim()
	if err != nil || round == nil {
		t.Fatal(round, err)
	}
	release := lockedBy(t, r.db, "LOCK TABLE rounds IN SHARE MODE")
	r.both(release, func() error {
		_, err := r.Settle(t.Context(), r.settlement(round, providers.Accepted))
		return err
	}, r.delivered)
	r.is(core.Delivered, false)
}

// TestCancelFollowsMoves: deliveries may move to another batch while who cancels them waits for theirs. It waits for the
// other one too, for a claim may have that.
func TestCancelFollowsMoves(t *testing.T) {
	t.Parallel()
	r := newRace(t, 1, asIs)
	from, to := r.a.Deliveries[0].Batch, core.NewID(r.Now())
	ctx := t.Context()
	r.exec(r.db, `INSERT INTO batches (id, app, route, lane, state, fence, due_at, run_at)
		SELECT $2, app, route, lane, state, fence, due_at, run_at FROM batches WHERE id = $1`, from[:], to[:])
	claiming, moving := r.begin(), r.begin()
	r.exec(claiming, "UPDATE batches SET state = 3, fence = fence + 1 WHERE id = $1", to[:])
	r.exec(moving, "SELECT 1 FROM batches WHERE id = $1 FOR UPDATE", from[:])
	r.exec(moving, "UPDATE deliveries SET batch_id = $1", to[:])
	ended := make(chan error, 1)
	go func() { ended <- r.cancel() }()
	untilWaiting(t, r.db, 1)
	var pid int
	if err := claiming.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&pid); err != nil {
		t.Fatal(err)
	}
	if err := moving.Commit(); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for waits := 0; waits == 0; <-tick.C {
		if err := r.db.QueryRowContext(ctx, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'carillon' AND $1 = ANY(pg_blocking_pids(pid))", pid).Scan(&waits); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			t.Fatalf("it did not wait for who has the other batch: %v", err)
		default:
		}
	}
	if err := claiming.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	r.is(core.Pending, true)
}

// TestClaimOfFailedGroup: another process claims a batch between a group that fails and the claim's own try. It alone has
// the round then; what the group had read of it is not handed out.
func TestClaimOfFailedGroup(t *testing.T) {
	t.Parallel()
	r := newRace(t, 1, asIs)
	type result struct {
		round *core.Round
		err   error
	}
	theirs := make(chan result, 1)
	var theirRound *core.Round
	calls := 0
	mine, err := r.ClaimBeside(t.Context(), r.wakes[0], func() error {
		if calls++; calls == 1 {
			go func() {
				round, err := r.other.Claim(t.Context(), r.wakes[0], "w2", time.Minute)
				theirs <- result{round, err}
			}()
			untilWaiting(t, r.db, 1)
			return errors.New("this member has a fault")
		}
		got := <-theirs
		theirRound = got.round
		return got.err
	})
	if err != nil || calls != 2 {
		t.Fatalf("%v, after %d calls of the other member", err, calls)
	}
	if mine != nil || theirRound == nil {
		t.Errorf("rounds of two processes at once: %+v and %+v", mine, theirRound)
	}
}

func (r *race) begin() *sql.Tx {
	r.t.Helper()
	tx, err := r.db.BeginTx(r.t.Context(), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = tx.Rollback() })
	return tx
}

func (r *race) exec(on interface {
	ExecContext(ctx context.Context, q string, args ...any) (sql.Result, error)
}, q string, args ...any) {
	r.t.Helper()
	if _, err := on.ExecContext(r.t.Context(), q, args...); err != nil {
		r.t.Fatal(err)
	}
}

// TestCancelBeforeClaim: a claim waits for who cancels, and takes nothing that was cancelled, also where it knows the
// deliveries from their acceptance and only counts them.
func TestCancelBeforeClaim(t *testing.T) {
	t.Parallel()
	r := newRace(t, 1, asIs)
	if n := r.Recent(); n != 1 {
		t.Fatalf("%d deliveries are kept for their claim, want 1", n)
	}
	release := lockedBy(t, r.db, "SELECT 1 FROM deliveries FOR UPDATE")
	var round *core.Round
	r.both(release, r.cancel, func() (err error) {
		round, err = r.claim()
		return err
	})
	if round != nil {
		t.Errorf("the claim took %+v", round)
	}
	r.is(core.Cancelled, false)
}

// TestClaimBeforeFallback: a fallback that loses a step goes on with the next one, but leaves that where it is if a claim
// takes it in this moment: moved it would be sent twice.
func TestClaimBeforeFallback(t *testing.T) {
	t.Parallel()
	r := newRace(t, 2, func(a *core.Acceptance) {
		a.Notification.Mode, a.Notification.FallbackAfter = core.ModeFallback, time.Minute
		for i, channel := range []string{"push", "sms"} {
			d := &a.Deliveries[i]
			d.Channel, d.Route, d.Recipient, d.Ladder, d.Step = channel, channel, "ann", a.Deliveries[0].ID, i
		}
		a.Deliveries[1].Held, a.Deliveries[1].DueAt = core.HeldFallback, a.Notification.SendAt.Add(time.Minute)
	})
	claiming := r.begin()
	r.exec(claiming, "UPDATE batches SET state = 3, fence = fence + 1 WHERE route = 'sms'")
	ended := make(chan error, 1)
	go func() {
		ended <- r.PutPreferences(t.Context(), "shop", "ann", core.Preferences{"*": {"push": false}}, &core.Rules{})
	}()
	untilWaiting(t, r.db, 1)
	if err := claiming.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	ds, _, err := r.Deliveries(t.Context(), "shop", r.a.Notification.ID, core.Page{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]core.State{}
	for _, d := range ds {
		got[d.Route] = d.State
	}
	if diff := cmp.Diff(map[string]core.State{"push": core.Cancelled, "sms": core.Pending}, got); diff != "" {
		t.Error(diff)
	}
	if n := count(t, r.db, "SELECT count(*) FROM deliveries d JOIN batches b ON b.id = d.batch_id WHERE d.route = 'sms' AND b.state = 3"); n != 1 {
		t.Error("the claimed step was moved to another batch")
	}
}

// TestRelayLeavesLocked: a relay that looks for what is due, lapsed or lost leaves out, and does not wait for, what
// somebody else is changing: that would be taken by what it was before.
func TestRelayLeavesLocked(t *testing.T) {
	t.Parallel()
	r := newRace(t, 1, asIs)
	for name, c := range map[string]struct {
		set  string // of the batch
		take func() (int, error)
	}{
		"due": {"state = 1, run_at = 1", func() (int, error) {
			wakes, err := r.Due(t.Context(), "mail", providers.Normal, 10, nil)
			return len(wakes), err
		}},
		"lapsed": {"state = 3, run_at = 1", func() (int, error) {
			rounds, err := r.Lapsed(t.Context(), 10, time.Minute)
			return len(rounds), err
		}},
		"a stray": {"state = 1, run_at = 1", func() (int, error) {
			_, n, err := r.Strays(t.Context(), []string{"push"}, 10, time.Minute, time.Minute)
			return n, err
		}},
		"unclaimed": {"state = 2", func() (int, error) {
			return r.Unclaimed(t.Context(), core.RouteLane{Route: "mail", Lane: providers.Normal}, time.Nanosecond)
		}},
	} {
		now := r.Now().Add(core.DispatchTimeout / 2).UnixMicro()
		r.exec(r.db, "UPDATE batches SET run_at = $1", now)
		r.exec(r.db, "UPDATE batches SET "+c.set)
		release := lockedBy(t, r.db, "SELECT 1 FROM batches FOR UPDATE")
		if n, err := c.take(); n != 0 || err != nil {
			t.Errorf("%s: %d batches were taken from who has them, %v", name, n, err)
		}
		release()
		if n, err := c.take(); n != 1 || err != nil {
			t.Errorf("%s: %d batches were taken as nobody has them, %v", name, n, err)
		}
	}
}

// TestSweepWaitsForTakeover: who leads no more removes nothing, also where another takes over in this moment.
func TestSweepWaitsForTakeover(t *testing.T) {
	t.Parallel()
	r := newRace(t, 1, asIs)
	lease, ok, err := r.Acquire(t.Context(), "sweep", "a", time.Minute)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	taking := r.begin()
	r.exec(taking, "UPDATE leases SET fence = fence + 1")
	ended := make(chan error, 1)
	go func() {
		_, err := r.Sweep(t.Context(), lease, time.Hour, core.ID{})
		ended <- err
	}()
	untilWaiting(t, r.db, 1)
	if err := taking.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, core.ErrLeaseLost) {
		t.Errorf("error %v, want %v", err, core.ErrLeaseLost)
	}
}

// TestErasuresAtOnce: two who were skipped by one notification and are erased at once are both taken out of it.
func TestErasuresAtOnce(t *testing.T) {
	t.Parallel()
	r := newRace(t, 1, func(a *core.Acceptance) {
		a.Notification.Skipped = []core.Skip{{Recipient: "ann", Reason: core.SkipNoEndpoint}, {Recipient: "bob", Reason: core.SkipNoEndpoint}}
	})
	release := lockedBy(t, r.db, "SELECT 1 FROM notifications FOR UPDATE")
	r.both(release, func() error { return r.DeleteRecipient(t.Context(), "shop", "ann") },
		func() error { return r.other.DeleteRecipient(t.Context(), "shop", "bob") })
	n, err := r.Notification(t.Context(), "shop", r.a.Notification.ID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]core.Skip{{Reason: core.SkipNoEndpoint}, {Reason: core.SkipNoEndpoint}}, n.Skipped); diff != "" {
		t.Error(diff)
	}
}

// TestStepsRuledOutAtOnce: two devices of a fallback's step, each in a round as its recipient opted out of them, are
// settled as held by two processes at once. The later of the two sees what became of the other, and has the next step go.
func TestStepsRuledOutAtOnce(t *testing.T) {
	t.Parallel()
	r := newRace(t, 3, func(a *core.Acceptance) {
		a.Notification.Mode, a.Notification.FallbackAfter = core.ModeFallback, time.Minute
		for i, route := range []string{"phone", "tablet", "sms"} {
			d := &a.Deliveries[i]
			d.Channel, d.Route, d.Recipient, d.Ladder, d.Step = "push", route, "ann", a.Deliveries[0].ID, i/2
		}
		last := &a.Deliveries[2]
		last.Channel, last.Held, last.DueAt = "sms", core.HeldFallback, a.Notification.SendAt.Add(time.Minute)
	})
	rounds := r.rounds()
	if len(rounds) != 2 {
		t.Fatalf("%d rounds, want 2", len(rounds))
	}
	if err := r.PutPreferences(t.Context(), "shop", "ann", core.Preferences{"*": {"push": false}}, &core.Rules{}); err != nil {
		t.Fatal(err)
	}
	settle := func(s *store.Store, round *core.Round) func() error {
		return func() error {
			_, err := s.Settle(t.Context(), r.settlement(round, providers.Deferred))
			return err
		}
	}
	release := lockedBy(t, r.db, "LOCK TABLE rounds IN SHARE MODE")
	r.both(release, settle(r.Store, rounds[0]), settle(r.other, rounds[1]))
	for q, want := range map[string]int{
		"d.route <> 'sms' AND d.state = 6":                                       2,
		"d.route = 'sms' AND d.state = 1 AND b.due_at < n.created_at + 50000000": 1, // not at its time, a minute later
	} {
		if got := count(t, r.db, "SELECT count(*) FROM deliveries d JOIN batches b ON b.id = d.batch_id JOIN notifications n ON n.id = d.notification_id WHERE "+q); got != want {
			t.Errorf("%d have %s, want %d", got, q, want)
		}
	}
}

// TestClaimBeforeRequeue: a batch that is claimed while its wake is given up for lost stays with who claimed it, for as
// long as that has it.
func TestClaimBeforeRequeue(t *testing.T) {
	t.Parallel()
	r := newRace(t, 1, asIs)
	release := lockedBy(t, r.db, "LOCK TABLE rounds IN SHARE MODE")
	requeued := -1
	r.both(release, func() error {
		round, err := r.claim()
		if round == nil {
			t.Error("nothing was claimed")
		}
		return err
	}, func() (err error) {
		requeued, err = r.other.Requeue(t.Context())
		return err
	})
	if requeued != 0 {
		t.Errorf("%d batches are due again, want 0", requeued)
	}
	rounds, err := r.Lapsed(t.Context(), 10, time.Minute)
	if err != nil || len(rounds) > 0 {
		t.Errorf("%d rounds were given up before their time, %v", len(rounds), err)
	}
}
