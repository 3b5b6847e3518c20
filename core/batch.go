package core

import (
	"slices"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// BatchState is a batch's state.
type BatchState uint8

// The states of a batch. Their numbers are kept in the store and never change.
const (
	BatchPending BatchState = iota + 1 // waits in SQL until DueAt
	BatchQueued                        // its wake was handed to the queue
	BatchSending                       // a round is under way, under a lease
	BatchDone                          // nothing left to do
)

// Spans of a batch's life.
const (
	// DispatchTimeout is how long after its due time a wake may take to become a round before the
	// relay makes another: the alarm clock behind every wake.
	DispatchTimeout = 10 * time.Second
	// Unclaimed is how long a batch whose wake is due may be queued before the relay asks whether the queue
	// still has that wake. If it does not, it is lost or in the hands of somebody who is dead or stuck, and
	// is made anew another such span later rather than after DispatchTimeout.
	Unclaimed = time.Second
	// Near is how far ahead a wake is handed to the queue with its due time; what is due later waits
	// in SQL alone.
	Near = 5 * time.Minute
	// EarlyWake is how much too early a wake may come and still be taken: asynq's due times are whole
	// seconds, truncated.
	EarlyWake = time.Second
	// LeaseSlack is what a lease lasts beyond its route's call timeout.
	LeaseSlack = 5 * time.Second
)

// Batch is up to 100 deliveries of one app for one route and lane that are due together. A message
// alone is a batch of one.
type Batch struct {
	ID    ID
	App   string
	Route string
	Lane  Lane
	State BatchState
	// Fence grows with every hand-over; who holds an older one changes nothing.
	Fence int64
	// DueAt is when the batch should go. RunAt is when the relay looks at it: DueAt while it waits in
	// SQL, the end of the dispatch timeout or of the lease when it should be in other hands.
	DueAt, RunAt time.Time
	// Parent is the batch that this one was split from, zero for none: its rounds are this one's past.
	Parent ID
	// Campaign is the one whose page it is of, zero for none. It pauses with it.
	Campaign ID
}

// Wake is what the queue carries: which batch, under which fence. It holds no content, no address, no
// personal data; losing, delaying or doubling one does no harm.
type Wake struct {
	Batch ID
	Fence int64
	// App is whose batch it is. It counts where wakes enter the queue, and is not carried: a handler
	// gets none.
	App   string
	Route string
	Lane  Lane
	At    time.Time // when it is due; not after now: at once
}

// RouteLane names one queue of wakes.
type RouteLane struct {
	Route string
	Lane  Lane
}

// Round is one pass of a worker over a batch: what Claim hands out.
type Round struct {
	Batch
	// Now is the database's time at the claim; LeaseEnd the time by which the round must be settled.
	Now, LeaseEnd time.Time
	Paused        bool // the route or the campaign is paused: hold everything
	// Unsent says of a round that the relay took that no worker has had the batch since its last round was settled: what
	// is pending was not sent since, and is not unknown.
	Unsent     bool
	Deliveries []Delivery // pending ones only
	// Contents are what the deliveries point at. One is missing where its recipient was erased meanwhile, or it
	// cannot be made sense of.
	Contents map[ContentRef]*Content
}

// Settlement is what a round came to, to be written in one transaction.
type Settlement struct {
	Batch  Batch // as claimed
	Worker string
	// Verdicts has one entry for each delivery of the round.
	Verdicts []Verdict
	// Results is the record of the attempts, for the timeline; empty if none was made.
	Results []Attempt
	// Silent says that the route's service never says anything of a message afterwards, so that nobody will
	// look for a delivery by the service's id.
	Silent bool
	// Stay is what becomes of the batch itself; Moves are the new batches split from it.
	Stay  Batch
	Moves []Move
	// Advanced is the store's answer: how many deliveries of later channels go now, because their fallback
	// moved on with this. Their batches are due; the relay finds them.
	Advanced int
	// At is when the round ended: the claim's Now, and what passed since by the monotonic clock.
	At time.Time
}

// Add puts in what one delivery came to, and the record of it; res is nil where no attempt was made.
func (s *Settlement) Add(v Verdict, res *providers.Result) {
	a := Attempt{Delivery: v.Delivery.ID, Code: v.Delivery.Code, State: v.Delivery.State, None: res == nil}
	if res != nil {
		a.Outcome, a.Reason, a.Parts = res.Outcome, res.Reason, res.Parts
	}
	if v.Held {
		a.HeldTill = v.DueAt.UnixMilli()
	}
	s.Verdicts, s.Results = append(s.Verdicts, v), append(s.Results, a)
}

// Attempt is the record of what a round did with one message.
type Attempt struct {
	Delivery ID                `json:"d"`
	Outcome  providers.Outcome `json:"o"`
	Code     string            `json:"c,omitempty"`
	Reason   string            `json:"r,omitempty"`
	HeldTill int64             `json:"h,omitempty"` // Unix milliseconds; 0: not held
	State    State             `json:"s"`
	Parts    int               `json:"p,omitempty"`
	None     bool              `json:"n,omitempty"` // no attempt was made: held or expired before it
}

// Move is a new batch and the deliveries that go into it.
type Move struct {
	Batch      Batch
	Deliveries []ID
}

// Schedule sets the state and the alarm clock of a batch that is due at b.DueAt: queued, with a wake,
// when that is near and wake allows it, otherwise pending in SQL. It reports the wake.
func (b *Batch) Schedule(now time.Time, wake bool) (Wake, bool) {
	if wake && b.DueAt.Sub(now) <= Near {
		b.State, b.RunAt = BatchQueued, later(b.DueAt, now).Add(DispatchTimeout)
		return Wake{Batch: b.ID, Fence: b.Fence, App: b.App, Route: b.Route, Lane: b.Lane, At: b.DueAt}, true
	}
	b.State, b.RunAt = BatchPending, b.DueAt
	return Wake{}, false
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Split decides what becomes of a batch after its round: deliveries that stay pending are grouped by
// the second in which they are due; the largest group stays in the batch, each other one moves to a
// batch of its own. Every group's due time is its latest member's, so that nothing goes too early.
// The fence grows whatever happens. What is split the same way gets the same ids. wake says whether the queue has room.
func (s *Settlement) Split(now time.Time, wake bool) []Wake {
	groups := map[int64][]*Verdict{}
	for i := range s.Verdicts {
		if v := &s.Verdicts[i]; v.Held {
			groups[v.DueAt.Unix()] = append(groups[v.DueAt.Unix()], v)
		}
	}
	s.Stay, s.Moves = s.Batch, nil
	s.Stay.Fence++
	if len(groups) == 0 {
		s.Stay.State, s.Stay.RunAt = BatchDone, now
		return nil
	}
	seconds := make([]int64, 0, len(groups))
	for sec := range groups {
		seconds = append(seconds, sec)
	}
	slices.SortFunc(seconds, func(a, b int64) int {
		if d := len(groups[b]) - len(groups[a]); d != 0 {
			return d
		}
		return int(a - b)
	})
	var wakes []Wake
	for i, sec := range seconds {
		b := s.Stay
		if i > 0 {
			b = Batch{ID: s.Batch.ID.Derived(now, s.Batch.Fence, i), App: s.Batch.App, Route: s.Batch.Route, Lane: s.Batch.Lane, Fence: 1, Parent: s.Batch.ID, Campaign: s.Batch.Campaign}
		}
		b.DueAt = time.Time{}
		ids := make([]ID, 0, len(groups[sec]))
		for _, v := range groups[sec] {
			b.DueAt = later(v.DueAt, b.DueAt)
			v.Delivery.Batch = b.ID
			ids = append(ids, v.Delivery.ID)
		}
		if w, ok := b.Schedule(now, wake); ok {
			wakes = append(wakes, w)
		}
		if i == 0 {
			s.Stay = b
		} else {
			s.Moves = append(s.Moves, Move{Batch: b, Deliveries: ids})
		}
	}
	return wakes
}

// Pack puts the deliveries of notifications accepted together into batches: the same app, route, lane
// and due second share one, up to maxBatch(route). What is due at once shares a batch whatever the
// millisecond. It sets each delivery's Batch. wake says whether a wake of that app, route, lane and due
// time may be handed to the queue.
func Pack(as []*Acceptance, now time.Time, maxBatch func(route string) int, wake func(like Wake) bool) ([]Batch, map[ID]Wake) {
	type key struct {
		app, route string
		lane       Lane
		due        int64
	}
	type open struct {
		at, n int
	}
	var batches []Batch
	current := map[key]open{}
	for _, a := range as {
		n := &a.Notification
		for i := range a.Deliveries {
			d := &a.Deliveries[i]
			k := key{app: d.App, route: d.Route, lane: n.Priority}
			due, at := now, n.SendAt
			if !d.DueAt.IsZero() {
				at = d.DueAt
			}
			if at.After(now) {
				k.due, due = at.Unix(), at
			}
			o, ok := current[k]
			if !ok || o.n >= max(1, maxBatch(d.Route)) {
				o = open{at: len(batches)}
				batches = append(batches, Batch{ID: NewID(now), App: d.App, Route: d.Route, Lane: n.Priority, Fence: 1, DueAt: due})
			}
			b := &batches[o.at]
			b.DueAt = later(b.DueAt, due)
			d.Batch = b.ID
			o.n++
			current[k] = o
		}
	}
	wakes := map[ID]Wake{}
	for i := range batches {
		b := &batches[i]
		if w, ok := b.Schedule(now, wake(Wake{App: b.App, Route: b.Route, Lane: b.Lane, At: b.DueAt})); ok {
			wakes[b.ID] = w
		}
	}
	return batches, wakes
}
