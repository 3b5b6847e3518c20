package core

import "time"

// Lease is the leadership of one process over a piece of work that one process at a time should do:
// retention, a campaign. It ends by itself, so that a process that died holds nothing up for long; and
// its fence tells a holder that was stopped in its tracks from the one after it.
type Lease struct {
	Name   string // of the work: "retention", "campaign:<id>"
	Holder string // who holds it, for people
	Fence  int64  // greater than that of every lease before it of the same name
	Until  time.Time
}
