package email_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/sandbox"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

func openSandbox(t testing.TB, s *sandbox.Sandbox, more string) providers.Provider {
	t.Helper()
	return openWith(t, sandboxtest.Settings(t, s, "email", more))
}

// Each fault of a whole service: what is reported, and how many transactions that took.
func TestSandboxFaults(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		script   sandbox.Script
		address  string
		want     providers.Outcome
		code     string
		requests uint64 // 0: one
		taken    uint64
		silent   bool
	}{
		{"no fault", sandbox.Script{}, "", providers.Accepted, "250 2.0.0", 0, 1, false},
		{"slow", sandbox.Script{Latency: 50 * time.Millisecond}, "", providers.Accepted, "250 2.0.0", 0, 1, false},
		{"greylisted", sandbox.Script{Errors: map[string]float64{"451 4.7.1 greylisted": 1}}, "", providers.Deferred, "451 4.7.1", 0, 0, false},
		{"full", sandbox.Script{Errors: map[string]float64{"452 4.2.2": 1}}, "", providers.Deferred, "452 4.2.2", 0, 0, false},
		{"policy", sandbox.Script{Errors: map[string]float64{"550 5.7.1": 1}}, "", providers.Rejected, "550 5.7.1", 0, 0, false},
		{"unknown mailbox", sandbox.Script{}, "dead@example.org", providers.Gone, "550 5.1.1", 0, 0, false},
		{"closing", sandbox.Script{Errors: map[string]float64{"421": 1}}, "", providers.Deferred, "421", 0, 0, false},
		{"dropped after", sandbox.Script{DropAfter: 1}, "", providers.Unknown, "", 0, 1, true},
		{"stalled", sandbox.Script{Stall: 1}, "", providers.Unknown, "", 0, 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := sandboxtest.Start(t)
			if err := s.Script(sandbox.SMTP, tt.script); err != nil {
				t.Fatal(err)
			}
			m := batchOf(1)[0]
			if tt.address != "" {
				m.Address = tt.address
			}
			results, err := sandboxtest.Deliver(t.Context(), t, openSandbox(t, s, `,"timeout":"2s"`), m)
			r, reported := results[m.ID]
			if reported == tt.silent || (err != nil) != tt.silent || r.Outcome != tt.want || !strings.HasPrefix(r.Code, tt.code) {
				t.Errorf("reported %v: %+v, error %v", reported, r, err)
			}
			if c := s.Counts(sandbox.SMTP); c.Requests != max(tt.requests, 1) || c.Taken != tt.taken {
				t.Errorf("%d requests, %d taken; want %d and %d", c.Requests, c.Taken, max(tt.requests, 1), tt.taken)
			}
		})
	}
}

// Whatever the service does, every message ends, none is lost, and what arrives twice was unknown once.
func TestNothingIsLostAtAFaultyService(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]string{"pool": `,"timeout":"1s"`, "short sessions": `,"timeout":"1s","max_messages":7,"pool":{"max":3}`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nothingIsLost(t, more)
		})
	}
}

func nothingIsLost(t *testing.T, more string) {
	t.Helper()
	const messages, size = 1500, 20
	s := sandboxtest.Start(t)
	if err := s.Script(sandbox.SMTP, sandbox.Script{
		Errors:     map[string]float64{"451 4.7.1 greylisted": 0.05, "452 4.2.2": 0.02, "421": 0.01, "550 5.7.1": 0.02},
		DropBefore: 0.01, DropAfter: 0.01, Stall: 0.0005, GoAwayEvery: 100,
	}); err != nil {
		t.Fatal(err)
	}
	all := batchOf(messages)
	for i := range all {
		if i%50 == 0 {
			all[i].Address = fmt.Sprintf("dead%d@example.org", i)
		}
	}
	count := sandboxtest.Trial{Sandbox: s, Service: sandbox.SMTP, Provider: openSandbox(t, s, more), Size: size}.Deliver(t, all).Counts
	if count[providers.Gone] != messages/50 {
		t.Errorf("ended %v of %d", count, messages)
	}
}

func TestIdleSessionsAreReleased(t *testing.T) {
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
	batch := batchOf(2)
	batch[1].Body = ".\n..\n.hidden\nend"
	batch[1].Content = block(t, map[string]any{"html": html, "attachments": []any{map[string]any{"filename": "a.bin", "content": strings.Repeat("AAAA", 20_000)}}})
	if _, err := sandboxtest.Deliver(t.Context(), t, openSandbox(t, s, ""), batch...); err != nil {
		t.Fatal(err)
	}
	for _, m := range batch {
		got := s.Messages(sandbox.Filter{Service: sandbox.SMTP, ID: m.ID})
		if len(got) != 1 || got[0].Address != m.Address || got[0].Title != m.Title {
			t.Errorf("the sandbox has %+v", got)
		}
		if n := strings.Count(got[0].Content, "\n") - strings.Count(got[0].Content, "\r\n"); n != 0 {
			t.Errorf("%d bare line ends arrived", n)
		}
	}
	if c := s.Messages(sandbox.Filter{Service: sandbox.SMTP, ID: batch[1].ID})[0].Content; !strings.Contains(c, "\r\n.\r\n..\r\n.hidden\r\nend") {
		t.Errorf("dots were lost:\n%.2000s", c)
	}
}
