package wire_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/carillon-notify/carillon/plugins/providerv1"
	"github.com/carillon-notify/carillon/plugins/wire"
	"github.com/carillon-notify/carillon/providers"
)

// recorded is a message of version 1 as an older peer writes it, byte for byte: a line of hexadecimal
// digits for each field, with what it means behind it. The files are never written anew.
func recorded(t testing.TB, name string) raw {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "v1", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	var out raw
	for line := range strings.Lines(string(text)) {
		digits, _, _ := strings.Cut(line, "#")
		b, err := hex.DecodeString(strings.TrimSpace(digits))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		out = append(out, b...)
	}
	return out
}

// raw is a message that is sent and taken as it is.
type raw []byte

type rawCodec struct{ encoding.CodecV2 }

// Marshal implements encoding.CodecV2.
func (c rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	if r, ok := v.(raw); ok {
		return mem.BufferSlice{mem.SliceBuffer(r)}, nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (c rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if r, ok := v.(*raw); ok {
		*r = data.Materialize()
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

func codec() rawCodec { return rawCodec{encoding.GetCodecV2("proto")} }

// olderPlugin answers each call with what an older plugin answered.
func olderPlugin(t *testing.T) *wire.Client {
	t.Helper()
	answers := map[string][]raw{
		"Describe": {recorded(t, "describe_response")}, "Open": {recorded(t, "open_response")}, "Check": {recorded(t, "check_response")},
		"Deliver": {recorded(t, "deliver_response")}, "Receive": {recorded(t, "receive_response"), recorded(t, "receive_response_event")},
		"Health": {recorded(t, "health_response")}, "Close": {recorded(t, "close_response")},
	}
	handle := func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		service, name, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
		if service != "carillon.provider.v1.Provider" || answers[name] == nil {
			return fmt.Errorf("an older plugin knows no %s", method)
		}
		var req raw
		if name != "Receive" {
			if err := stream.RecvMsg(&req); err != nil {
				return err
			}
		}
		for _, a := range answers[name] {
			if err := stream.SendMsg(a); err != nil {
				return err
			}
			if name == "Receive" { // each is answered
				if err := stream.RecvMsg(&req); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return wire.NewClient(serve(t, func(*grpc.Server) {}, grpc.UnknownServiceHandler(handle), grpc.ForceServerCodecV2(codec())))
}

// TestOlderPlugin runs today's client against an older plugin, whose messages lack newer fields and hold
// some of another time.
func TestOlderPlugin(t *testing.T) {
	t.Parallel()
	c := olderPlugin(t)
	same := func(what string, want, got any, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", what, d)
		}
	}
	kind, features, err := c.Describe(within(t))
	same("kind", providers.Kind{Name: "pager", Channel: "pages", MaxBatch: 10, Address: `\d+`,
		Settings: []providers.Setting{{Name: "url", Type: providers.String, Required: true}}}, kind, err)
	same("features", wire.Features{Receive: true}, features, nil)
	http, err := c.Open(within(t), nil)
	same("open", "", http, err)
	var own *wire.ProviderError
	if err := c.Check(within(t), &providers.Message{ID: "a"}); !errors.As(err, &own) || own.Text != "too long" || errors.Is(err, providers.ErrAddress) {
		t.Errorf("check: %v", err)
	}
	var results []providers.Result
	err = c.Deliver(within(t), []providers.Message{filled[providers.Message]()}, func(r providers.Result) { results = append(results, r) })
	same("results", []providers.Result{
		{ID: "018f-1", Outcome: providers.Accepted},
		{ID: "018f-2", Outcome: providers.Deferred, Code: "429", Reason: "slow down", After: 30 * time.Second},
		{ID: "018f-3", Outcome: providers.Unknown},
	}, results, err)
	var receipts []providers.Receipt
	err = c.Receive(within(t), func(r providers.Receipt) error { receipts = append(receipts, r); return nil })
	same("receipts", []providers.Receipt{{ID: "018f-1", Event: providers.EventDelivered}}, receipts, err)
	health, err := c.Health(within(t))
	same("health", providers.Health{Status: providers.HealthDegraded}, health, err)
	same("close", nil, c.Close(within(t)), nil)
}

// TestOlderHost has an older host call today's server.
func TestOlderHost(t *testing.T) {
	t.Parallel()
	m := &mirror{results: []providers.Result{{ID: "018f-1", Outcome: providers.Denied}}}
	var settings []byte
	var timeLeft time.Duration
	conn := serveKind(t, providers.Kind{Name: "k",
		Check: func(m *providers.Message) error { return fmt.Errorf("%w: %s", providers.ErrAddress, m.Address) },
		Open: func(_ context.Context, s []byte) (providers.Provider, error) {
			settings = s
			return deadlined{m, &timeLeft}, nil
		}})
	call := func(method, request string) (answers []raw) {
		t.Helper()
		stream, err := conn.NewStream(within(t), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
			"/carillon.provider.v1.Provider/"+method, grpc.ForceCodecV2(codec()))
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.SendMsg(recorded(t, request)); err != nil {
			t.Fatal(err)
		}
		if method != "Deliver" { // its half-close says stop
			if err := stream.CloseSend(); err != nil {
				t.Fatal(err)
			}
		}
		for {
			var answer raw
			if err := stream.RecvMsg(&answer); errors.Is(err, io.EOF) {
				return answers
			} else if err != nil {
				t.Fatalf("%s: %v", method, err)
			}
			answers = append(answers, answer)
		}
	}
	if answers := call("Open", "open_request"); len(answers) != 1 || len(answers[0]) != 0 || string(settings) != `{"url":"http://localhost"}` {
		t.Errorf("open: %q with %s", answers, settings)
	}
	answers := call("Deliver", "deliver_request")
	var response providerv1.DeliverResponse
	if len(answers) != 1 || proto.Unmarshal(answers[0], &response) != nil || len(response.GetResults()) != 1 || response.GetResults()[0].GetOutcome() != providerv1.Outcome_OUTCOME_DENIED {
		t.Errorf("deliver: %q", answers)
	}
	want := []providers.Message{{ID: "018f-1", Address: "4711", Title: "Hello", Body: "World", Priority: providers.Critical,
		ExpiresAt: time.Unix(1_700_000_000, 0).UTC(), Attempt: 2}}
	if d := cmp.Diff(want, m.batch); d != "" {
		t.Error(d)
	}
	if timeLeft <= 0 || timeLeft > 5*time.Second {
		t.Errorf("of 5 s the provider had %s", timeLeft)
	}
	// The older host reads the text, and nothing of what it says about the address.
	if answers := call("Check", "check_request"); len(answers) != 1 || !bytes.Contains(answers[0], []byte("bad address: gone")) {
		t.Errorf("check: %q", answers)
	}
}

// deadlined is a mirror that looks at the time it has.
type deadlined struct {
	*mirror
	left *time.Duration
}

func (d deadlined) Deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	if deadline, ok := ctx.Deadline(); ok {
		*d.left = time.Until(deadline)
	}
	return d.mirror.Deliver(ctx, batch, report)
}

// TestFieldsStay holds the protocol against the list of what version 1 has: fields, enum values and calls
// are added, and never taken away, renumbered or made another type.
func TestFieldsStay(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("testdata", "v1", "fields.txt"))
	if err != nil {
		t.Fatal(err)
	}
	today := described(providerv1.File_provider_proto)
	listed := strings.Split(strings.TrimSpace(string(text)), "\n")
	for _, line := range listed {
		if !slices.Contains(today, line) {
			t.Errorf("gone or changed: %s", line)
		}
	}
	for _, line := range today {
		if !slices.Contains(listed, line) {
			t.Errorf("new; add it to fields.txt, and it stays for ever: %s", line)
		}
	}
}

// described lists what a file declares, one a line.
func described(file protoreflect.FileDescriptor) []string {
	var out []string
	for i := range file.Messages().Len() {
		m := file.Messages().Get(i)
		for k := range m.Fields().Len() {
			f := m.Fields().Get(k)
			kind := f.Kind().String()
			if f.Message() != nil {
				kind = string(f.Message().FullName())
			} else if f.Enum() != nil {
				kind = string(f.Enum().FullName())
			}
			out = append(out, fmt.Sprintf("%s %s %s = %d %s", m.FullName(), f.Cardinality(), f.Name(), f.Number(), kind))
		}
	}
	for i := range file.Enums().Len() {
		e := file.Enums().Get(i)
		for k := range e.Values().Len() {
			out = append(out, fmt.Sprintf("%s %s = %d", e.FullName(), e.Values().Get(k).Name(), e.Values().Get(k).Number()))
		}
	}
	for i := range file.Services().Len() {
		s := file.Services().Get(i)
		for k := range s.Methods().Len() {
			m := s.Methods().Get(k)
			out = append(out, fmt.Sprintf("%s(%s stream=%v) returns (%s stream=%v)", m.FullName(), m.Input().FullName(), m.IsStreamingClient(), m.Output().FullName(), m.IsStreamingServer()))
		}
	}
	return out
}
