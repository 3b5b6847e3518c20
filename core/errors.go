package core

import "errors"

// Errors of the store that its callers tell apart.
var (
	// ErrNotFound: there is no such thing in that app.
	ErrNotFound = errors.New("not found")
	// ErrState: the state of a campaign does not allow what was asked.
	ErrState = errors.New("its state does not allow that")
	// ErrKeyReused: the idempotency key was used with another body.
	ErrKeyReused = errors.New("this Idempotency-Key was used before with another request body")
	// ErrTooManyFailures: too many keys that are nobody's came from that address of late.
	ErrTooManyFailures = errors.New("too many failed attempts from this address")
	// ErrStale: a recipient that an acceptance was made for was erased or chose anew since it was read, or is about to.
	// Nothing was recorded.
	ErrStale = errors.New("a recipient changed since it was read")
	// ErrLeaseLost: somebody else has the lease by now, or it was given back. Nothing was changed.
	ErrLeaseLost = errors.New("the lease is held by another process")
	// ErrStopping: the process is on its way out and takes no new work.
	ErrStopping = errors.New("this process is stopping")
	// ErrUnavailable: the store cannot answer now. Whether what was asked was kept is not known: ask
	// again under the same idempotency key.
	ErrUnavailable = errors.New("the store is not available")
)
