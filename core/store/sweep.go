package store

import (
	"context"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// sweepPage is how much one transaction of Sweep removes, so that it never holds the others up long.
const sweepPage = 200

// pageSpan is more than a delivery's id can be older or younger than the page it was recorded with.
const pageSpan = 15 * time.Minute

// Sweep removes idempotency keys past KeyLife and notifications accepted longer than retention ago that
// have nothing pending, with all that belongs to them. It removes one page of each per call and reports
// how many rows of both; less than a full page of either means that nothing is left to do. The error is
// core.ErrLeaseLost if the lease is another's.
func (s *Store) Sweep(ctx context.Context, l core.Lease, retention time.Duration) (keys, notifications int, err error) {
	now := s.Now()
	err = s.write(ctx, "sweep", func(t tx) error {
		if err := holding(ctx, t, l); err != nil {
			return err
		}
		n, err := t.exec(ctx, `DELETE FROM idempotency WHERE (app, key) IN
			(SELECT app, key FROM idempotency WHERE created_at <= $1 ORDER BY created_at LIMIT $2)`, micros(now.Add(-KeyLife)), int64(sweepPage))
		if keys = int(n); err != nil {
			return err
		}
		var ids [][]any
		// Ids sort by time, so the oldest come first without another index.
		err = t.query(ctx, `SELECT id FROM notifications n WHERE id < $1 AND created_at < $2
			AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.notification_id = n.id AND d.state = 1) ORDER BY id LIMIT $3`, func(r row) error {
			var id core.ID
			err := r.Scan(key{&id})
			ids = append(ids, []any{id[:]})
			return err
		}, oldest(now.Add(-retention)), micros(now.Add(-retention)), int64(sweepPage))
		if notifications = len(ids); err != nil || len(ids) == 0 {
			return err
		}
		return forget(ctx, t, ids)
	})
	return keys, notifications, err
}

// oldest is the first id that an instant could have.
func oldest(at time.Time) []byte {
	id := core.NewID(at.Add(time.Millisecond))
	clear(id[6:])
	return id[:]
}

// forget removes notifications and what nobody else refers to. A batch is removed with the last of its
// deliveries, a page likewise.
func forget(ctx context.Context, t tx, ids [][]any) error {
	batches, pages := map[core.ID]bool{}, map[core.ID]bool{}
	err := t.queryMany(ctx, "SELECT DISTINCT batch_id, page_id FROM deliveries WHERE notification_id = $1", ids, func(_ int, r row) error {
		var b, p core.ID
		err := r.Scan(key{&b}, key{&p})
		batches[b], pages[p] = true, true
		return err
	})
	if err != nil {
		return err
	}
	for _, q := range []string{
		"DELETE FROM receipts WHERE delivery_id IN (SELECT id FROM deliveries WHERE notification_id = $1)",
		"DELETE FROM deliveries WHERE notification_id = $1",
		"DELETE FROM notifications WHERE id = $1",
	} {
		if _, err := t.execMany(ctx, q, ids); err != nil {
			return err
		}
	}
	for _, q := range []string{
		"DELETE FROM late_rounds WHERE batch_id = $1 AND NOT EXISTS (SELECT 1 FROM deliveries WHERE batch_id = $1)",
		"DELETE FROM rounds WHERE batch_id = $1 AND NOT EXISTS (SELECT 1 FROM deliveries WHERE batch_id = $1)",
		"DELETE FROM batches WHERE id = $1 AND state = 4 AND NOT EXISTS (SELECT 1 FROM deliveries WHERE batch_id = $1)",
	} {
		if _, err := t.execMany(ctx, q, keysOf(batches)); err != nil {
			return err
		}
	}
	// A page's deliveries were recorded with it, so theirs are ids of nearly its time.
	var sets [][]any
	for id := range pages {
		if at := bornAt(id); !id.IsZero() {
			sets = append(sets, []any{id[:], oldest(at.Add(-pageSpan)), oldest(at.Add(pageSpan))})
		}
	}
	_, err = t.execMany(ctx, "DELETE FROM pages WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.id > $2 AND d.id < $3 AND d.page_id = $1)", sets)
	return err
}

func keysOf(m map[core.ID]bool) [][]any {
	var out [][]any
	for id := range m {
		out = append(out, []any{id[:]})
	}
	return out
}
