package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/pressly/goose/v3"
)

//go:embed migrations
var migrations embed.FS

// ErrNewerSchema says that a newer version changed the database in a way that this one cannot work with.
var ErrNewerSchema = errors.New("a newer version of Carillon changed this database in a way that this version cannot work with: start that version or a later one; nothing was touched")

// schemaNeeds asks whether the table schema_needs is there.
var schemaNeeds = map[string]string{
	"sqlite":   "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'schema_needs'",
	"postgres": "SELECT count(to_regclass('schema_needs'))",
}

// migrate brings the schema up to date. Migrations are numbered by theme (00010 and on: operation, 00020:
// recipients, 00030: campaigns), and each is run once in whichever order versions bring them; none may
// need one of a higher number. There is no way back.
//
// A schema that is newer than this version is left as it is: either all that is new in it is compatible,
// and this version goes on beside the newer one, or a migration said in schema_needs that it is not, and
// the error is ErrNewerSchema.
func migrate(ctx context.Context, db *sql.DB, dialect string, o *Options) error {
	from := o.migrations
	if from == nil {
		from = migrations
	}
	sub, err := fs.Sub(from, "migrations/"+dialect)
	if err != nil {
		return fmt.Errorf("find the migrations: %w", err)
	}
	d := goose.DialectSQLite3
	if dialect == "postgres" {
		d = goose.DialectPostgres
	}
	p, err := goose.NewProvider(d, db, sub, goose.WithDisableGlobalRegistry(true), goose.WithAllowOutofOrder(true))
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	known := map[int64]bool{}
	for _, s := range p.ListSources() {
		known[s.Version] = true
	}
	if err := canWork(ctx, db, dialect, known); err != nil {
		return err
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("apply the migrations: %w", err)
	}
	return tellNewer(ctx, db, known, o.Logger)
}

// canWork reports whether this version knows all that the schema needs.
func canWork(ctx context.Context, db *sql.DB, dialect string, known map[int64]bool) error {
	var there int
	if err := db.QueryRowContext(ctx, schemaNeeds[dialect]).Scan(&there); err != nil {
		return fmt.Errorf("look at the schema: %w", err)
	}
	if there == 0 {
		return nil
	}
	needs, err := versions(ctx, db, "SELECT version FROM schema_needs ORDER BY version")
	if err != nil {
		return fmt.Errorf("ask what the schema needs: %w", err)
	}
	for _, v := range needs {
		if !known[v] {
			return fmt.Errorf("%w (it needs migration %05d)", ErrNewerSchema, v)
		}
	}
	return nil
}

// tellNewer says what this version goes on beside without knowing it.
func tellNewer(ctx context.Context, db *sql.DB, known map[int64]bool, log *slog.Logger) error {
	applied, err := versions(ctx, db, "SELECT version_id FROM goose_db_version WHERE version_id > 0 ORDER BY version_id")
	if err != nil {
		return fmt.Errorf("ask which migrations were applied: %w", err)
	}
	var newer []int64
	for _, v := range applied {
		if !known[v] {
			newer = append(newer, v)
		}
	}
	if len(newer) > 0 {
		log.Info("the database is of a newer version; this one goes on with it", "migrations", newer)
	}
	return nil
}

func versions(ctx context.Context, db *sql.DB, q string) (out []int64, err error) {
	rows, err := db.QueryContext(ctx, q)
	if err != nil {
		return nil, err
	}
	err = drain(rows, func(r row) error {
		var v int64
		err := r.Scan(&v)
		out = append(out, v)
		return err
	})
	return out, err
}
