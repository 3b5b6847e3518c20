package store_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// held is a store whose transactions stop, where they record something for the route "mail" or "first", until they are
// let go on.
type held struct {
	*store.Store
	t      *testing.T
	inside chan string
	goOn   chan struct{}
}

func newHeld(t *testing.T) *held {
	t.Helper()
	h := &held{t: t, inside: make(chan string), goOn: make(chan struct{})}
	h.Store = open(t, store.Options{URL: sqliteURL(t), Room: func(w core.Wake) int {
		if w.Route == "mail" || w.Route == "first" {
			h.inside <- w.Route
			<-h.goOn
		}
		return 1
	}})
	return h
}

// busy has the committer busy until goOn, so that those who come meanwhile share the next group.
func (h *held) busy() {
	h.t.Helper()
	first := acceptance(h.Store, 1)
	first.Deliveries[0].Route = "first"
	h.record(h.t.Context(), first)
	h.entered("first")
}

func (h *held) entered(route string) {
	h.t.Helper()
	if got := <-h.inside; got != route {
		h.t.Fatalf("a transaction records for %s, want %s", got, route)
	}
}

type recorded struct {
	core.Recorded
	err error
}

func (h *held) record(ctx context.Context, a *core.Acceptance) <-chan recorded {
	out := make(chan recorded, 1)
	go func() {
		r, err := h.Record(ctx, a)
		out <- recorded{r, err}
	}()
	return out
}

// joined waits until so many wait for the next group.
func (h *held) joined(n int) {
	h.t.Helper()
	end := time.Now().Add(20 * time.Second)
	for tick := time.NewTicker(time.Millisecond); h.Waiting() != n; <-tick.C {
		if time.Now().After(end) {
			h.t.Fatalf("%d wait for a group, want %d", h.Waiting(), n)
		}
	}
}

// TestWakeOfOneWhoLeft: who goes away during the commit does not take the wake of a batch with it that others share.
// It goes to one that will pass it on: not to one that was recorded before, and not to one that is refused.
func TestWakeOfOneWhoLeft(t *testing.T) {
	t.Parallel()
	for name, others := range map[string][]string{
		"one other":                             {"fresh"},
		"two others":                            {"fresh", "fresh"},
		"behind a repetition":                   {"repeated", "fresh"},
		"behind one that is refused":            {"refused", "fresh"},
		"behind a repetition and a second left": {"repeated", "leaves", "fresh"},
		"only a repetition":                     {"repeated"},
		"nobody":                                {"leaves"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHeld(t)
			known := acceptance(h.Store, 1)
			known.Key, known.BodyHash, known.Deliveries[0].Route = "k", sha256.Sum256([]byte("body")), "other"
			if _, err := h.Record(t.Context(), known); err != nil {
				t.Fatal(err)
			}
			h.busy()
			leaving, leave := context.WithCancel(t.Context())
			defer leave()
			var all []*core.Acceptance
			var answers []<-chan recorded
			kinds := append([]string{"leaves"}, others...)
			for i, kind := range kinds {
				a, ctx := acceptance(h.Store, 1), t.Context()
				switch kind {
				case "leaves":
					ctx = leaving
				case "repeated":
					a.Key, a.BodyHash = known.Key, known.BodyHash
				case "refused":
					a.Key = known.Key
				}
				all, answers = append(all, a), append(answers, h.record(ctx, a))
				h.joined(i + 1)
			}
			h.goOn <- struct{}{}
			h.entered("mail")
			leave()
			for i, kind := range kinds {
				if kind == "leaves" {
					if r := <-answers[i]; !errors.Is(r.err, context.Canceled) {
						t.Errorf("one that left: %+v", r)
					}
				}
			}
			h.goOn <- struct{}{}
			var got, want []core.ID
			for i, kind := range kinds {
				if kind == "leaves" {
					continue
				}
				r := <-answers[i]
				if refused := kind == "refused"; refused != errors.Is(r.err, core.ErrKeyReused) || !refused && r.err != nil || r.Replayed != (kind == "repeated") {
					t.Errorf("%s: %+v", kind, r)
				}
				if kind == "fresh" {
					want = []core.ID{all[i].Deliveries[0].Batch} // all share it
				} else if len(r.Wakes) > 0 {
					t.Errorf("one that was %s was told to wake %v", kind, r.Wakes)
				}
				for _, w := range r.Wakes {
					got = append(got, w.Batch)
				}
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("woken: -want +got\n%s", d)
			}
		})
	}
}

// TestLeftBeforeAlone: who left while the members of a group that failed are tried one by one is not begun any more. A
// database that hangs meanwhile may have kept them for minutes.
func TestLeftBeforeAlone(t *testing.T) {
	t.Parallel()
	h := newHeld(t)
	h.busy()
	bad, good, gone := acceptance(h.Store, 1), acceptance(h.Store, 1), acceptance(h.Store, 1)
	bad.Deliveries[0].Content.Slot, gone.Deliveries[0].Route = 7, "other"
	leaving, leave := context.WithCancel(t.Context())
	defer leave()
	var answers []<-chan recorded
	for i, a := range []*core.Acceptance{bad, good, gone} {
		ctx := t.Context()
		if a == gone {
			ctx = leaving
		}
		answers = append(answers, h.record(ctx, a))
		h.joined(i + 1)
	}
	h.goOn <- struct{}{}
	for range 2 { // together, and the bad one alone
		h.entered("mail")
		h.goOn <- struct{}{}
	}
	h.entered("mail")
	leave()
	if r := <-answers[2]; !errors.Is(r.err, context.Canceled) {
		t.Errorf("who left has %v", r.err)
	}
	h.goOn <- struct{}{}
	if bad, good := <-answers[0], <-answers[1]; bad.err == nil || good.err != nil {
		t.Errorf("%v, %v", bad.err, good.err)
	}
	last := acceptance(h.Store, 1)
	last.Deliveries[0].Route = "other"
	if _, err := h.Record(t.Context(), last); err != nil { // in the next group
		t.Fatal(err)
	}
	if _, err := h.Notification(t.Context(), "shop", gone.Notification.ID); !errors.Is(err, core.ErrNotFound) {
		t.Errorf("who left was recorded: %v", err)
	}
}

// TestLeavingRaces: whoever goes away just as the commit ends is told of it with the wake, or has left and another has it.
func TestLeavingRaces(t *testing.T) {
	t.Parallel()
	h := newHeld(t)
	for i := range 150 {
		h.busy()
		leaving, leave := context.WithCancel(t.Context())
		a := h.record(leaving, acceptance(h.Store, 1))
		h.joined(1)
		b := h.record(t.Context(), acceptance(h.Store, 1))
		h.joined(2)
		h.goOn <- struct{}{}
		h.entered("mail")
		h.goOn <- struct{}{}
		time.AfterFunc(time.Duration(i%50)*10*time.Microsecond, leave) // before, as, or after it is synced
		wakes, ra, rb := 0, <-a, <-b
		for _, r := range []recorded{ra, rb} {
			wakes += len(r.Wakes)
		}
		if wakes != 1 || rb.err != nil || ra.err != nil && !errors.Is(ra.err, context.Canceled) {
			t.Fatalf("%d wakes of one batch: %+v, %+v", wakes, ra, rb)
		}
	}
}

// TestAnswersOfOneWhoLeft: what a transaction still writes to after its caller went away is not what the caller reads. The
// race detector says so.
func TestAnswersOfOneWhoLeft(t *testing.T) {
	t.Parallel()
	const id = "someone"
	for name, do := range map[string]func(ctx context.Context, h *held, known *core.Acceptance) error{
		"Cancel": func(ctx context.Context, h *held, known *core.Acceptance) error {
			_, err := h.Cancel(ctx, "shop", known.Notification.ID)
			return err
		},
		"Receipt": func(ctx context.Context, h *held, known *core.Acceptance) error {
			_, err := h.Receipt(ctx, "other", providers.Receipt{ID: known.Deliveries[0].ID.String(), Event: providers.EventSeen})
			return err
		},
		"MarkInbox": func(ctx context.Context, h *held, known *core.Acceptance) error {
			err := h.MarkInbox(ctx, "shop", id, known.Deliveries[0].ID, "seen")
			if errors.Is(err, core.ErrNotFound) {
				return nil
			}
			return err
		},
		"Requeue": func(ctx context.Context, h *held, _ *core.Acceptance) error { _, err := h.Requeue(ctx); return err },
		"Unclaimed": func(ctx context.Context, h *held, _ *core.Acceptance) error {
			_, err := h.Unclaimed(ctx, core.RouteLane{Route: "other", Lane: "normal"}, time.Nanosecond)
			return err
		},
		"Acquire": func(ctx context.Context, h *held, _ *core.Acceptance) error {
			_, _, err := h.Acquire(ctx, "n", "h", time.Minute)
			return err
		},
		"PutRecipient": func(ctx context.Context, h *held, _ *core.Acceptance) error {
			_, err := h.PutRecipient(ctx, &core.Recipient{App: "shop", ID: id})
			return err
		},
		"UpdateRecipient": func(ctx context.Context, h *held, _ *core.Acceptance) error {
			_, err := h.UpdateRecipient(ctx, "shop", id, func(*core.Recipient) error { return nil })
			return err
		},
		"ImportRecipients": func(ctx context.Context, h *held, _ *core.Acceptance) error {
			_, err := h.ImportRecipients(ctx, "shop", []core.Import{{Recipient: core.Recipient{App: "shop", ID: id}}}, &core.Rules{})
			return err
		},
		"PutTopicRecipient": func(ctx context.Context, h *held, _ *core.Acceptance) error {
			_, err := h.PutTopicRecipient(ctx, "shop", "t", id)
			return err
		},
		"Secret": func(ctx context.Context, h *held, _ *core.Acceptance) error {
			_, err := h.Secret(ctx, "s", []byte("offer"))
			return err
		},
		"PutTemplate": func(ctx context.Context, h *held, _ *core.Acceptance) error {
			_, err := h.PutTemplate(ctx, "shop", "t", []byte("{}"))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHeld(t)
			known := acceptance(h.Store, 1)
			known.Deliveries[0].Route = "other"
			if _, err := h.Record(t.Context(), known); err != nil {
				t.Fatal(err)
			}
			h.busy()
			answer := h.record(t.Context(), acceptance(h.Store, 1))
			h.joined(1)
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			left := make(chan error, 1)
			go func() { left <- do(ctx, h, known) }()
			h.joined(2)
			h.goOn <- struct{}{}
			h.entered("mail")
			leave()
			h.goOn <- struct{}{} // not after it has left: that would be an order that nobody else gives it
			if r := <-answer; r.err != nil {
				t.Error(r.err)
			}
			if err := <-left; err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
}
