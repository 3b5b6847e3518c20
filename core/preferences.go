package core

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
)

// AnyName stands for every category, or every channel, in Preferences and Categories.
const AnyName = "*"

// Preferences are what a recipient chose: by category and channel, whether messages of that category may
// come on that channel. What is not said is not chosen. AnyName stands for all there are.
type Preferences map[string]map[string]bool

// Category is what the application says of one category of its notifications.
type Category struct {
	// Mandatory messages go whatever the recipient chose: what a law or a contract asks for.
	Mandatory bool
	// Defaults are what holds for who chose nothing, by channel (AnyName: every channel); a channel that
	// is not named is on.
	Defaults map[string]bool
}

// Categories are an application's categories by name; AnyName is for those that are not named. A
// notification's category need not be among them.
type Categories map[string]Category

// Mandatory reports whether recipients cannot turn a category off.
func (c Categories) Mandatory(category string) bool { return c[category].Mandatory }

// Wants reports whether a recipient with preferences p is to get messages of a category on a channel. The
// nearest word counts: the recipient's on that category before that on all, a channel before all channels,
// then the application's defaults in the same order; where nobody says anything they come. A mandatory
// category comes always.
func (c Categories) Wants(p Preferences, category, channel string) bool {
	if len(p) == 0 && len(c) == 0 || c.Mandatory(category) {
		return true
	}
	for _, name := range []string{category, AnyName} {
		if on, said := word(p[name], channel); said {
			return on
		}
	}
	for _, name := range []string{category, AnyName} {
		if on, said := word(c[name].Defaults, channel); said {
			return on
		}
	}
	return true
}

func word(by map[string]bool, channel string) (on, said bool) {
	if on, said = by[channel]; !said {
		on, said = by[AnyName]
	}
	return on, said
}

// Limits of preferences.
const (
	MaxCategories = 200 // of one recipient
	maxCategory   = 128 // characters, as a notification's category
)

var channelName = regexp.MustCompile(`^([a-z0-9_-]{1,64}|\*)$`)

// Check says what is wrong with preferences: by category, "" for all of them. known are the channels that
// there are. What had holds is right, though it could not be said any more: a recipient's preferences can always be
// given again as they are.
func (p Preferences) Check(c Categories, known []string, had Preferences) map[string]string {
	faults := map[string]string{}
	if len(p) > max(MaxCategories, len(had)) {
		faults[""] = fmt.Sprintf("name at most %d categories", MaxCategories)
	}
	for _, category := range slices.Sorted(maps.Keys(p)) {
		if n := len([]rune(category)); n == 0 || n > maxCategory {
			faults[category] = fmt.Sprintf("a category's name has 1 to %d characters", maxCategory)
			continue
		}
		for _, channel := range slices.Sorted(maps.Keys(p[category])) {
			on, said := had[category][channel]
			switch {
			case said && on == p[category][channel]:
			case channel != AnyName && !slices.Contains(known, channel):
				faults[category] = fmt.Sprintf("there is no channel %q; use one of %v, or * for all", channel, known)
			case c.Mandatory(category) && !p[category][channel]:
				faults[category] = "is mandatory: it cannot be turned off"
			}
		}
	}
	return faults
}

// Check says what is wrong with an application's categories.
func (c Categories) Check() []string {
	var faults []string
	for _, name := range slices.Sorted(maps.Keys(c)) {
		if name == AnyName && c[name].Mandatory {
			faults = append(faults, `categories.*.mandatory: would leave recipients no choice at all; name the categories`)
		}
		for _, channel := range slices.Sorted(maps.Keys(c[name].Defaults)) {
			if !channelName.MatchString(channel) {
				faults = append(faults, fmt.Sprintf("categories.%s.defaults: %q is no channel's name", name, channel))
			}
		}
	}
	return faults
}
