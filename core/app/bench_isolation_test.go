package app_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

// BenchmarkIsolation is the whole way of BenchmarkAPNs in requests of 100 recipients, with the provider in
// the orchestrator's process and in one of its own, on one sandbox, and reports the ratio of messages a second.
func BenchmarkIsolation(b *testing.B) {
	w := startWorld(b)
	settings, err := json.Marshal(w.settings["apns"])
	if err != nil {
		b.Fatal(err)
	}
	const n = 20_000
	c := channel{content: pushContent, to: func(i int) string { return fmt.Sprintf(`{"apns":%q}`, hexToken(i)) }}
	bases, pids := map[string]string{}, map[string]int{}
	for _, isolation := range []string{"none", "process"} {
		file := filepath.Join(b.TempDir(), "carillon.yaml")
		text := fmt.Sprintf("listen: 127.0.0.1:0\napi_key: %s\ndata: %s\nsandbox: false\nroutes:\n  apns: {kind: apns, isolation: %s, settings: %s}\n", testKey, b.TempDir(), isolation, settings)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
		p := startProcess(b, "orchestrator", []string{"-config", file}, nil)
		bases[isolation], pids[isolation] = p.base, p.cmd.Process.Pid
	}
	used := map[string]time.Duration{}
	send := func(isolation string) time.Duration {
		start, before, began := w.taken(b, sandbox.APNs), family(b, pids[isolation]), time.Now()
		c.send(b, bases[isolation], n, 100)
		eventually(b, 2*time.Minute, "all pushes taken", func() bool { return w.taken(b, sandbox.APNs) >= start+n })
		took := time.Since(began)
		used[isolation] += family(b, pids[isolation]) - before
		return took
	}
	send("none") // warm
	send("process")
	clear(used)
	var in, out time.Duration
	for b.Loop() {
		in, out = in+send("none"), out+send("process")
		out, in = out+send("process"), in+send("none") // the machine's pace changes meanwhile
	}
	total := 2 * float64(b.N*n)
	b.ReportMetric(total/in.Seconds(), "in-msgs/s")
	b.ReportMetric(total/out.Seconds(), "out-msgs/s")
	b.ReportMetric(in.Seconds()/out.Seconds(), "ratio")
	b.ReportMetric(used["none"].Seconds()*1e6/total, "in-cpu-us/msg")
	b.ReportMetric(used["process"].Seconds()*1e6/total, "out-cpu-us/msg")
	b.ReportMetric(0, "ns/op")
}

// family is what a process and its children have used.
func family(b *testing.B, pid int) time.Duration {
	b.Helper()
	used := cpu(b, pid)
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // a thread that ended
		}
		for _, child := range strings.Fields(string(text)) {
			id, _ := strconv.Atoi(child)
			used += cpu(b, id)
		}
	}
	return used
}
