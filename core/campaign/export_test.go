package campaign

import (
	"time"

	"github.com/carillon-notify/carillon/core"
)

// OnClock is when a zone's clock shows what a time of UTC does.
func OnClock(wall time.Time, zone *time.Location) time.Time { return onClock(wall, zone) }

// NextOccurrence is a campaign's first occurrence after a time.
func NextOccurrence(c *core.CampaignSpec, after time.Time) (time.Time, error) {
	return nextOccurrence(c, after)
}
