package store

import (
	"context"

	"github.com/carillon-notify/carillon/core"
)

// PauseRoute pauses a route or lets it go on. Rounds that begin afterwards know of it. Resuming makes
// what was held because of the pause due at once; what waits for other reasons goes on waiting.
func (s *Store) PauseRoute(ctx context.Context, route string, paused bool) error {
	now, at := micros(s.Now()), int64(0)
	if paused {
		at = now
	}
	return s.write(ctx, "pause a route", func(t tx) error {
		_, err := t.exec(ctx, `INSERT INTO routes (name, paused_at) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET paused_at = excluded.paused_at`, route, at)
		if err != nil || paused {
			return err
		}
		_, err = t.exec(ctx, `UPDATE batches SET due_at = $2, run_at = $2 WHERE id IN (SELECT b.id FROM batches b WHERE b.route = $1 AND b.state < 3 AND b.due_at > $2
			AND EXISTS (SELECT 1 FROM deliveries d WHERE d.batch_id = b.id AND d.state = 1 AND d.code = $3) ORDER BY b.id`+t.forUpdate()+`)`, route, now, core.CodePaused)
		return err
	})
}

// Paused lists the routes that are paused.
func (s *Store) Paused(ctx context.Context) (map[string]bool, error) {
	out := map[string]bool{}
	err := s.read(ctx, "read paused routes", "SELECT name FROM routes WHERE paused_at > 0", func(r row) error {
		var name string
		err := r.Scan(&name)
		out[name] = true
		return err
	})
	return out, err
}

// Backlog counts the batches that wait, by route and lane.
func (s *Store) Backlog(ctx context.Context) ([]core.Backlog, error) {
	var out []core.Backlog
	err := s.read(ctx, "count the backlog", `SELECT route, lane,
			sum(CASE WHEN state = 1 THEN 1 ELSE 0 END), sum(CASE WHEN state = 2 THEN 1 ELSE 0 END), sum(CASE WHEN state = 3 THEN 1 ELSE 0 END),
			COALESCE(min(CASE WHEN due_at <= $1 THEN due_at END), 0)
		FROM batches WHERE state < 4 GROUP BY route, lane ORDER BY route, lane`, func(r row) error {
		var b core.Backlog
		var lane int64
		err := r.Scan(&b.Route, &lane, &b.Pending, &b.Queued, &b.Sending, stamp{&b.Oldest})
		b.Lane = laneOf(lane)
		out = append(out, b)
		return err
	}, micros(s.Now()))
	return out, err
}
