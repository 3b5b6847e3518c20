package store_test

import (
	"context"
	"errors"
	"fmt"
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
				early, err := tx.ReadNames(t.Context())
				if err != nil {
					return err
				}
				if err := add(tx, "e"); err != nil {
					return err
				}
				names(tx, "a", "b", "c", "d", "e")
				if d := cmp.Diff([]string{"a", "b", "c", "d"}, *early); d != "" {
					t.Errorf("read before one was added, and told with the next answer: %s", d)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			unread := errors.New("it cannot be read")
			if err := update(func(tx store.Tx) error {
				if err := tx.Read(t.Context(), "SELECT 1", unread); err != nil {
					return err
				}
				return add(tx, "z")
			}); !errors.Is(err, unread) {
				t.Errorf("a row that cannot be read: %v", err)
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

// TestShapesAreBounded: INSERTs come in as many shapes as there are sets of columns that rows have in common. Neither
// database keeps them all; and SQLite closes none that is being read.
func TestShapesAreBounded(t *testing.T) {
	t.Parallel()
	for name, url := range map[string]func() string{
		"SQLite": func() string { return "sqlite:" + filepath.Join(t.TempDir(), "s.db") }, "PostgreSQL": func() string { return coretest.Postgres(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			where := url()
			s := open(t, store.Options{URL: where})
			const shapes, rows = 256, 4
			fill := func(tx store.Tx, shape int) error {
				var all [][]any
				for i := range rows {
					one := []any{"", fmt.Sprintf("%d.%d", shape, i), []byte{0}, "", "", int64(0), int64(0), []byte{0}, ""}
					for bit, at := range []int{0, 2, 3, 4, 5, 6, 7, 8} {
						if shape&(1<<bit) == 0 {
							continue
						}
						switch one[at].(type) {
						case string:
							one[at] = fmt.Sprint("text ", i)
						case int64:
							one[at] = int64(i)
						case []byte:
							one[at] = []byte{byte(i)}
						}
					}
					all = append(all, one)
				}
				return tx.Insert(t.Context(), "recipients", "app, id, attributes, locale, timezone, created_at, updated_at, preferences, quiet_hours", all)
			}
			for pass := range 2 {
				err := s.Update(t.Context(), func(tx store.Tx) error {
					for shape := range shapes {
						if err := fill(tx, pass*shapes+shape); err != nil {
							return fmt.Errorf("shape %d: %w", shape, err)
						}
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			if n := count(t, raw(t, where), "SELECT count(*) FROM recipients"); n != 2*shapes*rows {
				t.Errorf("%d rows, not %d", n, 2*shapes*rows)
			}
			if prepared, texts := s.Kept(); prepared > store.MostKept || texts > store.MostKept || texts == 0 {
				t.Errorf("%d statements and %d texts are kept", prepared, texts)
			}
		})
	}
}

// TestOpenStatementStays: a statement whose rows are being read is not closed to make room for others.
func TestOpenStatementStays(t *testing.T) {
	t.Parallel()
	s := open(t, store.Options{URL: sqliteURL(t)})
	want := []string{"a", "b", "c"}
	var got []string
	err := s.Update(t.Context(), func(tx store.Tx) error {
		for _, n := range want {
			if err := tx.Insert(t.Context(), "routes", "name, paused_at", [][]any{{n, int64(1)}}); err != nil {
				return err
			}
		}
		return tx.EachName(t.Context(), func(name string) error {
			got = append(got, name)
			for i := range store.MostKept + 10 {
				if err := tx.Run(t.Context(), fmt.Sprintf("UPDATE routes SET paused_at = %d WHERE name = '%s'", i, name)); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if prepared, _ := s.Kept(); prepared > store.MostKept {
		t.Errorf("%d statements are kept", prepared)
	}
}
