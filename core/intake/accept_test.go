package intake_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/templates"
)

// ann has a device of every sort, and one of each that something is wrong with.
func ann() core.Recipient {
	return core.Recipient{ID: "ann", Locale: "fr-CA", Attributes: json.RawMessage(`{"name":"Ann","tier":"gold"}`), Endpoints: []core.Endpoint{
		{Kind: "apns", Address: token}, {Kind: "apns", Address: strings.ToUpper(token), Route: "apns-two"},
		{Kind: "fcm", Address: phone}, {Kind: "email", Address: "ann@example.com"},
		{Kind: "apns", Address: strings.Repeat("ab", 32), Route: "apns-of-old"}, {Kind: "pager", Address: "1"},
	}}
}

func TestTargets(t *testing.T) {
	t.Parallel()
	mail := func(to int, route, address string) sent {
		return sent{To: to, Kind: "email", Route: route, Address: address, Title: "Hi", Body: "Text"}
	}
	for name, tc := range map[string]struct {
		to       []intake.Target
		channels []string
		content  *intake.Content
		want     []sent
	}{
		"one address of each kind": {
			to: []intake.Target{at("email", "ann@example.com"), at("apns", token), at("fcm", phone), at("websocket", "ann"), at("sms", "+4915112345678")},
			want: []sent{
				mail(0, "email", "ann@example.com"),
				{To: 1, Kind: "apns", Route: "apns", Address: token, Title: "Hi", Body: "Text"},
				{To: 2, Kind: "fcm", Route: "fcm", Address: phone, Title: "Hi", Body: "Text"},
				{To: 3, Kind: "websocket", Route: "websocket", Address: "ann", Recipient: "ann", Title: "Hi", Body: "Text"},
				{To: 4, Kind: "sms", Route: "sms", Address: "+4915112345678", Title: "Hi", Body: "Text"},
			},
		},
		"a named route: the second, a stand-in, one that no channel lists": {
			to: []intake.Target{
				{Kind: "apns", Address: token, Route: "apns-two", Pointer: "/address"},
				{Kind: "email", Address: "ann@example.com", Route: "email-stand-in", Pointer: "/address"},
				{Kind: "sms", Address: "+4915112345678", Route: "sms-by-name", Pointer: "/address"},
			},
			want: []sent{
				{To: 0, Kind: "apns", Route: "apns-two", Address: token, Title: "Hi", Body: "Text"},
				mail(1, "email-stand-in", "ann@example.com"),
				{To: 2, Kind: "sms", Route: "sms-by-name", Address: "+4915112345678", Title: "Hi", Body: "Text"},
			},
		},
		"a recipient with several endpoints": {
			to: []intake.Target{{Recipient: "ann"}},
			want: []sent{
				{Kind: "email", Route: "email", Address: "ann@example.com", Recipient: "ann", Title: "Hi", Body: "Text"},
				{Kind: "websocket", Route: "websocket", Address: "ann", Recipient: "ann", Title: "Hi", Body: "Text"},
				{Kind: "apns", Route: "apns", Address: token, Recipient: "ann", Title: "Hi", Body: "Text"},
				{Kind: "apns", Route: "apns-two", Address: strings.ToUpper(token), Recipient: "ann", Title: "Hi", Body: "Text"},
				{Kind: "fcm", Route: "fcm", Address: phone, Recipient: "ann", Title: "Hi", Body: "Text"},
				{Address: "sms", Recipient: "ann", Reason: core.SkipNoEndpoint},
			},
		},
		"the channels asked for, in their order": {
			to: []intake.Target{{Recipient: "ann"}, at("apns", token)}, channels: []string{"in_app", "email"},
			want: []sent{
				{Kind: "websocket", Route: "websocket", Address: "ann", Recipient: "ann", Title: "Hi", Body: "Text"},
				{Kind: "email", Route: "email", Address: "ann@example.com", Recipient: "ann", Title: "Hi", Body: "Text"},
				{To: 1, Address: "push", Reason: core.SkipChannel},
			},
		},
		"only the channels that the content covers": {
			to: []intake.Target{{Recipient: "ann"}}, content: &intake.Content{Channels: map[string]json.RawMessage{"email": json.RawMessage(`{"subject":"S","text":"T"}`)}},
			want: []sent{{Kind: "email", Route: "email", Address: "ann@example.com", Recipient: "ann", Block: `{"subject":"S","text":"T"}`}},
		},
		"a channel asked for that the content does not cover": {
			to: []intake.Target{{Recipient: "ann"}}, channels: []string{"push", "email"},
			content: &intake.Content{Channels: map[string]json.RawMessage{"email": json.RawMessage(`{"text":"T"}`)}},
			want: []sent{
				{Address: "push", Recipient: "ann", Reason: core.SkipNoContent},
				{Kind: "email", Route: "email", Address: "ann@example.com", Recipient: "ann", Block: `{"text":"T"}`},
			},
		},
		"nobody twice": {
			to: []intake.Target{at("email", "ann@example.com"), {Recipient: "ann"}, at("email", "ann@example.com"), {Recipient: "ann"}}, channels: []string{"email"},
			want: []sent{
				mail(0, "email", "ann@example.com"),
				{To: 1, Address: "email", Recipient: "ann", Reason: core.SkipDuplicate},
				{To: 2, Address: "email", Reason: core.SkipDuplicate},
				{To: 3, Address: "email", Recipient: "ann", Reason: core.SkipDuplicate},
			},
		},
		"whom it cannot reach": {
			to: []intake.Target{{Recipient: "nobody"}, {Recipient: "bare"}, {Recipient: "elsewhere"}, {Recipient: "stale"}}, channels: []string{"email", "push", "sms"},
			want: []sent{
				{To: 0, Recipient: "nobody", Reason: core.SkipUnknownRecipient},
				{To: 1, Address: "email", Recipient: "bare", Reason: core.SkipNoEndpoint},
				{To: 1, Address: "push", Recipient: "bare", Reason: core.SkipNoEndpoint},
				{To: 1, Address: "sms", Recipient: "bare", Reason: core.SkipNoEndpoint},
				{To: 2, Recipient: "elsewhere", Reason: core.SkipUnknownRecipient},
				{To: 3, Address: "email", Recipient: "stale", Reason: core.SkipNoRoute},
				{To: 3, Address: "push", Recipient: "stale", Reason: core.SkipNoEndpoint},
				{To: 3, Address: "sms", Recipient: "stale", Reason: core.SkipBadAddress},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.put(ann())
			b.put(core.Recipient{ID: "bare"})
			b.put(core.Recipient{ID: "stale", Endpoints: []core.Endpoint{{Kind: "email", Address: "s@example.com", Route: "email-b"}, {Kind: "sms", Address: "+4900111111"}}})
			b.recipients["b/elsewhere"] = &core.Recipient{App: "b", ID: "elsewhere"}
			content := tc.content
			if content == nil {
				content = words()
			}
			got, a := b.decide(intake.Request{To: tc.to, Channels: tc.channels, Content: content})
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("decisions (-want +got):\n%s", d)
			}
			for i := range a.Contents {
				used := false
				for j := range a.Deliveries {
					used = used || a.Deliveries[j].Content.Slot == i
				}
				if !used {
					t.Errorf("content %d is recorded for nobody", i)
				}
			}
		})
	}
}

// TestApps: a route that is not for an app is not there for it, by name or not.
func TestApps(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	req := intake.Request{To: []intake.Target{at("email", "ann@example.com")}, Content: words()}
	for app, route := range map[string]string{"a": "email", "b": "email-b"} {
		p, err := b.Preview(t.Context(), app, &req)
		if err != nil || p.Decisions[0].Route != route {
			t.Errorf("app %s goes over %+v (%v), want %s", app, p, err, route)
		}
	}
	var bad *intake.Invalid
	_, err := b.Preview(t.Context(), "b", &intake.Request{To: []intake.Target{
		at("sms", "+4915112345678"), {Kind: "sms", Address: "+4915112345678", Route: "sms", Pointer: "/address"},
		{Kind: "sms", Address: "+4915112345678", Pointer: "/address"}}, Content: words()})
	if !errors.As(err, &bad) {
		t.Fatalf("%v, want faults", err)
	}
	want := []intake.Fault{
		{Pointer: "/to/0/sms", Code: intake.FaultUnknown, Detail: "no route of kind sms serves this app"},
		{Pointer: "/to/1/route", Code: intake.FaultUnknown, Detail: `there is no route "sms" of kind sms for this app`},
		{Pointer: "/to/2/kind", Code: intake.FaultUnknown, Detail: "no route of kind sms serves this app"},
	}
	if d := cmp.Diff(want, bad.Faults); d != "" {
		t.Errorf("faults (-want +got):\n%s", d)
	}
}

// TestRecord: what a request says beside its words, and the defaults.
func TestRecord(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.put(ann())
	_, a := b.decide(intake.Request{To: []intake.Target{{Recipient: "ann"}, at("email", "bob@example.com")}, Channels: []string{"email"}, Content: words()})
	n := a.Notification
	if n.Priority != providers.Normal || n.Mode != "all" || n.Unknown != core.RetryUnknown || !n.ExpiresAt.Equal(now.Add(72*time.Hour)) || n.Template != "" {
		t.Errorf("defaults: %+v", n)
	}
	if a.Deliveries[0].Name != "Ann" || a.Deliveries[1].Name != "" {
		t.Errorf("names %q and %q", a.Deliveries[0].Name, a.Deliveries[1].Name)
	}
	_, a = b.decide(intake.Request{To: []intake.Target{at("apns", token), at("fcm", phone)}, Content: &intake.Content{Title: "T", Body: "B", URL: "https://example.com", Data: json.RawMessage(`{"k":1}`)},
		Priority: providers.Critical, Unknown: core.FailUnknown, CollapseKey: "order-7", Category: "orders", Metadata: json.RawMessage(`{"m":1}`)})
	n = a.Notification
	if n.Priority != providers.Critical || n.Unknown != core.FailUnknown || n.CollapseKey != "order-7" || n.Category != "orders" || string(n.Metadata) != `{"m":1}` {
		t.Errorf("recorded %+v", n)
	}
	want := []core.Content{{Title: "T", Body: "B", URL: "https://example.com", Data: json.RawMessage(`{"k":1}`), Category: "orders", CollapseKey: "order-7"}}
	if d := cmp.Diff(want, a.Contents); d != "" {
		t.Errorf("contents, kept once (-want +got):\n%s", d)
	}
	if a.Deliveries[0].MaxUnknown != 0 {
		t.Errorf("at most once allows %d unknown outcomes", a.Deliveries[0].MaxUnknown)
	}
	_, a = b.decide(intake.Request{To: []intake.Target{at("apns", token), at("fcm", phone)}, Content: words()})
	if a.Deliveries[0].MaxUnknown != 3 || a.Deliveries[1].MaxUnknown != 1 {
		t.Errorf("unknown outcomes allowed: %d and %d, want each route's", a.Deliveries[0].MaxUnknown, a.Deliveries[1].MaxUnknown)
	}
}

// TestManySkipped: the answer shows the first hundred, the notification keeps all.
func TestManySkipped(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	to := make([]intake.Target, core.MaxTo)
	for i := range to {
		to[i].Recipient = "nobody"
	}
	got, err := b.Accept(t.Context(), "a", &intake.Request{To: to, Content: words()}, intake.Key{})
	if err != nil {
		t.Fatal(err)
	}
	if got.Deliveries != 0 || got.Status != core.StatusCompleted || len(got.Skipped) != core.MaxSkipShown || len(b.recorded[0].Notification.Skipped) != core.MaxTo {
		t.Errorf("%d deliveries, %s, %d skips shown and %d kept", got.Deliveries, got.Status, len(got.Skipped), len(b.recorded[0].Notification.Skipped))
	}
}

func TestTimes(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		req          intake.Request
		send, expire time.Duration // from now
		status       core.Status
		faults       map[string]string
	}{
		"now":              {intake.Request{}, 0, core.DefaultTTL, core.StatusAccepted, nil},
		"ttl":              {intake.Request{TTL: time.Minute}, 0, time.Minute, core.StatusAccepted, nil},
		"longest ttl":      {intake.Request{TTL: core.MaxTTL}, 0, core.MaxTTL, core.StatusAccepted, nil},
		"delay":            {intake.Request{Delay: time.Hour, TTL: time.Minute}, time.Hour, time.Hour + time.Minute, core.StatusScheduled, nil},
		"send_at":          {intake.Request{SendAt: now.Add(time.Hour)}, time.Hour, time.Hour + core.DefaultTTL, core.StatusScheduled, nil},
		"a moment ago":     {intake.Request{SendAt: now.Add(-30 * time.Second), TTL: time.Hour}, -30 * time.Second, time.Hour, core.StatusAccepted, nil},
		"a year ahead":     {intake.Request{SendAt: now.Add(core.MaxAhead)}, core.MaxAhead, core.MaxAhead + core.DefaultTTL, core.StatusScheduled, nil},
		"past":             {intake.Request{SendAt: now.Add(-time.Minute - time.Second)}, 0, 0, "", map[string]string{"/send_at": intake.FaultRange}},
		"too far":          {intake.Request{SendAt: now.Add(core.MaxAhead + time.Second)}, 0, 0, "", map[string]string{"/send_at": intake.FaultRange}},
		"delayed too far":  {intake.Request{Delay: core.MaxAhead + 1}, 0, 0, "", map[string]string{"/delay": intake.FaultRange}},
		"longest duration": {intake.Request{Delay: 1<<63 - 1, TTL: 1<<63 - 1}, 0, 0, "", map[string]string{"/delay": intake.FaultRange, "/ttl": intake.FaultRange}},
		"negative":         {intake.Request{Delay: -1, TTL: -1}, 0, 0, "", map[string]string{"/delay": intake.FaultRange, "/ttl": intake.FaultRange}},
		"two times":        {intake.Request{SendAt: now.Add(time.Hour), Delay: time.Hour}, 0, 0, "", map[string]string{"/delay": intake.FaultConflict}},
		"long ttl":         {intake.Request{TTL: core.MaxTTL + 1}, 0, 0, "", map[string]string{"/ttl": intake.FaultRange}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			tc.req.To, tc.req.Content = []intake.Target{at("apns", token)}, words()
			if tc.faults != nil {
				codes, _ := b.refused(tc.req)
				if d := cmp.Diff(tc.faults, codes); d != "" {
					t.Errorf("faults (-want +got):\n%s", d)
				}
				return
			}
			_, a := b.decide(tc.req)
			n := &a.Notification
			if send, expire := n.SendAt.Sub(now), n.ExpiresAt.Sub(now); send != tc.send || expire != tc.expire {
				t.Errorf("goes in %s and expires in %s, want %s and %s", send, expire, tc.send, tc.expire)
			}
			if got := core.StatusOf(n, core.Counts{Pending: 1}, false, now); got != tc.status {
				t.Errorf("is %s, want %s", got, tc.status)
			}
		})
	}
}

// TestWake: what the store says to wake is woken, and a queue that is away takes nothing back.
func TestWake(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.wakeErr = errors.New("the queue is away")
	var log strings.Builder
	b.Intake = intake.New(intake.Options{Store: b, Queue: b, Templates: templates.New(nil, versions{b}), Routing: b.Routing(), Logger: slog.New(slog.NewTextHandler(&log, nil))})
	for range 5 {
		if _, err := b.Accept(t.Context(), "a", &intake.Request{To: []intake.Target{at("apns", token)}, Content: words()}, intake.Key{}); err != nil {
			t.Error(err)
		}
	}
	if len(b.woken) != 5 {
		t.Errorf("%d wakes, want the store's five", len(b.woken))
	}
	if n := strings.Count(log.String(), "could not be woken at once"); n != 1 {
		t.Errorf("it is said %d times, want once:\n%s", n, log.String())
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.template("gone", `{"locales":{"default":{"title":"T"}}}`)
	later := intake.Request{To: []intake.Target{at("apns", token), {Recipient: "nobody"}}, Template: "gone", SendAt: now.Add(time.Hour)}
	first, err := b.Accept(t.Context(), "a", &later, keyed("k", "body"))
	if err != nil {
		t.Fatal(err)
	}
	again := func(app string, key intake.Key) (*intake.Accepted, error) {
		return b.Accept(t.Context(), app, &later, key)
	}
	want := *first
	want.Replayed = true
	for _, when := range []string{"at once", "when its time is past and its template gone"} {
		got, err := again("a", keyed("k", "body"))
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if d := cmp.Diff(&want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", when, d)
		}
		if _, err := again("a", keyed("k", "other body")); !errors.Is(err, core.ErrKeyReused) {
			t.Errorf("%s, with another body: %v, want ErrKeyReused", when, err)
		}
		b.now = now.Add(2 * time.Hour)
		delete(b.sources, "a/gone")
	}
	if len(b.recorded) != 1 {
		t.Errorf("%d notifications are recorded, want 1", len(b.recorded))
	}
	var bad *intake.Invalid
	for name, key := range map[string]intake.Key{"a free key": keyed("free", "body"), "none": {}} {
		if _, err := again("a", key); !errors.As(err, &bad) {
			t.Errorf("%s: %v, want the faults", name, err)
		}
	}
	if _, err := again("b", keyed("k", "body")); !errors.As(err, &bad) {
		t.Errorf("another app's key: %v, want the faults", err)
	}
}

// TestStoreAway: what the store fails by is no fault of the request, wherever it fails.
func TestStoreAway(t *testing.T) {
	t.Parallel()
	for name, req := range map[string]intake.Request{
		"find recipients": {To: []intake.Target{{Recipient: "ann"}}, Content: words()},
		"find a template": {To: []intake.Target{at("apns", token)}, Template: "welcome"},
		"find a key":      {To: []intake.Target{at("apns", token)}, Content: &intake.Content{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.down = core.ErrUnavailable
			var bad *intake.Invalid
			if _, err := b.Accept(t.Context(), "a", &req, keyed("k", "x")); !errors.Is(err, core.ErrUnavailable) || errors.As(err, &bad) {
				t.Errorf("%v, want ErrUnavailable", err)
			}
		})
	}
}

// TestGivenUp: a caller that is gone is not rendered for.
func TestGivenUp(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Accept(ctx, "a", &intake.Request{To: []intake.Target{at("apns", token)}, Content: words()}, intake.Key{}); !errors.Is(err, context.Canceled) || len(b.recorded) > 0 {
		t.Errorf("%v, %d recorded", err, len(b.recorded))
	}
}

// TestHangUp: a caller who hangs up while its request is recorded does not end that, and what is recorded is woken;
// its deadline does, and there always is one. One who hangs up before is not recorded.
func TestHangUp(t *testing.T) {
	t.Parallel()
	deadline := time.Now().Add(time.Hour)
	for name, tc := range map[string]struct {
		deadline, before bool // there is one; the caller hangs up before
	}{
		"while it is recorded":              {},
		"while it is recorded, by a time":   {deadline: true},
		"before":                            {before: true},
		"before, though its time is not up": {before: true, deadline: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			ctx, hangUp := context.WithCancel(t.Context())
			defer hangUp()
			if tc.deadline {
				var cancel context.CancelFunc
				ctx, cancel = context.WithDeadline(ctx, deadline)
				defer cancel()
			}
			if tc.before {
				hangUp()
			}
			b.recording = func(ctx context.Context) {
				hangUp()
				end, ok := ctx.Deadline()
				if !ok || tc.deadline && !end.Equal(deadline) || !tc.deadline && time.Until(end) > time.Minute {
					t.Errorf("it is recorded until %v, %t", end, ok)
				}
			}
			got, err := b.Accept(ctx, "a", &intake.Request{To: []intake.Target{at("email", "ann@example.com")}, Content: words()}, intake.Key{})
			if tc.before {
				if !errors.Is(err, context.Canceled) || len(b.recorded) > 0 {
					t.Errorf("%+v, %v, %d recorded, of one who had hung up", got, err, len(b.recorded))
				}
				return
			}
			if err != nil || len(b.recorded) != 1 || len(b.woken) != 1 {
				t.Errorf("%v, %d recorded, %d woken, of one who hung up meanwhile", err, len(b.recorded), len(b.woken))
			}
		})
	}
}
