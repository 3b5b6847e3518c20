package store_test

import (
	"fmt"
	"testing"

	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// backlog records n overdue batches of one delivery each for an app, in a store of such batches.
func backlog(tb testing.TB, s *store.Store, app string, n int) {
	tb.Helper()
	for n > 0 {
		a := acceptance(s, min(n, 1000))
		a.Notification.App = app
		for i := range a.Deliveries {
			a.Deliveries[i].App = app
		}
		if _, err := s.Record(tb.Context(), a); err != nil {
			tb.Fatal(err)
		}
		n -= len(a.Deliveries)
	}
}

// BenchmarkDue takes due batches, 200 at a time, out of backlogs of a thousand and of a hundred thousand
// of one app; and looks for what is due while that app has no room, as the relay
// does again and again.
func BenchmarkDue(b *testing.B) {
	one := func(string) int { return 1 }
	for _, db := range []struct {
		name string
		url  func(testing.TB) string
	}{{"sqlite", sqliteURL}, {"postgres", coretest.Postgres}} {
		for _, size := range []int{1_000, 100_000} {
			b.Run(fmt.Sprintf("%s/%d", db.name, size), func(b *testing.B) {
				s := open(b, store.Options{URL: db.url(b), MaxBatch: one})
				left := 0
				b.Run("200", func(b *testing.B) {
					for range b.N {
						if left < 200 {
							b.StopTimer()
							backlog(b, s, "flood", size)
							left += size
							b.StartTimer()
						}
						ws, err := s.Due(b.Context(), "mail", providers.Normal, 500, func(string) int { return 200 })
						if err != nil || len(ws) != 200 {
							b.Fatal(len(ws), err)
						}
						left -= len(ws)
					}
				})
				backlog(b, s, "flood", size)
				b.Run("no room", func(b *testing.B) {
					for b.Loop() {
						if ws, err := s.Due(b.Context(), "mail", providers.Normal, 500, func(string) int { return 0 }); err != nil || len(ws) > 0 {
							b.Fatal(len(ws), err)
						}
					}
				})
			})
		}
	}
}
