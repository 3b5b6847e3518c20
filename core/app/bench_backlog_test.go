package app_test

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

var backlog = flag.Int("backlog", 20_000, "pending deliveries of BenchmarkBacklog; the figure in docs/performance.md is of 1,000,000")

// BenchmarkBacklog piles deliveries up behind a paused route, in requests of a thousand recipients, and
// reports what the orchestrator's memory comes to, and what Redis holds.
func BenchmarkBacklog(b *testing.B) {
	backed(b, func(b *testing.B, on backing) {
		w := startWorld(b)
		p, _ := on.orchestrator(b, w, "apns")
		c := newCaller(b, p.base)
		c.must(http.MethodPost, "/v1/routes/apns/pause", nil, nil, http.StatusNoContent)
		const perRequest = 1000
		before, next := resident(b, p.cmd.Process.Pid), 0
		for b.Loop() {
			err := pour(p.base, 8, *backlog/perRequest, func(request int) string {
				to := make([]string, perRequest)
				for i := range to {
					to[i] = fmt.Sprintf(`{"apns":%q}`, hexToken(next+request*perRequest+i))
				}
				return `{"to":[` + strings.Join(to, ",") + `],"content":` + pushContent + `,"ttl":"24h"}`
			})
			if err != nil {
				b.Fatal(err)
			}
			next += *backlog
		}
		b.ReportMetric(float64(next), "pending")
		b.ReportMetric(resident(b, p.cmd.Process.Pid), "MB")
		b.ReportMetric(before, "MB-before")
		if on.queue != "" {
			r := redis.NewClient(&redis.Options{Addr: strings.TrimPrefix(on.queue, "redis://")})
			defer r.Close()
			keys, err := r.DBSize(b.Context()).Result()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(keys), "redis-keys")
		}
		b.ReportMetric(0, "ns/op")
	})
}

// resident is a process's memory in MB.
func resident(b *testing.B, pid int) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Skip("no /proc here")
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		b.Fatal(err)
	}
	return float64(kb) / 1024
}
