package wire_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/carillon-notify/carillon/plugins/providerv1"
	"github.com/carillon-notify/carillon/plugins/wire"
	"github.com/carillon-notify/carillon/providers"
)

// echo accepts every message, with its texts as the reason.
type echo struct{ calls atomic.Int64 }

func (e *echo) Deliver(_ context.Context, batch []providers.Message, report func(providers.Result)) error {
	e.calls.Add(1)
	for i := range batch {
		m := &batch[i]
		report(providers.Result{ID: m.ID, Outcome: providers.Accepted, Reason: m.Title + "|" + m.Body + "|" + m.Address})
	}
	return nil
}

func (*echo) Health(context.Context) providers.Health {
	return providers.Health{Status: providers.HealthOK}
}

func (*echo) Close(context.Context) error { return nil }

// connect opens a provider at the other end of a connection in memory.
func connect(t *testing.T, p providers.Provider) *wire.Client {
	t.Helper()
	pipe := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	kind := providers.Kind{Name: "echo", Open: func(context.Context, []byte) (providers.Provider, error) { return p, nil }}
	providerv1.RegisterProviderServer(server, wire.NewServer(kind, nil))
	go func() { _ = server.Serve(pipe) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:echo", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := wire.NewClient(conn)
	if _, err := c.Open(within(t), nil); err != nil {
		t.Fatal(err)
	}
	return c
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// TestTextsThatAreNotUTF8: protobuf refuses to write them, and must not refuse the batch for one message.
func TestTextsThatAreNotUTF8(t *testing.T) {
	t.Parallel()
	c := connect(t, &echo{})
	got := map[string]string{}
	batch := []providers.Message{{ID: "1", Title: "a\xff", Body: "\xc3(", Address: "b\xfe"}, {ID: "2", Title: "good", Body: "text", Address: "c"}}
	if err := c.Deliver(within(t), batch, func(r providers.Result) { got[r.ID] = r.Reason }); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff(map[string]string{"1": "a\uFFFD|\uFFFD(|b\uFFFD", "2": "good|text|c"}, got); d != "" {
		t.Error(d)
	}
}

// TestEndedContext: a call whose time is over hands the plugin nothing.
func TestEndedContext(t *testing.T) {
	t.Parallel()
	p := &echo{}
	c := connect(t, p)
	ctx, cancel := context.WithCancel(within(t))
	cancel()
	got := map[string]providers.Outcome{}
	if err := c.Deliver(ctx, []providers.Message{{ID: "1"}, {ID: "2"}}, func(r providers.Result) { got[r.ID] = r.Outcome }); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff(map[string]providers.Outcome{"1": providers.Deferred, "2": providers.Deferred}, got); d != "" || p.calls.Load() != 0 {
		t.Errorf("%d calls came through; %s", p.calls.Load(), d)
	}
}
