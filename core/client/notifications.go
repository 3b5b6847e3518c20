package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Notification is what to send to whom: the body of POST /v1/notifications.
type Notification struct {
	To       []Target `json:"to"`
	Template string   `json:"template,omitempty"` // instead of Content
	Version  int      `json:"version,omitempty"`
	Data     any      `json:"data,omitempty"` // the template's, an object
	Locale   string   `json:"locale,omitempty"`
	Content  Content  `json:"content,omitempty"`
	Channels []string `json:"channels,omitempty"`
	Mode     string   `json:"mode,omitempty"` // all, fallback
	// FallbackAfter is how long a channel of a fallback has until the next one goes, "30s".
	FallbackAfter string          `json:"fallback_after,omitempty"`
	Priority      string          `json:"priority,omitempty"` // critical, normal, bulk
	SendAt        *time.Time      `json:"send_at,omitempty"`
	Delay         string          `json:"delay,omitempty"` // "10m"
	TTL           string          `json:"ttl,omitempty"`
	Unknown       string          `json:"unknown,omitempty"` // retry, fail
	CollapseKey   string          `json:"collapse_key,omitempty"`
	Category      string          `json:"category,omitempty"`
	Metadata      json.RawMessage `json:"metadata,omitempty"`
}

// Target is one entry of To: exactly one of a recipient, a short form, or Kind with Address.
type Target struct {
	Recipient string `json:"recipient,omitempty"`
	Topic     string `json:"topic,omitempty"`
	Email     string `json:"email,omitempty"`
	APNs      string `json:"apns,omitempty"`
	FCM       string `json:"fcm,omitempty"`
	WebSocket string `json:"websocket,omitempty"`
	Kind      string `json:"kind,omitempty"`
	Address   string `json:"address,omitempty"`
	Route     string `json:"route,omitempty"`
	Data      any    `json:"data,omitempty"`
}

// Content is inline content: title, body, url, data, and blocks under the channels' names.
type Content map[string]any

// Accepted is the answer to a notification that was taken and kept.
type Accepted struct {
	ID         string    `json:"id"`
	Status     string    `json:"status"`
	Deliveries int       `json:"deliveries"`
	Skipped    []Skip    `json:"skipped"`
	CreatedAt  time.Time `json:"created_at"`
	// Replayed says that this is the answer to an earlier request with the same key.
	Replayed bool `json:"-"`
}

// Skip says whom a notification does not reach, and why.
type Skip struct {
	To        int    `json:"to"`
	Recipient string `json:"recipient"`
	Channel   string `json:"channel"`
	Reason    string `json:"reason"`
}

// Status is a notification as it stands.
type Status struct {
	ID        string          `json:"id"`
	Status    string          `json:"status"`
	CreatedAt time.Time       `json:"created_at"`
	SendAt    time.Time       `json:"send_at"`
	ExpiresAt time.Time       `json:"expires_at"`
	Priority  string          `json:"priority"`
	Template  string          `json:"template"`
	Counts    Counts          `json:"counts"`
	Metadata  json.RawMessage `json:"metadata"`
	Skipped   []Skip          `json:"skipped"`
}

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

// Delivery is one notification on its way to one endpoint.
type Delivery struct {
	ID              string    `json:"id"`
	Recipient       string    `json:"recipient"`
	Channel         string    `json:"channel"`
	Kind            string    `json:"kind"`
	Route           string    `json:"route"`
	Address         string    `json:"address"` // masked
	State           string    `json:"state"`
	Reason          string    `json:"reason"`
	Code            string    `json:"code"`
	Attempts        int       `json:"attempts"`
	UnknownAttempts int       `json:"unknown_attempts"`
	ProviderID      string    `json:"provider_id"`
	CreatedAt       time.Time `json:"created_at"`
	UpdatedAt       time.Time `json:"updated_at"`
}

// Step is one entry of a timeline.
type Step struct {
	At       time.Time  `json:"at"`
	Step     string     `json:"step"`
	Delivery string     `json:"delivery"`
	Channel  string     `json:"channel"`
	Route    string     `json:"route"`
	Worker   string     `json:"worker"`
	Attempt  int        `json:"attempt"`
	Outcome  string     `json:"outcome"`
	State    string     `json:"state"`
	Code     string     `json:"code"`
	Reason   string     `json:"reason"`
	HeldTill *time.Time `json:"held_till"`
}

// Page is a place in a list: up to Limit entries (0: the server's default, at most 200) after Cursor.
type Page struct {
	Cursor string
	Limit  int
}

func (p Page) query(v url.Values) string {
	if p.Cursor != "" {
		v.Set("cursor", p.Cursor)
	}
	if p.Limit > 0 {
		v.Set("limit", strconv.Itoa(p.Limit))
	}
	if len(v) == 0 {
		return ""
	}
	return "?" + v.Encode()
}

// list is a page of anything.
type list[T any] struct {
	Data []T    `json:"data"`
	Next string `json:"next_cursor"`
}

// Send has a notification taken. It goes under the idempotency key given, or a new one if that is "",
// so that however often it has to be tried it is taken once. The error is a *Problem if the API refused.
func (c *Client) Send(ctx context.Context, n *Notification, key string) (*Accepted, error) {
	if key == "" {
		key = NewKey()
	}
	out := &Accepted{}
	header, err := c.do(ctx, ask{method: http.MethodPost, path: "/v1/notifications", key: key, body: n, answer: out})
	if err != nil {
		return nil, err
	}
	out.Replayed = header.Get("Idempotency-Replayed") == "true"
	return out, nil
}

// Notification reads a notification as it stands.
func (c *Client) Notification(ctx context.Context, id string) (*Status, error) {
	out := &Status{}
	_, err := c.do(ctx, ask{method: http.MethodGet, path: "/v1/notifications/" + segment(id), answer: out})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Deliveries lists a notification's deliveries, and the cursor of the next page, "" after the last.
func (c *Client) Deliveries(ctx context.Context, id string, p Page) ([]Delivery, string, error) {
	var out list[Delivery]
	_, err := c.do(ctx, ask{method: http.MethodGet, path: "/v1/notifications/" + segment(id) + "/deliveries" + p.query(url.Values{}), answer: &out})
	return out.Data, out.Next, err
}

// Timeline lists every step of a notification, in order.
func (c *Client) Timeline(ctx context.Context, id string) ([]Step, error) {
	var out list[Step]
	_, err := c.do(ctx, ask{method: http.MethodGet, path: "/v1/notifications/" + segment(id) + "/timeline", answer: &out})
	return out.Data, err
}

// Cancel cancels what is still pending of a notification, and returns how many deliveries that was.
func (c *Client) Cancel(ctx context.Context, id string) (int, error) {
	var out struct {
		Cancelled int `json:"cancelled"`
	}
	_, err := c.do(ctx, ask{method: http.MethodPost, path: "/v1/notifications/" + segment(id) + "/cancel", answer: &out})
	return out.Cancelled, err
}
