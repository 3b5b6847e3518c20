package store_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/store"
)

// within fails the test where fn takes longer than limit.
func within(t *testing.T, limit time.Duration, what string, fn func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		t.Fatalf("%s: no answer within %v", what, limit)
		return nil
	}
}

// TestPostgresHangs: of a server that says nothing everybody hears within a bound, with a connection or without;
// it is used again as soon as it answers, and Close does not wait for it.
func TestPostgresHangs(t *testing.T) {
	t.Parallel()
	_, link, s := overProxy(t)
	record := func() error {
		_, err := s.Record(context.Background(), acceptance(s, 1)) // as one who waits for as long as it takes
		return err
	}
	if err := record(); err != nil {
		t.Fatal(err)
	}
	hung := func() {
		link.Hang()
		const callers = 8 // more than there are committers
		answers := make(chan error, callers)
		for range callers {
			go func() { answers <- record() }()
		}
		if err := within(t, 3*time.Second, "ping", func() error { return s.Ping(context.Background()) }); !errors.Is(err, core.ErrUnavailable) {
			t.Errorf("ping: %v", err)
		}
		for range callers {
			if err := within(t, 13*time.Second, "record", func() error { return <-answers }); !errors.Is(err, core.ErrUnavailable) {
				t.Errorf("record: %v", err)
			}
		}
		read := func() error {
			_, err := s.Principal(context.Background(), [32]byte{})
			return err
		}
		if err := within(t, 18*time.Second, "read", read); !errors.Is(err, core.ErrUnavailable) {
			t.Errorf("read: %v", err)
		}
	}
	hung()
	link.Heal()
	back := func() (err error) {
		for range 10 {
			if err = record(); err == nil {
				break
			}
		}
		return err
	}
	if err := within(t, 30*time.Second, "back", back); err != nil {
		t.Errorf("it is back: %v", err)
	}
	link.Hang()
	late := make(chan error, 1)
	go func() { late <- record() }()
	if err := within(t, 6*time.Second, "close", s.Close); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := within(t, time.Second, "record while it closes", func() error { return <-late }); !errors.Is(err, core.ErrUnavailable) {
		t.Errorf("record while it closes: %v", err)
	}
}

// TestPostgresLocked: nobody waits longer than his own ten seconds for a group that waits for somebody's lock, though its
// transaction has fifteen.
func TestPostgresLocked(t *testing.T) {
	t.Parallel()
	url := coretest.Postgres(t)
	s := open(t, store.Options{URL: url})
	tx, err := raw(t, url).BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), "LOCK TABLE notifications"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err = s.Record(context.Background(), acceptance(s, 1))
	if !errors.Is(err, core.ErrUnavailable) || !strings.Contains(err.Error(), "did not answer within 10s") {
		t.Errorf("after %v it says %v", time.Since(began), err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Record(t.Context(), acceptance(s, 1)); err != nil {
		t.Errorf("the lock is gone: %v", err)
	}
}

// TestPostgresFailover: a server that takes no writes any more is left for the one that its name now leads to.
func TestPostgresFailover(t *testing.T) {
	t.Parallel()
	before, after := coretest.StartPostgres(t, ""), coretest.StartPostgres(t, "")
	name := filepath.Join(t.TempDir(), "primary")
	lead := func(to *coretest.PostgresServer) {
		t.Helper()
		next := name + ".next"
		if err := errors.Join(os.Symlink(to.Socket(), next), os.Rename(next, name)); err != nil {
			t.Fatal(err)
		}
	}
	link := coretest.StartProxy(t, "unix:"+name)
	open := func() *store.Store {
		t.Helper()
		s, err := store.Open(t.Context(), store.Options{URL: before.DSN(link.Addr)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	lead(after) // which has what the other has
	if err := open().Close(); err != nil {
		t.Fatal(err)
	}
	lead(before)
	byRecord, byPing := open(), open()
	for _, s := range []*store.Store{byRecord, byPing} {
		if err := s.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	lead(after)
	db := raw(t, "postgres://postgres@/postgres?host="+filepath.Dir(before.Socket()))
	for _, q := range []string{"ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"} {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	// The server tells those that are connected before it lets anybody else in.
	db.SetMaxIdleConns(0)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for on := ""; on != "on"; <-tick.C {
		if err := db.QueryRowContext(t.Context(), "SHOW default_transaction_read_only").Scan(&on); err != nil {
			t.Fatal(err)
		}
	}
	for what, try := range map[string]func() error{
		"record": func() error { _, err := byRecord.Record(t.Context(), acceptance(byRecord, 1)); return err },
		"ping":   func() error { return byPing.Ping(t.Context()) },
	} {
		var err error
		for range 20 { // more than there are connections
			if err = try(); err == nil {
				break
			}
			if !errors.Is(err, core.ErrUnavailable) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %q", what, err)
			}
		}
		if err != nil {
			t.Errorf("%s is still with the old server: %v", what, err)
		}
	}
	if n := count(t, raw(t, "postgres://postgres@/postgres?host="+filepath.Dir(after.Socket())), "SELECT count(*) FROM notifications"); n != 1 {
		t.Errorf("the new server has %d notifications", n)
	}
}

// TestPostgresURL: what cannot work is said at once, in one line that names the cause.
func TestPostgresURL(t *testing.T) {
	t.Parallel()
	server := coretest.StartPostgres(t, "")
	link := coretest.StartProxy(t, "unix:"+server.Socket())
	plain := server.DSN(link.Addr)
	for name, test := range map[string]struct{ url, want string }{
		"one connection":  {plain + "&pool_max_conns=1", "at least 2"},
		"two connections": {plain + "&pool_max_conns=2", ""},
		"no database":     {strings.NewReplacer("/postgres?", "/nobody?", "disable", "prefer").Replace(plain), "does not exist"},
		"no TLS":          {strings.Replace(plain, "disable", "require", 1), "server refused TLS connection"},
	} {
		open := func() error {
			s, err := store.Open(context.Background(), store.Options{URL: test.url})
			if err == nil {
				s.Close()
			}
			return err
		}
		err := within(t, 20*time.Second, name, open)
		switch {
		case test.want == "" && err != nil, test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: %v", name, err)
		case err != nil && strings.ContainsAny(err.Error(), "\n\t"), name == "no database" && strings.Contains(err.Error(), "TLS"):
			t.Errorf("%s: %q", name, err)
		}
	}
}
