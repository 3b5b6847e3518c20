// Package websocket delivers to recipients' own live clients, over the Centrifugo protocol of the
// centrifuge library: WebSocket with server-sent events and HTTP streaming as fall-backs, a personal
// channel with history and recovery for every recipient, and acknowledgements that come back as receipts.
//
// The Gateway is the provider and at the same time its own pool: the connections it delivers over are
// those that clients opened to its Handler.
package websocket

import (
	"context"
	"errors"
	"fmt"

	"github.com/carillon-notify/carillon/providers"
)

// MaxPayload bounds one publication, in bytes of JSON. The smallest send queue of a client holds two.
const MaxPayload = 64 << 10

// addressPattern is what a recipient's id looks like: 1 to 255 characters, no control character, and no
// '/', which separates the app from the recipient in a channel's name.
const addressPattern = `^[^\x00-\x1f/]{1,255}$`

// contentSchema describes the channel's own content block: data, laid over the message's own.
const contentSchema = `{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",` +
	`"properties":{"data":{"type":"object","description":"laid over the content's data (RFC 7396) for live clients and the inbox"}},` +
	`"additionalProperties":false}`

// Kind describes this provider; its Open returns a *Gateway.
func Kind() providers.Kind {
	return providers.Kind{
		Name:     "websocket",
		Channel:  "in_app",
		Doc:      "Live clients of a recipient (browser tab, app), over WebSocket, SSE or HTTP streaming, with recovery of what was missed.",
		MaxBatch: 100,
		Settings: settingDocs(),
		Content:  []byte(contentSchema),
		Address:  addressPattern,
		Check:    check,
		Open: func(_ context.Context, settings []byte) (providers.Provider, error) {
			s, err := ParseSettings(settings)
			if err != nil {
				return nil, err
			}
			return New(s)
		},
	}
}

// errTooLarge is wrapped with the figures by encode.
var errTooLarge = errors.New("too large for a live client")

// check refuses at accept what encode would refuse at delivery.
func check(m *providers.Message) error {
	_, err := encode(nil, m)
	return err
}

func tooLarge(n int) error {
	return fmt.Errorf("in-app message of %d bytes is %w: at most %d bytes of JSON; shorten the body or put large data behind the url", n, errTooLarge, MaxPayload)
}
