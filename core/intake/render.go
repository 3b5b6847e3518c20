package intake

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/templates"
)

// renderer makes the contents of one request: inline content as it is, a template rendered once for
// each different input. Contents that come out the same are kept once.
type renderer struct {
	p        *plan
	req      *Request
	f        *faults
	inline   *templates.Content
	template *templates.Template
	routing  *Routing
	pinned   string // "name@version"
	base     map[string]any
	rendered few[string, *templates.Content] // by input; nil: it failed
	byTo     few[int, *templates.Content]
	covered  few[contentChannel, bool]
	broken   few[contentChannel, bool] // the channel's block does not fit its schema
	slots    few[contentChannel, int]
	same     few[sameness, int]
	said     map[Fault]bool // of the template: a thousand recipients may share one
	// lenient is not nil for a page of a campaign: why its entries cannot be rendered for, where they cannot.
	lenient map[int]string
	// unsubscribe makes the link of a recipient's mail; "" for none.
	unsubscribe func(recipient string) string
}

// emailChannel is the channel whose messages carry unsubscribe links.
const emailChannel = "email"

// sameness is all that one request's contents may differ in.
type sameness struct{ title, body, url, data, block string }

type contentChannel struct {
	c       *templates.Content
	channel string
}

// newRenderer finds the template or takes the inline content, and adds what is wrong with either. The
// error is the store's.
func (in *Intake) newRenderer(ctx context.Context, app string, req *Request, f *faults) (*renderer, error) {
	r := &renderer{req: req, f: f, routing: in.routing, said: map[Fault]bool{}}
	r.unsubscribe = func(recipient string) string {
		if in.unsubscribe == nil || req.Category == "" {
			return ""
		}
		return in.unsubscribe(core.Unsubscription{App: app, Recipient: recipient, Category: req.Category, Channel: emailChannel})
	}
	switch {
	case req.Template == "" && req.Content == nil:
		f.add("/content", FaultMissing, "give content or a template")
	case req.Template != "" && req.Content != nil:
		f.add("/template", FaultConflict, "give content or a template, not both")
	case req.Content != nil:
		in.takeInline(r)
	default:
		return r, in.findTemplate(ctx, app, r)
	}
	return r, nil
}

// usable reports whether there is anything to render.
func (r *renderer) usable() bool { return r.inline != nil || r.template != nil }

func (in *Intake) takeInline(r *renderer) {
	c := r.req.Content
	r.inline = &templates.Content{Title: c.Title, Body: c.Body, URL: c.URL, Data: c.Data, Channels: c.Channels}
	if len(r.req.Data) > 0 {
		r.f.add("/data", FaultConflict, "is a template's input; inline content has content.data")
	}
	for i := range r.req.To {
		if len(r.req.To[i].Data) > 0 {
			r.f.add(fmt.Sprintf("/to/%d/data", i), FaultConflict, "is a template's input; inline content has content.data")
		}
	}
	if r.req.Locale != "" {
		r.f.add("/locale", FaultConflict, "chooses among a template's locales; inline content has one")
	}
	if c.Title == "" && c.Body == "" && len(c.Channels) == 0 {
		r.f.add("/content", FaultMissing, "give a title, a body, or a block under a channel's name")
		r.inline = nil
	}
	for _, name := range slices.Sorted(maps.Keys(c.Channels)) {
		ch, ok := in.routing.channels[name]
		if !ok {
			r.f.add("/content/"+escapePointer(name), FaultUnknown, "there is no field or channel of that name; configured channels are %v", in.routing.order)
			continue
		}
		if !ch.checkBlock(c.Channels[name], "/content/"+escapePointer(name), r.f) {
			r.broken.put(contentChannel{r.inline, name}, true)
		}
	}
}

func (in *Intake) findTemplate(ctx context.Context, app string, r *renderer) error {
	name, version := r.req.Template, r.req.Version
	t, err := in.templates.Find(ctx, app, name, version)
	var broken *templates.Error
	switch {
	case errors.Is(err, templates.ErrNotFound) && version > 0:
		if _, err := in.templates.Find(ctx, app, name, 0); err == nil {
			r.f.add("/version", FaultUnknown, "template %q has no stored version %d", name, version)
			break
		}
		fallthrough
	case errors.Is(err, templates.ErrNotFound):
		r.f.add("/template", FaultUnknown, "there is no template %q", name)
	case errors.As(err, &broken):
		r.f.add("/template", FaultContent, "cannot be used any more: %s", broken)
	case err != nil:
		return fmt.Errorf("find the template: %w", err)
	default:
		r.template, r.pinned = t, pin(t)
	}
	if len(r.req.Data) > 0 && decodeData(r.req.Data, &r.base) != nil {
		r.f.add("/data", FaultInvalid, "must be an object")
		r.template = nil // what it lacks would follow from that
	}
	return nil
}

// covers reports whether what entry i of `to` gets has something for a channel; false too if that is
// not to be had, for faults that are on record (see failed).
func (r *renderer) covers(i int, rec *core.Recipient, channel string) bool {
	c, done := r.byTo.get(i)
	if !done {
		c = r.render(i, rec)
		r.byTo.put(i, c)
	}
	at := contentChannel{c, channel}
	covered, done := r.covered.get(at)
	if c == nil || done {
		return covered
	}
	block := c.Channels[channel]
	if r.inline == nil && !r.checkRendered(i, channel, block) {
		r.broken.put(at, true) // an inline block was checked as it came in
	}
	covered = !r.broken.of(at) && (c.Title != "" || c.Body != "" || len(block) > 0)
	r.covered.put(at, covered)
	return covered
}

// checkRendered checks the block that a template made for a channel. The request has no such member to point
// at: the fault is the template's, and says where in it.
func (r *renderer) checkRendered(i int, channel string, block json.RawMessage) bool {
	var found faults
	ok := r.routing.channels[channel].checkBlock(block, "", &found)
	if !ok && r.lenient != nil {
		r.lenient[i] = core.SkipRender + ": " + channel + ": " + found.list[0].Detail
		return false
	}
	for _, fault := range found.list {
		r.f.add("/template", fault.Code, "%s: %s", channel+strings.ReplaceAll(fault.Pointer, "/", "."), fault.Detail)
	}
	return ok
}

// failed reports whether entry i has nothing for a channel because of a fault that is on record.
func (r *renderer) failed(i int, channel string) bool {
	c := r.byTo.of(i)
	return c == nil || r.broken.of(contentChannel{c, channel})
}

// content is what entry i gets on a channel that it covers.
func (r *renderer) content(i int, channel string) core.Content {
	c := r.byTo.of(i)
	return core.Content{Title: c.Title, Body: c.Body, URL: c.URL, Data: c.Data, Block: c.Channels[channel],
		Category: r.req.Category, CollapseKey: r.req.CollapseKey}
}

// slot is the place of entry i's content in the plan's contents, where each is kept once and only if
// somebody gets it.
func (r *renderer) slot(i int, channel string) int {
	at := contentChannel{r.byTo.of(i), channel}
	slot, done := r.slots.get(at)
	if done {
		return slot
	}
	content := r.content(i, channel)
	if r.inline != nil && (len(content.Data) > 0 && !json.Valid(content.Data) || len(content.Block) > 0 && !json.Valid(content.Block)) {
		r.f.add(r.pointer(channel), FaultInvalid, "is not valid JSON")
	}
	same := sameness{content.Title, content.Body, content.URL, string(content.Data), string(content.Block)}
	if slot, done = r.same.get(same); !done {
		slot = len(r.p.contents)
		r.p.contents = append(r.p.contents, content)
		r.same.put(same, slot)
	}
	r.slots.put(at, slot)
	return slot
}

// locale is the locale that entry i was rendered in, "" for inline content.
func (r *renderer) locale(i int) string {
	if c := r.byTo.of(i); c != nil {
		return c.Locale
	}
	return ""
}

// pointer is where in the request a channel's content comes from.
func (r *renderer) pointer(channel string) string {
	if r.inline == nil {
		return "/template"
	}
	if _, ok := r.inline.Channels[channel]; ok {
		return "/content/" + escapePointer(channel)
	}
	return "/content"
}

// render makes what entry i gets; nil if that failed.
func (r *renderer) render(i int, rec *core.Recipient) *templates.Content {
	if r.inline != nil {
		return r.inline
	}
	input := templates.Input{Data: r.base, Locale: r.req.Locale, Channels: r.req.Channels}
	key := ""
	if over := r.req.To[i].Data; len(over) > 0 {
		data := maps.Clone(r.base)
		if err := decodeData(over, &data); err != nil {
			r.f.add(fmt.Sprintf("/to/%d/data", i), FaultInvalid, "must be an object")
			return nil
		}
		input.Data, key = data, string(over)
	}
	if rec != nil {
		input.Recipient = recipientInput(rec)
		input.Recipient.Unsubscribe = r.unsubscribe(rec.ID)
		key += "\x00" + rec.ID
	}
	if c, done := r.rendered.get(key); done {
		return c
	}
	c, err := r.template.Render(input)
	if err != nil {
		if !r.fail(i, err) {
			r.blame(i, err)
		}
		r.rendered.put(key, nil)
		return nil
	}
	r.rendered.put(key, &c)
	return &c
}

// blame adds what a rendering for entry i failed by, once if others fail by the same.
func (r *renderer) blame(i int, err error) {
	bad := &templates.Error{Faults: []templates.Fault{{Detail: "cannot be rendered with this data"}}}
	errors.As(err, &bad)
	for _, fault := range bad.Faults {
		at := Fault{Pointer: r.inputPointer(i, fault.Pointer), Code: FaultContent, Detail: fault.Detail}
		if r.said[at] {
			continue
		}
		r.said[at] = true
		if at.Pointer == "/template" && len(r.req.To) > 1 {
			at.Detail += fmt.Sprintf(" (rendered for /to/%d)", i)
		}
		r.f.add(at.Pointer, at.Code, "%s", at.Detail)
	}
}

// inputPointer places a fault of a rendering: one of the data where that part of the data is, any other
// at the template.
func (r *renderer) inputPointer(i int, pointer string) string {
	rest, ok := strings.CutPrefix(pointer, "/data")
	if !ok {
		return "/template"
	}
	over := r.req.To[i].Data
	if len(over) == 0 {
		return pointer
	}
	var own map[string]any
	if err := decodeData(over, &own); err != nil {
		return fmt.Sprintf("/to/%d/data", i)
	}
	member, _, _ := strings.Cut(strings.TrimPrefix(rest, "/"), "/")
	member = unescapePointer(member)
	_, isOwn := own[member]
	if _, shared := r.base[member]; shared && !isOwn {
		return pointer
	}
	return fmt.Sprintf("/to/%d/data%s", i, rest)
}

// decodeData reads a template's input; numbers keep all their digits.
func decodeData(text json.RawMessage, into *map[string]any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	return d.Decode(into)
}

// pin names exactly what was used: a stored template's version, or a file's content hash.
func pin(t *templates.Template) string {
	if v := t.Version(); v > 0 {
		return fmt.Sprintf("%s@%d", t.Name(), v)
	}
	return t.Name() + "@" + t.Hash()
}

// recipientInput is what a template sees as `recipient`.
func recipientInput(rec *core.Recipient) templates.Recipient {
	in := templates.Recipient{ID: rec.ID, Locale: rec.Locale, Timezone: rec.Timezone}
	if rec.Attributes != nil && decodeData(rec.Attributes, &in.Attributes) != nil {
		in.Attributes = nil // attributes that are no object are none
	}
	return in
}
