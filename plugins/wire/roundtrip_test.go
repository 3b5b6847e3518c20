package wire_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"pgregory.net/rapid"

	"github.com/carillon-notify/carillon/plugins/providerv1"
	"github.com/carillon-notify/carillon/plugins/wire"
	"github.com/carillon-notify/carillon/providers"
)

// mirror is a provider that keeps what it is given and answers what it is told to.
type mirror struct {
	mu       sync.Mutex
	batch    []providers.Message
	results  []providers.Result
	receipts []providers.Receipt
	kept     []error // what became of each receipt
	health   providers.Health
}

func (m *mirror) Deliver(_ context.Context, batch []providers.Message, report func(providers.Result)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.batch = batch
	for _, r := range m.results {
		report(r)
	}
	return nil
}

func (m *mirror) Receive(ctx context.Context, report func(providers.Receipt) error) error {
	for _, r := range m.receipts {
		m.kept = append(m.kept, report(r))
	}
	return nil
}

func (m *mirror) Health(context.Context) providers.Health { return m.health }

func (m *mirror) Close(context.Context) error { return errors.New("closed with a word") }

// serve serves a server over a connection in memory.
func serve(t testing.TB, register func(*grpc.Server), opts ...grpc.ServerOption) *grpc.ClientConn {
	t.Helper()
	pipe := bufconn.Listen(1 << 16)
	server := grpc.NewServer(opts...)
	register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(pipe) }()
	conn, err := grpc.NewClient("passthrough:peer", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return conn
}

func serveKind(t testing.TB, kind providers.Kind) *grpc.ClientConn {
	return serve(t, func(s *grpc.Server) { providerv1.RegisterProviderServer(s, wire.NewServer(kind, nil)) })
}

func openMirror(t testing.TB, m *mirror) *wire.Client {
	t.Helper()
	c := wire.NewClient(serveKind(t, providers.Kind{Name: "mirror", Open: func(context.Context, []byte) (providers.Provider, error) { return m, nil }}))
	if _, err := c.Open(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	return c
}

// fill gives every field a value of its own: one that the conversion forgets comes back as zero, and two
// that it mixes up come back the other way round.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(1_700_000_000+int64(*n), int64(*n)).UTC()))
		return
	case time.Duration:
		v.SetInt(int64(time.Duration(*n)*time.Second + 7))
		return
	case json.RawMessage:
		v.SetBytes(fmt.Appendf(nil, `{"n":%d}`, *n))
		return
	case []byte:
		v.SetBytes(fmt.Appendf(nil, `{"b":%d}`, *n))
		return
	case providers.Outcome:
		v.Set(reflect.ValueOf(providers.Denied))
		return
	case providers.Event:
		v.Set(reflect.ValueOf(providers.EventArchived))
		return
	case providers.HealthStatus:
		v.Set(reflect.ValueOf(providers.HealthDown))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d ü", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int:
		v.SetInt(int64(*n))
	case reflect.Uint64:
		v.SetUint(1<<40 + uint64(*n))
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(v.Index(i), n)
		}
	case reflect.Func: // stays where it is
	default:
		panic("a field of the kind " + v.Kind().String() + ": say here how to fill it")
	}
}

func filled[T any]() T {
	var v T
	n := 0
	fill(reflect.ValueOf(&v).Elem(), &n)
	return v
}

// TestEveryField sends a value in every field there is, both ways: a field that is added to the contract
// and not to the protocol is found here.
func TestEveryField(t *testing.T) {
	t.Parallel()
	same := func(what string, want, got any) {
		t.Helper()
		if d := cmp.Diff(want, got, cmpopts.IgnoreFields(providers.Kind{}, "Check", "Open")); d != "" {
			t.Errorf("%s: %s", what, d)
		}
	}
	m := &mirror{results: []providers.Result{filled[providers.Result]()}, receipts: []providers.Receipt{filled[providers.Receipt]()}, health: filled[providers.Health]()}
	c := openMirror(t, m)
	batch := []providers.Message{filled[providers.Message](), {ID: "empty"}}
	var results []providers.Result
	if err := c.Deliver(within(t), batch, func(r providers.Result) { results = append(results, r) }); err != nil {
		t.Fatal(err)
	}
	same("messages", batch, m.batch)
	same("results", m.results, results)
	var receipts []providers.Receipt
	if err := c.Receive(within(t), func(r providers.Receipt) error { receipts = append(receipts, r); return nil }); err != nil {
		t.Fatal(err)
	}
	same("receipts", m.receipts, receipts)
	health, err := c.Health(within(t))
	if err != nil {
		t.Fatal(err)
	}
	same("health", m.health, health)
	var own *wire.ProviderError
	if err := c.Close(within(t)); !errors.As(err, &own) || own.Text != "closed with a word" {
		t.Errorf("closed: %v", err)
	}

	want := filled[providers.Kind]()
	want.Check = func(*providers.Message) error { return nil }
	kind, features, err := wire.NewClient(serveKind(t, want)).Describe(within(t))
	if err != nil {
		t.Fatal(err)
	}
	same("kind", want, kind)
	same("features", wire.Features{Check: true, Receive: true}, features)
}

// TestSettings passes the settings on as they are.
func TestSettings(t *testing.T) {
	t.Parallel()
	var got []byte
	c := wire.NewClient(serveKind(t, providers.Kind{Name: "k", Open: func(_ context.Context, settings []byte) (providers.Provider, error) {
		if got = settings; len(settings) == 0 {
			return nil, errors.New("there are none")
		}
		return &mirror{}, nil
	}}))
	var own *wire.ProviderError
	if _, err := c.Open(within(t), nil); !errors.As(err, &own) || own.Text != "there are none" {
		t.Errorf("without settings: %v", err)
	}
	if _, err := c.Open(within(t), []byte(`{"a":1}`)); err != nil || string(got) != `{"a":1}` {
		t.Errorf("%s: %v", got, err)
	}
	if _, err := c.Open(within(t), []byte(`{"a":1}`)); err == nil {
		t.Error("it was opened twice")
	}
}

// TestAnyValue sends what comes to rapid's mind; what does not fit is made to, and never costs the batch.
func TestAnyValue(t *testing.T) {
	t.Parallel()
	m := &mirror{}
	c := openMirror(t, m)
	words := rapid.OneOf(rapid.String(), rapid.StringN(0, 2000, -1), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }))
	times := rapid.OneOf(rapid.Just(time.Time{}), rapid.Map(rapid.Int64Range(-62135596800, 253402300799), func(s int64) time.Time { return time.Unix(s, s&0xffff).UTC() }))
	valid := func(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
	rapid.Check(t, func(t *rapid.T) {
		message := providers.Message{ID: words.Draw(t, "id"), Title: words.Draw(t, "title"), Body: words.Draw(t, "body"), CreatedAt: times.Draw(t, "created"),
			Data: json.RawMessage(rapid.SliceOf(rapid.Byte()).Draw(t, "data")), Attempt: int(rapid.Int32().Draw(t, "attempt"))}
		result := providers.Result{ID: message.ID, Outcome: providers.Outcome(rapid.Uint8().Draw(t, "outcome")), Code: words.Draw(t, "code"), Reason: words.Draw(t, "reason"),
			ProviderID: words.Draw(t, "provider id"), NewAddress: words.Draw(t, "address"), After: time.Duration(rapid.Int64().Draw(t, "after")),
			Since: times.Draw(t, "since"), Parts: int(rapid.Int32().Draw(t, "parts"))}
		m.results = []providers.Result{result}
		var got providers.Result
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.Deliver(ctx, []providers.Message{message}, func(r providers.Result) { got = r }); err != nil {
			t.Fatal(err)
		}
		message.ID, message.Title, message.Body = valid(message.ID), valid(message.Title), valid(message.Body)
		if len(message.Data) == 0 {
			message.Data = nil
		}
		if d := cmp.Diff([]providers.Message{message}, m.batch); d != "" {
			t.Error(d)
		}
		if int(result.Outcome) > int(providers.Denied) {
			result.Outcome = providers.Unknown
		}
		for _, s := range []struct {
			want, got string
			most      int
		}{{result.Code, got.Code, 100}, {result.Reason, got.Reason, 500}, {result.ProviderID, got.ProviderID, 1000}} {
			if len(s.got) > s.most || !strings.HasPrefix(valid(s.want), s.got) || len(s.got) < min(len(valid(s.want)), s.most-3) {
				t.Errorf("%q became %q", s.want, s.got)
			}
		}
		if len(result.NewAddress) > 4096 {
			result.NewAddress = ""
		}
		want := providers.Result{ID: valid(result.ID), Outcome: result.Outcome, Code: got.Code, Reason: got.Reason, ProviderID: got.ProviderID,
			NewAddress: valid(result.NewAddress), After: result.After, Since: result.Since, Parts: result.Parts}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	})
}

// TestLongAddress leaves out a new address that is too long to be one: cut, it would be somebody else's.
func TestLongAddress(t *testing.T) {
	t.Parallel()
	for length, want := range map[int]int{1001: 1001, 4096: 4096, 4097: 0} {
		m := &mirror{results: []providers.Result{{ID: "a", NewAddress: strings.Repeat("x", length)}}}
		c := openMirror(t, m)
		if err := c.Deliver(within(t), []providers.Message{{ID: "a"}}, func(r providers.Result) {
			if len(r.NewAddress) != want {
				t.Errorf("%d bytes became %d", length, len(r.NewAddress))
			}
		}); err != nil {
			t.Error(err)
		}
	}
}
