package store

import (
	"bytes"
	"context"
	"slices"
	"strings"

	"github.com/carillon-notify/carillon/core"
)

// Cancel cancels what is still pending of a notification and returns how many deliveries that were.
// After it returned no new attempt begins for it. Deliveries in a round under way are marked: their call
// on the wire finishes, and if they are held after it, or before as they wait for their route's rate, they become
// cancelled; they count too. The error
// is core.ErrNotFound if the app has no such notification.
func (s *Store) Cancel(ctx context.Context, app string, notification core.ID) (int, error) {
	return writeFor(ctx, s, "cancel a notification", func(t tx) (int, error) {
		now := micros(s.Now())
		found, err := t.exec(ctx, "UPDATE notifications SET cancelled_at = CASE WHEN cancelled_at = 0 THEN $3 ELSE cancelled_at END WHERE id = $1 AND app = $2",
			notification[:], app, now)
		if err != nil {
			return 0, err
		}
		if found == 0 {
			return 0, core.ErrNotFound
		}
		// Its topics are resolved no further.
		if _, err := t.exec(ctx, "UPDATE campaigns SET state = 6, run_at = 0, fence = fence + 1 WHERE target = $1 AND target IS NOT NULL AND state < 5", notification[:]); err != nil {
			return 0, err
		}
		return cancelWhere(ctx, t, now, "d.notification_id = $1", notification[:])
	})
}

// Cancelling returns the deliveries of a batch in a round that Cancel or another marked: settled as held they become
// cancelled.
func (s *Store) Cancelling(ctx context.Context, batch core.ID) (ids []core.ID, err error) {
	err = s.read(ctx, "read what is to be cancelled", "SELECT id FROM deliveries WHERE batch_id = $1 AND state = 1 AND cancel_requested = 1", func(r row) error {
		var id core.ID
		err := r.Scan(key{&id})
		ids = append(ids, id)
		return err
	}, batch[:])
	return ids, err
}

// cancelWhere cancels the pending deliveries that a condition on d selects, and returns how many those are.
func cancelWhere(ctx context.Context, t tx, now int64, where string, args ...any) (int, error) {
	return cancelFound(ctx, t, now, "", func(q string, scan func(row) error) error { return t.query(ctx, q+where, scan, args...) })
}

// cancelIDs cancels those of some deliveries that are pending, for a reason that becomes their code.
func cancelIDs(ctx context.Context, t tx, now int64, code string, ids [][]byte) (int, error) {
	return cancelFound(ctx, t, now, code, func(q string, scan func(row) error) error { return t.queryIDs(ctx, q+"d.id {ids}", ids, scan) })
}

// waiting are the codes of what waits, which what is cancelled does not keep.
var waiting = "'" + strings.Join(core.WaitingCodes, "', '") + "'"

// cancelFound cancels pending deliveries; find completes a statement by a condition on d that selects them, and
// runs it. It locks their batches first, so that no claim can come in between; as they may move to other batches
// while it waits for a lock, it looks again until it holds them all.
func cancelFound(ctx context.Context, t tx, now int64, code string, find func(q string, scan func(row) error) error) (int, error) {
	for held := map[core.ID]bool{}; ; {
		var missing []core.ID
		err := find("SELECT DISTINCT d.batch_id FROM deliveries d WHERE d.state = 1 AND ", func(r row) error {
			var id core.ID
			err := r.Scan(key{&id})
			if !held[id] {
				missing, held[id] = append(missing, id), true
			}
			return err
		})
		if err != nil {
			return 0, err
		}
		if len(missing) == 0 {
			break
		}
		if err := t.lock(ctx, missing); err != nil {
			return 0, err
		}
	}
	var sets [][]any
	err := find("SELECT d.id, b.state FROM deliveries d JOIN batches b ON b.id = d.batch_id WHERE d.state = 1 AND d.cancel_requested = 0 AND ",
		func(r row) error {
			var id core.ID
			var state int64
			err := r.Scan(key{&id}, &state)
			to, asked := int64(core.Cancelled), int64(0)
			if core.BatchState(state) == core.BatchSending {
				to, asked = int64(core.Pending), 1
			}
			sets = append(sets, []any{id[:], to, asked, now, code})
			return err
		})
	if err != nil {
		return 0, err
	}
	slices.SortFunc(sets, func(a, b []any) int { return bytes.Compare(a[0].([]byte), b[0].([]byte)) }) // as everybody locks them
	err = t.write(ctx, `UPDATE deliveries SET state = $2, cancel_requested = $3, updated_at = $4,
		code = CASE WHEN $5 <> '' THEN $5 WHEN code IN (`+waiting+`) THEN '' ELSE code END,
		reason = CASE WHEN $5 <> '' OR code IN (`+waiting+`) THEN '' ELSE reason END WHERE id = $1 AND state = 1`, sets)
	return len(sets), err
}
