package campaign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
)

// The planner's rhythm.
const (
	// Lease is how long a campaign stays with a planner that does not say so again: after a crash another
	// one goes on then.
	Lease = 10 * time.Second
	// turnLength is how long one turn lasts. Campaigns take turns where there are more than a queue works on.
	turnLength = 2 * time.Second
	// patience is the longest wait within a turn; what is due later is left to the alarm clock.
	patience = 500 * time.Millisecond
	// pollEvery is how often it looks for campaigns that are due.
	pollEvery = 250 * time.Millisecond
	pollPage  = 100
	// dispatchTimeout is how long a wake may take to become a turn.
	dispatchTimeout = 5 * time.Second
	wakeTimeout     = 500 * time.Millisecond
	// finishMost is how long it is left alone at the most while something is pending.
	finishMost = 15 * time.Second
	// Turns is how many campaigns a process has in hand at once; more take turns. Nearly all of them wait, for
	// their rate or for workers: what costs anything is bounded apart.
	Turns = 512
	// MaxTurn bounds a turn, come what may.
	MaxTurn = 5 * time.Minute
)

// Options are what a Planner works with. All but Poll and Logger are required.
type Options struct {
	Campaigns Campaigns
	Pages     Pages
	Audiences Audiences
	Renderer  Renderer
	Queue     Queue
	Poll      time.Duration // how often Run looks for what is due; 0: four times a second
	Logger    *slog.Logger  // nil: slog.Default()
}

// Planner expands campaigns. It is safe for concurrent use, and any number of planners may work on the same
// campaigns: fences keep them apart.
type Planner struct {
	Options
	// heavy is how many pages are rendered and written at once, over all campaigns.
	heavy chan struct{}
	// early is how many pages are prepared before their turn: each is kept in memory meanwhile.
	early chan struct{}
	flows flows
}

// NewPlanner returns a Planner.
func NewPlanner(o Options) *Planner {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Poll <= 0 {
		o.Poll = pollEvery
	}
	return &Planner{Options: o, heavy: make(chan struct{}, runtime.GOMAXPROCS(0)), early: make(chan struct{}, 4),
		flows: flows{of: map[core.ID]*flow{}, seen: map[core.ID]time.Time{}}}
}

// Run looks for campaigns that are due, and wakes them, until ctx ends.
func (p *Planner) Run(ctx context.Context) {
	t := time.NewTicker(p.Poll)
	defer t.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		wakes, err := p.Campaigns.DueCampaigns(ctx, pollPage, dispatchTimeout)
		if err == nil && len(wakes) > 0 {
			err = p.Queue.Plan(ctx, wakes...)
		}
		if err != nil && ctx.Err() == nil && !failing { // once per outage
			p.Logger.Error("due campaigns cannot be woken", "error", err)
		}
		failing = err != nil
	}
}

// turn is one planner's time with one campaign.
type turn struct {
	*Planner
	c       *core.Campaign
	request *intake.Request
	filter  *Filter
	until   time.Time
	waits   time.Duration // how long it waited last for what is under way
	counted time.Time     // when the totals were brought up to date
	lost    bool          // somebody else has the campaign
	ahead   *ahead        // the next page; nil: none is prepared
	flow    *flow         // how quickly workers take what it makes
	most    int           // how many recipients a page may have by that
	renewed func() bool   // ends the renewal of the lease, and says whether that was lost
}

// Turn is one planner's time with a campaign: it takes it, makes steps while one is due within a moment, and
// gives it back with the time of the next. Whatever fails on the way, the alarm clock in the store brings the
// campaign back: the error is for the log alone.
func (p *Planner) Turn(ctx context.Context, w core.CampaignWake) error {
	c, err := p.Campaigns.TakeCampaign(ctx, w, Lease)
	if err != nil {
		return fmt.Errorf("take campaign %s: %w", w.Campaign, err)
	}
	if c == nil {
		return nil
	}
	now := p.Campaigns.Now()
	t := &turn{Planner: p, c: c, until: now.Add(turnLength), flow: p.flows.get(c.ID, now)}
	defer func() {
		if t.ahead != nil {
			t.ahead.end()
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		t.hold(ctx, cancel)
		at, err := t.step(ctx)
		switch lost := t.renewed(); {
		case lost:
			return nil // whatever the step came to
		case err != nil:
			return err
		}
		now := t.Campaigns.Now()
		switch {
		case t.lost:
			return nil
		case at.IsZero() || at.Sub(now) > patience || now.After(t.until) || ctx.Err() != nil:
			return t.release(ctx, at)
		}
		if wait(ctx, at.Sub(now)) != nil {
			return t.release(context.WithoutCancel(ctx), now)
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// step does what is due of the campaign and says when the next step is; zero for never.
func (t *turn) step(ctx context.Context) (next time.Time, err error) {
	switch c := t.c; {
	case c.State == core.CampaignScheduled && c.NextAt.After(t.Campaigns.Now()):
		return c.NextAt, nil
	case c.State == core.CampaignScheduled && c.Cron != "":
		return t.occur(ctx)
	case c.State == core.CampaignScheduled:
		return t.start(ctx)
	case c.State != core.CampaignRunning:
		return time.Time{}, nil
	case !c.Counted:
		return t.count(ctx)
	case !c.Expanded:
		return t.expand(ctx)
	default:
		return t.finish(ctx)
	}
}

// hold keeps the campaign with this planner while a step reads, however long that takes. The step's own write ends it
// by t.renewed, so that nothing is written behind it. Once the campaign is in other hands, lost is called.
func (t *turn) hold(ctx context.Context, lost func()) {
	id, fence := t.c.ID, t.c.Fence
	stop, ended, gone := make(chan struct{}), make(chan struct{}), false
	go func() {
		defer close(ended)
		every := time.NewTicker(Lease / 4)
		defer every.Stop()
		for {
			select {
			case <-stop:
				return
			case <-ctx.Done():
				return
			case <-every.C:
			}
			c, err := t.Campaigns.KeepCampaign(ctx, id, fence, func(c *core.Campaign) { c.RunAt = t.Campaigns.Now().Add(Lease) })
			switch {
			case err != nil: // there are more tries before the lease is over, and then the fence tells
				t.Logger.Debug("a campaign's lease could not be renewed", "campaign", id.String(), "error", err)
			case c == nil:
				gone = true
				lost()
				return
			}
		}
	}()
	end := sync.OnceFunc(func() { close(stop) })
	t.renewed = func() bool {
		end()
		<-ended
		return gone
	}
}

// keep writes a change of the campaign; afterwards t.c is what is written.
func (t *turn) keep(ctx context.Context, change func(*core.Campaign)) error {
	t.renewed()
	c, err := t.Campaigns.KeepCampaign(ctx, t.c.ID, t.c.Fence, change)
	if err != nil {
		return fmt.Errorf("keep campaign %s: %w", t.c.ID, err)
	}
	t.take(c)
	return nil
}

// take goes on with what the store says the campaign is; nil is that somebody else has it.
func (t *turn) take(c *core.Campaign) {
	if t.lost = c == nil; !t.lost {
		t.c = c
	}
}

// release gives the campaign back, to be looked at again at a time (zero: never). What is due by then goes
// to the end of the queue, so that others have their turn.
func (t *turn) release(ctx context.Context, at time.Time) error {
	now := t.Campaigns.Now()
	soon := !at.IsZero() && at.Sub(now) <= patience
	cursor, leg := t.c.Cursor, t.c.Leg
	err := t.keep(ctx, func(c *core.Campaign) {
		c.Fence++
		if c.State == core.CampaignRunning {
			c.Cursor, c.Leg = cursor, leg // what was looked at and is of nobody in the audience
		}
		switch {
		case at.IsZero():
			c.RunAt = time.Time{}
		case soon:
			c.RunAt = now.Add(dispatchTimeout)
		default:
			c.RunAt = at
		}
	})
	if err != nil || t.lost || !soon {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wakeTimeout)
	defer cancel()
	if err := t.Queue.Plan(ctx, core.CampaignWake{Campaign: t.c.ID, Fence: t.c.Fence}); err != nil {
		return fmt.Errorf("wake campaign %s again, its alarm clock will: %w", t.c.ID, err)
	}
	return nil
}

// occur makes the occurrence that is due of a campaign with a cron, or leaves it out if it is too late for
// it, and sets the time of the next.
func (t *turn) occur(ctx context.Context) (time.Time, error) {
	now := t.Campaigns.Now()
	c := *t.c
	due, next := c.NextAt, time.Time{}
	for at := due; !at.After(now); at = next { // of several that were missed the latest counts
		c.MissedRuns++
		due = at
		var err error
		if next, err = nextOccurrence(&c.CampaignSpec, at); err != nil {
			return time.Time{}, err
		}
		if next.IsZero() || current(&c, at, now) {
			break
		}
	}
	var child *core.Campaign
	if current(&c, due, now) || c.Missed == missedRun {
		c.MissedRuns--
		child = occurrence(&c, due, now)
		c.Runs, c.LastRun = c.Runs+1, child.ID
	} else {
		t.Logger.Warn("a campaign's occurrence was missed and is left out", "campaign", c.ID.String(), "at", due)
	}
	c.NextAt = next
	if next.IsZero() {
		c.State, c.EndedAt = core.CampaignCompleted, now
	}
	t.renewed()
	stale, err := t.Campaigns.Occur(ctx, &c, child)
	if err != nil {
		return time.Time{}, fmt.Errorf("keep an occurrence of campaign %s: %w", c.ID, err)
	}
	if t.lost = stale; stale {
		return time.Time{}, nil
	}
	t.c = &c
	if child != nil {
		wake := core.CampaignWake{Campaign: child.ID, Fence: child.Fence}
		if err := t.Queue.Plan(ctx, wake); err != nil {
			t.Logger.Warn("an occurrence could not be woken at once, its alarm clock will", "error", err)
		}
	}
	return next, nil
}

// current reports whether an occurrence is not too late. By local time it lasts until its day is over
// everywhere; each zone's part of it is too late for itself.
func current(c *core.Campaign, at, now time.Time) bool {
	if c.LocalTime != "" {
		return now.Sub(at) < 27*time.Hour
	}
	return now.Sub(at) <= core.MissedAfter
}

// occurrence is a campaign with a cron at one of its times. Its id follows from that time, so that it is
// made once.
func occurrence(c *core.Campaign, at, now time.Time) *core.Campaign {
	child := &core.Campaign{ID: c.ID.Derived(at, at.UnixMicro(), 0), App: c.App, Parent: c.ID, State: core.CampaignScheduled, CreatedAt: now, Fence: 1, RunAt: now.Add(dispatchTimeout),
		CampaignSpec: c.CampaignSpec}
	child.Cron, child.StartAt = "", at
	child.Missed = missedRun // whether it is too late was decided here
	child.Rate, child.PerSecond, child.NextAt = c.Rate, c.PerSecond, at
	if c.LocalTime != "" {
		// It begins as the day does where it begins first; whose time is over by then is told by the policy.
		child.Missed = c.Missed
		child.Date = at.In(farEast).Format(dateForm)
	}
	return child
}

// nextOccurrence is a campaign's first occurrence after a time. By local time, the cron says on which days,
// and the occurrence begins where its time of day comes first.
func nextOccurrence(c *core.CampaignSpec, after time.Time) (time.Time, error) {
	zone := zoneOf(c.Timezone, time.UTC)
	if c.LocalTime == "" {
		s, err := NewSchedule(c.Cron, zone)
		if err != nil {
			return time.Time{}, fmt.Errorf("read the cron of a campaign: %w", err)
		}
		return s.Next(after), nil
	}
	at, err := parseClock(c.LocalTime)
	if err != nil {
		return time.Time{}, err
	}
	s, err := NewSchedule(c.Cron, farEast) // its days, on no clock that is ever changed
	if err != nil {
		return time.Time{}, fmt.Errorf("read the cron of a campaign: %w", err)
	}
	day := after.In(farEast)
	midnight := time.Date(day.Year(), day.Month(), day.Day(), 0, 0, 0, 0, farEast)
	for from := midnight.Add(-time.Second); ; {
		fires := s.Next(from)
		if fires.IsZero() {
			return time.Time{}, nil
		}
		f := fires.In(farEast)
		if begins := at.on(f, farEast); begins.After(after) {
			return begins.UTC(), nil
		}
		from = time.Date(f.Year(), f.Month(), f.Day()+1, 0, 0, 0, 0, farEast).Add(-time.Second)
	}
}

// start begins a campaign: from now on it is known who is in its audience.
func (t *turn) start(ctx context.Context) (time.Time, error) {
	now := t.Campaigns.Now()
	c := t.c
	if c.Missed == missedSkip && c.Date == "" && now.Sub(c.NextAt) > core.MissedAfter {
		t.Logger.Warn("a campaign's time was missed and it is left out", "campaign", c.ID.String(), "at", c.NextAt)
		return time.Time{}, t.keep(ctx, func(c *core.Campaign) {
			c.State, c.Reason, c.EndedAt = core.CampaignCancelled, "missed", now
		})
	}
	var plan []core.Leg
	if c.LocalTime != "" {
		zones, err := t.Audiences.AudienceZones(ctx, core.Audience{App: c.App, Topic: c.Audience.Topic, Recipients: c.Audience.Recipients, Until: now})
		if err != nil {
			return time.Time{}, fmt.Errorf("list the time zones of campaign %s: %w", c.ID, err)
		}
		if plan, err = legs(c, zones, now); err != nil {
			return time.Time{}, err
		}
	}
	err := t.keep(ctx, func(c *core.Campaign) {
		c.State, c.Bound, c.PacedTo, c.Legs = core.CampaignRunning, now, now, plan
		if len(plan) > 0 {
			c.NextAt = time.Time{} // no leg is waited for yet
		}
		c.Sample(now)
	})
	return now, err
}

// countPage is how many recipients are read at once to be counted.
const countPage = 2000

// count counts the audience, so that it is known how far the campaign is. What the database cannot count by itself is
// read from end to end, for as long as a turn lasts, and goes on from there in the next.
func (t *turn) count(ctx context.Context) (time.Time, error) {
	if err := t.compile(); err != nil {
		return time.Time{}, err
	}
	who := audience(t.c, core.Leg{})
	who.Bare = true
	n, cursor := t.c.Counting, t.c.CountedTo
	if t.filter == nil && cursor == "" {
		size, err := t.Audiences.AudienceSize(ctx, who)
		if err == nil {
			return t.Campaigns.Now(), t.audience(ctx, size)
		}
		if !errors.Is(err, core.ErrUnavailable) || ctx.Err() != nil {
			return time.Time{}, fmt.Errorf("count the audience of campaign %s: %w", t.c.ID, err)
		}
		t.Logger.Debug("an audience is not counted at once, it is read instead", "campaign", t.c.ID.String(), "error", err)
	}
	for {
		page, err := t.Audiences.AudiencePage(ctx, who, cursor, countPage)
		if err != nil {
			return time.Time{}, fmt.Errorf("count the audience of campaign %s: %w", t.c.ID, err)
		}
		n += len(page.Unknown)
		for i := range page.Recipients {
			if t.filter == nil || t.filter.Matches(&page.Recipients[i]) {
				n++
			}
		}
		if cursor = page.Next; cursor == "" {
			return t.Campaigns.Now(), t.audience(ctx, n)
		}
		if now := t.Campaigns.Now(); now.After(t.until) {
			return now, t.keep(ctx, func(c *core.Campaign) { c.Counting, c.CountedTo = n, cursor })
		}
	}
}

// audience keeps how large the audience is.
func (t *turn) audience(ctx context.Context, n int) error {
	return t.keep(ctx, func(c *core.Campaign) { c.Totals.Audience, c.Counted, c.Counting, c.CountedTo = n, true, 0, "" })
}

// compile reads the campaign's request and filter, once a turn.
func (t *turn) compile() error {
	if t.request != nil {
		return nil
	}
	request := &intake.Request{}
	if err := json.Unmarshal(t.c.Request, request); err != nil {
		return fmt.Errorf("read what campaign %s says: %w", t.c.ID, err)
	}
	if text := t.c.Audience.Filter; text != "" {
		var err error
		if t.filter, err = NewFilter(text); err != nil {
			return fmt.Errorf("read the filter of campaign %s: %w", t.c.ID, err)
		}
	}
	t.request = request
	return nil
}

// finish waits until nothing is pending any more.
func (t *turn) finish(ctx context.Context) (time.Time, error) {
	open, err := 0, error(nil)
	if t.c.Target.IsZero() { // a notification counts for itself
		if open, err = t.Pages.RecountCampaign(ctx, t.c.ID, recountMost); err != nil {
			return time.Time{}, fmt.Errorf("count what became of campaign %s: %w", t.c.ID, err)
		}
	}
	now := t.Campaigns.Now()
	if open > 0 {
		// What waits for a service's answer may wait for hours.
		return now.Add(min(max(now.Sub(t.c.PacedTo)/8, 100*time.Millisecond), finishMost)), nil
	}
	return time.Time{}, t.keep(ctx, func(c *core.Campaign) { c.State, c.EndedAt = core.CampaignCompleted, now })
}
