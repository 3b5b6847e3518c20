package core

import (
	"regexp"
	"strings"
	"time"
)

// Suppression says that nothing is sent to an address any more: a service reported it dead, or the person
// behind it complained. The address itself is not kept, only a keyed hash of it.
type Suppression struct {
	App       string
	ID        string // the hash, in hexadecimal
	Kind      string
	Channel   string
	Recipient string // the id that it was sent to as it bounced; "" for an address that a request named
	Code      string // the service's own word
	Since     time.Time
}

// AddressOf names an address of an app.
type AddressOf struct{ App, Kind, Address string }

// Normal is the form in which addresses are compared: a mailbox that bounced has not come alive by being
// written in capitals.
func (a AddressOf) Normal() AddressOf {
	a.Address = strings.ToLower(strings.TrimSpace(a.Address))
	return a
}

// Lasting reports whether an address of a channel stays with its person, so that what a service says against it
// is remembered. A device's token is not of that kind: its endpoint is dropped, and the app registers the next.
func Lasting(channel string) bool { return channel != "" && channel != "push" && channel != "in_app" }

// enhanced is an enhanced mail system status code (RFC 3463).
var enhanced = regexp.MustCompile(`\b([245])\.(\d{1,3})\.(\d{1,3})\b`)

// BounceSuppresses reports whether a bounce with a code speaks against the address for ever. A status code of
// RFC 3463 does where it is of the address (5.1.x but the sender's 5.1.7 and 5.1.8, and 5.2.1, a mailbox that is
// disabled): not a full mailbox, nor what is held against the message or its sender. A service's own word, such as
// "complaint", does.
func BounceSuppresses(code string) bool {
	m := enhanced.FindStringSubmatch(code)
	switch {
	case m == nil:
		return !strings.HasPrefix(code, "4")
	case m[1] != "5":
		return false
	case m[2] == "1":
		return m[3] != "7" && m[3] != "8"
	}
	return m[2] == "2" && m[3] == "1"
}

// Suppress says that d is not sent, for its address is suppressed.
func (d Delivery) Suppress(at time.Time) Verdict {
	d.State, d.UpdatedAt, d.Code, d.Reason = Suppressed, at, CodeSuppressed, d.Suppressed
	return Verdict{Delivery: d}
}
