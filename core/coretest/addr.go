package coretest

import (
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// busOffset is how far above its port a node of a Redis Cluster talks to the others.
const busOffset = 10_000

// FreeAddr is a loopback address, host:port, that nobody listens on, and nobody on the port of a Redis
// Cluster's bus that belongs to it. Neither is one that the system hands out by itself (Linux: from
// 32768), so a server finds them free again after a restart.
func FreeAddr(t testing.TB) string {
	t.Helper()
	for range 100 {
		port := 12_000 + rand.IntN(10_700)
		if free(port) && free(port+busOffset) {
			return address(port)
		}
	}
	t.Fatal("no port is free")
	return ""
}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func free(port int) bool {
	l, err := net.Listen("tcp", address(port))
	return err == nil && l.Close() == nil
}
