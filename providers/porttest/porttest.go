// Package porttest finds ports for the servers of tests, and addresses where nobody answers.
package porttest

import (
	"math/rand/v2"
	"net"
	"runtime"
	"strconv"
	"sync"
	"testing"
)

// first and last are the ports that are given out, without those of the buses above them. The system hands none of them out
// by itself (Linux: from 32768), so that a server finds its own free again after a restart, and nobody who asks the system
// for any port comes by it meanwhile.
const first, last = 12_000, 22_699

// BusOffset is how far above its port a node of a Redis Cluster talks to the others.
const BusOffset = 10_000

// taken are the ports that tests of this process have.
var taken struct {
	sync.Mutex
	ports map[int]bool
}

// Free is a port of the loopback that nobody listens on, nor on the one BusOffset above it. Nobody else is given either
// until the test ends, in this process or, on Linux, in another one that asks here.
func Free(t testing.TB) int {
	t.Helper()
	for range 1000 {
		if port := first + rand.IntN(last-first+1); reserve(t, port) {
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// Addr is the loopback's address of a Free port, host:port. Where no server is started on it, nobody answers there.
func Addr(t testing.TB) string {
	t.Helper()
	return address(Free(t))
}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// reserve reports whether a port and its bus are free, and keeps them until the test ends if they are.
func reserve(t testing.TB, port int) bool {
	taken.Lock()
	defer taken.Unlock()
	if taken.ports[port] || taken.ports[port+BusOffset] || taken.ports[port-BusOffset] {
		return false
	}
	release, ok := claim(port)
	if !ok {
		return false
	}
	if !free(port) || !free(port+BusOffset) {
		release()
		return false
	}
	if taken.ports == nil {
		taken.ports = map[int]bool{}
	}
	taken.ports[port] = true
	t.Cleanup(func() {
		taken.Lock()
		defer taken.Unlock()
		delete(taken.ports, port)
		release()
	})
	return true
}

// claim tells other processes that a port is this one's: by a name of Linux's that only one can have, and that goes with the
// process. Of two ports of which one is the other's bus each could be had; the pair has one name.
func claim(port int) (release func(), ok bool) {
	if runtime.GOOS != "linux" {
		return func() {}, true
	}
	l, err := net.Listen("unix", "@carillon-test-port-"+strconv.Itoa((port-first)%BusOffset))
	if err != nil {
		return nil, false
	}
	return func() { _ = l.Close() }, true
}

func free(port int) bool {
	l, err := net.Listen("tcp", address(port))
	return err == nil && l.Close() == nil
}
