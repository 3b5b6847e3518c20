// Package apns delivers to Apple devices through the Apple Push Notification service, on the client
// library sideshow/apns2 over connections of our own (see link).
//
// The rules are Apple's: "Sending notification requests to APNs", "Handling notification responses
// from APNs", "Establishing a token-based connection to APNs" and "Generating a remote notification"
// (developer.apple.com/documentation/usernotifications).
package apns

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/pool"
)

// maxBatch is how many messages one Deliver takes. APNs has no batches; they share its connections.
const maxBatch = 100

// addressPattern is what a device token looks like. Apple says that its length may change; it is
// hexadecimal, which matters since it becomes a part of the request's path.
const addressPattern = `^[0-9a-fA-F]{64,200}$`

// Kind describes the provider.
func Kind() providers.Kind {
	return providers.Kind{
		Name:     "apns",
		Channel:  "push",
		Doc:      "Delivers to Apple devices through the Apple Push Notification service.",
		MaxBatch: maxBatch,
		Settings: append([]providers.Setting{
			{Name: "endpoint", Type: providers.String, Default: endpointProduction, Doc: "Where APNs is; for tokens of development builds " + endpointDevelopment + "."},
			{Name: "topic", Type: providers.String, Doc: "The app's bundle id; required unless the certificate carries it."},
			{Name: "key_file", Type: providers.File, Doc: "The provider token's signing key, Apple's AuthKey_….p8."},
			{Name: "key", Type: providers.String, Secret: true, Doc: "The signing key itself (PEM), instead of key_file."},
			{Name: "key_id", Type: providers.String, Doc: "The signing key's id, 10 characters; required with a key."},
			{Name: "team_id", Type: providers.String, Doc: "The Apple developer team's id, 10 characters; required with a key."},
			{Name: "cert_file", Type: providers.File, Doc: "A client certificate with its private key (PEM, or PKCS #12 as .p12), instead of a key."},
			{Name: "cert_password", Type: providers.String, Secret: true, Doc: "The password of cert_file, if it has one."},
			{Name: "ca_file", Type: providers.File, Doc: "The certificate authorities (PEM) to trust instead of the system's, for a stand-in of APNs."},
			{Name: "timeout", Type: providers.Duration, Default: defaultTimeout.String(), Doc: "How long to wait for the answer to one message, 100ms to 5m."},
		}, pool.Settings(poolDefaults())...),
		Content: []byte(contentSchema),
		Address: addressPattern,
		Secret:  true,
		Check:   check,
		Open: func(_ context.Context, raw []byte) (providers.Provider, error) {
			p, err := open(raw)
			if err != nil {
				return nil, fmt.Errorf("open apns: %w", err)
			}
			return p, nil
		},
	}
}

// contentSchema is the kind's part of the content block "push". The names of headers are those that a
// sender may set; what an aps object may hold is Apple's to say and grows every year.
var contentSchema = `{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "type": "object",
  "properties": {
    "apns": {
      "description": "Laid over the push that is built from title, body, url and data.",
      "type": "object",
      "additionalProperties": false,
      "properties": {
        "headers": {
          "type": "object",
          "additionalProperties": false,
          "properties": {
            "apns-push-type": {"enum": ["` + strings.Join(pushTypeNames(), `", "`) + `"]},
            "apns-priority": {"enum": ["1", "5", "10"]},
            "apns-topic": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,255}$"},
            "apns-collapse-id": {"type": "string", "pattern": "^[ -~]{1,64}$"},
            "apns-expiration": {"description": "Unix seconds; 0 for now or never. Never later than the message itself expires.", "type": "string", "pattern": "^[0-9]{1,10}$"}
          }
        },
        "payload": {
          "description": "Laid over the payload, object into object; null removes a member.",
          "type": "object",
          "properties": {"aps": {"type": ["object", "null"]}}
        }
      }
    }
  }
}`

// check is Kind.Check: it builds the push and measures it. Of an address the pattern has said all.
func check(m *providers.Message) error {
	if m.ID == "" {
		return nil
	}
	n, err := build(m, "")
	if err != nil {
		return err
	}
	return n.fits()
}

// errTooLarge marks the error of a payload over the limit.
var errTooLarge = errors.New("the push payload is too large")

// fits refuses a payload over Apple's limit: 4,096 bytes, for VoIP 5,120.
func (n *push) fits() error {
	limit := 4096
	if n.pushType == "voip" {
		limit = 5120
	}
	if n.size <= limit {
		return nil
	}
	return fmt.Errorf("%w: it takes %d bytes as JSON and APNs takes %d; shorten the body or the data by %d bytes",
		errTooLarge, n.size, limit, n.size-limit)
}
