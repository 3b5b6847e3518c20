package store

import (
	"cmp"
	"context"
	"encoding/binary"
	"slices"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/providers"
)

// history collects the steps of one notification.
type history struct {
	steps      []core.Step
	deliveries map[core.ID]*core.Delivery
	batches    map[core.ID]*past
}

// past is a batch in the chain behind the deliveries: its rounds until a time are theirs.
type past struct {
	route  string
	parent core.ID
	until  time.Time // zero: to this day
}

// Timeline tells all that happened to a notification, in order, or core.ErrNotFound. Most of it is
// derived: from the notification, its deliveries, the rounds of their batches and of those these were
// split from, and the receipts.
func (s *Store) Timeline(ctx context.Context, app string, notification core.ID) ([]core.Step, error) {
	n, err := s.Notification(ctx, app, notification)
	if err != nil {
		return nil, err
	}
	h := &history{deliveries: map[core.ID]*core.Delivery{}, batches: map[core.ID]*past{}}
	h.steps = append(h.steps, core.Step{At: n.CreatedAt, What: core.StepAccepted})
	for i, skip := range n.Skipped {
		if i < core.MaxSkipShown {
			h.steps = append(h.steps, core.Step{At: n.CreatedAt, What: core.StepSkipped, Recipient: skip.Recipient, Channel: skip.Channel, Code: skip.Reason})
		}
	}
	if !n.CancelledAt.IsZero() {
		h.steps = append(h.steps, core.Step{At: n.CancelledAt, What: core.StepCancelled})
	}
	if n.Unresolved != "" {
		h.steps = append(h.steps, core.Step{At: n.UnresolvedAt, What: core.StepCancelled, Reason: n.Unresolved})
	}
	err = s.read(ctx, "read deliveries", "SELECT "+fullColumns+" FROM deliveries WHERE notification_id = $1 ORDER BY id", func(r row) error {
		d, err := scanFull(r)
		h.deliveries[d.ID] = &d
		h.batches[d.Batch] = &past{}
		h.steps = append(h.steps, core.Step{At: d.CreatedAt, Delivery: d.ID, What: core.StepResolved, Recipient: d.Recipient, Channel: d.Channel, Route: d.Route})
		if d.Held != "" {
			h.steps = append(h.steps, core.Step{At: d.CreatedAt, Delivery: d.ID, What: core.StepHeld, Recipient: d.Recipient, Channel: d.Channel, Route: d.Route, Code: d.Held, HeldTill: d.DueAt})
		}
		if d.State == core.Cancelled {
			step := core.Step{At: d.UpdatedAt, Delivery: d.ID, What: core.StepCancelled, Recipient: d.Recipient, Channel: d.Channel, Route: d.Route}
			if d.Code == core.CodeAcknowledged || d.Code == core.CodePreference {
				step.Code = d.Code
			}
			h.steps = append(h.steps, step)
		}
		return err
	}, notification[:])
	if err != nil {
		return nil, err
	}
	if err := s.chain(ctx, h); err != nil {
		return nil, err
	}
	if err := s.attempts(ctx, h); err != nil {
		return nil, err
	}
	if err := s.receipts(ctx, h, notification); err != nil {
		return nil, err
	}
	slices.SortStableFunc(h.steps, func(a, b core.Step) int { return cmp.Or(a.At.Compare(b.At), rank(a.What)-rank(b.What)) })
	return h.steps, nil
}

// rank orders the steps of one moment.
func rank(what string) int {
	i := slices.Index([]string{core.StepAccepted, core.StepSkipped, core.StepResolved, core.StepStarted}, what)
	if i < 0 {
		return 4
	}
	return i
}

// chain finds the batches that the deliveries' batches were split from. A batch's id tells when the
// split was: what its parent did afterwards is not its past.
func (s *Store) chain(ctx context.Context, h *history) error {
	var level []core.ID
	for id := range h.batches {
		level = append(level, id)
	}
	for len(level) > 0 {
		sets := make([][]any, len(level))
		for i := range level {
			sets[i] = []any{level[i][:]}
		}
		var next []core.ID
		err := s.b.queryMany(ctx, "SELECT route, parent FROM batches WHERE id = $1", sets, func(i int, r row) error {
			b := h.batches[level[i]]
			if err := r.Scan(&b.route, key{&b.parent}); err != nil || b.parent.IsZero() {
				return err
			}
			born := bornAt(level[i])
			p := h.batches[b.parent]
			switch {
			case p == nil:
				h.batches[b.parent] = &past{until: born}
				next = append(next, b.parent)
			case !p.until.IsZero() && p.until.Before(born):
				p.until = born
			}
			return nil
		})
		if err != nil {
			return s.fail("read batches", err)
		}
		level = next
	}
	return nil
}

// bornAt is the time in an id, a millisecond later: ids carry whole ones.
func bornAt(id core.ID) time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8])>>16) + 1).UTC()
}

func (s *Store) attempts(ctx context.Context, h *history) error {
	var ids []core.ID
	var sets [][]any
	for id := range h.batches {
		ids = append(ids, id)
		sets = append(sets, []any{id[:]})
	}
	err := s.b.queryMany(ctx, "SELECT attempt, worker, started_at, finished_at, results FROM rounds WHERE batch_id = $1", sets, func(i int, r row) error {
		b := h.batches[ids[i]]
		var started, finished time.Time
		var packed []byte
		base := core.Step{Route: b.route}
		if err := r.Scan(&base.Attempt, &base.Worker, stamp{&started}, stamp{&finished}, &packed); err != nil {
			return err
		}
		results, err := decodeResults(packed)
		if err != nil {
			return err
		}
		base.At = finished
		ours := h.add(base, results)
		if finished.IsZero() {
			ours = b.until.IsZero() || started.Before(b.until)
		}
		if ours && started != finished { // equal: the settlement of a round that had lapsed
			h.steps = append(h.steps, core.Step{At: started, What: core.StepStarted, Route: b.route, Worker: base.Worker, Attempt: base.Attempt})
		}
		return nil
	})
	if err != nil {
		return s.fail("read rounds", err)
	}
	err = s.b.queryMany(ctx, "SELECT worker, at, results FROM late_rounds WHERE batch_id = $1", sets, func(i int, r row) error {
		base := core.Step{Route: h.batches[ids[i]].route, What: core.StepLate}
		var packed []byte
		if err := r.Scan(&base.Worker, stamp{&base.At}, &packed); err != nil {
			return err
		}
		results, err := decodeResults(packed)
		h.add(base, results)
		return err
	})
	return s.fail("read late rounds", err)
}

// add turns those results that are of our deliveries into steps, and reports whether there were any.
func (h *history) add(base core.Step, results []core.Attempt) bool {
	ours := false
	for _, a := range results {
		d := h.deliveries[a.Delivery]
		if d == nil {
			continue
		}
		ours = true
		step := base
		step.Delivery, step.Channel = a.Delivery, d.Channel
		step.Outcome, step.State, step.Code, step.Reason = a.Outcome, a.State, a.Code, a.Reason
		if a.HeldTill != 0 {
			step.HeldTill = time.UnixMilli(a.HeldTill).UTC()
		}
		switch {
		case base.What != "":
		case a.None && a.State == core.Expired:
			step.What = core.StepExpired
		case a.None && a.State == core.Suppressed:
			step.What = core.StepSuppressed
		case a.None && a.State == core.Failed:
			step.What = core.StepFailed
		case a.None:
			step.What = core.StepHeld
		default:
			step.What = core.StepAttempt
		}
		h.steps = append(h.steps, step)
	}
	return ours
}

func (s *Store) receipts(ctx context.Context, h *history, notification core.ID) error {
	return s.read(ctx, "read receipts", `SELECT r.delivery_id, r.event, r.code, r.at FROM deliveries d
		JOIN receipts r ON r.delivery_id = d.id WHERE d.notification_id = $1`, func(r row) error {
		var step core.Step
		if err := r.Scan(key{&step.Delivery}, &step.What, &step.Code, stamp{&step.At}); err != nil {
			return err
		}
		if d := h.deliveries[step.Delivery]; d != nil {
			step.Channel, step.Route = d.Channel, d.Route
			if to, ok := core.Sent.OnReceipt(providers.Event(step.What), 0); ok {
				step.State = to
			}
		}
		h.steps = append(h.steps, step)
		return nil
	}, notification[:])
}
