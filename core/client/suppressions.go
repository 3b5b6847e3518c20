package client

import (
	"context"
	"net/http"
	"net/url"
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
	return "/v1/suppressions/" + segment(kind) + "/" + segment(address)
}

// Suppression tells why an address is suppressed; IsNotFound(err) if it is not.
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

// Suppressions lists what is suppressed, without the addresses, and the cursor of the next page, "" after the last.
func (c *Client) Suppressions(ctx context.Context, p Page) ([]Suppression, string, error) {
	var out list[Suppression]
	_, err := c.do(ctx, ask{method: http.MethodGet, path: "/v1/suppressions" + p.query(url.Values{}), answer: &out})
	return out.Data, out.Next, err
}
