package host_test

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/plugins/host"
	"github.com/carillon-notify/carillon/providers"
)

// misdeeds are what a plugin may do while another one works. Each opens one, supervised as it would be in
// earnest, and returns what goes on until ctx ends.
var misdeeds = map[string]func(t testing.TB) func(ctx context.Context){
	"crashing at once": func(t testing.TB) func(context.Context) {
		return func(ctx context.Context) {
			openKind(t, host.Isolate(obedientKind(), earnest(t, "exit")), `{}`)
			<-ctx.Done()
		}
	},
	"crashing in calls": func(t testing.TB) func(context.Context) {
		return keep(open(t, earnest(t, "obedient"), `{}`), "exit")
	},
	"hanging": func(t testing.TB) func(context.Context) {
		hang := keep(open(t, earnest(t, "obedient"), `{}`), "deaf")
		return func(ctx context.Context) {
			var wg sync.WaitGroup
			for range 16 {
				wg.Go(func() { hang(ctx) })
			}
			wg.Wait()
		}
	},
	"stopped": func(t testing.TB) func(context.Context) {
		p := open(t, earnest(t, "obedient"), `{}`)
		pid := pidOf(t, p)
		return func(ctx context.Context) {
			kill(t, pid, syscall.SIGSTOP)
			keep(p, "hello")(ctx)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	},
	"flooding": func(t testing.TB) func(context.Context) {
		return keep(open(t, earnest(t, "obedient"), `{}`), "flood:10")
	},
	"leaking": func(t testing.TB) func(context.Context) {
		s := earnest(t, "obedient")
		s.Memory = 400 << 20
		return keep(open(t, s, `{}`), "leak")
	},
	"answering without end": func(t testing.TB) func(context.Context) {
		return keep(open(t, earnest(t, "raw", "endless"), `{}`), "misbehave")
	},
}

// earnest is a spec with the timing that is used outside of tests.
func earnest(t testing.TB, part string, args ...string) host.Spec {
	s := spec(t, part, args...)
	s.Timing = host.Timing{}
	return s
}

// keep delivers such messages until ctx ends, whatever becomes of them.
func keep(p providers.Provider, body string) func(ctx context.Context) {
	return func(ctx context.Context) {
		for ctx.Err() == nil {
			call, cancel := context.WithTimeout(ctx, 2*time.Second)
			_ = p.Deliver(call, messages(body), func(providers.Result) {})
			cancel()
			<-time.After(10 * time.Millisecond) // in quarantine it is answered at once
		}
	}
}

// neighbour works at a steady pace beside a misdeed, and returns how many messages it delivered in turns
// without and with it, and the slowest call.
func neighbour(t testing.TB, prepare func(testing.TB) func(context.Context), turn time.Duration) (alone, beside float64, slowest time.Duration) {
	p := open(t, spec(t, "obedient"), `{}`)
	var delivered, longest atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	var working sync.WaitGroup
	working.Go(func() {
		// A service that answers after 5 ms, called by one worker.
		batch := messages(append([]string{"slow:5ms"}, make([]string, batchSize-1)...)...)
		for ctx.Err() == nil {
			began := time.Now()
			call, cancel := context.WithTimeout(ctx, patient)
			n := 0
			err := p.Deliver(call, batch, func(providers.Result) { n++ })
			cancel()
			if ctx.Err() != nil {
				return
			}
			if err != nil || n != batchSize {
				t.Errorf("%d of %d were answered: %v", n, batchSize, err)
			}
			delivered.Add(int64(n))
			longest.Store(max(longest.Load(), int64(time.Since(began))))
		}
	})
	// count waits for a turn, which is what is measured.
	count := func() float64 {
		before, began := delivered.Load(), time.Now()
		<-time.After(turn)
		return float64(delivered.Load()-before) / time.Since(began).Seconds()
	}
	count() // to get warm
	var quiet, busy []float64
	for range 3 {
		quiet = append(quiet, count())
		misdeed := prepare(t)
		bad, stop := context.WithCancel(ctx)
		var misbehaving sync.WaitGroup
		misbehaving.Go(func() { misdeed(bad) })
		busy = append(busy, count())
		stop()
		misbehaving.Wait()
	}
	cancel()
	working.Wait()
	slices.Sort(quiet)
	slices.Sort(busy)
	return quiet[1], busy[1], time.Duration(longest.Load())
}

// TestNeighbours has a plugin work beside one that misbehaves: it keeps its throughput. The bound is wide,
// for both want the same two processors, and so may others; BenchmarkNeighbours measures.
func TestNeighbours(t *testing.T) {
	for name, prepare := range misdeeds {
		t.Run(name, func(t *testing.T) {
			for range 3 { // what else goes on on the machine comes and goes, a hold on the neighbour stays
				alone, beside, slowest := neighbour(t, prepare, 300*time.Millisecond)
				t.Logf("%.0f messages/s alone, %.0f beside it (%.2f), the slowest call took %s", alone, beside, beside/alone, slowest)
				if beside >= alone/4 {
					return
				}
			}
			t.Error("three times it had less than a quarter of its throughput")
		})
	}
}

// BenchmarkNeighbours measures what a plugin that misbehaves costs another one.
func BenchmarkNeighbours(b *testing.B) {
	for name, prepare := range misdeeds {
		b.Run(name, func(b *testing.B) {
			var alone, beside float64
			n := 0
			for b.Loop() {
				a, w, _ := neighbour(b, prepare, 2*time.Second)
				alone, beside, n = alone+a, beside+w, n+1
			}
			b.ReportMetric(alone/float64(n), "alone-msgs/s")
			b.ReportMetric(beside/float64(n), "beside-msgs/s")
			b.ReportMetric(beside/alone, "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}
