package store_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// overProxy opens a store on a server of this test alone, with a proxy in between.
func overProxy(t *testing.T) (*coretest.PostgresServer, *coretest.Proxy, *store.Store) {
	t.Helper()
	server := coretest.StartPostgres(t, "")
	link := coretest.StartProxy(t, "unix:"+server.Socket())
	s, err := store.Open(t.Context(), store.Options{URL: server.DSN(link.Addr)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return server, link, s
}

// TestPostgresClock: the time is not taken from an answer that was long on its way. Deliveries would be
// due, and leases over, by as much too early or too late.
func TestPostgresClock(t *testing.T) {
	t.Parallel()
	_, link, s := overProxy(t)
	link.Mute()
	asked := make(chan error, 1)
	go func() { asked <- s.AskClock(t.Context()) }()
	const hung = 1500 * time.Millisecond
	<-time.After(hung)
	link.Heal()
	if err := <-asked; err != nil {
		t.Fatal(err)
	}
	if off := time.Since(s.Now()).Abs(); off > hung/3 {
		t.Errorf("after an answer that hung for %v its time is off by %v", hung, off)
	}
}

// TestPostgresAway: a server that cannot be reached, or takes nobody in, is away: clients come again.
func TestPostgresAway(t *testing.T) {
	t.Parallel()
	server, link, s := overProxy(t)
	for name, gone := range map[string]func(){"cut": link.Cut, "killed": func() { server.Kill(); link.Heal() }} {
		gone()
		if _, err := s.Requeue(t.Context()); !errors.Is(err, core.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	server.Restart(t)
	link.Heal()
	if _, err := s.Requeue(t.Context()); err != nil {
		t.Errorf("it is back: %v", err)
	}
}

// TestSettlingIsHOT: PostgreSQL puts a settled delivery's row beside the one that it replaces, so that no index
// is written, whatever the service called it, if it says nothing more.
func TestSettlingIsHOT(t *testing.T) {
	t.Parallel()
	url := coretest.Postgres(t)
	s, err := store.Open(t.Context(), store.Options{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	const n = 500
	a := acceptance(s, n)
	if _, err := s.Record(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	for done := map[core.ID]bool{}; len(done) < n; {
		ws, err := s.Due(t.Context(), "mail", providers.Normal, 100, nil)
		if err != nil || len(ws) == 0 {
			t.Fatal(ws, err)
		}
		for _, w := range ws {
			perform(t, s, w, func(d core.Delivery) providers.Result {
				done[d.ID] = true
				return providers.Result{Outcome: providers.Accepted, ProviderID: "the service's " + d.ID.String()}
			})
		}
	}
	if err := s.Close(); err != nil { // its sessions hand in their figures as they end
		t.Fatal(err)
	}
	db := raw(t, url)
	const updates = "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'deliveries'"
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); count(t, db, updates) < n && time.Now().Before(end); {
		<-tick.C
	}
	all, hot := count(t, db, updates), count(t, db, "SELECT n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'deliveries'")
	if all < n || hot < all*80/100 { // the service's ids make the rows longer than the half of a page that is kept free
		t.Errorf("%d of %d settlements were HOT", hot, all)
	}
}

// direct is the URL of a server's one database over its socket.
func direct(server *coretest.PostgresServer) string {
	return "postgres://postgres@/postgres?sslmode=disable&host=" + filepath.Dir(server.Socket())
}

// TestPgBouncer: a store behind a pool of sessions, which takes no parameters of the connection that it
// does not know, and still commits durably.
func TestPgBouncer(t *testing.T) {
	t.Parallel()
	server := coretest.StartPostgres(t, "")
	url := coretest.PgBouncer(t, server, "session")
	s, err := store.Open(t.Context(), store.Options{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	record(t, s, acceptance(s, 3))
	perform(t, s, waitDue(t, s), sent)
	for name, want := range map[string]string{"synchronous_commit": "on", "enable_seqscan": "off", "jit": "off"} {
		if got, err := s.Setting(t.Context(), name); err != nil || got != want {
			t.Errorf("%s is %q (%v), not %q", name, got, err, want)
		}
	}
}

// TestPgBouncerOfTransactions: a pool that gives a session away after each transaction is refused at once, before anything
// is written or a lock is left behind, and the error names its setting. That holds while others use the pool.
func TestPgBouncerOfTransactions(t *testing.T) {
	t.Parallel()
	server := coretest.StartPostgres(t, "")
	t.Cleanup(func() { // once all have tried
		for what, q := range map[string]string{"locks": "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", "tables": "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"} {
			var n int
			if err := raw(t, direct(server)).QueryRowContext(context.WithoutCancel(t.Context()), q).Scan(&n); err != nil || n != 0 {
				t.Errorf("%d %s are left: %v", n, what, err)
			}
		}
	})
	for name, more := range map[string][]string{
		"transaction":        nil,
		"transaction, one":   {"default_pool_size = 1"},
		"transaction, robin": {"server_round_robin = 1"},
		"transaction, reset": {"server_reset_query_always = 1"},
		"statement":          nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mode, _, _ := strings.Cut(name, ",")
			url := coretest.PgBouncer(t, server, mode, more...)
			errs := make(chan error)
			const starts = 6
			for range starts {
				go func() {
					s, err := store.Open(t.Context(), store.Options{URL: url})
					if err == nil {
						s.Close()
					}
					errs <- err
				}()
			}
			for range starts {
				err := within(t, 10*time.Second, "an opening", func() error { return <-errs })
				if !errors.Is(err, store.ErrPooled) || !strings.Contains(err.Error(), "pool_mode = session") || strings.Contains(err.Error(), "\n") {
					t.Errorf("it says %v", err)
				}
			}
		})
	}
}

// crowd is all that ask at once for what takes long, and how many of them have a connection.
type crowd struct {
	all, turns int
	begun      func() int
	ended      <-chan error
}

// leavesRoom holds that a crowd has its turns and no more, that others go on meanwhile, and that who has no turn hears of
// it within a bound.
func leavesRoom(t *testing.T, c crowd, others map[string]func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); c.begun() < c.turns; <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%d of %d have begun", c.begun(), c.turns)
		}
	}
	for range 8 { // as many as there are committers, and the spare connection, at least
		for what, do := range others {
			// Less than those who have no turn wait for one, and long enough for a busy machine.
			if err := within(t, 3*time.Second, what, do); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	for range c.all - c.turns {
		if err := within(t, 8*time.Second, "one without a turn", func() error { return <-c.ended }); !errors.Is(err, core.ErrUnavailable) {
			t.Errorf("one without a turn: %v", err)
		}
	}
	if n := c.begun(); n != c.turns {
		t.Errorf("%d at once, not %d", n, c.turns)
	}
}

// TestWritersLeaveRoom: administrative writes that wait for a row, however many, keep nothing from being accepted or
// read; who waits for them hears within a bound, and they go on when the row is free.
func TestWritersLeaveRoom(t *testing.T) {
	t.Parallel()
	url := coretest.Postgres(t)
	s, err := store.Open(t.Context(), store.Options{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	record(t, s, acceptance(s, 1))
	if _, err := s.PutRecipient(t.Context(), &core.Recipient{App: "shop", ID: "u1"}); err != nil {
		t.Fatal(err)
	}
	db := raw(t, url)
	held, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Rollback() }()
	if _, err := held.ExecContext(t.Context(), "SELECT 1 FROM recipients FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	const slow, turns = 32, 4 // of 16 connections
	ended := make(chan error, slow)
	for range slow {
		go func() {
			_, err := s.PutRecipient(t.Context(), &core.Recipient{App: "shop", ID: "u1"})
			ended <- err
		}()
	}
	waiting := func() int {
		return count(t, db, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'carillon' AND wait_event_type = 'Lock'")
	}
	leavesRoom(t, crowd{slow, turns, waiting, ended}, map[string]func() error{
		"record": func() error { _, err := s.Record(t.Context(), acceptance(s, 1)); return err },
		"read":   func() error { _, err := s.Recipient(t.Context(), "shop", "u1"); return err },
	})
	if err := held.Rollback(); err != nil {
		t.Fatal(err)
	}
	for range turns {
		if err := within(t, 5*time.Second, "a write that waited", func() error { return <-ended }); err != nil {
			t.Errorf("a write that waited: %v", err)
		}
	}
}

// TestReadersLeaveRoom: slow reads, however many, keep nothing from being accepted, nor the server from being asked
// how it is; and who waits for them hears within a bound.
func TestReadersLeaveRoom(t *testing.T) {
	t.Parallel()
	url := coretest.Postgres(t)
	s, err := store.Open(t.Context(), store.Options{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	record(t, s, acceptance(s, 1))
	const slow, turns = 32, 8 // of 16 connections
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, slow)
	for range slow {
		go func() { ended <- s.Sleep(ctx, 12) }()
	}
	db := raw(t, url)
	asleep := func() int {
		return count(t, db, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_sleep%' AND application_name = 'carillon' AND state = 'active'")
	}
	leavesRoom(t, crowd{slow, turns, asleep, ended}, map[string]func() error{
		"record":       func() error { _, err := s.Record(t.Context(), acceptance(s, 1)); return err },
		"ping":         func() error { return s.Ping(t.Context()) },
		"ask the time": func() error { return s.AskClock(t.Context()) },
	})
	cancel()
	for range turns {
		if err := within(t, 5*time.Second, "a read that is given up", func() error { return <-ended }); !errors.Is(err, context.Canceled) {
			t.Errorf("a read that is given up: %v", err)
		}
	}
	if err := within(t, 5*time.Second, "a read after them", func() error { return s.Sleep(t.Context(), 0) }); err != nil {
		t.Errorf("a read after them: %v", err)
	}
}
