package core

import (
	"encoding/json"
	"fmt"
	"time"
)

// Bounds of a campaign.
const (
	// MaxListed is the most recipients that an audience may list.
	MaxListed = 10_000
	// MissedAfter is how late a campaign may start and still be in time.
	MissedAfter = time.Minute
)

// CampaignState is a campaign's state. Completed and cancelled ones stay so.
type CampaignState uint8

// The states of a campaign. Their numbers are kept in the store and never change.
const (
	CampaignDraft     CampaignState = iota + 1 // waits to be started by hand
	CampaignScheduled                          // waits for its time; one with a cron waits for the next
	CampaignRunning                            // its audience is being sent to
	CampaignPaused                             // begins no new attempt until it is resumed
	CampaignCompleted                          // everyone was sent to, and nothing is pending
	CampaignCancelled                          // begins no new attempt any more
)

var campaignStates = [...]string{"", "draft", "scheduled", "running", "paused", "completed", "cancelled"}

// String returns the state's name.
func (s CampaignState) String() string {
	if int(s) >= len(campaignStates) {
		return ""
	}
	return campaignStates[s]
}

// ParseCampaignState reads a state's name.
func ParseCampaignState(name string) (CampaignState, error) {
	for i, n := range campaignStates {
		if i > 0 && n == name {
			return CampaignState(i), nil
		}
	}
	return 0, fmt.Errorf("%q is no state of a campaign", name)
}

// Over reports whether the state is final.
func (s CampaignState) Over() bool { return s == CampaignCompleted || s == CampaignCancelled }

// CampaignAudience is whom a campaign is for: exactly one of its fields is set.
type CampaignAudience struct {
	Topic      string   `json:"topic,omitempty"`
	Recipients []string `json:"recipients,omitempty"` // ids, sorted, each once
	Filter     string   `json:"filter,omitempty"`     // an expression on a recipient's attributes
	All        bool     `json:"all,omitempty"`
	// Topics and Except are a notification's, whose topics are resolved: several topics, and who is named
	// beside them and has it already.
	Topics []string `json:"topics,omitempty"`
	Except []string `json:"except,omitempty"`
}

// Campaign is something said to an audience, a page of it at a time. One with a Cron says nothing itself:
// each of its occurrences is a campaign of its own, whose Parent it is.
type Campaign struct {
	ID     ID
	App    string
	Parent ID // the campaign with the cron that this is an occurrence of; zero for none
	// Target is the notification whose topics this resolves; zero for a campaign that is its own.
	Target    ID
	State     CampaignState
	CreatedAt time.Time
	// Fence grows with every hand-over of the expansion; who holds an older one changes nothing.
	Fence int64
	// RunAt is when a planner looks at it: its time, or the end of the lease of who works on it. Zero
	// when there is nothing to do.
	RunAt time.Time
	CampaignSpec
	Legs []Leg // of a campaign by local time, once it started
	CampaignLive
}

// CampaignSpec is what was asked, which never changes.
type CampaignSpec struct {
	Name     string           `json:"name"`
	Audience CampaignAudience `json:"audience"`
	// Request is what each recipient gets: the intake's request without `to`.
	Request json.RawMessage `json:"request"`
	StartAt time.Time       `json:"start_at,omitzero"`
	Cron    string          `json:"cron,omitempty"`
	// Timezone is the cron's, and that of recipients who have none where LocalTime is set; "" is UTC.
	Timezone  string `json:"timezone,omitempty"`
	LocalTime string `json:"local_time,omitempty"` // "09:00", in each recipient's own zone
	// Date is the day of an occurrence by local time, such as 2026-03-29: everyone gets it on that day.
	Date   string `json:"date,omitempty"`
	Missed string `json:"missed,omitempty"` // "skip" or "run"
}

// Leg is a part of the audience that is due together: the recipients of some zones.
type Leg struct {
	At    time.Time `json:"at"`
	Zones []string  `json:"zones,omitempty"` // nil: all
	// Moved says that only recipients changed after the start are looked at: who moved from a zone that
	// was still to come to one that was done already.
	Moved bool `json:"moved,omitempty"`
}

// CampaignLive is how far a campaign has got.
type CampaignLive struct {
	Rate       string    `json:"rate,omitempty"`     // "500/s"; "" is as fast as the routes go
	PerSecond  float64   `json:"per_s,omitempty"`    // the rate as deliveries a second
	Reason     string    `json:"reason,omitempty"`   // why it was paused or cancelled, where that was not by request
	Was        string    `json:"was,omitempty"`      // the state that a pause interrupted
	NextAt     time.Time `json:"next_at,omitzero"`   // when it starts, or its next occurrence or leg
	Bound      time.Time `json:"bound,omitzero"`     // recipients created later are not in; zero until it started
	EndedAt    time.Time `json:"ended_at,omitzero"`  //
	Leg        int       `json:"leg,omitempty"`      // the one that is being expanded
	Cursor     string    `json:"cursor,omitempty"`   // the last recipient of the leg that was expanded
	Expanded   bool      `json:"done,omitempty"`     // the whole audience was
	Counted    bool      `json:"counted,omitempty"`  // Totals.Audience is known
	Counting   int       `json:"counting,omitempty"` // until then: how many were counted so far
	CountedTo  string    `json:"to,omitempty"`       // and the last recipient who was
	PacedTo    time.Time `json:"paced_to,omitzero"`  // when the next delivery may go by the rate
	Totals     Totals    `json:"totals,omitzero"`    //
	Samples    [2]Sample `json:"samples,omitzero"`   // of what was done, for the rate: an older and a newer one
	LastDue    time.Time `json:"last_due,omitzero"`  // the last time that something pending waits for, as of the last count
	LastRun    ID        `json:"last_run,omitzero"`  // of one with a cron: the latest occurrence
	Runs       int       `json:"runs,omitempty"`     // of one with a cron: how many occurrences there were
	MissedRuns int       `json:"missed_n,omitempty"` // and how many were left out, being too late
}

// Totals count a campaign's audience. Everyone is counted once in People, Skipped or what is not expanded
// yet: by the best that became of the deliveries to them (pending before delivered before sent before failed
// and so on). Deliveries counts those.
type Totals struct {
	Audience   int    `json:"audience"`
	Expanded   int    `json:"expanded"`
	People     Counts `json:"people"`
	Skipped    int    `json:"skipped"` // of the expanded: not reached on any channel
	Deliveries Counts `json:"deliveries"`
}

// Sample is what was done at a time.
type Sample struct {
	At   time.Time `json:"at"`
	Done int       `json:"done"` // deliveries that are not pending any more
}

// Done is how many deliveries are not pending any more.
func (t Totals) Done() int { return t.Deliveries.Total() - t.Deliveries.Pending }

// EachPerson is how many deliveries an expanded recipient has on average; 1 where nobody was expanded yet.
func (t Totals) EachPerson() float64 {
	if t.Expanded == 0 {
		return 1
	}
	return float64(t.Deliveries.Total()) / float64(t.Expanded)
}

// Plus adds what another has more than a third: the change of a part from was to is.
func (t Totals) Plus(is, was Totals) Totals {
	t.Audience += is.Audience - was.Audience
	t.Expanded += is.Expanded - was.Expanded
	t.Skipped += is.Skipped - was.Skipped
	t.People = t.People.plus(is.People, was.People)
	t.Deliveries = t.Deliveries.plus(is.Deliveries, was.Deliveries)
	return t
}

func (c Counts) plus(is, was Counts) Counts {
	c.Pending += is.Pending - was.Pending
	c.Sent += is.Sent - was.Sent
	c.Delivered += is.Delivered - was.Delivered
	c.Failed += is.Failed - was.Failed
	c.Expired += is.Expired - was.Expired
	c.Cancelled += is.Cancelled - was.Cancelled
	c.Suppressed += is.Suppressed - was.Suppressed
	return c
}

// best orders the states by which of a person's deliveries speaks for them.
var best = [...]int{Pending: 0, Delivered: 1, Sent: 2, Failed: 3, Expired: 4, Cancelled: 5, Suppressed: 6}

// Better reports whether a state speaks for a person rather than another does.
func (s State) Better(than State) bool { return best[s] < best[than] }

// Progress is a campaign's totals as its state makes them: what a cancelled one did not get to is cancelled.
type Progress struct {
	Totals
	RatePerS float64 // deliveries a second, of late
	// ETA is when all of it will be done at that rate, in whole seconds, never before the time that something of it
	// waits for; zero: nobody knows.
	ETA time.Time
}

// Progress tells how far a campaign is at a time.
func (c *Campaign) Progress(now time.Time) Progress {
	p := Progress{Totals: c.Totals}
	if c.Expanded {
		// Who left since the start got nothing, and who came to fit the filter is one more.
		p.Audience = max(p.Audience, p.Totals.Expanded)
		p.Skipped += p.Audience - p.Totals.Expanded
		p.Totals.Expanded = p.Audience
	}
	if c.State == CampaignCancelled {
		p.Audience = max(p.Audience, p.Totals.Expanded)
		p.People.Cancelled += p.Audience - p.Totals.Expanded
	}
	from := c.Samples[0]
	if from.At.IsZero() || !now.After(from.At) || c.State != CampaignRunning {
		return p
	}
	p.RatePerS = float64(p.Done()-from.Done) / now.Sub(from.At).Seconds()
	if left := p.left(); p.RatePerS > 0 && left > 0 {
		seconds := min(float64(left)/p.RatePerS, (MaxAhead * 10).Seconds())
		p.ETA = now.Add(time.Duration(seconds * float64(time.Second))).Truncate(time.Second)
		if wait := c.waitsTill(); wait.After(now) && (wait.After(p.ETA) || now.Sub(c.Samples[1].At) > idleAfter) {
			p.ETA = wait.Add(time.Second - 1).Truncate(time.Second)
		}
	}
	return p
}

// waitsTill is the last time that something of a campaign waits for: its last local time, the end of quiet hours, the
// next step of a fallback, another try.
func (c *Campaign) waitsTill() time.Time {
	if n := len(c.Legs); n > 0 && c.Legs[n-1].At.After(c.LastDue) {
		return c.Legs[n-1].At
	}
	return c.LastDue
}

// left is about how many deliveries are still to be done.
func (p Progress) left() int {
	return p.Deliveries.Pending + int(p.EachPerson()*float64(max(0, p.Audience-p.Totals.Expanded)))
}

// sampleEvery is how far a campaign's samples lie apart: its rate is that of the last one to two of it.
const sampleEvery = 5 * time.Second

// idleAfter is when nothing was done for so long that the rate tells nothing about what waits for a time.
const idleAfter = 3 * sampleEvery

// Sample notes what was done, for the rate.
func (c *CampaignLive) Sample(now time.Time) {
	s := Sample{At: now, Done: c.Totals.Done()}
	switch newest := c.Samples[1]; {
	case newest.At.IsZero():
		c.Samples = [2]Sample{s, s}
	case now.Sub(newest.At) >= sampleEvery:
		c.Samples = [2]Sample{newest, s}
	}
}

// NewExpansion resolves topics for a notification, from when that is due: a planner makes the deliveries of
// the topics' recipients a page at a time, and they count as the notification's. request is what each of them
// gets, the intake's request without `to`; except are ids that have it already. It belongs into the Acceptance that the
// notification is recorded by.
func NewExpansion(n *Notification, topics, except []string, request json.RawMessage) Campaign {
	return Campaign{ID: NewID(n.CreatedAt), App: n.App, Target: n.ID, State: CampaignScheduled, CreatedAt: n.CreatedAt, Fence: 1, RunAt: n.SendAt,
		CampaignSpec: CampaignSpec{Name: topics[0], Audience: CampaignAudience{Topics: topics, Except: except}, Request: request, StartAt: n.SendAt, Missed: "run"},
		CampaignLive: CampaignLive{NextAt: n.SendAt}}
}

// CampaignWake is what the plan queue carries: which campaign, under which fence.
type CampaignWake struct {
	Campaign ID
	Fence    int64
}

// CampaignPage is a step of an expansion, to be written in one transaction: what the recipients of a page
// get, and how far the campaign is after it.
type CampaignPage struct {
	Campaign ID
	Fence    int64
	// Acceptance is nil where nobody of the page is in the audience.
	Acceptance *Acceptance
	People     int // recipients of the page that are in the audience
	Skipped    int // and of those not reached on any channel
	// Cursor, Leg and Expanded are the campaign's after the page; PacedTo too.
	Cursor   string
	Leg      int
	Expanded bool
	PacedTo  time.Time
	RunAt    time.Time // the lease, renewed
}

// CampaignFilter selects campaigns of one app.
type CampaignFilter struct {
	App    string
	State  CampaignState // 0: all
	Parent ID            // occurrences of this one
	Page   Page
}

// CampaignResult is one line of a campaign's results.
type CampaignResult struct {
	Delivery           // State and Recipient alone where none was made
	Skip     string    // the reason for which none was made, "" where one was
	SentAt   time.Time // zero unless it was
}
