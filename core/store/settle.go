package store

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/providers"
)

// settling is a settlement on its way in.
type settling struct {
	s       *core.Settlement
	results any // encoded
	stale   bool
}

// newSettling packs the results: here, for a group's writer works for everybody.
func newSettling(st *core.Settlement) *settling {
	return &settling{s: st, results: encodeResults(st.Results)}
}

// Settle writes all that a round came to in one transaction, conditional on the fence. stale says that
// somebody else holds the batch by now: nothing changed but that the results were kept, marked late. It is false for a
// settlement that was kept before though its answer was lost, whoever holds the batch: nothing changed, it is known.
// A delivery that is held although its cancellation was asked for meanwhile becomes cancelled.
func (s *Store) Settle(ctx context.Context, st *core.Settlement) (stale bool, err error) {
	m := newSettling(st)
	if err := s.ride(ctx, &member{settle: m}); err != nil {
		return false, s.fail("settle a batch", err)
	}
	return m.stale, nil
}

// SettleAll settles many rounds side by side, so that they share a commit, and says of each whether it was
// stale, and what went wrong, nil where nothing did: what was not settled lapses again.
func (s *Store) SettleAll(ctx context.Context, all []*core.Settlement) (stale []bool, errs []error) {
	stale, errs = make([]bool, len(all)), make([]error, len(all))
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() { stale[i], errs[i] = s.Settle(ctx, all[i]) })
	}
	wg.Wait()
	return stale, errs
}

func (s *Store) settleAll(ctx context.Context, t tx, all []*settling) error {
	if len(all) == 0 {
		return nil
	}
	sets := make([][]any, len(all))
	for i, m := range all {
		b, stay := &m.s.Batch, &m.s.Stay
		sets[i] = []any{b.ID[:], b.Fence, int64(stay.State), stay.Fence, micros(stay.DueAt), micros(stay.RunAt)}
	}
	held, err := t.execMany(ctx, `UPDATE batches SET state = $3, fence = $4, due_at = $5, run_at = $6
		WHERE id = $1 AND fence = $2 AND state = 3`, sets)
	if err != nil {
		return fmt.Errorf("settle batches: %w", err)
	}
	var current []*core.Settlement
	var rounds []*settling
	for i, m := range all {
		if m.stale = held[i] == 0; !m.stale {
			current = append(current, m.s)
			rounds = append(rounds, m)
			continue
		}
		if m.stale, err = keepLate(ctx, t, m); err != nil {
			return err
		}
	}
	var moves []core.Batch
	for _, st := range current {
		for i := range st.Moves {
			moves = append(moves, st.Moves[i].Batch)
		}
	}
	if err := insertBatches(ctx, t, moves); err != nil {
		return err
	}
	ladders, err := climbed(ctx, t, current)
	if err != nil {
		return err
	}
	if err := lockLadders(ctx, t, ladders); err != nil {
		return err
	}
	if err := settleDeliveries(ctx, t, current); err != nil {
		return err
	}
	if len(ladders) > 0 {
		if err := s.moveOn(ctx, t, current, ladders); err != nil {
			return err
		}
	}
	if err := finishRounds(ctx, t, rounds); err != nil {
		return err
	}
	return dropGone(ctx, t, current)
}

// moveOn lets the fallbacks go on that settlements end a step of.
func (s *Store) moveOn(ctx context.Context, t tx, all []*core.Settlement, ladders []core.ID) error {
	if err := notePassed(ctx, t, all); err != nil {
		return err
	}
	n, err := s.advance(ctx, t, all[0].At, ladders)
	for _, st := range all {
		st.Advanced = n
	}
	return err
}

// outcome is what one statement writes to all deliveries that came to the same.
type outcome struct {
	state                  core.State
	moved                  core.ID // to another batch, zero if it stays
	attempts, unknowns     int
	code, reason, provider string
	silent                 bool // the service says nothing more
	at                     int64
}

func settleDeliveries(ctx context.Context, t tx, all []*core.Settlement) error {
	same := map[outcome][][]byte{}
	var order []outcome
	for _, s := range all {
		for i := range s.Verdicts {
			d := &s.Verdicts[i].Delivery
			o := outcome{state: d.State, attempts: d.Attempts, unknowns: d.Unknowns, code: codeOf(d), reason: d.Reason, provider: d.ProviderID, silent: s.Silent, at: micros(d.UpdatedAt)}
			if d.Batch != s.Batch.ID {
				o.moved = d.Batch
			}
			if same[o] == nil {
				order = append(order, o)
			}
			same[o] = append(same[o], d.ID[:])
		}
	}
	sent, unknown := [][]byte(nil), unknownOf(all)
	alone := map[string][][]any{} // of those who share their outcome with nobody: a service's own id is in it
	for _, o := range order {
		set, args := o.sets()
		if o.state == core.Sent && !o.silent {
			sent = append(sent, same[o]...)
		}
		if len(same[o]) == 1 {
			q := "UPDATE deliveries SET " + set + " WHERE {id} AND state = 1"
			alone[q] = append(alone[q], append(args, same[o][0]))
			continue
		}
		if err := t.execIDs(ctx, "UPDATE deliveries SET "+set+" WHERE id {ids} AND state = 1", same[o], args...); err != nil {
			return fmt.Errorf("settle deliveries: %w", err)
		}
	}
	for q, sets := range alone {
		if err := t.writeIDs(ctx, q, sets); err != nil {
			return fmt.Errorf("settle deliveries: %w", err)
		}
	}
	if err := applyEarly(ctx, t, sent, earlySent); err != nil {
		return err
	}
	return applyEarly(ctx, t, unknown, earlyUnknown)
}

// codeOf is a delivery's code. What failed or expired has one always: it is found by that.
func codeOf(d *core.Delivery) string {
	if d.Code == "" && (d.State == core.Failed || d.State == core.Expired) {
		return d.State.String()
	}
	return d.Code
}

// unknownOf are the deliveries of settlements whose attempt is unknown and may be heard of.
func unknownOf(all []*core.Settlement) (ids [][]byte) {
	for _, s := range all {
		if s.Silent {
			continue
		}
		for i := range s.Results {
			if r := &s.Results[i]; !r.None && r.Outcome == providers.Unknown {
				ids = append(ids, r.Delivery[:])
			}
		}
	}
	return ids
}

// What a receipt that came before its round was settled makes of a delivery. One that was sent is delivered
// or failed. One that was of an unknown attempt and is to be tried again, or was given up for that, arrived
// after all if anything says so.
const (
	acknowledging = `FROM receipts WHERE delivery_id = deliveries.id AND event IN ('delivered', 'seen', 'read', 'clicked', 'archived')`
	telling       = `FROM receipts WHERE delivery_id = deliveries.id AND event IN ('delivered', 'seen', 'read', 'clicked', 'archived', 'failed', 'bounced')`
	earlySent     = `UPDATE deliveries SET state = (SELECT CASE WHEN event IN ('failed', 'bounced') THEN 4 ELSE 3 END ` + telling + ` ORDER BY at, event LIMIT 1),
		code = COALESCE((SELECT CASE WHEN event NOT IN ('failed', 'bounced') THEN NULL WHEN code = '' THEN event ELSE code END ` + telling + ` ORDER BY at, event LIMIT 1), code)
		WHERE id {ids} AND state = 2 AND EXISTS (SELECT 1 ` + telling + `)`
	earlyUnknown = `UPDATE deliveries SET state = 3 WHERE id {ids} AND state IN (1, 4, 5) AND EXISTS (SELECT 1 ` + acknowledging + `)`
)

// sets is what an UPDATE sets to an outcome, and its arguments.
func (o outcome) sets() (set string, args []any) {
	state, code, id := "$1", "$4", "provider_id"
	if o.silent {
		id = "service_id"
	}
	if o.state == core.Pending {
		state = "CASE WHEN cancel_requested = 1 THEN 6 ELSE $1 END"
		last := "$4"
		if slices.Contains(core.WaitingCodes, o.code) {
			last = "CASE WHEN cancel_requested = 1 THEN '' ELSE $4 END"
		}
		code = "CASE WHEN cancel_requested = 1 AND code IN ('" + core.CodePreference + "', '" + core.CodeAcknowledged + "') THEN code ELSE " + last + " END" // why it was asked
	}
	// Who was erased meanwhile stays erased.
	set = "state = " + state + ", attempts = $2, unknowns = $3, code = " + code + ", reason = CASE WHEN page_id IS NULL THEN '' ELSE $5 END, " +
		id + " = CASE WHEN page_id IS NULL THEN '' ELSE $6 END, updated_at = $7"
	args = []any{int64(o.state), int64(o.attempts), int64(o.unknowns), clean(o.code), clean(o.reason), clean(o.provider), o.at}
	if !o.moved.IsZero() {
		set, args = set+", batch_id = $8", append(args, o.moved[:])
	}
	return set, args
}

// applyEarly applies the receipts that came before their round was settled: a live client or an SMS service
// may well be faster than our own commit. The earliest one decides, as it would have the other way round.
func applyEarly(ctx context.Context, t tx, ids [][]byte, apply string) error {
	if len(ids) == 0 {
		return nil
	}
	// There is hardly ever one: a look at the span of their ids tells that for all of them at once.
	some, first, last := false, slices.MinFunc(ids, bytes.Compare), slices.MaxFunc(ids, bytes.Compare)
	err := t.query(ctx, "SELECT 1 FROM receipts WHERE delivery_id BETWEEN $1 AND $2 LIMIT 1", func(row) error {
		some = true
		return nil
	}, first, last)
	if err != nil {
		return fmt.Errorf("look for early receipts: %w", err)
	}
	if !some {
		return nil
	}
	err = t.execIDs(ctx, apply, ids)
	if err != nil {
		return fmt.Errorf("apply early receipts: %w", err)
	}
	return nil
}

// clean makes a service's word fit for any text column: PostgreSQL takes neither NUL nor broken UTF-8.
func clean(s string) string {
	if !strings.ContainsRune(s, 0) {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "\uFFFD")
}

// finishRounds completes the rounds' rows; the settlement of a lapsed round has none yet.
func finishRounds(ctx context.Context, t tx, all []*settling) error {
	results, err := keptResults(ctx, t, all)
	if err != nil {
		return err
	}
	sets := make([][]any, len(all))
	for i, m := range all {
		sets[i] = []any{m.s.Batch.ID[:], m.s.Batch.Fence, m.s.Worker, micros(m.s.At), results[i]}
	}
	err = t.write(ctx, `INSERT INTO rounds (batch_id, fence, attempt, worker, started_at, finished_at, results)
		VALUES ($1, $2, (SELECT rounds FROM batches WHERE id = $1), $3, $4, $4, $5)
		ON CONFLICT (batch_id, fence) DO UPDATE SET finished_at = excluded.finished_at, results = excluded.results`, sets)
	if err != nil {
		return fmt.Errorf("finish rounds: %w", err)
	}
	return nil
}

// keepLate keeps the results of a settlement that has lost its batch, and reports whether they are late. A settlement
// that was kept although its answer was lost comes twice. The second is not late, it is known.
func keepLate(ctx context.Context, t tx, m *settling) (late bool, err error) {
	if m.results == nil {
		return true, nil
	}
	kept, err := keptResults(ctx, t, []*settling{m})
	if err != nil {
		return false, err
	}
	s, id := m.s, core.NewID(m.s.At)
	n, err := t.exec(ctx, `INSERT INTO late_rounds (id, batch_id, fence, worker, at, results) SELECT $1, $2, $3, $4, $5, $6
		WHERE NOT EXISTS (SELECT 1 FROM rounds WHERE batch_id = $2 AND fence = $3 AND finished_at = $5 AND (results = $6 OR results = $7))`,
		id[:], s.Batch.ID[:], s.Batch.Fence, s.Worker, micros(s.At), kept[0], m.results)
	if err != nil {
		return false, fmt.Errorf("keep late results: %w", err)
	}
	return n > 0, nil
}

type goneAt struct {
	*core.GoneEndpoint
	at       time.Time
	delivery core.ID
	code     string
}

// dropGone drops, replaces or suppresses the endpoints that a service reported gone, unless they were given
// to us again since.
func dropGone(ctx context.Context, t tx, all []*core.Settlement) error {
	var gone []goneAt
	for _, s := range all {
		for i := range s.Verdicts {
			if g := s.Verdicts[i].Gone; g != nil {
				d := &s.Verdicts[i].Delivery
				gone = append(gone, goneAt{g, s.At, d.ID, d.Code})
			}
		}
	}
	slices.SortFunc(gone, func(a, b goneAt) int {
		return cmp.Or(strings.Compare(a.App, b.App), strings.Compare(a.Kind, b.Kind), strings.Compare(a.Address, b.Address))
	})
	for _, g := range gone {
		since := micros(g.Since)
		if since == 0 {
			since = 1<<63 - 1
		}
		if g.NewAddress != "" {
			_, err := t.exec(ctx, `INSERT INTO endpoints (app, recipient, kind, address, position, route, app_version, registered_at)
				SELECT app, recipient, kind, CAST($4 AS TEXT), position, route, app_version, CAST($6 AS BIGINT) FROM endpoints
				WHERE app = $1 AND kind = $2 AND address = $3 AND registered_at <= $5
				ON CONFLICT (app, recipient, kind, address) DO NOTHING`, g.App, g.Kind, g.Address, clean(g.NewAddress), since, micros(g.at))
			if err != nil {
				return fmt.Errorf("replace an endpoint: %w", err)
			}
		}
		if core.Lasting(g.Channel) && g.NewAddress == "" {
			again := false
			err := t.query(ctx, "SELECT 1 FROM endpoints WHERE app = $1 AND kind = $2 AND address = $3 AND registered_at > $4 LIMIT 1", func(row) error { again = true; return nil },
				g.App, g.Kind, g.Address, since)
			if err == nil && !again {
				err = suppressGone(ctx, t, g)
			}
			if err != nil {
				return err
			}
			continue
		}
		_, err := t.exec(ctx, "DELETE FROM endpoints WHERE app = $1 AND kind = $2 AND address = $3 AND registered_at <= $4", g.App, g.Kind, g.Address, since)
		if err != nil {
			return fmt.Errorf("drop an endpoint: %w", err)
		}
	}
	return nil
}

// suppressGone suppresses an address that is gone. Whose it is may have been erased since the round began.
func suppressGone(ctx context.Context, t tx, g goneAt) error {
	x := core.Suppression{App: g.App, Kind: g.Kind, Channel: g.Channel, Code: g.code}
	err := t.query(ctx, "SELECT recipient FROM deliveries WHERE id = $1", func(r row) error { return r.Scan(&x.Recipient) }, g.delivery[:])
	if err != nil {
		return fmt.Errorf("look whose address is gone: %w", err)
	}
	return suppress(ctx, t, x, g.Address, g.at)
}
