package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
)

// recipientID is what a recipient's id may be; it is the address of its in-app channel too.
var recipientID = regexp.MustCompile(`^[^\x00-\x1f\x7f/]{1,255}$`)

// isName reports whether a text can be the id of a recipient, or the name of a topic. Both are parts of paths, where
// "." and ".." lead elsewhere: to take x out of a topic ".." would be to erase x.
func isName(s string) bool { return recipientID.MatchString(s) && s != "." && s != ".." }

// nameForm is what isName wants.
const nameForm = `has 1 to 255 characters, none of them a slash or a control character, and is not "." or ".."`

func checkRecipientID(id string) error {
	if !isName(id) {
		return fault("/id", intake.FaultInvalid, "a recipient's id "+nameForm)
	}
	return nil
}

// checkEndpoints checks the addresses by their kinds.
func (a *API) checkEndpoints(in []EndpointInput) ([]core.Endpoint, error) {
	var f []intake.Fault
	out := make([]core.Endpoint, 0, len(in))
	for i, e := range in {
		if err := a.Addresses.CheckAddress(e.Kind, e.Address); err != nil {
			f = append(f, addressFault(err, fmt.Sprintf("/endpoints/%d", i)))
		}
		out = append(out, core.Endpoint{Kind: e.Kind, Address: e.Address, Route: e.Route, AppVersion: e.AppVersion})
	}
	if len(f) > 0 {
		return nil, invalid(f)
	}
	return out, nil
}

// addressFault is what is wrong with an endpoint below a pointer: its kind, or else its address.
func addressFault(err error, at string) intake.Fault {
	var unknown *intake.UnknownKindError
	if errors.As(err, &unknown) {
		return intake.Fault{Pointer: at + "/kind", Code: intake.FaultUnknown, Detail: err.Error()}
	}
	return intake.Fault{Pointer: at + "/address", Code: intake.FaultInvalid, Detail: err.Error()}
}

func recipientOf(r *core.Recipient) Recipient {
	out := Recipient{Id: r.ID, Attributes: r.Attributes, Locale: r.Locale, Timezone: r.Timezone, QuietHours: quietOf(r.QuietHours), CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt, Endpoints: []Endpoint{}}
	for _, e := range r.Endpoints {
		out.Endpoints = append(out.Endpoints, Endpoint{Kind: e.Kind, Address: e.Address, Route: e.Route, AppVersion: e.AppVersion, RegisteredAt: e.RegisteredAt})
	}
	return out
}

func attributesOf(raw json.RawMessage) (json.RawMessage, error) {
	if len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
		return nil, nil
	}
	if raw[0] != '{' {
		return nil, fault("/attributes", intake.FaultInvalid, "must be an object")
	}
	if len(raw) <= core.MaxAttributes {
		return raw, nil
	}
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return nil, fault("/attributes", intake.FaultInvalid, "must be an object")
	}
	if b.Len() > core.MaxAttributes {
		return nil, fault("/attributes", intake.FaultTooMany, fmt.Sprintf("are %d bytes, at most %d are kept: leave out what no template and no filter needs", b.Len(), core.MaxAttributes))
	}
	return bytes.Clone(b.Bytes()), nil // the buffer is as large as what came
}

// plainJSON encodes without the escapes for HTML: they would make <, > and & six bytes of the bound each.
func plainJSON(v any) (json.RawMessage, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// PutRecipient implements StrictServerInterface.
func (a *API) PutRecipient(ctx context.Context, q PutRecipientRequestObject) (PutRecipientResponseObject, error) {
	if err := checkRecipientID(q.Id); err != nil {
		return nil, err
	}
	endpoints, err := a.checkEndpoints(q.Body.Endpoints)
	if err != nil {
		return nil, err
	}
	attributes, err := attributesOf(q.Body.Attributes)
	if err != nil {
		return nil, err
	}
	quiet, err := a.checkQuiet(q.Body.QuietHours)
	if err != nil {
		return nil, err
	}
	app := callOf(ctx).principal.App
	created, err := a.Recipients.PutRecipient(ctx, &core.Recipient{App: app, ID: q.Id, Attributes: attributes, Locale: q.Body.Locale, Timezone: q.Body.Timezone,
		QuietHours: quiet, Endpoints: endpoints})
	if err != nil {
		return nil, err
	}
	r, err := a.Recipients.Recipient(ctx, app, q.Id)
	if err != nil {
		return nil, err
	}
	if created {
		return PutRecipient201JSONResponse(recipientOf(r)), nil
	}
	return PutRecipient200JSONResponse(recipientOf(r)), nil
}

// PatchRecipient implements StrictServerInterface. Attributes are merged as RFC 7396 says, endpoints
// are added or renewed, or with null all dropped.
func (a *API) PatchRecipient(ctx context.Context, q PatchRecipientRequestObject) (PatchRecipientResponseObject, error) {
	if err := checkRecipientID(q.Id); err != nil {
		return nil, err
	}
	endpoints, err := a.checkEndpoints(q.Body.Endpoints)
	if err != nil {
		return nil, err
	}
	if _, err := attributesOf(q.Body.Attributes); err != nil {
		return nil, err
	}
	quiet, changeQuiet, err := a.patchQuiet(q.Body.QuietHours)
	if err != nil {
		return nil, err
	}
	app, dropAll := callOf(ctx).principal.App, givenNull(callOf(ctx).body, "endpoints")
	created, err := a.Recipients.UpdateRecipient(ctx, app, q.Id, func(r *core.Recipient) error {
		if q.Body.Locale.Set {
			r.Locale = q.Body.Locale.Value
		}
		if q.Body.Timezone.Set {
			r.Timezone = q.Body.Timezone.Value
		}
		if changeQuiet {
			r.QuietHours = quiet
		}
		if dropAll {
			r.Endpoints = nil
		}
		for _, e := range endpoints {
			r.Endpoints = setEndpoint(r.Endpoints, e)
		}
		if len(q.Body.Attributes) == 0 {
			return nil
		}
		merged, err := mergePatch(r.Attributes, q.Body.Attributes)
		if err != nil {
			return err
		}
		r.Attributes, err = attributesOf(merged)
		return err
	})
	if err != nil {
		return nil, err
	}
	r, err := a.Recipients.Recipient(ctx, app, q.Id)
	if err != nil {
		return nil, err
	}
	if created {
		return PatchRecipient201JSONResponse(recipientOf(r)), nil
	}
	return PatchRecipient200JSONResponse(recipientOf(r)), nil
}

// givenNull reports whether a member of a body is null, which its decoded form does not tell from one that is not there.
func givenNull(body []byte, member string) bool {
	var members map[string]json.RawMessage
	return json.Unmarshal(body, &members) == nil && bytes.Equal(members[member], []byte("null"))
}

// setEndpoint adds an endpoint or renews the one of that kind and address.
func setEndpoint(list []core.Endpoint, e core.Endpoint) []core.Endpoint {
	for i := range list {
		if list[i].Kind == e.Kind && list[i].Address == e.Address {
			list[i] = e
			return list
		}
	}
	return append(list, e)
}

// mergePatch lays a patch over an object (RFC 7396).
func mergePatch(base, patch json.RawMessage) (json.RawMessage, error) {
	var p map[string]json.RawMessage
	if json.Unmarshal(patch, &p) != nil || p == nil {
		if bytes.Equal(patch, []byte("null")) {
			return nil, nil
		}
		return patch, nil
	}
	var b map[string]json.RawMessage
	if json.Unmarshal(base, &b) != nil || b == nil {
		b = map[string]json.RawMessage{}
	}
	for name, v := range p {
		if bytes.Equal(v, []byte("null")) {
			delete(b, name)
			continue
		}
		merged, err := mergePatch(b[name], v)
		if err != nil {
			return nil, err
		}
		b[name] = merged
	}
	out, err := plainJSON(b)
	if err != nil {
		return nil, fmt.Errorf("merge attributes: %w", err)
	}
	return out, nil
}

// GetRecipient implements StrictServerInterface.
func (a *API) GetRecipient(ctx context.Context, q GetRecipientRequestObject) (GetRecipientResponseObject, error) {
	r, err := a.Recipients.Recipient(ctx, callOf(ctx).principal.App, q.Id)
	if err != nil {
		return nil, err
	}
	return GetRecipient200JSONResponse(recipientOf(r)), nil
}

// ListRecipients implements StrictServerInterface.
func (a *API) ListRecipients(ctx context.Context, q ListRecipientsRequestObject) (ListRecipientsResponseObject, error) {
	p, err := namePage(ctx, q.Params.Limit, q.Params.Cursor)
	if err != nil {
		return nil, err
	}
	rs, next, err := a.Recipients.ListRecipients(ctx, callOf(ctx).principal.App, p)
	if err != nil {
		return nil, err
	}
	out := ListRecipients200JSONResponse{Data: make([]Recipient, 0, len(rs)), NextCursor: nameCursor(next)}
	for i := range rs {
		out.Data = append(out.Data, recipientOf(&rs[i]))
	}
	return out, nil
}

// DeleteRecipient implements StrictServerInterface.
func (a *API) DeleteRecipient(ctx context.Context, q DeleteRecipientRequestObject) (DeleteRecipientResponseObject, error) {
	if err := a.Recipients.DeleteRecipient(ctx, callOf(ctx).principal.App, q.Id); err != nil {
		return nil, err
	}
	return DeleteRecipient204Response{}, nil
}

// PutEndpoint implements StrictServerInterface.
func (a *API) PutEndpoint(ctx context.Context, q PutEndpointRequestObject) (PutEndpointResponseObject, error) {
	if err := checkRecipientID(q.Id); err != nil {
		return nil, err
	}
	if err := a.Addresses.CheckAddress(q.Kind, q.Address); err != nil {
		return nil, invalid([]intake.Fault{addressFault(err, "")})
	}
	e := core.Endpoint{Kind: q.Kind, Address: q.Address}
	if q.Body != nil {
		e.Route, e.AppVersion = q.Body.Route, q.Body.AppVersion
	}
	if _, err := a.Recipients.PutEndpoint(ctx, callOf(ctx).principal.App, q.Id, e); err != nil {
		return nil, err
	}
	return PutEndpoint204Response{}, nil
}

// DeleteEndpoint implements StrictServerInterface.
func (a *API) DeleteEndpoint(ctx context.Context, q DeleteEndpointRequestObject) (DeleteEndpointResponseObject, error) {
	if err := a.Recipients.DeleteEndpoint(ctx, callOf(ctx).principal.App, q.Id, q.Kind, q.Address); err != nil {
		return nil, err
	}
	return DeleteEndpoint204Response{}, nil
}
