package intake_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
)

// changing is a store of which somebody changes a recipient before a recording, the first so many times.
type changing struct {
	*bench
	times  int
	change func()
	tries  int
}

func (c *changing) Record(ctx context.Context, a *core.Acceptance) (core.Recorded, error) {
	c.tries++
	if len(a.Known) != 1 || a.Known[0].ID != "u1" {
		c.t.Errorf("made for %+v", a.Known)
	}
	if c.tries <= c.times {
		c.change()
		return core.Recorded{}, core.ErrStale
	}
	return c.bench.Record(ctx, a)
}

func newChanging(t *testing.T, times int) (*changing, *intake.Intake) {
	t.Helper()
	b := newBench(t)
	b.recipients["a/u1"] = &core.Recipient{App: "a", ID: "u1", Endpoints: []core.Endpoint{{Kind: "email", Address: "a@example.com"}}}
	c := &changing{bench: b, times: times, change: func() {}}
	return c, intake.New(intake.Options{Store: c, Queue: b, Routing: b.Routing()})
}

func toOne() *intake.Request {
	return &intake.Request{To: []intake.Target{{Recipient: "u1"}}, Content: &intake.Content{Title: "Hi", Body: "x"}, Channels: []string{"email"}}
}

// Who opts out or is erased while a request is taken is treated as they are by then.
func TestAcceptAnew(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(b *bench)
		want   []core.Skip
	}{
		"an opt-out": {func(b *bench) {
			b.recipients["a/u1"] = &core.Recipient{App: "a", ID: "u1", Preferences: core.Preferences{"*": {"email": false}}}
		}, []core.Skip{{Recipient: "u1", Channel: "email", Reason: core.SkipPreference}}},
		"a choice that rules nothing out": {func(*bench) {}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, in := newChanging(t, 1)
				s.change = func() { c.change(s.bench) }
				a, err := in.Accept(t.Context(), "a", toOne(), intake.Key{})
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(c.want, a.Skipped); diff != "" || a.Deliveries != 1-len(c.want) || len(s.recorded) != 1 {
					t.Errorf("%d deliveries, %d recorded, skipped: %s", a.Deliveries, len(s.recorded), diff)
				}
			})
		})
	}
}

// Where somebody changes at each try the caller is told to come again, within seconds.
func TestAcceptAnewAlways(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, in := newChanging(t, 1<<30)
		began := time.Now()
		_, err := in.Accept(t.Context(), "a", toOne(), intake.Key{})
		if took := time.Since(began); !errors.Is(err, core.ErrUnavailable) || took > 10*time.Second || s.tries < 5 || len(s.recorded) != 0 {
			t.Errorf("%v after %v and %d tries", err, took, s.tries)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := in.Accept(ctx, "a", toOne(), intake.Key{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("past its deadline: %v", err)
		}
	})
}
