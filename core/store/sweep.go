package store

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/carillon-notify/carillon/core"
)

const (
	// sweepRows is how many deliveries, and how many keys, one transaction of Sweep removes at most, so
	// that it never holds the others up long.
	sweepRows = 500
	// sweepLook is how many notifications one call looks at.
	sweepLook = 200
	// pageSpan is more than a delivery's id can be older or younger than the page it was recorded with.
	pageSpan = 15 * time.Minute
	// leaseKept is how long after its end the row of a lease is kept.
	leaseKept = 24 * time.Hour
)

// Swept is what one call of Sweep removed.
type Swept struct {
	Keys, Notifications, Deliveries int
	// Next is where to go on.
	Next core.ID
	// Done says that the end was reached: the next pass begins anew.
	Done bool
}

// Sweep removes idempotency keys past their life, and notifications of which nothing is pending and
// nothing changed for as long as keep, with all that belongs to them; with keep 0 none of those. A call
// removes a bounded number in one short transaction, which is conditional on the lease; a notification that
// is larger disappears at once, and its deliveries with the calls after. A pass goes from the oldest (from
// is zero) on until Done. The error is core.ErrLeaseLost if the lease is another's.
func (s *Store) Sweep(ctx context.Context, l core.Lease, keep time.Duration, from core.ID) (Swept, error) {
	now := s.Now()
	out := Swept{Next: from, Done: true}
	old := &ripe{}
	if keep != 0 {
		var err error
		if old, err = s.ripe(ctx, now.Add(-keep), from); err != nil {
			return Swept{}, err
		}
		out.Next, out.Done = old.next, old.last
	}
	err := s.b.update(ctx, func(t tx) error {
		out.Keys, out.Notifications, out.Deliveries = 0, 0, 0
		if err := holding(ctx, t, l); err != nil {
			return err
		}
		n, err := t.exec(ctx, `DELETE FROM idempotency WHERE (app, key) IN
			(SELECT app, key FROM idempotency WHERE created_at <= $1 ORDER BY created_at LIMIT $2)`, micros(now.Add(-s.keyLife)), int64(sweepRows))
		if out.Keys = int(n); err != nil {
			return err
		}
		if _, err := t.exec(ctx, "DELETE FROM leases WHERE expires_at < $1", micros(now.Add(-leaseKept))); err != nil {
			return err
		}
		left, more, err := leftovers(ctx, t)
		if err != nil {
			return err
		}
		if more {
			// What was retired first: it is hidden already.
			out.Next, out.Done, out.Deliveries = from, false, len(left)
			return forget(ctx, t, left)
		}
		out.Notifications = len(old.whole) + len(old.large)
		ds, err := old.remove(ctx, t)
		if out.Deliveries = len(ds); err != nil {
			return err
		}
		return forget(ctx, t, ds)
	})
	if err != nil {
		return Swept{}, s.fail("sweep", err)
	}
	out.Done = out.Done && out.Keys < sweepRows
	return out, nil
}

// ripe is what one call is to remove.
type ripe struct {
	whole [][]byte // notifications that go whole
	large [][]byte // those that are too large for it
	next  core.ID
	last  bool // there are no more
}

// ripe looks for notifications that may go, without holding anything up: what is finished stays so.
func (s *Store) ripe(ctx context.Context, horizon time.Time, from core.ID) (*ripe, error) {
	out := &ripe{next: from}
	seen, budget := 0, sweepRows
	full := false
	// Ids sort by time, so the oldest come first without another index.
	err := s.read(ctx, "look for old notifications", `SELECT n.id,
			EXISTS (SELECT 1 FROM deliveries d WHERE d.notification_id = n.id AND (d.state = 1 OR d.updated_at > $3))
				OR EXISTS (SELECT 1 FROM campaigns c WHERE c.target = n.id AND c.target IS NOT NULL AND c.state < 5),
			(SELECT count(*) FROM (SELECT 1 FROM deliveries d WHERE d.notification_id = n.id LIMIT $4) x)
		FROM notifications n WHERE n.id > $1 AND n.id < $2 ORDER BY n.id LIMIT $5`, func(r row) error {
		var id core.ID
		var busy bool
		var size int
		if err := r.Scan(key{&id}, &busy, &size); err != nil {
			return err
		}
		seen++
		if full = full || !busy && size > budget && budget < sweepRows; full {
			return nil // the next call's
		}
		out.next = id
		switch {
		case busy:
		case size > sweepRows:
			out.large, full = append(out.large, id[:]), true
		default:
			out.whole, budget = append(out.whole, id[:]), budget-size
		}
		return nil
	}, from[:], oldest(horizon), micros(horizon), int64(sweepRows+1), int64(sweepLook))
	out.last = seen < sweepLook && !full
	return out, err
}

// oldest is the first id that an instant could have.
func oldest(at time.Time) []byte {
	id := core.NewID(at.Add(time.Millisecond))
	clear(id[6:])
	return id[:]
}

// leaf is a delivery that is removed, and what may go with it.
type leaf struct{ id, batch, page core.ID }

// leftovers takes deliveries of a notification that is gone; more is false if there is none.
func leftovers(ctx context.Context, t tx) (out []leaf, more bool, err error) {
	var of core.ID
	err = t.query(ctx, "SELECT notification_id FROM retired ORDER BY notification_id LIMIT 1", func(r row) error {
		more = true
		return r.Scan(key{&of})
	})
	if err != nil || !more {
		return nil, false, err
	}
	err = t.query(ctx, "SELECT id, batch_id, page_id FROM deliveries WHERE notification_id = $1 ORDER BY id LIMIT $2", scanLeaves(&out), of[:], int64(sweepRows))
	if err == nil && len(out) < sweepRows {
		_, err = t.exec(ctx, "DELETE FROM retired WHERE notification_id = $1", of[:])
	}
	return out, true, err
}

func scanLeaves(out *[]leaf) func(row) error {
	return func(r row) error {
		var l leaf
		err := r.Scan(key{&l.id}, key{&l.batch}, key{&l.page})
		*out = append(*out, l)
		return err
	}
}

// remove removes the notifications and lists the deliveries that go with them.
func (o *ripe) remove(ctx context.Context, t tx) (out []leaf, err error) {
	sets := make([][]any, len(o.whole))
	for i, id := range o.whole {
		sets[i] = []any{id}
	}
	scan := scanLeaves(&out)
	err = t.queryMany(ctx, "SELECT id, batch_id, page_id FROM deliveries WHERE notification_id = $1", sets, func(_ int, r row) error { return scan(r) })
	if err != nil {
		return nil, err
	}
	large := make([][]any, len(o.large))
	for i, id := range o.large {
		large[i] = []any{id}
	}
	if err := t.insert(ctx, "retired", "notification_id", large); err != nil {
		return nil, err
	}
	gone := append(slices.Clone(o.whole), o.large...)
	if err := t.execIDs(ctx, "DELETE FROM campaign_pages WHERE notification_id {ids}", gone); err != nil {
		return nil, err
	}
	if err := t.execIDs(ctx, "DELETE FROM campaigns WHERE target IS NOT NULL AND target {ids}", gone); err != nil { // what resolved their topics
		return nil, err
	}
	return out, t.execIDs(ctx, "DELETE FROM notifications WHERE id {ids}", gone)
}

// forget removes deliveries and what nobody else refers to. A batch goes with the last of its deliveries and
// of the batches that were split from it, a page with the last delivery that points at it.
func forget(ctx context.Context, t tx, ds []leaf) error {
	if len(ds) == 0 {
		return nil
	}
	ids := make([][]byte, len(ds))
	batches, pages := map[core.ID]bool{}, map[core.ID]int{}
	for i := range ds {
		ids[i] = ds[i].id[:]
		batches[ds[i].batch] = true
		if !ds[i].page.IsZero() {
			pages[ds[i].page]++
		}
	}
	slices.SortFunc(ids, bytes.Compare)
	// The deliveries first: a receipt that comes meanwhile waits for them, and finds none then.
	for _, q := range []string{"DELETE FROM deliveries WHERE id {ids}", "DELETE FROM receipts WHERE delivery_id {ids}"} {
		if err := t.execIDs(ctx, q, ids); err != nil {
			return err
		}
	}
	if err := forgetEmpty(ctx, t, batches); err != nil {
		return err
	}
	return unref(ctx, t, pages)
}

// forgetEmpty removes those of some batches that are done and that nothing refers to, and then those they were split from.
func forgetEmpty(ctx context.Context, t tx, batches map[core.ID]bool) (err error) {
	for err == nil && len(batches) > 0 {
		batches, err = forgetBatches(ctx, t, batches)
	}
	return err
}

// forgetBatches removes those that nothing refers to, and names the ones they were split from.
func forgetBatches(ctx context.Context, t tx, batches map[core.ID]bool) (parents map[core.ID]bool, err error) {
	parents = map[core.ID]bool{}
	var gone [][]byte
	sets := sortedSets(batches)
	err = t.queryMany(ctx, `DELETE FROM batches WHERE id = $1 AND state = 4 AND NOT EXISTS (SELECT 1 FROM deliveries WHERE batch_id = $1)
		AND NOT EXISTS (SELECT 1 FROM batches c WHERE c.parent = $1) RETURNING parent`, sets, func(i int, r row) error {
		var parent core.ID
		err := r.Scan(key{&parent})
		gone = append(gone, sets[i][0].([]byte))
		if !parent.IsZero() {
			parents[parent] = true
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, q := range []string{"DELETE FROM rounds WHERE batch_id {ids}", "DELETE FROM late_rounds WHERE batch_id {ids}"} {
		if err := t.execIDs(ctx, q, gone); err != nil {
			return nil, err
		}
	}
	return parents, nil
}

func sortedSets[V any](ids map[core.ID]V) [][]any {
	var sets [][]any
	for id := range ids {
		sets = append(sets, []any{id[:]})
	}
	slices.SortFunc(sets, func(a, b []any) int { return bytes.Compare(a[0].([]byte), b[0].([]byte)) })
	return sets
}

// unref takes pointers off pages, and removes the pages that have none left.
func unref(ctx context.Context, t tx, pages map[core.ID]int) error {
	sets := sortedSets(pages)
	for i := range sets {
		sets[i] = append(sets[i], int64(pages[core.ID(sets[i][0].([]byte))]))
	}
	var free, uncounted [][]any
	err := t.queryMany(ctx, "UPDATE pages SET refs = refs - $2 WHERE id = $1 RETURNING coalesce(refs, -1)", sets, func(i int, r row) error {
		var left int64
		err := r.Scan(&left)
		switch id := core.ID(sets[i][0].([]byte)); {
		case left == 0:
			free = append(free, []any{id[:]})
		case left < 0: // written by a version that did not count; its deliveries were recorded with it
			at := bornAt(id)
			uncounted = append(uncounted, []any{id[:], oldest(at.Add(-pageSpan)), oldest(at.Add(pageSpan))})
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := t.write(ctx, "DELETE FROM pages WHERE id = $1", free); err != nil {
		return err
	}
	err = t.write(ctx, "DELETE FROM pages WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.id > $2 AND d.id < $3 AND d.page_id = $1)", uncounted)
	return err
}
