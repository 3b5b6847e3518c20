package host_test

import (
	"testing"

	"github.com/carillon-notify/carillon/plugins/host"
)

// TestLostAndFound: a call that finds a process gone never takes out the one that is already in its place,
// which nobody would put back.
func TestLostAndFound(t *testing.T) {
	t.Parallel()
	for range 50_000 {
		if !host.Race() {
			t.Fatal("the new process was taken out for the old one")
		}
	}
}
