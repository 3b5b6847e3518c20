package campaign_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/campaign"
	"github.com/carillon-notify/carillon/core/intake"
	"github.com/carillon-notify/carillon/core/store"
)

// A campaign whose channel has gone by its time is paused and says why, and goes on once that is back.
func TestChannelGone(t *testing.T) {
	t.Parallel()
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.stop()
		r.put("u1", "UTC")
		time.Sleep(time.Second)
		c := r.create(&campaign.Spec{Name: "x", Audience: core.CampaignAudience{All: true}, StartAt: time.Now().Add(time.Hour)})
		in := r.m.Checker.(*intake.Intake)
		in.SetRouting(routingWithout(t, "email"))
		time.Sleep(2 * time.Hour)
		got, err := r.m.Get(t.Context(), "a", c.ID)
		if err != nil {
			t.Fatal(err)
		}
		if got.State != core.CampaignPaused || !strings.Contains(got.Reason, `no channel "email"`) || got.Totals.Expanded != 0 {
			t.Fatalf("it is %s for %q: %+v", got.State, got.Reason, got.Totals)
		}
		in.SetRouting(routingWithout(t, ""))
		if _, err := r.m.Steer(t.Context(), "a", c.ID, "resume"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got, err = r.m.Get(t.Context(), "a", c.ID); err != nil {
			t.Fatal(err)
		}
		if got.State != core.CampaignCompleted || len(r.made()["u1"]) != 1 {
			t.Errorf("resumed, it is %s for %q: %v", got.State, got.Reason, r.made())
		}
	})
}

// fullPages never have room for a page.
type fullPages struct{ campaign.Pages }

func (fullPages) CampaignBusy(context.Context, core.ID) (due, held, sending int, err error) {
	return 0, 1 << 30, 0, nil
}

// A notification whose topics cannot be resolved any more ends and says why; what was made of it stays.
func TestTopicUnresolved(t *testing.T) {
	t.Parallel()
	warm(t)
	block := map[string]json.RawMessage{"email": json.RawMessage(`{"subject":"s"}`)}
	for name, c := range map[string]struct {
		channels []string
		blocks   map[string]json.RawMessage
		gone     string // the kind that a reload drops
		full     bool   // there is never room
		named    bool   // somebody is named beside the topic
		why      string
		ends     time.Duration // after it is due
		status   core.Status
	}{
		"a block's channel":                 {blocks: block, gone: "email", why: "its content cannot be used: ", status: core.StatusCancelled},
		"a channel asked for":               {channels: []string{"email"}, gone: "email", why: `no channel "email"`, status: core.StatusCancelled},
		"a block's, with somebody named":    {blocks: block, gone: "email", named: true, why: "its content cannot be used: ", status: core.StatusAccepted},
		"its life is over before its topic": {channels: []string{"email"}, full: true, why: "it expired", ends: time.Hour, status: core.StatusCancelled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRigWith(t, func(_ *store.Store, o *campaign.Options) {
					if c.full {
						o.Pages = fullPages{o.Pages}
					}
				})
				defer r.stop()
				r.put("u1", "UTC")
				r.put("u2", "UTC")
				if _, err := r.store.PutTopicRecipient(t.Context(), "a", "vip", "u1"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				due := time.Now().Add(time.Hour)
				req := &intake.Request{To: []intake.Target{{Topic: "vip"}}, Content: &intake.Content{Title: "Hi", Body: "x", Channels: c.blocks}, Channels: c.channels,
					SendAt: due, TTL: time.Hour}
				if c.named {
					req.To = append(req.To, intake.Target{Recipient: "u2"})
				}
				acc, err := r.m.Checker.Accept(t.Context(), "a", req, intake.Key{})
				if err != nil {
					t.Fatal(err)
				}
				r.m.Checker.(*intake.Intake).SetRouting(routingWithout(t, c.gone))
				sleepTo(due.Add(c.ends - time.Minute))
				if n := r.notification(acc.ID); !n.Resolving || n.Unresolved != "" {
					t.Fatalf("it ended too early: %+v", n)
				}
				time.Sleep(2 * time.Minute)
				n := r.notification(acc.ID)
				if n.Resolving || !strings.Contains(n.Unresolved, c.why) || n.Counts.Pending != acc.Deliveries || n.Counts.Total() != acc.Deliveries {
					t.Errorf("resolving %t, ended for %q, counts %+v of %d", n.Resolving, n.Unresolved, n.Counts, acc.Deliveries)
				}
				if status := core.StatusOf(&n.Notification, n.Counts, n.Begun, r.store.Now()); status != c.status {
					t.Errorf("it is %s, not %s", status, c.status)
				}
				r.saysWhy(acc.ID, n)
				if !c.named {
					r.swept(acc.ID)
				}
			})
		})
	}
}

func (r *rig) notification(id core.ID) *core.NotificationView {
	r.t.Helper()
	n, err := r.store.Notification(r.t.Context(), "a", id)
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// saysWhy looks for the reason in the timeline.
func (r *rig) saysWhy(id core.ID, n *core.NotificationView) {
	r.t.Helper()
	steps, err := r.store.Timeline(r.t.Context(), "a", id)
	if err != nil {
		r.t.Fatal(err)
	}
	want := core.Step{At: n.UnresolvedAt, What: core.StepCancelled, Reason: n.Unresolved}
	if n.UnresolvedAt.IsZero() || !slices.Contains(steps, want) {
		r.t.Errorf("the timeline does not have %+v: %+v", want, steps)
	}
}

// swept has retention remove a notification.
func (r *rig) swept(id core.ID) {
	r.t.Helper()
	time.Sleep(time.Hour)
	l, ok, err := r.store.Acquire(r.t.Context(), "retention", "test", time.Hour)
	if err != nil || !ok {
		r.t.Fatal(ok, err)
	}
	if _, err := r.store.Sweep(r.t.Context(), l, time.Minute, core.ID{}); err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.store.Notification(r.t.Context(), "a", id); !errors.Is(err, core.ErrNotFound) {
		r.t.Errorf("retention leaves it: %v", err)
	}
}
