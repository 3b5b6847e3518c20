package pool

import (
	"math/rand/v2"
	"time"
)

// A service that is down is tried again after firstDelay, then twice as long each time, up to maxDelay:
// Apple treats a burst of new connections as an attack, and a relay that is down is not helped by one. The
// longest delay is what a service that is back still waits for its messages.
const (
	firstDelay = 100 * time.Millisecond
	maxDelay   = 10 * time.Second
)

// backoff remembers failed openings. It is not safe for concurrent use.
type backoff struct {
	failures int
	at       time.Time // of the last failure that counted
	until    time.Time
	err      error
}

// wait returns the error to answer while no other opening may be tried, else nil.
func (b *backoff) wait(now time.Time) *OpenError {
	if left := b.until.Sub(now); b.err != nil && left > 0 {
		return &OpenError{Err: b.err, RetryIn: left}
	}
	return nil
}

// failed notes the failure of an opening that began at a time, and returns what to answer for it. Openings
// that went on side by side fail as one: a pool of many connections would wait the longest delay after one
// cut of them all.
func (b *backoff) failed(began, now time.Time, err error) *OpenError {
	if b.failures > 0 && began.Before(b.at) {
		return &OpenError{Err: err, RetryIn: max(b.until.Sub(now), firstDelay/2)}
	}
	delay := min(firstDelay<<min(b.failures, 10), maxDelay)
	delay -= rand.N(delay/5 + 1)
	b.failures++
	b.err, b.at, b.until = err, now, now.Add(delay)
	return &OpenError{Err: err, RetryIn: delay}
}

// succeeded forgets the failures.
func (b *backoff) succeeded() { *b = backoff{} }

// A connection that its peer ends is paid for by wellUsed uses or longLived. One that is not is a debt, which
// time pays back at one connection each churnPace. While the debts are more than a pool's connections and
// churnSpare, the next one waits: a service that says GOAWAY after each request would otherwise have a new
// one for each.
const (
	wellUsed   = 100
	longLived  = 10 * time.Second
	churnPace  = time.Second
	churnSpare = 8
)

// churn is how many connections were ended before their time. It is not safe for concurrent use.
type churn struct {
	debt float64 // in connections, at that time
	at   time.Time
}

// ended notes that the peer ended a connection.
func (c *churn) ended(now time.Time, uses int, lived time.Duration, conns int) {
	if lived >= longLived || uses >= wellUsed {
		return
	}
	c.debt = min(c.left(now)+1-float64(uses)/wellUsed, float64(conns+churnSpare+1))
	c.at = now
}

// wait is how long the next connection of a pool of so many has to wait, at most churnPace.
func (c *churn) wait(now time.Time, conns int) time.Duration {
	return max(time.Duration((c.left(now)-float64(conns+churnSpare))*float64(churnPace)), 0)
}

// left is what is not paid back yet.
func (c *churn) left(now time.Time) float64 {
	return max(c.debt-float64(now.Sub(c.at))/float64(churnPace), 0)
}

// lifetime takes up to a tenth from d, so that connections opened together do not end together.
func lifetime(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d - rand.N(d/10+1)
}
