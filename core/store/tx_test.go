package store_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/store"
)

// TestWritesInOrder: what is written is there for the next statement, though it may have waited to travel with
// it; and a write that fails undoes all, though the commit may be what tells.
func TestWritesInOrder(t *testing.T) {
	t.Parallel()
	for name, url := range map[string]func() string{
		"SQLite": func() string { return "sqlite:" + filepath.Join(t.TempDir(), "s.db") }, "PostgreSQL": func() string { return coretest.Postgres(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := store.Open(t.Context(), store.Options{URL: url()})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			add := func(tx store.Tx, names ...string) error {
				var rows [][]any
				for i, n := range names {
					rows = append(rows, []any{n, int64(i / 2)})
				}
				return tx.Insert(t.Context(), "routes", "name, paused_at", rows)
			}
			names := func(tx store.Tx, want ...string) {
				t.Helper()
				got, err := tx.Names(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Error(d)
				}
			}
			update := func(fn func(tx store.Tx) error) error { return s.Update(context.Background(), fn) }
			if err := update(func(tx store.Tx) error {
				if err := add(tx, "a"); err != nil {
					return err
				}
				if err := add(tx, "b", "c", "d"); err != nil {
					return err
				}
				names(tx, "a", "b", "c", "d")
				return add(tx, "e")
			}); err != nil {
				t.Fatal(err)
			}
			if err := update(func(tx store.Tx) error {
				if err := add(tx, "f"); err != nil {
					return err
				}
				return add(tx, "a")
			}); err == nil {
				t.Error("a name was taken twice")
			}
			if name == "PostgreSQL" { // SQLite minds no types
				if err := update(func(tx store.Tx) error {
					return tx.Insert(t.Context(), "routes", "name, paused_at", [][]any{{"g", int64(1)}, {"h", "one"}})
				}); err == nil {
					t.Error("a text was taken for a number")
				}
			}
			if err := update(func(tx store.Tx) error { names(tx, "a", "b", "c", "d", "e"); return nil }); err != nil {
				t.Fatal(err)
			}
		})
	}
}
