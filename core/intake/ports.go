// Package intake turns a request into deliveries: check, resolve, render, record, wake. Accept tells
// the whole story.
package intake

import (
	"context"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// Store is what accepting needs of the store.
type Store interface {
	// Now is the database's time.
	Now() time.Time
	// Recipients finds those of an app that exist, by id.
	Recipients(ctx context.Context, app string, ids []string) (map[string]*core.Recipient, error)
	// SuppressedAddresses tells which of some addresses are suppressed.
	SuppressedAddresses(ctx context.Context, all []core.AddressOf) (map[core.AddressOf]core.Suppression, error)
	// Record makes an acceptance durable, synced to disk, in one group-committed transaction. If its
	// key was used in the last 24 hours with the same body, the first answer is given back; with
	// another body the error is core.ErrKeyReused. Whose Known changed since is core.ErrStale, and is made anew.
	Record(ctx context.Context, a *core.Acceptance) (core.Recorded, error)
	// Answered is the answer that was given in the last 24 hours to a request with this key and body
	// hash. The error is core.ErrNotFound for a key that is free, core.ErrKeyReused for one used with
	// another body.
	Answered(ctx context.Context, app, key string, hash [32]byte) ([]byte, error)
}

// Queue carries wakes.
type Queue interface {
	Wake(ctx context.Context, wakes ...core.Wake) error
}
