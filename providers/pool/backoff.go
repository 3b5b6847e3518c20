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

// lifetime takes up to a tenth from d, so that connections opened together do not end together.
func lifetime(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d - rand.N(d/10+1)
}
