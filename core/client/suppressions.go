package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Suppression says that nothing is sent to an address any more.
type Suppression struct {
	Kind      string    `json:"kind"`
	Channel   string    `json:"channel"`
	Recipient string    `json:"recipient"` // whom it was sent to as it bounced; "" for an address that a request named
	Code      string    `json:"code"`      // the service's own word
	Since     time.Time `json:"since"`
}

func suppressionPath(kind, address string) string {
	return "/v1/suppressions/" + url.PathEscape(kind) + "/" + url.PathEscape(address)
}

// Suppression tells why an address is suppressed; an *Error with status 404 if it is not.
func (c *Client) Suppression(ctx context.Context, kind, address string) (s *Suppression, err error) {
	s = &Suppression{}
	if _, err = c.do(ctx, ask{method: http.MethodGet, path: suppressionPath(kind, address), answer: s}); err != nil {
		return nil, err
	}
	return s, nil
}

// LiftSuppression lets an address be sent to again.
func (c *Client) LiftSuppression(ctx context.Context, kind, address string) error {
	_, err := c.do(ctx, ask{method: http.MethodDelete, path: suppressionPath(kind, address)})
	return err
}

// Suppressions lists what is suppressed, without the addresses: up to limit (0: the server's default) after a
// cursor ("" at the beginning). next is "" at the end.
func (c *Client) Suppressions(ctx context.Context, cursor string, limit int) (out []Suppression, next string, err error) {
	q := url.Values{}
	if cursor != "" {
		q.Set("cursor", cursor)
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	var list struct {
		Data []Suppression `json:"data"`
		Next string        `json:"next_cursor"`
	}
	path := "/v1/suppressions"
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	_, err = c.do(ctx, ask{method: http.MethodGet, path: path, answer: &list})
	return list.Data, list.Next, err
}
