package campaign_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/campaign"
	"github.com/carillon-notify/carillon/core/intake"
	"github.com/carillon-notify/carillon/core/store"
)

// fragile panics at the second page that it renders.
type fragile struct {
	campaign.Renderer
	pages atomic.Int64
}

func (f *fragile) Page(ctx context.Context, app string, req *intake.Request, page intake.People) (*core.Acceptance, error) {
	if f.pages.Add(1) == 2 {
		panic("a template's own")
	}
	return f.Renderer.Page(ctx, app, req, page)
}

// TestPanicAhead: a page that panics while it is prepared beside the turn does not end the process: the turn prepares it.
func TestPanicAhead(t *testing.T) {
	t.Parallel()
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		f := &fragile{}
		r := newRigWith(t, func(_ *store.Store, o *campaign.Options) { f.Renderer, o.Renderer = o.Renderer, f })
		defer r.stop()
		const people = 120 // a first page has 50
		for i := range people {
			r.put(fmt.Sprintf("u%03d", i), "UTC")
		}
		r.create(&campaign.Spec{Name: "once", Audience: core.CampaignAudience{All: true}, Now: true})
		time.Sleep(time.Minute)
		if got := r.made(); len(got) != people || f.pages.Load() < 3 {
			t.Errorf("%d people got it, in %d pages", len(got), f.pages.Load())
		}
	})
}
