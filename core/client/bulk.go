package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"sync/atomic"
)

// BulkAnswer is the answer to one notification of a stream.
type BulkAnswer struct {
	Line     int       `json:"line"` // from 1
	Status   int       `json:"status"`
	Replayed bool      `json:"replayed"`
	Accepted *Accepted `json:"notification"` // nil unless it was taken
	Problem  *Problem  `json:"problem"`      // nil if it was
}

// SendBulk streams notifications and hands each one's answer to each, in their order, while it still
// sends. It is not tried again: send the same notifications under the same key, and those that were
// taken already are answered as then. Where the server ends the stream before its end (a line that is too long, a
// stop) that is an error, and what has no answer was not taken. The client's HTTP timeout does not count here, ctx
// does. An error of each ends the stream and is returned.
func (c *Client) SendBulk(ctx context.Context, notifications iter.Seq[*Notification], key string, each func(BulkAnswer) error) error {
	if key == "" {
		key = NewKey()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, in := io.Pipe()
	defer func() { _ = body.Close() }() // it is a pipe's end: that cannot fail
	r, err := c.request(ctx, http.MethodPost, "/v1/notifications/bulk", body)
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/x-ndjson")
	r.Header.Set("Idempotency-Key", key)
	var all atomic.Int64 // how many there were; -1 as long as that is not known
	all.Store(-1)
	go func() {
		out, count := json.NewEncoder(in), int64(0)
		for n := range notifications {
			if err := out.Encode(n); err != nil {
				in.CloseWithError(fmt.Errorf("encode a notification: %w", err))
				return
			}
			count++
		}
		all.Store(count)
		_ = in.Close() // a pipe's end: that cannot fail
	}()
	endless := *c.http
	endless.Timeout = 0
	a, err := endless.Do(r)
	if err != nil {
		return fmt.Errorf("send the stream: %w", err)
	}
	defer a.Body.Close()
	if a.StatusCode >= 300 {
		return problem(a)
	}
	answers := json.NewDecoder(bufio.NewReader(a.Body))
	for got := int64(0); ; got++ {
		var one BulkAnswer
		err := answers.Decode(&one)
		switch {
		case errors.Is(err, io.EOF) && got == all.Load():
			return nil
		case errors.Is(err, io.EOF):
			return fmt.Errorf("the server ended the stream after %d answers, and took nothing behind them: %w", got, io.ErrUnexpectedEOF)
		case err != nil:
			return fmt.Errorf("read the answers: %w", err)
		}
		if one.Accepted != nil {
			one.Accepted.Replayed = one.Replayed
		}
		if err := each(one); err != nil {
			return err
		}
	}
}
