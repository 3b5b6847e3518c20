package h2

import (
	"sync"
	"time"
)

// crewIdle is how long a goroutine of a crew waits for more to do.
const crewIdle = 5 * time.Second

// Crew runs functions side by side, on goroutines that it keeps for a while: what a service's library and
// net/http call is deep, and a new goroutine's stack has to grow to it step by step, which costs about as
// much as the request itself.
type Crew struct {
	work chan func()
	quit chan struct{}
	once sync.Once
}

// NewCrew returns a crew, which is to be disbanded.
func NewCrew() *Crew { return &Crew{work: make(chan func()), quit: make(chan struct{})} }

// Do runs f beside its caller.
func (c *Crew) Do(f func()) {
	select {
	case c.work <- f: // somebody has nothing to do
	default:
		go c.serve(f)
	}
}

func (c *Crew) serve(f func()) {
	idle := time.NewTimer(crewIdle)
	defer idle.Stop()
	for {
		f()
		idle.Reset(crewIdle)
		select {
		case f = <-c.work:
		case <-idle.C:
			return
		case <-c.quit:
			return
		}
	}
}

// Disband lets those go who have nothing to do. What Do is given afterwards runs all the same.
func (c *Crew) Disband() { c.once.Do(func() { close(c.quit) }) }
