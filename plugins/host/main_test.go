package host_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/plugins/host"
	"github.com/carillon-notify/carillon/plugins/sdk"
	"github.com/carillon-notify/carillon/providers"
)

// TestMain lets the test binary play the plugins: called as "play KIND" it is one.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "play" {
		play(os.Args[2])
		return
	}
	os.Exit(m.Run())
}

// spec runs this binary as a plugin.
func spec(t testing.TB, what string) host.Spec {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return host.Spec{Name: what, Command: self, Args: []string{"play", what}, Logger: slog.New(slog.NewTextHandler(logTo{t}, nil))}
}

type logTo struct{ t testing.TB }

func (l logTo) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func play(what string) {
	switch what {
	case "obedient":
		sdk.Serve(obedientKind())
	default:
		fmt.Fprintln(os.Stderr, "there is no such part:", what)
		os.Exit(2)
	}
}

// obedientKind is a kind whose messages say in their body what is to become of them.
func obedientKind() providers.Kind {
	return providers.Kind{
		Name: "obedient", Channel: "test", MaxBatch: 100, Address: ".+",
		Settings: []providers.Setting{{Name: "greeting", Type: providers.String}, {Name: "key", Type: providers.String, Secret: true}},
		Open: func(_ context.Context, settings []byte) (providers.Provider, error) {
			var s struct{ Greeting, Key string }
			if err := json.Unmarshal(settings, &s); err != nil {
				return nil, err
			}
			if s.Greeting == "wrong" {
				return nil, fmt.Errorf("greeting: %q is not polite", s.Greeting)
			}
			return obedient{}, nil
		},
	}
}

type obedient struct{}

func (obedient) Deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	for i := range batch {
		switch m := &batch[i]; m.Body {
		case "exit":
			os.Exit(3)
		case "hang":
			<-ctx.Done()
			return ctx.Err()
		case "panic":
			panic("as told")
		default:
			report(providers.Result{ID: m.ID, Outcome: providers.Accepted, ProviderID: strconv.Itoa(os.Getpid())})
		}
	}
	return nil
}

func (obedient) Health(context.Context) providers.Health {
	return providers.Health{Status: providers.HealthOK, Pool: providers.PoolStats{Max: 3, Open: 1}}
}

func (obedient) Close(context.Context) error { return nil }

func messages(bodies ...string) []providers.Message {
	out := make([]providers.Message, len(bodies))
	for i, b := range bodies {
		out[i] = providers.Message{ID: fmt.Sprintf("id-%d", i), Address: "a", Body: b, CreatedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour), Attempt: 1}
	}
	return out
}
