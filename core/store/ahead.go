package store

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/carillon-notify/carillon/core"
)

// lookAhead returns the members of a group that run something of their own, in the order of the deliveries that this is
// about, and the batches that the group may come to change because a fallback ends or goes on. Where rows are locked,
// batches come before deliveries, each in their order: two groups that hear of the same fallbacks would else wait for
// each other until the server breaks the deadlock, which takes it a second. What moves after this look is locked when it
// is found.
func lookAhead(ctx context.Context, t tx, group []*member) (runs []*member, batches []core.ID, err error) {
	about := map[*member]core.ID{}
	like := map[string][]*member{} // by what finds the delivery
	var ladders []core.ID
	for _, m := range group {
		switch {
		case m.run != nil:
			runs = append(runs, m)
			if m.of != nil {
				like[m.of.where] = append(like[m.of.where], m)
			}
		case m.settle != nil:
			ladders = append(ladders, ended(m.settle.s)...)
		}
	}
	if t.forUpdate() == "" || len(like) == 0 && len(ladders) == 0 {
		return runs, nil, nil
	}
	for _, ms := range like {
		sets := make([][]any, len(ms))
		for i, m := range ms {
			sets[i] = m.of.args
		}
		err := t.queryMany(ctx, ms[0].of.sql("id, ladder"), sets, func(i int, r row) error {
			var id, ladder core.ID
			err := r.Scan(key{&id}, key{&ladder})
			if about[ms[i]] = id; !ladder.IsZero() {
				ladders = append(ladders, ladder)
			}
			return err
		})
		if err != nil {
			return nil, nil, fmt.Errorf("look what is heard of: %w", err)
		}
	}
	slices.SortStableFunc(runs, func(a, b *member) int {
		x, y := about[a], about[b]
		return bytes.Compare(x[:], y[:])
	})
	ladders = sorted(ladders)
	ids := make([][]byte, len(ladders))
	for i := range ladders {
		ids[i] = ladders[i][:]
	}
	err = t.queryIDs(ctx, "SELECT DISTINCT batch_id FROM deliveries WHERE ladder {ids} AND state = 1", ids, func(r row) error {
		var id core.ID
		err := r.Scan(key{&id})
		batches = append(batches, id)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("look which fallbacks go on: %w", err)
	}
	return runs, batches, nil
}

// ended are the ladders of which a settlement ends a delivery without success: the next step may go.
func ended(s *core.Settlement) (ladders []core.ID) {
	for i := range s.Verdicts {
		v := &s.Verdicts[i]
		if d := &v.Delivery; !d.Ladder.IsZero() && !v.Held && (d.State != core.Sent || !d.PassedAt.IsZero()) {
			ladders = append(ladders, d.Ladder)
		}
	}
	return ladders
}
