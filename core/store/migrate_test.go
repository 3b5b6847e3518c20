package store_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// migratorEnv makes the test binary a process that opens a store, says so, and waits for its input's end.
const migratorEnv = "CARILLON_STORE_TEST_MIGRATOR"

func migrator(url string) {
	s, err := store.Open(context.Background(), store.Options{URL: url})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	fmt.Println("open")
	if err := s.Close(); err != nil {
		fmt.Println("error", err)
	}
}

// version is the number of a migration's file.
func version(t testing.TB, file string) int64 {
	t.Helper()
	number, _, _ := strings.Cut(path.Base(file), "_")
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		t.Fatalf("%s has no number: %v", file, err)
	}
	return n
}

// set is this version's migrations, changed.
func set(t testing.TB, keep func(version int64) bool, add map[string]string) fs.FS {
	t.Helper()
	out := fstest.MapFS{}
	for file, text := range files(t) {
		if keep == nil || keep(version(t, file)) {
			out[file] = &fstest.MapFile{Data: []byte(text)}
		}
	}
	for name, text := range add {
		for _, dialect := range []string{"sqlite", "postgres"} {
			out["migrations/"+dialect+"/"+name] = &fstest.MapFile{Data: []byte(text)}
		}
	}
	return out
}

// files are the texts of this version's migrations.
func files(t testing.TB) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := fs.WalkDir(store.Migrations, ".", func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(store.Migrations, file)
		out[file] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// later is what a later version might add that this one can work with.
var later = map[string]string{"90001_later.sql": `-- +goose Up
ALTER TABLE deliveries ADD COLUMN mood TEXT;
ALTER TABLE batches ADD COLUMN weight BIGINT NOT NULL DEFAULT 1;
ALTER TABLE notifications ADD COLUMN theme TEXT NOT NULL DEFAULT '';
CREATE TABLE moods (name TEXT PRIMARY KEY);
CREATE INDEX deliveries_mood ON deliveries (mood);
`}

// TestProcessesMigrateTogether: several processes that start at once on an empty PostgreSQL all come up, and
// each migration was applied once.
func TestProcessesMigrateTogether(t *testing.T) {
	t.Parallel()
	url := coretest.Postgres(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			cmd := exec.CommandContext(t.Context(), exe)
			cmd.Env = append(os.Environ(), migratorEnv+"="+url)
			out, err := cmd.CombinedOutput()
			if err != nil || strings.TrimSpace(string(out)) != "open" {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	db := raw(t, url)
	if n := count(t, db, "SELECT count(*) - count(DISTINCT version_id) FROM goose_db_version"); n != 0 {
		t.Errorf("%d migrations were applied again", n)
	}
	if n, want := count(t, db, "SELECT count(*) FROM goose_db_version WHERE version_id > 0"), len(files(t))/2; n != want {
		t.Errorf("%d of %d migrations were applied", n, want)
	}
	if n := count(t, db, "SELECT count(*) FROM pg_index WHERE NOT indisvalid"); n != 0 {
		t.Errorf("%d indexes are not whole", n)
	}
}

// TestOlderBesideNewer: this version works on while and after a newer one changed the schema compatibly, and
// starts on it.
func TestOlderBesideNewer(t *testing.T) {
	t.Parallel()
	bothStores(t, func(t *testing.T, url string) {
		work := func(s *store.Store) {
			t.Helper()
			a := acceptance(s, 2)
			if _, err := s.Record(t.Context(), a); err != nil {
				t.Fatal(err)
			}
			perform(t, s, core.Wake{Batch: a.Deliveries[0].Batch, Fence: 1, Route: "mail", Lane: providers.Normal}, sent)
			if v, err := s.Notification(t.Context(), "shop", a.Notification.ID); err != nil || v.Counts.Sent != 2 {
				t.Fatalf("%+v %v", v, err)
			}
		}
		s, err := store.Open(t.Context(), store.Options{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		work(s)
		if strings.HasPrefix(url, "sqlite:") { // one process: they are not beside each other
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		newer, err := store.OpenAs(t.Context(), store.Options{URL: url}, set(t, nil, later))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(url, "sqlite:") {
			work(s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		work(newer)
		if err := newer.Close(); err != nil {
			t.Fatal(err)
		}
		var log strings.Builder
		s = open(t, store.Options{URL: url, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		work(s)
		if !strings.Contains(log.String(), "newer version") || !strings.Contains(log.String(), "90001") {
			t.Errorf("it says %q of the newer schema", log.String())
		}
	})
}

// TestIncompatible: a version that does not know what the schema needs refuses, in one line, and the one
// that does starts.
func TestIncompatible(t *testing.T) {
	t.Parallel()
	bothStores(t, func(t *testing.T, url string) {
		next := set(t, nil, map[string]string{"90002_break.sql": "-- +goose Up\nALTER TABLE batches RENAME COLUMN rounds TO tries;\nINSERT INTO schema_needs VALUES (90002);\n"})
		s, err := store.OpenAs(t.Context(), store.Options{URL: url}, next)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		_, err = store.Open(t.Context(), store.Options{URL: url})
		if !errors.Is(err, store.ErrNewerSchema) || !strings.Contains(err.Error(), "90002") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v", err)
		}
		if s, err = store.OpenAs(t.Context(), store.Options{URL: url}, next); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestGaps: a database that lacks migrations in the middle, as versions of several themes leave it, gets them.
func TestGaps(t *testing.T) {
	t.Parallel()
	bothStores(t, func(t *testing.T, url string) {
		for i, keep := range []func(int64) bool{
			func(v int64) bool { return v < 10 },
			func(v int64) bool { return v < 10 || v >= 20 && v < 30 },
			nil,
		} {
			s, err := store.OpenAs(t.Context(), store.Options{URL: url}, set(t, keep, map[string]string{"00029_other.sql": "-- +goose Up\nCREATE TABLE other (x BIGINT);\n"}))
			if err != nil {
				t.Fatalf("step %d: %v", i, err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		s := open(t, store.Options{URL: url})
		if _, ok, err := s.Acquire(t.Context(), "x", "y", 1); err != nil || !ok {
			t.Error(ok, err)
		}
	})
}

var (
	breaking = regexp.MustCompile(`(?i)\bDROP\s+(TABLE|COLUMN)\b|\bRENAME\b|\bALTER\s+COLUMN\b|\bADD\s+COLUMN\b[^,;]*\bNOT\s+NULL\b`)
	defaults = regexp.MustCompile(`(?i)\bADD\s+COLUMN\b[^,;]*\bNOT\s+NULL\b[^,;]*\bDEFAULT\b|\bADD\s+COLUMN\b[^,;]*\bDEFAULT\b[^,;]*\bNOT\s+NULL\b`)
	indexOn  = regexp.MustCompile(`(?i)CREATE\s+(?:UNIQUE\s+)?INDEX\s+(CONCURRENTLY\s+)?(?:IF\s+NOT\s+EXISTS\s+)?\w+\s+ON\s+(\w+)`)
	created  = regexp.MustCompile(`(?i)CREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?(\w+)`)
	comments = regexp.MustCompile(`(?m)--.*$`)
)

// TestMigrationsAreForwardAndCompatible reads every migration: the same on both databases, none that goes
// back, none that older versions could not go on with unless it says so, and no index that is built on a
// large table while everybody waits.
func TestMigrationsAreForwardAndCompatible(t *testing.T) {
	t.Parallel()
	names := map[string][]string{}
	all := files(t)
	for _, file := range slices.Sorted(maps.Keys(all)) {
		text := all[file]
		dialect := path.Base(path.Dir(file))
		names[dialect] = append(names[dialect], path.Base(file))
		if strings.Contains(text, "+goose Down") {
			t.Errorf("%s goes back", file)
		}
		v := version(t, file)
		if v < 10 {
			continue // before the rule; nobody runs anything older
		}
		sql := comments.ReplaceAllString(text, "")
		for _, statement := range strings.Split(sql, ";") {
			marked := strings.Contains(sql, "schema_needs VALUES ("+strconv.FormatInt(v, 10)+")")
			if breaking.MatchString(statement) && !defaults.MatchString(statement) && !marked {
				t.Errorf("%s: older versions cannot go on with%s\nexpand now and contract in a later release, or insert %d into schema_needs", file, statement, v)
			}
		}
		fresh := map[string]bool{}
		for _, m := range created.FindAllStringSubmatch(sql, -1) {
			fresh[m[1]] = true
		}
		for _, m := range indexOn.FindAllStringSubmatch(sql, -1) {
			if dialect == "postgres" && !fresh[m[2]] && m[1] == "" {
				t.Errorf("%s builds an index on %s while its writers wait: use CONCURRENTLY, in a migration with NO TRANSACTION", file, m[2])
			}
		}
	}
	if diff := cmp.Diff(names["postgres"], names["sqlite"]); diff != "" {
		t.Errorf("the databases' migrations differ:\n%s", diff)
	}
}
