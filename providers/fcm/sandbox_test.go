package fcm_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/sandbox"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

func openSandbox(t testing.TB, s *sandbox.Sandbox, more string) providers.Provider {
	t.Helper()
	return openWith(t, sandboxtest.Settings(t, s, "fcm", more))
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
			s := sandboxtest.Start(t)
			if err := s.Script(sandbox.FCM, tt.script); err != nil {
				t.Fatal(err)
			}
			m, more := batchOf(1)[0], ""
			if tt.script.Stall > 0 {
				more = `,"timeout":"1s"` // connecting, on a busy machine, has to fit in
			}
			results, err := sandboxtest.Deliver(t.Context(), t, openSandbox(t, s, more), m)
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
	s := sandboxtest.Start(t)
	if err := s.Script(sandbox.FCM, script); err != nil {
		t.Fatal(err)
	}
	all := batchOf(messages)
	for i := range all {
		if i%50 == 0 {
			all[i].Address = fmt.Sprintf("dead-token-%d", i)
		}
	}
	count := sandboxtest.Trial{Sandbox: s, Service: sandbox.FCM, Provider: openSandbox(t, s, `,"timeout":"1s"`), Size: size}.Deliver(t, all).Counts
	if count[providers.Gone] != messages/50 || count[providers.Rejected] != 0 {
		t.Errorf("ended %v of %d", count, messages)
	}
}

func TestIdleConnectionsAreReleased(t *testing.T) {
	t.Parallel()
	s := sandboxtest.Start(t)
	p := openSandbox(t, s, `,"pool":{"idle":0,"idle_timeout":"20ms"}`)
	if _, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(1)...); err != nil {
		t.Fatal(err)
	}
	sandboxtest.Eventually(t, func() bool { st := p.Health(t.Context()).Pool; return st.Open == 0 && st.Closed == st.Opened })
	if _, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(1)...); err != nil {
		t.Fatal(err)
	}
}

func TestSandboxSeesTheMessage(t *testing.T) {
	t.Parallel()
	s := sandboxtest.Start(t)
	m := batchOf(1)[0]
	m.Data = []byte(`{"screen":"order","n":7}`)
	if _, err := sandboxtest.Deliver(t.Context(), t, openSandbox(t, s, ""), m); err != nil {
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

// TestHugeIsNotSent: what FCM could only refuse does not go out, where it might cost others their connection.
func TestHugeIsNotSent(t *testing.T) {
	t.Parallel()
	s := sandboxtest.Start(t)
	batch := batchOf(8)
	for i := range batch[1:] {
		batch[1+i].Body = strings.Repeat("0123456789abcdef", 64<<10)
	}
	results, err := sandboxtest.Deliver(t.Context(), t, openSandbox(t, s, ""), batch...)
	if err != nil {
		t.Fatal(err)
	}
	for i := range batch {
		want := providers.Result{ID: batch[i].ID, Outcome: providers.Rejected, Code: "too_big"}
		if i == 0 {
			want.Outcome, want.Code = providers.Accepted, ""
		}
		if r := results[batch[i].ID]; r.Outcome != want.Outcome || r.Code != want.Code {
			t.Errorf("message %d: %+v", i, r)
		}
	}
	if c := s.Counts(sandbox.FCM); c.Requests != 1 || c.Taken != 1 {
		t.Errorf("%d requests, %d taken, want one", c.Requests, c.Taken)
	}
}
