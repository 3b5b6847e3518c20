package app

import (
	"os"
	"runtime"
)

// heapFloor is memory that is counted as the heap's and never touched, so never resident. Go collects
// garbage when the heap has doubled; with the few MB that are alive here that is several times a
// second under load, and a seventh of all CPU. With the floor it happens every 32 MB of garbage at the
// most often; with 64 MB the collector costs no less that could be measured.
const heapFloor = 32 << 20

// holdHeapFloor spares the collector while the heap is small, unless the operator set GOGC. The function
// it returns ends that.
func holdHeapFloor() (release func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	floor := make([]byte, heapFloor)
	return func() { runtime.KeepAlive(floor) }
}
