package campaign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
)

// The policies for what was not started in time.
const (
	missedSkip = "skip"
	missedRun  = "run"
)

// Keeper keeps campaigns for who manages them.
type Keeper interface {
	Now() time.Time
	// CreateCampaign keeps a new campaign. If its key was used with the same body, the one that was made then is
	// given back as it was then; with another body the error is core.ErrKeyReused.
	CreateCampaign(ctx context.Context, c *core.Campaign, key string, hash [32]byte) (first *core.Campaign, err error)
	// CampaignAnswered is the campaign that was made under a key, as it was then. The error is core.ErrNotFound for
	// a key that is free, core.ErrKeyReused for one used with another body.
	CampaignAnswered(ctx context.Context, app, key string, hash [32]byte) (*core.Campaign, error)
	Campaign(ctx context.Context, app string, id core.ID) (*core.Campaign, error)
	Campaigns(ctx context.Context, f core.CampaignFilter) ([]core.Campaign, string, error)
	// UpdateCampaign changes a campaign in one transaction. One that is cancelled by it has nothing pending
	// any more; one that is resumed has what its pause held due.
	UpdateCampaign(ctx context.Context, app string, id core.ID, change func(*core.Campaign) error) (*core.Campaign, error)
	CampaignResults(ctx context.Context, c *core.Campaign, line func(*core.CampaignResult) error) error
}

// Checker looks at what a campaign says, and sends it to who wants to see it.
type Checker interface {
	// Check says what is wrong with a request but for whom it is to, and which version of its template it
	// means.
	Check(ctx context.Context, app string, req *intake.Request) (version int, err error)
	Accept(ctx context.Context, app string, req *intake.Request, key intake.Key) (*intake.Accepted, error)
}

// Manager takes what is asked of campaigns. It is safe for concurrent use.
type Manager struct {
	Keeper    Keeper
	Pages     Pages
	Audiences Audiences
	Checker   Checker
	Queue     Queue
}

// Spec is what is asked for, as API.md's POST /v1/campaigns says it.
type Spec struct {
	Name      string
	Audience  core.CampaignAudience
	Request   *intake.Request // without To, SendAt and Delay
	StartAt   time.Time
	Delay     time.Duration
	Now       bool
	Cron      string
	Timezone  string
	LocalTime string
	Rate      string
	Missed    string
}

// Conflict is the error of what a campaign's state does not allow.
type Conflict struct {
	State  core.CampaignState
	Remedy string // what to do, such as "resume it"
}

// Error says what the state is, and the remedy.
func (e *Conflict) Error() string { return "the campaign is " + e.State.String() + ": " + e.Remedy }

const remedyOver = "it is over and stays so; make another one"

// Unwrap makes it a core.ErrState.
func (e *Conflict) Unwrap() error { return core.ErrState }

// Create keeps a campaign. Where its key was used before with the same body, it is replayed: the campaign is the first
// one, as it was made. The error is *intake.Invalid for what the caller can mend, with all faults, or core.ErrKeyReused.
func (m *Manager) Create(ctx context.Context, app string, s *Spec, key intake.Key) (c *core.Campaign, replayed bool, err error) {
	c, err = m.build(ctx, app, s)
	var bad *intake.Invalid
	if key.Value != "" && errors.As(err, &bad) { // it may have been taken when its start was still to come
		first, lookErr := m.Keeper.CampaignAnswered(ctx, app, key.Value, key.Hash)
		switch {
		case lookErr == nil:
			return first, true, nil
		case !errors.Is(lookErr, core.ErrNotFound):
			return nil, false, fmt.Errorf("look up the idempotency key: %w", lookErr)
		}
	}
	if err != nil {
		return nil, false, err
	}
	first, err := m.Keeper.CreateCampaign(ctx, c, key.Value, key.Hash)
	if err != nil {
		return nil, false, fmt.Errorf("keep a campaign: %w", err)
	}
	if first != nil {
		return first, true, nil
	}
	m.wake(ctx, c)
	return c, false, nil
}

// Check says what is wrong with what is asked for, as Create would, and keeps nothing. The error is *intake.Invalid for
// what the caller can mend, with all faults.
func (m *Manager) Check(ctx context.Context, app string, s *Spec) error {
	_, err := m.build(ctx, app, s)
	return err
}

// build checks what is asked for and makes a campaign of it.
func (m *Manager) build(ctx context.Context, app string, s *Spec) (*core.Campaign, error) {
	now := m.Keeper.Now()
	c := &core.Campaign{ID: core.NewID(now), App: app, State: core.CampaignDraft, CreatedAt: now, Fence: 1, CampaignSpec: core.CampaignSpec{
		Name: s.Name, Audience: s.Audience, Cron: s.Cron, Timezone: s.Timezone, LocalTime: s.LocalTime, Missed: s.Missed}}
	f := faults{}
	f.audience(&c.Audience)
	f.times(s, c, now)
	if c.Rate = s.Rate; s.Rate != "" {
		var err error
		if c.PerSecond, err = core.ParseRate(s.Rate); err != nil {
			f.add("/rate", intake.FaultInvalid, err.Error())
		}
	}
	request := *s.Request
	if request.Priority == "" {
		request.Priority = core.Lanes[2]
	}
	version, err := m.Checker.Check(ctx, app, &request)
	var bad *intake.Invalid
	switch {
	case errors.As(err, &bad):
		f = append(f, bad.Faults...)
	case err != nil:
		return nil, err
	}
	if len(f) > 0 {
		return nil, &intake.Invalid{Faults: f}
	}
	request.Version = version
	if c.Request, err = json.Marshal(request); err != nil {
		return nil, fmt.Errorf("encode what a campaign says: %w", err)
	}
	return c, nil
}

// wake has a planner look at a campaign now, if it is due now. Where that fails, its alarm clock does.
func (m *Manager) wake(ctx context.Context, c *core.Campaign) {
	if c.RunAt.IsZero() || c.RunAt.After(m.Keeper.Now()) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wakeTimeout)
	defer cancel()
	_ = m.Queue.Plan(ctx, core.CampaignWake{Campaign: c.ID, Fence: c.Fence})
}

type faults []intake.Fault

func (f *faults) add(pointer, code, detail string) {
	*f = append(*f, intake.Fault{Pointer: pointer, Code: code, Detail: detail})
}

func (f *faults) audience(a *core.CampaignAudience) {
	given := 0
	for _, is := range []bool{a.Topic != "", len(a.Recipients) > 0, a.Filter != "", a.All} {
		if is {
			given++
		}
	}
	switch {
	case given == 0:
		f.add("/audience", intake.FaultMissing, "give one of topic, recipients, filter and all")
	case given > 1:
		f.add("/audience", intake.FaultConflict, "give one of topic, recipients, filter and all, not several")
	case len(a.Recipients) > core.MaxListed:
		f.add("/audience/recipients", intake.FaultTooMany, fmt.Sprintf("takes at most %d ids; use a topic or a filter for more", core.MaxListed))
	case a.Filter != "":
		if _, err := NewFilter(a.Filter); err != nil {
			f.add("/audience/filter", intake.FaultInvalid, err.Error())
		}
	}
	slices.Sort(a.Recipients)
	a.Recipients = slices.Compact(a.Recipients)
}

// times checks when a campaign is to start and sets when that is.
func (f *faults) times(s *Spec, c *core.Campaign, now time.Time) {
	var given []string
	for _, x := range []struct {
		pointer string
		is      bool
	}{{"/start_at", !s.StartAt.IsZero()}, {"/delay", s.Delay != 0}, {"/now", s.Now}, {"/cron", s.Cron != ""}} {
		if x.is {
			given = append(given, x.pointer)
		}
	}
	if len(given) > 1 {
		for _, pointer := range given {
			f.add(pointer, intake.FaultConflict, "give one of start_at, delay, now and cron, or none to start it by hand")
		}
	}
	zone, sound := time.UTC, true
	bad := func(pointer, detail string) {
		f.add(pointer, intake.FaultInvalid, detail)
		sound = false
	}
	if s.Timezone != "" {
		z, err := time.LoadLocation(s.Timezone)
		switch {
		case err != nil || s.Timezone == "Local":
			bad("/timezone", "is no IANA time zone such as Europe/Paris")
		case s.Cron == "" && s.LocalTime == "":
			f.add("/timezone", intake.FaultConflict, "is that of cron, or with local_time that of recipients who have none")
		default:
			zone = z
		}
	}
	if s.Cron != "" {
		if _, err := NewSchedule(s.Cron, zone); err != nil {
			bad("/cron", err.Error())
		}
	}
	if s.LocalTime != "" {
		if _, err := parseClock(s.LocalTime); err != nil {
			bad("/local_time", err.Error())
		}
	}
	if c.Missed == "" {
		if c.Missed = missedRun; s.Cron != "" {
			c.Missed = missedSkip
		}
	}
	at := time.Time{}
	switch {
	case s.Cron != "" && !sound:
		return
	case s.Cron != "":
		next, err := nextOccurrence(&c.CampaignSpec, now)
		if err != nil || next.IsZero() {
			f.add("/cron", intake.FaultRange, "has no occurrence to come")
			return
		}
		at = next
	case !s.StartAt.IsZero():
		if at = s.StartAt; at.Before(now.Add(-core.MissedAfter)) {
			f.add("/start_at", intake.FaultRange, "lies in the past; say now: true to start at once")
		}
	case s.Delay != 0:
		at = now.Add(s.Delay)
	case s.Now:
		at = now
	default:
		return
	}
	if at.After(now.Add(core.MaxAhead)) {
		f.add(given[0], intake.FaultRange, fmt.Sprintf("lies more than %d days ahead", int(core.MaxAhead.Hours()/24)))
	}
	c.State, c.StartAt, c.NextAt, c.RunAt = core.CampaignScheduled, at, at, at
}

// Get returns a campaign with its totals as they are now.
func (m *Manager) Get(ctx context.Context, app string, id core.ID) (*core.Campaign, error) {
	c, err := m.Keeper.Campaign(ctx, app, id)
	if err != nil || c.Bound.IsZero() {
		return c, err
	}
	if _, err := m.Pages.RecountCampaign(ctx, id, recountMost); err != nil {
		return nil, fmt.Errorf("count what became of campaign %s: %w", id, err)
	}
	return m.Keeper.Campaign(ctx, app, id)
}

// List lists an app's campaigns with their totals as they were counted last.
func (m *Manager) List(ctx context.Context, f core.CampaignFilter) ([]core.Campaign, string, error) {
	return m.Keeper.Campaigns(ctx, f)
}

// Now is the database's time.
func (m *Manager) Now() time.Time { return m.Keeper.Now() }

// Steer starts, pauses, resumes or cancels a campaign; with a cron, its occurrences that are not over too.
// What the campaign is already is no error; what its state does not allow is *Conflict. After a pause or a
// cancel has returned, no new attempt begins: it waits for those under way, but no longer than ctx lasts.
func (m *Manager) Steer(ctx context.Context, app string, id core.ID, action string) (*core.Campaign, error) {
	change := map[string]func(*core.Campaign, time.Time) error{"start": start, "pause": pause, "resume": resume, "cancel": cancel}[action]
	if change == nil {
		return nil, core.ErrNotFound
	}
	now := m.Keeper.Now()
	c, err := m.Keeper.UpdateCampaign(ctx, app, id, func(c *core.Campaign) error { return change(c, now) })
	if err != nil {
		return nil, err
	}
	if c.Cron != "" && action != "start" {
		if err := m.occurrences(ctx, c, change); err != nil {
			return nil, err
		}
	}
	m.wake(ctx, c)
	if action == "pause" || action == "cancel" {
		if err := m.settled(ctx, c.ID); err != nil {
			return nil, err
		}
	}
	return m.Get(ctx, app, id)
}

// occurrences steers those that are not over of a campaign with a cron.
func (m *Manager) occurrences(ctx context.Context, parent *core.Campaign, change func(*core.Campaign, time.Time) error) error {
	f := core.CampaignFilter{App: parent.App, Parent: parent.ID, Page: core.Page{Limit: 100}}
	for {
		all, next, err := m.Keeper.Campaigns(ctx, f)
		if err != nil {
			return err
		}
		for i := range all {
			if all[i].State.Over() {
				continue
			}
			now := m.Keeper.Now()
			c, err := m.Keeper.UpdateCampaign(ctx, parent.App, all[i].ID, func(c *core.Campaign) error { return change(c, now) })
			var conflict *Conflict
			if errors.As(err, &conflict) {
				continue // it was over in this moment
			}
			if err != nil {
				return err
			}
			m.wake(ctx, c)
			if c.State == core.CampaignPaused || c.State == core.CampaignCancelled {
				if err := m.settled(ctx, c.ID); err != nil {
					return err
				}
			}
		}
		if f.Page.Cursor = next; next == "" {
			return nil
		}
	}
}

// settleEvery is how often it is looked whether rounds under way are done, settleMost how long at most: a
// route's call may take that long, and what it began is no new attempt.
const (
	settleEvery = 20 * time.Millisecond
	settleMost  = 15 * time.Second
)

// settled waits until no round of a campaign is under way.
func (m *Manager) settled(ctx context.Context, id core.ID) error {
	for until := time.Now().Add(settleMost); ; {
		_, _, sending, err := m.Pages.CampaignBusy(ctx, id)
		if err != nil {
			return fmt.Errorf("look what campaign %s has under way: %w", id, err)
		}
		if sending == 0 || time.Now().After(until) || wait(ctx, settleEvery) != nil {
			return nil //nolint:nilerr // it is paused or cancelled all the same
		}
	}
}

func start(c *core.Campaign, now time.Time) error {
	switch {
	case c.State == core.CampaignRunning:
		return nil
	case c.Cron != "" && c.State == core.CampaignScheduled:
		return nil
	case c.State == core.CampaignPaused && c.Was == core.CampaignDraft.String():
		return &Conflict{c.State, "resume it, which makes it a draft again, and then start it"}
	case c.State == core.CampaignPaused:
		return &Conflict{c.State, "resume it"}
	case c.State.Over():
		return &Conflict{c.State, remedyOver}
	}
	c.State, c.NextAt, c.RunAt = core.CampaignScheduled, now, now
	return nil
}

func pause(c *core.Campaign, _ time.Time) error {
	switch c.State {
	case core.CampaignPaused:
		return nil
	case core.CampaignCompleted, core.CampaignCancelled:
		return &Conflict{c.State, remedyOver}
	}
	c.Was, c.State, c.RunAt, c.Samples = c.State.String(), core.CampaignPaused, time.Time{}, [2]core.Sample{}
	return nil
}

func resume(c *core.Campaign, now time.Time) error {
	switch {
	case c.State == core.CampaignRunning:
		return nil
	case c.State.Over():
		return &Conflict{c.State, remedyOver}
	case c.State != core.CampaignPaused:
		return &Conflict{c.State, "it was not paused; start it to have it begin now"}
	}
	was, err := core.ParseCampaignState(c.Was)
	if err != nil {
		was = core.CampaignRunning
	}
	c.State, c.Was, c.Reason, c.PacedTo = was, "", "", now
	if was != core.CampaignDraft {
		c.RunAt = now
	}
	return nil
}

func cancel(c *core.Campaign, now time.Time) error {
	switch c.State {
	case core.CampaignCancelled:
		return nil
	case core.CampaignCompleted:
		return &Conflict{c.State, remedyOver}
	}
	c.State, c.Reason, c.EndedAt, c.RunAt, c.NextAt = core.CampaignCancelled, "", now, time.Time{}, time.Time{}
	return nil
}

// SetRate changes how fast a campaign goes, "" being as fast as the routes do; with a cron, its occurrences that are not
// over too. It takes hold at once.
func (m *Manager) SetRate(ctx context.Context, app string, id core.ID, rate string) (*core.Campaign, error) {
	perSecond, err := core.ParseRate(rate)
	if err != nil {
		f := faults{}
		f.add("/rate", intake.FaultInvalid, err.Error())
		return nil, &intake.Invalid{Faults: f}
	}
	change := func(c *core.Campaign, now time.Time) error {
		if c.State.Over() {
			return &Conflict{c.State, remedyOver}
		}
		c.Rate, c.PerSecond, c.PacedTo = rate, perSecond, now
		if c.State == core.CampaignRunning {
			c.RunAt = now
		}
		return nil
	}
	now := m.Keeper.Now()
	c, err := m.Keeper.UpdateCampaign(ctx, app, id, func(c *core.Campaign) error { return change(c, now) })
	if err != nil {
		return nil, err
	}
	if c.Cron != "" {
		if err := m.occurrences(ctx, c, change); err != nil {
			return nil, err
		}
	}
	m.wake(ctx, c)
	return m.Get(ctx, app, id)
}

// Test sends what a campaign says to somebody who wants to see it, as a notification of its own.
func (m *Manager) Test(ctx context.Context, app string, id core.ID, to []intake.Target, key intake.Key) (*intake.Accepted, error) {
	c, err := m.Keeper.Campaign(ctx, app, id)
	if err != nil {
		return nil, err
	}
	req := &intake.Request{}
	if err := json.Unmarshal(c.Request, req); err != nil {
		return nil, fmt.Errorf("read what campaign %s says: %w", id, err)
	}
	req.To, req.Priority = to, core.Lanes[1]
	return m.Checker.Accept(ctx, app, req, key)
}

// Results calls line for what became of each one of a campaign's audience: first those it was expanded for,
// and of one that was cancelled then those it did not get to.
func (m *Manager) Results(ctx context.Context, app string, id core.ID, line func(*core.CampaignResult) error) error {
	c, err := m.Keeper.Campaign(ctx, app, id)
	if err != nil {
		return err
	}
	if err := m.Keeper.CampaignResults(ctx, c, line); err != nil {
		return err
	}
	if c.State != core.CampaignCancelled || c.Bound.IsZero() || c.Expanded {
		return nil
	}
	t := &turn{Planner: &Planner{Options: Options{Audiences: m.Audiences, Pages: m.Pages}}, c: c}
	if err := t.compile(); err != nil {
		return err
	}
	return t.rest(ctx, func(r *core.Recipient) error {
		return line(&core.CampaignResult{Delivery: core.Delivery{Recipient: r.ID, State: core.Cancelled}})
	})
}

// rest walks what is left of the audience.
func (t *turn) rest(ctx context.Context, each func(*core.Recipient) error) error {
	for c := t.c; c.Leg < max(1, len(c.Legs)); {
		who := audience(c, t.leg())
		who.Bare = true
		found, err := t.Audiences.AudiencePage(ctx, who, c.Cursor, scanSize)
		if err != nil {
			return fmt.Errorf("read the audience of campaign %s: %w", c.ID, err)
		}
		people, _ := t.meant(found.Recipients, scanSize)
		if people, err = t.unmet(ctx, c, people); err != nil {
			return err
		}
		for _, r := range people {
			if err := each(r); err != nil {
				return err
			}
		}
		if c.Cursor = found.Next; c.Cursor == "" {
			c.Leg++
		}
	}
	return nil
}
