package store_test

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// raw is a store's database without the store.
func raw(t testing.TB, url string) *sql.DB {
	t.Helper()
	driver, name := "pgx", url
	if path, lite := strings.CutPrefix(url, "sqlite:"); lite {
		driver, name = "sqlite", "file:"+path+"?_pragma=busy_timeout(5000)"
	}
	db, err := sql.Open(driver, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func count(t testing.TB, db *sql.DB, q string) (n int) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), q).Scan(&n); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	return n
}

// bothStores runs a test on an empty store of each kind.
func bothStores(t *testing.T, test func(t *testing.T, url string)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { t.Parallel(); test(t, sqliteURL(t)) })
	t.Run("postgres", func(t *testing.T) { t.Parallel(); test(t, coretest.Postgres(t)) })
}

// perform claims a batch and settles it, each delivery with a result.
func perform(t *testing.T, s *store.Store, w core.Wake, result func(core.Delivery) providers.Result) {
	t.Helper()
	r, err := s.Claim(t.Context(), w, "w", time.Minute)
	if err != nil || r == nil {
		t.Fatalf("claim %s: %v %v", w.Batch, r, err)
	}
	st := &core.Settlement{Batch: r.Batch, Worker: "w", At: r.Now, Silent: true}
	for _, d := range r.Deliveries {
		res := result(d)
		v := d.Apply(res, core.Policy{MaxAttempts: 9, MaxUnknown: 9, Min: time.Millisecond, Max: time.Millisecond, MaxAfter: time.Minute}, st.At, 0.5)
		a := core.Attempt{Delivery: d.ID, Outcome: res.Outcome, State: v.Delivery.State}
		if v.Held {
			a.HeldTill = v.DueAt.UnixMilli()
		}
		st.Verdicts, st.Results = append(st.Verdicts, v), append(st.Results, a)
	}
	st.Split(st.At, false)
	if stale, err := s.Settle(t.Context(), st); err != nil || stale {
		t.Fatalf("settle: %v %v", stale, err)
	}
}

func sent(core.Delivery) providers.Result { return providers.Result{Outcome: providers.Accepted} }

// waitDue is the next wake of the route mail.
func waitDue(t *testing.T, s *store.Store) core.Wake {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		ws, err := s.Due(ctx, "mail", providers.Normal, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(ws) > 0 {
			return ws[0]
		}
	}
	t.Fatal("nothing is due")
	return core.Wake{}
}

// recordTogether records notifications until two of them share a batch.
func recordTogether(t *testing.T, s *store.Store, as []*core.Acceptance) {
	t.Helper()
	var wg sync.WaitGroup
	for _, a := range as {
		wg.Go(func() {
			if _, err := s.Record(t.Context(), a); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestSweepLeavesNothing: when what is finished was removed, nothing of it is left in any table, however its
// batches were split and shared; and a page counts who points at it.
func TestSweepLeavesNothing(t *testing.T) {
	t.Parallel()
	bothStores(t, func(t *testing.T, url string) {
		s := open(t, store.Options{URL: url, KeyLife: time.Millisecond})
		db := raw(t, url)
		miscounted := func() int {
			return count(t, db, "SELECT count(*) FROM pages p WHERE refs IS NULL OR refs <> (SELECT count(*) FROM deliveries d WHERE d.page_id = p.id)")
		}
		var as []*core.Acceptance
		for i := range 40 {
			a := acceptance(s, 3)
			a.Key = fmt.Sprint("k", i)
			a.Contents[0].Title = fmt.Sprint("Hello ", i)
			for d := range a.Deliveries {
				a.Deliveries[d].MaxUnknown, a.Deliveries[d].Recipient = 9, "bob"
			}
			as = append(as, a)
		}
		recordTogether(t, s, as)
		if n := miscounted(); n > 0 || count(t, db, "SELECT count(*) FROM pages") == 0 {
			t.Errorf("%d pages do not count their deliveries", n)
		}
		// Of each notification the first is sent, the second waits in the batch, the third moves on to its own.
		second, third := map[core.ID]bool{}, map[core.ID]bool{}
		done := map[core.ID]bool{}
		for _, a := range as {
			second[a.Deliveries[1].ID], third[a.Deliveries[2].ID] = true, true
		}
		for _, a := range as {
			for _, d := range a.Deliveries {
				if done[d.Batch] {
					continue
				}
				done[d.Batch] = true
				perform(t, s, core.Wake{Batch: d.Batch, Fence: 1, Route: "mail", Lane: providers.Normal}, func(d core.Delivery) providers.Result {
					switch {
					case third[d.ID]:
						return providers.Result{Outcome: providers.Throttled, After: 2500 * time.Millisecond}
					case second[d.ID]:
						return providers.Result{Outcome: providers.Deferred}
					}
					return sent(d)
				})
			}
		}
		if count(t, db, "SELECT count(*) FROM batches WHERE parent IS NOT NULL") == 0 {
			t.Fatal("nothing was split")
		}
		for count(t, db, "SELECT count(*) FROM batches WHERE state < 4") > 0 {
			perform(t, s, waitDue(t, s), sent)
		}
		if _, err := s.Receipt(t.Context(), "mail", providers.Receipt{ID: as[0].Deliveries[1].ID.String(), Event: providers.EventDelivered}); err != nil {
			t.Fatal(err)
		}
		sweepAll(t, s)
		nothingLeft(t, db)
	})
}

// sweepAll removes all that is finished.
func sweepAll(t *testing.T, s *store.Store) {
	t.Helper()
	l, ok, err := s.Acquire(t.Context(), "retention", "test", time.Hour)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	for at, done := (core.ID{}), false; !done; {
		n, err := s.Sweep(t.Context(), l, -time.Minute, at)
		if err != nil {
			t.Fatal(err)
		}
		at, done = n.Next, n.Done
	}
	if err := s.Release(t.Context(), l); err != nil {
		t.Fatal(err)
	}
}

func nothingLeft(t *testing.T, db *sql.DB) {
	t.Helper()
	for _, table := range []string{"notifications", "deliveries", "batches", "rounds", "late_rounds", "receipts", "pages", "idempotency", "retired"} {
		if n := count(t, db, "SELECT count(*) FROM "+table); n != 0 {
			t.Errorf("%d rows are left in %s", n, table)
		}
	}
}

// TestEmptyBatches: a batch whose deliveries all went elsewhere, or were removed before its time, is removed as it is
// closed: no delivery leads retention to it.
func TestEmptyBatches(t *testing.T) {
	t.Parallel()
	bothStores(t, func(t *testing.T, url string) {
		s := open(t, store.Options{URL: url})
		db := raw(t, url)
		const wait = 4 * time.Second // for a slow machine to do all that is to be done before
		later := func(a *core.Acceptance) { a.Notification.SendAt = s.Now().Add(wait) }
		climbs, cancelled := acceptance(s, 2), acceptance(s, 1)
		later(cancelled)
		n, first, second := &climbs.Notification, &climbs.Deliveries[0], &climbs.Deliveries[1]
		n.Mode, n.FallbackAfter = core.ModeFallback, wait
		first.Ladder, first.Route, second.Ladder, second.Step, second.Held = first.ID, "push", first.ID, 1, core.HeldFallback
		second.DueAt = n.SendAt.Add(n.FallbackAfter)
		for _, a := range []*core.Acceptance{climbs, cancelled} {
			if _, err := s.Record(t.Context(), a); err != nil {
				t.Fatal(err)
			}
		}
		left := second.Batch
		if n, err := s.Cancel(t.Context(), "shop", cancelled.Notification.ID); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		perform(t, s, core.Wake{Batch: first.Batch, Fence: 1, Route: "push"}, func(core.Delivery) providers.Result { return providers.Result{Outcome: providers.Rejected} })
		if w := waitDue(t, s); w.Batch == left || w.Batch == cancelled.Deliveries[0].Batch {
			t.Fatal("the second step did not go at once")
		} else {
			perform(t, s, w, sent)
		}
		sweepAll(t, s)
		if n := count(t, db, "SELECT count(*) FROM deliveries"); n != 0 {
			t.Fatalf("%d deliveries are left", n)
		}
		for range 2 {
			if r, err := s.Claim(t.Context(), waitDue(t, s), "w", time.Minute); r != nil || err != nil {
				t.Fatalf("a batch without deliveries became a round: %+v %v", r, err)
			}
		}
		nothingLeft(t, db)
	})
}

// TestErasedContent: a page that held one person's content alone goes with the person, a shared one stays.
func TestErasedContent(t *testing.T) {
	t.Parallel()
	bothStores(t, func(t *testing.T, url string) {
		s := open(t, store.Options{URL: url})
		db := raw(t, url)
		if _, err := s.PutRecipient(t.Context(), &core.Recipient{App: "shop", ID: "bob"}); err != nil {
			t.Fatal(err)
		}
		own, shared := acceptance(s, 2), acceptance(s, 2)
		own.Deliveries[0].Recipient, own.Deliveries[1].Recipient, shared.Deliveries[0].Recipient = "bob", "bob", "bob"
		for _, a := range []*core.Acceptance{own, shared} {
			if _, err := s.Record(t.Context(), a); err != nil {
				t.Fatal(err)
			}
		}
		if n := count(t, db, "SELECT count(*) FROM pages"); n != 2 {
			t.Fatalf("%d pages", n)
		}
		if err := s.DeleteRecipient(t.Context(), "shop", "bob"); err != nil {
			t.Fatal(err)
		}
		if n, refs := count(t, db, "SELECT count(*) FROM pages"), count(t, db, "SELECT sum(refs) FROM pages"); n != 1 || refs != 1 {
			t.Errorf("%d pages with %d references are left", n, refs)
		}
	})
}

// TestKeyLife: a key is free when its life is over, and removed then.
func TestKeyLife(t *testing.T) {
	t.Parallel()
	bothStores(t, func(t *testing.T, url string) {
		const life = 300 * time.Millisecond
		s := open(t, store.Options{URL: url, KeyLife: life})
		a := acceptance(s, 1)
		a.Key = "k"
		if _, err := s.Record(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		l, _, err := s.Acquire(t.Context(), "retention", "test", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		for ended := a.Notification.CreatedAt.Add(time.Minute); s.Now().Before(ended); {
			n, err := s.Sweep(t.Context(), l, 0, core.ID{})
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Answered(t.Context(), "shop", "k", a.BodyHash)
			if early := s.Now().Sub(a.Notification.CreatedAt) < life; early && err != nil { // by the time after it was asked for
				t.Errorf("forgotten early: %v", err)
			}
			if n.Keys == 1 {
				return
			}
		}
		t.Error("it was not removed")
	})
}

// BenchmarkSweep removes finished notifications of one delivery each while somebody accepts one at a time. It
// reports what a removed notification costs against an accepted one, and how much longer the slowest twentieth
// of accepts take beside it than alone.
func BenchmarkSweep(b *testing.B) {
	for _, c := range []struct {
		name string
		url  func(testing.TB) string
	}{{"sqlite", sqliteURL}, {"postgres", coretest.Postgres}} {
		b.Run(c.name, func(b *testing.B) {
			b.StopTimer()
			s := open(b, store.Options{URL: c.url(b)})
			n := max(b.N, 10_000)
			var batches sync.Map // shared by those recorded together
			spread(16, n, func(int) {
				a := acceptance(s, 1)
				if _, err := s.Record(b.Context(), a); err != nil {
					b.Error(err)
					return
				}
				if _, done := batches.LoadOrStore(a.Deliveries[0].Batch, true); !done {
					deliver(b, s, core.Wake{Batch: a.Deliveries[0].Batch, Fence: 1})
				}
			})
			accept := func(while func(int) bool) (slow, mean time.Duration) {
				var all []time.Duration
				var sum time.Duration
				for i := 0; while(i); i++ {
					began := time.Now()
					if _, err := s.Record(b.Context(), acceptance(s, 1)); err != nil {
						b.Error(err)
					}
					all, sum = append(all, time.Since(began)), sum+time.Since(began)
				}
				slices.Sort(all)
				return all[len(all)*95/100], sum / time.Duration(len(all))
			}
			alone, mean := accept(func(i int) bool { return i < 300 })
			l, _, err := s.Acquire(b.Context(), "retention", "bench", time.Hour)
			if err != nil {
				b.Fatal(err)
			}
			end := make(chan struct{})
			beside := make(chan time.Duration)
			go func() {
				slow, _ := accept(func(int) bool {
					select {
					case <-end:
						return false
					default:
						return true
					}
				})
				beside <- slow
			}()
			removed, worked := 0, time.Duration(0)
			b.StartTimer()
			for at, done := (core.ID{}), false; !done && removed < n; {
				began := time.Now()
				one, err := s.Sweep(b.Context(), l, time.Microsecond, at)
				if err != nil {
					b.Fatal(err)
				}
				took := time.Since(began)
				at, done, removed, worked = one.Next, one.Done, removed+one.Notifications, worked+took
				time.Sleep(4 * took) // as core/app does
			}
			b.StopTimer()
			close(end)
			slow := <-beside
			if removed < n/2 {
				b.Fatalf("%d of %d were removed", removed, n)
			}
			b.ReportMetric(float64(worked)/float64(removed)/float64(mean), "removed/accepted")
			b.ReportMetric(float64(slow)/float64(alone), "beside/alone")
		})
	}
}
