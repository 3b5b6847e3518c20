package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/carillon-notify/carillon/plugins/providerv1"
	"github.com/carillon-notify/carillon/providers"
)

const (
	// grace is how long after its context a call waits for answers that are on their way.
	grace = 250 * time.Millisecond
	// requestSize is about how many bytes of messages travel in one request. gRPC servers take 4 MiB
	// unless told otherwise; a single message may be larger than this.
	requestSize = 1 << 20
	// receipts is how many receipts are kept side by side.
	receipts = 64
	// maxHollow is how many replies without a result are borne in one call.
	maxHollow = 1000
	// codeTime is the code of messages that the plugin never had, for want of time.
	codeTime = "time"
)

// ErrNotSent says that nothing of a batch was handed to the plugin: no message of it can have gone out.
var ErrNotSent = errors.New("nothing was handed to the plugin")

// ErrCut says that a call had to be cut off: the plugin did not end it in time.
var ErrCut = errors.New("the plugin did not end the call in time")

// ErrEnough is the cause of a context that ends because the plugin's answers are of no use: its call is cut
// off at once, without waiting for more.
var ErrEnough = errors.New("the plugin's answers are of no use")

// ErrHollow says that a call was cut off whose replies held nothing, one after the other.
var ErrHollow = errors.New("the plugin's replies hold nothing")

// ProviderError is what the provider itself said; any other error of a Client speaks of the connection.
type ProviderError struct {
	Text    string
	Address bool // it speaks of a message's address (providers.ErrAddress)
}

// Error returns the provider's words.
func (e *ProviderError) Error() string { return e.Text }

// Is lets errors.Is find providers.ErrAddress.
func (e *ProviderError) Is(target error) bool { return e.Address && target == providers.ErrAddress }

// Client is what a host holds of a provider in another process. It is safe for concurrent use. Every
// context given to it must have a deadline, but Receive's.
type Client struct{ rpc providerv1.ProviderClient }

// NewClient returns a Client that speaks over a connection.
func NewClient(conn grpc.ClientConnInterface) *Client {
	return &Client{rpc: providerv1.NewProviderClient(conn)}
}

// Features are the calls beyond the plain ones that the other side answers.
type Features struct{ Check, Receive, HTTP bool }

// Describe asks what the provider is. The Kind has no functions.
func (c *Client) Describe(ctx context.Context) (providers.Kind, Features, error) {
	resp, err := c.rpc.Describe(ctx, &providerv1.DescribeRequest{})
	if err != nil {
		return providers.Kind{}, Features{}, fmt.Errorf("ask the plugin what it is: %w", err)
	}
	f := resp.GetFeatures()
	return kindFrom(resp.GetKind()), Features{Check: f.GetCheck(), Receive: f.GetReceive(), HTTP: f.GetHttp()}, nil
}

// Open opens the provider, and says where it serves HTTP, "" for nowhere. A *ProviderError says what is
// wrong with the settings.
func (c *Client) Open(ctx context.Context, settings []byte) (http string, err error) {
	resp, err := c.rpc.Open(ctx, &providerv1.OpenRequest{Settings: settings})
	if err != nil {
		return "", fmt.Errorf("open the provider: %w", err)
	}
	if resp.GetError() != "" {
		return "", &ProviderError{Text: resp.GetError()}
	}
	return resp.GetHttp(), nil
}

// Check has the plugin look at a rendered message. A *ProviderError says why it will not do.
func (c *Client) Check(ctx context.Context, m *providers.Message) error {
	resp, err := c.rpc.Check(ctx, &providerv1.CheckRequest{Message: messageTo(&envelope{}, m)})
	if err != nil {
		return fmt.Errorf("have the plugin check a message: %w", err)
	}
	if resp.GetError() != "" {
		return &ProviderError{Text: resp.GetError(), Address: resp.GetBadAddress()}
	}
	return nil
}

// Deliver sends a batch and reports what it is answered, as it is: the ids are not looked at. A
// *ProviderError is the provider's own; ErrNotSent, ErrCut and ErrHollow are wrapped where they hold.
func (c *Client) Deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	if ctx.Err() != nil { // the plugin would learn of it only after it had the batch
		for i := range batch {
			report(providers.Result{ID: batch[i].ID, Outcome: providers.Deferred, Code: codeTime, Reason: "the call's time was over before the plugin had the message"})
		}
		return nil
	}
	call, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	// Should the plugin not end the call, or not even take the batch, this does.
	stuck := context.AfterFunc(ctx, func() {
		if errors.Is(context.Cause(ctx), ErrEnough) {
			cancel()
			return
		}
		time.AfterFunc(grace, cancel)
	})
	defer stuck()
	stream, err := c.rpc.Deliver(call)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	if err := sendBatch(ctx, stream, batch); err != nil && !errors.Is(err, io.EOF) {
		return c.ended(ctx, call, err)
	}
	// From here on nobody else sends: the end of ctx closes our side, which asks the plugin to stop.
	stop := context.AfterFunc(ctx, func() { _ = stream.CloseSend() })
	defer stop()
	for hollow := 0; ; {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return c.ended(ctx, call, err)
		}
		for _, r := range resp.GetResults() {
			report(resultFrom(r))
		}
		if resp.GetError() != "" {
			// The stream's end follows.
			if _, err := stream.Recv(); err != nil && !errors.Is(err, io.EOF) {
				return c.ended(ctx, call, err)
			}
			return &ProviderError{Text: resp.GetError()}
		}
		if len(resp.GetResults()) > 0 {
			continue
		}
		if hollow++; hollow > maxHollow {
			return ErrHollow
		}
	}
}

// ended says what a call that failed ended by.
func (c *Client) ended(ctx, call context.Context, err error) error {
	if ctx.Err() != nil && call.Err() != nil {
		return fmt.Errorf("%w: %w", ErrCut, ctx.Err())
	}
	return fmt.Errorf("the call to the plugin broke: %w", err)
}

// sendBatch sends the messages in requests of a bounded size.
func sendBatch(ctx context.Context, stream providerv1.Provider_DeliverClient, batch []providers.Message) error {
	messages := make([]envelope, len(batch))
	req := &providerv1.DeliverRequest{Messages: make([]*providerv1.Message, 0, len(batch))}
	if deadline, ok := ctx.Deadline(); ok {
		req.Timeout = durationpb.New(max(time.Until(deadline), time.Millisecond))
	}
	size := 0
	for i := range batch {
		m := &batch[i]
		n := weight(m)
		if size > 0 && size+n > requestSize {
			req.More = true
			if err := stream.Send(req); err != nil {
				return err
			}
			req, size = &providerv1.DeliverRequest{}, 0
		}
		req.Messages = append(req.Messages, messageTo(&messages[i], m))
		size += n
	}
	return stream.Send(req)
}

// weight is about how many bytes a message takes in a request.
func weight(m *providers.Message) int {
	return len(m.Title) + len(m.Body) + len(m.Data) + len(m.Content) + len(m.URL) + len(m.Unsubscribe)
}

// Large reports whether a batch has a message that is larger than a request should be. gRPC servers take
// 4 MiB unless they are told otherwise, so a plugin may answer ResourceExhausted to it.
func Large(batch []providers.Message) bool {
	for i := range batch {
		if weight(&batch[i]) > requestSize {
			return true
		}
	}
	return false
}

// Receive takes in what the provider hears back until ctx ends (then it returns nil) or the plugin ends
// it. report is called from several goroutines, and not any more once Receive has returned.
func (c *Client) Receive(ctx context.Context, report func(providers.Receipt) error) error {
	// The plugin is told of no deadline: it would end the call a moment before we see ctx end.
	call, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var keeping sync.WaitGroup
	defer keeping.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, cancel)
	defer stop()
	stream, err := c.rpc.Receive(call)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen for receipts: %w", err)
	}
	var sending sync.Mutex // a stream takes one Send at a time
	places := make(chan struct{}, receipts)
	for {
		resp, err := stream.Recv()
		if ctx.Err() != nil || errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("listen for receipts: %w", err)
		}
		places <- struct{}{}
		keeping.Go(func() {
			defer func() { <-places }()
			answer := &providerv1.ReceiveRequest{Seq: resp.GetSeq()}
			if r, ok := receiptFrom(resp.GetReceipt()); ok {
				if err := report(r); err != nil {
					answer.Error = text(err.Error(), maxReason)
				}
			}
			sending.Lock()
			defer sending.Unlock()
			_ = stream.Send(answer) // a stream that broke says so to Recv
		})
	}
}

// Health asks how the provider is.
func (c *Client) Health(ctx context.Context) (providers.Health, error) {
	resp, err := c.rpc.Health(ctx, &providerv1.HealthRequest{})
	if err != nil {
		return providers.Health{}, fmt.Errorf("ask the plugin how it is: %w", err)
	}
	return healthFrom(resp), nil
}

// Close has the provider let go of its connections.
func (c *Client) Close(ctx context.Context) error {
	resp, err := c.rpc.Close(ctx, &providerv1.CloseRequest{})
	if err != nil {
		return fmt.Errorf("close the provider: %w", err)
	}
	if resp.GetError() != "" {
		return &ProviderError{Text: resp.GetError()}
	}
	return nil
}
