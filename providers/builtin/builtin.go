// Package builtin lists the providers that come with Carillon.
package builtin

import (
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/apns"
	"github.com/carillon-notify/carillon/providers/email"
	"github.com/carillon-notify/carillon/providers/fcm"
	"github.com/carillon-notify/carillon/providers/websocket"
)

// Kinds returns the built-in kinds, in the order in which channels list their routes.
func Kinds() []providers.Kind {
	return []providers.Kind{apns.Kind(), fcm.Kind(), email.Kind(), websocket.Kind()}
}
