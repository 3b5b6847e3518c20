package core

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// NotificationView is a notification as it stands.
type NotificationView struct {
	Notification
	Counts Counts
	Begun  bool // an attempt was made for at least one of its deliveries
}

// MaskAddress shows enough of an address to know it again, and not enough to use it. A websocket address
// is a recipient's id, which is the application's own.
func MaskAddress(kind, address string) string {
	if address == "" || kind == "websocket" {
		return address
	}
	r := []rune(address)
	if _, domain, ok := strings.Cut(address, "@"); ok && r[0] != '@' {
		return string(r[:1]) + "***@" + domain
	}
	if len(r) <= 8 {
		return "***"
	}
	return string(r[:4]) + "***" + string(r[len(r)-4:])
}

// DeadFilter selects deliveries that failed or expired, of one app. Zero fields select all.
type DeadFilter struct {
	App   string
	Route string
	Code  string
	Page  Page
}

// NotificationFilter selects notifications of one app. Zero fields select all.
type NotificationFilter struct {
	App       string
	Status    Status
	Recipient string
	Campaign  ID
	Since     time.Time
	Page      Page
}

// Page is a place in a list: what comes after the cursor (an opaque text that a list returned), up to
// Limit entries.
type Page struct {
	Cursor string
	Limit  int
}

// Step is one entry of a timeline.
type Step struct {
	At        time.Time
	Delivery  ID     // zero: of the notification as a whole
	What      string // one of the Step… constants
	Recipient string // of StepSkipped and StepResolved; "" for a direct address
	Channel   string
	Route     string
	Worker    string
	Attempt   int               // of the batch, for StepAttempt
	Outcome   providers.Outcome // for StepAttempt and StepLate
	State     State             // what the delivery became, for StepAttempt
	Code      string
	Reason    string
	HeldTill  time.Time // zero: not held
}

// The steps of a timeline. Receipts are named by their event ("delivered", "seen", "read"...).
const (
	StepAccepted   = "accepted"   // the 202
	StepResolved   = "resolved"   // a delivery was made for an endpoint
	StepSkipped    = "skipped"    // somebody is not reached on a channel, and why
	StepStarted    = "started"    // a round began; alone, without its attempt, it was never finished
	StepAttempt    = "attempt"    // an attempt's outcome
	StepHeld       = "held"       // kept for later without an attempt
	StepExpired    = "expired"    // ran out of time
	StepSuppressed = "suppressed" // not sent: the address is suppressed
	StepFailed     = "failed"     // not sent: there is nothing to send; a receipt's is named so too
	StepCancelled  = "cancelled"  // by request
	StepLate       = "late"       // an answer that came after its round had been given up
)

// TemplateVersion is one version of a stored template. Versions count from 1 and never change.
type TemplateVersion struct {
	App       string
	Name      string
	Version   int
	Source    json.RawMessage // as it was given
	CreatedAt time.Time
}

// SentMessage is a delivery with its words and what its recipient did with it.
type SentMessage struct {
	Delivery
	Words                     Content
	SeenAt, ReadAt, ClickedAt time.Time // zero: not
}

// InboxItem is one in-app message as its recipient finds it.
type InboxItem struct {
	ID         ID
	Content    Content
	CreatedAt  time.Time
	SeenAt     time.Time // zero: not yet
	ReadAt     time.Time
	ArchivedAt time.Time
}

// Backlog is what waits on a route and lane.
type Backlog struct {
	Route                    string
	Lane                     Lane
	Pending, Queued, Sending int       // batches
	Oldest                   time.Time // due time of the longest overdue one; zero if none
}

// RouteReport is what a process that delivers over a route tells the others of it.
type RouteReport struct {
	Process string    `json:"-"` // host:pid
	Route   string    `json:"-"`
	At      time.Time `json:"-"` // by the database's clock
	// State is the provider's health ("ok", "degraded", "down"), Reason says why it is not well, Circuit is
	// the route's there ("closed", "open", "half_open").
	State   string              `json:"state"`
	Reason  string              `json:"reason,omitempty"`
	Circuit string              `json:"circuit,omitempty"`
	Pool    providers.PoolStats `json:"pool"`
}
