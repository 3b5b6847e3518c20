package plugintest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/carillon-notify/carillon/plugins/host"
	"github.com/carillon-notify/carillon/plugins/providerv1"
	"github.com/carillon-notify/carillon/plugins/wire"
	"github.com/carillon-notify/carillon/providers"
)

// startTime bounds the start of a plugin's process.
const startTime = 30 * time.Second

// reach sets the kind through which the provider is examined.
func (s *sitting) reach() error {
	switch s.way {
	case inProcess:
		s.kind = s.Kind
		s.features.check = s.kind.Check != nil
	case overWire:
		return s.reachOverWire()
	case inOwnProcess:
		ctx, cancel := context.WithTimeout(context.Background(), startTime)
		defer cancel()
		kind, err := host.Describe(ctx, host.Spec{Name: filepath.Base(s.Command), Command: s.Command, Args: s.Args, Logger: slog.New(s.witness.handler())})
		if err != nil {
			return fmt.Errorf("describe: %w", err)
		}
		s.kind = kind
		s.features = features{check: kind.Check != nil, receive: true}
	}
	return nil
}

func (s *sitting) reachOverWire() error {
	link, err := dial(s.Kind)
	if err != nil {
		return err
	}
	defer link.release()
	ctx, cancel := context.WithTimeout(context.Background(), s.Soon)
	defer cancel()
	kind, f, err := link.client.Describe(ctx)
	if err != nil {
		return fmt.Errorf("describe: %w", err)
	}
	s.kind, s.features = kind, features{check: f.Check, receive: f.Receive}
	if f.Check {
		s.kind.Check = func(m *providers.Message) error { return checkOverWire(s.Kind, m) }
	}
	s.kind.Open = func(ctx context.Context, settings []byte) (providers.Provider, error) {
		link, err := dial(s.Kind)
		if err != nil {
			return nil, err
		}
		if _, err := link.client.Open(ctx, settings); err != nil {
			link.release()
			return nil, err
		}
		if link.handler != nil {
			return &serving{link}, nil
		}
		return link, nil
	}
	return nil
}

func checkOverWire(kind providers.Kind, m *providers.Message) error {
	link, err := dial(kind)
	if err != nil {
		return err
	}
	defer link.release()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	err = link.client.Check(ctx, m)
	var own *wire.ProviderError
	if err != nil && !errors.As(err, &own) {
		return &brokenError{err}
	}
	return err
}

// brokenError is not the provider's answer: the call itself failed.
type brokenError struct{ error }

// link is a provider at the other end of a gRPC connection in memory: all that a process has but the
// process. It implements providers.Provider and providers.Receiver.
type link struct {
	client  *wire.Client
	server  *grpc.Server
	conn    *grpc.ClientConn
	handler http.Handler // of a providers.Server
}

var (
	_ providers.Provider = (*link)(nil)
	_ providers.Receiver = (*link)(nil)
	_ providers.Server   = (*serving)(nil)
)

func dial(kind providers.Kind) (*link, error) {
	l := &link{}
	pipe := bufconn.Listen(1 << 20)
	l.server = grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20)) // as plugins/sdk has it
	providerv1.RegisterProviderServer(l.server, wire.NewServer(kind, func(h http.Handler) (string, error) {
		l.handler = h
		return "unix:in-memory", nil
	}))
	go func() { _ = l.server.Serve(pipe) }() // ends with release
	conn, err := grpc.NewClient("passthrough:provider",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(4<<20))) // as plugins/host has it
	if err != nil {
		l.server.Stop()
		return nil, fmt.Errorf("connect to the provider: %w", err)
	}
	l.client, l.conn = wire.NewClient(conn), conn
	return l, nil
}

// release ends the connection. The provider itself is ended by Close.
func (l *link) release() {
	_ = l.conn.Close()
	l.server.Stop()
}

// Deliver implements providers.Provider.
func (l *link) Deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	err := l.client.Deliver(ctx, batch, report)
	if errors.Is(err, wire.ErrNotSent) {
		for i := range batch {
			report(providers.Result{ID: batch[i].ID, Outcome: providers.Deferred, Code: host.CodeDown})
		}
		return nil
	}
	return err
}

// Receive implements providers.Receiver.
func (l *link) Receive(ctx context.Context, report func(providers.Receipt) error) error {
	return l.client.Receive(ctx, report)
}

// Health implements providers.Provider. A call that fails has no status.
func (l *link) Health(ctx context.Context) providers.Health {
	// As the host does, which asks for its own sake and not for a caller's.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTime)
	defer cancel()
	h, err := l.client.Health(ctx)
	if err != nil {
		return providers.Health{Reason: err.Error()}
	}
	return h
}

// Close implements providers.Provider.
func (l *link) Close(ctx context.Context) error { return l.client.Close(ctx) }

// serving is a link to a providers.Server.
type serving struct{ *link }

// Handler implements providers.Server.
func (s *serving) Handler() http.Handler { return s.handler }

// subject is an open provider under examination.
type subject struct {
	s        *sitting
	t        testing.TB
	provider providers.Provider
	closed   bool
	calls    []*call // that this check began
	hearings []hearing
}

// tryOpen opens a provider with settings as they are. The error is the provider's.
func (s *sitting) tryOpen(t testing.TB, settings []byte) (*subject, error) {
	t.Helper()
	limit := s.Soon
	if s.way == inOwnProcess {
		limit += startTime
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var p providers.Provider
	var err error
	given := append([]byte(nil), settings...)
	within(t, limit, "Open", func() { p, err = s.kind.Open(ctx, given) })
	for i := range given {
		given[i] = 'x' // the settings are the caller's again
	}
	if err != nil {
		s.witness.saw("the error of Open", err.Error())
		return nil, err
	}
	if p == nil {
		t.Fatal("Open returns neither a provider nor an error")
	}
	s.tally.opened.Add(1)
	sub := &subject{s: s, t: t, provider: p}
	t.Cleanup(sub.end)
	return sub, nil
}

// open opens a provider with the exam's settings and others laid over them.
func (s *sitting) open(t testing.TB, over ...map[string]any) *subject {
	t.Helper()
	sub, err := s.tryOpen(t, settingsJSON(t, s.Settings, over...))
	if err != nil {
		if len(over) == 0 {
			s.refused = err.Error()
		}
		t.Fatalf("Open refuses the exam's settings: %v", err)
	}
	if s.Opened != nil {
		s.Opened(t, sub.provider)
	}
	return sub
}

// end closes a provider that its check left open.
func (p *subject) end() {
	for _, h := range p.hearings { // a check that failed has left one running
		h.cancel()
	}
	if !p.closed {
		ctx, cancel := context.WithTimeout(context.Background(), p.s.Soon)
		defer cancel()
		if err := p.close(ctx); err != nil {
			p.t.Errorf("Close at the end of the check: %v", err)
		}
	}
	if p.s.Taken != nil {
		for _, c := range p.calls {
			c.verifyLater()
		}
	}
	switch l := p.provider.(type) {
	case *link:
		l.release()
	case *serving:
		l.release()
	}
}

// close closes the provider, which may take as long as ctx and a moment more.
func (p *subject) close(ctx context.Context) error {
	p.t.Helper()
	p.closed = true
	limit := p.s.Soon
	if deadline, ok := ctx.Deadline(); ok {
		limit += max(time.Until(deadline), 0)
	}
	var err error
	within(p.t, limit, "Close", func() { err = p.provider.Close(ctx) })
	if err != nil {
		p.s.witness.saw("the error of Close", err.Error())
	}
	return err
}

// health asks the provider how it is, and looks at the answer's form.
func (p *subject) health(ctx context.Context) providers.Health {
	p.t.Helper()
	var h providers.Health
	within(p.t, p.s.Soon, "Health", func() { h = p.provider.Health(ctx) })
	p.s.witness.saw("Health.Reason", h.Reason)
	switch h.Status {
	case providers.HealthOK:
		if h.Reason != "" {
			p.t.Errorf("Health is ok and has a Reason, %q", h.Reason)
		}
	case providers.HealthDegraded, providers.HealthDown:
		if h.Reason == "" {
			p.t.Errorf("Health is %s and does not say why", h.Status)
		}
	default:
		p.t.Errorf("Health has the status %q (reason %q), which is none of ok, degraded and down", h.Status, h.Reason)
	}
	form(p.t, "Health.Reason", h.Reason, maxReason)
	s := h.Pool
	if min(s.Max, s.Open, s.Idle, s.InUse, s.Waiting) < 0 {
		p.t.Errorf("Health has a negative figure: %+v", s)
	}
	return h
}

// within runs f and fails the test if it panics or does not return in time. f is left running then.
func within(t testing.TB, limit time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan any, 1)
	go func() {
		defer func() { done <- recover() }()
		f()
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case v := <-done:
		if v != nil {
			t.Fatalf("%s panicked: %v", what, v)
		}
	case <-timer.C:
		t.Fatalf("%s did not return within %s", what, limit)
	}
}

// eventually waits until something holds, and reports whether it did within the limit.
func eventually(limit time.Duration, holds func() bool) bool {
	end := time.NewTimer(limit)
	defer end.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-end.C:
			return holds()
		}
	}
	return true
}
