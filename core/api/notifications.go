package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/go-playground/validator/v10"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
)

// violations are what validator/v10 finds, by JSON pointer.
func (a *API) violations(ctx context.Context, v any) []intake.Fault {
	var bad validator.ValidationErrors
	if err := a.validate.StructCtx(ctx, v); !errors.As(err, &bad) {
		return nil
	}
	out := make([]intake.Fault, 0, len(bad))
	for _, e := range bad {
		code, detail := explain(e)
		out = append(out, intake.Fault{Pointer: pointerOf(e.Namespace()), Code: code, Detail: detail})
	}
	return out
}

// inflight are the idempotency keys whose first request is being answered.
type inflight struct {
	mu   sync.Mutex
	keys map[string]bool
}

// enter reports whether nobody else is under way with the key; leave must follow then.
func (f *inflight) enter(key string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keys[key] {
		return false
	}
	if f.keys == nil {
		f.keys = map[string]bool{}
	}
	f.keys[key] = true
	return true
}

func (f *inflight) leave(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.keys, key)
}

var (
	errInFlight = &failure{status: http.StatusConflict, detail: "The first request with this Idempotency-Key is still being answered. Ask again in a moment.", retry: 1}
	errBusy     = &failure{status: http.StatusServiceUnavailable, detail: "More requests are being accepted than can be at once. Try again in a moment.", retry: 1}
)

// SendNotification implements StrictServerInterface.
func (a *API) SendNotification(ctx context.Context, q SendNotificationRequestObject) (SendNotificationResponseObject, error) {
	c := callOf(ctx)
	got, err := a.accept(ctx, c, q.Body, q.Params.IdempotencyKey, c.body)
	if err != nil {
		return nil, err
	}
	body := acceptedOf(got)
	return &sent{Body: body,
		Headers: SendNotification202ResponseHeaders{Location: "/v1/notifications/" + body.Id, IdempotencyReplayed: replayedHeader(got.Replayed)}}, nil
}

// accept takes one request under a key. It is bounded in how many are under way at once.
func (a *API) accept(ctx context.Context, c *call, body *NotificationRequest, key string, text []byte) (*intake.Accepted, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, faults := requestOf(body, c.faults)
	if len(faults) > 0 {
		return nil, a.allFaults(ctx, c, req, faults)
	}
	select {
	case a.accepts <- struct{}{}:
		defer func() { <-a.accepts }()
	default:
		return nil, errBusy
	}
	k, done, err := a.holdKey(c, key, "", text)
	if err != nil {
		return nil, err
	}
	defer done()
	return a.Intake.Accept(ctx, c.principal.App, req, k)
}

// holdKey takes an idempotency key for the time of a request, for done to let go of: one that comes while the first is
// being answered is told so. The same body means something else to another operation, "" being that of notifications.
func (a *API) holdKey(c *call, key, operation string, body []byte) (k intake.Key, done func(), err error) {
	if key == "" {
		return k, func() {}, nil
	}
	slot := c.principal.App + "\x00" + key
	if !a.inflight.enter(slot) {
		return k, nil, errInFlight
	}
	hash := sha256.New()
	_, _ = io.WriteString(hash, operation)
	_, _ = hash.Write(body)
	return intake.Key{Value: key, Hash: [32]byte(hash.Sum(nil))}, func() { a.inflight.leave(slot) }, nil
}

// replayedHeader is the value of Idempotency-Replayed; nil: there is none.
func replayedHeader(replayed bool) *string {
	if !replayed {
		return nil
	}
	yes := "true"
	return &yes
}

// allFaults adds what the intake finds wrong with the rest of a request that has faults already, so
// that the caller mends everything at once.
func (a *API) allFaults(ctx context.Context, c *call, req *intake.Request, faults []intake.Fault) error {
	_, err := a.Intake.Preview(ctx, c.principal.App, req)
	return invalid(mergeChecked(faults, err))
}

// mergeChecked adds to faults what a use case found wrong with the rest, but for what follows from them: with an entry of
// "to", or with what is rendered, that had one before.
func mergeChecked(faults []intake.Fault, err error) []intake.Fault {
	var bad *intake.Invalid
	if !errors.As(err, &bad) {
		return faults
	}
	entries, content := map[string]bool{}, false
	for _, f := range faults {
		entries[entryOf(f.Pointer)] = true
		content = content || ofContent(f.Pointer)
	}
	return merge(faults, slices.DeleteFunc(slices.Clone(bad.Faults), func(f intake.Fault) bool {
		entry := entryOf(f.Pointer)
		return entry != "" && entries[entry] || content && f.Code == intake.FaultContent
	}))
}

// entryOf is the entry of `to` that a pointer leads into, "" for none.
func entryOf(pointer string) string {
	rest, ok := strings.CutPrefix(pointer, "/to/")
	if !ok {
		return ""
	}
	entry, _, _ := strings.Cut(rest, "/")
	return entry
}

// ofContent reports whether a pointer leads to what is rendered.
func ofContent(pointer string) bool {
	for _, part := range []string{"/content", "/template", "/version", "/data"} {
		if pointer == part || strings.HasPrefix(pointer, part+"/") {
			return true
		}
	}
	return false
}

// PreviewNotification implements StrictServerInterface.
func (a *API) PreviewNotification(ctx context.Context, q PreviewNotificationRequestObject) (PreviewNotificationResponseObject, error) {
	c := callOf(ctx)
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, faults := requestOf(q.Body, c.faults)
	if len(faults) > 0 {
		return nil, a.allFaults(ctx, c, req, faults)
	}
	p, err := a.Intake.Preview(ctx, c.principal.App, req)
	if err != nil {
		return nil, err
	}
	out := PreviewNotification200JSONResponse{Template: p.Template, SendAt: p.SendAt, ExpiresAt: p.ExpiresAt, Contents: []Rendered{}, Decisions: []Decision{}}
	for _, d := range p.Decisions {
		v := Decision{To: d.To, Recipient: d.Recipient, Channel: d.Channel, Kind: d.Kind, Route: d.Route, Address: core.MaskAddress(d.Kind, d.Address),
			Locale: d.Locale, Decision: d.Decision, Reason: d.Reason, HeldTill: stamp(d.HeldTill)}
		if d.Content >= 0 {
			v.Content = &d.Content
		}
		out.Decisions = append(out.Decisions, v)
	}
	for _, x := range p.Contents {
		out.Contents = append(out.Contents, Rendered{Title: x.Title, Body: x.Body, Url: x.URL, Data: x.Data, Block: x.Block, Category: x.Category, CollapseKey: x.CollapseKey})
	}
	return out, nil
}

// requestOf turns the document's request into the intake's. It returns the faults found before and its
// own; the request then holds what was right.
func requestOf(b *NotificationRequest, before []intake.Fault) (*intake.Request, []intake.Fault) {
	var f []intake.Fault
	add := func(pointer, code, detail string) {
		f = append(f, intake.Fault{Pointer: pointer, Code: code, Detail: detail})
	}
	r := &intake.Request{Mode: b.Mode, Template: b.Template, Data: b.Data, Locale: b.Locale, Channels: b.Channels, Priority: core.Lane(b.Priority), SendAt: given(b.SendAt),
		Unknown: core.UnknownPolicy(b.Unknown), CollapseKey: b.CollapseKey, Category: b.Category, Metadata: b.Metadata}
	r.Version = b.Version.number()
	if b.Version != "" && (b.Template == "" || r.Version == 0) {
		add("/version", intake.FaultConflict, "is a template's version, from 1 on")
	}
	r.Delay = durationOf(b.Delay, "/delay", false, add)
	r.TTL = durationOf(b.Ttl, "/ttl", true, add)
	r.FallbackAfter = durationOf(b.FallbackAfter, "/fallback_after", true, add)
	objectOf(b.Metadata, "/metadata", add)
	objectOf(b.Data, "/data", add)
	if len(b.Content) > 0 {
		r.Content = contentOf(b.Content, add)
	}
	r.To = make([]intake.Target, min(len(b.To), core.MaxTo+1)) // one too many tells that there are too many
	for i := range r.To {
		r.To[i] = targetOf(&b.To[i], i, add)
	}
	return r, merge(before, f)
}

// given is a time of a request. The use cases take time.Time's zero for none: who gave that one gets the next, as long ago.
func given(t *time.Time) time.Time {
	switch {
	case t == nil:
		return time.Time{}
	case t.IsZero():
		return t.Add(1)
	}
	return *t
}

type adder = func(pointer, code, detail string)

func durationOf(text, pointer string, positive bool, add adder) time.Duration {
	if text == "" {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0 // the validator said so
	}
	switch {
	case positive && d <= 0:
		add(pointer, intake.FaultRange, "must be above 0; leave it out for the default")
	case d < 0:
		add(pointer, intake.FaultRange, "must not be negative; leave it out to send now")
	}
	return d
}

// objectOf checks that a part that is kept as it is is an object.
func objectOf(raw json.RawMessage, pointer string, add adder) bool {
	if len(raw) == 0 || raw[0] == '{' {
		return len(raw) > 0
	}
	add(pointer, intake.FaultInvalid, "must be an object")
	return false
}

// plainContent reads a content with nothing wrong in it, in one go.
func plainContent(raw json.RawMessage) (*intake.Content, bool) {
	var c struct {
		Title    string                     `json:"title"`
		Body     string                     `json:"body"`
		URL      string                     `json:"url"`
		Data     json.RawMessage            `json:"data"`
		Channels map[string]json.RawMessage `json:",inline"`
	}
	if jsonv2.Unmarshal(raw, &c) != nil || len(c.Data) > 0 && c.Data[0] != '{' {
		return nil, false
	}
	for _, block := range c.Channels {
		if len(block) == 0 || block[0] != '{' {
			return nil, false
		}
	}
	return &intake.Content{Title: c.Title, Body: c.Body, URL: c.URL, Data: c.Data, Channels: c.Channels}, true
}

func contentOf(raw json.RawMessage, add adder) *intake.Content {
	if !objectOf(raw, "/content", add) {
		return nil
	}
	if c, ok := plainContent(raw); ok {
		return c
	}
	return carefulContent(raw, add)
}

// carefulContent reads a content member by member, and says of each what is wrong with it.
func carefulContent(raw json.RawMessage, add adder) *intake.Content {
	out := &intake.Content{Channels: map[string]json.RawMessage{}}
	members := jsontext.NewDecoder(bytes.NewBuffer(raw))
	_, err := members.ReadToken() // its brace
	for err == nil && members.PeekKind() != '}' {
		var name jsontext.Token
		if name, err = members.ReadToken(); err == nil {
			err = contentMember(out, name.String(), members, add)
		}
	}
	if err != nil {
		add("/content", intake.FaultInvalid, "must be an object")
		return nil
	}
	return out
}

// contentMember takes the value that comes next, that of the member name.
func contentMember(out *intake.Content, name string, members *jsontext.Decoder, add adder) error {
	v, err := members.ReadValue()
	if err != nil {
		return err
	}
	at := "/content/" + escapePointer(name)
	text := func(to *string) {
		if v.Kind() == 'n' {
			return // null is none
		}
		b, err := jsontext.AppendUnquote(nil, v)
		if err != nil {
			add(at, intake.FaultInvalid, "must be a text")
		}
		*to = string(b)
	}
	switch name {
	case "title":
		text(&out.Title)
	case "body":
		text(&out.Body)
	case "url":
		text(&out.URL)
	case "data":
		objectOf(json.RawMessage(v), at, add)
		out.Data = slices.Clone(json.RawMessage(v))
	default:
		objectOf(json.RawMessage(v), at, add)
		out.Channels[name] = slices.Clone(json.RawMessage(v))
	}
	return nil
}

// targetOf reads entry i of `to`: exactly one of a recipient, a short form, or kind and address.
func targetOf(t *Target, i int, add adder) intake.Target {
	at := func(member string) string { return "/to/" + strconv.Itoa(i) + member }
	out := intake.Target{Recipient: t.Recipient, Kind: t.Kind, Address: t.Address, Route: t.Route, Data: t.Data, Pointer: "/address"}
	named := 0
	if t.Topic != "" {
		named++
		out.Topic = t.Topic
		if checkTopic(t.Topic) != nil {
			add(at("/topic"), intake.FaultInvalid, "a topic's name "+nameForm)
		}
		if t.Route != "" {
			add(at("/route"), intake.FaultConflict, "belongs to an address; recipients' endpoints name their own")
		}
	}
	for _, short := range []struct{ kind, address string }{{"email", t.Email}, {"apns", t.Apns}, {"fcm", t.Fcm}, {"websocket", t.Websocket}} {
		if short.address != "" {
			named++
			out.Kind, out.Address, out.Pointer = short.kind, short.address, "/"+short.kind
		}
	}
	if t.Recipient != "" {
		named++
		if t.Route != "" {
			add(at("/route"), intake.FaultConflict, "belongs to an address; a recipient's endpoints name their own")
		}
	}
	if t.Kind != "" || t.Address != "" {
		named++
		if t.Kind == "" {
			add(at("/kind"), intake.FaultMissing, "is needed beside address")
		}
		if t.Address == "" {
			add(at("/address"), intake.FaultMissing, "is needed beside kind")
		}
	}
	if named != 1 {
		add(at(""), intake.FaultInvalid, "name one of recipient, topic, email, apns, fcm, websocket, or kind with address")
	}
	if len(t.Data) > 0 {
		objectOf(t.Data, at("/data"), add)
	}
	return out
}

func acceptedOf(a *intake.Accepted) Accepted {
	return Accepted{Id: a.ID.String(), Status: string(a.Status), Deliveries: a.Deliveries, CreatedAt: a.CreatedAt, Skipped: skips(a.Skipped)}
}

func skips(in []core.Skip) []Skip {
	var out []Skip
	for _, s := range in {
		out = append(out, Skip{To: s.To, Recipient: s.Recipient, Channel: s.Channel, Reason: s.Reason})
	}
	return out
}
