package core

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// State is a delivery's state. Everything but Pending and Sent is terminal; Sent is changed only by a
// receipt.
type State uint8

// The states. Their numbers are kept in the store and never change.
const (
	Pending State = iota + 1
	Sent
	Delivered
	Failed
	Expired
	Cancelled
	Suppressed
)

var stateNames = [...]string{"", "pending", "sent", "delivered", "failed", "expired", "cancelled", "suppressed"}

// String returns the state's name.
func (s State) String() string {
	if int(s) >= len(stateNames) {
		return ""
	}
	return stateNames[s]
}

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *State) UnmarshalText(b []byte) error {
	for i, name := range stateNames {
		if i > 0 && name == string(b) {
			*s = State(i)
			return nil
		}
	}
	return fmt.Errorf("%q is no state of a delivery", b)
}

// Open reports whether the delivery may still be tried.
func (s State) Open() bool { return s == Pending }

// ContentRef points at a content: a page and the place in it.
type ContentRef struct {
	Page ID
	Slot int
}

// Delivery is one notification on its way to one endpoint.
type Delivery struct {
	ID           ID
	Notification ID
	Batch        ID
	App          string
	Channel      string
	Kind         string
	Route        string
	Recipient    string // "" for a direct address
	Address      string
	Name         string // the recipient's name for e-mail's To, "" for none
	Content      ContentRef
	State        State
	Attempts     int // that burnt one: Deferred, and the last one
	Unknowns     int // whose outcome nobody knows
	MaxUnknown   int // more Unknowns than this fail it
	Code         string
	Reason       string
	ProviderID   string // the service's own id; "" where it goes by ours
	CreatedAt    time.Time
	UpdatedAt    time.Time
	ExpiresAt    time.Time
	// DueAt is when it may go, where that is later than its notification's time, and Held why: one of the
	// Held… constants. Zero and "" else. Both are as of when it was made.
	DueAt time.Time
	Held  string
	// Quiet is the window that its attempts keep out of, a Window's text; "" for none.
	Quiet string
	// Suppressed is why nothing may be sent to its address any more; "" where it may. A claim fills it in.
	Suppressed string
	// Ladder is the fallback that it is a step of, named by its first delivery; zero for none. Step is its
	// place there, from 0.
	Ladder ID
	Step   int
	// PassedAt is when it was sent to where nobody is, and the next channel went; zero: it was not.
	PassedAt time.Time
}

// Policy is a route's way of trying again.
type Policy struct {
	MaxAttempts int           // attempts burnt before a delivery fails
	MaxUnknown  int           // unknown outcomes accepted before it fails (UnknownPolicy retry)
	Min, Max    time.Duration // back-off: Min x 2^(n-1), at most Max, +-20 % jitter
	MaxAfter    time.Duration // the longest wait a service may ask for
}

// DefaultPolicy is the policy of a route that says nothing of its own.
var DefaultPolicy = Policy{MaxAttempts: 20, MaxUnknown: 3, Min: time.Second, Max: 10 * time.Minute, MaxAfter: time.Hour}

// Backoff is the wait after the n-th attempt (n from 1), with jitter in [0,1) spreading it over
// +-20 %. It never overflows, however large n is.
func (p Policy) Backoff(n int, jitter float64) time.Duration {
	d := min(p.Min, p.Max)
	for i := 1; i < n && d > 0 && d < p.Max; i++ {
		d += min(d, p.Max-d) // doubled, at most Max
	}
	spread := float64(d) * (0.8 + 0.4*jitter)
	if spread >= math.MaxInt64 {
		return math.MaxInt64
	}
	return time.Duration(spread)
}

// wait is how long to hold a message: what the service asked for, within bounds, or the back-off,
// whichever is longer.
func (p Policy) wait(after time.Duration, n int, jitter float64) time.Duration {
	after = min(max(after, 0), p.MaxAfter)
	return max(after, p.Backoff(n, jitter))
}

// Verdict is what follows from one attempt.
type Verdict struct {
	Delivery Delivery  // as it is to be stored
	Held     bool      // still pending, to be tried at DueAt
	DueAt    time.Time // when Held
	// Gone, if not nil, is the endpoint to drop or replace.
	Gone *GoneEndpoint
}

// Codes of Carillon's own, where a delivery ends or waits by our decision and not by a service's word.
const (
	CodeExpired     = "expired"
	CodeUnknown     = "outcome_unknown"
	CodeCircuitOpen = "circuit_open"
	CodeRate        = "rate_limited"
	CodePaused      = "paused"
	CodeStopped     = "worker_stopped"
	CodeNoRoute     = "no_route"
	CodeQuiet       = "quiet_hours"
	CodeSuppressed  = "suppressed"
	CodeStoreAway   = "store_unavailable" // what is to be sent could not be read
	CodeNoContent   = "no_content"        // there is nothing to send any more
)

// WaitingCodes are those that say why a delivery waits, by our decision. One that is cancelled meanwhile ends without:
// it did not end for that.
var WaitingCodes = []string{CodeCircuitOpen, CodeRate, CodePaused, CodeStopped, CodeNoRoute, CodeQuiet, CodeStoreAway, CodeNoContent}

// Apply says what follows for d from a provider's answer at a time. It is the table of
// outcomes, and pure: jitter is in [0,1).
func (d Delivery) Apply(r providers.Result, p Policy, at time.Time, jitter float64) Verdict {
	d.Code, d.Reason, d.UpdatedAt = r.Code, r.Reason, at
	if r.ProviderID != "" && !strings.EqualFold(r.ProviderID, d.ID.String()) {
		d.ProviderID = r.ProviderID
	}
	v := Verdict{}
	switch r.Outcome {
	case providers.Accepted, providers.Absent:
		d.State = Sent
		d.Attempts++
		if r.Outcome == providers.Absent {
			if d.Code == "" {
				d.Code = "absent"
			}
			if !d.Ladder.IsZero() {
				d.PassedAt = at
			}
		}
		if r.NewAddress != "" && r.NewAddress != d.Address {
			v.Gone = &GoneEndpoint{App: d.App, Kind: d.Kind, Address: d.Address, NewAddress: r.NewAddress}
		}
	case providers.Rejected:
		d.State = Failed
		d.Attempts++
	case providers.Gone:
		d.State = Failed
		d.Attempts++
		v.Gone = &GoneEndpoint{App: d.App, Kind: d.Kind, Address: d.Address, Since: r.Since, NewAddress: r.NewAddress, Channel: d.Channel}
	case providers.Deferred:
		d.Attempts++
		if d.Attempts >= p.MaxAttempts {
			d.State = Failed
			break
		}
		v.Held, v.DueAt = true, at.Add(p.wait(r.After, d.Attempts, jitter))
	case providers.Throttled, providers.Denied:
		v.Held, v.DueAt = true, at.Add(p.wait(r.After, 1, jitter))
	default: // Unknown, and whatever a newer peer may say
		d.Unknowns++
		if d.Code == "" {
			d.Code = CodeUnknown
		}
		if d.Unknowns > d.MaxUnknown {
			d.State = Failed
			break
		}
		v.Held, v.DueAt = true, at.Add(p.wait(r.After, d.Unknowns, jitter))
	}
	if v.Held && !v.DueAt.Before(d.ExpiresAt) {
		// The next try would come too late: say so now rather than hold it for nothing.
		d.State, v.Held = Expired, false
	}
	v.Delivery = d
	return v
}

// Expire says that d ran out of time before it could be sent.
func (d Delivery) Expire(at time.Time) Verdict {
	d.State, d.UpdatedAt = Expired, at
	if d.Code == "" {
		d.Code = CodeExpired
	}
	return Verdict{Delivery: d}
}

// Fail says that d cannot be sent, by a code of our own, without an attempt.
func (d Delivery) Fail(code string, at time.Time) Verdict {
	d.State, d.UpdatedAt, d.Code, d.Reason = Failed, at, code, ""
	return Verdict{Delivery: d}
}

// Hold keeps d for later without an attempt: the gate refused it, or its route is paused.
func (d Delivery) Hold(code string, until, at time.Time) Verdict {
	if !until.Before(d.ExpiresAt) {
		return d.Expire(at)
	}
	d.Code, d.Reason, d.UpdatedAt = code, "", at // a service's reason is not ours
	return Verdict{Delivery: d, Held: true, DueAt: until}
}

// Message is what a provider gets of d.
func (d *Delivery) Message(c *Content, lane Lane) providers.Message {
	return providers.Message{
		ID: d.ID.String(), App: d.App, Address: d.Address, Name: d.Name,
		Title: c.Title, Body: c.Body, URL: c.URL, Data: c.Data, Content: c.Block, Category: c.Category,
		Priority: lane, CollapseKey: c.CollapseKey,
		CreatedAt: d.CreatedAt, ExpiresAt: d.ExpiresAt, Attempt: d.Attempts + d.Unknowns + 1,
	}
}

// OnReceipt says whether a receipt's event changes the state of a delivery with so many unknown attempts, and
// to what: sent to delivered or failed; pending to delivered after an unknown attempt, which arrived after
// all and need not be made again. Nothing else.
func (s State) OnReceipt(e providers.Event, unknowns int) (State, bool) {
	if s != Sent && (s != Pending || unknowns == 0) {
		return s, false
	}
	switch e {
	case providers.EventDelivered, providers.EventSeen, providers.EventRead, providers.EventClicked, providers.EventArchived:
		return Delivered, true
	case providers.EventFailed, providers.EventBounced:
		if s == Sent { // a pending one's next attempt may do better
			return Failed, true
		}
	}
	return s, false
}
