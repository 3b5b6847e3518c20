package dispatch_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/providers"
)

// unwelcoming is a bench whose gate and queue are as a test says. It notes what is woken.
type unwelcoming struct {
	*bounds
	room  int
	asked int
	wakes []core.Wake
	code  string // of a gate that grants nothing
}

func (u *unwelcoming) Admit(_ context.Context, _ string, _ core.Lane, n int) (int, time.Duration, string) {
	if u.asked++; u.asked > 3 {
		return n, 0, "" // for it is asked for ever
	}
	return 0, 0, u.code
}

func (u *unwelcoming) Room(core.Wake) int { return u.room }

func (u *unwelcoming) Wake(_ context.Context, wakes ...core.Wake) error {
	u.wakes = append(u.wakes, wakes...)
	return nil
}

// TestGateGrantsNothing: a gate that grants nothing and says no more is asked once in a round, and what it grants nothing of
// rests for a second at least: else round would follow round without a pause.
func TestGateGrantsNothing(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"", core.CodeCircuitOpen, core.CodeRate} {
		t.Run("code "+code, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				u := &unwelcoming{bounds: newBounds(2), room: 10, code: code}
				u.deliver = all(providers.Accepted)
				if err := u.playAs(u); err != nil {
					t.Fatal(err)
				}
				if u.asked != 1 {
					t.Errorf("it was asked %d times", u.asked)
				}
				for _, v := range u.settled.Verdicts {
					if !v.Held || v.DueAt.Sub(u.began) < time.Second {
						t.Errorf("held: %t, for %v", v.Held, v.DueAt.Sub(u.began))
					}
				}
				if len(u.wakes) != 1 || u.settled.Stay.State != core.BatchQueued {
					t.Errorf("woken: %v, the batch is %v", u.wakes, u.settled.Stay.State)
				}
			})
		})
	}
}

// TestNoRoomNoWake: what is held is not woken where the queue has no room for it, and left to the relay.
func TestNoRoomNoWake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		u := &unwelcoming{bounds: newBounds(2), room: 0, code: core.CodeCircuitOpen}
		if err := u.playAs(u); err != nil {
			t.Fatal(err)
		}
		if len(u.wakes) != 0 || u.settled.Stay.State != core.BatchPending {
			t.Errorf("woken: %v, the batch is %v", u.wakes, u.settled.Stay.State)
		}
	})
}

// TestStoreStaysAway: a claim of a store that stays away is given up after a lease's slack, and at once when the process is
// to stop: then it is not asked without a pause.
func TestStoreStaysAway(t *testing.T) {
	t.Parallel()
	const ever = 1000
	for name, tc := range map[string]struct {
		stop time.Duration
		took time.Duration
		most int
	}{
		"for long":                  {time.Hour, core.LeaseSlack, 8},
		"and the process is to end": {time.Second, time.Second, 4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBounds(1)
				b.away["claim"] = ever
				ctx, cancel := context.WithTimeout(t.Context(), tc.stop)
				defer cancel()
				if err := b.dispatch(ctx); err == nil {
					t.Error("it says that it has claimed")
				}
				if took := time.Since(b.began); took > tc.took || took < tc.took/2 {
					t.Errorf("it took %v", took)
				}
				if n := ever - b.away["claim"]; n > tc.most {
					t.Errorf("the store was asked %d times", n)
				}
			})
		})
	}
}

// TestExpiredNeedsNoGate: what ran out of time has come to its end, whatever the gate says.
func TestExpiredNeedsNoGate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		u := &unwelcoming{bounds: newBounds(1), code: core.CodeCircuitOpen}
		u.round.Deliveries[0].ExpiresAt = u.began
		if err := u.playAs(u); err != nil {
			t.Fatal(err)
		}
		if got := u.settled.Verdicts[0].Delivery.State; got != core.Expired || u.asked > 0 {
			t.Errorf("it is %s, the gate was asked %d times", got, u.asked)
		}
	})
}
