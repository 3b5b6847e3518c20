package host_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/plugins/host"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/apns"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

// batchSize is how many messages travel together at most.
const batchSize = 100

// loop delivers n messages in batches, from several callers, and counts those that were accepted.
func loop(b *testing.B, p providers.Provider, n, callers int, batch []providers.Message) {
	var next, accepted atomic.Int64
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for next.Add(int64(len(batch))) <= int64(n) {
				ctx, cancel := context.WithTimeout(b.Context(), patient)
				err := p.Deliver(ctx, batch, func(r providers.Result) {
					if r.Outcome == providers.Accepted {
						accepted.Add(1)
					}
				})
				cancel()
				if err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if int(accepted.Load()) != n/len(batch)*len(batch) {
		b.Errorf("%d of %d were accepted", accepted.Load(), n)
	}
}

// cpuOf is the processor time that a process has used. Its clock ticks a hundred times a second.
func cpuOf(b *testing.B, pid int) time.Duration {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	user, _ := strconv.Atoi(string(fields[11]))
	system, _ := strconv.Atoi(string(fields[12]))
	return time.Duration(user+system) * 10 * time.Millisecond
}

// BenchmarkDeliver delivers batches of 100 to a plugin that does nothing but accept them, two at a time.
func BenchmarkDeliver(b *testing.B) {
	p := openKind(b, host.Isolate(obedientKind(), spec(b, "obedient")), `{}`)
	pid := p.(*host.Process).PID()
	batch := messages(make([]string, batchSize)...)
	loop(b, p, 10_000, 2, batch)
	b.ReportAllocs()
	used := cpuOf(b, os.Getpid()) + cpuOf(b, pid)
	n := b.N * batchSize
	b.ResetTimer()
	loop(b, p, n, 2, batch)
	b.StopTimer()
	used = cpuOf(b, os.Getpid()) + cpuOf(b, pid) - used
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "msgs/s")
	b.ReportMetric(float64(used.Nanoseconds())/1e3/float64(n), "µs-cpu/msg")
}

// BenchmarkIsolation delivers to the sandbox's APNs, batches of 100 from four callers, once in this process
// and once in a process of its own. The two take turns, so that the ratio holds on a busy machine.
func BenchmarkIsolation(b *testing.B) {
	floor := make([]byte, 64<<20) // as an orchestrator has
	defer runtime.KeepAlive(floor)
	settings, sandboxPID := apart(b)
	in, err := apns.Kind().Open(b.Context(), []byte(settings))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = in.Close(context.Background()) })
	out := openKind(b, host.Isolate(apns.Kind(), spec(b, "apns")), settings)
	pid := out.(*host.Process).PID()
	token := strings.Repeat("0a1b2c3d", 8)
	batch := messages(slices.Repeat([]string{"Your parcel arrives between 14:00 and 16:00."}, batchSize)...)
	for i := range batch {
		batch[i].ID, batch[i].Address, batch[i].Title = fmt.Sprintf("018f0000-0000-7000-8000-%012d", i), token, "Parcel on its way"
	}
	// measure returns messages a second, and microseconds of everybody's processor time for each.
	measure := func(p providers.Provider, n int) (rate, cpu float64) {
		used := cpuOf(b, os.Getpid()) + cpuOf(b, pid) + cpuOf(b, sandboxPID)
		began := time.Now()
		loop(b, p, n, 4, batch)
		rate = float64(n) / time.Since(began).Seconds()
		used = cpuOf(b, os.Getpid()) + cpuOf(b, pid) + cpuOf(b, sandboxPID) - used
		return rate, float64(used.Microseconds()) / float64(n)
	}
	const n, rounds = 10_000, 7
	var rates, cpus []float64
	var sums [4]float64
	for b.Loop() {
		for round := range rounds {
			inRate, inCPU := measure(in, n)
			outRate, outCPU := measure(out, n)
			if round == 0 {
				continue // to get warm
			}
			rates, cpus = append(rates, outRate/inRate), append(cpus, inCPU/outCPU)
			for i, v := range []float64{inRate, outRate, inCPU, outCPU} {
				sums[i] += v
			}
		}
	}
	slices.Sort(rates)
	slices.Sort(cpus)
	for i, unit := range []string{"in-msgs/s", "out-msgs/s", "in-µs-cpu/msg", "out-µs-cpu/msg"} {
		b.ReportMetric(sums[i]/float64(len(rates)), unit)
	}
	b.ReportMetric(rates[len(rates)/2], "ratio")
	b.ReportMetric(cpus[len(cpus)/2], "cpu-ratio")
	b.ReportMetric(0, "ns/op")
}

// apart runs the sandbox in a process of its own and returns the settings that lead there.
func apart(b *testing.B) (settings string, pid int) {
	b.Helper()
	cmd := sandboxtest.Again(b, "play", "sandbox", b.TempDir())
	_, out := sandboxtest.StartChild(b, cmd)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return line, cmd.Process.Pid
}
