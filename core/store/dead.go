package store

import (
	"context"
	"strconv"

	"github.com/carillon-notify/carillon/core"
)

// Dead lists an app's deliveries that failed or expired, those accepted last first; next is "" at the end.
func (s *Store) Dead(ctx context.Context, f core.DeadFilter) (out []core.Delivery, next string, err error) {
	limit := limitOf(f.Page)
	from, err := after(f.Page)
	if err != nil {
		return nil, "", err
	}
	where, args := "", []any{f.App, from[:], int64(limit + 1)}
	for _, c := range []struct{ column, value string }{{"route", f.Route}, {"code", f.Code}} {
		if c.value != "" {
			args = append(args, c.value)
			where += " AND " + c.column + " = $" + strconv.Itoa(len(args))
		}
	}
	// The conditions are spelled as in the partial indexes, by the states in SQLite and by the code in PostgreSQL.
	err = s.read(ctx, "list dead deliveries", "SELECT "+readColumns+` FROM deliveries
		WHERE app = $1 AND state IN (4, 5) AND code <> '' AND id < $2`+where+" ORDER BY id DESC LIMIT $3", func(r row) error {
		d, err := scanDelivery(r)
		out = append(out, d)
		return err
	}, args...)
	if len(out) > limit {
		out = out[:limit]
		next = out[limit-1].ID.String()
	}
	return out, next, err
}
