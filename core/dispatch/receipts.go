package dispatch

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// unknownID is how long a receipt waits that names a message by an id of the service's which nobody knows:
// it may have been faster than the round that tells us.
const unknownID = 2 * time.Second

// A flood of receipts that are of nobody's delivery costs a look into the database each. Beyond strangersSpare,
// which are paid back at one each strangersPace, whoever reports one is held until there is room for it. It is
// no offence of the provider's: a plugin passes on what its clients and its service say.
const (
	strangersSpare = 1000
	strangersPace  = 10 * time.Millisecond
	strangersHold  = time.Second // at most
	strangersTold  = time.Minute // between two words in the log
)

// strangers counts the receipts that are of nobody's delivery.
type strangers struct {
	mu   sync.Mutex
	debt time.Duration // at that time
	at   time.Time
	told time.Time
}

// come notes one, and says how long to hold it and whether to tell of it.
func (s *strangers) come(now time.Time) (hold time.Duration, tell bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	const spare = strangersSpare * strangersPace
	s.debt, s.at = min(max(s.debt-now.Sub(s.at), 0)+strangersPace, spare+strangersHold), now
	hold = max(s.debt-spare, 0)
	if tell = hold > 0 && now.Sub(s.told) >= strangersTold; tell {
		s.told = now
	}
	return hold, tell
}

// receive calls the provider's Receive and turns a panic of its goroutine into an error.
func receive(ctx context.Context, rec providers.Receiver, report func(providers.Receipt) error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("the provider panicked: %T", v)
		}
	}()
	return rec.Receive(ctx, report)
}

// Receive takes in what a route's provider hears back, until ctx ends. A Receive that fails is begun
// again with back-off.
func (d *Dispatcher) Receive(ctx context.Context, store Receipts, route string, rec providers.Receiver) {
	wait := time.Second
	var strangers strangers
	for ctx.Err() == nil {
		began := time.Now()
		err := receive(ctx, rec, func(receipt providers.Receipt) error {
			found, err := store.Receipt(ctx, route, receipt)
			if err == nil && !found && receipt.ID == "" && pause(ctx, unknownID) {
				found, err = store.Receipt(ctx, route, receipt)
			}
			if err != nil {
				return fmt.Errorf("record receipt: %w", err)
			}
			d.observer.Received(route, receipt.Event, found)
			if !found {
				hold, tell := strangers.come(time.Now())
				if tell {
					d.log.Warn("many receipts are of no delivery of this route: they are taken slowly", "route", route)
				}
				pause(ctx, hold)
			}
			if found && (receipt.Event == providers.EventFailed || receipt.Event == providers.EventBounced) {
				d.nudge() // a fallback may have moved on
			}
			return nil
		})
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Minute {
			wait = time.Second
		}
		d.log.Warn("provider stopped receiving; it is begun again", "route", route, "error", err, "in", wait)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, time.Minute)
	}
}
