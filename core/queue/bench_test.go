package queue_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/queue"
)

// onBoth runs a benchmark on the embedded Redis and on a real one; c is a client of it.
func onBoth(b *testing.B, bench func(b *testing.B, url string, c redis.UniversalClient)) {
	b.Run("embedded", func(b *testing.B) { bench(b, queue.Embedded, nil) })
	b.Run("redis", func(b *testing.B) {
		addr := coretest.Redis(b)
		bench(b, "redis://"+addr, client(b, addr))
	})
}

// BenchmarkLoneWake is the time from Wake to the handler while nothing else goes on: each wake is sent
// when the dequeue waits for its bell. ns/op includes that wait; the metrics do not.
func BenchmarkLoneWake(b *testing.B) {
	onBoth(b, func(b *testing.B, url string, _ redis.UniversalClient) {
		q := open(b, queue.Options{URL: url})
		waiting := make(chan string, 1)
		q.TellWaiting(func(q string) {
			select {
			case waiting <- q:
			default:
			}
		})
		got := make(inbox, 1)
		serve(b, q, got.handle)
		var took []time.Duration
		for b.Loop() {
			<-waiting
			w := wake()
			began := time.Now()
			enqueue(b, q, w)
			if g := got.next(b); g != w {
				b.Fatalf("%+v", g)
			}
			took = append(took, time.Since(began))
			select { // one that was told before this wake
			case <-waiting:
			default:
			}
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-median")
		b.ReportMetric(float64(took[len(took)*95/100].Microseconds()), "µs-p95")
	})
}

// BenchmarkIdle is what twelve silent queues, of four routes with three lanes, cost: the share of a
// core that this process takes, and that of Redis. Run it with -benchtime 1x.
func BenchmarkIdle(b *testing.B) {
	const span = 10 * time.Second
	onBoth(b, func(b *testing.B, url string, c redis.UniversalClient) {
		routes := []string{"apns", "fcm", "email", "websocket"}
		q := open(b, queue.Options{URL: url, Routes: routes})
		got := make(inbox, len(routes))
		for _, r := range routes {
			serveAs(b, q, queue.ServeOptions{Route: r, Handler: got.handle, Concurrency: map[core.Lane]int{"critical": 16, "normal": 16, "bulk": 16}})
			w := wake()
			w.Route = r
			enqueue(b, q, w)
			got.next(b)
		}
		<-time.After(3 * time.Second) // what follows a wake and a start is over
		for range b.N {
			here, there, calls0 := cpu(b), redisCPU(b, c), 0
			if c != nil {
				calls0 = commands(b, c)
			}
			began := time.Now()
			<-time.After(span)
			took := time.Since(began)
			b.ReportMetric(100*float64(cpu(b)-here)/float64(took), "%core")
			if c != nil {
				b.ReportMetric(100*float64(redisCPU(b, c)-there)/float64(took), "%core-redis")
				b.ReportMetric(float64(commands(b, c)-calls0)/took.Seconds(), "commands/s")
			}
		}
	})
}

// cpu is what this process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// redisCPU is what a Redis server has used; 0 without one.
func redisCPU(b *testing.B, c redis.UniversalClient) time.Duration {
	if c == nil {
		return 0
	}
	var sum float64
	for _, name := range []string{"used_cpu_user", "used_cpu_sys"} {
		var s float64
		if _, err := fmt.Sscan(infoField(b, c, "cpu", name), &s); err != nil {
			b.Fatal(err)
		}
		sum += s
	}
	return time.Duration(sum * float64(time.Second))
}

func commands(b *testing.B, c redis.UniversalClient) (n int) {
	if _, err := fmt.Sscan(infoField(b, c, "stats", "total_commands_processed"), &n); err != nil {
		b.Fatal(err)
	}
	return n
}

func infoField(b *testing.B, c redis.UniversalClient, section, name string) string {
	info, err := c.Info(b.Context(), section).Result()
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(info) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), name+":"); ok {
			return v
		}
	}
	b.Fatalf("INFO has no %s", name)
	return ""
}

// BenchmarkWake enqueues, one wake a call, a hundred a call, and one a call from 64 callers at once.
// Nobody works them off; the queue is emptied as often as the embedded window is full.
func BenchmarkWake(b *testing.B) {
	for _, c := range []struct{ callers, wakes int }{{1, 1}, {1, 100}, {64, 1}} {
		b.Run(fmt.Sprintf("%dx%d", c.callers, c.wakes), func(b *testing.B) {
			onBoth(b, func(b *testing.B, url string, _ redis.UniversalClient) {
				q := open(b, queue.Options{URL: url})
				flush := q.ConnOpt().MakeRedisClient().(redis.UniversalClient)
				b.Cleanup(func() { _ = flush.Close() })
				round := queue.WindowEmbedded / c.wakes
				for done := 0; done < b.N; {
					n := min(round, b.N-done)
					done += n
					b.StopTimer()
					ws := make([]core.Wake, n*c.wakes)
					for i := range ws {
						ws[i] = wake()
					}
					if err := flush.FlushAll(b.Context()).Err(); err != nil {
						b.Fatal(err)
					}
					calls := make(chan []core.Wake, n)
					for chunk := range slices.Chunk(ws, c.wakes) {
						calls <- chunk
					}
					close(calls)
					b.StartTimer()
					var wg sync.WaitGroup
					for range c.callers {
						wg.Go(func() {
							for chunk := range calls {
								if err := q.Wake(b.Context(), chunk...); err != nil {
									b.Error(err)
								}
							}
						})
					}
					wg.Wait()
				}
				b.ReportMetric(float64(b.N*c.wakes)/b.Elapsed().Seconds(), "wakes/s")
			})
		})
	}
}
