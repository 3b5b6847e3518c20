package intake

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// Request is what is asked for, as API.md's POST /v1/notifications says it. A campaign keeps it as JSON: a
// json.RawMessage in it has to be omitted where it is empty, or comes back as null.
type Request struct {
	To       []Target
	Template string
	Version  int             // of the template; 0: the latest
	Data     json.RawMessage `json:",omitempty"`
	Locale   string
	Content  *Content // instead of Template
	Channels []string // nil: all that the content covers
	Mode     string   // "": core.ModeAll
	// FallbackAfter is how long a channel has until the next one goes; 0: core.DefaultFallbackAfter. Of
	// core.ModeFallback only, whose channels go in the order of Channels, or core.FallbackOrder.
	FallbackAfter time.Duration
	Priority      core.Lane
	SendAt        time.Time     // zero: now
	Delay         time.Duration // 0: none; not beside SendAt
	TTL           time.Duration // 0: core.DefaultTTL
	ExpiresAt     time.Time     `json:",omitzero"` // instead of TTL, of what is resolved later
	Unknown       core.UnknownPolicy
	CollapseKey   string
	Category      string
	Metadata      json.RawMessage `json:",omitempty"`
}

// Target is one entry of `to`: a stored recipient, a topic, or an address of a kind.
type Target struct {
	Recipient string
	Topic     string // its recipients; resolved after the request is taken
	Kind      string
	Address   string
	Route     string          // one of several routes of that kind, "" for the first usable one
	Data      json.RawMessage `json:",omitempty"` // laid over the request's for this entry
	// Pointer is the JSON pointer of the address below the entry, for faults: "/email", "/address".
	Pointer string
}

// Content is inline content: used as it is, not as a template.
type Content struct {
	Title, Body, URL string
	Data             json.RawMessage            `json:",omitempty"`
	Channels         map[string]json.RawMessage // a block under a channel's name
}

// Key is an idempotency key and what was asked under it. The zero value is no key.
type Key struct {
	Value string
	Hash  [32]byte
}

// Accepted is the answer to a request that was taken.
type Accepted struct {
	ID         core.ID     `json:"id"`
	Status     core.Status `json:"status"`
	Deliveries int         `json:"deliveries"`
	Skipped    []core.Skip `json:"skipped,omitempty"` // the first core.MaxSkipShown
	CreatedAt  time.Time   `json:"created_at"`
	// Replayed says that this is the stored answer to an earlier request with the same key.
	Replayed bool `json:"-"`
}

// Decision is what Preview says of one recipient and channel.
type Decision struct {
	To        int       `json:"to"`
	Recipient string    `json:"recipient,omitempty"`
	Channel   string    `json:"channel,omitempty"`
	Kind      string    `json:"kind,omitempty"`
	Route     string    `json:"route,omitempty"`
	Address   string    `json:"address,omitempty"`  // to be masked by whoever shows it
	Locale    string    `json:"locale,omitempty"`   // of the template that was used
	Decision  string    `json:"decision"`           // one of the Decision… constants
	Reason    string    `json:"reason,omitempty"`   // why it is held or skipped
	HeldTill  time.Time `json:"held_till,omitzero"` // when it goes, if nothing comes in between; zero: at the notification's time
	Content   int       `json:"content"`            // index into Preview.Contents; -1 when skipped
}

// What is decided of a recipient and channel.
const (
	DecisionDeliver = "deliver" // it goes at the notification's time
	DecisionHold    = "hold"    // it goes later: the recipient's quiet hours
	DecisionWait    = "wait"    // it goes if the channel before does not do: a fallback
	DecisionSkip    = "skip"
	DecisionResolve = "resolve" // a topic: its recipients are decided of after the request is taken
)

// Preview is what Accept would do.
type Preview struct {
	Template  string
	SendAt    time.Time
	ExpiresAt time.Time
	Decisions []Decision
	Contents  []core.Content
}

// Fault is one thing wrong with a request.
type Fault struct {
	Pointer string `json:"pointer"` // RFC 6901, into the request's body
	Code    string `json:"code"`
	Detail  string `json:"detail"`
}

// Invalid is the error of a request that cannot be taken: every fault found, not the first.
type Invalid struct{ Faults []Fault }

// Error lists the faults.
func (e *Invalid) Error() string {
	parts := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		parts[i] = f.Pointer + ": " + f.Detail
	}
	return strings.Join(parts, "; ")
}

// The codes of faults.
const (
	FaultUnknown  = "unknown"   // there is no such channel, kind, route, template
	FaultInvalid  = "invalid"   // not of the form it must have
	FaultConflict = "conflict"  // does not go with another field
	FaultMissing  = "required"  // is needed
	FaultRange    = "range"     // too small, too large, too early, too late
	FaultContent  = "content"   // the content fails its schema, its template or the service's limits
	FaultTooMany  = "too_large" // more than the limit
)

// maxFaults bounds an answer; a thousand bad addresses need not all be listed.
const maxFaults = 100

// faults collects what is wrong, the same once.
type faults struct{ list []Fault }

func (f *faults) add(pointer, code, format string, args ...any) {
	fault := Fault{pointer, code, fmt.Sprintf(format, args...)}
	if len(f.list) < maxFaults && !slices.Contains(f.list, fault) {
		f.list = append(f.list, fault)
	}
}

func (f *faults) err() error {
	if len(f.list) == 0 {
		return nil
	}
	return &Invalid{Faults: f.list}
}
