package apns

import (
	"sync"
	"time"
)

// crewIdle is how long a goroutine of a crew waits for more to do.
const crewIdle = 5 * time.Second

// crew runs functions side by side, on goroutines that it keeps for a while: what apns2 and net/http
// call is deep, and a new goroutine's stack has to grow to it step by step, which costs about as much
// as the request itself.
type crew struct {
	work chan func()
	quit chan struct{}
	once sync.Once
}

func newCrew() *crew { return &crew{work: make(chan func()), quit: make(chan struct{})} }

// do runs f beside its caller.
func (c *crew) do(f func()) {
	select {
	case c.work <- f: // somebody has nothing to do
	default:
		go c.serve(f)
	}
}

func (c *crew) serve(f func()) {
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

// disband lets those go who have nothing to do.
func (c *crew) disband() { c.once.Do(func() { close(c.quit) }) }
