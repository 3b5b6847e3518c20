package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// Overdue reports whether any batch that is not done has its run_at behind it.
func (s *Store) Overdue(ctx context.Context) (bool, error) {
	found := false
	err := s.read(ctx, "look for overdue batches", "SELECT 1 FROM batches WHERE state < 4 AND run_at <= $1 LIMIT 1", func(row) error {
		found = true
		return nil
	}, micros(s.Now()))
	return found, err
}

// Due takes up to limit overdue batches of a route and lane, makes them queued under a new fence and
// returns their wakes: in turns between apps, each app's longest overdue first. A paused route's are
// left alone.
func (s *Store) Due(ctx context.Context, route string, lane core.Lane, limit int) ([]core.Wake, error) {
	if limit <= 0 {
		return nil, nil
	}
	paused, err := s.Paused(ctx)
	if err != nil || paused[route] {
		return nil, err
	}
	apps, err := s.dueApps(ctx, route, lane)
	if err != nil || len(apps) == 0 {
		return nil, err
	}
	var wakes []core.Wake
	err = s.b.update(ctx, func(t tx) error {
		wakes = wakes[:0]
		now := s.Now()
		queues, err := takeDue(ctx, t, now, dueQuery{route: route, lane: lane, limit: limit}, apps)
		if err != nil {
			return err
		}
		var sets [][]any
		for i := 0; len(wakes) < limit; i++ { // one of each app in turn
			found := false
			for _, q := range queues {
				if i < len(q) && len(wakes) < limit {
					found = true
					b := q[i]
					b.Fence++
					sets = append(sets, []any{b.ID[:], b.Fence - 1, b.Fence, micros(now.Add(core.DispatchTimeout))})
					wakes = append(wakes, core.Wake{Batch: b.ID, Fence: b.Fence, Route: route, Lane: lane, At: b.DueAt})
				}
			}
			if !found {
				break
			}
		}
		_, err = t.execMany(ctx, "UPDATE batches SET state = 2, fence = $3, run_at = $4 WHERE id = $1 AND fence = $2 AND state < 3", sets)
		return err
	})
	if err != nil {
		return nil, s.fail("take due batches", err)
	}
	return wakes, nil
}

type dueQuery struct {
	route string
	lane  core.Lane
	limit int
}

// takeDue reads each app's due batches: first an equal share each, then, if that does not fill the
// limit, all that those with more have.
func takeDue(ctx context.Context, t tx, now time.Time, q dueQuery, apps []string) ([][]core.Batch, error) {
	share := (q.limit + len(apps) - 1) / len(apps)
	queues := make([][]core.Batch, len(apps))
	total := 0
	for _, want := range []int{share, q.limit} {
		for i, app := range apps {
			if want > share && len(queues[i]) < share {
				continue // has no more
			}
			total -= len(queues[i])
			queues[i] = queues[i][:0]
			err := t.query(ctx, `SELECT id, fence, due_at FROM batches
				WHERE route = $1 AND lane = $2 AND app = $3 AND state < 3 AND run_at <= $4 ORDER BY run_at LIMIT $5`+t.skipLocked(),
				func(r row) error {
					var b core.Batch
					err := r.Scan(key{&b.ID}, &b.Fence, stamp{&b.DueAt})
					queues[i] = append(queues[i], b)
					return err
				}, q.route, laneNumbers[q.lane], app, micros(now), int64(want))
			if err != nil {
				return nil, fmt.Errorf("read due batches: %w", err)
			}
			total += len(queues[i])
		}
		if total >= q.limit || share >= q.limit {
			break
		}
	}
	return queues, nil
}

// dueApps lists the apps that have a batch waiting on a route and lane, each found by one step in the
// index.
func (s *Store) dueApps(ctx context.Context, route string, lane core.Lane) ([]string, error) {
	var apps []string
	err := s.read(ctx, "list apps that are due", `WITH RECURSIVE a (app) AS (
			SELECT min(app) FROM batches WHERE route = $1 AND lane = $2 AND state < 3
			UNION ALL
			SELECT (SELECT min(b.app) FROM batches b WHERE b.route = $1 AND b.lane = $2 AND b.state < 3 AND b.app > a.app) FROM a WHERE a.app IS NOT NULL)
		SELECT app FROM a WHERE app IS NOT NULL`, func(r row) error {
		var app string
		err := r.Scan(&app)
		apps = append(apps, app)
		return err
	}, route, laneNumbers[lane])
	return apps, err
}

// Lapsed takes up to limit batches whose lease ran out under a new fence and the given lease, and
// returns them as rounds to be settled with unknown outcomes. One with nothing pending is closed.
func (s *Store) Lapsed(ctx context.Context, _ string, limit int, lease time.Duration) ([]*core.Round, error) {
	var rounds []*core.Round
	err := s.b.update(ctx, func(t tx) error {
		rounds = nil
		now := s.Now()
		var sets, done [][]any
		err := t.query(ctx, `SELECT id, app, route, lane, fence, due_at, parent FROM batches WHERE state = 3 AND run_at <= $1
			ORDER BY run_at LIMIT $2`+t.skipLocked(), func(r row) error {
			b := core.Batch{State: core.BatchSending, RunAt: now.Add(lease)}
			var lane int64
			if err := r.Scan(key{&b.ID}, &b.App, &b.Route, &lane, &b.Fence, stamp{&b.DueAt}, key{&b.Parent}); err != nil {
				return err
			}
			b.Lane = laneOf(lane)
			b.Fence++
			sets = append(sets, []any{b.ID[:], b.Fence, micros(b.RunAt)})
			rounds = append(rounds, &core.Round{Batch: b, Now: now, LeaseEnd: b.RunAt})
			return nil
		}, micros(now), int64(limit))
		if err != nil {
			return err
		}
		if _, err := t.execMany(ctx, "UPDATE batches SET fence = $2, run_at = $3 WHERE id = $1", sets); err != nil {
			return err
		}
		if err := loadPending(ctx, t, rounds); err != nil {
			return err
		}
		open := rounds[:0]
		for _, r := range rounds {
			if len(r.Deliveries) == 0 {
				done = append(done, []any{r.ID[:]})
				continue
			}
			open = append(open, r)
		}
		rounds = open
		return closeBatches(ctx, t, done)
	})
	if err != nil {
		return nil, s.fail("take lapsed batches", err)
	}
	return rounds, nil
}

// Stray moves the alarm clock of overdue batches on routes that are not in the list on by until, and
// returns how many there are.
func (s *Store) Stray(ctx context.Context, routes []string, until time.Duration) (int, error) {
	known := ""
	args := []any{micros(s.Now()), micros(s.Now().Add(until))}
	if len(routes) > 0 {
		marks := make([]string, len(routes))
		for i, r := range routes {
			args = append(args, r)
			marks[i] = fmt.Sprintf("$%d", len(args))
		}
		known = " AND route NOT IN (" + strings.Join(marks, ", ") + ")"
	}
	var n int64
	err := s.write(ctx, "look for strays", func(t tx) (err error) {
		n, err = t.exec(ctx, "UPDATE batches SET run_at = $2 WHERE state < 3 AND run_at <= $1"+known, args...)
		return err
	})
	return int(n), err
}
