package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"
)

// Template is a version of a stored template, or one from a file.
type Template struct {
	Name      string          `json:"name"`
	Version   int             `json:"version"`    // 0: from a file
	Origin    string          `json:"origin"`     // "stored", "file" (of the server's directory) or "shipped"
	Source    json.RawMessage `json:"source"`     // as it was put
	CreatedAt time.Time       `json:"created_at"` // of a stored one
}

// PutTemplate makes a new version of a template. source is its document, a JSON object. The error is a
// *Problem that lists what is wrong with it.
func (c *Client) PutTemplate(ctx context.Context, name string, source json.RawMessage) (*Template, error) {
	out := &Template{}
	if _, err := c.do(ctx, ask{method: http.MethodPut, path: "/v1/templates/" + segment(name), body: source, answer: out}); err != nil {
		return nil, err
	}
	return out, nil
}

// Template reads the latest version of a template, or the server's file where none is stored.
func (c *Client) Template(ctx context.Context, name string) (*Template, error) {
	out := &Template{}
	if _, err := c.do(ctx, ask{method: http.MethodGet, path: "/v1/templates/" + segment(name), answer: out}); err != nil {
		return nil, err
	}
	return out, nil
}

// Templates lists the latest versions of the stored templates, and the cursor of the next page, "" after the last.
func (c *Client) Templates(ctx context.Context, p Page) ([]Template, string, error) {
	var out list[Template]
	_, err := c.do(ctx, ask{method: http.MethodGet, path: "/v1/templates" + p.query(url.Values{}), answer: &out})
	return out.Data, out.Next, err
}
