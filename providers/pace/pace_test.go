package pace_test

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carillon-notify/carillon/providers/pace"
)

// TestPace: the first of a kind is said, then one a minute with the count of those that were not; kinds do not
// silence each other, and however many there are, what is remembered of them is bounded.
func TestPace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var p pace.Pace
		expect := func(kind string, skipped int, now bool) {
			t.Helper()
			if s, n := p.Say(kind); s != skipped || n != now {
				t.Errorf("%s: %d, %v; want %d, %v", kind, s, n, skipped, now)
			}
		}
		expect("a", 0, true)
		expect("b", 0, true)
		for range 500 {
			expect("a", 0, false)
			time.Sleep(pace.Again / 501)
		}
		time.Sleep(pace.Again / 10)
		expect("a", 500, true)
		expect("a", 0, false)
		expect("b", 0, true)
		saidNow := 0
		for i := range 10_000 {
			if _, now := p.Say(strconv.Itoa(i)); now {
				saidNow++
			}
		}
		if saidNow > 100 {
			t.Errorf("%d of 10000 kinds were said at once", saidNow)
		}
	})
}
