package gate_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/gate"
	"github.com/carillon-notify/carillon/providers"
)

func results(n int, bad int, o providers.Outcome) []providers.Result {
	out := make([]providers.Result, n)
	for i := range out {
		out[i].Outcome = providers.Accepted
		if i < bad {
			out[i].Outcome = o
		}
	}
	return out
}

func TestReport(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		n, bad  int
		outcome providers.Outcome
		believe bool
		circuit gate.Circuit
	}{
		"10 % transient":   {100, 10, providers.Deferred, true, gate.Closed},
		"half transient":   {100, 50, providers.Deferred, true, gate.Open},
		"few":              {19, 19, providers.Unknown, true, gate.Closed},
		"one denied":       {100, 1, providers.Denied, true, gate.Open},
		"2 % dead":         {100, 2, providers.Gone, true, gate.Closed},
		"1 dead of 1":      {1, 1, providers.Gone, true, gate.Closed},
		"a burst of dead":  {100, 30, providers.Gone, false, gate.Open},
		"rejected is fine": {100, 100, providers.Rejected, true, gate.Closed},
	} {
		g := gate.New(map[string]gate.Config{"a": {}})
		if got := g.Report("a", results(c.n, c.bad, c.outcome)); got != c.believe {
			t.Errorf("%s: believed %v, want %v", name, got, c.believe)
		}
		if s, _ := g.State("a"); s.Circuit != c.circuit {
			t.Errorf("%s: circuit %s, want %s", name, s.Circuit, c.circuit)
		}
	}
}

// TestSuspect tells that probes after a burst of Gone drop nothing, and that good ones close it.
func TestSuspect(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := gate.New(map[string]gate.Config{"a": {}})
		g.Report("a", results(100, 100, providers.Gone))
		if g.Report("a", results(3, 3, providers.Gone)) {
			t.Error("what was under way is believed")
		}
		if n, _, code := g.Admit(t.Context(), "a", 10); n != 0 || code != core.CodeCircuitOpen {
			t.Errorf("open: %d go, %q", n, code)
		}
		time.Sleep(6 * time.Minute) // synctest's clock
		if n, _, _ := g.Admit(t.Context(), "a", 10); n != 5 {
			t.Errorf("half-open: %d go, want 5", n)
		}
		if g.Report("a", results(5, 1, providers.Gone)) {
			t.Error("a probe is believed")
		}
		time.Sleep(6 * time.Minute)
		g.Admit(t.Context(), "a", 10)
		g.Report("a", results(5, 0, providers.Gone))
		if s, _ := g.State("a"); s.Circuit != gate.Closed {
			t.Errorf("after a good probe it is %s", s.Circuit)
		}
	})
}

// TestHalfOpen: five probes are judged together, by the ratio that opened the circuit.
func TestHalfOpen(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		reports [][2]int // how many, how many of them failed
		want    gate.Circuit
	}{
		"one good":             {[][2]int{{1, 0}}, gate.HalfOpen},
		"one bad":              {[][2]int{{1, 1}}, gate.HalfOpen},
		"one bad of five":      {[][2]int{{5, 1}}, gate.Closed},
		"three bad of five":    {[][2]int{{5, 3}}, gate.Open},
		"five bad, one a time": {[][2]int{{1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, gate.Open},
		"two bad, three good":  {[][2]int{{1, 1}, {1, 1}, {3, 0}}, gate.Closed},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := gate.New(map[string]gate.Config{"a": {}})
			g.Report("a", results(100, 100, providers.Unknown))
			g.Report("a", results(50, 50, providers.Unknown)) // under way when it opened
			time.Sleep(6 * time.Second)                       // synctest's clock
			if n, _, _ := g.Admit(t.Context(), "a", 10); n != 5 {
				t.Errorf("%s: %d go, want 5", name, n)
			}
			for _, r := range c.reports {
				g.Report("a", results(r[0], r[1], providers.Deferred))
			}
			if s, _ := g.State("a"); s.Circuit != c.want {
				t.Errorf("%s: it is %s, want %s", name, s.Circuit, c.want)
			}
		})
	}
}

func TestRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := gate.New(map[string]gate.Config{"a": {Rate: 10, Burst: 1}})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		n, wait, code := g.Admit(ctx, "a", 100)
		if n < 20 || n > 21 || code != core.CodeRate || wait < 7*time.Second {
			t.Errorf("%d go, the rest in %v for %q", n, wait, code)
		}
	})
}
