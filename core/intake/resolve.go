package intake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/providers"
)

// websocketKind is the kind whose address every stored recipient has: its own id.
const websocketKind = "websocket"

// target is a checked entry of `to`.
type target struct {
	kind  *servedKind // nil for a stored recipient
	route core.Route
	bad   bool // a fault is on record
}

// checkTargets checks the entries of `to` and the channels asked for, without looking anybody up. It
// returns none if there are too many to go on.
func (in *Intake) checkTargets(app string, req *Request, f *faults) []target {
	if len(req.To) == 0 {
		f.add("/to", FaultMissing, "name at least one recipient or address")
	}
	if len(req.To) > core.MaxTo {
		f.add("/to", FaultTooMany, "takes at most %d entries; use /v1/notifications/bulk for more", core.MaxTo)
		return nil
	}
	in.checkChannels(req, f)
	targets := make([]target, len(req.To))
	for i := range req.To {
		t := &req.To[i]
		if t.Recipient != "" || t.Topic != "" {
			continue
		}
		at := "/to/" + strconv.Itoa(i)
		k, err := in.routing.kind(t.Kind)
		if err != nil {
			f.add(at+t.kindPointer(), FaultUnknown, "%s", err)
			targets[i].bad = true
			continue
		}
		route, ok := in.route(k, app, t.Route)
		targets[i] = target{kind: k, route: route, bad: !ok}
		if err := k.checkForm(t.Address); err != nil {
			f.add(at+t.Pointer, FaultInvalid, "%s", err)
			targets[i].bad = true
		}
		switch {
		case ok:
		case t.Route != "":
			f.add(at+"/route", FaultUnknown, "there is no route %q of kind %s for this app", t.Route, t.Kind)
		default:
			f.add(at+t.kindPointer(), FaultUnknown, "no route of kind %s serves this app", t.Kind)
		}
	}
	return targets
}

func (in *Intake) checkChannels(req *Request, f *faults) {
	for i, name := range req.Channels {
		if _, ok := in.routing.channels[name]; !ok {
			f.add(fmt.Sprintf("/channels/%d", i), FaultUnknown, "there is no channel %q; configured are %v", name, in.routing.order)
		}
	}
}

func (t *Target) kindPointer() string {
	if t.Pointer == "/address" {
		return "/kind"
	}
	return t.Pointer
}

func recipientIDs(req *Request) []string {
	var ids []string
	seen := map[string]bool{}
	for i := range req.To {
		if id := req.To[i].Recipient; id != "" && !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return ids
}

// resolver turns targets into deliveries.
type resolver struct {
	in       *Intake
	p        *plan
	req      *Request
	render   *renderer
	f        *faults
	taken    few[reached, bool]
	checked  few[kindContent, bool] // what a kind has looked at, and found good or bad
	channels []string
}

// reached is what one notification reaches once: an address, whoever's it is. On a page of an audience it is a
// person's address, for everyone is written to for himself there, and who shares a page follows from the rate.
type reached struct{ kind, address, recipient string }

type kindContent struct {
	kind string
	contentChannel
}

// resolve decides for each entry of `to` and each channel whether a delivery is made, and why not. The
// error is the context's: a template that is slow, rendered for a thousand, takes a minute.
func (in *Intake) resolve(ctx context.Context, r *renderer, targets []target, recipients map[string]*core.Recipient) error {
	p, req := r.p, r.req
	n := len(req.To) // mostly one delivery for each
	p.deliveries, p.decisions = make([]core.Delivery, 0, n), make([]Decision, 0, n)
	v := &resolver{in: in, p: p, req: req, render: r, f: r.f}
	if req.Channels == nil {
		v.channels = in.routing.order
		if p.notification.Mode == core.ModeFallback {
			v.channels = core.InFallbackOrder(v.channels)
		}
	}
	for _, name := range req.Channels {
		if in.routing.channels[name] != nil && !slices.Contains(v.channels, name) {
			v.channels = append(v.channels, name)
		}
	}
	for i := range req.To {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("resolve entry %d of to: %w", i, err)
		}
		switch rec := recipients[req.To[i].Recipient]; {
		case targets[i].bad:
		case req.To[i].Topic != "":
			p.decisions = append(p.decisions, Decision{To: i, Decision: DecisionResolve, Reason: req.To[i].Topic, Content: -1})
		case req.To[i].Recipient == "":
			v.direct(i, targets[i])
		case rec == nil:
			v.skip(core.Skip{To: i, Recipient: req.To[i].Recipient, Reason: core.SkipUnknownRecipient})
		default:
			v.recipient(i, rec)
		}
	}
	ids := core.NewIDs(p.notification.CreatedAt, len(p.deliveries))
	for i := range p.deliveries {
		p.deliveries[i].ID = ids[i]
	}
	for _, ladder := range p.ladders {
		for _, i := range ladder {
			p.deliveries[i].Ladder = ids[ladder[0]]
		}
	}
	return nil
}

// direct makes the delivery of an address named in the request.
func (v *resolver) direct(i int, t target) {
	to := &v.req.To[i]
	if !slices.Contains(v.channels, t.kind.Channel) && v.req.Channels != nil {
		v.skip(core.Skip{To: i, Channel: t.kind.Channel, Reason: core.SkipChannel})
		return
	}
	if !v.render.covers(i, nil, t.kind.Channel) {
		if !v.render.failed(i, t.kind.Channel) {
			v.f.add(fmt.Sprintf("/to/%d", i), FaultContent, "there is no content for channel %s: give title or body, or a block under its name", t.kind.Channel)
		}
		return
	}
	d := core.Delivery{Kind: t.kind.Name, Channel: t.kind.Channel, Route: t.route.Name, Address: to.Address}
	if d.Kind == websocketKind {
		d.Recipient = to.Address // it is a recipient's id, and goes to that recipient's inbox
	}
	v.deliver(i, d, t.kind, t.route)
}

// recipient makes the deliveries of a stored recipient: on each channel every endpoint of every kind, as
// core.Rules decide.
func (v *resolver) recipient(i int, rec *core.Recipient) {
	n := &v.p.notification
	name, climb, first := recipientName(rec), core.NewClimb(n), len(v.p.deliveries)
	for _, c := range v.channels {
		if !v.render.covers(i, rec, c) {
			switch reason := v.render.lenient[i]; {
			case reason != "":
				v.skip(core.Skip{To: i, Recipient: rec.ID, Channel: c, Reason: reason})
			case v.req.Channels != nil && !v.render.failed(i, c):
				v.skip(core.Skip{To: i, Recipient: rec.ID, Channel: c, Reason: core.SkipNoContent})
			}
			continue
		}
		choice := v.in.rules.Decide(rec, n, c, climb.DueAt())
		if choice.Skip != "" {
			v.skip(core.Skip{To: i, Recipient: rec.ID, Channel: c, Reason: choice.Skip})
			continue
		}
		reached, routed, before := 0, 0, len(v.p.deliveries)
		for _, k := range v.in.routing.channels[c].kinds {
			for _, e := range endpoints(rec, k.Name) {
				reached++
				route, ok := v.in.route(k, n.App, e.Route)
				if !ok {
					continue
				}
				routed++
				d := core.Delivery{Recipient: rec.ID, Name: name, Kind: k.Name, Channel: c, Route: route.Name, Address: e.Address}
				climb.Place(&d, &choice)
				v.deliver(i, d, k, route)
			}
		}
		switch {
		case reached == 0:
			v.skip(core.Skip{To: i, Recipient: rec.ID, Channel: c, Reason: core.SkipNoEndpoint})
		case routed == 0:
			v.skip(core.Skip{To: i, Recipient: rec.ID, Channel: c, Reason: core.SkipNoRoute})
		case len(v.p.deliveries) > before:
			climb.Next(&choice)
		}
	}
	if last := len(v.p.deliveries) - 1; last > first && v.p.deliveries[last].Step > 0 {
		ladder := make([]int, 0, last-first+1)
		for at := first; at <= last; at++ {
			ladder = append(ladder, at)
		}
		v.p.ladders = append(v.p.ladders, ladder)
	}
}

// endpoints lists a recipient's endpoints of a kind, its own id as that of websocket.
func endpoints(rec *core.Recipient, kind string) []core.Endpoint {
	if kind == websocketKind {
		return []core.Endpoint{{Kind: kind, Address: rec.ID}}
	}
	var out []core.Endpoint
	for _, e := range rec.Endpoints {
		if e.Kind == kind {
			out = append(out, e)
		}
	}
	return out
}

func (v *resolver) skip(s core.Skip) {
	v.p.notification.Skipped = append(v.p.notification.Skipped, s)
	v.p.decisions = append(v.p.decisions, Decision{To: s.To, Recipient: s.Recipient, Channel: s.Channel, Decision: DecisionSkip, Reason: s.Reason, Content: -1})
}

// deliver adds a delivery, unless its address is reached already or its kind does not take it.
func (v *resolver) deliver(i int, d core.Delivery, k *servedKind, route core.Route) {
	n := &v.p.notification
	at := reached{kind: d.Kind, address: d.Address}
	if v.render.lenient != nil {
		at.recipient = d.Recipient
	}
	if v.taken.of(at) {
		v.skip(core.Skip{To: i, Recipient: d.Recipient, Channel: d.Channel, Reason: core.SkipDuplicate})
		return
	}
	v.taken.put(at, true)
	d.Notification, d.App, d.State = n.ID, n.App, core.Pending
	d.CreatedAt, d.UpdatedAt, d.ExpiresAt = n.CreatedAt, n.CreatedAt, n.ExpiresAt
	if n.Unknown == core.RetryUnknown {
		d.MaxUnknown = route.Policy.MaxUnknown
	}
	if !v.takes(i, &d, k) {
		return
	}
	d.Content.Slot = v.render.slot(i, d.Channel)
	v.p.deliveries = append(v.p.deliveries, d)
	v.p.decisions = append(v.p.decisions, Decision{To: i, Recipient: d.Recipient, Channel: d.Channel, Kind: d.Kind, Route: d.Route,
		Address: d.Address, Locale: v.render.locale(i), Decision: decided(&d), Reason: d.Held, HeldTill: d.DueAt, Content: d.Content.Slot})
}

// decided is what was decided of a delivery that is made.
func decided(d *core.Delivery) string {
	switch {
	case d.Step > 0:
		return DecisionWait
	case d.Held != "":
		return DecisionHold
	}
	return DecisionDeliver
}

// takes lets a kind look at what it is to deliver: at each content once, for a thousand recipients may
// share one with attachments, and at the address that the request names.
func (v *resolver) takes(i int, d *core.Delivery, k *servedKind) bool {
	if k.Check == nil {
		return true
	}
	at := kindContent{d.Kind, contentChannel{v.render.byTo.of(i), d.Channel}}
	var err error
	switch {
	case !v.checked.of(at):
		content := v.render.content(i, d.Channel)
		m := d.Message(&content, v.p.notification.Priority)
		m.ID = d.Notification.String() // the delivery's own is as long
		err = k.Check(&m)
		v.checked.put(at, !errors.Is(err, providers.ErrAddress))
	case v.req.To[i].Recipient == "":
		err = k.checkAddress(d.Address)
	}
	switch {
	case err == nil:
		return true
	case !errors.Is(err, providers.ErrAddress) && v.render.lenient != nil:
		v.checked.put(at, false) // the next one with this content is refused like this one
		v.skip(core.Skip{To: i, Recipient: d.Recipient, Channel: d.Channel, Reason: core.SkipRender + ": " + d.Kind + ": " + err.Error()})
	case !errors.Is(err, providers.ErrAddress):
		v.f.add(v.render.pointer(d.Channel), FaultContent, "%s: %s", d.Kind, err)
	case v.req.To[i].Recipient == "":
		v.f.add(fmt.Sprintf("/to/%d%s", i, v.req.To[i].Pointer), FaultInvalid, "%s", err)
	default:
		v.skip(core.Skip{To: i, Recipient: d.Recipient, Channel: d.Channel, Reason: core.SkipBadAddress})
	}
	return false
}

// recipientName is the attribute "name" of a recipient, shown in an e-mail's To.
func recipientName(rec *core.Recipient) string {
	var a struct {
		Name string `json:"name"`
	}
	if rec.Attributes != nil && json.Unmarshal(rec.Attributes, &a) != nil {
		return "" // a name that is no string is none
	}
	return a.Name
}
