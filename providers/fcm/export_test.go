package fcm

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"time"

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

// Build gives the JSON of the message that would be sent at now.
func Build(m *providers.Message, now time.Time) ([]byte, error) {
	msg, err := build(m, now)
	if err != nil {
		return nil, err
	}
	return json.Marshal(msg)
}
