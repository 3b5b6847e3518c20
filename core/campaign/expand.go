package campaign

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
)

// Bounds of an expansion.
const (
	// pageSize is how many recipients are expanded in one transaction.
	pageSize = 200
	// scanSize is how many are looked at, where a filter leaves some out.
	scanSize = 1000
	// maxDue is how many batches of a campaign may be due and not yet sent: as much as was made too early
	// when it is cancelled, and what a worker never waits for.
	maxDue = 48
	// maxHeld is how many may be held by services, and heldShare how many of what was made: a campaign does
	// not stop for a few mailboxes that want to be asked again, but does where a service takes nothing.
	maxHeld   = 200
	heldShare = 1.0 / 2000
	// tick is how often a campaign with a rate makes deliveries, and slack how much it may catch up after it
	// was held up.
	tick  = 100 * time.Millisecond
	slack = time.Second
	// recountEvery is how often the totals are brought up to date, of at most recountMost pages.
	recountEvery = 2 * time.Second
	recountMost  = 1000
)

// expand makes the deliveries of the next page, if there is room for them, and says when to go on.
func (t *turn) expand(ctx context.Context) (time.Time, error) {
	if err := t.compile(); err != nil {
		return time.Time{}, err
	}
	c, now := t.c, t.Campaigns.Now()
	leg := t.leg()
	if leg.At.After(now) {
		if !c.NextAt.Equal(leg.At) {
			return leg.At, t.keep(ctx, func(c *core.Campaign) { c.NextAt = leg.At })
		}
		return leg.At, nil
	}
	if err := t.recount(ctx, now); err != nil {
		return time.Time{}, err
	}
	allowed, at := pace(c, now)
	if allowed == 0 {
		return at, nil
	}
	due, held, _, err := t.Pages.CampaignBusy(ctx, c.ID)
	if err != nil {
		return time.Time{}, fmt.Errorf("look what campaign %s has under way: %w", c.ID, err)
	}
	if due >= maxDue || held > maxHeld+int(heldShare*float64(c.Totals.Deliveries.Total())) {
		t.waits = min(max(2*t.waits, 10*time.Millisecond), 160*time.Millisecond)
		return now.Add(t.waits), nil
	}
	t.waits = 0
	select {
	case t.heavy <- struct{}{}:
		defer func() { <-t.heavy }()
	case <-ctx.Done():
		return now, nil
	}
	return now, t.page(ctx, leg, min(pageSize, allowed))
}

// leg is the part of the audience that is being expanded.
func (t *turn) leg() core.Leg {
	if len(t.c.Legs) == 0 {
		return core.Leg{At: t.c.Bound}
	}
	return t.c.Legs[min(t.c.Leg, len(t.c.Legs)-1)]
}

// pace is how many recipients may be expanded by the campaign's rate now, and if none, when. So many are
// made at a time as go in a tick.
func pace(c *core.Campaign, now time.Time) (allowed int, at time.Time) {
	if c.PerSecond <= 0 {
		return math.MaxInt, now
	}
	each := 1.0 // deliveries of a recipient
	if c.Totals.Expanded > 0 {
		each = max(1, float64(c.Totals.Deliveries.Total())/float64(c.Totals.Expanded))
	}
	since := min(now.Sub(c.PacedTo), slack)
	may := since.Seconds()*c.PerSecond + 1
	if want := max(1, c.PerSecond*tick.Seconds()); may < want {
		return 0, now.Add(time.Duration((want-may)/c.PerSecond*float64(time.Second)) + time.Millisecond)
	}
	return max(1, int(may/each)), now
}

// paced is when the next delivery may go after n more.
func paced(c *core.Campaign, n int, now time.Time) time.Time {
	if c.PerSecond <= 0 {
		return now
	}
	from := c.PacedTo
	if earliest := now.Add(-slack); from.Before(earliest) {
		from = earliest
	}
	return from.Add(time.Duration(float64(n) / c.PerSecond * float64(time.Second)))
}

// page expands up to limit recipients.
func (t *turn) page(ctx context.Context, leg core.Leg, limit int) error {
	c := t.c
	most := limit
	if t.filter != nil {
		most = scanSize
	}
	found, err := t.Audiences.AudiencePage(ctx, t.audience(leg), c.Cursor, most)
	if err != nil {
		return fmt.Errorf("read the audience of campaign %s: %w", c.ID, err)
	}
	people, stopped := t.meant(found.Recipients, limit)
	p := &core.CampaignPage{Cursor: found.Next, Leg: c.Leg, PacedTo: c.PacedTo}
	switch {
	case stopped:
		p.Cursor = people[len(people)-1].ID
	case found.Next == "":
		p.Leg = c.Leg + 1
		p.Expanded = p.Leg >= len(c.Legs)
	}
	if people, err = t.unreached(ctx, people); err != nil {
		return err
	}
	unknown := found.Unknown
	if len(c.Legs) > 0 {
		unknown = nil // they are of no leg, and skipped in the end
	}
	if len(people)+len(unknown) == 0 {
		if p.Leg == c.Leg { // nothing to write: whoever comes after a crash looks again
			t.c.Cursor = p.Cursor
			return t.renew(ctx)
		}
		return t.write(ctx, p)
	}
	a, err := t.Renderer.Page(ctx, c.App, c.Target, t.request, people, unknown)
	var bad *intake.Invalid
	if errors.As(err, &bad) {
		t.Logger.Error("a campaign is paused: its content cannot be used", "campaign", c.ID.String(), "error", bad)
		return t.keep(ctx, func(c *core.Campaign) {
			c.State, c.Was, c.Reason = core.CampaignPaused, core.CampaignRunning.String(), bad.Error()
		})
	}
	if err != nil {
		return fmt.Errorf("render a page of campaign %s: %w", c.ID, err)
	}
	p.Acceptance, p.People, p.Skipped = a, len(people)+len(unknown), len(unknown)+unreachable(a, people)
	p.PacedTo = paced(c, len(a.Deliveries), t.Campaigns.Now())
	return t.write(ctx, p)
}

// audience is a leg's part of the audience, but for the filter.
func (t *turn) audience(leg core.Leg) core.Audience {
	c := t.c
	a := core.Audience{App: c.App, Topic: c.Audience.Topic, Recipients: c.Audience.Recipients, Until: c.Bound, Zones: leg.Zones}
	if leg.Moved {
		a.Since = c.Bound
	}
	return a
}

// meant are the first of a page's recipients, up to limit, whom the filter lets through. stopped says that
// there may be more of them behind the last.
func (t *turn) meant(found []core.Recipient, limit int) (people []*core.Recipient, stopped bool) {
	for i := range found {
		if t.filter != nil && !t.filter.Matches(&found[i]) {
			continue
		}
		if len(people) == limit {
			return people, true
		}
		people = append(people, &found[i])
	}
	return people, false
}

// unreached leaves out who was reached in another leg: of those who changed since the start, for they may
// have moved to another zone.
func (t *turn) unreached(ctx context.Context, people []*core.Recipient) ([]*core.Recipient, error) {
	var changed []string
	for _, r := range people {
		if len(t.c.Legs) > 0 && r.UpdatedAt.After(t.c.Bound) {
			changed = append(changed, r.ID)
		}
	}
	if len(changed) == 0 {
		return people, nil
	}
	reached, err := t.Pages.CampaignReached(ctx, t.c, changed)
	if err != nil {
		return nil, fmt.Errorf("look whom campaign %s reached: %w", t.c.ID, err)
	}
	out := people[:0]
	for _, r := range people {
		if !reached[r.ID] {
			out = append(out, r)
		}
	}
	return out, nil
}

// unreachable counts the people who get no delivery.
func unreachable(a *core.Acceptance, people []*core.Recipient) int {
	reached := make(map[string]bool, len(people))
	for i := range a.Deliveries {
		reached[a.Deliveries[i].Recipient] = true
	}
	return len(people) - len(reached)
}

// write makes a page durable and wakes its batches.
func (t *turn) write(ctx context.Context, p *core.CampaignPage) error {
	p.Campaign, p.Fence, p.RunAt = t.c.ID, t.c.Fence, t.Campaigns.Now().Add(Lease)
	c, recorded, err := t.Pages.Expand(ctx, p)
	if err != nil {
		return fmt.Errorf("write a page of campaign %s: %w", t.c.ID, err)
	}
	t.take(c)
	if len(recorded.Wakes) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wakeTimeout)
	defer cancel()
	if err := t.Queue.Wake(ctx, recorded.Wakes...); err != nil {
		t.Logger.Warn("a campaign's batches could not be woken at once, the relay will", "error", err)
	}
	return nil
}

// renew keeps the campaign with this planner while it looks for people.
func (t *turn) renew(ctx context.Context) error {
	now := t.Campaigns.Now()
	if t.c.RunAt.Sub(now) > Lease/2 {
		return nil
	}
	cursor := t.c.Cursor
	return t.keep(ctx, func(c *core.Campaign) { c.Cursor, c.RunAt = cursor, now.Add(Lease) })
}

// recount brings the totals up to date every now and then.
func (t *turn) recount(ctx context.Context, now time.Time) error {
	if now.Sub(t.counted) < recountEvery || !t.c.Target.IsZero() {
		return nil
	}
	t.counted = now
	if _, err := t.Pages.RecountCampaign(ctx, t.c.ID, recountMost); err != nil {
		return fmt.Errorf("count what became of campaign %s: %w", t.c.ID, err)
	}
	return nil
}
