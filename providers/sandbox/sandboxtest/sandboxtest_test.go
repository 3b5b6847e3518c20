package sandboxtest_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/sandbox"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

// listener is a test that is told of failures and does not fail.
type listener struct {
	testing.TB
	mu     sync.Mutex
	failed []string
}

func (l *listener) Helper() {}

func (l *listener) Errorf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = append(l.failed, fmt.Sprintf(format, args...))
}

// liar is a provider that says what it is told to say and sends nothing.
type liar func(m *providers.Message, tries int) []providers.Outcome

func (l liar) Deliver(_ context.Context, batch []providers.Message, report func(providers.Result)) error {
	for i := range batch {
		batch[i].Attempt++
		for _, o := range l(&batch[i], batch[i].Attempt) {
			report(providers.Result{ID: batch[i].ID, Outcome: o})
		}
	}
	return nil
}

func (liar) Health(context.Context) providers.Health { return providers.Health{} }
func (liar) Close(context.Context) error             { return nil }

// TestLiesAreSeen: a trial fails for a provider that says what is not so.
func TestLiesAreSeen(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		provider liar
		want     string // "": nothing is wrong
	}{
		"all rejected":            {func(*providers.Message, int) []providers.Outcome { return []providers.Outcome{providers.Rejected} }, ""},
		"accepted and never sent": {func(*providers.Message, int) []providers.Outcome { return []providers.Outcome{providers.Accepted} }, "never arrived"},
		"reported twice": {func(*providers.Message, int) []providers.Outcome {
			return []providers.Outcome{providers.Rejected, providers.Rejected}
		}, "reported twice"},
		"denied": {func(*providers.Message, int) []providers.Outcome { return []providers.Outcome{providers.Denied} }, "denied"},
		"silent at first": {func(_ *providers.Message, tries int) []providers.Outcome {
			return []providers.Outcome{providers.Rejected}[:min(tries-1, 1)]
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := &listener{TB: t}
			messages := make([]providers.Message, 10)
			for i := range messages {
				messages[i].ID = fmt.Sprint(i)
			}
			tally := sandboxtest.Trial{Sandbox: sandboxtest.Start(t), Service: sandbox.APNs, Provider: tc.provider, Size: 3}.Deliver(l, messages)
			if len(tally.Ended) != len(messages) {
				t.Errorf("%d of %d ended", len(tally.Ended), len(messages))
			}
			seen := slices.ContainsFunc(l.failed, func(s string) bool { return strings.Contains(s, tc.want) })
			if seen == (tc.want == "") && (tc.want != "" || len(l.failed) > 0) {
				t.Errorf("the trial says %q, want %q", l.failed, tc.want)
			}
		})
	}
}
