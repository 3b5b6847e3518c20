package core

import (
	"encoding/json"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// Limits and defaults of a notification, as API.md states them.
const (
	MaxTo        = 1000
	DefaultTTL   = 72 * time.Hour
	MaxTTL       = 28 * 24 * time.Hour // FCM's longest (2,419,200 s); APNs keeps no longer than that
	MaxAhead     = 366 * 24 * time.Hour
	MaxSkipShown = 100
)

// Lane is the class of urgency that a batch travels in. Lanes do not share workers.
type Lane = providers.Priority

// Lanes lists the lanes, the most urgent first.
var Lanes = []Lane{providers.Critical, providers.Normal, providers.Bulk}

// Notification is what was asked, without the words: those are Contents.
type Notification struct {
	ID        ID
	App       string
	CreatedAt time.Time
	SendAt    time.Time // when it is due; CreatedAt for now
	ExpiresAt time.Time // when it is worth nothing any more
	Priority  Lane
	Mode      string // ModeAll or ModeFallback
	// FallbackAfter is how long a channel of a fallback has until the next one goes, unacknowledged.
	FallbackAfter time.Duration
	Category      string
	CollapseKey   string
	Unknown       UnknownPolicy
	Template      string // "name@version", "" for inline content
	Metadata      json.RawMessage
	Skipped       []Skip
	CancelledAt   time.Time // zero unless cancelled
	// Resolving: it has topics whose recipients do not all have their deliveries yet.
	Resolving bool
	// Unresolved is why its topics were resolved no further, and UnresolvedAt since when; "" and zero where they were
	// resolved, or that was asked for.
	Unresolved   string
	UnresolvedAt time.Time
}

// UnknownPolicy says what to do after an attempt whose outcome nobody knows.
type UnknownPolicy string

// The policies. FailUnknown makes a message at-most-once.
const (
	RetryUnknown UnknownPolicy = "retry"
	FailUnknown  UnknownPolicy = "fail"
)

// Skip says whom a notification does not reach on a channel, and why.
type Skip struct {
	To        int    `json:"to"` // index into the request's `to`
	Recipient string `json:"recipient,omitempty"`
	Channel   string `json:"channel,omitempty"`
	Reason    string `json:"reason"`
}

// The reasons of a Skip.
const (
	SkipUnknownRecipient = "unknown_recipient"
	SkipNoEndpoint       = "no_endpoint"
	SkipNoRoute          = "no_route"
	SkipNoContent        = "no_content"
	SkipDuplicate        = "duplicate_address"
	SkipBadAddress       = "bad_address" // a stored endpoint that its kind does not take any more
	SkipChannel          = "channel_not_asked"
	SkipSuppressed       = "suppressed"         // its service reported the address dead, or its owner complained
	SkipPreference       = "preference"         // the recipient, or the category's defaults, do not want it there
	SkipRender           = "cannot_be_rendered" // for this recipient of a campaign; what is wrong follows
)

// Content is what was rendered for one channel: all of a providers.Message that does not differ from
// delivery to delivery, so that identical content is kept once.
type Content struct {
	Title       string          `json:"t,omitempty"`
	Body        string          `json:"b,omitempty"`
	URL         string          `json:"u,omitempty"`
	Data        json.RawMessage `json:"d,omitempty"`
	Block       json.RawMessage `json:"c,omitempty"`
	Category    string          `json:"g,omitempty"`
	CollapseKey string          `json:"k,omitempty"`
}

// Status is a notification's state as its deliveries make it.
type Status string

// The statuses: scheduled while it is not due and nothing began; accepted while nothing began;
// processing while something is not terminal; completed or cancelled when all is.
const (
	StatusScheduled  Status = "scheduled"
	StatusAccepted   Status = "accepted"
	StatusProcessing Status = "processing"
	StatusCompleted  Status = "completed"
	StatusCancelled  Status = "cancelled"
)

// Counts are a notification's deliveries by state.
type Counts struct {
	Pending    int `json:"pending"`
	Sent       int `json:"sent"`
	Delivered  int `json:"delivered"`
	Failed     int `json:"failed"`
	Expired    int `json:"expired"`
	Cancelled  int `json:"cancelled"`
	Suppressed int `json:"suppressed"`
}

// Add counts n deliveries of a state.
func (c *Counts) Add(s State, n int) {
	switch s {
	case Pending:
		c.Pending += n
	case Sent:
		c.Sent += n
	case Delivered:
		c.Delivered += n
	case Failed:
		c.Failed += n
	case Expired:
		c.Expired += n
	case Cancelled:
		c.Cancelled += n
	case Suppressed:
		c.Suppressed += n
	}
}

// Total is the sum over all states: what was accepted (rule 4 of docs/architecture.md).
func (c Counts) Total() int {
	return c.Pending + c.Sent + c.Delivered + c.Failed + c.Expired + c.Cancelled + c.Suppressed
}

// StatusOf derives a notification's status. begun says that an attempt was made for any of its
// deliveries.
func StatusOf(n *Notification, c Counts, begun bool, now time.Time) Status {
	switch {
	case n.Resolving && !begun && c.Pending == c.Total() && n.SendAt.After(now):
		return StatusScheduled
	case n.Resolving && !begun && c.Total() == 0:
		return StatusAccepted
	case n.Resolving:
		return StatusProcessing
	case c.Pending == 0 && c.Cancelled > 0 && c.Cancelled == c.Total():
		return StatusCancelled
	case c.Total() == 0 && (!n.CancelledAt.IsZero() || !n.UnresolvedAt.IsZero()):
		return StatusCancelled
	case c.Pending == 0:
		return StatusCompleted
	case begun || c.Pending < c.Total():
		return StatusProcessing
	case n.SendAt.After(now):
		return StatusScheduled
	default:
		return StatusAccepted
	}
}

// Acceptance is everything that becomes durable with one 202: the notification, its deliveries and
// their contents, and the idempotency key that asked for it.
type Acceptance struct {
	Notification Notification
	// Deliveries has App, Route, Lane-independent fields, State Pending and Content.Slot as an index
	// into Contents; BatchID and Content.Page are set as it is recorded.
	Deliveries []Delivery
	Contents   []Content
	// Expansions resolve the notification's topics: recorded with it, and expanded by a planner afterwards.
	Expansions []Campaign
	// Known are the stored recipients that it was made for, as they were read.
	Known []*Recipient
	// Slots is the store's own: the slots as they were handed in, while Deliveries point at pages.
	Slots []int
	// Key is the caller's idempotency key, "" for none, and BodyHash what was asked under it.
	Key      string
	BodyHash [32]byte
	// Answer is the body that a repeated request with the same key is answered with.
	Answer []byte
}

// Recorded is what became of an Acceptance.
type Recorded struct {
	// Replayed says that the key was used before with the same body; Answer is the answer given then,
	// and nothing was recorded.
	Replayed bool
	Answer   []byte
	// Wakes are those that the caller has to pass to the queue: of a batch shared by several
	// acceptances exactly one of them gets the wake, one whose caller still waits for the answer.
	Wakes []Wake
}
