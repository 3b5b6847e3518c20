package fcm

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"time"

	"firebase.google.com/go/v4/messaging"
	"google.golang.org/api/option"

	"github.com/carillon-notify/carillon/providers"
)

// AnswerCodes are the keys of the table of answers.
func AnswerCodes() []string { return slices.Sorted(maps.Keys(answers)) }

// Classify is classify.
func Classify(status int, header http.Header, body []byte, now time.Time) providers.Result {
	return classify(status, header, body, now)
}

// RetryAfter is retryAfter.
func RetryAfter(v string, now time.Time) time.Duration { return retryAfter(v, now) }

// NewMessaging is newMessaging.
func NewMessaging[T any](ctx context.Context, f func(context.Context, *T) (*messaging.Client, error), project string, opts ...option.ClientOption) (*messaging.Client, error) {
	return newMessaging(ctx, f, project, opts...)
}

// Build gives the JSON of the message that would be sent at now.
func Build(m *providers.Message, now time.Time) ([]byte, error) {
	msg, err := build(m, now)
	if err != nil {
		return nil, err
	}
	return json.Marshal(msg)
}

// Sheets gives the request of each message of a batch as it goes out, by a stencil where there is one, and as
// the library would write it.
func Sheets(batch []providers.Message, now time.Time) (out, library [][]byte, stencilled int, err error) {
	for i, s := range stencils(batch, now) {
		m := &batch[i]
		_, sheet, err := s.fill(m, now)
		if err != nil {
			return nil, nil, 0, err
		}
		msg, err := build(m, now)
		if err != nil {
			return nil, nil, 0, err
		}
		whole, err := write(msg, m.Test)
		if err != nil {
			return nil, nil, 0, err
		}
		if sheet == nil {
			sheet = whole
		} else {
			stencilled++
		}
		out, library = append(out, sheet), append(library, whole)
	}
	return out, library, stencilled, nil
}

// The marks of a stencil.
const (
	TokenMark = tokenMark
	IDMark    = idMark
)
