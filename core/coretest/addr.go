package coretest

import (
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// FreeAddr is a loopback address, host:port, that nobody listens on. It is none that the system hands out
// by itself (Linux: from 32768), so a server finds it free again after a restart.
func FreeAddr(t testing.TB) string {
	t.Helper()
	for range 100 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(12_000+rand.IntN(20_000)))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return addr
	}
	t.Fatal("no port is free")
	return ""
}
