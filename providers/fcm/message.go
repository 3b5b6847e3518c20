package fcm

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"firebase.google.com/go/v4/messaging"

	"github.com/carillon-notify/carillon/providers"
)

const (
	// maxPayload is what FCM takes of one message to a token, keys and values together
	// (https://firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode, "Message too big").
	maxPayload = 4096
	// maxTTL is the longest that FCM keeps a message, four weeks (same page, "Invalid TTL").
	maxTTL = 2_419_200 * time.Second
	// maxToken bounds a registration token; those in use are 140 to 250 characters long.
	maxToken = 4096
	// maxCollapseID is Apple's bound on apns-collapse-id, in bytes.
	maxCollapseID = 64
	// deliveryKey is the data key that carries the delivery's id to the application.
	deliveryKey = "delivery_id"
)

// build makes the FCM message of m as it is at now: the words, the data, how long it is worth anything
// and how urgent it is, with the `fcm` block of its content laid over that.
func build(m *providers.Message, now time.Time) (*messaging.Message, error) {
	data, err := dataOf(m)
	if err != nil {
		return nil, err
	}
	out := &messaging.Message{
		Token:   m.Address,
		Data:    data,
		Android: androidOf(m, now),
		Webpush: webpushOf(m, now),
		APNS:    &messaging.APNSConfig{Headers: apnsHeaders(m)},
	}
	if shown(m) {
		out.Notification = &messaging.Notification{Title: m.Title, Body: m.Body}
	}
	block, err := blockOf(m.Content)
	if err != nil || block == nil {
		return out, err
	}
	return overlay(out, block)
}

// shown says whether the device shows something on its own; a message without words is for the app.
func shown(m *providers.Message) bool { return m.Title != "" || m.Body != "" }

// dataOf gives the strings that the application receives. FCM's data is a map of strings: a string goes
// as it is, anything else as its JSON text. The delivery's id is ours to say.
func dataOf(m *providers.Message) (map[string]string, error) {
	out := map[string]string{}
	if len(m.Data) > 0 {
		var raw map[string]json.RawMessage
		if err := json.Unmarshal(m.Data, &raw); err != nil {
			return nil, errors.New("data must be a JSON object")
		}
		for k, v := range raw {
			s, err := text(v)
			if err != nil {
				return nil, fmt.Errorf("data: %w", err)
			}
			out[k] = s
		}
	}
	if _, taken := out["url"]; !taken && m.URL != "" {
		out["url"] = m.URL
	}
	out[deliveryKey] = m.ID
	return out, nil
}

// text is a JSON value as FCM can carry it.
func text(v json.RawMessage) (string, error) {
	if len(v) > 0 && v[0] == '"' {
		var s string
		err := json.Unmarshal(v, &s)
		return s, err
	}
	var b bytes.Buffer
	if err := json.Compact(&b, v); err != nil {
		return "", err
	}
	return b.String(), nil
}

// ttl is the time left, in the whole seconds that every platform's header wants. A message without an
// end has none; one whose time is up gets 0, "now or never".
func ttl(m *providers.Message, now time.Time) (time.Duration, bool) {
	if m.ExpiresAt.IsZero() {
		return 0, false
	}
	return min(max(m.ExpiresAt.Sub(now), 0), maxTTL).Truncate(time.Second), true
}

func androidOf(m *providers.Message, now time.Time) *messaging.AndroidConfig {
	a := &messaging.AndroidConfig{CollapseKey: m.CollapseKey, Priority: "normal"}
	if m.Priority == providers.Critical {
		a.Priority = "high"
	}
	if left, ok := ttl(m, now); ok {
		a.TTL = &left
	}
	if m.CollapseKey != "" && shown(m) {
		// The collapse key replaces what waits at Google, the tag what the device already shows.
		a.Notification = &messaging.AndroidNotification{Tag: m.CollapseKey}
	}
	return a
}

// webpushOf speaks RFC 8030: TTL (5.2) in seconds, Urgency (5.3), Topic (5.4).
func webpushOf(m *providers.Message, now time.Time) *messaging.WebpushConfig {
	h := map[string]string{"Urgency": "normal"}
	switch m.Priority {
	case providers.Critical:
		h["Urgency"] = "high"
	case providers.Bulk:
		h["Urgency"] = "low"
	case providers.Normal:
	}
	if left, ok := ttl(m, now); ok {
		h["TTL"] = strconv.FormatInt(int64(left/time.Second), 10)
	}
	w := &messaging.WebpushConfig{Headers: h}
	if m.CollapseKey != "" {
		h["Topic"] = topic(m.CollapseKey)
		if shown(m) {
			w.Notification = &messaging.WebpushNotification{Tag: m.CollapseKey}
		}
	}
	// FCM opens https links only.
	if u, err := url.Parse(m.URL); err == nil && u.Scheme == "https" && u.Host != "" {
		w.FCMOptions = &messaging.WebpushFCMOptions{Link: m.URL}
	}
	return w
}

// topic makes a push topic of a collapse key: at most 32 characters of base64url (RFC 8030, 5.4).
func topic(key string) string {
	sum := sha256.Sum256([]byte(key))
	return base64.RawURLEncoding.EncodeToString(sum[:24])
}

// apnsHeaders are Apple's own, for the iOS devices behind FCM. The expiration is a moment there and not
// a length of time.
func apnsHeaders(m *providers.Message) map[string]string {
	h := map[string]string{}
	if !m.ExpiresAt.IsZero() {
		h["apns-expiration"] = strconv.FormatInt(max(m.ExpiresAt.Unix(), 0), 10)
	}
	if shown(m) { // Apple refuses 10 for a push that shows nothing
		h["apns-priority"] = "10"
		if m.Priority == providers.Bulk {
			h["apns-priority"] = "5"
		}
	}
	if m.CollapseKey != "" {
		h["apns-collapse-id"] = collapseID(m.CollapseKey)
	}
	return h
}

func collapseID(key string) string {
	if len(key) <= maxCollapseID {
		return key
	}
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

// reserved says whether FCM keeps a data key to itself: "from", "message_type" and what begins with
// "google." or "gcm.notification."
// (https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages, field data), and "gcm"
// (https://firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode, "Invalid data key").
func reserved(key string) bool {
	return key == "from" || key == "message_type" || key == "gcm" ||
		strings.HasPrefix(key, "google.") || strings.HasPrefix(key, "gcm.notification.")
}
