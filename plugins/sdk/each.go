package sdk

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"

	"github.com/carillon-notify/carillon/providers"
)

// Each is Provider.Deliver for a service that takes messages one by one: it calls send for every message
// of a batch, all at once, and reports what send returns, under the message's id.
//
// An error from send says that the message was handed over and nobody knows what became of it: it is left
// without a report, which makes it Unknown. Whatever is known is a Result, be it as bad as it may. A panic
// in send counts as such an error. Each's own error says how many messages have no report, and holds
// none of send's words beyond the first error's.
func Each(ctx context.Context, batch []providers.Message, report func(providers.Result), send func(context.Context, *providers.Message) (providers.Result, error)) error {
	errs := make([]error, len(batch))
	var all sync.WaitGroup
	for i := range batch {
		all.Go(func() {
			res, err := sendOne(ctx, &batch[i], send)
			if errs[i] = err; err != nil {
				return
			}
			res.ID = batch[i].ID
			report(res)
		})
	}
	all.Wait()
	var first error
	unknown := 0
	for _, err := range errs {
		if err == nil {
			continue
		}
		if unknown++; first == nil {
			first = err
		}
	}
	if first == nil {
		return nil
	}
	return fmt.Errorf("%d of %d messages were handed over and not answered, the first: %w", unknown, len(batch), first)
}

// sendOne keeps a panic from ending the process, and with it everybody else's calls.
func sendOne(ctx context.Context, m *providers.Message, send func(context.Context, *providers.Message) (providers.Result, error)) (res providers.Result, err error) {
	defer func() {
		if v := recover(); v != nil {
			// Not its value: it may hold content.
			slog.Error("a delivery panicked", "panic", fmt.Sprintf("%T", v), "stack", string(debug.Stack()))
			err = fmt.Errorf("the delivery panicked: %T", v)
		}
	}()
	return send(ctx, m)
}
