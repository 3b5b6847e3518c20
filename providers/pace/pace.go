// Package pace keeps what is said over and over out of the log: once, and then again with a count.
package pace

import (
	"sync"
	"time"
)

// Again is after how long a complaint that goes on is said again.
const Again = time.Minute

// most is how many kinds are told apart; those beyond share one.
const most = 100

// Pace tells which complaints are to be said. The zero value is ready; it is safe for concurrent use.
type Pace struct {
	mu    sync.Mutex
	kinds map[string]*said
}

type said struct {
	at      time.Time
	skipped int
}

// Say reports whether a complaint of a kind is to be said now: it is the first, or Again has gone by since the last
// that was. skipped is how many were not said since.
func (p *Pace) Say(kind string) (skipped int, now bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.kinds[kind]
	if s == nil && len(p.kinds) >= most {
		kind = ""
		s = p.kinds[kind]
	}
	if s == nil {
		if p.kinds == nil {
			p.kinds = map[string]*said{}
		}
		p.kinds[kind] = &said{at: time.Now()}
		return 0, true
	}
	if time.Since(s.at) < Again {
		s.skipped++
		return 0, false
	}
	skipped = s.skipped
	s.at, s.skipped = time.Now(), 0
	return skipped, true
}
