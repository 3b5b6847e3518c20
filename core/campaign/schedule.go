package campaign

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/carillon-notify/carillon/core"
)

// starBit is how the parser marks a field that is "*".
const starBit = 1 << 63

// Schedule says when a campaign with a cron has its occurrences.
type Schedule struct {
	spec *cron.SpecSchedule
	zone *time.Location
}

// NewSchedule reads a cron expression of five fields (minute, hour, day of month, month, day of week) or
// one of @hourly, @daily, @weekly, @monthly, @yearly, in a zone.
func NewSchedule(text string, zone *time.Location) (*Schedule, error) {
	if len(text) > 200 || strings.Contains(text, "TZ=") {
		return nil, errors.New("is a cron expression of five fields, such as 0 9 * * 1-5; its zone goes into timezone")
	}
	parsed, err := cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("is no cron expression of five fields: %w", err)
	}
	spec, ok := parsed.(*cron.SpecSchedule)
	if !ok {
		return nil, errors.New("@every has no fixed times; use a cron expression of five fields, such as */15 * * * *")
	}
	spec.Location = time.UTC
	s := &Schedule{spec: spec, zone: zone}
	if s.spec.Next(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, errors.New("names a day that never comes")
	}
	return s, nil
}

// Next is the first occurrence after a time; zero if there is none within five years. Where clocks are put
// forward, what falls into the hour that is left out comes as it ends; where they are put back, what falls
// into the hour that comes twice comes the first time. With any hour ("*") it goes by the hours that really
// pass, as Vixie's cron has it.
func (s *Schedule) Next(after time.Time) time.Time {
	if s.spec.Hour&starBit != 0 {
		every := *s.spec
		every.Location = s.zone
		return every.Next(after.In(s.zone)).UTC()
	}
	// The parser's own reckoning leaves out days on which a time does not exist, and doubles those on which
	// it does twice. So it reckons on a clock that is never changed, and we read the result on the zone's.
	wall := wallOf(after.In(s.zone)).Add(-3 * time.Hour)
	for range 400 {
		if wall = s.spec.Next(wall); wall.IsZero() {
			return time.Time{}
		}
		if at := onClock(wall, s.zone); at.After(after) {
			return at.UTC()
		}
	}
	return time.Time{}
}

// wallOf is what the clock shows, as a time of UTC.
func wallOf(t time.Time) time.Time {
	y, m, d := t.Date()
	return time.Date(y, m, d, t.Hour(), t.Minute(), t.Second(), 0, time.UTC)
}

// onClock is when a zone's clock shows a time for the first time; where it leaves that time out, when it
// goes on.
func onClock(wall time.Time, zone *time.Location) time.Time {
	// A zone's offset lies within a day, and changes at most once near by.
	_, early := wall.Add(-24 * time.Hour).In(zone).Zone()
	_, late := wall.Add(24 * time.Hour).In(zone).Zone()
	first := wall.Add(-time.Duration(max(early, late)) * time.Second)
	last := wall.Add(-time.Duration(min(early, late)) * time.Second)
	for _, at := range []time.Time{first, last} {
		if wallOf(at.In(zone)).Equal(wall) {
			return at.In(zone)
		}
	}
	// Left out: the change lies between the two.
	for last.Sub(first) > time.Second {
		mid := first.Add(last.Sub(first) / 2).Truncate(time.Second)
		if wallOf(mid.In(zone)).Before(wall) {
			first = mid
		} else {
			last = mid
		}
	}
	return last.In(zone)
}

// clockTime is a time of day such as 09:00.
type clockTime struct{ hour, minute int }

func parseClock(s string) (clockTime, error) {
	t, err := time.Parse("15:04", s)
	if err != nil {
		return clockTime{}, fmt.Errorf("%q is no time of day such as 09:00", s)
	}
	return clockTime{t.Hour(), t.Minute()}, nil
}

const dateForm = "2006-01-02"

// on is when it is that time in a zone, on a day (any time of it).
func (c clockTime) on(day time.Time, zone *time.Location) time.Time {
	y, m, d := day.Date()
	return onClock(time.Date(y, m, d, c.hour, c.minute, 0, 0, time.UTC), zone)
}

// from is when it is that time in a zone for the first time from a time on.
func (c clockTime) from(start time.Time, zone *time.Location) time.Time {
	day := start.In(zone)
	for n := range 3 {
		if at := c.on(day.AddDate(0, 0, n), zone); !at.Before(start) {
			return at
		}
	}
	return c.on(day.AddDate(0, 0, 2), zone)
}

// zoneOf is the zone of a name; fallback where the name is none.
func zoneOf(name string, fallback *time.Location) *time.Location {
	if name == "" || name == "Local" {
		return fallback
	}
	zone, err := time.LoadLocation(name)
	if err != nil {
		return fallback
	}
	return zone
}

// farEast is where a day begins first.
var farEast = time.FixedZone("", 14*60*60)

// legs are the parts of an audience by local time, the earliest first: which zones, and when. A last one is
// for who moves from a zone that is to come to one that is over.
func legs(c *core.Campaign, zones []string, now time.Time) ([]core.Leg, error) {
	at, err := parseClock(c.LocalTime)
	if err != nil {
		return nil, err
	}
	fallback := zoneOf(c.Timezone, time.UTC)
	byTime := map[int64]*core.Leg{}
	for _, name := range zones {
		zone := zoneOf(name, fallback)
		due := at.from(c.NextAt, zone)
		if c.Date != "" {
			day, err := time.Parse(dateForm, c.Date)
			if err != nil {
				return nil, fmt.Errorf("read the day of an occurrence: %w", err)
			}
			due = at.on(day, zone)
		}
		if now.Sub(due) > core.MissedAfter {
			if c.Missed == missedSkip {
				continue
			}
			due = now
		}
		leg := byTime[due.Unix()]
		if leg == nil {
			leg = &core.Leg{At: due.UTC()}
			byTime[due.Unix()] = leg
		}
		leg.Zones = append(leg.Zones, name)
	}
	out := make([]core.Leg, 0, len(byTime)+1)
	for _, leg := range byTime {
		out = append(out, *leg)
	}
	slices.SortFunc(out, func(a, b core.Leg) int { return cmp.Compare(a.At.Unix(), b.At.Unix()) })
	last := now
	if len(out) > 0 {
		last = out[len(out)-1].At
	}
	return append(out, core.Leg{At: last, Moved: true}), nil
}
