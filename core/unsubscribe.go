package core

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
)

// Unsubscription is what a one-click unsubscribe link turns off: a category on a channel, for a recipient.
type Unsubscription struct {
	App, Recipient, Category, Channel string
}

// unsubscribeMAC is how much of the HMAC a link carries, in bytes; RFC 2104 wants half of it at least.
const unsubscribeMAC = 16

// maxUnsubscribeURL is the longest URL of a link, in bytes: a line of a mail's header takes 998.
const maxUnsubscribeURL = 900

// ErrUnsubscribe says that a link was not made by us.
var ErrUnsubscribe = errors.New("this unsubscribe link is not valid")

// Unsubscriber makes and reads signed links by which a recipient unsubscribes without logging in (RFC 8058).
// A link does not expire: laws want it to work for a month at least, and people keep mail for years.
type Unsubscriber struct {
	key  []byte
	base string
}

// NewUnsubscriber returns an Unsubscriber whose links begin with base, a URL without a slash at its end,
// and are signed with a key of 32 bytes or more.
func NewUnsubscriber(key []byte, base string) *Unsubscriber {
	return &Unsubscriber{key: key, base: base}
}

// Link returns the link of an unsubscription; "" where there is nothing to turn off, or its URL were too long
// for a mail's header.
func (u *Unsubscriber) Link(s Unsubscription) string {
	if u == nil || s.Recipient == "" || s.Category == "" || s.Channel == "" {
		return ""
	}
	text, err := json.Marshal([4]string{s.App, s.Recipient, s.Category, s.Channel})
	if err != nil {
		return "" // four texts
	}
	url := u.base + "/unsubscribe/" + base64.RawURLEncoding.EncodeToString(append(u.sum(text), text...))
	if len(url) > maxUnsubscribeURL {
		return ""
	}
	return url
}

// Read returns what the token of a link, its last part, turns off. The error is ErrUnsubscribe.
func (u *Unsubscriber) Read(token string) (Unsubscription, error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || strings.ContainsAny(token, "\r\n") || // which the decoder passes over
		len(raw) <= unsubscribeMAC || !hmac.Equal(raw[:unsubscribeMAC], u.sum(raw[unsubscribeMAC:])) {
		return Unsubscription{}, ErrUnsubscribe
	}
	var parts [4]string
	if json.Unmarshal(raw[unsubscribeMAC:], &parts) != nil {
		return Unsubscription{}, ErrUnsubscribe
	}
	return Unsubscription{App: parts[0], Recipient: parts[1], Category: parts[2], Channel: parts[3]}, nil
}

func (u *Unsubscriber) sum(text []byte) []byte {
	h := hmac.New(sha256.New, u.key)
	h.Write([]byte("carillon unsubscribe 1\x00")) // the key may sign other things one day
	h.Write(text)
	return h.Sum(nil)[:unsubscribeMAC]
}
