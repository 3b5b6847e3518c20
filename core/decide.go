package core

import (
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// Rules are what decides, beside the request, whether and when a recipient gets a message.
type Rules struct {
	Categories Categories
}

// Choice is what was decided for one recipient and channel.
type Choice struct {
	// Skip is why nothing goes out on the channel, one of the Skip… constants; "" if something does.
	Skip string
	// DueAt is when it may go out, and Held why that is later than asked for: HeldQuiet, or "".
	DueAt time.Time
	Held  string
	// Quiet is the window that every attempt has to keep out of, as a Window's text; "" for none.
	Quiet string
}

// Why a delivery is due later than its notification.
const (
	HeldQuiet    = "quiet_hours" // until the recipient's quiet hours are over
	HeldFallback = "fallback"    // until the channel before had its time
)

// Decide says whether a recipient gets notification n on a channel, and when, if it were to go out at a
// time due. Accept, Preview and campaigns all ask it, and nobody else decides. A message that is critical
// passes quiet hours, not preferences.
func (r *Rules) Decide(rec *Recipient, n *Notification, channel string, due time.Time) Choice {
	c := Choice{DueAt: due}
	if !r.Categories.Wants(rec.Preferences, n.Category, channel) {
		c.Skip = SkipPreference
		return c
	}
	q := rec.QuietHours
	if q == nil || n.Priority == providers.Critical || !q.Covers(channel) {
		return c
	}
	w, err := q.Window(rec.Timezone)
	if err != nil {
		return c // they were checked as they were given; a zone that the system lost hushes nothing
	}
	c.Quiet = w.String()
	if end, quiet := w.Until(due); quiet {
		c.DueAt, c.Held = end, HeldQuiet
	}
	return c
}
