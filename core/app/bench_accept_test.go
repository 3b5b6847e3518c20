package app_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/api"
	"github.com/carillon-notify/carillon/core/config"
)

// config is as a configuration has it.
func (on backing) config(cfg *config.Config) {
	if on.store != "" {
		cfg.Store, cfg.Queue = config.Secret(on.store), config.Secret(on.queue)
	}
}

// BenchmarkAccept has 64 clients ask for single notifications that are due in an hour: accepting alone,
// beside the same handler on a store that keeps nothing. It reports the ratio of the rates, and how long
// an acceptance takes. Clients and server share the process.
func BenchmarkAccept(b *testing.B) {
	const n, clients = 4000, 64
	backed(b, func(b *testing.B, on backing) {
		a, durable := startApp(b, on.config)
		h, err := a.Forgetful()
		if err != nil {
			b.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		server := api.Server(h)
		go func() { _ = server.Serve(l) }()
		b.Cleanup(func() { _ = server.Close() })
		bare := newCaller(b, "http://"+l.Addr().String())
		accept(b, durable, n/4, clients) // warm
		accept(b, bare, n/4, clients)
		var each []time.Duration
		var took, bareTook time.Duration
		for b.Loop() {
			for range 3 { // in turns: the machine's pace changes
				t, all := accept(b, durable, n, clients)
				took, each = took+t, append(each, all...)
				t, _ = accept(b, bare, n, clients)
				bareTook += t
			}
		}
		slices.Sort(each)
		b.ReportMetric(bareTook.Seconds()/took.Seconds(), "rate-ratio")
		b.ReportMetric(float64(len(each))/took.Seconds(), "accepts/s")
		b.ReportMetric(float64(each[len(each)/2].Microseconds())/1000, "p50-ms")
		b.ReportMetric(float64(each[len(each)*99/100].Microseconds())/1000, "p99-ms")
		b.ReportMetric(0, "ns/op")
	})
}

// accept has n single notifications accepted, and says how long that took in all and each.
func accept(b *testing.B, c *caller, n, clients int) (took time.Duration, each []time.Duration) {
	b.Helper()
	var wg sync.WaitGroup
	var next atomic.Int64
	var mu sync.Mutex
	began := time.Now()
	for range clients {
		wg.Go(func() {
			var mine []time.Duration
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				asked := time.Now()
				status, err := c.do(context.Background(), http.MethodPost, "/v1/notifications", single(int(i)), nil)
				if err != nil || status != http.StatusAccepted {
					b.Errorf("refused: %d %v", status, err)
					return
				}
				mine = append(mine, time.Since(asked))
			}
			mu.Lock()
			defer mu.Unlock()
			each = append(each, mine...)
		})
	}
	wg.Wait()
	return time.Since(began), each
}

func single(i int) string {
	return fmt.Sprintf(`{"to":[{"apns":%q}],"content":{"title":"Message","body":"of the benchmark"},"delay":"1h"}`, hexToken(i))
}

// BenchmarkHandler is what a request costs between net/http and the store, which keeps nothing.
func BenchmarkHandler(b *testing.B) {
	a, _ := startApp(b, nil)
	h, err := a.Forgetful()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		r := httptest.NewRequest(http.MethodPost, "/v1/notifications", strings.NewReader(single(i)))
		r.Header.Set("Authorization", "Bearer "+testKey)
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != http.StatusAccepted {
			b.Fatal(w.Code, w.Body)
		}
	}
}
