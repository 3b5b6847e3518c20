package host

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-plugin"
)

// memoryEvery is how often a plugin with a limit is measured.
const memoryEvery = 250 * time.Millisecond

// process is what the census knows of one.
type process struct {
	start         string // its start in ticks since boot: with its id, what tells it from all others
	parent, group int
	memory        int64  // resident, in bytes
	mark          string // the plugin's that it comes from; "": of none
}

// census is all processes, counted anew at most every half of memoryEvery, however many plugins have a
// limit.
var census struct {
	sync.Mutex
	at  time.Time
	all map[int]process
}

// memoryOf is the resident memory of a plugin's process group and of whatever else it started, in bytes; 0
// where /proc does not tell. Pages that its processes share count for each.
func memoryOf(group int, mark string) (sum int64) {
	census.Lock()
	defer census.Unlock()
	if now := time.Now(); now.Sub(census.at) > memoryEvery/2 {
		census.all, census.at = count(census.all), now
	}
	for _, p := range census.all {
		if p.group == group || p.mark == mark {
			sum += p.memory
		}
	}
	return sum
}

// count takes the census. Whose a process is, is found out once: by the mark in its environment, else by its
// parent's. It stays whose it was when its parent has ended or it has dropped its environment.
func count(known map[int]process) map[int]process {
	all := make(map[int]process, len(known))
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		p, ok := look(path)
		if !ok {
			continue // it ended meanwhile
		}
		switch old, seen := known[pid]; {
		case seen && old.start == p.start && (old.mark != "" || p.parent != os.Getpid()):
			p.mark = old.mark
		default: // our own children are asked until they have become what we start
			p.mark = markOf(pid)
		}
		all[pid] = p
	}
	for pid, p := range all {
		for at, far := p, 0; p.mark == "" && far < len(all); far++ {
			next, ok := all[at.parent]
			if !ok {
				break
			}
			p.mark, at = next.mark, next
		}
		all[pid] = p
	}
	return all
}

// look reads a process's state. proc(5): pid (comm) state ppid pgrp ...; comm may hold anything, even ")".
func look(stat string) (p process, ok bool) {
	b, err := os.ReadFile(stat)
	if err != nil {
		return p, false
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 22 {
		return p, false
	}
	pages, _ := strconv.ParseInt(string(fields[21]), 10, 64)
	p.parent, _ = strconv.Atoi(string(fields[1]))
	p.group, _ = strconv.Atoi(string(fields[2]))
	p.start, p.memory = string(fields[19]), pages*int64(os.Getpagesize())
	return p, true
}

// markOf is the mark in a process's environment, "" where there is none or it is another user's.
func markOf(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return ""
	}
	for v := range bytes.SplitSeq(b, []byte{0}) {
		if bytes.HasPrefix(v, []byte(plugin.EnvUnixSocketDir+"=")) {
			return string(v)
		}
	}
	return ""
}

// killCounted kills what the census knows to come from a plugin, among it what killMarked does not see: what
// has left the group and dropped its environment.
func killCounted(mark string) {
	census.Lock()
	defer census.Unlock()
	for pid, p := range census.all {
		if p.mark != mark || pid == os.Getpid() {
			continue
		}
		if now, ok := look("/proc/" + strconv.Itoa(pid) + "/stat"); ok && now.start == p.start {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may just have ended
		}
	}
}
