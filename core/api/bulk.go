package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/carillon-notify/carillon/core/intake"
)

// bulkAhead is how many lines of a stream are being accepted at once: they share transactions.
const bulkAhead = 256

// bulkAnswer is one line of the answer to a bulk stream.
type bulkAnswer struct {
	Line     int       `json:"line"`
	Status   int       `json:"status"`
	Replayed bool      `json:"replayed,omitempty"`
	Accepted *Accepted `json:"notification,omitempty"`
	Problem  *Problem  `json:"problem,omitempty"`
}

// SendBulk implements StrictServerInterface. The answer is streamed while the request still comes in.
func (a *API) SendBulk(ctx context.Context, q SendBulkRequestObject) (SendBulkResponseObject, error) {
	if err := checkCoding(callOf(ctx).r); err != nil {
		return nil, err
	}
	return &bulk{api: a, ctx: ctx, call: callOf(ctx), body: q.Body, key: q.Params.IdempotencyKey}, nil
}

type bulk struct {
	api  *API
	ctx  context.Context
	call *call
	body io.Reader
	key  string
}

// beginLines begins an answer of a line for each line of the request, while that is still being read.
func beginLines(w http.ResponseWriter) *http.ResponseController {
	control := http.NewResponseController(w)
	// A recorder or an HTTP/2 stream is full duplex anyhow, or cannot be: then answers come at the end.
	_ = control.EnableFullDuplex()
	_ = control.SetReadDeadline(time.Time{})
	_ = control.SetWriteDeadline(time.Time{})
	// A full-duplex answer that ends before its request makes net/http (Go 1.26) read the connection from
	// two goroutines, and panic, where it would use the connection again.
	w.Header().Set("Connection", "close")
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	return control
}

// VisitSendBulkResponse implements SendBulkResponseObject: lines are accepted side by side and
// answered in their order.
func (b *bulk) VisitSendBulkResponse(w http.ResponseWriter) error {
	control := beginLines(w)
	answers := make(chan chan bulkAnswer, bulkAhead)
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	go b.read(ctx, control, answers)
	out := json.NewEncoder(w)
	for line := range answers {
		_ = control.SetWriteDeadline(time.Now().Add(streamIdle))
		if err := out.Encode(<-line); err != nil {
			cancel() // the client is gone; what was accepted is kept
			for line := range answers {
				<-line // what is being recorded is recorded, and woken, before the process may stop
			}
			return nil
		}
		if len(answers) == 0 {
			_ = control.Flush()
		}
	}
	return nil
}

// read takes line after line and starts each, at most bulkAhead at a time, and as many as there is room for among all
// streams.
func (b *bulk) read(ctx context.Context, control *http.ResponseController, answers chan<- chan bulkAnswer) {
	defer close(answers)
	lines := bufio.NewReaderSize(b.body, MaxBody+1)
	for n := 1; ctx.Err() == nil; n++ {
		_ = control.SetReadDeadline(time.Now().Add(streamIdle))
		text, err := lines.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			b.answer(answers, b.refuse(n, tooLarge(MaxBody)))
			return // where this line ends is not known
		}
		last := err != nil
		if text = bytes.TrimSpace(text); len(text) > 0 {
			if !b.begin(ctx, n, text, answers) {
				return
			}
		}
		if last {
			if !errors.Is(err, io.EOF) && ctx.Err() == nil {
				b.answer(answers, b.refuse(n+1, refuse(http.StatusBadRequest, "The stream broke off here; the lines before were taken.")))
			}
			return
		}
	}
}

// begin starts a line as soon as there is room for it. It reports false where ctx ended before.
func (b *bulk) begin(ctx context.Context, n int, text []byte, answers chan<- chan bulkAnswer) bool {
	size := int64(len(text))
	if b.api.room.Acquire(ctx, size) != nil {
		return false
	}
	line := make(chan bulkAnswer, 1)
	select {
	case answers <- line:
	case <-ctx.Done():
		b.api.room.Release(size)
		return false
	}
	text = bytes.Clone(text) // the reader goes on
	go func() {
		defer b.api.room.Release(size)
		line <- b.line(ctx, n, text)
	}()
	return true
}

func (b *bulk) answer(answers chan<- chan bulkAnswer, a bulkAnswer) {
	line := make(chan bulkAnswer, 1)
	line <- a
	answers <- line
}

func (b *bulk) refuse(n int, err error) bulkAnswer {
	f := failureOf(err)
	if f.status == http.StatusInternalServerError {
		b.api.Logger.Error("a line of a bulk stream failed", "request_id", b.call.requestID, "line", n, "error", err)
	}
	p := f.problem(b.call.requestID)
	return bulkAnswer{Line: n, Status: f.status, Problem: &p}
}

// line accepts one line, under a key of its own made of the stream's and its number.
func (b *bulk) line(ctx context.Context, n int, text []byte) (answer bulkAnswer) {
	defer func() { // here, for nobody else sees a goroutine of the handler's panic, and the process would end
		if p := recover(); p != nil {
			f := failureOf(b.api.panicked(b.call, p))
			problem := f.problem(b.call.requestID)
			answer = bulkAnswer{Line: n, Status: f.status, Problem: &problem}
		}
	}()
	var body NotificationRequest
	faults, err := decode(text, &body)
	if err != nil {
		return b.refuse(n, err)
	}
	c := &call{requestID: b.call.requestID, principal: b.call.principal}
	c.faults = merge(faults, b.api.violations(ctx, struct {
		Body *NotificationRequest `json:"Body"`
	}{&body}))
	key := ""
	if b.key != "" {
		key = fmt.Sprintf("%s#%d", b.key, n)
	}
	var got *intake.Accepted
	for {
		got, err = b.api.accept(ctx, c, &body, key, text)
		if !errors.Is(err, errBusy) || !wait(ctx, 10*time.Millisecond) {
			break
		}
	}
	if err != nil {
		return b.refuse(n, err)
	}
	v := acceptedOf(got)
	return bulkAnswer{Line: n, Status: http.StatusAccepted, Replayed: got.Replayed, Accepted: &v}
}

// wait reports whether ctx lasted that long.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
