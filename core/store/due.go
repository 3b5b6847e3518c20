package store

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// Overdue reports whether any batch that is not done has its run_at behind it, and whether any is queued
// though its wake was due core.Unclaimed ago. It reads the earliest of each state: asked for any,
// PostgreSQL would rather read the table until it meets one.
func (s *Store) Overdue(ctx context.Context) (due, unclaimed bool, err error) {
	err = s.read(ctx, "look for overdue batches", `SELECT * FROM (SELECT state, run_at FROM batches WHERE state = 1 AND state < 4 ORDER BY run_at LIMIT 1) p
		UNION ALL SELECT * FROM (SELECT state, run_at FROM batches WHERE state = 2 AND run_at > $1 AND state < 4 ORDER BY run_at LIMIT 1) u
		UNION ALL SELECT * FROM (SELECT state, run_at FROM batches WHERE state = 2 AND state < 4 ORDER BY run_at LIMIT 1) q
		UNION ALL SELECT * FROM (SELECT state, run_at FROM batches WHERE state = 3 AND state < 4 ORDER BY run_at LIMIT 1) s`, func(r row) error {
		var state int64
		var at time.Time
		err := r.Scan(&state, stamp{&at})
		now := s.Now()
		over := !at.After(now)
		due = due || over
		unclaimed = unclaimed || !over && core.BatchState(state) == core.BatchQueued && !at.After(now.Add(core.DispatchTimeout-core.Unclaimed))
		return err
	}, micros(s.Now()))
	return due, unclaimed, err
}

// Unclaimed makes the batches of a route and lane overdue that are queued though their wakes were due longer
// than that ago, and returns how many: the queue is known to have none of these wakes. What somebody is just
// about to claim is left alone.
func (s *Store) Unclaimed(ctx context.Context, on core.RouteLane, longer time.Duration) (int, error) {
	n, err := writeFor(ctx, s, "make batches due whose wakes were lost", func(t tx) (int64, error) {
		now := s.Now()
		return t.exec(ctx, `UPDATE batches SET run_at = $1 WHERE id IN (SELECT id FROM batches
			WHERE state = 2 AND state < 4 AND run_at > $1 AND run_at <= $2 AND route = $3 AND lane = $4 ORDER BY run_at LIMIT $5`+t.skipLocked()+`)`,
			micros(now), micros(now.Add(core.DispatchTimeout-longer)), on.Route, laneNumbers[on.Lane], int64(lostPage))
	})
	return int(n), err
}

// Due takes up to limit overdue batches of a route and lane, makes them queued under a new fence and
// returns their wakes: in turns between apps, each app's longest overdue first, and of no app more than
// room says (nil: no bound). Apps beyond the limit get their turn when they have waited longest. A
// paused route's batches are left alone. room is asked of apps with something overdue only.
func (s *Store) Due(ctx context.Context, route string, lane core.Lane, limit int, room func(app string) int) ([]core.Wake, error) {
	if limit <= 0 {
		return nil, nil
	}
	paused, err := s.Paused(ctx)
	if err != nil || paused[route] {
		return nil, err
	}
	apps, err := s.dueApps(ctx, route, lane)
	if err != nil {
		return nil, err
	}
	d := dueQuery{route: route, lane: lane, limit: limit}
	for _, app := range apps {
		n := limit
		if room != nil {
			n = min(n, room(app))
		}
		if n > 0 && len(d.apps) < limit {
			d.apps = append(d.apps, dueApp{app: app, room: n})
		}
	}
	if len(d.apps) == 0 {
		return nil, nil
	}
	var wakes []core.Wake
	err = s.b.update(ctx, func(t tx) error {
		now := s.Now()
		if err := d.read(ctx, t, now); err != nil {
			return err
		}
		wakes = d.turns()
		ids := make([][]byte, len(wakes))
		for i := range wakes {
			ids[i] = wakes[i].Batch[:]
		}
		// They were read, and locked, in this transaction: nobody else has touched them.
		return t.execIDs(ctx, "UPDATE batches SET state = 2, fence = fence + 1, run_at = $1 WHERE id {ids} AND state < 3", ids, micros(now.Add(core.DispatchTimeout)))
	})
	if err != nil {
		return nil, s.fail("take due batches", err)
	}
	return wakes, nil
}

// dueQuery is one call of Due.
type dueQuery struct {
	route string
	lane  core.Lane
	limit int
	apps  []dueApp
}

// dueApp is an app that has something overdue.
type dueApp struct {
	app     string
	room    int
	batches []core.Batch
	more    bool // it has more than was read, and room for it
}

// read reads each app's due batches: first an equal share each, then, if that does not come to the
// limit, what those with more have.
func (d *dueQuery) read(ctx context.Context, t tx, now time.Time) error {
	for i := range d.apps {
		d.apps[i].more = true
	}
	total := 0
	for _, want := range []int{(d.limit + len(d.apps) - 1) / len(d.apps), d.limit} {
		var sets [][]any
		var of []*dueApp
		for i := range d.apps {
			if a := &d.apps[i]; a.more {
				a.batches, a.more = nil, false
				of, sets = append(of, a), append(sets, []any{d.route, laneNumbers[d.lane], a.app, micros(now), int64(min(want, a.room))})
			}
		}
		err := t.queryMany(ctx, `SELECT id, fence, due_at FROM batches
			WHERE route = $1 AND lane = $2 AND app = $3 AND state < 3 AND run_at <= $4 ORDER BY run_at LIMIT $5`+t.skipLocked(),
			sets, func(i int, r row) error {
				var b core.Batch
				err := r.Scan(key{&b.ID}, &b.Fence, stamp{&b.DueAt})
				of[i].batches = append(of[i].batches, b)
				return err
			})
		if err != nil {
			return fmt.Errorf("read due batches: %w", err)
		}
		total = 0
		for i := range d.apps {
			a := &d.apps[i]
			total += len(a.batches)
			a.more = len(a.batches) == want && want < a.room
		}
		if total >= d.limit {
			break
		}
	}
	return nil
}

// turns makes the wakes: one of each app in turn, up to the limit.
func (d *dueQuery) turns() []core.Wake {
	var wakes []core.Wake
	for i, found := 0, true; found; i++ {
		found = false
		for _, a := range d.apps {
			if i < len(a.batches) && len(wakes) < d.limit {
				b := a.batches[i]
				found = true
				wakes = append(wakes, core.Wake{Batch: b.ID, Fence: b.Fence + 1, App: a.app, Route: d.route, Lane: d.lane, At: b.DueAt})
			}
		}
	}
	return wakes
}

// dueApps lists the apps that have an overdue batch on a route and lane, the longest overdue first.
// Each app that waits for anything is found by one step in the index, at its earliest alarm clock: with
// ORDER BY and LIMIT rather than min, for which a PostgreSQL without fresh statistics reads all entries.
func (s *Store) dueApps(ctx context.Context, route string, lane core.Lane) ([]string, error) {
	var apps []string
	err := s.read(ctx, "list apps that are due", `WITH RECURSIVE a (app) AS (
			SELECT (SELECT b.app FROM batches b WHERE b.route = $1 AND b.lane = $2 AND b.state < 3 ORDER BY b.app LIMIT 1)
			UNION ALL
			SELECT (SELECT b.app FROM batches b WHERE b.route = $1 AND b.lane = $2 AND b.state < 3 AND b.app > a.app ORDER BY b.app LIMIT 1)
				FROM a WHERE a.app IS NOT NULL),
		w (app, since) AS MATERIALIZED (
			SELECT app, (SELECT b.run_at FROM batches b WHERE b.route = $1 AND b.lane = $2 AND b.state < 3 AND b.app = a.app ORDER BY b.run_at LIMIT 1)
				FROM a WHERE app IS NOT NULL)
		SELECT app FROM w WHERE since <= $3 ORDER BY since`, func(r row) error {
		var app string
		err := r.Scan(&app)
		apps = append(apps, app)
		return err
	}, route, laneNumbers[lane], micros(s.Now()))
	return apps, err
}

// Lapsed takes up to limit batches whose lease ran out under a new fence and the given lease, and
// returns them as rounds to be settled: with unknown outcomes, but for one that is Unsent, whose lease was a relay's
// that took it as a stray and died. One with nothing pending is closed.
func (s *Store) Lapsed(ctx context.Context, limit int, lease time.Duration) (rounds []*core.Round, err error) {
	err = s.b.update(ctx, func(t tx) error {
		now := s.Now()
		var lapsed []*core.Round
		err := t.query(ctx, "SELECT "+takenColumns+" FROM batches WHERE state = 3 AND state < 4 AND run_at <= $1 ORDER BY run_at LIMIT $2"+t.skipLocked(), func(r row) error {
			x, err := scanTaken(r, now, lease)
			lapsed = append(lapsed, x)
			return err
		}, micros(now), int64(limit))
		if err != nil {
			return err
		}
		if rounds, err = take(ctx, t, lapsed, 0); err != nil {
			return err
		}
		return noteUnsent(ctx, t, rounds)
	})
	if err != nil {
		return nil, s.fail("take lapsed batches", err)
	}
	return rounds, nil
}

// takenColumns are those of a batch that the relay takes, to be read by scanTaken.
const takenColumns = "id, app, route, lane, fence, due_at, parent, campaign"

// scanTaken is a batch as the relay has it, under the next fence and a lease. It is to be taken.
func scanTaken(r row, now time.Time, lease time.Duration) (*core.Round, error) {
	b := core.Batch{State: core.BatchSending, RunAt: now.Add(lease)}
	var lane int64
	err := r.Scan(key{&b.ID}, &b.App, &b.Route, &lane, &b.Fence, stamp{&b.DueAt}, key{&b.Parent}, key{&b.Campaign})
	b.Lane = laneOf(lane)
	b.Fence++
	return &core.Round{Batch: b, Now: now, LeaseEnd: b.RunAt}, err
}

// noteUnsent notes at rounds of lapsed batches which are Unsent: only a claim leaves a round that is not finished, and
// every settlement finishes one, so that the batch's last round tells, whichever relays took the batch since.
func noteUnsent(ctx context.Context, t tx, rounds []*core.Round) error {
	sets := make([][]any, len(rounds))
	for i, r := range rounds {
		sets[i], r.Unsent = []any{r.ID[:]}, true
	}
	err := t.queryMany(ctx, "SELECT finished_at > 0 FROM rounds WHERE batch_id = $1 ORDER BY fence DESC LIMIT 1", sets, func(i int, r row) error {
		return r.Scan(&rounds[i].Unsent)
	})
	if err != nil {
		return fmt.Errorf("look which rounds were begun: %w", err)
	}
	return nil
}

// take makes rounds of batches that the caller has locked. One with nothing pending is closed, and none. begins is 1 where
// they are rounds of their own, 0 where they end those that workers began: these have been counted.
func take(ctx context.Context, t tx, batches []*core.Round, begins int64) (rounds []*core.Round, err error) {
	sets := make([][]any, len(batches))
	for i, r := range batches {
		sets[i] = []any{r.ID[:], r.Fence, micros(r.RunAt), begins}
	}
	if err := t.write(ctx, "UPDATE batches SET state = 3, fence = $2, run_at = $3, rounds = rounds + $4 WHERE id = $1 AND fence = $2 - 1", sets); err != nil {
		return nil, err
	}
	if err := loadPending(ctx, t, batches); err != nil {
		return nil, err
	}
	var done []core.ID
	for _, r := range batches {
		if len(r.Deliveries) == 0 {
			done = append(done, r.ID)
		} else {
			rounds = append(rounds, r)
		}
	}
	return rounds, closeBatches(ctx, t, done)
}

// Requeue makes every batch whose wake was handed to the queue due by its due time, or now if that is
// over, rather than at the end of its dispatch timeout: the queue lost its wakes. It returns how many.
func (s *Store) Requeue(ctx context.Context) (int, error) {
	n, err := writeFor(ctx, s, "make queued batches due", func(t tx) (int64, error) {
		now := micros(s.Now())
		return t.exec(ctx, `UPDATE batches SET run_at = CASE WHEN due_at > $1 THEN due_at ELSE $1 END
			WHERE id IN (SELECT id FROM batches WHERE state = 2 AND state < 4 AND run_at > $1 ORDER BY id`+t.forUpdate()+`)`, now)
	})
	return int(n), err
}

// Unqueue makes batches whose wakes did not reach the queue due by their due time, or now if that is over,
// unless somebody else has them by now.
func (s *Store) Unqueue(ctx context.Context, wakes []core.Wake) error {
	for page := range slices.Chunk(wakes, unqueuePage) {
		err := s.write(ctx, "make batches due whose wakes were lost", func(t tx) error {
			now := micros(s.Now())
			sets := make([][]any, len(page))
			for i := range page {
				sets[i] = []any{page[i].Batch[:], page[i].Fence, now}
			}
			slices.SortFunc(sets, func(a, b []any) int { return bytes.Compare(a[0].([]byte), b[0].([]byte)) }) // as everybody locks them
			err := t.write(ctx, `UPDATE batches SET run_at = CASE WHEN due_at > $3 THEN due_at ELSE $3 END
				WHERE id = $1 AND fence = $2 AND state = 2 AND run_at > $3`, sets)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// unqueuePage is how many batches one transaction of Unqueue takes, lostPage one of Unclaimed.
const unqueuePage, lostPage = 500, 500

// Strays takes up to limit batches that are overdue on routes that are not in the list, and says how many that were. It
// moves their alarm clocks on by until. Those of which something ran out of time it takes under a new fence and the
// given lease instead, and returns as rounds: nobody else would ever say that it expired. Nor would anybody close those
// with nothing pending any more, which it does.
func (s *Store) Strays(ctx context.Context, routes []string, limit int, until, lease time.Duration) (rounds []*core.Round, found int, err error) {
	known := ""
	var names []any
	for i, r := range routes {
		known += fmt.Sprintf("$%d, ", i+3)
		names = append(names, r)
	}
	if known != "" {
		known = " AND route NOT IN (" + strings.TrimSuffix(known, ", ") + ")"
	}
	err = s.b.update(ctx, func(t tx) error {
		rounds, found = nil, 0
		now := s.Now()
		var ids [][]byte
		var strays []*core.Round
		err := t.query(ctx, "SELECT "+takenColumns+" FROM batches WHERE state IN (1, 2) AND state < 4 AND run_at <= $1"+known+" ORDER BY run_at LIMIT $2"+t.skipLocked(), func(r row) error {
			x, err := scanTaken(r, now, lease)
			strays, ids = append(strays, x), append(ids, x.ID[:])
			return err
		}, append([]any{micros(now), int64(limit)}, names...)...)
		if err != nil {
			return err
		}
		found = len(ids)
		if err := t.execIDs(ctx, "UPDATE batches SET run_at = $1 WHERE id {ids}", ids, micros(now.Add(until))); err != nil {
			return err
		}
		waits := map[core.ID]bool{} // it has something pending, and nothing that expired
		err = t.queryIDs(ctx, "SELECT batch_id, min(expires_at) FROM deliveries WHERE batch_id {ids} AND state = 1 GROUP BY batch_id", ids, func(r row) error {
			var id core.ID
			var first time.Time
			err := r.Scan(key{&id}, stamp{&first})
			waits[id] = first.After(now)
			return err
		})
		if err != nil {
			return err
		}
		over := slices.DeleteFunc(strays, func(r *core.Round) bool { return waits[r.ID] })
		rounds, err = take(ctx, t, over, 1)
		return err
	})
	if err != nil {
		return nil, 0, s.fail("look for strays", err)
	}
	return rounds, found, nil
}
