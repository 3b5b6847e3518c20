package store_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/core/store/storetest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		child(path)
		return
	}
	if url := os.Getenv(migratorEnv); url != "" {
		migrator(url)
		return
	}
	// A step of the model is a transaction with a sync: a dozen sequences per run; more with
	// -rapid.checks on the command line.
	if err := flag.Set("rapid.checks", "12"); err != nil {
		panic(err)
	}
	code := m.Run()
	coretest.StopServers()
	os.Exit(code)
}

func open(t testing.TB, o store.Options) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func sqliteURL(t testing.TB) string { return "sqlite:" + filepath.Join(t.TempDir(), "carillon.db") }

func TestSQLite(t *testing.T) {
	t.Parallel()
	ran := statements{seen: map[string]bool{}}
	t.Cleanup(func() { ran.useIndexes(t) }) // when all parts are done
	storetest.Run(t, func(t *testing.T) *store.Store {
		s := open(t, store.Options{URL: sqliteURL(t)})
		ran.watch(s)
		return s
	})
}

func TestPostgres(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) *store.Store { return open(t, store.Options{URL: coretest.Postgres(t)}) })
}
