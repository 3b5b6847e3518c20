package wire_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"

	"github.com/carillon-notify/carillon/plugins/providerv1"
	"github.com/carillon-notify/carillon/plugins/wire"
	"github.com/carillon-notify/carillon/providers"
)

// scripted is a provider whose calls are functions.
type scripted struct {
	deliver func(ctx context.Context, batch []providers.Message, report func(providers.Result)) error
	receive func(ctx context.Context, report func(providers.Receipt) error) error
}

func (s *scripted) Deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	return s.deliver(ctx, batch, report)
}

func (s *scripted) Receive(ctx context.Context, report func(providers.Receipt) error) error {
	return s.receive(ctx, report)
}

func (*scripted) Health(context.Context) providers.Health { return providers.Health{} }

func (*scripted) Close(context.Context) error { return nil }

// TestStop: the end of the caller's context reaches the provider, whose last answers still count.
func TestStop(t *testing.T) {
	t.Parallel()
	for name, deadline := range map[string]bool{"cancelled": false, "over its time": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			had := make(chan struct{})
			c := connect(t, &scripted{deliver: func(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
				if _, ok := ctx.Deadline(); ok != deadline {
					t.Errorf("the provider's context has a deadline: %v", ok)
				}
				report(providers.Result{ID: batch[0].ID, Outcome: providers.Accepted})
				close(had)
				<-ctx.Done()
				report(providers.Result{ID: batch[1].ID, Outcome: providers.Deferred})
				return ctx.Err()
			}})
			ctx, cancel := context.WithCancel(t.Context())
			if deadline {
				ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
			}
			defer cancel()
			go func() {
				<-had
				if !deadline {
					cancel()
				}
			}()
			got := map[string]providers.Outcome{}
			err := c.Deliver(ctx, []providers.Message{{ID: "a"}, {ID: "b"}}, func(r providers.Result) { got[r.ID] = r.Outcome })
			var own *wire.ProviderError
			if !errors.As(err, &own) {
				t.Errorf("the provider's own error is %v", err)
			}
			if d := cmp.Diff(map[string]providers.Outcome{"a": providers.Accepted, "b": providers.Deferred}, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestNeverEnds cuts a call off that does not end, soon after its context; one whose answers are of no use
// at once. No report comes once Deliver has returned.
func TestNeverEnds(t *testing.T) {
	t.Parallel()
	for name, cause := range map[string]error{"in time": nil, "of no use": wire.ErrEnough} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			end := make(chan struct{})
			defer close(end)
			c := connect(t, &scripted{deliver: func(_ context.Context, batch []providers.Message, report func(providers.Result)) error {
				report(providers.Result{ID: batch[0].ID, Outcome: providers.Accepted})
				<-end
				return nil
			}})
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			var over atomic.Bool
			n := 0
			err := c.Deliver(ctx, []providers.Message{{ID: "a"}, {ID: "b"}}, func(providers.Result) {
				if n++; over.Load() {
					t.Error("reported late")
				}
				cancel(cause)
			})
			over.Store(true)
			if !errors.Is(err, wire.ErrCut) || n != 1 {
				t.Errorf("%d results, %v", n, err)
			}
		})
	}
}

// TestPanic fails the call and tells nobody the panic's value, which may hold an address.
func TestPanic(t *testing.T) {
	t.Parallel()
	c := connect(t, &scripted{deliver: func(_ context.Context, batch []providers.Message, report func(providers.Result)) error {
		report(providers.Result{ID: "a", Outcome: providers.Accepted})
		panic("cannot send to " + batch[1].Address)
	}})
	n := 0
	err := c.Deliver(within(t), []providers.Message{{ID: "a"}, {ID: "b", Address: "+4915100001"}}, func(providers.Result) { n++ })
	if err == nil || n != 1 || strings.Contains(err.Error(), "+49") {
		t.Errorf("%d results, %v", n, err)
	}
}

// sizes counts the requests of a call and the largest of them.
type sizes struct {
	grpc.ServerStream
	requests, largest *atomic.Int64
}

func (s sizes) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if req, ok := m.(*providerv1.DeliverRequest); ok && err == nil {
		s.requests.Add(1)
		n := 0
		for _, m := range req.GetMessages() {
			n += len(m.GetBody())
		}
		s.largest.Store(max(s.largest.Load(), int64(n)))
	}
	return err
}

// TestLargeBatch travels in requests of at most 1 MiB, but for a message that is larger alone, and is one
// batch at the other end.
func TestLargeBatch(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		bodies            []int
		requests, largest int64
	}{
		"small":              {[]int{100, 100}, 1, 200},
		"just one":           {[]int{1 << 19, 1 << 19}, 1, 1 << 20},
		"one byte more":      {[]int{1 << 19, 1<<19 + 1}, 2, 1<<19 + 1},
		"many":               {[]int{300_000, 300_000, 300_000, 300_000, 300_000, 300_000, 300_000}, 3, 900_000},
		"one too large":      {[]int{10, 3 << 20, 10}, 3, 3 << 20},
		"nothing but a name": {[]int{0}, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var requests, largest atomic.Int64
			p := &mirror{}
			conn := serve(t, func(s *grpc.Server) {
				providerv1.RegisterProviderServer(s, wire.NewServer(providers.Kind{Name: "k", Open: func(context.Context, []byte) (providers.Provider, error) { return p, nil }}, nil))
			}, grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
				return handler(srv, sizes{ss, &requests, &largest})
			}))
			c := wire.NewClient(conn)
			if _, err := c.Open(within(t), nil); err != nil {
				t.Fatal(err)
			}
			var batch []providers.Message
			for i, n := range test.bodies {
				batch = append(batch, providers.Message{ID: fmt.Sprint(i), Body: strings.Repeat("x", n)})
				p.results = append(p.results, providers.Result{ID: fmt.Sprint(i), Outcome: providers.Accepted})
			}
			n := 0
			if err := c.Deliver(within(t), batch, func(providers.Result) { n++ }); err != nil || n != len(batch) {
				t.Errorf("%d of %d are answered: %v", n, len(batch), err)
			}
			if d := cmp.Diff(batch, p.batch); d != "" {
				t.Error("the batch came through changed")
			}
			if requests.Load() != test.requests || largest.Load() != test.largest {
				t.Errorf("%d requests, the largest of %d bytes; want %d, %d", requests.Load(), largest.Load(), test.requests, test.largest)
			}
		})
	}
}

// TestReceipts are told what became of each of them, be they many at a time, and a listener that goes away
// leaves none waiting.
func TestReceipts(t *testing.T) {
	t.Parallel()
	const many = 500
	var mu sync.Mutex
	kept, refused := 0, 0
	hung, left := make(chan struct{}), make(chan error, 1)
	c := connect(t, &scripted{receive: func(ctx context.Context, report func(providers.Receipt) error) error {
		var wg sync.WaitGroup
		for i := range many {
			wg.Go(func() {
				err := report(providers.Receipt{ID: fmt.Sprint(i), Event: providers.EventRead})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					kept++
				case err.Error() == "the store is busy with "+fmt.Sprint(i):
					refused++
				default:
					t.Errorf("%d: %v", i, err)
				}
			})
		}
		wg.Wait()
		close(hung)
		left <- report(providers.Receipt{ID: "last", Event: providers.EventRead})
		return nil
	}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	gate := make(chan struct{})
	done := make(chan error, 1)
	var side, most atomic.Int64
	go func() {
		done <- c.Receive(ctx, func(r providers.Receipt) error {
			most.Store(max(most.Load(), side.Add(1)))
			defer side.Add(-1)
			if r.ID == "last" {
				<-gate
				return nil
			}
			var n int
			if _, err := fmt.Sscan(r.ID, &n); err == nil && n%2 == 1 {
				return errors.New("the store is busy with " + r.ID)
			}
			return nil
		})
	}()
	<-hung
	cancel()
	if err := <-left; err == nil {
		t.Error("a receipt was kept by nobody")
	}
	close(gate)
	if err := <-done; err != nil {
		t.Errorf("receive: %v", err)
	}
	if kept != many/2 || refused != many/2 || most.Load() > 64 {
		t.Errorf("%d kept, %d refused, %d side by side", kept, refused, most.Load())
	}
}

// TestReceiveEnds with an error of the provider's, and does without a provider that hears nothing.
func TestReceiveEnds(t *testing.T) {
	t.Parallel()
	c := connect(t, &scripted{receive: func(context.Context, func(providers.Receipt) error) error { return errors.New("the line is dead") }})
	if err := c.Receive(within(t), nil); err == nil || !strings.Contains(err.Error(), "the line is dead") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := connect(t, &echo{}).Receive(ctx, nil); err != nil {
		t.Errorf("nothing to hear: %v", err)
	}
}

// TestReceiveTurns: a host that ends a Receive and begins another does not see when the provider's has
// returned; the provider never has two.
func TestReceiveTurns(t *testing.T) {
	t.Parallel()
	began, second := make(chan struct{}, 2), make(chan struct{})
	var calls atomic.Int32
	c := connect(t, &scripted{receive: func(ctx context.Context, _ func(providers.Receipt) error) error {
		began <- struct{}{}
		if calls.Add(1) == 2 {
			close(second)
			<-ctx.Done()
			return nil
		}
		<-ctx.Done()
		select { // it takes its time to return
		case <-second:
			t.Error("the provider was asked to receive while it still did")
		case <-time.After(100 * time.Millisecond):
		}
		return nil
	}})
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Receive(ctx, func(providers.Receipt) error { return nil }) }()
		<-began
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
