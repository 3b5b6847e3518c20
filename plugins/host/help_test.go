package host_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/plugins/host"
	"github.com/carillon-notify/carillon/providers"
)

// quick is a supervisor in a hurry. Its crashes and strikes are counted for long, so that a slow machine
// forgets none.
var quick = host.Timing{
	Start: 20 * time.Second, Ping: 100 * time.Millisecond, PingTimeout: time.Second, Ready: 10 * time.Second,
	BackoffMin: 20 * time.Millisecond, BackoffMax: 80 * time.Millisecond, Window: time.Hour, Crashes: 5, Strikes: 3,
	Quarantine: time.Hour, MaxQuarant: 4 * time.Hour,
}

// patient bounds what is waited for.
const patient = 30 * time.Second

// spec runs this binary as a plugin that plays a part.
func spec(t testing.TB, part string, args ...string) host.Spec {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return host.Spec{Name: part, Command: self, Args: append([]string{"play", part}, args...), Logger: newLog(t).logger(), Timing: quick}
}

// open opens a plugin, and closes it at the end. It starts one process, where host.Describe would start
// another before.
func open(t testing.TB, s host.Spec, settings string) providers.Provider {
	t.Helper()
	kind := obedientKind()
	switch s.Name {
	case "raw":
		kind = providers.Kind{Name: "raw", Channel: "test", MaxBatch: 100, Settings: kind.Settings}
	case "receiver":
		kind = receiverKind("")
	case "server":
		kind = serverKind()
	}
	return openKind(t, host.Isolate(kind, s), settings)
}

func openKind(t testing.TB, kind providers.Kind, settings string) providers.Provider {
	t.Helper()
	p, err := kind.Open(t.Context(), []byte(settings))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = p.Close(ctx) // a test that cares has closed it
	})
	return p
}

// messages are a batch whose bodies say what is to become of each.
func messages(bodies ...string) []providers.Message {
	out := make([]providers.Message, len(bodies))
	for i, b := range bodies {
		out[i] = providers.Message{ID: fmt.Sprintf("id-%d", i), Address: fmt.Sprintf("+49151000%04d", i), Body: b,
			CreatedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour), Attempt: 1}
	}
	return out
}

// answers are the results of one call by id.
type answers map[string]providers.Result

func (a answers) outcomes() map[string]providers.Outcome {
	out := map[string]providers.Outcome{}
	for id, r := range a {
		out[id] = r.Outcome
	}
	return out
}

// deliver calls Deliver and returns what it reported, each id once.
func deliver(t testing.TB, p providers.Provider, timeout time.Duration, batch []providers.Message) (answers, error) {
	t.Helper()
	return deliverTold(t, p, timeout, batch, func(providers.Result) {})
}

// deliverTold tells of each result as it comes.
func deliverTold(t testing.TB, p providers.Provider, timeout time.Duration, batch []providers.Message, tell func(providers.Result)) (answers, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	var mu sync.Mutex
	got, over := answers{}, false
	err := p.Deliver(ctx, batch, func(r providers.Result) {
		mu.Lock()
		defer mu.Unlock()
		if _, twice := got[r.ID]; twice || over {
			t.Errorf("%s was reported twice or late", r.ID)
		}
		got[r.ID] = r
		tell(r)
	})
	mu.Lock()
	defer mu.Unlock()
	over = true
	return got, err
}

// pidOf delivers a message and returns the id of the process that did it, once there is one that does.
func pidOf(t testing.TB, p providers.Provider) int {
	t.Helper()
	var pid int
	eventually(t, "a message is delivered", func() bool {
		got, err := deliver(t, p, patient, messages("hello"))
		pid, _ = strconv.Atoi(got["id-0"].ProviderID)
		return err == nil && got["id-0"].Outcome == providers.Accepted
	})
	return pid
}

// eventually waits for something that nobody tells of.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patient); !is(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, patient)
		}
	}
}

// gone reports whether a process is no more; one that was killed and is nobody's child any more may stay
// a zombie for as long as nobody waits for it.
func gone(pid int) bool {
	s := state(pid)
	return s == "" || s == "Z"
}

func kill(t testing.TB, pid int, s syscall.Signal) {
	t.Helper()
	if pid <= 1 {
		t.Fatalf("there is no process %d", pid)
	}
	if err := syscall.Kill(pid, s); err != nil {
		t.Error(err)
	}
	if s == syscall.SIGSTOP {
		eventually(t, "the process is stopped", func() bool { return state(pid) == "T" })
	}
}

// state is a process's state as ps shows it, "" if there is no such process.
func state(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	return strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))[0]
}

// log keeps what is logged, and shows it if its test fails.
type log struct {
	mu    sync.Mutex
	lines []slog.Record
}

func newLog(t testing.TB) *log {
	l := &log{}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for i, r := range l.all() {
			if i == 40 {
				t.Logf("... and %d more", len(l.all())-i)
				break
			}
			t.Logf("%s %s %.300s", r.Level, r.Message, attrs(r))
		}
	})
	return l
}

func (l *log) logger() *slog.Logger { return slog.New(l) }

func (l *log) all() []slog.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

// Enabled implements slog.Handler.
func (l *log) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (l *log) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, r.Clone())
	return nil
}

// WithAttrs implements slog.Handler.
func (l *log) WithAttrs([]slog.Attr) slog.Handler { return l }

// WithGroup implements slog.Handler.
func (l *log) WithGroup(string) slog.Handler { return l }

// attrs are a record's attributes in one text.
func attrs(r slog.Record) string {
	var out []string
	r.Attrs(func(a slog.Attr) bool {
		out = append(out, fmt.Sprintf("%s=%v", a.Key, a.Value))
		return true
	})
	return strings.Join(out, " ")
}

// attr is one attribute's value.
func attr(r slog.Record, key string) any {
	var v any
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == key {
			v = a.Value.Any()
		}
		return true
	})
	return v
}

// find returns the records of a message.
func (l *log) find(message string) []slog.Record {
	var out []slog.Record
	for _, r := range l.all() {
		if r.Message == message {
			out = append(out, r)
		}
	}
	return out
}
