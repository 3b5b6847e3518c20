package metrics_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/metrics"
	"github.com/carillon-notify/carillon/providers"
)

func TestScrape(t *testing.T) {
	t.Parallel()
	m := metrics.New(metrics.State{
		Pools: func() map[string]providers.PoolStats {
			return map[string]providers.PoolStats{"apns": {Max: 4, Open: 2, Opened: 7}}
		},
		Depth: func() []core.Backlog {
			return []core.Backlog{{Route: "apns", Lane: providers.Bulk, Pending: 3}, {Route: "apns", Lane: providers.Normal, Queued: 1, Oldest: time.Unix(1000, 0)}}
		},
		Queue: func() bool { return true },
		Now:   func() time.Time { return time.Unix(1012, 5e8) },
	})
	m.Settled("apns", providers.Normal, &core.Settlement{Results: []core.Attempt{
		{Outcome: providers.Accepted, State: core.Sent}, {Outcome: providers.Accepted, State: core.Sent},
		{Outcome: providers.Deferred, State: core.Pending}, {None: true, State: core.Expired},
	}}, 30*time.Millisecond)
	m.Stale("apns")
	m.Repaired("lapsed", 2)
	m.Received("ws", providers.EventDelivered, true)
	h := m.Requests(http.NotFoundHandler())
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/x", nil))

	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	body, err := io.ReadAll(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`carillon_attempts_total{outcome="accepted",route="apns"} 2`,
		`carillon_attempts_total{outcome="deferred",route="apns"} 1`,
		`carillon_deliveries_total{lane="normal",route="apns",state="sent"} 2`,
		`carillon_deliveries_total{lane="normal",route="apns",state="expired"} 1`,
		`carillon_round_seconds_count{lane="normal",route="apns"} 1`,
		`carillon_rounds_stale_total{route="apns"} 1`,
		`carillon_relay_total{what="lapsed"} 2`,
		`carillon_receipts_total{event="delivered",found="true",route="ws"} 1`,
		`carillon_pool_open{route="apns"} 2`,
		`carillon_pool_opened_total{route="apns"} 7`,
		`carillon_batches{lane="bulk",route="apns",state="pending"} 3`,
		`carillon_backlog_age_seconds{lane="bulk",route="apns"} 0`,
		`carillon_backlog_age_seconds{lane="normal",route="apns"} 12.5`,
		`carillon_queue_up 1`,
		`carillon_http_request_seconds_count{code="404",method="get"} 1`,
	} {
		if !strings.Contains(string(body), want+"\n") {
			t.Errorf("/metrics has no %s", want)
		}
	}
	doc, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile(`(?m)^# TYPE (carillon_\w+) `).FindAllStringSubmatch(string(body), -1) {
		if !strings.Contains(string(doc), "`"+name[1]+"`") && !strings.HasPrefix(name[1], "carillon_pool_") {
			t.Errorf("docs/operations.md does not tell what %s is", name[1])
		}
	}
}
