package api

import (
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// sent is the answer to a notification that was accepted. It writes what the generated type would, without reflection.
type sent SendNotification202JSONResponse

// VisitSendNotificationResponse implements SendNotificationResponseObject.
func (s *sent) VisitSendNotificationResponse(w http.ResponseWriter) error {
	body, ok := appendAccepted(make([]byte, 0, 192), &s.Body)
	if !ok {
		return SendNotification202JSONResponse(*s).VisitSendNotificationResponse(w)
	}
	h := w.Header()
	h["Content-Type"] = jsonType
	if s.Headers.IdempotencyReplayed != nil {
		h.Set("Idempotency-Replayed", *s.Headers.IdempotencyReplayed)
	}
	h.Set("Location", s.Headers.Location)
	w.WriteHeader(http.StatusAccepted)
	_, err := w.Write(append(body, '\n'))
	return err
}

// jsonType is shared by answers: to set a header replaces its list.
var jsonType = []string{"application/json"}

// appendAccepted appends a as encoding/json encodes it. ok is false for what is left to that: who was skipped, and
// what has no text.
func appendAccepted(b []byte, a *Accepted) (out []byte, ok bool) {
	if len(a.Skipped) > 0 {
		return b, false
	}
	b = append(b, `{"created_at":"`...)
	b, err := a.CreatedAt.AppendText(b)
	if err != nil {
		return b, false
	}
	b = strconv.AppendInt(append(b, `","deliveries":`...), int64(a.Deliveries), 10)
	if b, err = jsontext.AppendQuote(append(b, `,"id":`...), a.Id); err != nil {
		return b, false
	}
	if b, err = jsontext.AppendQuote(append(b, `,"status":`...), a.Status); err != nil {
		return b, false
	}
	return append(b, '}'), true
}
