package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// Forms of an import.
const (
	NDJSON = "application/x-ndjson"
	CSV    = "text/csv"
)

// ImportEvent is one line of the answer to an import: a bad line with its problem, how far it is, or its end.
type ImportEvent struct {
	Line     int             `json:"line"`
	Problem  *Problem        `json:"problem"`  // nil unless the line is bad, or the import ends here
	Progress *ImportProgress `json:"progress"` // nil for a bad line
	Done     bool            `json:"done"`
}

// ImportProgress says how far an import is.
type ImportProgress struct {
	Created  int     `json:"created"`
	Replaced int     `json:"replaced"`
	Bad      int     `json:"bad"`
	RatePerS float64 `json:"rate_per_s"`
}

// ImportRecipients streams recipients in a form, NDJSON or CSV, and hands each event to each while it still
// sends. It returns the last figures; the error is an import's that did not come to its end, what it kept
// until then is kept. It is not tried again. The client's HTTP timeout does not count here, ctx does. An error
// of each ends the import and is returned.
func (c *Client) ImportRecipients(ctx context.Context, form string, recipients io.Reader, each func(ImportEvent) error) (ImportProgress, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var last ImportProgress
	r, err := c.request(ctx, http.MethodPost, "/v1/recipients/import", recipients)
	if err != nil {
		return last, err
	}
	r.Header.Set("Content-Type", form)
	endless := *c.http
	endless.Timeout = 0
	a, err := endless.Do(r)
	if err != nil {
		return last, fmt.Errorf("send the import: %w", err)
	}
	defer a.Body.Close()
	if a.StatusCode >= 300 {
		return last, problem(a)
	}
	events := json.NewDecoder(bufio.NewReader(a.Body))
	for {
		var e ImportEvent
		if err := events.Decode(&e); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return last, fmt.Errorf("read the import's events: %w", err)
		}
		if e.Progress != nil {
			last = *e.Progress
		}
		if each != nil {
			if err := each(e); err != nil {
				return last, err
			}
		}
		switch {
		case e.Done:
			return last, nil
		case e.Problem != nil && e.Progress != nil:
			return last, e.Problem
		}
	}
}

// ExportRecipient writes all that is kept of a recipient to w, as the JSON that the server answers with.
func (c *Client) ExportRecipient(ctx context.Context, id string, w io.Writer) error {
	r, err := c.request(ctx, http.MethodGet, recipientPath(id)+"/export", nil)
	if err != nil {
		return err
	}
	a, err := c.http.Do(r)
	if err != nil {
		return fmt.Errorf("export a recipient: %w", err)
	}
	defer a.Body.Close()
	if a.StatusCode >= 300 {
		return problem(a)
	}
	if _, err := io.Copy(w, a.Body); err != nil {
		return fmt.Errorf("export a recipient: %w", err)
	}
	return nil
}
