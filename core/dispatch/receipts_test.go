package dispatch_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/dispatch"
	"github.com/carillon-notify/carillon/providers"
)

// TestFloodOfStrangers has a provider flood us with receipts of nobody's delivery, from as many goroutines as
// a plugin has places: they are slowed down, and a receipt of ours is not, nor a few strangers afterwards.
func TestFloodOfStrangers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		store := receipts(func(rc providers.Receipt) bool { return rc.ID == "ours" })
		flood := func(n int, id string, report func(providers.Receipt) error) time.Duration {
			began := time.Now()
			var wg sync.WaitGroup
			for range 64 {
				wg.Go(func() {
					for range n / 64 {
						if err := report(providers.Receipt{ID: id, Event: providers.EventDelivered}); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			return time.Since(began)
		}
		p := provider{receive: func(_ context.Context, report func(providers.Receipt) error) error {
			if took := flood(960, "x", report); took != 0 {
				t.Errorf("a few strangers took %s", took)
			}
			if took := flood(6400, "x", report); took < 50*time.Second || took > 80*time.Second {
				t.Errorf("a flood of strangers took %s", took)
			}
			if took := flood(6400, "ours", report); took != 0 {
				t.Errorf("receipts of ours took %s", took)
			}
			time.Sleep(15 * time.Second)
			if took := flood(960, "x", report); took != 0 {
				t.Errorf("a few strangers later took %s", took)
			}
			cancel()
			return nil
		}}
		var log bytes.Buffer
		dispatch.New(dispatch.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}).Receive(ctx, store, "sms", p)
		if n := strings.Count(log.String(), "of no delivery of this route"); n < 1 || n > 2 || !strings.Contains(log.String(), "route=sms") {
			t.Errorf("told %d times: %s", n, log.String())
		}
	})
}

// TestReceiveBegunAgain: a receiver that fails is begun again after a second, twice as long each time and a minute at most,
// and soon again after it has worked for a while.
func TestReceiveBegunAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var waits []time.Duration
		ended := time.Now()
		p := provider{receive: func(context.Context, func(providers.Receipt) error) error {
			waits = append(waits, time.Since(ended)/time.Second)
			switch len(waits) {
			case 9:
				time.Sleep(2 * time.Minute) // synctest's clock: it works
			case 11:
				cancel()
			}
			ended = time.Now()
			return errors.New("the connection broke")
		}}
		dispatch.New(dispatch.Options{Logger: slog.New(slog.DiscardHandler)}).Receive(ctx, receipts(func(providers.Receipt) bool { return true }), "r", p)
		if diff := cmp.Diff([]time.Duration{0, 1, 2, 4, 8, 16, 32, 60, 60, 1, 2}, waits); diff != "" {
			t.Error("seconds between its turns: " + diff)
		}
	})
}

// hearing is an Observer that counts the receipts that were taken in.
type hearing struct {
	lapsing
	heard map[bool]int
}

func (h *hearing) Received(_ string, _ providers.Event, found bool) { h.heard[found]++ }

// unreliable is a store that cannot record a receipt.
type unreliable struct{}

func (unreliable) Receipt(context.Context, string, providers.Receipt) (bool, error) {
	return false, errAway
}

// TestReceiptTold: who reports a receipt is told if it was not recorded, so that it can report it again; a relay is told to
// look where a fallback may have moved on by it; and whoever counts receipts is told of each that was looked up.
func TestReceiptTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &hearing{heard: map[bool]int{}}
		receive := func(store dispatch.Receipts, rc providers.Receipt) (nudged int, err error) {
			ctx, cancel := context.WithCancel(t.Context())
			p := provider{receive: func(_ context.Context, report func(providers.Receipt) error) error {
				err = report(rc)
				cancel()
				return nil
			}}
			dispatch.New(dispatch.Options{Logger: slog.New(slog.DiscardHandler), Observer: h, Nudge: func() { nudged++ }}).Receive(ctx, store, "r", p)
			return nudged, err
		}
		known := receipts(func(rc providers.Receipt) bool { return rc.ID == "ours" })
		for _, rc := range []providers.Receipt{{ID: "ours"}, {ProviderID: "ours"}} {
			if _, err := receive(unreliable{}, rc); !errors.Is(err, core.ErrUnavailable) {
				t.Errorf("%+v was not recorded: %v", rc, err)
			}
		}
		got := map[providers.Event]int{}
		for _, e := range []providers.Event{providers.EventDelivered, providers.EventFailed, providers.EventBounced, providers.EventRead} {
			for _, id := range []string{"ours", "another's"} {
				n, err := receive(known, providers.Receipt{ID: id, Event: e})
				if err != nil {
					t.Error(err)
				}
				got[e] += n
			}
		}
		want := map[providers.Event]int{providers.EventDelivered: 0, providers.EventFailed: 1, providers.EventBounced: 1, providers.EventRead: 0}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error("the relay is nudged: " + diff)
		}
		if diff := cmp.Diff(map[bool]int{true: 4, false: 4}, h.heard); diff != "" {
			t.Error("heard of: " + diff)
		}
	})
}
