package core_test

import (
	"testing"
	"time"
	_ "time/tzdata" // the tests' own copy: a bare system has none

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/providers"
)

func TestWants(t *testing.T) {
	t.Parallel()
	categories := core.Categories{
		"security": {Mandatory: true, Defaults: map[string]bool{"email": false}},
		"news":     {Defaults: map[string]bool{"*": false, "in_app": true}},
		"*":        {Defaults: map[string]bool{"sms": false}},
	}
	for name, tc := range map[string]struct {
		p                 core.Preferences
		category, channel string
		want              bool
	}{
		"nobody says anything":                        {nil, "orders", "email", true},
		"nothing is known, no category":               {nil, "", "email", true},
		"turned off":                                  {core.Preferences{"orders": {"email": false}}, "orders", "email", false},
		"another channel":                             {core.Preferences{"orders": {"email": false}}, "orders", "push", true},
		"another category":                            {core.Preferences{"orders": {"email": false}}, "news2", "email", true},
		"all channels off":                            {core.Preferences{"orders": {"*": false}}, "orders", "push", false},
		"all categories off":                          {core.Preferences{"*": {"push": false}}, "orders", "push", false},
		"also of what has no category":                {core.Preferences{"*": {"push": false}}, "", "push", false},
		"the category before all":                     {core.Preferences{"*": {"push": false}, "orders": {"push": true}}, "orders", "push", true},
		"the channel before all":                      {core.Preferences{"orders": {"*": false, "push": true}}, "orders", "push", true},
		"the category's all before all's channel":     {core.Preferences{"*": {"push": false}, "orders": {"*": true}}, "orders", "push", true},
		"mandatory":                                   {core.Preferences{"security": {"email": false}, "*": {"*": false}}, "security", "email", true},
		"the category's default":                      {nil, "news", "email", false},
		"the category's default of a channel":         {nil, "news", "in_app", true},
		"the recipient before the category's default": {core.Preferences{"news": {"email": true}}, "news", "email", true},
		"the recipient's all before it, too":          {core.Preferences{"*": {"email": true}}, "news", "email", true},
		"the default of all":                          {nil, "orders", "sms", false},
	} {
		if got := categories.Wants(tc.p, tc.category, tc.channel); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestPreferencesCheck(t *testing.T) {
	t.Parallel()
	categories, known := core.Categories{"security": {Mandatory: true}}, []string{"email", "push"}
	long := make([]rune, 129)
	for name, tc := range map[string]struct {
		p    core.Preferences
		want []string // categories at fault
	}{
		"good":                    {core.Preferences{"orders": {"email": false, "*": true}, "*": {"push": true}}, nil},
		"mandatory, on":           {core.Preferences{"security": {"email": true}}, nil},
		"mandatory, off":          {core.Preferences{"security": {"email": false}}, []string{"security"}},
		"no such channel":         {core.Preferences{"orders": {"emial": false}}, []string{"orders"}},
		"no name":                 {core.Preferences{"": {"email": false}}, []string{""}},
		"too long a name":         {core.Preferences{string(long): {}}, []string{string(long)}},
		"several":                 {core.Preferences{"a": {"x": true}, "b": {"y": true}}, []string{"a", "b"}},
		"nothing of any category": {core.Preferences{}, nil},
	} {
		got := tc.p.Check(categories, known, nil)
		var at []string
		for _, c := range tc.want {
			if got[c] == "" {
				t.Errorf("%s: %q is not at fault", name, c)
			}
			at = append(at, c)
		}
		if len(got) != len(at) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestQuietHours(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		hours, at, until string // until "": it is not quiet
	}{
		"before":                          {"22:00-08:00 Europe/Berlin", "2026-01-10T21:59:59+01:00", ""},
		"its first moment":                {"22:00-08:00 Europe/Berlin", "2026-01-10T22:00:00+01:00", "2026-01-11T08:00:00+01:00"},
		"past midnight":                   {"22:00-08:00 Europe/Berlin", "2026-01-11T03:10:20.5+01:00", "2026-01-11T08:00:00+01:00"},
		"its last moment":                 {"22:00-08:00 Europe/Berlin", "2026-01-11T07:59:59.999+01:00", "2026-01-11T08:00:00+01:00"},
		"its end":                         {"22:00-08:00 Europe/Berlin", "2026-01-11T08:00:00+01:00", ""},
		"by day":                          {"12:30-14:00 Asia/Kolkata", "2026-01-11T13:00:00+05:30", "2026-01-11T14:00:00+05:30"},
		"elsewhere it is day":             {"22:00-08:00 America/New_York", "2026-01-11T03:00:00+01:00", ""},
		"over the spring change":          {"22:00-08:00 Europe/Berlin", "2026-03-28T23:00:00+01:00", "2026-03-29T08:00:00+02:00"},
		"over the autumn change":          {"22:00-08:00 Europe/Berlin", "2026-10-24T23:00:00+02:00", "2026-10-25T08:00:00+01:00"},
		"an end that the change skips":    {"22:00-02:30 Europe/Berlin", "2026-03-29T01:00:00+01:00", "2026-03-29T03:00:00+02:00"},
		"a start that the change skips":   {"02:30-04:00 Europe/Berlin", "2026-03-29T01:59:59+01:00", ""},
		"and it is quiet behind it":       {"02:30-04:00 Europe/Berlin", "2026-03-29T03:00:00+02:00", "2026-03-29T04:00:00+02:00"},
		"an end that comes twice, first":  {"22:00-02:30 Europe/Berlin", "2026-10-25T02:10:00+02:00", "2026-10-25T02:30:00+02:00"},
		"between the two":                 {"22:00-02:30 Europe/Berlin", "2026-10-25T02:40:00+02:00", ""},
		"an end that comes twice, second": {"22:00-02:30 Europe/Berlin", "2026-10-25T02:10:00+01:00", "2026-10-25T02:30:00+01:00"},
		"half an hour of change":          {"22:00-08:00 Australia/Lord_Howe", "2026-04-04T23:00:00+11:00", "2026-04-05T08:00:00+10:30"},
		"a day that was left out":         {"22:00-08:00 Pacific/Apia", "2011-12-29T23:00:00-10:00", "2011-12-31T08:00:00+14:00"},
		"no zone":                         {"22:00-08:00 UTC", "2026-01-11T00:00:00Z", "2026-01-11T08:00:00Z"},
	} {
		w, err := core.ParseWindow(tc.hours)
		if err != nil {
			t.Fatal(err)
		}
		at, err := time.Parse(time.RFC3339, tc.at)
		if err != nil {
			t.Fatal(err)
		}
		end, quiet := w.Until(at)
		if !quiet {
			if tc.until != "" || !end.Equal(at) {
				t.Errorf("%s: not quiet, %v", name, end)
			}
			continue
		}
		if want, err := time.Parse(time.RFC3339, tc.until); err != nil || !end.Equal(want) {
			t.Errorf("%s: quiet until %v, want %q", name, end, tc.until)
		}
	}
	for _, bad := range []string{"", "22:00-22:00 UTC", "9:00-10:00 UTC", "22:00-24:00 UTC", "22:00-08:00 Mars/Base", "22:00 UTC"} {
		if _, err := core.ParseWindow(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// TestQuietHoursEnd holds Until against looking at the wall's clock every minute, over changes of every sort.
func TestQuietHoursEnd(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		zone := rapid.SampledFrom([]string{"Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo", "America/St_Johns", "Asia/Kathmandu"}).Draw(rt, "zone")
		from := rapid.IntRange(0, 1439).Draw(rt, "from")
		to := (from + rapid.IntRange(1, 1439).Draw(rt, "long")) % 1440
		clock := func(m int) string { return time.Date(2000, 1, 1, 0, m, 0, 0, time.UTC).Format("15:04") }
		q := core.QuietHours{From: clock(from), To: clock(to)}
		w, err := q.Window(zone)
		if err != nil {
			rt.Fatal(err)
		}
		loc, _ := time.LoadLocation(zone)
		year := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		at := year.Add(time.Duration(rapid.IntRange(0, 525600).Draw(rt, "minute")) * time.Minute)
		inside := func(x time.Time) bool {
			l := x.In(loc)
			m := l.Hour()*60 + l.Minute()
			return (m-from+1440)%1440 < (to-from+1440)%1440
		}
		want := at
		for inside(want) {
			want = want.Add(time.Minute)
		}
		if end, quiet := w.Until(at); !end.Equal(want) || quiet != inside(at) {
			rt.Fatalf("%s at %s: quiet %v until %s, want %s", w, at.In(loc), quiet, end.In(loc), want.In(loc))
		}
	})
}

func TestDecide(t *testing.T) {
	t.Parallel()
	night := time.Date(2026, 11, 27, 23, 0, 0, 0, time.UTC)
	morning := time.Date(2026, 11, 28, 7, 0, 0, 0, time.UTC)
	rec := &core.Recipient{Timezone: "Europe/Berlin", Preferences: core.Preferences{"news": {"email": false}},
		QuietHours: &core.QuietHours{From: "22:00", To: "08:00", Channels: []string{"push"}}}
	rules := core.Rules{Categories: core.Categories{"security": {Mandatory: true}}}
	const window = "22:00-08:00 Europe/Berlin"
	for name, tc := range map[string]struct {
		n       core.Notification
		channel string
		due     time.Time
		want    core.Choice
	}{
		"nothing against it":                {core.Notification{Category: "orders"}, "email", night, core.Choice{DueAt: night}},
		"a preference":                      {core.Notification{Category: "news"}, "email", night, core.Choice{Skip: core.SkipPreference, DueAt: night}},
		"critical passes no preference":     {core.Notification{Category: "news", Priority: providers.Critical}, "email", night, core.Choice{Skip: core.SkipPreference, DueAt: night}},
		"quiet":                             {core.Notification{}, "push", night, core.Choice{DueAt: morning, Held: core.HeldQuiet, Quiet: window}},
		"critical passes quiet hours":       {core.Notification{Priority: providers.Critical}, "push", night, core.Choice{DueAt: night}},
		"by day it keeps the window":        {core.Notification{}, "push", morning, core.Choice{DueAt: morning, Quiet: window}},
		"mandatory waits until the morning": {core.Notification{Category: "security"}, "push", night, core.Choice{DueAt: morning, Held: core.HeldQuiet, Quiet: window}},
	} {
		if diff := cmp.Diff(tc.want, rules.Decide(rec, &tc.n, tc.channel, tc.due)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
