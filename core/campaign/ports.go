// Package campaign turns an audience into deliveries, a page at a time. A Manager takes what is asked of
// campaigns; a Planner expands them: Turn tells the whole story. A page's deliveries and how far the campaign
// is become durable in one transaction, under a fence, so that whoever dies on the way loses nobody and
// doubles nobody. Deliveries are made just ahead of their send: a campaign that is paused or cancelled has
// little under way, and the rate is kept by when they are made.
package campaign

import (
	"context"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
)

// Campaigns keeps campaigns for who expands them.
type Campaigns interface {
	// Now is the database's time.
	Now() time.Time
	// DueCampaigns takes up to limit campaigns whose time has come or whose planner is overdue, puts their
	// alarm clock off by until under a new fence, and returns their wakes.
	DueCampaigns(ctx context.Context, limit int, until time.Duration) ([]core.CampaignWake, error)
	// TakeCampaign makes a campaign the caller's for the lease under a new fence; nil if the wake is stale.
	TakeCampaign(ctx context.Context, w core.CampaignWake, lease time.Duration) (*core.Campaign, error)
	// KeepCampaign changes a campaign that the caller took; nil if it is in other hands by now.
	KeepCampaign(ctx context.Context, id core.ID, fence int64, change func(*core.Campaign)) (*core.Campaign, error)
	// Occur keeps how a campaign with a cron goes on, and its occurrence, if not nil, in one transaction.
	Occur(ctx context.Context, c, occurrence *core.Campaign) (stale bool, err error)
}

// Pages keeps what was expanded.
type Pages interface {
	// Expand writes a page and how far the campaign is after it in one transaction; nil if it is in other
	// hands or does not run any more. The error is core.ErrStale, and nothing was written, if somebody of
	// the acceptance's Known was erased or chose anew since.
	Expand(ctx context.Context, p *core.CampaignPage) (*core.Campaign, core.Recorded, error)
	// CampaignBusy counts the campaign's batches that are due, those that were tried and are held for later,
	// and those of the due that are with a worker.
	CampaignBusy(ctx context.Context, id core.ID) (due, held, sending int, err error)
	// RecountCampaign counts at most limit pages anew that changed; open is how many are not done.
	RecountCampaign(ctx context.Context, id core.ID, limit int) (open int, err error)
	// CampaignMet tells which recipients the campaign has deliveries for, or skipped.
	CampaignMet(ctx context.Context, c *core.Campaign, ids []string) (map[string]bool, error)
}

// Audiences reads who is in an audience.
type Audiences interface {
	// AudiencePage reads up to limit recipients of an audience that come after a cursor.
	AudiencePage(ctx context.Context, a core.Audience, cursor string, limit int) (core.AudiencePage, error)
	AudienceSize(ctx context.Context, a core.Audience) (int, error)
	AudienceZones(ctx context.Context, a core.Audience) ([]string, error)
}

// Renderer decides what a page's recipients get.
type Renderer interface {
	// Page plans what people get; whoever cannot be rendered for is skipped. The error is *intake.Invalid
	// where nobody can get anything.
	Page(ctx context.Context, app string, req *intake.Request, page intake.People) (*core.Acceptance, error)
}

// Queue carries wakes.
type Queue interface {
	Wake(ctx context.Context, wakes ...core.Wake) error
	Plan(ctx context.Context, wakes ...core.CampaignWake) error
}
