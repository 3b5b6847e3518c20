package websocket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"

	"github.com/centrifugal/centrifuge"
	"github.com/redis/rueidis"

	"github.com/carillon-notify/carillon/providers"
)

// Codes of the results; centrifuge has no words of its own for these.
const (
	codeTest        = "test"
	codeTooLarge    = "too_large"
	codeBadAddress  = "bad_address"
	codeBadContent  = "bad_content"
	codeUnavailable = "broker_unavailable"
)

// Deliver implements providers.Provider. A message for which a connection was live when it was published
// is Accepted, one for which none was is Absent; either is in the recipient's history. One whose publication Redis did
// not answer is Unknown.
func (g *Gateway) Deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	var l *live
	if g.calls.TryRLock() { // else it is closing
		defer g.calls.RUnlock()
		l = g.running(ctx)
	}
	if l == nil {
		for i := range batch {
			report(providers.Result{ID: batch[i].ID, Outcome: providers.Deferred, Code: codeUnavailable, Reason: "the gateway is not connected to its Redis, or closed"})
		}
		return nil
	}
	if l.shard != nil {
		return g.deliverThroughRedis(ctx, l, batch, report)
	}
	for i := range batch { // publishing in memory is all CPU: more goroutines would gain nothing
		if ctx.Err() != nil {
			report(notHandedOver(batch[i].ID))
			continue
		}
		report(g.deliver(l, &batch[i]))
	}
	return nil
}

func notHandedOver(id string) providers.Result {
	return providers.Result{ID: id, Outcome: providers.Deferred, Code: codeUnavailable, Reason: "the call ended before this message was published"}
}

// deliverThroughRedis publishes the recipients of a batch side by side, for the client pipelines what is
// asked at once, and each recipient's messages in their order. It does not outlast ctx: Redis commands
// cannot be cancelled, so what is on its way then is left without a report, of which the error tells.
func (g *Gateway) deliverThroughRedis(ctx context.Context, l *live, batch []providers.Message, report func(providers.Result)) error {
	batch = slices.Clone(batch) // for a publication that outlasts the call
	lines := make(map[string][]int, len(batch))
	for i := range batch {
		channel := channelOf(batch[i].App, batch[i].Address)
		lines[channel] = append(lines[channel], i)
	}
	results := make(chan providers.Result, len(batch))
	handedOver := make([]atomic.Bool, len(batch)) // set by whoever decides that message's fate
	for _, line := range lines {
		go func() {
			for _, i := range line {
				if handedOver[i].CompareAndSwap(false, true) {
					results <- g.deliver(l, &batch[i])
				}
			}
		}()
	}
	for left := len(batch); left > 0; left-- {
		select {
		case r := <-results:
			report(r)
		case <-ctx.Done():
			for i := range batch {
				if handedOver[i].CompareAndSwap(false, true) {
					report(notHandedOver(batch[i].ID))
					left--
				}
			}
			for ; len(results) > 0; left-- {
				report(<-results)
			}
			if left > 0 {
				return fmt.Errorf("%d of %d messages were on their way to Redis: %w", left, len(batch), ctx.Err())
			}
			return nil
		}
	}
	return nil
}

// deliver publishes one message.
func (g *Gateway) deliver(l *live, m *providers.Message) providers.Result {
	r := providers.Result{ID: m.ID}
	if m.App == "" || !validRecipient(m.Address) {
		r.Outcome, r.Code, r.Reason = providers.Rejected, codeBadAddress, "the address is not the id of a recipient of an app"
		return r
	}
	data, err := encode(make([]byte, 0, 256+len(m.Title)+len(m.Body)+len(m.URL)+len(m.Data)), m)
	if err != nil {
		r.Outcome, r.Code, r.Reason = providers.Rejected, codeBadContent, err.Error()
		if errors.Is(err, errTooLarge) {
			r.Code = codeTooLarge
		}
		return r
	}
	if m.Test {
		r.Outcome, r.Code = providers.Accepted, codeTest
		return r
	}
	channel := channelOf(m.App, m.Address)
	// Presence is asked before publishing: a client that comes in between gets the message and is
	// counted absent, which costs a needless fall-back; asked after, one that came too late to get it
	// would count as reached.
	present, err := g.present(l, channel)
	untold := false
	if err == nil {
		_, err = l.node.Publish(channel, data, g.publish[0], g.publish[1], centrifuge.WithIdempotencyKey(m.ID))
		untold = l.shard != nil && err != nil && !refused(err)
	}
	if l.shard != nil {
		g.inTrouble(err)
	}
	switch {
	case untold: // another attempt shows nothing twice within idempotency, as long as Redis keeps what it has
		r.Outcome, r.Code, r.Reason = providers.Unknown, codeUnavailable, err.Error()
	case err != nil:
		r.Outcome, r.Code, r.Reason = providers.Deferred, codeUnavailable, err.Error()
	case present:
		r.Outcome = providers.Accepted
		g.reused.Add(1)
	default:
		r.Outcome = providers.Absent
	}
	return r
}

// refused says of a publication that failed that Redis has not taken it: Redis said no, or there was no connection to it.
func refused(err error) bool {
	var said *rueidis.RedisError
	var op *net.OpError
	return errors.As(err, &said) || errors.As(err, &op) && op.Op == "dial"
}

// present says whether anybody is subscribed to the channel, here or at another gateway. While Redis is in trouble it is
// asked in any case: a question that gets no answer leaves nobody in doubt about the message.
func (g *Gateway) present(l *live, channel string) (bool, error) {
	here := l.node.Hub().NumSubscribers(channel) > 0
	if l.shard == nil || here && g.trouble.Load() == nil {
		return here, nil
	}
	stats, err := l.node.PresenceStats(channel)
	return err == nil && (here || stats.NumClients > 0), err
}
