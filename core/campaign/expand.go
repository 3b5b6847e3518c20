package campaign

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"slices"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/crash"
	"github.com/carillon-notify/carillon/core/intake"
)

// Bounds of an expansion.
const (
	// pageSize is how many recipients are expanded in one transaction.
	pageSize = 500
	// minPage is how many are where there is less room: small pages cost more than they are worth.
	minPage = 50
	// scanSize is how many are looked at, where a filter leaves some out.
	scanSize = 1000
	// maxHeld is how many may be held by services, and heldShare how many of what was made: a campaign does
	// not stop for a few mailboxes that want to be asked again, but does where a service takes nothing.
	maxHeld   = 200
	heldShare = 1.0 / 2000
	// tick is how often a campaign with a rate makes deliveries, and slack how much it may catch up after it
	// was held up.
	tick  = 100 * time.Millisecond
	slack = time.Second
	// maxStale is how often a page is tried that is overtaken each time, each time for a part of the recipients: of
	// pageSize the last two tries are for one.
	maxStale   = 6
	staleShare = 4
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
	if ends := t.request.ExpiresAt; !c.Target.IsZero() && !ends.IsZero() && !now.Before(ends) {
		return now, t.unresolved(ctx, "it expired before its topics were resolved")
	}
	leg := t.leg()
	if leg.At.After(now) {
		if !c.NextAt.Equal(leg.At) {
			return leg.At, t.keep(ctx, func(c *core.Campaign) { c.NextAt = leg.At })
		}
		return leg.At, nil
	}
	if c.Missed == missedSkip && len(c.Legs) > 0 && !leg.Moved && c.Cursor == "" && c.NextAt.Equal(leg.At) {
		return now, t.enter(ctx, leg, now)
	}
	if err := t.recount(ctx, now); err != nil {
		return time.Time{}, err
	}
	allowed, at := pace(c, now)
	if allowed == 0 {
		return at, nil
	}
	due, held, sending, err := t.Pages.CampaignBusy(ctx, c.ID)
	if err != nil {
		return time.Time{}, fmt.Errorf("look what campaign %s has under way: %w", c.ID, err)
	}
	room := t.flow.look(due, sending, now)
	if room <= 0 || held > maxHeld+int(heldShare*float64(c.Totals.Deliveries.Total())) {
		// One that waits long gives the planner's time to others.
		t.waits = min(max(2*t.waits, 10*time.Millisecond), 2*patience)
		return now.Add(t.waits), nil
	}
	t.waits = 0
	t.most = min(pageSize, max(minPage, t.flow.people(room, c.Totals.EachPerson())))
	return now, t.page(ctx, min(t.most, allowed))
}

// enter begins a leg that was waited for, or leaves it out if its time was missed while nothing ran. NextAt says
// which legs are waited for: one that was begun, or that came due behind another, goes however late the rate or a
// backlog makes it. Who is of a leg that is left out is skipped in the end, as those are whom legs leaves out.
func (t *turn) enter(ctx context.Context, leg core.Leg, now time.Time) error {
	late := now.Sub(leg.At) > core.MissedAfter
	if late {
		t.Logger.Warn("a local time of a campaign was missed and is left out", "campaign", t.c.ID.String(), "at", leg.At)
	}
	return t.keep(ctx, func(c *core.Campaign) {
		c.NextAt = time.Time{}
		if late {
			c.Leg++
			c.NextAt = legOf(c, c.Leg).At // it was missed too, if it is late by then
		}
	})
}

// leg is the part of the audience that is being expanded.
func (t *turn) leg() core.Leg { return legOf(t.c, t.c.Leg) }

func legOf(c *core.Campaign, n int) core.Leg {
	if len(c.Legs) == 0 {
		return core.Leg{At: c.Bound}
	}
	return c.Legs[min(n, len(c.Legs)-1)]
}

// pace is how many recipients may be expanded by the campaign's rate now, and if none, when. So many are
// made at a time as go in a tick.
func pace(c *core.Campaign, now time.Time) (allowed int, at time.Time) {
	if c.PerSecond <= 0 {
		return math.MaxInt, now
	}
	each := max(1, c.Totals.EachPerson())
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

// page expands up to limit recipients. A page that somebody's choice or erasure overtook is prepared again, each time
// for fewer, in the end for one: who then still changes each time is passed over, and holds nobody up.
func (t *turn) page(ctx context.Context, limit int) error {
	for try := 1; ; try++ {
		err := t.tryPage(ctx, limit, try == maxStale)
		if !errors.Is(err, core.ErrStale) || try == maxStale {
			return err
		}
		limit = max(1, limit/staleShare)
	}
}

func (t *turn) tryPage(ctx context.Context, limit int, last bool) error {
	c := t.c
	p, err := t.ahead.take(c)
	t.ahead = nil
	if p == nil && err == nil {
		p, err = t.prepare(ctx, *c, limit)
	}
	var bad *intake.Invalid
	if errors.As(err, &bad) {
		if !c.Target.IsZero() {
			return t.unresolved(ctx, "its content cannot be used: "+bad.Error())
		}
		t.Logger.Error("a campaign is paused: its content cannot be used", "campaign", c.ID.String(), "error", bad)
		return t.keep(ctx, func(c *core.Campaign) {
			c.State, c.Was, c.Reason = core.CampaignPaused, core.CampaignRunning.String(), bad.Error()
		})
	}
	if err != nil || p == nil {
		return err
	}
	if p.People == 0 && p.Leg == c.Leg { // nothing to write: whoever comes after a crash looks again
		t.c.Cursor = p.Cursor
		return t.renew(ctx)
	}
	if p.PacedTo = c.PacedTo; p.Acceptance != nil {
		p.PacedTo = paced(c, len(p.Acceptance.Deliveries), t.Campaigns.Now())
	}
	t.lookAhead(ctx, *c, p)
	if err = t.write(ctx, p); last && errors.Is(err, core.ErrStale) {
		t.Logger.Warn("a campaign passes over a recipient whose preferences changed at each try", "campaign", c.ID.String())
		passOver(p)
		err = t.write(ctx, p)
	}
	return err
}

// passOver has a page make nothing for its known recipients: they are skipped, without their ids, for they may have
// been erased.
func passOver(p *core.CampaignPage) {
	a := p.Acceptance
	for _, x := range a.Known {
		a.Notification.Skipped = slices.DeleteFunc(a.Notification.Skipped, func(s core.Skip) bool { return s.Recipient == x.ID })
		a.Notification.Skipped = append(a.Notification.Skipped, core.Skip{Reason: core.SkipPreference})
	}
	a.Deliveries, a.Contents, a.Known, p.Skipped = nil, nil, nil, p.People
}

// unresolved ends the expansion of a notification's topics short of their end: it could be paused, but nobody sees it
// to resume it. What was made of the notification by then goes on.
func (t *turn) unresolved(ctx context.Context, reason string) error {
	t.Logger.Error("the topics of a notification are resolved no further", "notification", t.c.Target.String(), "reason", reason)
	now := t.Campaigns.Now()
	return t.keep(ctx, func(c *core.Campaign) { c.State, c.Reason, c.EndedAt = core.CampaignCancelled, reason, now })
}

// ahead is a page that is prepared while the one before is written.
type ahead struct {
	leg    int
	cursor string
	done   chan struct{}
	page   *core.CampaignPage
	err    error
	early  <-chan struct{} // its slot, given back when nobody needs the page any more
}

// end waits for the page and gives its slot back.
func (a *ahead) end() {
	<-a.done
	<-a.early
}

// take waits for the page, if it is the campaign's next; nil if it is not.
func (a *ahead) take(c *core.Campaign) (*core.CampaignPage, error) {
	if a == nil {
		return nil, nil
	}
	a.end()
	if a.leg != c.Leg || a.cursor != c.Cursor {
		return nil, nil
	}
	return a.page, a.err
}

// lookAhead begins to prepare the page after p, unless the rate or memory speaks against it. The next leg waits until
// p is written: whom p reaches may be in that leg too, and is left out of it by what is kept.
func (t *turn) lookAhead(ctx context.Context, c core.Campaign, p *core.CampaignPage) {
	if c.Cursor = p.Cursor; p.Leg != c.Leg || c.PerSecond > 0 {
		return
	}
	select {
	case t.early <- struct{}{}:
	default:
		return
	}
	a := &ahead{leg: c.Leg, cursor: c.Cursor, done: make(chan struct{}), early: t.early}
	t.ahead = a
	most := t.most
	go func() {
		defer close(a.done)
		defer func() {
			if p := recover(); p != nil { // here nobody else would, and the process would end
				t.Logger.Error("a page panicked as it was prepared; the turn prepares it again", "campaign", c.ID.String(), "panic", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
				a.page, a.err = nil, nil
			}
		}()
		a.page, a.err = t.prepare(ctx, c, most)
	}()
}

// prepare reads up to limit recipients from where the campaign is and plans what they get; nil if ctx ended.
func (t *turn) prepare(ctx context.Context, c core.Campaign, limit int) (*core.CampaignPage, error) {
	select {
	case t.heavy <- struct{}{}:
		defer func() { <-t.heavy }()
	case <-ctx.Done():
		return nil, nil
	}
	most := limit
	if t.filter != nil {
		most = scanSize
	}
	found, err := t.Audiences.AudiencePage(ctx, audience(&c, legOf(&c, c.Leg)), c.Cursor, most)
	if err != nil {
		return nil, fmt.Errorf("read the audience of campaign %s: %w", c.ID, err)
	}
	people, stopped := t.meant(found.Recipients, limit)
	p := &core.CampaignPage{Cursor: found.Next, Leg: c.Leg}
	switch {
	case stopped:
		p.Cursor = people[len(people)-1].ID
	case found.Next == "":
		p.Leg = c.Leg + 1
		p.Expanded = p.Leg >= len(c.Legs)
	}
	if people, err = t.unmet(ctx, &c, people); err != nil {
		return nil, err
	}
	unknown := found.Unknown
	if len(c.Legs) > 0 {
		unknown = nil // they are of no leg, and skipped in the end
	}
	if p.People = len(people) + len(unknown); p.People == 0 {
		return p, nil
	}
	a, err := t.Renderer.Page(ctx, c.App, t.request, intake.People{Known: people, Unknown: unknown, Of: c.Target})
	if err != nil {
		return nil, fmt.Errorf("render a page of campaign %s: %w", c.ID, err)
	}
	p.Acceptance, p.Skipped = a, len(unknown)+unreachable(a, people)
	return p, nil
}

// audience is a leg's part of the audience, but for the filter.
func audience(c *core.Campaign, leg core.Leg) core.Audience {
	a := core.Audience{App: c.App, Topic: c.Audience.Topic, Topics: c.Audience.Topics, Except: c.Audience.Except, Recipients: c.Audience.Recipients, Until: c.Bound, Zones: leg.Zones}
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

// unmet leaves out who was reached or skipped in another leg: of those who moved to another zone since the start.
func (t *turn) unmet(ctx context.Context, c *core.Campaign, people []*core.Recipient) ([]*core.Recipient, error) {
	var moved []string
	for _, r := range people {
		if len(c.Legs) > 0 && r.MovedAt.After(c.Bound) {
			moved = append(moved, r.ID)
		}
	}
	if len(moved) == 0 {
		return people, nil
	}
	met, err := t.Pages.CampaignMet(ctx, c, moved)
	if err != nil {
		return nil, fmt.Errorf("look whom campaign %s had: %w", c.ID, err)
	}
	out := people[:0]
	for _, r := range people {
		if !met[r.ID] {
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
	t.renewed()
	crash.At(crash.ExpandPlanned)
	c, recorded, err := t.Pages.Expand(ctx, p)
	if err != nil {
		return fmt.Errorf("write a page of campaign %s: %w", t.c.ID, err)
	}
	crash.At(crash.ExpandCommitted)
	t.take(c)
	if c != nil && p.Acceptance != nil {
		t.flow.add(p.Acceptance)
	}
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
