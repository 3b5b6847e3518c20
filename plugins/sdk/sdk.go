// Package sdk makes a provider plugin of a providers.Kind:
//
//	func main() { sdk.Serve(kind) }
//
// The program is started by Carillon, not by hand. What it writes with log/slog or log goes to the host's
// log under the plugin's name, with its level; what it prints to its standard output or error is logged
// at debug. docs/plugins.md is the author's guide.
//
// Two parts are for services that are reached over HTTP, as most are: Each sends the messages of a batch
// side by side, and HTTP knows whether a request that has no answer may have arrived, which is the
// difference between Deferred and Unknown. plugins/examples has two plugins that use them.
package sdk

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/carillon-notify/carillon/plugins/wire"
	"github.com/carillon-notify/carillon/providers"
)

// maxRequest is the largest request that is taken: one message with its attachments has to fit.
const maxRequest = 64 << 20

// Serve plays the kind to the host that started this process, and returns or exits when the host is done
// with it. Called by a program that no host started, it says so and exits with the code 1. Call it once,
// first thing in main: what main does before it, the host waits for.
//
// A panic in one of the kind's or provider's functions fails that call and not the process; one in
// another goroutine ends the process, and the host starts it anew. Settings come with Kind.Open; the
// environment holds none of the host's.
func Serve(kind providers.Kind) {
	if os.Getenv(wire.Handshake.MagicCookieKey) != wire.Handshake.MagicCookieValue {
		fmt.Fprintf(os.Stderr, "This is %q, a provider plugin of Carillon for the channel %q. Carillon starts it: put it into the plugins\n"+
			"directory or name it as the command of a route. `orchestrator plugin test %s` tries it out.\n", kind.Name, kind.Channel, os.Args[0])
		os.Exit(1)
	}
	stderr := os.Stderr // go-plugin puts a pipe in its place
	slog.SetDefault(slog.New(Handler(stderr)))
	stdout, err := guardStdout()
	if err != nil {
		slog.Warn("the standard output is not guarded: what is printed before the handshake may break it", "error", err)
	}
	kind.Open = printing(kind.Open, stdout, stderr)
	defer holdHeapFloor()()
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig:  wire.Handshake,
		VersionedPlugins: wire.Versions(wire.NewServer(kind, listen)),
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(opts, grpc.MaxRecvMsgSize(maxRequest))...)
		},
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: stderr, JSONFormat: true}),
	})
}

// printing has what the provider prints from Open on go straight to the host. go-plugin would have it in
// pieces of a kilobyte, each a message of gRPC, and not at all when the process ends.
func printing(open openFunc, stdout, stderr *os.File) openFunc {
	var once sync.Once // Open is called again when it failed
	return func(ctx context.Context, settings []byte) (providers.Provider, error) {
		once.Do(func() { os.Stdout, os.Stderr = stdout, stderr })
		return open(ctx, settings)
	}
}

type openFunc = func(ctx context.Context, settings []byte) (providers.Provider, error)

// Handler returns a slog.Handler that writes what the host understands: JSON lines as hclog writes them.
// Serve makes it the default logger's; it is for programs that make loggers of their own.
func Handler(w io.Writer) slog.Handler {
	return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) > 0 {
			return a
		}
		switch a.Key {
		case slog.LevelKey:
			return slog.String("@level", level(a.Value))
		case slog.MessageKey:
			a.Key = "@message"
		case slog.TimeKey:
			a.Key = "@timestamp"
		}
		return a
	}})
}

func level(v slog.Value) string {
	l, _ := v.Any().(slog.Level)
	switch {
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warn"
	case l >= slog.LevelInfo:
		return "info"
	}
	return "debug"
}

// listen serves a provider's own clients on a socket that only this user can reach: the host's proxy.
func listen(h http.Handler) (string, error) {
	path := filepath.Join(os.Getenv(plugin.EnvUnixSocketDir), "http.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		return "", fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		if err := server.Serve(l); err != nil {
			slog.Error("the provider's clients are not served any more", "error", err)
		}
	}()
	return "unix:" + path, nil
}
