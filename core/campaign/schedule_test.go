package campaign_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/campaign"
)

func at(t testing.TB, text string) time.Time {
	t.Helper()
	x, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return x.UTC()
}

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// The vector of clock changes: New York goes forward on 2026-03-08 at 02:00 and back on 2026-11-01 at 02:00,
// Berlin forward on 2026-03-29 and back on 2026-10-25, Lord Howe by half an hour, Beirut and Havana at midnight.
func TestScheduleOverClockChanges(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, cron, zone, after string
		want                    []string
	}{
		{"a time that is left out comes as the hour ends", "30 2 * * *", "America/New_York", "2026-03-07T00:00:00Z",
			[]string{"2026-03-07T07:30:00Z", "2026-03-08T07:00:00Z", "2026-03-09T06:30:00Z"}},
		{"a time that comes twice comes the first time", "30 1 * * *", "America/New_York", "2026-10-31T00:00:00Z",
			[]string{"2026-10-31T05:30:00Z", "2026-11-01T05:30:00Z", "2026-11-02T06:30:00Z"}},
		{"nine stays nine forward", "0 9 * * *", "Europe/Berlin", "2026-03-28T00:00:00Z",
			[]string{"2026-03-28T08:00:00Z", "2026-03-29T07:00:00Z", "2026-03-30T07:00:00Z"}},
		{"nine stays nine back", "0 9 * * *", "Europe/Berlin", "2026-10-24T00:00:00Z",
			[]string{"2026-10-24T07:00:00Z", "2026-10-25T08:00:00Z", "2026-10-26T08:00:00Z"}},
		{"any hour goes by real hours forward", "0 * * * *", "Europe/Berlin", "2026-03-29T00:30:00+01:00",
			[]string{"2026-03-29T00:00:00Z", "2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"}},
		{"any hour goes by real hours back", "0 * * * *", "Europe/Berlin", "2026-10-25T00:30:00Z",
			[]string{"2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z", "2026-10-25T03:00:00Z"}},
		{"several left out come once", "0,15,30 2 * * *", "Europe/Berlin", "2026-03-29T00:00:00Z",
			[]string{"2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z", "2026-03-30T00:15:00Z"}},
		{"half an hour forward", "10 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z",
			[]string{"2026-10-03T15:30:00Z", "2026-10-04T15:10:00Z"}},
		{"midnight that is left out", "0 0 * * *", "America/Havana", "2026-03-07T12:00:00Z",
			[]string{"2026-03-08T05:00:00Z", "2026-03-09T04:00:00Z"}},
		{"a month without that day", "0 12 31 * *", "UTC", "2026-01-31T12:00:00Z", []string{"2026-03-31T12:00:00Z", "2026-05-31T12:00:00Z"}},
		{"a leap day", "0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", []string{"2028-02-29T00:00:00Z"}},
		{"working days", "0 9 * * 1-5", "Asia/Kolkata", "2026-05-01T03:30:00Z", []string{"2026-05-04T03:30:00Z", "2026-05-05T03:30:00Z"}},
		{"once a day", "@daily", "Asia/Tokyo", "2026-05-01T00:00:00Z", []string{"2026-05-01T15:00:00Z"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, err := campaign.NewSchedule(c.cron, zone(t, c.zone))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			from := at(t, c.after)
			for range c.want {
				from = s.Next(from)
				got = append(got, from.Format(time.RFC3339))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

func TestBadCron(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "x", "* * * *", "* * * * * *", "60 * * * *", "0 0 30 2 *", "@every 1h", "@reboot", "TZ=UTC", "TZ=UTC 0 9 * * *", "CRON_TZ=Europe/Paris 0 9 * * *"} {
		if _, err := campaign.NewSchedule(bad, time.UTC); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// Every wall clock time of a year's changes is read on the zone's clock: it shows it, for the first time; or
// it is left out there, and the clock goes on behind it.
func TestOnClock(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"Europe/Berlin", "America/New_York", "America/St_Johns", "Australia/Lord_Howe", "Africa/Casablanca", "America/Havana",
		"Pacific/Chatham", "Asia/Kathmandu", "Pacific/Kiritimati", "Pacific/Niue", "UTC", "Antarctica/Troll"} {
		z := zone(t, name)
		shows := func(x time.Time) string { return x.In(z).Format("2006-01-02T15:04:05") }
		for wall := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC); wall.Year() == 2026; wall = wall.Add(10 * time.Minute) {
			got, want := campaign.OnClock(wall, z), wall.Format("2006-01-02T15:04:05")
			if shows(got) == want {
				for back := range 13 { // it did not show it before
					if earlier := got.Add(-time.Duration(back+1) * 10 * time.Minute); shows(earlier) == want {
						t.Errorf("%s: %s is %s, but was shown before at %s", name, want, got, earlier)
					}
				}
				continue
			}
			if shows(got) < want || shows(got.Add(-time.Second)) >= want {
				t.Errorf("%s: %s is left out, but %s is not the first after it", name, want, got)
			}
		}
	}
}

// By local time, an occurrence is a day, and begins where that day's time of day comes first.
func TestOccurrencesByLocalTime(t *testing.T) {
	t.Parallel()
	spec := &core.CampaignSpec{Cron: "0 0 * * 1", LocalTime: "09:00"} // Mondays
	from := at(t, "2026-03-01T00:00:00Z")
	for _, want := range []string{"2026-03-01T19:00:00Z", "2026-03-08T19:00:00Z", "2026-03-15T19:00:00Z"} {
		got, err := campaign.NextOccurrence(spec, from)
		if err != nil || !got.Equal(at(t, want)) {
			t.Errorf("after %s comes %s, not %s: %v", from, got, want, err)
		}
		from = got
	}
}
