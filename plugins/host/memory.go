package host

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// memoryEvery is how often a plugin with a limit is measured.
const memoryEvery = 250 * time.Millisecond

// groupMemory is the resident memory of a process group, in bytes; 0 where /proc does not tell.
func groupMemory(group int) int64 {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	var pages int64
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
		if pgrp, err := strconv.Atoi(string(fields[2])); err != nil || pgrp != group {
			continue
		}
		rss, _ := strconv.ParseInt(string(fields[21]), 10, 64)
		pages += rss
	}
	return pages * int64(os.Getpagesize())
}
