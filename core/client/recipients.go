package client

import (
	"context"
	"encoding/json"
	"net/http"
	"time"
)

// Recipient is a person or device group with its endpoints.
type Recipient struct {
	ID         string          `json:"-"`
	Attributes json.RawMessage `json:"attributes,omitempty"` // an object, at most 16 KiB as JSON without white space
	Locale     string          `json:"locale,omitempty"`     // BCP 47, at most 64 characters
	Timezone   string          `json:"timezone,omitempty"`   // IANA
	Endpoints  []Endpoint      `json:"endpoints,omitempty"`  // at most 100 in one call
}

// Endpoint is one address of a recipient.
type Endpoint struct {
	Kind       string `json:"kind"`
	Address    string `json:"address"`
	Route      string `json:"route,omitempty"`
	AppVersion string `json:"app_version,omitempty"`
}

// Token is for a recipient's own client.
type Token struct {
	Token     string    `json:"token"`
	ExpiresAt time.Time `json:"expires_at"`
}

func recipientPath(id string) string { return "/v1/recipients/" + segment(id) }

func endpointPath(recipient, kind, address string) string {
	return recipientPath(recipient) + "/endpoints/" + segment(kind) + "/" + segment(address)
}

// PutRecipient creates or replaces a recipient.
func (c *Client) PutRecipient(ctx context.Context, r *Recipient) error {
	_, err := c.do(ctx, ask{method: http.MethodPut, path: recipientPath(r.ID), body: r})
	return err
}

// Recipient reads a recipient.
func (c *Client) Recipient(ctx context.Context, id string) (*Recipient, error) {
	out := &Recipient{ID: id}
	if _, err := c.do(ctx, ask{method: http.MethodGet, path: recipientPath(id), answer: out}); err != nil {
		return nil, err
	}
	return out, nil
}

// DeleteRecipient erases a recipient.
func (c *Client) DeleteRecipient(ctx context.Context, id string) error {
	_, err := c.do(ctx, ask{method: http.MethodDelete, path: recipientPath(id)})
	return err
}

// PutEndpoint adds an endpoint to a recipient or renews it; it creates the recipient if needed.
func (c *Client) PutEndpoint(ctx context.Context, recipient string, e Endpoint) error {
	options := struct {
		Route      string `json:"route,omitempty"`
		AppVersion string `json:"app_version,omitempty"`
	}{e.Route, e.AppVersion}
	_, err := c.do(ctx, ask{method: http.MethodPut, path: endpointPath(recipient, e.Kind, e.Address), body: options})
	return err
}

// DeleteEndpoint drops an endpoint of a recipient.
func (c *Client) DeleteEndpoint(ctx context.Context, recipient, kind, address string) error {
	_, err := c.do(ctx, ask{method: http.MethodDelete, path: endpointPath(recipient, kind, address)})
	return err
}

// MintToken makes a token for a recipient's own client.
func (c *Client) MintToken(ctx context.Context, recipient string) (*Token, error) {
	out := &Token{}
	if _, err := c.do(ctx, ask{method: http.MethodPost, path: recipientPath(recipient) + "/token", answer: out}); err != nil {
		return nil, err
	}
	return out, nil
}

// Preferences say by category and channel what a recipient wants; "*" stands for every category, or every
// channel.
type Preferences map[string]map[string]bool

// Preferences reads what a recipient chose.
func (c *Client) Preferences(ctx context.Context, recipient string) (Preferences, error) {
	var out Preferences
	_, err := c.do(ctx, ask{method: http.MethodGet, path: recipientPath(recipient) + "/preferences", answer: &out})
	return out, err
}

// PutPreferences replaces what a recipient chose; it creates the recipient if needed.
func (c *Client) PutPreferences(ctx context.Context, recipient string, p Preferences) error {
	if p == nil {
		p = Preferences{}
	}
	_, err := c.do(ctx, ask{method: http.MethodPut, path: recipientPath(recipient) + "/preferences", body: p})
	return err
}
