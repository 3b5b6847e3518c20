package campaign_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/campaign"
	"github.com/carillon-notify/carillon/core/intake"
	"github.com/carillon-notify/carillon/core/store"
)

// slowPages takes a tenth of a second for each page that it writes.
type slowPages struct{ campaign.Pages }

func (p slowPages) Expand(ctx context.Context, x *core.CampaignPage) (*core.Campaign, core.Recorded, error) {
	time.Sleep(100 * time.Millisecond)
	return p.Pages.Expand(ctx, x)
}

// movingAudience tells of the first page of people that is read.
type movingAudience struct {
	campaign.Audiences
	read func()
}

func (a *movingAudience) AudiencePage(ctx context.Context, q core.Audience, cursor string, limit int) (core.AudiencePage, error) {
	p, err := a.Audiences.AudiencePage(ctx, q, cursor, limit)
	if read := a.read; read != nil && len(p.Recipients) > 0 {
		a.read = nil
		read()
	}
	return p, err
}

// Who moves while the last page that has them is being written is in the last leg too, and gets it once.
func TestMovingMeanwhile(t *testing.T) {
	t.Parallel()
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		people := &movingAudience{}
		r := newRigWith(t, func(_ *store.Store, o *campaign.Options) {
			people.Audiences = o.Audiences
			o.Pages, o.Audiences = slowPages{o.Pages}, people
		})
		defer r.stop()
		r.put("moves", "UTC")
		r.put("stays", "UTC")
		people.read = func() { r.put("moves", "Europe/Berlin") }
		time.Sleep(time.Second)
		r.create(&campaign.Spec{Name: "once", Audience: core.CampaignAudience{All: true}, LocalTime: "09:00", Now: true})
		time.Sleep(40 * time.Hour)
		if people.read != nil {
			t.Error("nobody moved")
		}
		got := r.made()
		for _, id := range []string{"moves", "stays"} {
			if len(got[id]) != 1 {
				t.Errorf("%s got it %d times: %v", id, len(got[id]), got[id])
			}
		}
	})
}

// Who was skipped in one zone and then moves to one that is still to come was had already: everybody counts once.
func TestMovingAfterSkip(t *testing.T) {
	t.Parallel()
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.stop()
		bare := &core.Recipient{App: "a", ID: "moves", Timezone: "UTC"}
		if _, err := r.store.PutRecipient(t.Context(), bare); err != nil {
			t.Fatal(err)
		}
		r.put("berlin", "Europe/Berlin")
		r.put("york", "America/New_York")
		time.Sleep(time.Second)
		c := r.create(&campaign.Spec{Name: "once", Audience: core.CampaignAudience{All: true}, LocalTime: "09:00", Now: true})
		sleepTo(time.Date(2000, 1, 1, 10, 0, 0, 0, time.UTC))
		r.put("moves", "America/New_York") // and has a mailbox now
		r.put("berlin", "America/New_York")
		time.Sleep(40 * time.Hour)
		got, err := r.m.Get(t.Context(), "a", c.ID)
		if err != nil {
			t.Fatal(err)
		}
		if n := got.Totals; got.State != core.CampaignCompleted || n.Audience != 3 || n.Expanded != 3 || n.Skipped != 1 || n.People.Sent != 2 {
			t.Errorf("it is %s: %+v", got.State, n)
		}
	})
}

// Each page of a fallback to a topic, however late it is made, gives its first channel its time.
func TestTopicFallback(t *testing.T) {
	t.Parallel()
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		const after = time.Second
		r := newRigWith(t, func(_ *store.Store, o *campaign.Options) { o.Pages = slowPages{o.Pages} })
		defer r.stop()
		const people = 500
		for i := range people {
			id := fmt.Sprintf("u%03d", i)
			r.put(id, "UTC")
			if _, err := r.store.PutTopicRecipient(t.Context(), "a", "vip", id); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		accepted, err := r.m.Checker.Accept(t.Context(), "a", &intake.Request{To: []intake.Target{{Topic: "vip"}}, Content: &intake.Content{Title: "Hi", Body: "x"},
			Mode: core.ModeFallback, FallbackAfter: after, Channels: []string{"in_app", "email"}}, intake.Key{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		mails, late := 0, 0
		for p := (core.Page{Limit: 200}); ; {
			all, next, err := r.store.Deliveries(t.Context(), "a", accepted.ID, p)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range all {
				if d.Channel != "email" {
					continue
				}
				mails++
				if d.CreatedAt.Sub(accepted.CreatedAt) > after {
					late++
				}
				if left := d.DueAt.Sub(d.CreatedAt); left < after {
					t.Errorf("a mail made %s after it was asked for goes %s after that", d.CreatedAt.Sub(accepted.CreatedAt), left)
				}
			}
			if p.Cursor = next; next == "" {
				break
			}
		}
		if mails != people || late == 0 {
			t.Errorf("%d mails, %d of them made late", mails, late)
		}
	})
}
