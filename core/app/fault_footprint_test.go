package app_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// footprint is what a process holds.
type footprint struct{ goroutines, files, memory, heap float64 }

// figures are what a process says of itself, by series, and what time it thinks it is.
func (m *member) figures(ctx context.Context) (series map[string]float64, at time.Time, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.metrics, nil)
	if err != nil {
		return nil, at, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, at, err
	}
	defer resp.Body.Close()
	series = map[string]float64{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		text := lines.Text()
		if cut := strings.LastIndexByte(text, ' '); cut > 0 && text[0] != '#' {
			if series[text[:cut]], err = strconv.ParseFloat(text[cut+1:], 64); err != nil {
				return nil, at, fmt.Errorf("%s: %w", text[:cut], err)
			}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, at, err
	}
	at, err = http.ParseTime(resp.Header.Get("Date"))
	return series, at, err
}

// footprint asks the process itself. Its live heap is half of what it says that it lets grow until the next collection.
func (m *member) footprint(ctx context.Context) (f footprint, err error) {
	series, _, err := m.figures(ctx)
	if err != nil {
		return f, err
	}
	for name, at := range map[string]*float64{"go_goroutines": &f.goroutines, "process_open_fds": &f.files, "process_resident_memory_bytes": &f.memory, "go_memstats_next_gc_bytes": &f.heap} {
		value, ok := series[name]
		if !ok {
			return f, fmt.Errorf("%s does not tell its %s", m.name, name)
		}
		*at = value
	}
	f.heap /= 2
	return f, nil
}

// ofProcess is the footprint of another's process as Linux sees it: of goroutines it knows nothing.
func ofProcess(pid int) (f footprint) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	f.files = float64(len(files))
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if fields := strings.Fields(string(text)); len(fields) > 1 {
		pages, _ := strconv.Atoi(fields[1])
		f.memory = float64(pages * os.Getpagesize())
	}
	return f
}

// held is the footprint of each process of ours, of its isolated providers and its plugins.
func (h *house) held(ctx context.Context) (map[string]footprint, error) {
	out := map[string]footprint{}
	for _, m := range h.members {
		f, err := m.footprint(ctx)
		if err != nil {
			return nil, err
		}
		out[m.name] = f
		pids := providersOf(m.now().cmd.Process.Pid)
		if m.name != "front" && len(pids) != isolated {
			return nil, fmt.Errorf("%s has %d processes of providers, not %d", m.name, len(pids), isolated)
		}
		for _, pid := range pids {
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			out[m.name+"'s "+strings.TrimSpace(string(name))] = ofProcess(pid)
		}
	}
	return out, nil
}

// least is the smaller of each.
func (f footprint) least(g footprint) footprint {
	return footprint{min(f.goroutines, g.goroutines), min(f.files, g.files), min(f.memory, g.memory), min(f.heap, g.heap)}
}

// within reports whether a process is back near its base: a tenth more, and what a few connections or, for the
// memory, the garbage between two collections come to.
func (f footprint) within(base footprint) bool {
	return f.goroutines <= base.goroutines*1.1+20 && f.files <= base.files*1.1+20 && f.memory <= base.memory*1.1+96<<20 && f.heap <= base.heap*1.1+24<<20
}

func (f footprint) String() string {
	return fmt.Sprintf("%.0f goroutines, %.0f files, %.0f MiB (%.0f live)", f.goroutines, f.files, f.memory/(1<<20), f.heap/(1<<20))
}

// connections counts a process's TCP connections by the other end.
func (h *house) connections(m *member) map[string]int {
	pid := m.now().cmd.Process.Pid
	names := map[string]string{}
	for name, p := range h.links {
		_, port, _ := net.SplitHostPort(p.Addr)
		n, _ := strconv.Atoi(port)
		names[fmt.Sprintf("%04X", n)] = name
	}
	ours := map[string]bool{}
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, f := range files {
		to, _ := os.Readlink(f)
		ours[strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]")] = true
	}
	out := map[string]int{"files": len(files)}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 9 && ours[fields[9]] {
			_, port, _ := strings.Cut(fields[2], ":")
			out[cmp.Or(names[port], port)]++
		}
	}
	return out
}

// calm has the world misbehave as it always does: a tenth of all messages meets an error, one in a hundred
// a dropped connection.
func (h *house) calm() {
	h.t.Helper()
	script(h.t, h.world)
}

// rest is what each process holds when it has nothing to do: the least of it while pools let go of what nobody uses.
func (h *house) rest() map[string]footprint {
	h.t.Helper()
	h.c.http.CloseIdleConnections()
	base := map[string]footprint{}
	for end := time.Now().Add(2*idle + time.Second); time.Now().Before(end) || len(base) == 0; pause(h.t.Context(), 200*time.Millisecond) {
		now, err := h.held(h.t.Context())
		if err != nil {
			h.t.Fatal(err)
		}
		for name, f := range now {
			if before, ok := base[name]; ok {
				f = f.least(before)
			}
			base[name] = f
		}
	}
	return base
}

// footprints waits until each process is back near its base, and nobody is left whose process ended.
func (h *house) footprints() {
	h.t.Helper()
	h.c.http.CloseIdleConnections()
	var last map[string]footprint
	var over []string
	var err error
	for end := time.Now().Add(time.Minute); ; pause(h.t.Context(), 200*time.Millisecond) {
		var now map[string]footprint
		if now, err = h.held(h.t.Context()); err == nil {
			last, over, h.heavy = now, nil, map[string]bool{}
			for name, f := range now {
				if !f.within(h.base[name]) {
					h.heavy[name] = true
					over = append(over, fmt.Sprintf("%s holds %v after the faults, %v before", name, f, h.base[name]))
				}
			}
		}
		if over = append(over, orphans()...); err == nil && len(over) == 0 {
			break
		}
		if time.Now().After(end) || h.t.Context().Err() != nil {
			for _, m := range h.members {
				over = append(over, fmt.Sprintf("%s's connections: %v", m.name, h.connections(m)))
			}
			h.t.Errorf("something is left behind (%v):\n%s", err, strings.Join(over, "\n"))
			break
		}
		over = nil
	}
	for _, name := range slices.Sorted(maps.Keys(last)) {
		h.t.Logf("%s: %v; before the faults %v", name, last[name], h.base[name])
	}
}

// orphans are processes of our programs and plugins whose parent ended.
func orphans() (out []string) {
	buildMu.Lock()
	dirs := slices.Clone(built)
	buildMu.Unlock()
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		dir := filepath.Dir(stat)
		text, _ := os.ReadFile(stat)
		_, rest, _ := strings.Cut(string(text), ") ")
		fields := strings.Fields(rest)
		program, _ := os.Readlink(filepath.Join(dir, "exe"))
		if len(fields) > 1 && fields[1] == "1" && slices.ContainsFunc(dirs, func(d string) bool { return strings.HasPrefix(program, d+"/") }) {
			line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
			out = append(out, fmt.Sprintf("process %s outlives its parent: %s", filepath.Base(dir), strings.ReplaceAll(string(line), "\x00", " ")))
		}
	}
	return out
}

// dump ends a process and tells what its goroutines were, by who created them; the whole of it is in its log.
func (m *member) dump() {
	m.t.Helper()
	m.end(func(p *process) {
		_ = p.cmd.Process.Signal(syscall.SIGQUIT)
		<-p.done
	})
	text, err := os.ReadFile(m.log.Name())
	if err != nil {
		m.t.Error(err)
	}
	_, text, _ = bytes.Cut(text, []byte("SIGQUIT: quit"))
	by := map[string]int{}
	for line := range strings.Lines(string(text)) {
		if _, creator, ok := strings.Cut(line, "created by "); ok {
			creator, _, _ = strings.Cut(strings.TrimSpace(creator), " in goroutine")
			by[creator]++
		}
	}
	var out strings.Builder
	for _, creator := range slices.SortedFunc(maps.Keys(by), func(a, b string) int { return cmp.Or(by[b]-by[a], strings.Compare(a, b)) }) {
		fmt.Fprintf(&out, "%5d %s\n", by[creator], creator)
	}
	m.t.Logf("%s's goroutines were created by:\n%s", m.name, out.String())
}

// panics reports what a process says of panics, which it may have borne.
func (m *member) panics() {
	m.t.Helper()
	text, err := os.ReadFile(m.log.Name())
	if err != nil {
		m.t.Error(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "panic") {
			m.t.Errorf("%s said: %s", m.name, line)
		}
	}
}
