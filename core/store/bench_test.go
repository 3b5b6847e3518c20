package store_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

func both(b *testing.B, bench func(b *testing.B, s *store.Store)) {
	for _, c := range []struct {
		name string
		url  func(testing.TB) string
	}{{"sqlite", sqliteURL}, {"postgres", coretest.Postgres}} {
		b.Run(c.name, func(b *testing.B) { bench(b, open(b, store.Options{URL: c.url(b)})) })
	}
}

// spread runs n calls of work on that many callers at once.
func spread(callers, n int, work func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				work(int(i) - 1)
			}
		})
	}
	wg.Wait()
}

// BenchmarkRecord accepts notifications of one delivery each, durably.
func BenchmarkRecord(b *testing.B) {
	both(b, func(b *testing.B, s *store.Store) {
		for _, callers := range []int{1, 64} {
			b.Run(map[int]string{1: "1", 64: "64"}[callers], func(b *testing.B) {
				spread(callers, b.N, func(int) {
					if _, err := s.Record(b.Context(), acceptance(s, 1)); err != nil {
						b.Error(err)
					}
				})
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "accepts/s")
			})
		}
	})
}

// BenchmarkRound claims and settles batches of 100, eight workers at once.
func BenchmarkRound(b *testing.B) {
	both(b, func(b *testing.B, s *store.Store) {
		b.StopTimer()
		as := make([]*core.Acceptance, b.N)
		for i := range as {
			as[i] = acceptance(s, 100)
			if _, err := s.Record(b.Context(), as[i]); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
		spread(8, b.N, func(i int) {
			deliver(b, s, core.Wake{Batch: as[i].Deliveries[0].Batch, Fence: 1})
		})
		b.ReportMetric(100*float64(b.N)/b.Elapsed().Seconds(), "deliveries/s")
	})
}

// BenchmarkClaim claims batches of 100 mails to 100 people, eight workers at once, while nobody's address is
// suppressed, and when one in a hundred is.
func BenchmarkClaim(b *testing.B) {
	both(b, func(b *testing.B, s *store.Store) {
		for _, some := range []bool{false, true} {
			b.Run(map[bool]string{false: "nobody", true: "suppressed"}[some], func(b *testing.B) {
				b.StopTimer()
				as := make([]*core.Acceptance, b.N)
				for i := range as {
					as[i] = acceptance(s, 100)
					for n := range as[i].Deliveries {
						as[i].Deliveries[n].Address = fmt.Sprintf("u%d-%d@example.com", i%100, n)
					}
					if _, err := s.Record(b.Context(), as[i]); err != nil {
						b.Fatal(err)
					}
					if some && i < 100 {
						bounced := providers.Receipt{ID: as[i].Deliveries[i].ID.String(), Event: providers.EventBounced, Code: "5.1.1"}
						if found, err := s.Receipt(b.Context(), "mail", bounced); !found || err != nil {
							b.Fatal(found, err)
						}
					}
				}
				b.StartTimer()
				spread(8, b.N, func(i int) {
					r, err := s.Claim(b.Context(), core.Wake{Batch: as[i].Deliveries[0].Batch, Fence: 1}, "w", time.Minute)
					if err != nil || r == nil {
						b.Errorf("%+v %v", r, err)
					}
				})
				b.ReportMetric(100*float64(b.N)/b.Elapsed().Seconds(), "deliveries/s")
			})
		}
	})
}

// BenchmarkSingles is the whole way of notifications of one delivery each, by 64 callers: accepted, claimed
// and settled. Beside the rate it reports the process's own CPU per delivery, and how many shared a batch.
func BenchmarkSingles(b *testing.B) {
	for _, c := range []struct {
		name string
		url  func(testing.TB) string
	}{{"sqlite", sqliteURL}, {"postgres", coretest.Postgres}} {
		b.Run(c.name, func(b *testing.B) {
			s := open(b, store.Options{URL: c.url(b), Room: func(core.Wake) int { return 1000 }})
			var rounds atomic.Int64
			var working sync.WaitGroup
			const each = 100
			before := processCPU(b)
			spread(64, each*b.N, func(int) {
				out, err := s.Record(b.Context(), acceptance(s, 1))
				if err != nil {
					b.Error(err)
				}
				for _, w := range out.Wakes {
					rounds.Add(1)
					working.Go(func() { deliver(b, s, w) })
				}
			})
			working.Wait()
			n := float64(each * b.N)
			b.ReportMetric((processCPU(b)-before).Seconds()*1e6/n, "cpu-us/delivery")
			b.ReportMetric(n/b.Elapsed().Seconds(), "deliveries/s")
			b.ReportMetric(n/float64(rounds.Load()), "deliveries/batch")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// deliver is a round whose every delivery is accepted.
func deliver(b *testing.B, s *store.Store, w core.Wake) {
	r, err := s.Claim(b.Context(), w, "w", time.Minute)
	if err != nil || r == nil {
		b.Errorf("%+v %v", r, err)
		return
	}
	st := &core.Settlement{Batch: r.Batch, Worker: "w", At: r.Now}
	for _, d := range r.Deliveries {
		st.Verdicts = append(st.Verdicts, d.Apply(providers.Result{Outcome: providers.Accepted, ProviderID: d.ID.String()}, core.DefaultPolicy, r.Now, 0))
		st.Results = append(st.Results, core.Attempt{Delivery: d.ID, Outcome: providers.Accepted, State: core.Sent})
	}
	st.Split(r.Now, false)
	if _, err := s.Settle(b.Context(), st); err != nil {
		b.Error(err)
	}
}

// processCPU is what this process has used.
func processCPU(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
