package core

import (
	"encoding/hex"
	"encoding/json"
	"time"
)

// MaxAttributes is how long a recipient's attributes may be, in bytes, as JSON without white space. What reads many people at
// once, for a campaign or a filter, has all of theirs in memory.
const MaxAttributes = 16 << 10

// Recipient is a person or device group as the application knows it. It has an implicit endpoint of
// kind websocket, whose address is its id.
type Recipient struct {
	App        string
	ID         string
	Attributes json.RawMessage // an object, or nil; at most MaxAttributes
	Locale     string          // BCP 47, at most 64 bytes, "" for none
	Timezone   string          // IANA name, "" for none
	Endpoints  []Endpoint
	// Preferences are the recipient's own choice: keeping a recipient does not touch them, see
	// store.PutPreferences.
	Preferences Preferences
	QuietHours  *QuietHours // nil: none
	CreatedAt   time.Time
	UpdatedAt   time.Time
	MovedAt     time.Time // when Timezone last changed, zero for never
}

// Endpoint is one address of a recipient.
type Endpoint struct {
	Kind, Address string
	Route         string // the route it was registered for; "" for the first usable one of its kind
	AppVersion    string
	// RegisteredAt is when it was last given to us. A service's word that it is gone counts only if it
	// is younger than that.
	RegisteredAt time.Time
}

// Import is a recipient as it is imported: Preferences that are nil leave those there are, Topics are added.
type Import struct {
	Recipient
	Topics []string
}

// TopicRecipient is a recipient of a topic.
type TopicRecipient struct {
	Recipient string
	Since     time.Time // when it was put into the topic
}

// GoneEndpoint says that a service reported an address gone.
type GoneEndpoint struct {
	App, Kind, Address string
	Since              time.Time // zero: unknown, drop it whatever its registration
	NewAddress         string    // not "": the address is replaced instead of dropped
	Channel            string    // of a Lasting one the address is suppressed instead of dropped
}

// Principal is who calls the API.
type Principal struct {
	App    string
	Scopes []string // send, read, admin; admin includes the others
}

// APIKey is what is kept of an API key, which is never the key itself.
type APIKey struct {
	Hash [32]byte // its SHA-256
	Principal
	CreatedAt time.Time // when it was first kept
}

// ID names the key to operators: 12 hexadecimal digits, with which nobody can do anything.
func (k APIKey) ID() string { return hex.EncodeToString(k.Hash[:6]) }

// Can reports whether the principal has a scope.
func (p Principal) Can(scope string) bool {
	for _, s := range p.Scopes {
		if s == scope || s == "admin" {
			return true
		}
	}
	return false
}
