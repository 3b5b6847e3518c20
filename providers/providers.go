// Package providers is the contract between Carillon and whatever delivers its messages: one Kind
// describes a provider as plain data and opens it, one Provider sends batches and reports what became
// of each message. The package imports the standard library alone, so that a third-party provider
// drags in nothing of the server.
//
// An answer is data, an error is no answer: whatever a service said about a message is a Result with
// an Outcome; an error from Deliver speaks only for the messages nobody answered for.
package providers

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"
)

// Kind describes one sort of provider ("apns", "email", a plugin's own). It is plain data but for its
// two functions, and reads the same from a package and from a process.
type Kind struct {
	// Name is the kind's name, as written in a route's `kind` and an endpoint's `kind`: lower-case
	// letters, digits, '-' and '_'.
	Name string
	// Channel is the channel that the kind serves ("push", "email", "in_app", "sms"). Several kinds
	// may serve one channel; they are not alternatives to each other.
	Channel string
	// Doc says in one sentence what the kind delivers to, for the console and the documentation.
	Doc string
	// MaxBatch bounds the messages of one Deliver call, 1 to 100.
	MaxBatch int
	// Settings lists what Open understands; anything else is refused before Open is called.
	Settings []Setting
	// Content is the JSON Schema (draft 2020-12, an object) of the kind's part of the channel's own
	// content block; nil means that title, body, url and data are all there is. Where several kinds
	// serve one channel, the block's properties are the union of theirs.
	Content []byte
	// Address is an RE2 pattern that a whole address must match, checked when one is given to us.
	Address string
	// Secret says that an address lets its holder be reached or impersonated (a push token), and is
	// masked to a few characters wherever it is shown; an e-mail address is masked by its local part.
	Secret bool
	// Check looks at a rendered message at accept, before it is promised to anybody: is it within the
	// service's limits, can it be built? It must be fast, do no I/O and never change the message. The
	// error is shown to the API's caller: it names the limit and the remedy. It wraps ErrAddress when the
	// address is at fault and not the content. A message without an ID asks about its address alone: what
	// is said of its content is not looked at, and need not be found out. Nil checks nothing.
	Check func(m *Message) error
	// Open makes a provider out of its settings: one JSON object whose members are named by Settings
	// ("pool.max" stands for {"pool":{"max":...}}). Defaults are not filled in: Open applies its own.
	// Open may read files and must not wait for the service to be reachable: a service that is down is
	// a matter of Health and of Deferred answers.
	Open func(ctx context.Context, settings []byte) (Provider, error)
}

// ErrAddress is wrapped by an error of Kind.Check that speaks of the message's address: content and
// other addresses may be good.
var ErrAddress = errors.New("bad address")

// Setting documents one member of a provider's settings.
type Setting struct {
	Name     string      // "key_file", "pool.max"
	Type     SettingType // what its value looks like
	Default  string      // as a person would write it; "" for none
	Required bool
	Secret   bool     // never shown, logged, or put in an error
	Values   []string // for Choice
	Doc      string   // one sentence, with unit and bounds
}

// SettingType says what the JSON value of a Setting looks like.
type SettingType string

// The types of settings.
const (
	String   SettingType = "string"
	Int      SettingType = "int"
	Bool     SettingType = "bool"
	Duration SettingType = "duration" // a Go duration in a string: "90s"
	Choice   SettingType = "choice"   // one of Values
	File     SettingType = "file"     // a path, relative to the working directory
	List     SettingType = "list"     // an array of strings
)

// Provider delivers messages to one service. It is safe for concurrent use.
type Provider interface {
	// Deliver sends a batch and reports each message that got an answer, once, from any goroutine,
	// never after it returned. A message without a report is Unknown; the error speaks for those
	// alone. Deliver returns soon after ctx ends; what was not yet handed to the service by then is
	// reported as Deferred, what was handed over and not answered is left without a report.
	Deliver(ctx context.Context, batch []Message, report func(Result)) error
	// Health says how the service and its connections are, without asking the service. It is cheap
	// and may be called often.
	Health(ctx context.Context) Health
	// Close lets go of every connection, after what is in flight is answered or ctx ends. Once more does
	// no harm; after it Health shows no connection, and what is delivered is Deferred.
	Close(ctx context.Context) error
}

// Receiver is implemented by a Provider that hears back later: a live client's acknowledgement, an SMS
// delivery receipt, a bounce. Receive runs until ctx ends; a receipt counts once however often it is
// reported. report's error says that the receipt was not kept: the provider should offer it again or,
// where somebody waits for the answer, say so to them. It is called again after it has returned, and never
// twice at a time.
type Receiver interface {
	Receive(ctx context.Context, report func(Receipt) error) error
}

// Server is implemented by a Provider that serves HTTP to clients of its own, such as a gateway of live
// connections. Its handler is mounted at the root of the orchestrator's host for the paths under
// /connection/, whether the provider runs in this process or in its own.
type Server interface {
	Handler() http.Handler
}

// Message is one rendered message on its way to one address.
type Message struct {
	// ID is the delivery's id, a UUID in text. It is the same on every attempt and goes to the service
	// as whatever it lets a sender identify a message by.
	ID string
	// App is the tenant the message belongs to, for a provider whose addresses are only unique within
	// one (websocket).
	App string
	// Address is where it goes: a device token, a mailbox, a recipient's id.
	Address string
	// Name is the recipient's name where known, "" otherwise; only e-mail's To shows it.
	Name string
	// Title, Body and URL are the words and the link; any of them may be empty.
	Title, Body, URL string
	// Data is the application's own JSON object for the receiving client, or nil.
	Data json.RawMessage
	// Content is the channel's own content block, or nil, already checked against Kind.Content.
	Content json.RawMessage
	// Category is the sender's word for the sort of message ("orders"), "" for none.
	Category string
	// Unsubscribe is the recipient's one-click unsubscribe URL (RFC 8058), "" for none.
	Unsubscribe string
	Priority    Priority
	// CollapseKey lets a later message with the same key replace this one where the service can.
	CollapseKey string
	// CreatedAt is when the notification was accepted, ExpiresAt when it is worth nothing any more.
	CreatedAt, ExpiresAt time.Time
	// Attempt counts from 1 and includes attempts whose outcome is unknown.
	Attempt int
	// Test asks the service to check the message and not to deliver it, where it can do that.
	Test bool
}

// Priority is a message's urgency and the name of its lane.
type Priority string

// The priorities.
const (
	Critical Priority = "critical"
	Normal   Priority = "normal"
	Bulk     Priority = "bulk"
)

// Outcome says what became of one message in one attempt. What follows from it is decided by Carillon.
type Outcome uint8

// The outcomes. The zero value is Unknown, so that an outcome nobody set, or one from a newer peer that
// this side does not know, is treated as what it is.
const (
	// Unknown: it may or may not have been taken; nobody can say.
	Unknown Outcome = iota
	// Accepted: the service took it over.
	Accepted
	// Deferred: not taken now, this message may be tried again (after Result.After). Burns an attempt.
	Deferred
	// Throttled: the service asks the sender as a whole to slow down. Burns no attempt.
	Throttled
	// Rejected: this message will never be taken.
	Rejected
	// Gone: the address is no longer valid.
	Gone
	// Absent: nobody is there to receive it now; it was put where they will find it.
	Absent
	// Denied: our credentials or configuration are refused; no message can pass until a person acts.
	Denied
)

var outcomeNames = [...]string{"unknown", "accepted", "deferred", "throttled", "rejected", "gone", "absent", "denied"}

// String returns the outcome's name in lower case; an outcome out of range is "unknown".
func (o Outcome) String() string {
	if int(o) >= len(outcomeNames) {
		return outcomeNames[Unknown]
	}
	return outcomeNames[o]
}

// MarshalText implements encoding.TextMarshaler.
func (o Outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; a name it does not know is Unknown, never an error.
func (o *Outcome) UnmarshalText(b []byte) error {
	*o = Unknown
	for i, name := range outcomeNames {
		if name == string(b) {
			*o = Outcome(i)
		}
	}
	return nil
}

// Result is the answer for one message in one attempt.
type Result struct {
	ID      string // the message's
	Outcome Outcome
	// Code is the service's own word ("BadDeviceToken", "550 5.1.1"), "" where it has none.
	Code string
	// Reason explains it to a person. It holds no secret, address or content.
	Reason string
	// ProviderID is the id the service gave the message, "" where it gives none.
	ProviderID string
	// After is how long to wait at least before the next attempt; 0 leaves it to Carillon.
	After time.Duration
	// Since is, for Gone, when the service learned that the address is not valid; the zero time is
	// unknown. An address registered later than that is kept.
	Since time.Time
	// NewAddress replaces the endpoint's address from now on; "" keeps it.
	NewAddress string
	// Parts is how many units the service counted (SMS segments); 0 where it does not count.
	Parts int
}

// Event is what a Receipt reports.
type Event string

// The events. Failed and Bounced make a delivery failed, the others delivered: who does something with a message
// has it. What was done, Seen to Archived, is an axis of its own beside the state.
const (
	EventDelivered Event = "delivered"
	EventFailed    Event = "failed"
	EventBounced   Event = "bounced"
	EventSeen      Event = "seen"
	EventRead      Event = "read"
	EventClicked   Event = "clicked"
	EventArchived  Event = "archived"
)

// Receipt is what a provider heard about a message after it was sent.
type Receipt struct {
	// ID is the message's id; where the service only knows its own, ProviderID instead.
	ID, ProviderID string
	// Address, if not "", must be the delivery's address for the receipt to count: an acknowledgement
	// that comes from a client proves only who that client is.
	App, Address string
	Event        Event
	Code         string
	At           time.Time // zero: now
}

// Health is how a provider is.
type Health struct {
	Status HealthStatus
	Reason string // for people; "" when all is well; holds no secret or address
	Pool   PoolStats
}

// HealthStatus is a provider's own judgement of itself.
type HealthStatus string

// The health statuses.
const (
	HealthOK       HealthStatus = "ok"
	HealthDegraded HealthStatus = "degraded" // works, but not as it should
	HealthDown     HealthStatus = "down"     // nothing can pass now
)

// PoolStats are the figures of a provider's connections: the first five as they are now, the others
// counted since Open.
type PoolStats struct {
	Max, Open, Idle, InUse, Waiting int
	Opened, Closed, Failed          uint64 // Failed: attempts to open one
	Reused                          uint64 // uses of a connection that was already open
}
