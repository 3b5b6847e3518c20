package host_test

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/plugins/host"
	"github.com/carillon-notify/carillon/providers"
)

// TestGarbage has plugins that do not keep to the contract. What they answered as they should counts, the
// rest is Unknown, and who does it again and again is quarantined.
func TestGarbage(t *testing.T) {
	t.Parallel()
	first := map[string]providers.Outcome{"id-0": providers.Accepted}
	both := map[string]providers.Outcome{"id-0": providers.Accepted, "id-1": providers.Accepted}
	unknown := map[string]providers.Outcome{"id-0": providers.Accepted, "id-1": providers.Unknown}
	for what, test := range map[string]struct {
		want   map[string]providers.Outcome
		broken string // what the log says of it; "": it is no fault
		fails  string // what the error says
	}{
		"strange-ids": {want: both, broken: "an answer for an id that was not given to it, or a second one"},
		"twice":       {want: both, broken: "an answer for an id that was not given to it, or a second one"},
		"negative":    {want: both, broken: "a negative time to wait, -5s"},
		"outcome":     {want: unknown},
		"utf8":        {want: first, broken: "what it speaks is not the protocol: ", fails: "invalid UTF-8"},
		"garbage":     {want: first, broken: "what it speaks is not the protocol: ", fails: "unmarshal"},
		"huge":        {want: first, broken: "a reply of more than 4 MiB", fails: "received message larger than max (629145600 vs. 4194304)"},
		"endless":     {want: first, broken: "an answer for an id that was not given to it, or a second one", fails: "did not end the call in time"},
		"empty":       {want: first, broken: "replies without a result, one after the other", fails: "replies hold nothing"},
		"just-ends":   {want: first},
		"status":      {want: first, fails: "could not reach *** with ***"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := spec(t, "raw", what)
			l := newLog(t)
			s.Logger = l.logger()
			p := open(t, s, `{"key":"sesame-sesame"}`)
			pid := pidOf(t, p)
			for n := range 3 {
				got, err := deliver(t, p, patient, messages("x", "misbehave"))
				if d := cmp.Diff(test.want, got.outcomes()); d != "" {
					t.Error(d)
				}
				if (err == nil) != (test.fails == "") || err != nil && !strings.Contains(err.Error(), test.fails) {
					t.Errorf("the error: %v", err)
				}
				if r := got["id-1"]; r.After < 0 || r.Parts < 0 {
					t.Errorf("the answer is %+v", r)
				}
				faults := l.find("the plugin's answers break the contract")
				if test.broken == "" && len(faults) > 0 || test.broken != "" && (len(faults) != n+1 || !strings.HasPrefix(attr(faults[n], "what").(string), test.broken)) {
					t.Errorf("after %d times the log has %d faults", n+1, len(faults))
				}
			}
			if test.broken == "" {
				if again := pidOf(t, p); again != pid {
					t.Error("it was started again")
				}
				return
			}
			var got answers
			eventually(t, "the quarantine", func() bool {
				got, _ = deliver(t, p, patient, messages("x"))
				return got["id-0"].Outcome == providers.Denied
			})
			if r := got["id-0"]; r.Code != host.CodeQuarantined || !strings.Contains(r.Reason, "its answers broke the contract: "+test.broken) {
				t.Errorf("in quarantine: %+v", r)
			}
			retry(t, p)
			if again := pidOf(t, p); again == pid {
				t.Error("the process outlived its quarantine")
			}
		})
	}
}

// TestSlowReader has plugins that do not take a batch, or do not end a call.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"reads-nothing", "never-ends"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			p := open(t, spec(t, "raw", what), `{}`)
			batch := messages(slices.Repeat([]string{strings.Repeat("x", 100_000)}, 100)...)
			batch[0].Body = "misbehave"
			began := time.Now()
			got, err := deliver(t, p, 300*time.Millisecond, batch)
			if took := time.Since(began); err == nil || len(got) > 1 || took > 10*time.Second {
				t.Errorf("%d answers, %v, after %s", len(got), err, took)
			}
		})
	}
}

// TestLargeMessage gives a plugin a message that it does not take: that is no fault of its answers.
func TestLargeMessage(t *testing.T) {
	t.Parallel()
	s := spec(t, "raw", "limits")
	l := newLog(t)
	s.Logger = l.logger()
	p := open(t, s, `{}`)
	pid := pidOf(t, p)
	for range 4 {
		if got, err := deliver(t, p, patient, messages(strings.Repeat("x", 5<<20))); err == nil || len(got) != 0 {
			t.Errorf("%v, %v", got.outcomes(), err)
		}
	}
	if n := len(l.find("the plugin's answers break the contract")); n != 0 || pidOf(t, p) != pid {
		t.Errorf("%d faults", n)
	}
}

// TestHealth asks plugins that answer badly, or not at all.
func TestHealth(t *testing.T) {
	t.Parallel()
	for what, want := range map[string]providers.Health{
		"health":       {Status: providers.HealthDegraded, Pool: providers.PoolStats{Max: 7}}, // a status that does not exist
		"health-fails": {Status: providers.HealthDegraded, Reason: "the plugin could not say how it is"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := spec(t, "raw", what)
			l := newLog(t)
			s.Logger = l.logger()
			s.Timing.Ping = 10 * time.Millisecond
			p := open(t, s, `{}`)
			if d := cmp.Diff(want, p.Health(t.Context())); d != "" {
				t.Error(d)
			}
			pid := pidOf(t, p)
			for range 10 {
				if again := pidOf(t, p); again != pid {
					t.Error("it answers, and was started again")
				}
			}
		})
	}
	t.Run("health-hangs", func(t *testing.T) {
		t.Parallel()
		s := spec(t, "raw", "health-hangs")
		s.Timing.Ping, s.Timing.PingTimeout = 10*time.Millisecond, 100*time.Millisecond
		p := open(t, s, `{}`)
		if h := p.Health(t.Context()); h.Status == providers.HealthOK {
			t.Errorf("health is %+v", h)
		}
		pid := pidOf(t, p)
		eventually(t, "another process", func() bool { return pidOf(t, p) != pid })
	})
}

// TestCheck asks a plugin about messages; one that gives no answer lets them pass.
func TestCheck(t *testing.T) {
	t.Parallel()
	kind, err := host.Describe(t.Context(), spec(t, "obedient"))
	if err != nil {
		t.Fatal(err)
	}
	batch := messages("fine", "refuse", "deaf")
	if err := kind.Check(&batch[1]); err != nil {
		t.Errorf("before it is open: %v", err)
	}
	p := openKind(t, kind, `{}`)
	if err := kind.Check(&batch[0]); err != nil {
		t.Errorf("a message that will do: %v", err)
	}
	if err := kind.Check(&batch[1]); err == nil || err.Error() != "the body must not be said to ***" {
		t.Errorf("a message that will not: %v", err)
	}
	if err := kind.Check(&batch[2]); err != nil {
		t.Errorf("without an answer: %v", err)
	}
	pid := pidOf(t, p)
	kill(t, pid, syscall.SIGSTOP)
	if err := kind.Check(&batch[1]); err != nil {
		t.Errorf("stopped: %v", err)
	}
	kill(t, pid, syscall.SIGKILL)
	raw, err := host.Describe(t.Context(), spec(t, "raw", "check"))
	if err != nil {
		t.Fatal(err)
	}
	openKind(t, raw, `{}`)
	if err := raw.Check(&batch[1]); err != nil {
		t.Errorf("an error that is no answer: %v", err)
	}
}

// TestForeignSocket has a plugin that would have the host's clients sent to somebody else's socket.
func TestForeignSocket(t *testing.T) {
	t.Parallel()
	p := open(t, spec(t, "raw", "http-elsewhere"), `{}`)
	if h := p.Health(t.Context()); h.Status != providers.HealthDown || !strings.Contains(h.Reason, "it must listen on a unix socket in the directory") {
		t.Errorf("health is %+v", h)
	}
}
