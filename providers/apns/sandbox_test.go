package apns_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/apns"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

// Whatever the service does, every message ends, none is lost, and what arrives twice was unknown once.
func TestNothingIsLostAtAFaultyService(t *testing.T) {
	t.Parallel()
	for name, faults := range map[string]faults{
		"errors": {map[string]float64{"ServiceUnavailable": 0.05, "InternalServerError": 0.02, "TooManyRequests": 0.02, "Shutdown": 0.01, "BadTopic": 0.01}, 0},
		// Of the errors only a 500 leaves it open whether the message was taken.
		"errors for what was taken": {map[string]float64{"InternalServerError": 0.1}, 0.5},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nothingIsLost(t, faults)
		})
	}
}

type faults struct {
	errors      map[string]float64
	takenAnyway float64
}

func nothingIsLost(t *testing.T, faults faults) {
	t.Helper()
	const messages, size = 3000, 100
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	s, err := sandbox.Start(sandbox.Options{Dir: t.TempDir(), Seed: seed, Capacity: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if err := s.Script(sandbox.APNs, sandbox.Script{
		Errors:     faults.errors,
		DropBefore: 0.005, DropAfter: 0.005, Stall: 0.001, TakenAnyway: faults.takenAnyway, GoAwayEvery: 150, MaxStreams: 40,
	}); err != nil {
		t.Fatal(err)
	}
	raw, _ := s.Settings("apns")
	p, err := apns.Kind().Open(context.Background(), append(raw[:len(raw)-1], `,"timeout":"500ms"}`...))
	if err != nil {
		t.Fatal(err)
	}
	left := batch(messages)
	for i := range left {
		if i%50 == 0 {
			left[i].Address = "dead" + left[i].Address[4:]
		}
	}
	ended, unknown := map[string]providers.Outcome{}, map[string]int{}
	for round := 0; len(left) > 0; round++ {
		if round == 40 {
			t.Fatalf("%d messages left after %d rounds", len(left), round)
		}
		left = deliverAll(t, p, left, size, ended, unknown)
	}
	count := map[providers.Outcome]int{}
	taken := s.IDs(sandbox.APNs)
	for id, o := range ended {
		count[o]++
		if o == providers.Accepted && taken[id] == 0 {
			t.Errorf("%s is accepted and never arrived", id)
		}
	}
	if len(ended) != messages || count[providers.Gone] == 0 || count[providers.Accepted]+count[providers.Gone]+count[providers.Rejected] != messages {
		t.Errorf("ended %v of %d", count, messages)
	}
	for id, n := range s.Duplicates(sandbox.APNs) {
		if n > 1+unknown[id] {
			t.Errorf("%s arrived %d times and was unknown %d times", id, n, unknown[id])
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		t.Error(err)
	}
	st := p.Health(ctx).Pool
	t.Logf("%v, %d ids unknown once or more, pool %+v", count, len(unknown), st)
	if st.Open != 0 || st.Opened != st.Closed {
		t.Errorf("connections left: %+v", st)
	}
}

// deliverAll delivers messages in batches side by side and returns those that are to be tried again.
func deliverAll(t *testing.T, p providers.Provider, all []providers.Message, size int, ended map[string]providers.Outcome, unknown map[string]int) []providers.Message {
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
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			got, _ := deliver(t, ctx, p, b)
			mu.Lock()
			defer mu.Unlock()
			for _, m := range b {
				switch r := got[m.ID]; r.Outcome {
				case providers.Accepted, providers.Gone, providers.Rejected:
					if _, twice := ended[m.ID]; twice {
						t.Errorf("%s ended twice", m.ID)
					}
					ended[m.ID] = r.Outcome
				case providers.Unknown:
					unknown[m.ID]++
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

func TestSandboxSettings(t *testing.T) {
	t.Parallel()
	s, err := sandbox.Start(sandbox.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	for name, settings := range map[string]string{
		"key":         fmt.Sprintf(`{"endpoint":%q,"topic":%q,"key_file":%q,"key_id":%q,"team_id":%q,"ca_file":%q}`, s.APNsURL(), sandbox.Topic, s.KeyFile(), sandbox.KeyID, sandbox.TeamID, s.CAFile()),
		"certificate": fmt.Sprintf(`{"endpoint":%q,"topic":%q,"cert_file":%q,"ca_file":%q}`, s.APNsURL(), sandbox.Topic, s.ClientCertFile(), s.CAFile()),
	} {
		p, err := apns.Kind().Open(context.Background(), []byte(settings))
		if err != nil {
			t.Fatal(err)
		}
		got, err := deliver(t, within(t, 5*time.Second), p, batch(3))
		if err != nil {
			t.Fatal(err)
		}
		wantOutcomes(t, got, map[string]int{"accepted": 3})
		if err := p.Close(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := fmt.Sprintf(`{"endpoint":%q,"topic":%q,"key_file":%q,"key_id":"WRONG12345","team_id":%q,"ca_file":%q}`, s.APNsURL(), sandbox.Topic, s.KeyFile(), sandbox.TeamID, s.CAFile())
	p, err := apns.Kind().Open(context.Background(), []byte(bad))
	if err != nil {
		t.Fatal(err)
	}
	got, _ := deliver(t, within(t, 5*time.Second), p, batch(1))
	wantOutcomes(t, got, map[string]int{"denied InvalidProviderToken": 1})
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
