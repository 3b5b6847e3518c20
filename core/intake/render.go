package intake

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

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
	rendered map[string]*templates.Content // by input; nil: it failed
	byTo     map[int]*templates.Content
	slots    map[slotKey]int
	same     map[string]int // by the content's JSON
}

type slotKey struct {
	c       *templates.Content
	channel string
}

// newRenderer finds the template or takes the inline content, and adds what is wrong with either.
func (in *Intake) newRenderer(ctx context.Context, app string, req *Request, f *faults) *renderer {
	r := &renderer{req: req, f: f, routing: in.routing, rendered: map[string]*templates.Content{}, byTo: map[int]*templates.Content{},
		slots: map[slotKey]int{}, same: map[string]int{}}
	switch {
	case req.Template == "" && req.Content == nil:
		f.add("/content", FaultMissing, "give content or a template")
	case req.Template != "" && req.Content != nil:
		f.add("/template", FaultConflict, "give content or a template, not both")
	case req.Content != nil:
		in.takeInline(r)
	default:
		in.findTemplate(ctx, app, r)
	}
	return r
}

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
	}
	for name, block := range c.Channels {
		ch, ok := in.routing.channels[name]
		if !ok {
			r.f.add("/content/"+escapePointer(name), FaultUnknown, "there is no field or channel of that name; configured channels are %v", in.routing.order)
			continue
		}
		ch.checkBlock(block, "/content/"+escapePointer(name), r.f)
	}
}

func (in *Intake) findTemplate(ctx context.Context, app string, r *renderer) {
	t, err := in.templates.Find(ctx, app, r.req.Template, r.req.Version)
	switch {
	case errors.Is(err, templates.ErrNotFound):
		r.f.add("/template", FaultUnknown, "there is no template %q of that version", r.req.Template)
	case err != nil:
		r.f.add("/template", FaultContent, "cannot be used: %s", err)
	default:
		r.template, r.pinned = t, pin(t)
	}
	if len(r.req.Data) > 0 {
		if err := decodeData(r.req.Data, &r.base); err != nil {
			r.f.add("/data", FaultInvalid, "must be an object")
		}
	}
}

// content returns the place in the plan's contents of what entry i of `to` gets on a channel; ok is
// false if the content does not cover the channel, or could not be rendered (see failed).
func (r *renderer) content(i int, rec *core.Recipient, channel string) (slot int, ok bool) {
	c, done := r.byTo[i]
	if !done {
		c = r.render(i, rec)
		r.byTo[i] = c
	}
	if c == nil {
		return 0, false
	}
	key := slotKey{c, channel}
	if slot, ok := r.slots[key]; ok {
		return slot, slot >= 0
	}
	slot = r.keep(c, channel)
	r.slots[key] = slot
	return slot, slot >= 0
}

// failed reports whether entry i's rendering failed; the fault is on record.
func (r *renderer) failed(i int) bool {
	c, done := r.byTo[i]
	return done && c == nil
}

// locale is the locale that entry i was rendered in, "" for inline content.
func (r *renderer) locale(i int) string {
	if c := r.byTo[i]; c != nil {
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

// keep adds a channel's part of a rendering to the plan's contents, once; -1 if it has none.
func (r *renderer) keep(c *templates.Content, channel string) int {
	block := c.Channels[channel]
	if c.Title == "" && c.Body == "" && len(block) == 0 {
		return -1
	}
	if r.inline == nil { // inline blocks were checked as they came in
		r.routing.channels[channel].checkBlock(block, "/template", r.f)
	}
	content := core.Content{Title: c.Title, Body: c.Body, URL: c.URL, Data: c.Data, Block: block,
		Category: r.req.Category, CollapseKey: r.req.CollapseKey}
	text, err := json.Marshal(content)
	if err != nil { // Data or Block that is no JSON: they were checked
		r.f.add(r.pointer(channel), FaultInvalid, "is not valid JSON")
		return -1
	}
	if slot, ok := r.same[string(text)]; ok {
		return slot
	}
	r.p.contents = append(r.p.contents, content)
	r.same[string(text)] = len(r.p.contents) - 1
	return len(r.p.contents) - 1
}

// render makes what entry i gets; nil if that failed.
func (r *renderer) render(i int, rec *core.Recipient) *templates.Content {
	if r.inline != nil {
		return r.inline
	}
	input := templates.Input{Data: r.base, Locale: r.req.Locale}
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
		if input.Locale == "" {
			input.Locale = rec.Locale
		}
		key += "\x00" + rec.ID
	}
	if c, done := r.rendered[key]; done {
		return c
	}
	c, err := r.template.Render(input)
	var bad *templates.Error
	switch {
	case errors.As(err, &bad):
		for _, fault := range bad.Faults {
			r.f.add(r.inputPointer(i, fault.Pointer), FaultContent, "%s", fault.Detail)
		}
		r.rendered[key] = nil
		return nil
	case err != nil:
		r.f.add("/template", FaultContent, "cannot be rendered: %s", err)
		r.rendered[key] = nil
		return nil
	}
	r.rendered[key] = &c
	return &c
}

// inputPointer places a fault of a rendering: one of the data where the data is, any other at the
// template.
func (r *renderer) inputPointer(i int, pointer string) string {
	if rest, ok := bytes.CutPrefix([]byte(pointer), []byte("/data")); ok {
		if len(r.req.To[i].Data) > 0 {
			return fmt.Sprintf("/to/%d/data%s", i, rest)
		}
		return pointer
	}
	return "/template"
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
