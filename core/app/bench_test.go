package app_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sideshow/apns2"
	"github.com/sideshow/apns2/token"
	"golang.org/x/net/http2"

	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

// world is a sandbox in a process of its own, so that its CPU is nobody else's.
type world struct {
	pages string // URL of its pages
	apns  map[string]string
	http  *http.Client
}

func startWorld(b *testing.B) *world {
	b.Helper()
	dir, err := binaries()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "orchestrator"), "sandbox", "-listen", "127.0.0.1:0", "-data", b.TempDir())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := coretest.Start(cmd); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	w := &world{http: &http.Client{Timeout: 10 * time.Second}}
	for lines := bufio.NewScanner(out); w.apns == nil && lines.Scan(); {
		if _, url, ok := strings.Cut(lines.Text(), "its pages: "); ok {
			w.pages = strings.TrimSuffix(url, "/sandbox/")
		}
		if _, settings, ok := strings.Cut(lines.Text(), "apns: {kind: apns, settings: "); ok {
			if err := json.Unmarshal([]byte(strings.TrimSuffix(settings, "}")), &w.apns); err != nil {
				b.Fatal(err)
			}
		}
	}
	if w.apns == nil {
		b.Fatal("the sandbox did not say how to reach it")
	}
	return w
}

// taken is how many distinct pushes APNs took.
func (w *world) taken(b *testing.B) uint64 {
	b.Helper()
	resp, err := w.http.Get(w.pages + "/v1/sandbox/counts")
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	var counts struct{ APNs sandbox.Counts }
	if err := json.NewDecoder(resp.Body).Decode(&counts); err != nil {
		b.Fatal(err)
	}
	return counts.APNs.Distinct
}

// cpu is what a process has used.
func cpu(b *testing.B, pid int) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Skip("no /proc here")
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100 wherever Go runs
}

// rawLoop is what the client library does by itself: 200 callers, one connection.
func rawLoop(b *testing.B, w *world, n int) (took, used time.Duration) {
	b.Helper()
	pem, err := os.ReadFile(w.apns["ca_file"])
	if err != nil {
		b.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	key, err := token.AuthKeyFromFile(w.apns["key_file"])
	if err != nil {
		b.Fatal(err)
	}
	c := apns2.NewTokenClient(&token.Token{AuthKey: key, KeyID: w.apns["key_id"], TeamID: w.apns["team_id"]})
	c.Host = w.apns["endpoint"]
	c.HTTPClient = &http.Client{Timeout: 20 * time.Second, Transport: &http2.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}} //nolint:staticcheck // as apns2 itself uses it
	defer c.CloseIdleConnections()
	before := cpu(b, os.Getpid())
	began := time.Now()
	var wg sync.WaitGroup
	var next, failed atomic.Int64
	for range 200 {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				resp, err := c.PushWithContext(context.Background(), &apns2.Notification{DeviceToken: hexToken(int(i)), Topic: w.apns["topic"],
					Payload: []byte(`{"aps":{"alert":{"title":"Message","body":"of the benchmark"}}}`), Expiration: time.Now().Add(time.Hour), PushType: apns2.PushTypeAlert, Priority: 10})
				if err != nil || !resp.Sent() {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if failed.Load() > 0 {
		b.Fatalf("%d pushes of the raw loop failed", failed.Load())
	}
	return time.Since(began), cpu(b, os.Getpid()) - before
}

// BenchmarkAPNs drives accept -> store -> asynq -> provider -> sandbox, in requests of 100 recipients
// and of one, beside a raw loop of apns2 on the same sandbox, and reports the ratio of messages a
// second and of CPU a message.
func BenchmarkAPNs(b *testing.B) {
	for _, perRequest := range []int{100, 1} {
		b.Run(fmt.Sprintf("to=%d", perRequest), func(b *testing.B) {
			w := startWorld(b)
			settings, err := json.Marshal(w.apns)
			if err != nil {
				b.Fatal(err)
			}
			file := filepath.Join(b.TempDir(), "carillon.yaml")
			text := fmt.Sprintf("listen: 127.0.0.1:0\napi_key: %s\ndata: %s\nsandbox: false\nroutes:\n  apns: {kind: apns, settings: %s}\n", testKey, b.TempDir(), settings)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				b.Fatal(err)
			}
			p, profile := measured(b, []string{"-config", file})
			c := newCaller(b, p.base)
			n := 20_000
			if perRequest == 1 {
				n = 5_000
			}
			rawLoop(b, w, 2000) // warm
			var took, used, rawTook, rawUsed time.Duration
			end := profile()
			for b.Loop() {
				rt, ru := rawLoop(b, w, n)
				rawTook, rawUsed = rawTook+rt, rawUsed+ru
				start := w.taken(b)
				before := cpu(b, p.cmd.Process.Pid)
				began := time.Now()
				sendBatches(b, c, n, perRequest)
				eventually(b, 2*time.Minute, "all pushes taken", func() bool { return w.taken(b) >= start+uint64(n) })
				took += time.Since(began)
				used += cpu(b, p.cmd.Process.Pid) - before
			}
			end()
			total := float64(b.N * n)
			b.ReportMetric(total/took.Seconds(), "msgs/s")
			b.ReportMetric(total/rawTook.Seconds(), "raw-msgs/s")
			b.ReportMetric(rawTook.Seconds()/took.Seconds(), "rate-ratio")
			b.ReportMetric(used.Seconds()*1e6/total, "cpu-us/msg")
			b.ReportMetric(used.Seconds()/rawUsed.Seconds(), "cpu-ratio")
			b.ReportMetric(total/float64(rounds(b, c)), "msgs/round")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// rounds is how many rounds the orchestrator's workers settled.
func rounds(b *testing.B, c *caller) (n int) {
	b.Helper()
	resp, err := c.http.Get(c.base + "/metrics")
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if figure, ok := strings.CutPrefix(lines.Text(), `carillon_round_seconds_count{lane="normal",route="apns"} `); ok {
			if n, err = strconv.Atoi(figure); err != nil {
				b.Fatal(err)
			}
		}
	}
	return n
}

// sendBatches asks for n messages from 64 clients (8 for large requests).
func sendBatches(b *testing.B, c *caller, n, perRequest int) {
	clients := 64
	if perRequest > 1 {
		clients = 8
	}
	var wg sync.WaitGroup
	var next atomic.Int64
	for range clients {
		wg.Go(func() {
			for {
				first := int(next.Add(int64(perRequest))) - perRequest
				if first >= n {
					return
				}
				var to []string
				for i := first; i < min(first+perRequest, n); i++ {
					to = append(to, fmt.Sprintf(`{"apns":%q}`, hexToken(i)))
				}
				status, err := c.do(context.Background(), http.MethodPost, "/v1/notifications",
					`{"to":[`+strings.Join(to, ",")+`],"content":{"title":"Message","body":"of the benchmark"}}`, nil)
				if err != nil || status != http.StatusAccepted {
					b.Errorf("refused: %d %v", status, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkLone is one request at a time on an idle system: from the HTTP request to the sandbox's
// receipt of the push.
func BenchmarkLone(b *testing.B) {
	a, c := startApp(b, nil)
	arrived, cancel := a.Sandbox().Subscribe(sandbox.APNs, 16)
	defer cancel()
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		for range 20 {
			began := time.Now()
			c.must(http.MethodPost, "/v1/notifications", fmt.Sprintf(`{"to":[{"apns":%q}],"content":{"title":"alone"}}`, hexToken(i)), nil, http.StatusAccepted)
			m := <-arrived
			took = append(took, m.At.Sub(began))
			// Idle in between: the loops fall back to waiting.
			pause(b.Context(), 50*time.Millisecond)
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*95/100].Microseconds())/1000, "p95-ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkIdle is what the whole embedded system uses of a core while nothing happens.
func BenchmarkIdle(b *testing.B) {
	p := startProcess(b, "orchestrator", []string{"-listen", "127.0.0.1:0"}, []string{"CARILLON_API_KEY=" + testKey})
	pause(b.Context(), 3*time.Second) // what starts has settled
	var used, span time.Duration
	for b.Loop() {
		before, began := cpu(b, p.cmd.Process.Pid), time.Now()
		pause(b.Context(), 10*time.Second)
		used += cpu(b, p.cmd.Process.Pid) - before
		span += time.Since(began)
	}
	b.ReportMetric(100*used.Seconds()/span.Seconds(), "%core")
	b.ReportMetric(0, "ns/op")
}
