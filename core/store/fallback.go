package store

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/providers"
)

// heldColumns are those of a delivery that is due at a time of its own or is a step of a fallback. Others
// leave them to their defaults, so that they cost nothing.
const heldColumns = ", ladder, step, quiet, held, held_till"

// fullColumns are a delivery's, to be read by scanFull.
var fullColumns = readColumns + heldColumns + ", passed_at"

func scanFull(r row) (core.Delivery, error) {
	var h struct {
		ladder      core.ID
		step        int64
		quiet, held string
		due, passed time.Time
	}
	d, err := scanDelivery(r, key{&h.ladder}, &h.step, &h.quiet, &h.held, stamp{&h.due}, stamp{&h.passed})
	d.Ladder, d.Step, d.Quiet, d.Held, d.DueAt, d.PassedAt = h.ladder, int(h.step), h.quiet, h.held, h.due, h.passed
	return d, err
}

// climbed are the ladders that a group of settlements concerns: those of deliveries that are settled, and of those
// that would be held but were ruled out meanwhile.
func climbed(ctx context.Context, t tx, all []*core.Settlement) ([]core.ID, error) {
	var out []core.ID
	var held [][]byte
	for _, s := range all {
		for i := range s.Verdicts {
			switch v := &s.Verdicts[i]; {
			case v.Delivery.Ladder.IsZero():
			case v.Held:
				held = append(held, v.Delivery.ID[:])
			default:
				out = append(out, v.Delivery.Ladder)
			}
		}
	}
	err := t.queryIDs(ctx, "SELECT ladder FROM deliveries WHERE id {ids} AND cancel_requested = 1 AND code = $1", held, func(r row) error {
		var id core.ID
		err := r.Scan(key{&id})
		out = append(out, id)
		return err
	}, core.CodePreference)
	if err != nil {
		return nil, fmt.Errorf("look which steps of fallbacks were ruled out: %w", err)
	}
	return sorted(out), nil
}

func sorted(ids []core.ID) []core.ID {
	slices.SortFunc(ids, func(a, b core.ID) int { return bytes.Compare(a[:], b[:]) })
	return slices.Compact(ids)
}

// lockLadders lets one transaction at a time change a fallback: two that each end one of two devices would
// else each see the other's still to come, and nobody would move on. A ladder is locked by its first
// delivery, several in the order of their ids.
func lockLadders(ctx context.Context, t tx, ladders []core.ID) error {
	if len(ladders) == 0 || t.forUpdate() == "" {
		return nil
	}
	sets := make([][]any, len(ladders))
	for i := range ladders {
		sets[i] = []any{ladders[i][:]}
	}
	if err := t.queryMany(ctx, "SELECT 1 FROM deliveries WHERE id = $1"+t.forUpdate(), sets, func(int, row) error { return nil }); err != nil {
		return fmt.Errorf("lock fallbacks: %w", err)
	}
	return nil
}

// notePassed keeps which deliveries went to where nobody is.
func notePassed(ctx context.Context, t tx, all []*core.Settlement) error {
	passed := map[int64][][]byte{}
	for _, s := range all {
		for i := range s.Verdicts {
			if d := &s.Verdicts[i].Delivery; !d.PassedAt.IsZero() {
				at := micros(d.PassedAt)
				passed[at] = append(passed[at], d.ID[:])
			}
		}
	}
	for at, ids := range passed {
		if err := t.execIDs(ctx, "UPDATE deliveries SET passed_at = $1 WHERE id {ids}", ids, at); err != nil {
			return fmt.Errorf("note where nobody is: %w", err)
		}
	}
	return nil
}

// rungsOf is a fallback as it stands.
type rungsOf struct {
	ladder core.ID
	sendAt time.Time
	after  time.Duration
	rungs  []core.Rung
	batch  map[core.ID]core.Batch
}

func readRungs(ctx context.Context, t tx, ladders []core.ID) ([]rungsOf, error) {
	out := make([]rungsOf, len(ladders))
	sets := make([][]any, len(ladders))
	for i := range ladders {
		out[i] = rungsOf{ladder: ladders[i], batch: map[core.ID]core.Batch{}}
		sets[i] = []any{ladders[i][:]}
	}
	err := t.queryMany(ctx, `SELECT d.id, d.batch_id, d.step, d.state, d.passed_at, d.attempts + d.unknowns, d.code, n.fallback_after, n.send_at,
		b.app, b.route, b.lane, b.state, b.due_at, d.quiet, b.campaign, b.rounds
		FROM deliveries d JOIN batches b ON b.id = d.batch_id JOIN notifications n ON n.id = d.notification_id WHERE d.ladder = $1`, sets, func(i int, r row) error {
		var x core.Rung
		var b core.Batch
		var step, state, passed, tries, after, lane, batchState, rounds int64
		var code string
		if err := r.Scan(key{&x.Delivery}, key{&x.Batch}, &step, &state, &passed, &tries, &code, &after, stamp{&out[i].sendAt}, &b.App, &b.Route, &lane, &batchState, stamp{&b.DueAt}, &x.Quiet, key{&b.Campaign}, &rounds); err != nil {
			return err
		}
		b.ID, b.Lane, b.State = x.Batch, laneOf(lane), core.BatchState(batchState)
		x.Step, x.State, x.Passed, x.DueAt = int(step), core.State(state), passed > 0, b.DueAt
		x.Fresh = tries == 0 && code == "" && rounds == 0 && (b.State == core.BatchPending || b.State == core.BatchQueued)
		out[i].after = time.Duration(after) * time.Microsecond
		out[i].rungs = append(out[i].rungs, x)
		out[i].batch[b.ID] = b
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read fallbacks: %w", err)
	}
	return out, nil
}

// advance lets fallbacks move on whose deliveries changed, and returns how many deliveries go now. Those
// that go earlier move to batches of their own; a batch that is left empty is closed by its wake. Before they
// are moved their batches are locked, so that no claim comes in between, and looked at again.
func (s *Store) advance(ctx context.Context, t tx, now time.Time, ladders []core.ID) (int, error) {
	if len(ladders) == 0 {
		return 0, nil
	}
	for held := map[core.ID]bool{}; ; {
		all, err := readRungs(ctx, t, ladders)
		if err != nil {
			return 0, err
		}
		var moves []forward
		var missing []core.ID
		for _, l := range all {
			for _, f := range core.Advance(l.rungs, l.sendAt, l.after, now) {
				moves = append(moves, forward{f, l.batch[f.Batch]})
				if !held[f.Batch] {
					missing, held[f.Batch] = append(missing, f.Batch), true
				}
			}
		}
		if len(missing) > 0 {
			if err := t.lock(ctx, sorted(missing)); err != nil {
				return 0, err
			}
			if t.forUpdate() != "" {
				continue // what was read may be old by now
			}
		}
		return s.bringForward(ctx, t, now, moves)
	}
}

// forward is a delivery that goes earlier, and the batch that it leaves.
type forward struct {
	core.Forward
	from core.Batch
}

// bringForward moves deliveries to new batches: those for one route and lane that are due in the same
// second together, as many as the route takes. It returns how many go now.
func (s *Store) bringForward(ctx context.Context, t tx, now time.Time, moves []forward) (int, error) {
	type place struct {
		app, route string
		lane       core.Lane
		campaign   core.ID
		due        int64
	}
	type open struct{ at, n int }
	current := map[place]open{}
	var batches []core.Batch
	var sets [][]any
	atOnce := 0
	for _, m := range moves {
		p := place{m.from.App, m.from.Route, m.from.Lane, m.from.Campaign, m.To.Unix()}
		o, ok := current[p]
		if !ok || o.n >= max(1, s.maxBatch(p.route)) {
			o = open{at: len(batches)}
			batches = append(batches, core.Batch{ID: core.NewID(now), App: p.app, Route: p.route, Lane: p.lane, Campaign: p.campaign,
				State: core.BatchPending, Fence: 1})
		}
		o.n++
		current[p] = o
		b := &batches[o.at]
		if m.To.After(b.DueAt) { // with the latest of them: none goes early
			b.DueAt, b.RunAt = m.To, m.To
		}
		sets = append(sets, []any{m.Delivery[:], b.ID[:]})
		if !m.To.After(now) {
			atOnce++
		}
	}
	if err := insertBatches(ctx, t, batches); err != nil {
		return 0, err
	}
	if err := t.write(ctx, "UPDATE deliveries SET batch_id = $2 WHERE id = $1 AND state = 1", sets); err != nil {
		return 0, fmt.Errorf("bring deliveries forward: %w", err)
	}
	return atOnce, nil
}

// acknowledges reports whether an event says that the recipient has the message.
func acknowledges(e providers.Event) bool {
	switch e {
	case providers.EventDelivered, providers.EventSeen, providers.EventRead, providers.EventClicked, providers.EventArchived:
		return true
	}
	return false
}

// stopFallback cancels what waits of a fallback behind a step that was acknowledged.
func stopFallback(ctx context.Context, t tx, now int64, ladder core.ID, step int) error {
	if _, err := cancelWhere(ctx, t, now, "d.ladder = $1 AND d.step > $2", ladder[:], int64(step)); err != nil {
		return fmt.Errorf("stop a fallback: %w", err)
	}
	_, err := t.exec(ctx, "UPDATE deliveries SET code = $3 WHERE ladder = $1 AND step > $2 AND (state = 6 OR cancel_requested = 1) AND updated_at = $4 AND code = ''",
		ladder[:], int64(step), core.CodeAcknowledged, now)
	if err != nil {
		return fmt.Errorf("say why a fallback stopped: %w", err)
	}
	return nil
}
