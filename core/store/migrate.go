package store

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
)

//go:embed migrations
var migrations embed.FS

// migrate brings the schema up to date. Migrations are numbered by theme (00010 and on: operation, 00020:
// recipients, 00030: campaigns), and each is run once in whichever order versions bring them; none may
// need one of a higher number.
func migrate(ctx context.Context, db *sql.DB, dialect string) error {
	sub, err := fs.Sub(migrations, "migrations/"+dialect)
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
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("apply the migrations: %w", err)
	}
	return nil
}
