package store_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/store"
)

// TestPostgresOpenRefuses: a start that cannot go on says in one line why, and what to do, without the password.
func TestPostgresOpenRefuses(t *testing.T) {
	t.Parallel()
	server := coretest.StartPostgres(t, "")
	db := raw(t, direct(server))
	for _, q := range []string{"CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0", "CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0",
		"CREATE DATABASE standby", "ALTER DATABASE standby SET default_transaction_read_only = on",
		"CREATE DATABASE owned", "REVOKE CREATE ON SCHEMA public FROM PUBLIC", "CREATE ROLE guest LOGIN", "CREATE ROLE crowd LOGIN CONNECTION LIMIT 1"} {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	host := "?sslmode=disable&host=" + strings.TrimSuffix(server.Socket(), "/.s.PGSQL.5432")
	link := coretest.StartProxy(t, "unix:"+server.Socket())
	for name, c := range map[string]struct{ url, want string }{
		"no TLS":            {"postgres://postgres:geheim@" + link.Addr + "/postgres?sslmode=require", "turn TLS on at the server, or write sslmode=disable"},
		"no such user":      {"postgres://nobody:geheim@/postgres" + host, "correct the user, the database or sslmode in the URL"},
		"no such database":  {"postgres://postgres:geheim@/nosuch" + host, "make it: CREATE DATABASE"},
		"another's":         {"postgres://guest:geheim@/postgres" + host, "must own the database and what is in it"},
		"another encoding":  {"postgres://postgres:geheim@/latin" + host, "encoding is LATIN1, which cannot keep every text: make one with ENCODING 'UTF8'"},
		"no encoding":       {"postgres://postgres:geheim@/ascii" + host, ""},
		"read-only":         {"postgres://postgres:geheim@/standby" + host, "have the URL lead to the primary"},
		"no primary":        {"postgres://postgres:geheim@/standby" + host + "&target_session_attrs=read-write", "none of the URL's servers takes writes"},
		"no such parameter": {"postgres://postgres:geheim@/postgres" + host + "&sslmod=require", "correct the parameters in the URL"},
		"one connection":    {"postgres://crowd:geheim@/postgres" + host, "a second connection to PostgreSQL (a process opens up to pool_max_conns"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := store.Open(t.Context(), store.Options{URL: c.url})
			if err == nil {
				s.Close()
			}
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "geheim") || strings.Contains(err.Error(), "\n") {
				t.Errorf("it says %v, not %q", err, c.want)
			}
		})
	}
}

// TestPostgresSession: what a server, database or role is set to does not weaken what a commit is, or how transactions
// see each other.
func TestPostgresSession(t *testing.T) {
	t.Parallel()
	server := coretest.StartPostgres(t, "")
	db := raw(t, direct(server))
	for _, q := range []string{"ALTER DATABASE postgres SET synchronous_commit = off", "ALTER ROLE postgres SET default_transaction_isolation = 'serializable'"} {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	s, err := store.Open(t.Context(), store.Options{URL: direct(server)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	record(t, s, acceptance(s, 3))
	perform(t, s, waitDue(t, s), sent)
	for name, want := range map[string]string{"synchronous_commit": "on", "transaction_isolation": "read committed"} {
		if got, err := s.Setting(t.Context(), name); err != nil || got != want {
			t.Errorf("%s is %q (%v), not %q", name, got, err, want)
		}
	}
}

// TestMigrationsAreUnbound: the time-outs of a role end no migration, nor the session that holds their lock meanwhile. They
// hold afterwards.
func TestMigrationsAreUnbound(t *testing.T) {
	t.Parallel()
	server := coretest.StartPostgres(t, "")
	db := raw(t, direct(server))
	for _, name := range []string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"} {
		if _, err := db.ExecContext(t.Context(), "ALTER ROLE postgres SET "+name+" = '700ms'"); err != nil {
			t.Fatal(err)
		}
	}
	long := set(t, nil, map[string]string{"99999_long.sql": "-- +goose Up\nSELECT pg_sleep(1.5);\n"})
	s, err := store.OpenAs(t.Context(), store.Options{URL: direct(server)}, long)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	for range 20 { // whichever connection
		if got, err := s.Setting(t.Context(), "statement_timeout"); err != nil || got != "700ms" {
			t.Fatalf("statement_timeout is %q (%v) afterwards", got, err)
		}
	}
}

// TestMigrationsLockIsHeld: a start that waits for a lock that nobody gives back says who holds it.
func TestMigrationsLockIsHeld(t *testing.T) {
	t.Parallel()
	url := coretest.Postgres(t)
	conn, err := raw(t, url).Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var pid string
	if err := conn.QueryRowContext(t.Context(), "SELECT pg_backend_pid()::text FROM (SELECT pg_advisory_lock($1)) AS l", store.MigrateLock).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	said := make(lines, 10)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	opened := make(chan error, 1)
	go func() {
		s, err := store.Open(ctx, store.Options{URL: url, Logger: slog.New(slog.NewTextHandler(said, nil))})
		if err == nil {
			s.Close()
		}
		opened <- err
	}()
	select {
	case line := <-said:
		if !strings.Contains(line, "waits for the migrations of another process") || !strings.Contains(line, "held_by="+pid) {
			t.Errorf("it says %q; the holder is %s", line, pid)
		}
	case err := <-opened:
		t.Fatalf("it did not wait: %v", err)
	}
	if _, err := conn.ExecContext(t.Context(), "SELECT pg_advisory_unlock($1)", store.MigrateLock); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

// lines takes what is written to a log.
type lines chan string

// Write implements io.Writer.
func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}
