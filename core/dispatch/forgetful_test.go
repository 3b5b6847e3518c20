package dispatch_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// forgetful is a store whose answers to settlements get lost as often as its stage says.
type forgetful struct {
	*store.Store
	g *stage
}

func (f forgetful) Settle(ctx context.Context, s *core.Settlement) (bool, error) {
	stale, err := f.Store.Settle(ctx, s)
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	if f.g.forget--; err == nil && f.g.forget >= 0 {
		return false, fmt.Errorf("%w: the connection broke", core.ErrUnavailable)
	}
	return stale, err
}

func (g *stage) tells(what string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.told[what]++
}

// Settled implements dispatch.Observer.
func (g *stage) Settled(route string, _ core.Lane, _ *core.Settlement, _ time.Duration) {
	g.tells("settled " + route)
}

// Stale implements dispatch.Observer.
func (g *stage) Stale(route string) { g.tells("stale " + route) }

// Repaired implements dispatch.Observer.
func (g *stage) Repaired(string, int) {}

// Received implements dispatch.Observer.
func (g *stage) Received(string, providers.Event, bool) {}

// TestSettlementWithoutAnswer: a settlement that was kept although its answer was lost, twice, is not stale when it is
// asked for again: it is counted, once, and what it holds is woken for its time.
func TestSettlementWithoutAnswer(t *testing.T) {
	t.Parallel()
	play(t, func(g *stage) {
		g.script["push"], g.forget = providers.Deferred, 2
		g.tell(nobody, 24*time.Hour, "push")
		time.Sleep(30 * time.Second) // the stage's clock
		g.mu.Lock()
		delete(g.script, "push")
		g.mu.Unlock()
		time.Sleep(time.Hour)
		g.mu.Lock()
		defer g.mu.Unlock()
		if d := cmp.Diff(map[string]int{"settled push": 2}, g.told); d != "" {
			t.Errorf("-want +told\n%s", d)
		}
		if d := cmp.Diff([]string{"0s push", "1m0s push"}, g.log); d != "" {
			t.Errorf("-want +sent\n%s", d)
		}
	})
}
