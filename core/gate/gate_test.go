package gate_test

import (
	"context"
	"sync"
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
		if n, _, code := g.Admit(t.Context(), "a", providers.Normal, 10); n != 0 || code != core.CodeCircuitOpen {
			t.Errorf("open: %d go, %q", n, code)
		}
		time.Sleep(6 * time.Minute) // synctest's clock
		if n, _, _ := g.Admit(t.Context(), "a", providers.Normal, 10); n != 5 {
			t.Errorf("half-open: %d go, want 5", n)
		}
		g.Return("a", 5) // the worker was stopped before it could send them
		if n, _, _ := g.Admit(t.Context(), "a", providers.Normal, 10); n != 5 {
			t.Errorf("half-open, and the leave given back: %d go, want 5", n)
		}
		if g.Report("a", results(5, 1, providers.Gone)) {
			t.Error("a probe is believed")
		}
		time.Sleep(6 * time.Minute)
		g.Admit(t.Context(), "a", providers.Normal, 10)
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
			if n, _, _ := g.Admit(t.Context(), "a", providers.Normal, 10); n != 5 {
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

// TestElsewhere: what an open circuit holds is due again soon where another process can deliver, and this one leaves
// it to that one until it tries again itself.
func TestElsewhere(t *testing.T) {
	t.Parallel()
	for _, able := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			g := gate.New(map[string]gate.Config{"a": {Breaker: gate.Breaker{Min: time.Minute}}})
			g.Elsewhere(func(route string) bool { return able && route == "a" })
			check := func(when string, leaves bool, least, most time.Duration) {
				t.Helper()
				if got := g.Leaves("a"); got != leaves {
					t.Errorf("%s: leaves %v", when, got)
				}
				if _, wait, _ := g.Admit(t.Context(), "a", providers.Normal, 10); wait < least || wait > most {
					t.Errorf("%s: it waits %v", when, wait)
				}
			}
			check("at first", false, 0, 0)
			g.Report("a", results(100, 100, providers.Unknown))
			if able {
				check("open", true, time.Second, 2*time.Second)
			} else {
				check("open", false, time.Minute, 2*time.Minute)
			}
			time.Sleep(2 * time.Minute) // synctest's clock
			check("to be tried", false, time.Second, 2*time.Second)
			if g.Leaves("unknown") {
				t.Error("a route that is not guarded is left to others")
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
		began, n := time.Now(), 0
		var wait time.Duration
		var code string
		for code == "" {
			var granted int
			granted, wait, code = g.Admit(ctx, "a", providers.Bulk, 100-n)
			n += granted
			if most := 1 + int(10*time.Since(began).Seconds()+0.001); n > most {
				t.Errorf("%d go in the first %v, and %d at most should", n, time.Since(began), most)
			}
		}
		if n < 20 || n > 21 || code != core.CodeRate || wait < 7*time.Second {
			t.Errorf("%d go, the rest in %v for %q", n, wait, code)
		}
	})
}

// TestLanes: who waits in an urgent lane goes before all that wait in the others, and the rate holds for them
// together.
func TestLanes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := gate.New(map[string]gate.Config{"a": {Rate: 10, Burst: 1}})
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		began := time.Now()
		var wg sync.WaitGroup
		took := map[providers.Priority]time.Duration{}
		var mu sync.Mutex
		wait := func(lane providers.Priority, n int) {
			wg.Go(func() {
				for got := 0; got < n; {
					granted, _, _ := g.Admit(ctx, "a", lane, n-got)
					if got += granted; granted == 0 {
						t.Errorf("%s: %d of %d go", lane, got, n)
						return
					}
				}
				mu.Lock()
				defer mu.Unlock()
				took[lane] = max(took[lane], time.Since(began))
			})
		}
		for range 5 {
			wait(providers.Bulk, 20)
		}
		wait(providers.Normal, 20)
		time.Sleep(time.Second) // synctest's clock
		wait(providers.Critical, 1)
		wg.Wait()
		for lane, most := range map[providers.Priority]time.Duration{
			providers.Critical: 1200 * time.Millisecond, providers.Normal: 2400 * time.Millisecond, providers.Bulk: 12200 * time.Millisecond,
		} {
			if took[lane] > most {
				t.Errorf("%s waited until %s, and should have gone by %s", lane, took[lane], most)
			}
		}
		if least := 11900 * time.Millisecond; took[providers.Bulk] < least {
			t.Errorf("121 messages at 10/s went in %s", took[providers.Bulk])
		}
	})
}

// TestLanesGiveUp: what cannot come before the deadline is not waited for, and who gives up leaves no gap.
func TestLanesGiveUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := gate.New(map[string]gate.Config{"a": {Rate: 1, Burst: 1}})
		if n, _, _ := g.Admit(t.Context(), "a", providers.Bulk, 1); n != 1 {
			t.Fatalf("%d of 1 go", n)
		}
		short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		began := time.Now()
		if n, wait, code := g.Admit(short, "a", providers.Critical, 1); n != 0 || code != core.CodeRate || wait <= 0 || time.Since(began) != 0 {
			t.Errorf("%d go, %v, %q, after %v", n, wait, code, time.Since(began))
		}
		leaving, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { g.Admit(leaving, "a", providers.Critical, 1) })
		wg.Go(func() { g.Admit(t.Context(), "a", providers.Bulk, 1) })
		synctest.Wait()
		leave()
		wg.Wait()
		if d := time.Since(began); d > 1010*time.Millisecond {
			t.Errorf("the next one went after %v, and should after 1s", d)
		}
	})
}
