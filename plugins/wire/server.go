package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/carillon-notify/carillon/plugins/providerv1"
	"github.com/carillon-notify/carillon/providers"
)

// Server plays a kind to a host: it opens one provider of it and passes the host's calls on. A panic in
// a call fails that call and not the process.
type Server struct {
	providerv1.UnimplementedProviderServer
	kind   providers.Kind
	listen func(http.Handler) (address string, err error)

	mu       sync.Mutex
	opening  bool
	provider providers.Provider

	hearing chan struct{} // has an element while the provider's Receive runs
}

// NewServer returns a Server of a kind. listen serves the handler of a provider that is a
// providers.Server until the process ends, and says where ("unix:/path"); nil leaves it unserved.
func NewServer(kind providers.Kind, listen func(http.Handler) (address string, err error)) *Server {
	return &Server{kind: kind, listen: listen, hearing: make(chan struct{}, 1)}
}

// Describe implements providerv1.ProviderServer.
func (s *Server) Describe(context.Context, *providerv1.DescribeRequest) (*providerv1.DescribeResponse, error) {
	// What the provider can do beyond the plain calls is not known before it is open: Receive is
	// answered in any case, by waiting.
	return &providerv1.DescribeResponse{Kind: kindTo(&s.kind), Features: &providerv1.Features{
		Check: s.kind.Check != nil, Receive: true, Http: s.listen != nil,
	}}, nil
}

// Open implements providerv1.ProviderServer.
func (s *Server) Open(ctx context.Context, req *providerv1.OpenRequest) (*providerv1.OpenResponse, error) {
	s.mu.Lock()
	if s.opening {
		s.mu.Unlock()
		return nil, status.Error(codes.FailedPrecondition, "the provider is open already")
	}
	s.opening = true
	s.mu.Unlock()
	// The provider outlives the call that opens it.
	p, err := s.open(context.WithoutCancel(ctx), req.GetSettings())
	if err != nil {
		s.mu.Lock()
		s.opening = false
		s.mu.Unlock()
		return &providerv1.OpenResponse{Error: text(err.Error(), maxReason)}, nil
	}
	out := &providerv1.OpenResponse{}
	if server, ok := p.(providers.Server); ok && s.listen != nil {
		if out.Http, err = s.listen(server.Handler()); err != nil {
			return nil, status.Errorf(codes.Internal, "serve the provider's clients: %s", err)
		}
	}
	s.mu.Lock()
	s.provider = p
	s.mu.Unlock()
	return out, nil
}

func (s *Server) open(ctx context.Context, settings []byte) (p providers.Provider, err error) {
	defer recovered("Open", &err)
	return s.kind.Open(ctx, settings)
}

// current is the provider, nil before it is open.
func (s *Server) current() providers.Provider {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.provider
}

// opened is the provider, or the status of a call that came before it was open.
func (s *Server) opened() (providers.Provider, error) {
	if p := s.current(); p != nil {
		return p, nil
	}
	return nil, status.Error(codes.FailedPrecondition, "the provider is not open")
}

// Check implements providerv1.ProviderServer.
func (s *Server) Check(_ context.Context, req *providerv1.CheckRequest) (*providerv1.CheckResponse, error) {
	if s.kind.Check == nil {
		return &providerv1.CheckResponse{}, nil
	}
	m := messageFrom(req.GetMessage())
	err, panicked := s.check(&m)
	if panicked != nil {
		return nil, status.Error(codes.Internal, panicked.Error())
	}
	if err != nil {
		return &providerv1.CheckResponse{Error: text(err.Error(), maxReason), BadAddress: errors.Is(err, providers.ErrAddress)}, nil
	}
	return &providerv1.CheckResponse{}, nil
}

func (s *Server) check(m *providers.Message) (err, panicked error) {
	defer recovered("Check", &panicked)
	return s.kind.Check(m), nil
}

// Deliver implements providerv1.ProviderServer.
func (s *Server) Deliver(stream providerv1.Provider_DeliverServer) error {
	p, err := s.opened()
	if err != nil {
		return err
	}
	batch, timeout, err := readBatch(stream)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(stream.Context(), timeout)
	}
	defer cancel()
	go func() { // ends with the call: the stream's context does
		for {
			if _, err := stream.Recv(); err != nil {
				cancel()
				return
			}
		}
	}()
	out := newSender(stream, len(batch))
	err = deliver(ctx, p, batch, out.report)
	return out.finish(err)
}

func deliver(ctx context.Context, p providers.Provider, batch []providers.Message, report func(providers.Result)) (err error) {
	defer recovered("Deliver", &err)
	return p.Deliver(ctx, batch, report)
}

// readBatch reads the requests of one call.
func readBatch(stream providerv1.Provider_DeliverServer) ([]providers.Message, time.Duration, error) {
	var batch []providers.Message
	var timeout time.Duration
	for first := true; ; first = false {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, 0, status.Error(codes.InvalidArgument, "the batch ended before its last request")
		}
		if err != nil {
			return nil, 0, err
		}
		if first {
			timeout = req.GetTimeout().AsDuration()
			batch = make([]providers.Message, 0, len(req.GetMessages()))
		}
		for _, m := range req.GetMessages() {
			batch = append(batch, messageFrom(m))
		}
		if !req.GetMore() {
			return batch, timeout, nil
		}
	}
}

// How long results wait for others to go with them: the first of a call, and those after it. A call's end
// waits for nothing.
const (
	firstWait = 250 * time.Microsecond
	nextWait  = 2 * time.Millisecond
)

// sender streams results. Those that come close together go together: a message of gRPC costs as much as
// a dozen results.
type sender struct {
	stream providerv1.Provider_DeliverServer
	done   chan struct{}
	wake   chan struct{} // there is a result where there was none
	ending chan struct{} // closed by finish

	mu     sync.Mutex
	queue  []*providerv1.Result
	closed bool
	failed error // set before done is closed
}

func newSender(stream providerv1.Provider_DeliverServer, size int) *sender {
	s := &sender{stream: stream, done: make(chan struct{}), wake: make(chan struct{}, 1), ending: make(chan struct{}),
		queue: make([]*providerv1.Result, 0, size)}
	go s.run()
	return s
}

func (s *sender) report(r providers.Result) {
	out := resultTo(&r)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.queue = append(s.queue, out)
	first := len(s.queue) == 1
	s.mu.Unlock()
	if first {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// run sends what is there until the call ends; what is left then is finish's.
func (s *sender) run() {
	defer close(s.done)
	t := time.NewTimer(firstWait)
	defer t.Stop()
	for wait := firstWait; ; wait = nextWait {
		select {
		case <-s.wake:
		case <-s.ending:
			return
		}
		t.Reset(wait)
		select {
		case <-t.C:
		case <-s.ending:
			return
		}
		s.mu.Lock()
		batch := s.queue
		s.queue = nil
		s.mu.Unlock()
		if s.failed = s.stream.Send(&providerv1.DeliverResponse{Results: batch}); s.failed != nil {
			return
		}
	}
}

// finish sends the last results and what kept the call from sending the others.
func (s *sender) finish(callErr error) error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	close(s.ending)
	<-s.done
	if s.failed != nil {
		return s.failed
	}
	last := &providerv1.DeliverResponse{Results: s.queue}
	if callErr != nil {
		last.Error = text(callErr.Error(), maxReason)
	}
	if len(last.Results) == 0 && last.Error == "" {
		return nil
	}
	return s.stream.Send(last)
}

// Receive implements providerv1.ProviderServer.
func (s *Server) Receive(stream providerv1.Provider_ReceiveServer) error {
	p, err := s.opened()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	h := &hearing{stream: stream, ctx: ctx, waiting: map[uint64]chan error{}}
	go func() {
		defer cancel()
		h.answers()
	}()
	rec, ok := p.(providers.Receiver)
	if !ok { // it hears nothing back
		<-ctx.Done()
		return nil
	}
	// A host that ends a call and begins another does not see when the first one has returned here.
	select {
	case s.hearing <- struct{}{}:
		defer func() { <-s.hearing }()
	case <-ctx.Done():
		return nil
	}
	err = receive(ctx, rec, h.report)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return status.Error(codes.Aborted, text(err.Error(), maxReason))
	}
	return nil
}

func receive(ctx context.Context, rec providers.Receiver, report func(providers.Receipt) error) (err error) {
	defer recovered("Receive", &err)
	return rec.Receive(ctx, report)
}

// hearing is one Receive call: receipts that wait for their answers.
type hearing struct {
	stream providerv1.Provider_ReceiveServer
	ctx    context.Context

	sending sync.Mutex // a stream takes one Send at a time
	mu      sync.Mutex
	seq     uint64
	waiting map[uint64]chan error
}

// report sends a receipt and waits for the host to keep it.
func (h *hearing) report(r providers.Receipt) error {
	answer := make(chan error, 1)
	h.mu.Lock()
	h.seq++
	seq := h.seq
	h.waiting[seq] = answer
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.waiting, seq)
		h.mu.Unlock()
	}()
	h.sending.Lock()
	err := h.stream.Send(&providerv1.ReceiveResponse{Seq: seq, Receipt: receiptTo(&r)})
	h.sending.Unlock()
	if err != nil {
		return fmt.Errorf("pass the receipt on: %w", err)
	}
	select {
	case err := <-answer:
		return err
	case <-h.ctx.Done():
		return fmt.Errorf("wait for the receipt to be kept: %w", context.Cause(h.ctx))
	}
}

// answers hands the host's answers to those who wait, until the host closes its side.
func (h *hearing) answers() {
	for {
		req, err := h.stream.Recv()
		if err != nil {
			return
		}
		h.mu.Lock()
		answer := h.waiting[req.GetSeq()]
		delete(h.waiting, req.GetSeq())
		h.mu.Unlock()
		if answer == nil {
			continue
		}
		if text := req.GetError(); text != "" {
			answer <- errors.New(text)
		} else {
			answer <- nil
		}
	}
}

// Health implements providerv1.ProviderServer. Before Open it says that all is well: the process answers.
func (s *Server) Health(ctx context.Context, _ *providerv1.HealthRequest) (*providerv1.HealthResponse, error) {
	p := s.current()
	if p == nil {
		return healthTo(&providers.Health{Status: providers.HealthOK}), nil
	}
	h, err := health(ctx, p)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return healthTo(&h), nil
}

func health(ctx context.Context, p providers.Provider) (h providers.Health, err error) {
	defer recovered("Health", &err)
	return p.Health(ctx), nil
}

// Close implements providerv1.ProviderServer.
func (s *Server) Close(ctx context.Context, _ *providerv1.CloseRequest) (*providerv1.CloseResponse, error) {
	p := s.current()
	if p == nil {
		return &providerv1.CloseResponse{}, nil
	}
	if err := closeProvider(ctx, p); err != nil {
		return &providerv1.CloseResponse{Error: text(err.Error(), maxReason)}, nil
	}
	return &providerv1.CloseResponse{}, nil
}

func closeProvider(ctx context.Context, p providers.Provider) (err error) {
	defer recovered("Close", &err)
	return p.Close(ctx)
}

// recovered turns a panic into an error. Its value stays out of it, for it may hold content.
func recovered(call string, err *error) {
	if v := recover(); v != nil {
		slog.Error("a call panicked", "call", call, "panic", fmt.Sprintf("%T", v), "stack", string(debug.Stack()))
		*err = fmt.Errorf("%s panicked: %T", call, v)
	}
}
