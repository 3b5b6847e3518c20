// Package sandboxtest helps the tests and benchmarks of providers that speak to the sandbox: it starts
// one here or in a process of its own, opens providers, holds them to the contract, counts what became
// of messages at a faulty service, and measures a provider against its bare library.
package sandboxtest

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

// Start starts a sandbox with a seed that it logs and a ledger without bounds; it is closed at the
// test's end.
func Start(t testing.TB) *sandbox.Sandbox {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	s, err := sandbox.Start(sandbox.Options{Dir: t.TempDir(), Seed: seed, Capacity: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// Settings are those that lead a kind to the sandbox, with more members of the JSON object behind them,
// such as `,"timeout":"1s"`.
func Settings(t testing.TB, s *sandbox.Sandbox, kind, more string) []byte {
	t.Helper()
	raw, ok := s.Settings(kind)
	if !ok {
		t.Fatalf("the sandbox has no settings for %s", kind)
	}
	return append(raw[:len(raw)-1], more+"}"...)
}

// Open opens a provider, which is closed at the test's end.
func Open(t testing.TB, kind providers.Kind, settings []byte) providers.Provider {
	t.Helper()
	p, err := kind.Open(t.Context(), settings)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := p.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return p
}

// Deliver delivers a batch and collects the results by id. The test fails for one that comes twice, or
// after Deliver returned.
func Deliver(ctx context.Context, t testing.TB, p providers.Provider, batch ...providers.Message) (map[string]providers.Result, error) {
	t.Helper()
	var mu sync.Mutex
	results, over := map[string]providers.Result{}, false
	err := p.Deliver(ctx, batch, func(r providers.Result) {
		mu.Lock()
		defer mu.Unlock()
		if _, twice := results[r.ID]; twice || over {
			t.Errorf("%s was reported twice or too late", r.ID)
		}
		results[r.ID] = r
	})
	mu.Lock()
	defer mu.Unlock()
	over = true
	return results, err
}

// Eventually waits up to 5 s for a condition that nothing announces.
func Eventually(t testing.TB, is func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-ctx.Done():
			t.Fatal("it did not happen")
		case <-tick.C:
		}
	}
}

// Trial is a provider at a service that has faults.
type Trial struct {
	Sandbox  *sandbox.Sandbox
	Service  sandbox.Service
	Provider providers.Provider
	Size     int // of a batch; eight are under way side by side
}

// Tally is what became of messages in a Trial.
type Tally struct {
	Ended   map[string]providers.Outcome // by id: Accepted, Gone or Rejected
	Counts  map[providers.Outcome]int    // of those
	Unknown map[string]int               // by id: attempts of which nobody knows what became
	mu      sync.Mutex
	again   []providers.Message
}

// Deliver delivers messages, and again those that neither arrived nor failed, until none is left, and
// says what became of them. The test fails unless every message ends once, what was accepted arrived,
// and what arrived twice was unknown before.
func (tr Trial) Deliver(t testing.TB, messages []providers.Message) *Tally {
	t.Helper()
	const rounds = 40
	y := &Tally{Ended: map[string]providers.Outcome{}, Counts: map[providers.Outcome]int{}, Unknown: map[string]int{}}
	left := messages
	for round := 0; len(left) > 0; round++ {
		if round == rounds {
			t.Fatalf("%d messages left after %d rounds", len(left), round)
		}
		left = tr.round(t, y, left)
	}
	taken := tr.Sandbox.IDs(tr.Service)
	for id, o := range y.Ended {
		y.Counts[o]++
		if o == providers.Accepted && taken[id] == 0 {
			t.Errorf("%s is accepted and never arrived", id)
		}
		if o != providers.Accepted && taken[id] > 0 && y.Unknown[id] == 0 {
			t.Errorf("%s is %v and arrived %d times", id, o, taken[id])
		}
	}
	if len(y.Ended) != len(messages) {
		t.Errorf("%d of %d messages ended", len(y.Ended), len(messages))
	}
	duplicates := tr.Sandbox.Duplicates(tr.Service)
	for id, n := range duplicates {
		if n > 1+y.Unknown[id] {
			t.Errorf("%s arrived %d times and was unknown %d times", id, n, y.Unknown[id])
		}
	}
	t.Logf("%v, %d ids unknown once or more, %d duplicates, pool %+v", y.Counts, len(y.Unknown), len(duplicates), tr.Provider.Health(t.Context()).Pool)
	return y
}

// round delivers messages in batches side by side and returns those that are to be tried again.
func (tr Trial) round(t testing.TB, y *Tally, all []providers.Message) []providers.Message {
	y.again = nil
	var wg sync.WaitGroup
	limit := make(chan struct{}, 8)
	for len(all) > 0 {
		b := all[:min(tr.Size, len(all))]
		all = all[len(b):]
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			got, _ := Deliver(ctx, t, tr.Provider, b...)
			y.add(t, b, got)
		})
	}
	wg.Wait()
	return y.again
}

func (y *Tally) add(t testing.TB, batch []providers.Message, got map[string]providers.Result) {
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, m := range batch {
		switch r := got[m.ID]; r.Outcome {
		case providers.Accepted, providers.Gone, providers.Rejected:
			if _, twice := y.Ended[m.ID]; twice {
				t.Errorf("%s ended twice", m.ID)
			}
			y.Ended[m.ID] = r.Outcome
		case providers.Unknown:
			y.Unknown[m.ID]++
			y.again = append(y.again, m)
		case providers.Denied:
			t.Errorf("denied: %+v", r)
			y.Ended[m.ID] = r.Outcome
		default:
			y.again = append(y.again, m)
		}
	}
}
