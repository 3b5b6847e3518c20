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

// The codes of a delivery that was cancelled and not by request.
const (
	CodeAcknowledged = "acknowledged" // a channel before was
	CodePreference   = SkipPreference // its recipient said no after it was accepted
)

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

// NewClimb begins at the notification's own time, or when it was made if that is later: a page of a topic can be
// made long after, and its first channel has its time as well.
func NewClimb(n *Notification) Climb { return Climb{n: n, due: later(n.SendAt, n.CreatedAt)} }

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
// been made up then, all of them outside of quiet hours. A cancelled step counts as one that never was: those
// behind it come when they had come without it. sendAt is the notification's time, after its FallbackAfter.
func Advance(rungs []Rung, sendAt time.Time, after time.Duration, now time.Time) []Forward {
	all := slices.Clone(rungs)
	slices.SortFunc(all, func(a, b Rung) int {
		return cmp.Or(cmp.Compare(a.Step, b.Step), bytes.Compare(a.Delivery[:], b.Delivery[:]))
	})
	rungs = slices.DeleteFunc(slices.Clone(all), func(r Rung) bool { return r.State == Cancelled })
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
				return closeGaps(all, sendAt, after, now)
			}
			continue
		case step == turn:
			step = r.Step // the next: at once
		case r.Step > step:
			to, step = last.Add(after), r.Step
		}
		at := r.outside(to)
		if last = at; turn >= 0 && r.DueAt.After(at) {
			out = append(out, Forward{r, at})
		}
	}
	if turn < 0 {
		return closeGaps(all, sendAt, after, now)
	}
	return out
}

// closeGaps says what of a fallback, by steps in their order, is to go earlier because a step before it was
// cancelled: each when the one before it that is left is due and had its time.
func closeGaps(rungs []Rung, sendAt time.Time, after time.Duration, now time.Time) []Forward {
	var out []Forward
	to, gap := sendAt, false
	for len(rungs) > 0 {
		n := 1
		for n < len(rungs) && rungs[n].Step == rungs[0].Step {
			n++
		}
		step := rungs[:n]
		rungs = rungs[n:]
		var due time.Time // the step's, once it is moved
		gone := true
		for _, r := range step {
			at := r.DueAt
			if r.State != Cancelled {
				gone = false
				if sooner := r.outside(later(to, now)); gap && r.waits(now) && at.After(sooner) {
					at = sooner
					out = append(out, Forward{r, at})
				}
			}
			due = later(due, at)
		}
		if gone {
			to, gap = earlier(to, due), true // it may have been brought forward
		} else {
			to = due.Add(after)
		}
	}
	return out
}

// outside is a time, or when the quiet hours that it lies in are over.
func (r *Rung) outside(t time.Time) time.Time {
	if w, err := ParseWindow(r.Quiet); err == nil {
		t, _ = w.Until(t)
	}
	return t
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
