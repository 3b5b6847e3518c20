package app_test

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

// TestRateInRealTime: of a campaign with a rate as many messages arrive in ten seconds as the rate says, within
// 2 %, and of another rate from when it is changed on the way. It is alone on the machine, as no other test here is:
// it is about real time.
func TestRateInRealTime(t *testing.T) {
	t.Run("SQLite", func(t *testing.T) { newCampaignWorld(t, backing{}).paced() })
	t.Run("PostgreSQL and Redis", func(t *testing.T) { newCampaignWorld(t, servers(t)).paced() })
}

func (w *campaignWorld) paced() {
	w.start()
	importMany(w.c, 10_000)
	heard := hearken(w.t, w.world, sandbox.FCM)
	w.id = w.c.campaign(map[string]any{"name": "paced", "audience": map[string]any{"all": true}, "channels": []string{"push"},
		"content": map[string]any{"title": "paced"}, "rate": "200/s"})
	heard.await("paced", 1, 0)
	w.measure(heard, 200)
	w.c.must(http.MethodPatch, "/v1/campaigns/"+w.id, map[string]any{"rate": "110/s"}, nil, http.StatusOK)
	w.measure(heard, 110)
	if v := w.c.campaignView(w.id); v.State != "running" {
		w.t.Errorf("the campaign is %s: there were not enough people for the time", v.State)
	}
}

// measure counts what arrives. Of the windows of ten seconds that begin within three, the median counts: what a
// busy machine puts off over the edge of one is in another. A time in which this process itself was not let run
// for half a second says nothing of the other's, and another is measured.
func (w *campaignWorld) measure(heard *arrivals, rate int) {
	w.t.Helper()
	const window, settle, offsets = 10 * time.Second, 1500 * time.Millisecond, 3 * time.Second
	for range 3 {
		pause(w.t.Context(), settle)
		from, gap, last := time.Now(), time.Duration(0), time.Now()
		for end := from.Add(window + offsets); last.Before(end); {
			pause(w.t.Context(), 20*time.Millisecond)
			gap, last = max(gap, time.Since(last)), time.Now()
		}
		var counts []int
		for offset := time.Duration(0); offset <= offsets; offset += 200 * time.Millisecond {
			counts = append(counts, heard.within(from.Add(offset), window))
		}
		w.t.Logf("at %d/s, in the windows of %s: %v; this process rested for %s at most", rate, window, counts, gap)
		if gap > 500*time.Millisecond {
			continue
		}
		slices.Sort(counts)
		want := rate * int(window/time.Second)
		if got := counts[len(counts)/2]; got < want*98/100 || got > want*102/100 {
			w.t.Errorf("%d messages arrived in %s, want %d within 2 %%", got, window, want)
		}
		// After a stall no more than a second is caught up.
		if most := counts[len(counts)-1]; most > want+rate+want*2/100 {
			w.t.Errorf("%d messages arrived in %s, more than a stall allows", most, window)
		}
		return
	}
	w.t.Errorf("no %s in which this process was let run", window)
}

// within is how many arrived in a window of time, by the world's own clock.
func (a *arrivals) within(from time.Time, window time.Duration) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, at := range a.at {
		if !at.Before(from) && at.Before(from.Add(window)) {
			n++
		}
	}
	return n
}
