package fcm_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

func startSandbox(t testing.TB) *sandbox.Sandbox {
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

func openSandbox(t testing.TB, s *sandbox.Sandbox, more string) providers.Provider {
	t.Helper()
	raw, ok := s.Settings("fcm")
	if !ok {
		t.Fatal("the sandbox has no settings for fcm")
	}
	return openWith(t, append(raw[:len(raw)-1], more+"}"...))
}

// Each fault of a whole service: what is reported, and how many requests that took.
func TestSandboxFaults(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		script sandbox.Script
		want   providers.Outcome
		taken  uint64
		silent bool // no report but an error
	}{
		{"no fault", sandbox.Script{}, providers.Accepted, 1, false},
		{"slow", sandbox.Script{Latency: 50 * time.Millisecond}, providers.Accepted, 1, false},
		{"503", sandbox.Script{Errors: map[string]float64{"503": 1}}, providers.Unknown, 0, false},
		{"503 that took it", sandbox.Script{Errors: map[string]float64{"503": 1}, TakenAnyway: 1, RetryAfter: 3 * time.Second}, providers.Unknown, 1, false},
		{"500", sandbox.Script{Errors: map[string]float64{"INTERNAL": 1}}, providers.Unknown, 0, false},
		{"429", sandbox.Script{Errors: map[string]float64{"429": 1}, RetryAfter: 7 * time.Second}, providers.Throttled, 0, false},
		{"404", sandbox.Script{Errors: map[string]float64{"UNREGISTERED": 1}}, providers.Gone, 0, false},
		{"502", sandbox.Script{Errors: map[string]float64{"502": 1}}, providers.Unknown, 0, false},
		{"dropped before", sandbox.Script{DropBefore: 1}, providers.Unknown, 0, true},
		{"dropped after", sandbox.Script{DropAfter: 1}, providers.Unknown, 1, true},
		{"stalled", sandbox.Script{Stall: 1}, providers.Unknown, 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := startSandbox(t)
			if err := s.Script(sandbox.FCM, tt.script); err != nil {
				t.Fatal(err)
			}
			m := batchOf(1)[0]
			results, err := deliver(t.Context(), t, openSandbox(t, s, `,"timeout":"300ms"`), m)
			r, reported := results[m.ID]
			if reported == tt.silent || (err != nil) != tt.silent || r.Outcome != tt.want {
				t.Errorf("reported %v: %+v, error %v", reported, r, err)
			}
			if r.After != tt.script.RetryAfter {
				t.Errorf("after is %v, want %v", r.After, tt.script.RetryAfter)
			}
			if c := s.Counts(sandbox.FCM); c.Requests != 1 || c.Taken != tt.taken {
				t.Errorf("%d requests, %d taken; want 1 and %d", c.Requests, c.Taken, tt.taken)
			}
		})
	}
}

// Whatever the service does, every message ends, none is lost, and what arrives twice was unknown once.
func TestNothingIsLostAtAFaultyService(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]sandbox.Script{
		"errors": {Errors: map[string]float64{"UNAVAILABLE": 0.05, "INTERNAL": 0.03, "502": 0.01, "THIRD_PARTY_AUTH_ERROR": 0.01}},
		// Of these alone nobody can say whether the message was taken.
		"errors for what was taken": {Errors: map[string]float64{"UNAVAILABLE": 0.05, "INTERNAL": 0.03, "502": 0.01}, TakenAnyway: 0.5},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			script.DropBefore, script.DropAfter, script.Stall, script.GoAwayEvery, script.MaxStreams = 0.005, 0.005, 0.0005, 150, 40
			nothingIsLost(t, script)
		})
	}
}

func nothingIsLost(t *testing.T, script sandbox.Script) {
	t.Helper()
	const messages, size = 1500, 100
	s := startSandbox(t)
	if err := s.Script(sandbox.FCM, script); err != nil {
		t.Fatal(err)
	}
	p := openSandbox(t, s, `,"timeout":"1s"`)
	left := batchOf(messages)
	for i := range left {
		if i%50 == 0 {
			left[i].Address = fmt.Sprintf("dead-token-%d", i)
		}
	}
	all := tally{ended: map[string]providers.Outcome{}, unknown: map[string]int{}}
	for round := 0; len(left) > 0; round++ {
		if round == 40 {
			t.Fatalf("%d messages left after %d rounds", len(left), round)
		}
		left = all.deliver(t, p, left, size)
	}
	count := map[providers.Outcome]int{}
	taken := s.IDs(sandbox.FCM)
	for id, o := range all.ended {
		count[o]++
		if o == providers.Accepted && taken[id] == 0 {
			t.Errorf("%s is accepted and never arrived", id)
		}
	}
	if count[providers.Gone] != messages/50 || count[providers.Accepted]+count[providers.Gone] != messages {
		t.Errorf("ended %v of %d", count, messages)
	}
	duplicates := s.Duplicates(sandbox.FCM)
	for id, n := range duplicates {
		if n > 1+all.unknown[id] {
			t.Errorf("%s arrived %d times and was unknown %d times", id, n, all.unknown[id])
		}
	}
	t.Logf("%v, %d ids unknown once or more, %d duplicates, pool %+v", count, len(all.unknown), len(duplicates), p.Health(t.Context()).Pool)
}

// tally is what became of messages, by id.
type tally struct {
	ended   map[string]providers.Outcome
	unknown map[string]int // attempts
}

// deliver delivers messages in batches side by side and returns those that are to be tried again.
func (y *tally) deliver(t *testing.T, p providers.Provider, all []providers.Message, size int) []providers.Message {
	t.Helper()
	var mu sync.Mutex
	var again []providers.Message
	var wg sync.WaitGroup
	limit := make(chan struct{}, 8)
	for len(all) > 0 {
		b := all[:min(size, len(all))]
		all = all[len(b):]
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			got, _ := deliver(ctx, t, p, b...)
			mu.Lock()
			defer mu.Unlock()
			for _, m := range b {
				switch r := got[m.ID]; r.Outcome {
				case providers.Accepted, providers.Gone, providers.Rejected:
					if _, twice := y.ended[m.ID]; twice {
						t.Errorf("%s ended twice", m.ID)
					}
					y.ended[m.ID] = r.Outcome
				case providers.Unknown:
					y.unknown[m.ID]++
					again = append(again, m)
				case providers.Denied:
					t.Errorf("denied: %+v", r)
				default:
					again = append(again, m)
				}
			}
		})
	}
	wg.Wait()
	return again
}

func TestIdleConnectionsAreReleased(t *testing.T) {
	t.Parallel()
	s := startSandbox(t)
	p := openSandbox(t, s, `,"pool":{"idle":0,"idle_timeout":"20ms"}`)
	if _, err := deliver(t.Context(), t, p, batchOf(1)...); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { st := p.Health(t.Context()).Pool; return st.Open == 0 && st.Closed == st.Opened })
	if _, err := deliver(t.Context(), t, p, batchOf(1)...); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition that nothing announces.
func eventually(t *testing.T, is func() bool) {
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

func TestSandboxSeesTheMessage(t *testing.T) {
	t.Parallel()
	s := startSandbox(t)
	m := batchOf(1)[0]
	m.Data = []byte(`{"screen":"order","n":7}`)
	if _, err := deliver(t.Context(), t, openSandbox(t, s, ""), m); err != nil {
		t.Fatal(err)
	}
	got := s.Messages(sandbox.Filter{Service: sandbox.FCM})
	if len(got) != 1 || got[0].ID != m.ID || got[0].Address != m.Address || got[0].Title != m.Title {
		t.Errorf("the sandbox has %+v", got)
	}
	if ids := s.IDs(sandbox.FCM); !maps.Equal(ids, map[string]int{m.ID: 1}) {
		t.Errorf("ids %v", ids)
	}
}
