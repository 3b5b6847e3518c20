package intake

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/carillon-notify/carillon/core"
)

// websocketKind is the kind whose address every stored recipient has: its own id.
const websocketKind = "websocket"

// target is a checked entry of `to`.
type target struct {
	kind  *servedKind // nil for a stored recipient
	route core.Route
}

// checkTargets checks the entries of `to` and the channels asked for, without looking anybody up.
func (in *Intake) checkTargets(app string, req *Request, f *faults) []target {
	if len(req.To) == 0 {
		f.add("/to", FaultMissing, "name at least one recipient or address")
	}
	if len(req.To) > core.MaxTo {
		f.add("/to", FaultTooMany, "takes at most %d entries; use /v1/notifications/bulk for more", core.MaxTo)
		return nil
	}
	for i, name := range req.Channels {
		if _, ok := in.routing.channels[name]; !ok {
			f.add(fmt.Sprintf("/channels/%d", i), FaultUnknown, "there is no channel %q; configured are %v", name, in.routing.order)
		}
	}
	targets := make([]target, len(req.To))
	for i := range req.To {
		t := &req.To[i]
		if t.Recipient != "" {
			continue
		}
		at := fmt.Sprintf("/to/%d", i)
		k, ok := in.routing.kinds[t.Kind]
		if !ok {
			f.add(at+t.kindPointer(), FaultUnknown, "%s", in.routing.CheckAddress(t.Kind, ""))
			continue
		}
		if err := in.routing.CheckAddress(t.Kind, t.Address); err != nil {
			f.add(at+t.Pointer, FaultInvalid, "%s", err)
		}
		route, ok := k.route(app, t.Route)
		if !ok && t.Route != "" {
			f.add(at+"/route", FaultUnknown, "there is no route %q of kind %s for this app", t.Route, t.Kind)
		} else if !ok {
			f.add(at+t.kindPointer(), FaultUnknown, "no route of kind %s serves this app", t.Kind)
		}
		targets[i] = target{kind: k, route: route}
	}
	return targets
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
	taken    map[[2]string]bool // kind and address: one notification reaches an address once
	channels []string
}

// resolve decides for each entry of `to` and each channel whether a delivery is made, and why not.
func (in *Intake) resolve(r *renderer, targets []target, recipients map[string]*core.Recipient) {
	p, req := r.p, r.req
	v := &resolver{in: in, p: p, req: req, render: r, f: r.f, taken: map[[2]string]bool{}, channels: req.Channels}
	if v.channels == nil {
		v.channels = in.routing.order
	}
	for i := range req.To {
		switch rec := recipients[req.To[i].Recipient]; {
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
}

// direct makes the delivery of an address named in the request.
func (v *resolver) direct(i int, t target) {
	to := &v.req.To[i]
	if !slices.Contains(v.channels, t.kind.Channel) && v.req.Channels != nil {
		v.skip(core.Skip{To: i, Channel: t.kind.Channel, Reason: core.SkipChannel})
		return
	}
	content, ok := v.render.content(i, nil, t.kind.Channel)
	if !ok {
		if !v.render.failed(i) {
			v.f.add(fmt.Sprintf("/to/%d", i), FaultContent, "there is no content for channel %s: give title or body, or a block under its name", t.kind.Channel)
		}
		return
	}
	d := core.Delivery{Kind: t.kind.Name, Channel: t.kind.Channel, Route: t.route.Name, Address: to.Address}
	if d.Kind == websocketKind {
		d.Recipient = to.Address // it is a recipient's id, and goes to that recipient's inbox
	}
	v.deliver(i, d, content, t.route)
}

// recipient makes the deliveries of a stored recipient: on each channel every endpoint of every kind.
func (v *resolver) recipient(i int, rec *core.Recipient) {
	name := recipientName(rec)
	for _, c := range v.channels {
		content, ok := v.render.content(i, rec, c)
		if !ok {
			if v.req.Channels != nil && !v.render.failed(i) {
				v.skip(core.Skip{To: i, Recipient: rec.ID, Channel: c, Reason: core.SkipNoContent})
			}
			continue
		}
		reached, routed := 0, 0
		for _, k := range v.in.routing.channels[c].kinds {
			for _, e := range endpoints(rec, k.Name) {
				reached++
				route, ok := k.route(v.p.notification.App, e.Route)
				if !ok {
					continue
				}
				routed++
				v.deliver(i, core.Delivery{Recipient: rec.ID, Name: name, Kind: k.Name, Channel: c, Route: route.Name, Address: e.Address}, content, route)
			}
		}
		switch {
		case reached == 0:
			v.skip(core.Skip{To: i, Recipient: rec.ID, Channel: c, Reason: core.SkipNoEndpoint})
		case routed == 0:
			v.skip(core.Skip{To: i, Recipient: rec.ID, Channel: c, Reason: core.SkipNoRoute})
		}
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
	v.p.decisions = append(v.p.decisions, Decision{To: s.To, Recipient: s.Recipient, Channel: s.Channel, Decision: "skip", Reason: s.Reason, Content: -1})
}

// deliver adds a delivery, unless its address is reached already.
func (v *resolver) deliver(i int, d core.Delivery, content int, route core.Route) {
	n := &v.p.notification
	if at := [2]string{d.Kind, d.Address}; v.taken[at] {
		v.skip(core.Skip{To: i, Recipient: d.Recipient, Channel: d.Channel, Reason: core.SkipDuplicate})
		return
	} else {
		v.taken[at] = true
	}
	d.Notification, d.App, d.State = n.ID, n.App, core.Pending
	d.Content.Slot = content
	d.CreatedAt, d.UpdatedAt, d.ExpiresAt = n.CreatedAt, n.CreatedAt, n.ExpiresAt
	if n.Unknown == core.RetryUnknown {
		d.MaxUnknown = route.Policy.MaxUnknown
	}
	v.p.deliveries = append(v.p.deliveries, d)
	v.p.decisions = append(v.p.decisions, Decision{To: i, Recipient: d.Recipient, Channel: d.Channel, Kind: d.Kind, Route: d.Route,
		Address: d.Address, Locale: v.render.locale(i), Decision: "deliver", Content: content})
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

// checkContents lets each kind look at what it is to deliver: is it within the service's limits?
func (in *Intake) checkContents(p *plan, r *renderer, f *faults) {
	type fault struct {
		content int
		detail  string
	}
	said := map[fault]bool{}
	for i := range p.deliveries {
		d := &p.deliveries[i]
		k := in.routing.kinds[d.Kind]
		if k.Check == nil {
			continue
		}
		m := d.Message(&p.contents[d.Content.Slot], p.notification.Priority)
		if err := k.Check(&m); err != nil {
			if at := (fault{d.Content.Slot, err.Error()}); !said[at] {
				said[at] = true
				f.add(r.pointer(d.Channel), FaultContent, "%s: %s", d.Kind, err)
			}
		}
	}
}
