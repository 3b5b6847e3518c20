package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// reportLife is how long a report is kept: long after the process that wrote it is gone.
const reportLife = time.Hour

// Report tells the other processes how the routes are that this one delivers over, and forgets those of it
// that are not among them any more.
func (s *Store) Report(ctx context.Context, process string, reports []core.RouteReport) error {
	now := micros(s.Now())
	sets := make([][]any, len(reports))
	for i := range reports {
		text, err := json.Marshal(&reports[i])
		if err != nil {
			return fmt.Errorf("encode the report of route %s: %w", reports[i].Route, err)
		}
		sets[i] = []any{process, clean(reports[i].Route), now, text}
	}
	return s.write(ctx, "report on the routes", func(t tx) error {
		err := t.write(ctx, `INSERT INTO route_reports (process, route, at, report) VALUES ($1, $2, $3, $4)
			ON CONFLICT (process, route) DO UPDATE SET at = excluded.at, report = excluded.report`, sets)
		if err != nil {
			return err
		}
		_, err = t.exec(ctx, "DELETE FROM route_reports WHERE process = $1 AND at < $2 OR at < $3", process, now, now-reportLife.Microseconds())
		return err
	})
}

// Reports lists what every process told of its routes that is no older than an age, by route and process.
func (s *Store) Reports(ctx context.Context, age time.Duration) ([]core.RouteReport, error) {
	var out []core.RouteReport
	err := s.read(ctx, "read the reports on routes", "SELECT process, route, at, report FROM route_reports WHERE at >= $1 ORDER BY route, process", func(r row) error {
		var one core.RouteReport
		var text []byte
		if err := r.Scan(&one.Process, &one.Route, stamp{&one.At}, &text); err != nil {
			return err
		}
		out = append(out, one)
		return json.Unmarshal(text, &out[len(out)-1])
	}, micros(s.Now().Add(-age)))
	return out, err
}
