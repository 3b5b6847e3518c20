package intake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp/syntax"
	"slices"
	"strings"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/templates"
)

// TemplatePreview asks what a template says.
type TemplatePreview struct {
	Name      string
	Version   int             // 0: the latest
	Data      json.RawMessage // an object, or nil
	Locale    string          // "": the recipient's
	Channel   string          // the one to render for; "": all
	Recipient string          // the id of a stored one that the template sees; "": none
}

// PreviewTemplate renders a template and checks the result as Accept does: the blocks by their channels' schemas, and
// what is rendered by every kind of the channel that was asked for, or of all channels. The error is
// templates.ErrNotFound, a *templates.Error of the rendering, *Invalid for what the rest is wrong with, or the store's.
func (in *Intake) PreviewTemplate(ctx context.Context, app string, q *TemplatePreview) (*templates.Template, *templates.Content, error) {
	in = in.steady()
	t, err := in.templates.Find(ctx, app, q.Name, q.Version)
	if err != nil {
		return nil, nil, err
	}
	f := &faults{}
	input := templates.Input{Locale: q.Locale}
	if len(q.Data) > 0 && decodeData(q.Data, &input.Data) != nil {
		f.add("/data", FaultInvalid, "must be an object")
	}
	channels := in.routing.order
	if q.Channel != "" {
		channels, input.Channels = []string{q.Channel}, []string{q.Channel}
		if in.routing.channels[q.Channel] == nil {
			f.add("/channel", FaultUnknown, "there is no channel %q; configured are %v", q.Channel, in.routing.order)
		}
	}
	if q.Recipient != "" {
		found, err := in.store.Recipients(ctx, app, []string{q.Recipient})
		if err != nil {
			return nil, nil, fmt.Errorf("find the recipient: %w", err)
		}
		if rec := found[q.Recipient]; rec != nil {
			input.Recipient = recipientInput(rec)
		} else {
			f.add("/recipient", FaultUnknown, "there is no recipient of that id")
		}
	}
	if err := f.err(); err != nil {
		return nil, nil, err
	}
	c, err := t.Render(input)
	if err != nil {
		return nil, nil, err
	}
	if q.Channel != "" && c.Title == "" && c.Body == "" && len(c.Channels[q.Channel]) == 0 {
		f.add("/channel", FaultContent, "there is no content for channel %s: give the template a title or body, or a block under its name", q.Channel)
	}
	for _, name := range channels {
		in.checkContent(name, &c, f)
	}
	return t, &c, f.err()
}

// checkContent adds what a channel would refuse of what a template made.
func (in *Intake) checkContent(name string, c *templates.Content, f *faults) {
	ch, block := in.routing.channels[name], c.Channels[name]
	if c.Title == "" && c.Body == "" && len(block) == 0 {
		return // nothing would go there
	}
	at := "/locales/" + escapePointer(c.Locale)
	if len(block) > 0 {
		at += "/" + escapePointer(name)
	}
	if ch.checkBlock(block, at, f) {
		in.checkByKinds(ch, c, block, at, f)
	}
}

// checkByKinds adds what the kinds of a channel would refuse of a content, whoever it is to.
func (in *Intake) checkByKinds(ch *channel, c *templates.Content, block json.RawMessage, at string, f *faults) {
	now := in.store.Now()
	for _, k := range ch.kinds {
		address, ok := k.sample()
		if k.Check == nil || !ok {
			continue
		}
		m := providers.Message{ID: core.NewID(now).String(), Address: address, Title: c.Title, Body: c.Body, URL: c.URL, Data: c.Data, Content: block,
			Priority: providers.Normal, CreatedAt: now, ExpiresAt: now.Add(core.DefaultTTL), Attempt: 1}
		if err := k.Check(&m); err != nil && !errors.Is(err, providers.ErrAddress) {
			f.add(at, FaultContent, "%s: %s", k.Name, err)
		}
	}
}

// sample is an address of the kind's form, for content that is on its way to nobody; false where none is found.
func (k *servedKind) sample() (string, bool) {
	re, err := syntax.Parse(k.Address, syntax.Perl)
	if err != nil {
		return "", false
	}
	var b strings.Builder
	sampleOf(re.Simplify(), &b)
	return b.String(), k.checkForm(b.String()) == nil
}

// sampleOf writes a short text that an expression matches; where it looks around itself, it may not.
func sampleOf(re *syntax.Regexp, b *strings.Builder) {
	switch re.Op {
	case syntax.OpLiteral:
		b.WriteString(string(re.Rune))
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		b.WriteByte('1')
	case syntax.OpCharClass:
		b.WriteRune(sampleRune(re.Rune))
	case syntax.OpCapture, syntax.OpPlus, syntax.OpAlternate:
		sampleOf(re.Sub[0], b)
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			sampleOf(sub, b)
		}
	}
}

// sampleRune is a plain character of a class, given as ranges; if it has none, its first.
func sampleRune(ranges []rune) rune {
	for _, plain := range "a1A" {
		for pair := range slices.Chunk(ranges, 2) {
			if len(pair) == 2 && pair[0] <= plain && plain <= pair[1] {
				return plain
			}
		}
	}
	if len(ranges) == 0 {
		return '1'
	}
	return ranges[0]
}
