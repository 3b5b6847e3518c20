package campaign

import (
	"sync"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// How much of a campaign may wait for workers, in batches. A worker never waits for the planner, and whoever
// comes after a campaign on the same route waits for no more than the route does in about a second, however
// many campaigns are before it.
const (
	// aheadFor is how long the workers may have something to do at the pace that they took this campaign's
	// batches of late.
	aheadFor = time.Second
	// minWaiting is what may wait in any case, and maxWaiting at the most: that is made too early when it is
	// cancelled.
	minWaiting, maxWaiting = 4, 48
	// measureFor is how long the pace is measured at least.
	measureFor = 200 * time.Millisecond
	// forgetFlow is when the pace of a campaign that nobody expands here any more is forgotten.
	forgetFlow = time.Minute
)

// flow is how quickly workers take a campaign's batches. Beside the turn that has the campaign, one that lost it may
// still use it before it finds out.
type flow struct {
	mu        sync.Mutex
	since     time.Time // the beginning of the measure under way
	open      int       // due batches as it began
	made      int       // batches made since
	perSecond float64   // 0: not known yet
	each      float64   // deliveries of a batch, as made last; 0: not known yet
}

// look notes how many batches are due and how many of them are with a worker, and says how many more may
// wait.
func (f *flow) look(due, sending int, now time.Time) (room int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch elapsed := now.Sub(f.since); {
	case f.since.IsZero() || elapsed > 2*turnLength: // it rested meanwhile
		f.since, f.open, f.made = now, due, 0
	case elapsed >= measureFor:
		pace := float64(max(0, f.open+f.made-due)) / elapsed.Seconds()
		if f.perSecond > 0 {
			pace = (f.perSecond + pace) / 2
		}
		f.perSecond, f.since, f.open, f.made = pace, now, due, 0
	}
	may := min(maxWaiting, max(minWaiting, int(f.perSecond*aheadFor.Seconds())))
	return may - (due - sending)
}

// add notes a page's batches, of those that are due.
func (f *flow) add(a *core.Acceptance) {
	batches := map[core.ID]bool{}
	n := 0
	for i := range a.Deliveries {
		if d := &a.Deliveries[i]; !d.DueAt.After(a.Notification.SendAt) {
			batches[d.Batch] = true
			n++
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.made += len(batches); n > 0 {
		f.each = float64(n) / float64(len(batches))
	}
}

// people is how many recipients fill a number of batches, each with some deliveries; 0: nobody knows yet.
func (f *flow) people(room int, perPerson float64) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int(float64(room) * f.each / max(1, perPerson))
}

// flows are the flows of the campaigns that are expanded here, and when each was asked for last.
type flows struct {
	mu   sync.Mutex
	of   map[core.ID]*flow
	seen map[core.ID]time.Time
}

// get returns a campaign's.
func (s *flows) get(id core.ID, now time.Time) *flow {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[id] = now
	if f := s.of[id]; f != nil {
		return f
	}
	for old, at := range s.seen {
		if now.Sub(at) > forgetFlow {
			delete(s.of, old)
			delete(s.seen, old)
		}
	}
	f := &flow{}
	s.of[id] = f
	return f
}
