package sdk

import (
	"os"
	"runtime"
	"runtime/debug"
)

// heapFloor is memory that is counted as the heap's and never touched, so never resident. Go collects
// garbage when the heap has doubled; with the few MB that are alive in a plugin that is several times a
// second under load. With the floor it happens every 32 MB of garbage at the most often.
const heapFloor = 32 << 20

// holdHeapFloor spares the collector while the heap is small, unless GOGC is set. Where the host bounds the
// memory, the floor is a small part of that. The function it returns ends it.
func holdHeapFloor() (release func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	floor := make([]byte, min(heapFloor, debug.SetMemoryLimit(-1)/8))
	return func() { runtime.KeepAlive(floor) }
}
