package core

import (
	"bytes"
	"cmp"
	"slices"
	"time"
)

// The modes of a notification.
const (
	ModeAll      = "all"      // every channel that reaches the recipient
	ModeFallback = "fallback" // the next channel when the one before cannot deliver, or is not acknowledged in time
)

// Bounds of Notification.FallbackAfter.
const (
	DefaultFallbackAfter = 30 * time.Second
	MinFallbackAfter     = time.Second
	MaxFallbackAfter     = 24 * time.Hour
)

// FallbackOrder is the order of the channels of a fallback that names none: the least intrusive first.
// Channels that are not named here come last.
var FallbackOrder = []string{"in_app", "push", "email"}

// CodeAcknowledged is the code of a delivery that was cancelled because a channel before was acknowledged.
const CodeAcknowledged = "acknowledged"

// InFallbackOrder sorts the names of channels by FallbackOrder.
func InFallbackOrder(channels []string) []string {
	out := slices.Clone(channels)
	place := func(name string) int {
		if i := slices.Index(FallbackOrder, name); i >= 0 {
			return i
		}
		return len(FallbackOrder)
	}
	slices.SortStableFunc(out, func(a, b string) int { return cmp.Compare(place(a), place(b)) })
	return out
}

// Climb says when each step of a recipient's fallback is due, as it is made up. A step is a channel that
// reaches the recipient; channels that do not are none.
type Climb struct {
	n    *Notification
	step int
	due  time.Time // of the step to come
}

// NewClimb begins at the notification's own time.
func NewClimb(n *Notification) Climb { return Climb{n: n, due: n.SendAt} }

// DueAt is when the step to come is due, if nothing else holds it. With ModeAll that is always the
// notification's own time.
func (c *Climb) DueAt() time.Time { return c.due }

// Place gives a delivery of the step to come its place and time, by what was decided for it.
func (c *Climb) Place(d *Delivery, choice *Choice) {
	d.Quiet, d.Step, d.Held = choice.Quiet, c.step, choice.Held
	if c.step > 0 && d.Held == "" {
		d.Held = HeldFallback
	}
	if d.Held == "" {
		return
	}
	// What would be due too late expires then, and not any later.
	if d.DueAt = choice.DueAt; d.DueAt.After(c.n.ExpiresAt) {
		d.DueAt = c.n.ExpiresAt
	}
}

// Next goes on to the next step, after one that has at least one delivery.
func (c *Climb) Next(choice *Choice) {
	if c.n.Mode != ModeFallback {
		return
	}
	c.step++
	c.due = choice.DueAt.Add(c.n.FallbackAfter)
}

// Rung is one delivery of a fallback as it stands.
type Rung struct {
	Delivery, Batch ID
	Step            int
	State           State
	// Passed: it was sent to where nobody is (Absent). It may be found there, but the next channel goes.
	Passed bool
	// Fresh: it was in no round yet and is in none.
	Fresh bool
	DueAt time.Time // its batch's
	Quiet string    // as the delivery's
}

// over reports whether nothing is to be expected of a rung any more.
func (r *Rung) over() bool {
	return r.Passed || r.State != Pending && r.State != Sent && r.State != Delivered
}

// waits reports whether a rung's turn is still to come.
func (r *Rung) waits(now time.Time) bool { return r.State == Pending && r.Fresh && r.DueAt.After(now) }

// Forward is a delivery that is to go earlier than it was.
type Forward struct {
	Rung
	To time.Time
}

// Advance says what of a fallback is to go earlier, now that something about it changed: when all deliveries
// of the step whose turn it is are over, the next step goes at once, and those behind it follow as if they had
// been made up then, all of them outside of quiet hours. after is the notification's FallbackAfter.
func Advance(rungs []Rung, after time.Duration, now time.Time) []Forward {
	rungs = slices.Clone(rungs)
	slices.SortFunc(rungs, func(a, b Rung) int {
		return cmp.Or(cmp.Compare(a.Step, b.Step), bytes.Compare(a.Delivery[:], b.Delivery[:]))
	})
	turn := -1
	for i := range rungs {
		if !rungs[i].waits(now) {
			turn = rungs[i].Step
		}
	}
	var out []Forward
	to, last, step := now, now, turn
	for _, r := range rungs {
		switch {
		case r.Step < turn:
			continue
		case r.Step == turn:
			if !r.over() {
				return nil
			}
			continue
		case step == turn:
			step = r.Step // the next: at once
		case r.Step > step:
			to, step = last.Add(after), r.Step
		}
		at := to
		if w, err := ParseWindow(r.Quiet); err == nil {
			at, _ = w.Until(to)
		}
		if last = at; turn >= 0 && r.DueAt.After(at) {
			out = append(out, Forward{r, at})
		}
	}
	return out
}
