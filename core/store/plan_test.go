package store_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// TestLookupsUseIndexes counts, by PostgreSQL's own statistics, how the store's statements find their rows
// among 30,000 batches that are done: none reads a table from end to end, and what is due is found by the
// partial indexes. Once with fresh statistics of the tables, once with none, as after a flood, and once by
// statements that were planned, and used until their plan stays, while the tables were nearly empty.
func TestLookupsUseIndexes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name            string
		analyzed, early bool
	}{{"analyzed", true, false}, {"never analyzed", false, false}, {"planned while empty", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			url := coretest.Postgres(t)
			db := raw(t, url)
			db.SetMaxOpenConns(1) // a session hands its figures in when it is asked something
			exec := func(q string) {
				t.Helper()
				if _, err := db.ExecContext(t.Context(), q); err != nil {
					t.Fatalf("%s: %v", q, err)
				}
			}
			s, err := store.Open(t.Context(), store.Options{URL: url})
			if err != nil {
				t.Fatal(err)
			}
			for _, table := range []string{"batches", "deliveries", "notifications", "pages", "rounds", "suppressions"} {
				exec("ALTER TABLE " + table + " SET (autovacuum_enabled = false)")
			}
			if c.early {
				for range 40 { // by each of the connections; PostgreSQL keeps a plan after five times
					record(t, s, acceptance(s, 32))
					perform(t, s, waitDue(t, s), sent)
				}
			}
			fill(exec)
			var as []*core.Acceptance
			for range 20 {
				as = append(as, record(t, s, acceptance(s, 1)))
			}
			reopen := func() {
				if err := s.Close(); err != nil { // its sessions hand in their figures as they end
					t.Fatal(err)
				}
				if s, err = store.Open(t.Context(), store.Options{URL: url}); err != nil {
					t.Fatal(err)
				}
			}
			if c.analyzed {
				exec("ANALYZE")
			}
			if !c.early {
				reopen()
			}
			// A session hands its figures in a second later at the earliest: what filling them read is to be in before it is forgotten.
			tick := time.NewTicker(50 * time.Millisecond)
			for count(t, db, "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'batches'") < 2*filled {
				<-tick.C
			}
			tick.Stop()
			exec("SELECT pg_stat_reset()")
			lookups(t, s, as)
			if c.early {
				record(t, s, acceptance(s, 32))
				perform(t, s, waitDue(t, s), sent)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			expectIndexes(t, url)
		})
	}
}

func record(t *testing.T, s *store.Store, a *core.Acceptance) *core.Acceptance {
	t.Helper()
	if _, err := s.Record(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	return a
}

// filled is how many rows fill makes in each of the tables that are looked at. Those of batches it reads twice.
const filled = 30_000

func fill(exec func(q string)) {
	exec(`INSERT INTO batches (id, app, route, lane, state, fence, due_at, run_at)
		SELECT decode(lpad(to_hex(n), 32, '0'), 'hex'), 'app' || n % 7, 'mail', 1, 4, 3, n, n FROM generate_series(1, 30000) n`)
	exec(`INSERT INTO deliveries (id, notification_id, batch_id, app, channel, kind, route, recipient, address, name, page_id, slot, state, attempts,
			unknowns, max_unknown, code, reason, provider_id, created_at, updated_at, expires_at)
		SELECT id, id, id, app, 'email', 'email', 'mail', 'u' || due_at, 'a', '', id, 0, 2, 1, 0, 3, '', '', 'p' || due_at, due_at, due_at, due_at FROM batches
		WHERE due_at <= 30000`)
	exec("INSERT INTO pages (id, body, refs) SELECT id, '[{}]', 1 FROM batches WHERE due_at <= 30000")
	exec(`INSERT INTO suppressions (app, hash, kind, channel, recipient, code, since)
		SELECT CASE n % 2 WHEN 0 THEN 'shop' ELSE 'app' END, decode(md5(n::text), 'hex'), 'email', 'email', '', '5.1.1', 1 FROM generate_series(1, 30000) n`)
}

// lookups are all that relay, workers and readers ask in a round.
func lookups(t *testing.T, s *store.Store, as []*core.Acceptance) {
	t.Helper()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, _, err := s.Overdue(t.Context())
	must(nil, err)
	must(s.Unclaimed(t.Context(), core.RouteLane{Route: "mail", Lane: providers.Normal}, 2*time.Second))
	ws, err := s.Due(t.Context(), "mail", providers.Normal, 100, nil)
	if err != nil || len(ws) == 0 {
		t.Fatal(ws, err)
	}
	for _, w := range ws {
		perform(t, s, w, sent)
	}
	must(s.Lapsed(t.Context(), 10, time.Minute))
	must(s.Requeue(t.Context()))
	_, _, err = s.Strays(t.Context(), []string{"mail"}, 10, time.Minute, time.Minute)
	must(nil, err)
	must(s.Backlog(t.Context()))
	must(s.Notification(t.Context(), "shop", as[0].Notification.ID))
	must(s.Timeline(t.Context(), "shop", as[0].Notification.ID))
	must(s.Cancel(t.Context(), "shop", as[1].Notification.ID))
	must(s.Receipt(t.Context(), "mail", providers.Receipt{ID: as[2].Deliveries[0].ID.String(), Event: providers.EventDelivered}))
	if found, err := s.Receipt(t.Context(), "mail", providers.Receipt{ProviderID: "p15000", Event: providers.EventDelivered}); err != nil || !found {
		t.Errorf("a receipt by the service's id: %v, %v", found, err)
	}
	must(s.Receipt(t.Context(), "mail", providers.Receipt{ProviderID: as[3].Deliveries[0].ID.String(), Event: providers.EventDelivered}))
	forget(t, s)
	must(nil, s.PutPreferences(t.Context(), "shop", "u1", core.Preferences{"*": {"*": false}}, &core.Rules{}))
	l, _, err := s.Acquire(t.Context(), "retention", "test", time.Hour)
	must(nil, err)
	must(s.Sweep(t.Context(), l, time.Hour, core.ID{}))
	must(s.Sweep(t.Context(), l, -time.Minute, core.ID{}))
}

// forget lists what went to a recipient, and erases it.
func forget(t *testing.T, s *store.Store) {
	t.Helper()
	const app, id = "app6", "u15000"
	_, perr := s.PutRecipient(t.Context(), &core.Recipient{App: app, ID: id})
	_, _, nerr := s.Notifications(t.Context(), core.NotificationFilter{App: app, Recipient: id})
	_, _, ierr := s.Inbox(t.Context(), app, id, core.Page{}, false)
	messages, _, merr := s.MessagesTo(t.Context(), app, id, "")
	if err := errors.Join(perr, nerr, ierr, merr, s.DeleteRecipient(t.Context(), app, id)); err != nil || len(messages) != 1 {
		t.Fatalf("%d messages to the recipient: %v", len(messages), err)
	}
	if messages, _, err := s.MessagesTo(t.Context(), app, id, ""); err != nil || len(messages) != 0 {
		t.Errorf("after it was erased: %d messages, %v", len(messages), err)
	}
}

// expectIndexes looks at what PostgreSQL counted.
func expectIndexes(t *testing.T, url string) {
	t.Helper()
	db := raw(t, url)
	figures := func(q string) map[string]int {
		t.Helper()
		rows, err := db.QueryContext(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		out := map[string]int{}
		for rows.Next() {
			var name string
			var n int
			if err := rows.Scan(&name, &n); err != nil {
				t.Fatal(err)
			}
			out[name] = n
		}
		return out
	}
	const indexes = "SELECT indexrelname, idx_scan FROM pg_stat_user_indexes"
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	// A session hands its figures in when it has ended, a moment after its client left.
	for end := time.Now().Add(30 * time.Second); figures(indexes)["batches_parent"] == 0 && time.Now().Before(end); {
		<-tick.C
	}
	for sessions := 1; sessions > 0; {
		sessions = count(t, db, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'carillon' AND datname = current_database()")
		<-tick.C
	}
	used := figures(indexes)
	for _, name := range []string{"batches_due", "batches_alarm", "batches_parent", "batches_pkey", "deliveries_batch", "deliveries_notification", "deliveries_pkey", "deliveries_provider", "deliveries_recipient", "suppressions_pkey"} {
		if used[name] == 0 {
			t.Errorf("index %s was not used", name)
		}
	}
	for table, n := range figures("SELECT relname, seq_tup_read FROM pg_stat_user_tables") {
		if n > 1000 && !strings.HasPrefix(table, "goose") {
			t.Errorf("%d rows of %s were read from end to end", n, table)
		}
	}
	for index, n := range figures("SELECT indexrelname, idx_tup_read FROM pg_stat_user_indexes") {
		if n > 10_000 {
			t.Errorf("%d entries of %s were read", n, index)
		}
	}
}
