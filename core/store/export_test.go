package store

import (
	"context"
	"io/fs"
)

// Migrations are this version's.
var Migrations fs.FS = migrations

// OpenAs is Open for a version with other migrations.
func OpenAs(ctx context.Context, o Options, with fs.FS) (*Store, error) {
	o.migrations = with
	return Open(ctx, o)
}
