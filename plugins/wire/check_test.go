package wire_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/carillon-notify/carillon/plugins/providerv1"
	"github.com/carillon-notify/carillon/plugins/wire"
	"github.com/carillon-notify/carillon/providers"
)

// TestCheck: what a kind says of a message comes over the wire, and whether it says it of the address.
func TestCheck(t *testing.T) {
	t.Parallel()
	kind := providers.Kind{Name: "k", Check: func(m *providers.Message) error {
		switch m.Address {
		case "good":
			return nil
		case "gone":
			return fmt.Errorf("%w: nobody has it", providers.ErrAddress)
		}
		return errors.New("too long")
	}}
	l := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	providerv1.RegisterProviderServer(server, wire.NewServer(kind, nil))
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	conn, err := grpc.NewClient("passthrough:k", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for address, want := range map[string]struct {
		text string
		bad  bool
	}{"good": {"", false}, "gone": {"bad address: nobody has it", true}, "other": {"too long", false}} {
		err := wire.NewClient(conn).Check(ctx, &providers.Message{Address: address})
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text != want.text || errors.Is(err, providers.ErrAddress) != want.bad {
			t.Errorf("%s: %q, of the address: %v; want %q, %v", address, text, errors.Is(err, providers.ErrAddress), want.text, want.bad)
		}
	}
}
