package websocket_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/porttest"
	"github.com/carillon-notify/carillon/providers/websocket"
)

// TestGatewaysOutliveRedis kills the Redis of two gateways, each with a client, and brings an empty one up in
// its place: what the old one held is lost, and the clients are told so; what comes afterwards reaches them
// from either gateway, and is recovered at either.
func TestGatewaysOutliveRedis(t *testing.T) {
	t.Parallel()
	program(t, "redis-server")
	port := porttest.Free(t)
	stop := startRedis(t, port)
	one, two := open(t, onRedis(port)), open(t, onRedis(port))
	for _, s := range []*site{one, two} { // each starts on its own; a message waits for the first try
		if got := outcome(t, s, message("shop", "nobody", "")); got != providers.Absent {
			t.Fatalf("with nobody there: %v", got)
		}
	}
	ann, ben := token(t, "shop", "ann"), token(t, "shop", "ben")
	atOne, atTwo := connect(t, one, ann), connect(t, two, ben)
	for i := range 5 {
		title := fmt.Sprintf("before %d", i)
		for _, r := range deliver(t, two, message("shop", "ann", title), message("shop", "ben", title)) {
			if r.Outcome != providers.Accepted {
				t.Fatalf("%s: %+v", title, r)
			}
		}
		if a, b := atOne.pub().Title, atTwo.pub().Title; a != title || b != title {
			t.Errorf("got %q and %q, want %q", a, b, title)
		}
	}
	was := position{atOne.at.channel, atOne.at.epoch, 5}

	stop()
	batch := []providers.Message{message("shop", "ann", "after"), message("shop", "ben", "after")}
	for _, from := range []*site{one, two} {
		deliver(t, from, message("shop", "ann", probe), message("shop", "ben", probe)) // find out, deferred or unknown
		for _, r := range deliver(t, from, batch...) {
			if r.Outcome != providers.Deferred {
				t.Errorf("with no Redis: %+v", r)
			}
		}
	}
	startRedis(t, port)
	for i, from := range []*site{two, one} { // each through the gateway where its client is not
		m := batch[i]
		m.Attempt = 2
		eventually(t, "Redis is found again", func() bool { return outcome(t, from, m) != providers.Deferred })
	}
	// The stream is another one: who was in the old one is told to come again, as soon as anything comes once
	// the gateways listen again.
	for _, c := range []*conn{atOne, atTwo} {
		eventually(t, "the client is told", func() bool {
			deliver(t, two, message("shop", "ann", probe), message("shop", "ben", probe))
			select {
			case <-c.ended:
				return true
			default:
				return false
			}
		})
	}
	atOne.endsWith(insufficientState)
	atTwo.endsWith(insufficientState)
	again := connect(t, two, ann, was)
	if again.sub.Recovered || again.at.epoch == was.epoch {
		t.Errorf("recovered a stream that is lost: %+v", again.sub)
	}
	again.cut()
	now := position{again.at.channel, again.at.epoch, again.at.offset}
	eventually(t, "she is gone", func() bool {
		return outcome(t, one, message("shop", "ann", probe)) == providers.Absent
	})
	for _, title := range []string{"one", "two"} {
		if got := outcome(t, two, message("shop", "ann", title)); got != providers.Absent {
			t.Errorf("%s: %v", title, got)
		}
	}
	back := connect(t, one, ann, now)
	if diff := cmp.Diff([]string{"one", "two"}, back.recovered()); diff != "" || !back.sub.Recovered {
		t.Errorf("recovered %v (-want +got):\n%s", back.sub.Recovered, diff)
	}
	if got := outcome(t, two, message("shop", "ann", "live")); got != providers.Accepted {
		t.Errorf("live again: %v", got)
	}
	if got := back.pub().Title; got != "live" {
		t.Errorf("got %q", got)
	}
}

// TestMissedWhileRedisWasAway publishes in the moment when Redis is up again and the gateways do not listen to
// it yet: a client that is connected all the while has missed it, and is told so before long.
func TestMissedWhileRedisWasAway(t *testing.T) {
	t.Parallel()
	program(t, "redis-server")
	port := porttest.Free(t)
	stop := startRedis(t, port)
	one := open(t, onRedis(port))
	if got := outcome(t, one, message("shop", "nobody", "")); got != providers.Absent {
		t.Fatalf("with nobody there: %v", got)
	}
	c := connect(t, one, token(t, "shop", "u"))
	stop()
	startRedis(t, port)
	rival := open(t, onRedis(port), func(s *websocket.Settings) { s.Serve, s.Secret = false, "" })
	eventually(t, "it is published", func() bool { return outcome(t, rival, message("shop", "u", "missed")) != providers.Deferred })
	const soonEnough = 45 * time.Second // a look each 25 s, the first perhaps sooner than 20 s after the start
	select {
	case <-c.ended:
		c.endsWith(insufficientState)
	case r := <-c.replies: // it was faster than us
		if r.Push == nil || r.Push.Pub == nil || r.Push.Pub.Data.Title != "missed" {
			t.Errorf("got %+v", r)
		}
	case <-time.After(soonEnough):
		t.Error("nobody tells the client that it missed something")
	}
}

// insufficientState is centrifuge's word for a client that missed something.
const insufficientState = 3010
