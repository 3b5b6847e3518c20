package host

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/carillon-notify/carillon/plugins/wire"
	"github.com/carillon-notify/carillon/providers"
)

// maxReply is the largest message that is taken from a plugin. The results of a batch are some 60 kB.
const maxReply = 4 << 20

// farewell is how long a process that was asked to stop may take before it is killed.
const farewell = time.Second

// maxStop bounds a stop whose context has no end.
const maxStop = 30 * time.Second

// instance is one running process that described itself.
type instance struct {
	child    *child
	log      *output
	client   *plugin.Client
	rpc      *wire.Client
	kind     providers.Kind
	features wire.Features
	http     string // where it serves its own clients; set by open

	condemned chan verdict // why it has to go; the first one counts

	mu    sync.Mutex
	calls int
	idle  chan struct{} // closed when there is no call; replaced by the first one
	hung  int           // calls in a row that had to be cut off
}

// verdict is why a process is given up.
type verdict struct {
	reason     string
	quarantine bool // at once, not by counting
	lost       bool // it cannot be reached
}

// launch starts a process and asks what it is, within Timing.Start. What it writes goes through scrub.
func launch(ctx context.Context, spec *Spec, scrub func(string) string) (*instance, error) {
	limited, cancel := context.WithTimeout(ctx, spec.Timing.Start)
	defer cancel()
	log := newOutput(spec.Logger, scrub)
	c, err := newChild(spec, log)
	if err != nil {
		return nil, err
	}
	i := &instance{child: c, log: log, condemned: make(chan verdict, 1), idle: make(chan struct{})}
	close(i.idle)
	i.client = plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  wire.Handshake,
		VersionedPlugins: wire.Versions(nil),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		AutoMTLS:         true,
		SkipHostEnv:      true,
		StartTimeout:     spec.Timing.Start,
		RunnerFunc:       func(_ hclog.Logger, cmd *exec.Cmd, _ string) (runner.Runner, error) { return c.prepare(cmd) },
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: c.dir.path},
		GRPCDialOptions:  []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply))},
		Logger:           hclog.NewNullLogger(),
		SyncStdout:       log.writer("stdout"),
		SyncStderr:       log.writer("stderr"),
	})
	// go-plugin waits without a context; a process that is killed ends its waiting.
	stop := context.AfterFunc(limited, c.kill)
	err = i.connect(limited)
	if !stop() && err == nil {
		err = limited.Err()
	}
	if err == nil {
		return i, nil
	}
	if status.Code(err) == codes.Unavailable {
		c.settle() // the connection's end is often seen first
	}
	itself := c.itself()
	i.end()
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case limited.Err() != nil:
		err = fmt.Errorf("it was not ready within %s", spec.Timing.Start)
	case itself:
		err = errors.New(c.ending() + " before it was ready")
	}
	if last := log.lastWords(); last != "" {
		err = fmt.Errorf("%w; it wrote %q", err, last)
	}
	return nil, err
}

func (i *instance) connect(ctx context.Context) error {
	protocol, err := i.client.Client()
	if err != nil {
		return fmt.Errorf("shake hands with it: %w", err)
	}
	raw, err := protocol.Dispense(wire.PluginName)
	if err != nil {
		return fmt.Errorf("reach its provider: %w", err)
	}
	rpc, ok := raw.(*wire.Client)
	if !ok {
		return errors.New("it serves no provider")
	}
	i.rpc = rpc
	if i.kind, i.features, err = rpc.Describe(ctx); err != nil {
		return err
	}
	return checkKind(&i.kind)
}

// enter counts a call in.
func (i *instance) enter() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.calls == 0 {
		i.idle = make(chan struct{})
	}
	i.calls++
}

// leave counts a call out; cut says that it had to be cut off. It returns how many in a row had to.
func (i *instance) leave(cut bool) (hung int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.calls--
	if i.calls == 0 {
		close(i.idle)
	}
	if cut {
		i.hung++
	} else {
		i.hung = 0
	}
	return i.hung
}

// quiet waits until no call is under way, or ctx ends.
func (i *instance) quiet(ctx context.Context) {
	i.mu.Lock()
	idle := i.idle
	i.mu.Unlock()
	select {
	case <-idle:
	case <-i.child.exited:
	case <-ctx.Done():
	}
}

// condemn gives the process up. Its supervisor does the rest.
func (i *instance) condemn(v verdict) {
	select {
	case i.condemned <- v:
	default: // it goes already
	}
}

// stop ends the process in order: the calls under way, the provider, the program. ctx bounds all of it.
func (i *instance) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, maxStop)
	defer cancel()
	i.quiet(ctx)
	select {
	case <-i.child.exited: // there is nobody to ask
		i.end()
		return nil
	default:
	}
	err := i.rpc.Close(ctx)
	polite := make(chan struct{})
	go func() {
		defer close(polite)
		if protocol, err := i.client.Client(); err == nil {
			_ = protocol.Close() // asks the program to end
		}
		<-i.child.exited
	}()
	select {
	case <-polite:
	case <-ctx.Done():
	case <-time.After(farewell):
	}
	i.end()
	<-polite
	return err
}

// end kills the process, waits for it and cleans up.
func (i *instance) end() {
	i.child.kill()
	if i.child.ID() != "" {
		<-i.child.done
	} else {
		_ = closeFile(i.child.file) // perhaps once more
	}
	// The process is gone, so this waits for nothing but go-plugin's own goroutines.
	i.client.Kill()
	i.child.dir.remove()
}
