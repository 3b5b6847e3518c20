// Package dispatch turns wakes into rounds: claim, admit, send, settle; it takes receipts in; and its
// relay finds what is due or overdue. Deliver tells the whole story of a round, look that of the relay.
//
// The four rules of docs/architecture.md are kept by the store's side of the ports below; what this package adds is
// the order:
//
//  1. The fence comes with the wake, Claim gives the batch under it, and Settle brings it back. Nobody here changes it
//     but core.Settlement.Split, by one. What settle hears to be stale wakes nothing (settled).
//  2. Deliver calls the provider after claim returned and before the lease ends (clock), and settles once all answers are
//     in or given up: what has none is unknown (judge). What a worker took with it when it died, repair calls so.
//  3. What fails on the way is left to the batch's alarm clock: look takes whatever is overdue, in whatever state.
//  4. A round has pending deliveries alone, and one verdict for each (core.Settlement.Add).
//
// The tests' store, memory, looks after every write whether they hold; TestSimulation has it do so for thousands of histories.
package dispatch

import (
	"context"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/providers"
)

// Store is what a round needs of the store. Claim and Settle ride in group commits.
type Store interface {
	// Claim makes the wake's batch the caller's for the lease and commits the round (batch, attempt,
	// worker, start) before it returns. It returns nil when there is nothing to do: a newer fence, a
	// batch that is done or in other hands, one due later than core.EarlyWake from now, or one whose
	// deliveries were all cancelled (which it then closes). A round together with an error is the caller's as
	// well: its contents could not be read. To ask again gives nil, for it is in hand.
	Claim(ctx context.Context, w core.Wake, worker string, lease time.Duration) (*core.Round, error)
	// Settle writes all that a round came to in one transaction, conditional on the fence. stale says
	// that somebody else holds the batch by now: nothing changed, and the results went to the timeline
	// marked late. It is false for a settlement that was kept before though its answer was lost.
	Settle(ctx context.Context, s *core.Settlement) (stale bool, err error)
	// Cancelling returns those deliveries of a batch in a round that are to be cancelled: settled as held they are.
	Cancelling(ctx context.Context, batch core.ID) ([]core.ID, error)
}

// Overdue is what the relay needs of the store.
type Overdue interface {
	// Overdue reports whether any batch that is not done has its run_at behind it, by the database's
	// clock, and whether any is queued though its wake was due core.Unclaimed ago. It is cheap: the relay
	// asks it four times a second.
	Overdue(ctx context.Context) (due, unclaimed bool, err error)
	// Unclaimed makes the batches of a route and lane overdue that are queued though their wakes were due
	// longer than that ago, and returns how many. The caller knows that the queue has none of these wakes.
	Unclaimed(ctx context.Context, on core.RouteLane, longer time.Duration) (int, error)
	// Due takes up to limit batches of a route and lane that are pending or queued and overdue, makes
	// them queued under a new fence with a new alarm clock, and returns their wakes: in turns between
	// apps, of no app more than room says, the longest overdue first. It asks room once of each app
	// that has something overdue. Batches of a paused route are left alone.
	Due(ctx context.Context, route string, lane core.Lane, limit int, room func(app string) int) ([]core.Wake, error)
	// Lapsed takes up to limit batches whose lease ran out under a new fence and the given lease, and
	// returns them as rounds to be settled: with unknown outcomes, or as held where they are Unsent.
	Lapsed(ctx context.Context, limit int, lease time.Duration) ([]*core.Round, error)
	// SettleAll is Settle for the rounds of one call of Lapsed or Strays; it says of each whether it was stale, and its
	// error, nil where there is none.
	SettleAll(ctx context.Context, all []*core.Settlement) (stale []bool, errs []error)
	// Strays takes up to limit batches that are overdue on routes not in the configuration any more, and says
	// how many that were. It moves their alarm clocks on by until; those of which something ran out of time it
	// takes under a new fence and the given lease instead, and returns as rounds to be settled.
	Strays(ctx context.Context, routes []string, limit int, until, lease time.Duration) (rounds []*core.Round, found int, err error)
}

// Receipts is what taking receipts in needs of the store.
type Receipts interface {
	// Receipt records an event of a delivery found by id, or by route and provider id, once, and
	// changes its state where core.State.OnReceipt says so. found is false if there is no such
	// delivery, or its app or address is not the receipt's.
	Receipt(ctx context.Context, route string, r providers.Receipt) (found bool, err error)
}

// Queue carries wakes.
type Queue interface {
	// Wake enqueues. A wake that could not be enqueued is lost, which does no harm but delay: the
	// error says how many and why.
	Wake(ctx context.Context, wakes ...core.Wake) error
	// Room says how many more wakes like this one, of its app, route, lane and due time, the queue
	// takes now: none while the app is behind.
	Room(like core.Wake) int
	// Refill is Room for the relay: for wakes due now, of an app that may be behind.
	Refill(app, route string, lane core.Lane) int
	// Drained says of which of some queues no wake is waiting that is due: all that was, somebody has taken.
	Drained(ctx context.Context, of []core.RouteLane) ([]core.RouteLane, error)
	// Behind notes whether an app has overdue batches in the store which the queue had no room for: then
	// its new ones are to wait there too, so that they overtake none. It holds for a second.
	Behind(app, route string, lane core.Lane, is bool)
}

// Gate answers one question: how many may this route take now?
type Gate interface {
	// Admit waits within ctx for leave to send up to n messages over a route and lane. It returns how
	// many may go now, 0 to n. Without a code these are to be sent at once, and the rest to be asked for again;
	// with one (core.CodeRate, core.CodeCircuitOpen) the rest is to be held until the time given.
	Admit(ctx context.Context, route string, lane core.Lane, n int) (granted int, until time.Duration, code string)
	// Return gives back the leave for n messages that were granted and not sent.
	Return(route string, n int)
	// Report tells what became of the messages granted, so that the circuit and the rate follow. It
	// returns false when a burst of Gone from the route is not to be believed (a sandbox/production
	// mix-up): then no endpoint is dropped and those messages are held.
	Report(route string, results []providers.Result) (believeGone bool)
}

// Routes finds the provider of a route.
type Routes interface {
	// Provider returns the open provider and the limits of a route; ok is false if the configuration
	// no longer has it, or this process delivers nothing.
	Provider(route string) (p providers.Provider, l Limits, ok bool)
	// Policy returns how a route tries again, also where other processes deliver: a relay settles what their
	// lost workers held. It is core.DefaultPolicy for a route that the configuration no longer has.
	Policy(route string) core.Policy
}

// Limits are a route's own.
type Limits struct {
	Timeout time.Duration // of one Deliver call
	Silent  bool          // the service never says anything of a message afterwards: there is no Receiver
	Policy  core.Policy
}

// Observer is told what happens, for the metrics. Its methods must not block.
type Observer interface {
	Settled(route string, lane core.Lane, s *core.Settlement, took time.Duration)
	Stale(route string)
	Repaired(what string, n int) // by the relay: "due", "lapsed", "stray", "unclaimed"
	Received(route string, e providers.Event, found bool)
}
