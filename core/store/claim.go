package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/crash"
)

// claim is a wake on its way to becoming a round.
type claim struct {
	wake   core.Wake
	worker string
	lease  time.Duration
	round  *core.Round
}

// Claim makes the wake's batch the caller's for the lease; the round is committed when it returns. It
// returns nil when there is nothing to do: a newer fence, a batch that is done or in other hands, one
// due later than core.EarlyWake from now, or one with nothing pending, which it closes. A round together with
// an error is the caller's too, but some of its contents could not be read: it is to be settled, and nothing
// of it sent. While the store is away they are asked for again, for as long as a lease without
// core.LeaseSlack lasts, and at least for half of that slack.
// When ctx ends first, what was claimed all the same is handed back: nothing of it counts as unknown.
func (s *Store) Claim(ctx context.Context, w core.Wake, worker string, lease time.Duration) (*core.Round, error) {
	c := &claim{wake: w, worker: worker, lease: lease}
	began := time.Now()
	if err := s.ride(ctx, &member{claim: c}); err != nil {
		return nil, s.fail("claim a batch", err)
	}
	if c.round == nil {
		return nil, nil
	}
	crash.At(crash.ClaimCommitted)
	// What the slack is for remains: to hold and settle what cannot be read.
	return c.round, s.readContents(ctx, c.round, max(lease-core.LeaseSlack-time.Since(began), core.LeaseSlack/2))
}

// How soon contents are asked for again while the store is away.
const (
	readFirst = 50 * time.Millisecond
	readLast  = time.Second
)

// readContents fills in the contents of a round that is committed. Nobody else may claim it until its lease is
// over, so a store that is away is asked again, for so long.
func (s *Store) readContents(ctx context.Context, r *core.Round, long time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, long)
	defer cancel()
	for wait := readFirst; ; wait = min(2*wait, readLast) {
		err := s.fillContents(ctx, r)
		if !errors.Is(err, core.ErrUnavailable) || errors.Is(err, errClosed) {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
	}
}

// fillContents leaves out what is gone or damaged: that costs those who share a batch with it nothing.
func (s *Store) fillContents(ctx context.Context, r *core.Round) error {
	r.Contents = make(map[core.ContentRef]*core.Content)
	var damaged error
	for i := range r.Deliveries {
		ref := r.Deliveries[i].Content
		if _, ok := r.Contents[ref]; ok {
			continue
		}
		switch c, err := s.content(ctx, ref); {
		case errors.Is(err, errPage):
			damaged = err
		case err != nil:
			return err
		case c != nil:
			r.Contents[ref] = c
		}
	}
	if damaged != nil {
		s.log.Error("contents cannot be read from the database; their deliveries fail", "batch", r.ID.String(), "error", damaged)
	}
	return nil
}

func (s *Store) claimAll(ctx context.Context, t tx, now time.Time, claims []*claim) error {
	if len(claims) == 0 {
		return nil
	}
	sets := make([][]any, len(claims))
	known := make([][]core.Delivery, len(claims))
	for i, c := range claims {
		known[i] = s.recent.take(c.wake.Batch)
		sets[i] = []any{c.wake.Batch[:], c.wake.Fence, micros(now.Add(c.lease)), micros(now.Add(core.EarlyWake)), int64(len(known[i]))}
	}
	held, err := readBrakes(ctx, t)
	if err != nil {
		return err
	}
	attempts := make([]int64, len(claims))
	err = t.queryMany(ctx, `UPDATE batches SET state = 3, run_at = $3, rounds = rounds + 1
		WHERE id = $1 AND fence = $2 AND state IN (1, 2) AND due_at <= $4
		RETURNING app, route, lane, due_at, parent, campaign, rounds,
			CASE WHEN $5 > 0 AND rounds = 1 THEN (SELECT count(*) FROM deliveries WHERE batch_id = batches.id AND state = 1) ELSE -1 END`, sets, func(i int, r row) error {
		c := claims[i]
		b := core.Batch{ID: c.wake.Batch, Fence: c.wake.Fence, State: core.BatchSending, RunAt: now.Add(c.lease)}
		var lane, pending int64
		if err := r.Scan(&b.App, &b.Route, &lane, stamp{&b.DueAt}, key{&b.Parent}, key{&b.Campaign}, &attempts[i], &pending); err != nil {
			return err
		}
		b.Lane = laneOf(lane)
		c.round = &core.Round{Batch: b, Now: now, LeaseEnd: b.RunAt}
		if pending == int64(len(known[i])) {
			c.round.Deliveries = known[i]
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("claim batches: %w", err)
	}
	var rounds, unread []*core.Round
	for _, c := range claims {
		if c.round != nil {
			rounds = append(rounds, c.round)
			if c.round.Deliveries == nil {
				unread = append(unread, c.round)
			}
		}
	}
	if err := loadPending(ctx, t, unread); err != nil {
		return err
	}
	var started [][]any
	var done []core.ID
	for i, c := range claims {
		switch {
		case c.round == nil:
		case len(c.round.Deliveries) == 0:
			done = append(done, c.round.ID)
			c.round = nil
		default:
			started = append(started, []any{c.round.ID[:], c.round.Fence, attempts[i], c.worker, micros(now)})
		}
	}
	if err := closeBatches(ctx, t, done); err != nil {
		return err
	}
	if err := t.insert(ctx, "rounds", "batch_id, fence, attempt, worker, started_at", started); err != nil {
		return fmt.Errorf("insert rounds: %w", err)
	}
	return held.note(ctx, t, rounds)
}

// closeBatches closes batches of the caller's that have nothing pending. One that is left without deliveries is removed:
// retention finds batches by their deliveries.
func closeBatches(ctx context.Context, t tx, ids []core.ID) error {
	if len(ids) == 0 {
		return nil
	}
	batches := map[core.ID]bool{}
	for _, id := range ids {
		batches[id] = true
	}
	if err := t.write(ctx, "UPDATE batches SET state = 4, fence = fence + 1 WHERE id = $1", sortedSets(batches)); err != nil {
		return fmt.Errorf("close batches: %w", err)
	}
	if err := forgetEmpty(ctx, t, batches); err != nil {
		return fmt.Errorf("remove empty batches: %w", err)
	}
	return nil
}

// loadPending fills in the deliveries of rounds that are still pending.
func loadPending(ctx context.Context, t tx, rounds []*core.Round) error {
	if len(rounds) == 0 {
		return nil
	}
	sets := make([][]any, len(rounds))
	for i, r := range rounds {
		sets[i] = []any{r.ID[:]}
	}
	const several = 16 // to begin with
	s := newRoundScan()
	err := t.queryMany(ctx, "SELECT "+roundColumns+" FROM deliveries WHERE batch_id = $1 AND state = 1 ORDER BY id", sets, func(i int, r row) error {
		if err := s.scan(r); err != nil {
			return err
		}
		b := &rounds[i].Batch
		s.d.Batch, s.d.App, s.d.Route = b.ID, b.App, b.Route
		if rounds[i].Deliveries == nil {
			rounds[i].Deliveries = make([]core.Delivery, 0, several)
		}
		rounds[i].Deliveries = append(rounds[i].Deliveries, s.d)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read pending deliveries: %w", err)
	}
	return nil
}

// brakes say which routes are paused and whether anybody is suppressed: mostly neither is so, and one statement tells.
type brakes struct {
	paused     map[string]bool
	suppressed bool
}

// readBrakes has brakes read by the time that the next statement's answer is there.
func readBrakes(ctx context.Context, t tx) (*brakes, error) {
	b := &brakes{paused: map[string]bool{}}
	err := t.read(ctx, "SELECT name FROM routes WHERE paused_at > 0 UNION ALL SELECT '' WHERE EXISTS (SELECT 1 FROM suppressions)", func(r row) error {
		var name string
		if err := r.Scan(&name); err != nil {
			return err
		}
		if name == "" { // no route's
			b.suppressed = true
			return nil
		}
		b.paused[name] = true
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read paused routes: %w", err)
	}
	return b, nil
}

// note notes at rounds that their route or campaign is paused, and at deliveries that they are suppressed.
func (b *brakes) note(ctx context.Context, t tx, rounds []*core.Round) error {
	if len(rounds) > 0 && b.suppressed {
		if err := markSuppressed(ctx, t, rounds); err != nil {
			return err
		}
	}
	campaigns := map[core.ID]bool{}
	for _, r := range rounds {
		r.Paused = b.paused[r.Route]
		if !r.Campaign.IsZero() {
			campaigns[r.Campaign] = true
		}
	}
	if len(campaigns) == 0 {
		return nil
	}
	err := t.queryMany(ctx, "SELECT id FROM campaigns WHERE id = $1 AND state = 4", sortedSets(campaigns), func(_ int, r row) error {
		var id core.ID
		err := r.Scan(key{&id})
		for _, round := range rounds {
			round.Paused = round.Paused || round.Campaign == id
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read paused campaigns: %w", err)
	}
	return nil
}

const deliveryColumns = `id, notification_id, batch_id, app, channel, kind, route, recipient, address, name, page_id, slot, state,
	attempts, unknowns, max_unknown, code, reason, provider_id, created_at, updated_at, expires_at`

// readColumns are deliveryColumns as they are read: the service's own id is in one of two columns.
var readColumns = strings.Replace(deliveryColumns, "provider_id", "CASE WHEN provider_id = '' THEN service_id ELSE provider_id END", 1)

// roundColumns are those that a round needs to know of a delivery that is pending, to be read by newRoundScan. The batch
// says its app and its route, and each column costs to read.
const roundColumns = `id, notification_id, channel, kind, recipient, address, name, page_id, slot, attempts, unknowns, max_unknown, code, reason,
	CASE WHEN provider_id = '' THEN service_id ELSE provider_id END, created_at, updated_at, expires_at, ladder, quiet`

// scanDelivery scans readColumns, and more columns behind them.
func scanDelivery(r row, more ...any) (core.Delivery, error) {
	s := newDeliveryScan()
	s.into = append(s.into, more...)
	err := s.scan(r)
	return s.d, err
}

// deliveryScan scans one delivery after the other, and where they go is said once.
type deliveryScan struct {
	d                                     core.Delivery
	slot, state, attempts, unknowns, most int64
	into                                  []any
}

func newDeliveryScan() *deliveryScan {
	s := &deliveryScan{}
	d := &s.d
	s.into = append(make([]any, 0, 24), key{&d.ID}, key{&d.Notification}, key{&d.Batch}, &d.App, &d.Channel, &d.Kind, &d.Route, &d.Recipient, &d.Address, &d.Name,
		key{&d.Content.Page}, &s.slot, &s.state, &s.attempts, &s.unknowns, &s.most, &d.Code, &d.Reason, &d.ProviderID,
		stamp{&d.CreatedAt}, stamp{&d.UpdatedAt}, stamp{&d.ExpiresAt})
	return s
}

func newRoundScan() *deliveryScan {
	s := &deliveryScan{state: int64(core.Pending)}
	d := &s.d
	s.into = []any{key{&d.ID}, key{&d.Notification}, &d.Channel, &d.Kind, &d.Recipient, &d.Address, &d.Name,
		key{&d.Content.Page}, &s.slot, &s.attempts, &s.unknowns, &s.most, &d.Code, &d.Reason,
		&d.ProviderID, stamp{&d.CreatedAt}, stamp{&d.UpdatedAt}, stamp{&d.ExpiresAt}, key{&d.Ladder}, &d.Quiet}
	return s
}

// scan scans a row into d.
func (s *deliveryScan) scan(r row) error {
	err := r.Scan(s.into...)
	d := &s.d
	d.Content.Slot, d.State, d.Attempts, d.Unknowns, d.MaxUnknown = int(s.slot), core.State(s.state), int(s.attempts), int(s.unknowns), int(s.most)
	return err
}
