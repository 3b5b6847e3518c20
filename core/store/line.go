package store

import (
	"slices"
	"sync"
	"time"
)

// Bounds of a group.
const (
	maxGroup      = 256
	maxDeliveries = 4000 // so that one transaction stays short
	// What makes a group full: more would hardly make it cheaper for each.
	fullGroup      = 100
	fullDeliveries = 1000
	// A group that is not full waits for the commit under way, but not for one that takes longer than
	// this: it may wait for somebody's lock.
	flight = 20 * time.Millisecond
	// And it waits for those who were just answered, if that were so many, as long as one of them comes back
	// within each absence: a busy machine has them back one by one. Who is alone was in no such company and
	// waits for nothing.
	company  = 4
	absence  = 4 * time.Millisecond
	patience = 20 * time.Millisecond // in all
	// And in all no longer than so many commits take: whoever comes counts as one who comes back, and callers who
	// do not wait for each other would be kept until as many have come as were answered.
	commits = 3
)

// line is where members wait for a group. A commit costs much the same however many share it, and
// notifications that share one share a batch, its wake and its round as well. So a line is patient while
// there is a crowd: committers close one group after the other, each when it is full or when those who
// were just answered are back. Claims do not wait for them: what was accepted is under way meanwhile.
type line struct {
	turn chan struct{} // held by the committer that gathers
	ring chan struct{} // rung when it has to look again
	half bool          // see crowd

	mu      sync.Mutex
	waiting []*member
	weight  int // of those who wait
	enough  int // how many the gatherer wants to hear of
	closed  bool

	flying   int           // commits under way
	began    time.Time     // the latest of them
	took     time.Duration // by a commit of acceptances, the last ones weighing most
	rounds   bool          // the last commit had claims or settlements
	answered int           // acceptances that the last commit answered
	ended    time.Time     // and when
	away     int           // acceptances that were answered and did not come back yet, of this and earlier ones
	until    time.Time     // they are waited for
}

// newLine returns an empty line, for so many committers.
func newLine(committers int) *line {
	return &line{turn: make(chan struct{}, 1), ring: make(chan struct{}, 1), half: committers == 1}
}

// join puts a member at the end, and reports whether the line is open.
func (l *line) join(m *member) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.waiting, l.weight = append(l.waiting, m), l.weight+m.weight()
	if m.record != nil && l.away > 0 {
		l.away--
		if now := time.Now(); now.Before(l.until) {
			l.until = minTime(now.Add(absence), l.ended.Add(l.patience()))
		}
	}
	if len(l.waiting) >= l.enough || l.full() || m.claim != nil {
		l.call()
	}
	return true
}

func (l *line) full() bool { return len(l.waiting) >= fullGroup || l.weight >= fullDeliveries }

func (l *line) call() {
	select {
	case l.ring <- struct{}{}:
	default:
	}
}

// close lets nobody in any more and returns who waits.
func (l *line) close() []*member {
	l.mu.Lock()
	defer l.mu.Unlock()
	left := l.waiting
	l.waiting, l.closed = nil, true
	l.call()
	return left
}

// gather waits for a group and takes it, nil when the line is closed; done must follow when it is answered.
func (l *line) gather() []*member {
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	for {
		group, wait, closed := l.take(time.Now())
		if group != nil || closed {
			return group
		}
		l.listen(wait)
	}
}

// listen waits for the ring, and no longer than wait, where that is given.
func (l *line) listen(wait time.Duration) {
	if wait <= 0 {
		<-l.ring
		return
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-l.ring:
	case <-t.C:
	}
}

// take takes a group from the front, if it is time for that; else it says how long it may still take, 0
// for as long as nobody comes.
func (l *line) take(now time.Time) (group []*member, wait time.Duration, closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch wait := l.wait(now); {
	case l.closed:
		return nil, 0, true
	case len(l.waiting) == 0:
		l.enough = 1
		return nil, 0, false
	case wait > 0:
		if l.flying == 0 {
			group = l.early()
		}
		if group == nil {
			return nil, wait, false
		}
	default:
		n, weight := 0, 0
		for n < len(l.waiting) && n < maxGroup && weight < maxDeliveries {
			weight += l.waiting[n].weight()
			n++
		}
		group, l.waiting, l.weight = l.waiting[:n:n], l.waiting[n:], l.weight-weight
		if len(l.waiting) == 0 {
			l.waiting = nil // and with it the memory of who was answered long ago
		}
	}
	l.flying, l.began = l.flying+1, now
	return group, 0, false
}

// early takes the claims out of those who wait, with everything else but the acceptances, if there are any.
func (l *line) early() (group []*member) {
	if !slices.ContainsFunc(l.waiting, func(m *member) bool { return m.claim != nil }) {
		return nil
	}
	var left []*member
	for _, m := range l.waiting {
		if m.record != nil {
			left = append(left, m)
			continue
		}
		group, l.weight = append(group, m), l.weight-m.weight()
	}
	l.waiting = left
	return group
}

// wait is how long those who wait may be kept waiting for more.
func (l *line) wait(now time.Time) time.Duration {
	l.enough = fullGroup
	switch {
	case l.full():
		return 0
	case l.flying > 0:
		return l.began.Add(flight).Sub(now)
	case l.answered < company:
		return 0
	}
	crowd := l.crowd()
	if len(l.waiting) >= crowd {
		return 0
	}
	if wait := l.until.Sub(now); wait > 0 {
		l.enough = crowd
		return wait
	}
	l.away = 0 // they stay away
	return 0
}

// crowd is how many a group is worth waiting for: all who were answered and those who are here. Where one committer
// writes in this process, and nothing is delivered, half of them: the cores would have nothing to do while
// it writes. The other half is read, checked and answered then.
func (l *line) crowd() int {
	all := len(l.waiting) + l.away
	if l.half && !l.rounds {
		return (all + 1) / 2
	}
	return all
}

// patience is how long those who were just answered are waited for in all.
func (l *line) patience() time.Duration { return min(patience, commits*l.took) }

// done notes that a group was answered.
func (l *line) done(group []*member) {
	n, rounds := 0, false
	for _, m := range group {
		if m.record != nil {
			n++
		}
		rounds = rounds || m.claim != nil || m.settle != nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flying--
	if n > 0 {
		l.answered, l.ended, l.away = n, time.Now(), l.away+n
		if took := l.ended.Sub(l.began); l.took == 0 {
			l.took = took
		} else {
			l.took += (took - l.took) / 4
		}
		l.until = l.ended.Add(min(absence, l.patience()))
	}
	if n > 0 || rounds {
		l.rounds = rounds
	}
	l.call()
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
