package coretest

import (
	"testing"

	"github.com/carillon-notify/carillon/providers/porttest"
)

// FreeAddr is a loopback address, host:port, that nobody listens on, and nobody on the port of a Redis
// Cluster's bus that belongs to it. Nobody else comes by either until the test ends, also while its server is down.
func FreeAddr(t testing.TB) string {
	t.Helper()
	return porttest.Addr(t)
}
