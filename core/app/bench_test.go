package app_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

// world is a sandbox in a process of its own, so that its CPU is nobody else's.
type world struct {
	pages    string                       // URL of its pages
	settings map[string]map[string]string // of the routes that lead there, by kind
	http     *http.Client
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
	w := &world{http: &http.Client{Timeout: 10 * time.Second}, settings: map[string]map[string]string{}}
	for lines := bufio.NewScanner(out); len(w.settings) < 3 && lines.Scan(); {
		if _, url, ok := strings.Cut(lines.Text(), "its pages: "); ok {
			w.pages = strings.TrimSuffix(url, "/sandbox/")
		}
		if kind, rest, ok := strings.Cut(strings.TrimSpace(lines.Text()), ": {kind: "); ok {
			_, text, _ := strings.Cut(rest, "settings: ")
			var settings map[string]string
			if err := json.Unmarshal([]byte(strings.TrimSuffix(text, "}")), &settings); err != nil {
				b.Fatal(err)
			}
			w.settings[kind] = settings
		}
	}
	if len(w.settings) < 3 {
		b.Fatal("the sandbox did not say how to reach it")
	}
	return w
}

// route is the configuration of a route to one of its services.
func (w *world) route(b *testing.B, kind string) string {
	b.Helper()
	settings, err := json.Marshal(w.settings[kind])
	if err != nil {
		b.Fatal(err)
	}
	return fmt.Sprintf("%s: {kind: %s, settings: %s}", kind, kind, settings)
}

// taken is how many distinct messages a service took.
func (w *world) taken(b *testing.B, service sandbox.Service) uint64 {
	b.Helper()
	resp, err := w.http.Get(w.pages + "/v1/sandbox/counts")
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	var counts map[sandbox.Service]json.RawMessage // and the seed
	if err := json.NewDecoder(resp.Body).Decode(&counts); err != nil {
		b.Fatal(err)
	}
	var of sandbox.Counts
	if err := json.Unmarshal(counts[service], &of); err != nil {
		b.Fatal(err)
	}
	return of.Distinct
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

// serversCPU is what the PostgreSQL and the Redis of this test have used, with all their processes.
func serversCPU(b *testing.B) (sum time.Duration) {
	b.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		b.Fatal(err)
	}
	parents := map[int]int{}
	var servers []int
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it ended meanwhile
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		name, rest, _ := strings.Cut(string(text), ") ")
		parents[pid], _ = strconv.Atoi(strings.Fields(rest)[1])
		if strings.HasSuffix(name, "(postgres") || strings.HasSuffix(name, "(redis-server") {
			servers = append(servers, pid)
		}
	}
	for _, pid := range servers {
		for up := pid; up > 1; up = parents[up] {
			if up == os.Getpid() {
				sum += cpu(b, pid)
				break
			}
		}
	}
	return sum
}

// BenchmarkLone is one request at a time on an idle system: from the HTTP request to the sandbox's
// receipt of the push.
func BenchmarkLone(b *testing.B) {
	backed(b, func(b *testing.B, on backing) {
		a, c := startApp(b, on.config)
		arrived, cancel := a.Sandbox().Subscribe(sandbox.APNs, 16)
		defer cancel()
		var took []time.Duration
		for i := 0; b.Loop(); i++ {
			for range 40 {
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
	})
}

// BenchmarkIdle is what the orchestrator uses of a core while nothing happens.
func BenchmarkIdle(b *testing.B) {
	backed(b, func(b *testing.B, on backing) {
		args := []string{"-listen", "127.0.0.1:0"}
		if on.store != "" {
			args = append(args, "-store", on.store, "-queue", on.queue)
		}
		p := startProcess(b, "orchestrator", args, []string{"CARILLON_API_KEY=" + testKey})
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
	})
}
