package store

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/carillon-notify/carillon/core"
)

// resultReason begins a reason among results.
const resultReason = `"r":`

// encodeResults is what a round came to, as it is kept: JSON that reads as json.Marshal's would, written without reflection. Each
// message has an entry.
func encodeResults(as []core.Attempt) any {
	if len(as) == 0 {
		return nil
	}
	const entry = 64 // without a code and a reason
	b := append(make([]byte, 0, len(as)*entry+2), '[')
	for i := range as {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendResult(b, &as[i])
	}
	return pack(append(b, ']'))
}

func appendResult(b []byte, a *core.Attempt) []byte {
	b = append(append(b, `{"d":"`...), a.Delivery.String()...)
	b = append(append(b, `","o":"`...), a.Outcome.String()...)
	b = append(b, '"')
	for _, x := range [...]struct{ name, text string }{{`,"c":`, a.Code}, {"," + resultReason, a.Reason}} {
		if x.text == "" {
			continue
		}
		// Its error says only that it replaced what is no UTF-8, as encoding/json does.
		b, _ = jsontext.AppendQuote(append(b, x.name...), x.text)
	}
	if a.HeldTill != 0 {
		b = strconv.AppendInt(append(b, `,"h":`...), a.HeldTill, 10)
	}
	b = append(append(append(b, `,"s":"`...), a.State.String()...), '"')
	if a.Parts != 0 {
		b = strconv.AppendInt(append(b, `,"p":`...), int64(a.Parts), 10)
	}
	if a.None {
		b = append(b, `,"n":true`...)
	}
	return append(b, '}')
}

func decodeResults(b []byte) ([]core.Attempt, error) {
	text, err := unpack(b)
	if err != nil || len(text) == 0 {
		return nil, err
	}
	var as []core.Attempt
	if err := json.Unmarshal(text, &as); err != nil {
		return nil, fmt.Errorf("decode the results of a round: %w", err)
	}
	return as, nil
}
