package core

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// QuietHours are when a recipient is not to be disturbed, every day, by the clock on the recipient's wall.
type QuietHours struct {
	From, To string   // "22:00", "08:00"; To is the first minute that is not quiet
	Channels []string // which keep quiet; none: all
}

// Check says what is wrong with them; nil if nothing is.
func (q *QuietHours) Check() error {
	from, err := minuteOf(q.From)
	if err != nil {
		return fmt.Errorf("from: %w", err)
	}
	to, err := minuteOf(q.To)
	if err != nil {
		return fmt.Errorf("to: %w", err)
	}
	if from == to {
		return errors.New("from and to are the same; leave quiet hours out for none")
	}
	return nil
}

// Covers reports whether a channel keeps quiet.
func (q *QuietHours) Covers(channel string) bool {
	return len(q.Channels) == 0 || slices.Contains(q.Channels, channel)
}

func minuteOf(text string) (int, error) {
	t, err := time.Parse("15:04", text)
	if err != nil || len(text) != len("15:04") {
		return 0, fmt.Errorf("%q is no time of day such as 22:00", text)
	}
	return t.Hour()*60 + t.Minute(), nil
}

// Window is quiet hours in a zone: what a delivery has to keep out of. Its text is "22:00-08:00 Europe/Berlin".
type Window struct {
	from, to int // minutes of the day
	zone     *time.Location
	text     string
}

// Window returns the quiet hours in a zone by its IANA name, "" for UTC.
func (q *QuietHours) Window(zone string) (Window, error) {
	if zone == "" {
		zone = "UTC"
	}
	return ParseWindow(q.From + "-" + q.To + " " + zone)
}

// String returns the window's text; that of the zero value, which is never quiet, is "".
func (w Window) String() string { return w.text }

// zones keeps the time zones that were read: there are a few hundred, and each is a file.
var zones sync.Map

// Zone finds a time zone by its IANA name, "" for UTC.
func Zone(name string) (*time.Location, error) {
	if z, ok := zones.Load(name); ok {
		return z.(*time.Location), nil
	}
	z, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("time zone %q: %w", name, err)
	}
	zones.Store(name, z)
	return z, nil
}

// ParseWindow reads a window's text.
func ParseWindow(text string) (Window, error) {
	hours, zone, _ := strings.Cut(text, " ")
	from, to, _ := strings.Cut(hours, "-")
	q := QuietHours{From: from, To: to}
	if err := q.Check(); err != nil {
		return Window{}, fmt.Errorf("quiet hours %q: %w", text, err)
	}
	w := Window{text: text}
	w.from, _ = minuteOf(from) // checked
	w.to, _ = minuteOf(to)
	var err error
	if w.zone, err = Zone(zone); err != nil {
		return Window{}, err
	}
	return w, nil
}

// Until returns when the window that t lies in is over, and false if t lies in none. It is the first
// moment from t on at which the wall's clock shows a time outside of it: when clocks are set forward past
// its end that is the moment they are set, and when they are set back into it, it is quiet again.
func (w Window) Until(t time.Time) (time.Time, bool) {
	if w.zone == nil || !w.quiet(t) {
		return t, false
	}
	at := t
	for {
		// Up to the zone's next change the wall's clock goes as fast as ours.
		_, change := at.In(w.zone).ZoneBounds()
		end := at.Add(w.left(at))
		if change.IsZero() || !end.After(change) {
			return end.In(t.Location()), true
		}
		if at = change; !w.quiet(at) {
			return at.In(t.Location()), true
		}
	}
}

func (w Window) quiet(t time.Time) bool {
	h, m, _ := t.In(w.zone).Clock()
	now := h*60 + m
	if w.from < w.to {
		return now >= w.from && now < w.to
	}
	return now >= w.from || now < w.to
}

// left is how long it takes the wall's clock from t to the window's end, if nobody sets it.
func (w Window) left(t time.Time) time.Duration {
	local := t.In(w.zone)
	h, m, s := local.Clock()
	now := time.Duration(h)*time.Hour + time.Duration(m)*time.Minute + time.Duration(s)*time.Second + time.Duration(local.Nanosecond())
	left := time.Duration(w.to)*time.Minute - now
	if left <= 0 {
		left += 24 * time.Hour
	}
	return left
}
