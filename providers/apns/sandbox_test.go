package apns_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/apns"
	"github.com/carillon-notify/carillon/providers/sandbox"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
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
	s := sandboxtest.Start(t)
	if err := s.Script(sandbox.APNs, sandbox.Script{
		Errors:     faults.errors,
		DropBefore: 0.005, DropAfter: 0.005, Stall: 0.001, TakenAnyway: faults.takenAnyway, GoAwayEvery: 150, MaxStreams: 40,
	}); err != nil {
		t.Fatal(err)
	}
	p, err := apns.Kind().Open(context.Background(), sandboxtest.Settings(t, s, "apns", `,"timeout":"500ms"`))
	if err != nil {
		t.Fatal(err)
	}
	all := batch(messages)
	for i := range all {
		if i%50 == 0 {
			all[i].Address = "dead" + all[i].Address[4:]
		}
	}
	count := sandboxtest.Trial{Sandbox: s, Service: sandbox.APNs, Provider: p, Size: size}.Deliver(t, all).Counts
	if count[providers.Gone] == 0 { // how many is the lot's: a dead token's message may be refused first
		t.Errorf("ended %v of %d", count, messages)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		t.Error(err)
	}
	if st := p.Health(ctx).Pool; st.Open != 0 || st.Opened != st.Closed {
		t.Errorf("connections left: %+v", st)
	}
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
