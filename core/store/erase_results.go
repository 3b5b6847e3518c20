package store

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/carillon-notify/carillon/core"
)

// A service's reason is free text, and may quote the address it is about. So it goes with the person: a delivery that was
// erased is told by its having no page, and neither it nor the results of its rounds have a reason from then on.

// keptResults are the results of settlements as they are to be kept. Those with reasons are few, and only for these it
// looks who was erased. What somebody changes in this moment goes without a reason too: whoever erases would not find it.
func keptResults(ctx context.Context, t tx, all []*settling) ([]any, error) {
	var ids [][]byte
	for _, m := range all {
		for i := range m.s.Results {
			if a := &m.s.Results[i]; a.Reason != "" {
				ids = append(ids, a.Delivery[:])
			}
		}
	}
	known := map[core.ID]bool{}
	err := t.queryIDs(ctx, "SELECT id FROM deliveries WHERE id {ids} AND page_id IS NOT NULL ORDER BY id"+t.skipLocked(), ids, func(r row) error {
		var id core.ID
		err := r.Scan(key{&id})
		known[id] = true
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look who was erased: %w", err)
	}
	out := make([]any, len(all))
	for i, m := range all {
		out[i] = m.results
		if results, changed := unworded(m.s.Results, func(id core.ID) bool { return !known[id] }); changed {
			out[i] = encodeResults(results)
		}
	}
	return out, nil
}

// unworded are results without the reasons of those that were erased; changed says that there were any.
func unworded(as []core.Attempt, erased func(core.ID) bool) (out []core.Attempt, changed bool) {
	out = as
	for i := range as {
		if as[i].Reason == "" || !erased(as[i].Delivery) {
			continue
		}
		if !changed {
			out, changed = slices.Clone(as), true
		}
		out[i].Reason = ""
	}
	return out, changed
}

// lockTraces keeps a recipient's deliveries from being settled until the transaction ends: what is settled before is found
// in their rounds, and what is settled after finds them erased.
func lockTraces(ctx context.Context, t tx, app, id string) error {
	if t.forUpdate() == "" {
		return nil
	}
	return t.query(ctx, "SELECT 1 FROM deliveries WHERE app = $1 AND recipient = $2 AND recipient <> '' ORDER BY id"+t.forUpdate(), func(row) error { return nil }, app, id)
}

// eraseResults takes the reasons of a recipient's deliveries out of the results of their rounds. Most went at their first
// try: that there was a reason for one of these it says itself, and no round of theirs is read. One that was cancelled may
// have said it before.
func eraseResults(ctx context.Context, t tx, app, id string) error {
	ours, batches := map[core.ID]bool{}, map[core.ID]bool{}
	err := t.query(ctx, `SELECT d.id, d.batch_id FROM deliveries d JOIN batches b ON b.id = d.batch_id WHERE d.app = $1 AND d.recipient = $2 AND d.recipient <> ''
		AND (d.reason <> '' OR d.code <> '' OR b.rounds > 1 OR b.parent IS NOT NULL OR d.state = 6 AND b.rounds > 0)`, func(r row) error {
		var d, b core.ID
		err := r.Scan(key{&d}, key{&b})
		ours[d], batches[b] = true, true
		return err
	}, app, id)
	if err != nil {
		return fmt.Errorf("look for a recipient's rounds: %w", err)
	}
	for next := batches; len(next) > 0; { // and those that they were split from
		level := sortedSets(next)
		next = map[core.ID]bool{}
		err := t.queryMany(ctx, "SELECT parent FROM batches WHERE id = $1 AND parent IS NOT NULL", level, func(_ int, r row) error {
			var parent core.ID
			err := r.Scan(key{&parent})
			if !batches[parent] {
				batches[parent], next[parent] = true, true
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("read batches: %w", err)
		}
	}
	const page = 100 // of batches whose results are in memory
	for part := range slices.Chunk(sortedSets(batches), page) {
		for _, table := range []string{"rounds", "late_rounds"} {
			if err := rewriteResults(ctx, t, table, part, ours); err != nil {
				return err
			}
		}
	}
	return nil
}

// rewriteResults reads the results of rounds of some batches, and writes those that have reasons of ours without them.
// A batch may have several that are late under one fence.
func rewriteResults(ctx context.Context, t tx, table string, batches [][]any, ours map[core.ID]bool) error {
	var sets [][]any
	err := t.queryMany(ctx, "SELECT fence, results FROM "+table+" WHERE batch_id = $1 AND results IS NOT NULL ORDER BY fence"+t.forUpdate(), batches, func(i int, r row) error {
		var fence int64
		var packed []byte
		if err := r.Scan(&fence, &packed); err != nil {
			return err
		}
		text, err := unpack(packed)
		if err != nil || !bytes.Contains(text, []byte(resultReason)) {
			return err // most that were held, for a rate or a circuit, were so without a word
		}
		results, err := decodeResults(text)
		if err != nil {
			return err
		}
		if results, changed := unworded(results, func(id core.ID) bool { return ours[id] }); changed {
			sets = append(sets, []any{batches[i][0], fence, packed, encodeResults(results)})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the results of rounds: %w", err)
	}
	if err := t.write(ctx, "UPDATE "+table+" SET results = $4 WHERE batch_id = $1 AND fence = $2 AND results = $3", sets); err != nil {
		return fmt.Errorf("erase reasons: %w", err)
	}
	return nil
}
