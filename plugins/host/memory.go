package host

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// memoryEvery is how often a plugin with a limit is measured.
const memoryEvery = 250 * time.Millisecond

// census is what all process groups use, counted anew at most every half of memoryEvery, however many
// plugins have a limit.
var census struct {
	sync.Mutex
	at     time.Time
	groups map[int]int64
}

// groupMemory is the resident memory of a process group, in bytes; 0 where /proc does not tell. Pages that
// its processes share count for each.
func groupMemory(group int) int64 {
	census.Lock()
	defer census.Unlock()
	if now := time.Now(); now.Sub(census.at) > memoryEvery/2 {
		census.groups, census.at = countGroups(), now
	}
	return census.groups[group]
}

func countGroups() map[int]int64 {
	groups := map[int]int64{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it ended meanwhile
		}
		// proc(5): pid (comm) state ppid pgrp ...; comm may hold anything, even ")".
		fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
		if len(fields) < 22 {
			continue
		}
		group, err := strconv.Atoi(string(fields[2]))
		if err != nil {
			continue
		}
		pages, _ := strconv.ParseInt(string(fields[21]), 10, 64)
		groups[group] += pages * int64(os.Getpagesize())
	}
	return groups
}
