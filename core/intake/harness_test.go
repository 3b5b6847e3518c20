package intake_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/builtin"
	"github.com/carillon-notify/carillon/templates"
)

// now is the store's time in these tests.
var now = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

const (
	token = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	phone = "fcm-token-of-a-phone"
)

// sms is a kind as a plugin brings one: it has no part in the house.
func sms() providers.Kind {
	return providers.Kind{
		Name: "sms", Channel: "sms", MaxBatch: 10, Address: `\+[0-9]{6,}`,
		Content: []byte(`{"type":"object","properties":{"text":{"type":"string","maxLength":160}},"required":["text"]}`),
		Check: func(m *providers.Message) error {
			switch {
			case strings.HasPrefix(m.Address, "+4900"):
				return fmt.Errorf("%w: no country has that number", providers.ErrAddress)
			case m.Body == "offer":
				return errors.New("offers are not carried")
			}
			return nil
		},
	}
}

// bench is an Intake on ports in memory, with the kinds that come with Carillon and one more.
type bench struct {
	*intake.Intake
	t          *testing.T
	now        time.Time
	recipients map[string]*core.Recipient // by app/id
	keys       map[string]*core.Acceptance
	recorded   []*core.Acceptance
	woken      []core.Wake
	suppressed map[core.AddressOf]bool
	sources    map[string][]templates.Source // by app/name, versions from 1 on
	down       error                         // of the store
	wakeErr    error
	recording  func(ctx context.Context) // while something is being recorded; nil: nothing happens then
	categories func() core.Categories    // as they are now
}

func newBench(t *testing.T) *bench {
	t.Helper()
	kinds := map[string]providers.Kind{"sms": sms()}
	for _, k := range builtin.Kinds() {
		kinds[k.Name] = k
	}
	policy := func(unknowns int) core.Policy { return core.Policy{MaxUnknown: unknowns} }
	routing, err := intake.NewRouting([]core.Route{
		{Name: "apns", Kind: "apns", Policy: policy(3)}, {Name: "apns-two", Kind: "apns", Policy: policy(2)},
		{Name: "fcm", Kind: "fcm", Policy: policy(1)},
		{Name: "email-b", Kind: "email", Apps: []string{"b"}}, {Name: "email", Kind: "email"}, {Name: "email-stand-in", Kind: "email"},
		{Name: "websocket", Kind: "websocket"},
		{Name: "sms", Kind: "sms", Apps: []string{"a"}}, {Name: "sms-by-name", Kind: "sms"},
	}, map[string][]string{
		"push": {"apns", "fcm", "apns-two"}, "email": {"email-b", "email", "email-stand-in"}, "in_app": {"websocket"}, "sms": {"sms"},
	}, kinds)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, now: now, categories: func() core.Categories {
		return core.Categories{"security": {Mandatory: true}, "news": {Defaults: map[string]bool{"email": false}}}
	}, recipients: map[string]*core.Recipient{}, keys: map[string]*core.Acceptance{}, sources: map[string][]templates.Source{}}
	b.Intake = intake.New(intake.Options{Store: b, Queue: b, Templates: templates.New(nil, versions{b}), Routing: routing, Logger: slog.New(slog.DiscardHandler),
		Rules: func() *core.Rules { return &core.Rules{Categories: b.categories()} }})
	return b
}

// Now implements intake.Store.
func (b *bench) Now() time.Time { return b.now }

// Recipients implements intake.Store.
func (b *bench) Recipients(_ context.Context, app string, ids []string) (map[string]*core.Recipient, error) {
	if b.down != nil {
		return nil, b.down
	}
	out := map[string]*core.Recipient{}
	for _, id := range ids {
		if r := b.recipients[app+"/"+id]; r != nil {
			out[id] = r
		}
	}
	return out, nil
}

// SuppressedAddresses implements intake.Store.
func (b *bench) SuppressedAddresses(_ context.Context, all []core.AddressOf) (map[core.AddressOf]core.Suppression, error) {
	out := map[core.AddressOf]core.Suppression{}
	for _, a := range all {
		if b.suppressed[a] {
			out[a] = core.Suppression{App: a.App, Kind: a.Kind}
		}
	}
	return out, b.down
}

// Record implements intake.Store.
func (b *bench) Record(ctx context.Context, a *core.Acceptance) (core.Recorded, error) {
	if b.down != nil {
		return core.Recorded{}, b.down
	}
	if a.Key != "" {
		answer, err := b.Answered(ctx, a.Notification.App, a.Key, a.BodyHash)
		if !errors.Is(err, core.ErrNotFound) {
			return core.Recorded{Replayed: err == nil, Answer: answer}, err
		}
		b.keys[a.Notification.App+"/"+a.Key] = a
	}
	if b.recording != nil {
		b.recording(ctx)
		if err := ctx.Err(); err != nil {
			return core.Recorded{}, err
		}
	}
	b.recorded = append(b.recorded, a)
	return core.Recorded{Wakes: []core.Wake{{Batch: core.NewID(b.now), Fence: 1}}}, nil
}

// Answered implements intake.Store.
func (b *bench) Answered(_ context.Context, app, key string, hash [32]byte) ([]byte, error) {
	first := b.keys[app+"/"+key]
	switch {
	case b.down != nil:
		return nil, b.down
	case first == nil:
		return nil, core.ErrNotFound
	case first.BodyHash != hash:
		return nil, core.ErrKeyReused
	}
	return first.Answer, nil
}

// Wake implements intake.Queue.
func (b *bench) Wake(_ context.Context, wakes ...core.Wake) error {
	b.woken = append(b.woken, wakes...)
	return b.wakeErr
}

// versions are the bench's stored templates.
type versions struct{ b *bench }

func (v versions) LatestTemplate(_ context.Context, app, name string) (int, error) {
	if v.b.down != nil {
		return 0, v.b.down
	}
	if n := len(v.b.sources[app+"/"+name]); n > 0 {
		return n, nil
	}
	return 0, templates.ErrNotFound
}

func (v versions) Template(_ context.Context, app, name string, version int) (templates.Source, error) {
	all := v.b.sources[app+"/"+name]
	if version < 1 || version > len(all) {
		return templates.Source{}, templates.ErrNotFound
	}
	return all[version-1], nil
}

// put stores a recipient.
func (b *bench) put(r core.Recipient) {
	r.App = "a"
	b.recipients["a/"+r.ID] = &r
}

// template stores a template's next version.
func (b *bench) template(name, text string) {
	b.t.Helper()
	var src templates.Source
	if err := json.Unmarshal([]byte(text), &src); err != nil {
		b.t.Fatalf("template %s: %v", name, err)
	}
	b.sources["a/"+name] = append(b.sources["a/"+name], src)
}

// sent is a delivery as these tests look at it.
type sent struct {
	To                         int
	Kind, Route, Address       string
	Recipient, Locale          string
	Title, Body, Block, Reason string // Reason: why it is skipped; Kind and Route are empty then
}

// decide takes a request in app a, and holds Accept and Preview against each other: both decide the same.
// It returns what goes to whom, and what was recorded.
func (b *bench) decide(req intake.Request) ([]sent, *core.Acceptance) {
	b.t.Helper()
	p, err := b.Preview(b.t.Context(), "a", &req)
	if err != nil {
		b.t.Fatalf("preview: %v", err)
	}
	got, err := b.Accept(b.t.Context(), "a", &req, intake.Key{})
	if err != nil {
		b.t.Fatalf("accept: %v", err)
	}
	a := b.recorded[len(b.recorded)-1]
	n := &a.Notification
	if got.ID != n.ID || got.Deliveries != len(a.Deliveries) || !got.CreatedAt.Equal(b.now) || got.Replayed {
		b.t.Errorf("the answer is %+v for notification %s with %d deliveries", got, n.ID, len(a.Deliveries))
	}
	if p.Template != n.Template || !p.SendAt.Equal(n.SendAt) || !p.ExpiresAt.Equal(n.ExpiresAt) {
		b.t.Errorf("the preview says %s %s %s, accepted was %s %s %s", p.Template, p.SendAt, p.ExpiresAt, n.Template, n.SendAt, n.ExpiresAt)
	}
	if d := cmp.Diff(p.Contents, a.Contents); d != "" {
		b.t.Errorf("contents (-preview +accept):\n%s", d)
	}
	var out []sent
	deliveries, skipped := a.Deliveries, n.Skipped
	for _, d := range p.Decisions {
		s := sent{To: d.To, Recipient: d.Recipient, Locale: d.Locale, Reason: d.Reason}
		if d.Decision == "skip" {
			if len(skipped) == 0 || skipped[0] != (core.Skip{To: d.To, Recipient: d.Recipient, Channel: d.Channel, Reason: d.Reason}) || d.Content != -1 {
				b.t.Fatalf("the preview skips %+v, accepted was %+v", d, skipped)
			}
			skipped, s.Address = skipped[1:], d.Channel
		} else {
			c := p.Contents[d.Content]
			s.Kind, s.Route, s.Address, s.Title, s.Body, s.Block = d.Kind, d.Route, d.Address, c.Title, c.Body, string(c.Block)
			if len(deliveries) == 0 {
				b.t.Fatalf("the preview delivers %+v, nothing of that was accepted", d)
			}
			b.holds(&deliveries[0], n, d)
			deliveries = deliveries[1:]
		}
		out = append(out, s)
	}
	if len(deliveries)+len(skipped) > 0 {
		b.t.Errorf("accepted beyond what the preview says: %+v %+v", deliveries, skipped)
	}
	return out, a
}

// holds checks a recorded delivery against its decision, and that it is complete.
func (b *bench) holds(d *core.Delivery, n *core.Notification, want intake.Decision) {
	b.t.Helper()
	got := intake.Decision{To: want.To, Recipient: d.Recipient, Channel: d.Channel, Kind: d.Kind, Route: d.Route, Address: d.Address,
		Locale: want.Locale, Decision: "deliver", Content: d.Content.Slot}
	if diff := cmp.Diff(want, got); diff != "" {
		b.t.Errorf("delivery (-preview +accept):\n%s", diff)
	}
	if d.ID.IsZero() || d.Notification != n.ID || d.App != n.App || d.State != core.Pending || !d.CreatedAt.Equal(n.CreatedAt) || !d.ExpiresAt.Equal(n.ExpiresAt) {
		b.t.Errorf("an incomplete delivery %+v of %+v", d, n)
	}
}

// refused takes a request that has faults, by both ways, and returns them by pointer; several at one
// place are joined by a space.
func (b *bench) refused(req intake.Request) (codes map[string]string, details string) {
	b.t.Helper()
	var first, second *intake.Invalid
	_, err := b.Accept(b.t.Context(), "a", &req, intake.Key{})
	if !errors.As(err, &first) {
		b.t.Fatalf("accept: %v, want faults", err)
	}
	if _, err = b.Preview(b.t.Context(), "a", &req); !errors.As(err, &second) {
		b.t.Fatalf("preview: %v, want faults", err)
	}
	if d := cmp.Diff(second, first); d != "" {
		b.t.Errorf("faults (-preview +accept):\n%s", d)
	}
	if len(b.recorded) > 0 {
		b.t.Error("a request with faults was recorded")
	}
	codes = map[string]string{}
	for _, f := range first.Faults {
		if codes[f.Pointer] != "" {
			codes[f.Pointer] += " "
		}
		codes[f.Pointer] += f.Code
	}
	return codes, first.Error()
}

// keyed is an idempotency key for a body.
func keyed(value, body string) intake.Key {
	return intake.Key{Value: value, Hash: sha256.Sum256([]byte(body))}
}

// words is inline content for every channel.
func words() *intake.Content { return &intake.Content{Title: "Hi", Body: "Text"} }

// at is an entry of `to` with an address, as the short form of its kind.
func at(kind, address string) intake.Target {
	return intake.Target{Kind: kind, Address: address, Pointer: "/" + kind}
}
