package dispatch_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

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
