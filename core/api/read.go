package api

import (
	"context"
	"encoding/base64"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-playground/validator/v10"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
)

// The sizes of a page of a list.
const (
	defaultLimit = 50
	maxLimit     = 200
)

// page is the page of a list that a call asks for.
func page(ctx context.Context, limit int, cursor string) (core.Page, error) {
	if limit == 0 && !callOf(ctx).r.URL.Query().Has("limit") {
		limit = defaultLimit
	}
	if limit < 1 || limit > maxLimit {
		return core.Page{}, fault("/limit", intake.FaultRange, "must be 1 to 200")
	}
	return core.Page{Limit: limit, Cursor: cursor}, nil
}

// nameMark begins what a cursor of a list by names stands for, so that a text of somebody's own is none.
const nameMark = "name:"

// nameCursor is the cursor of a list that is ordered by names; "" at its end.
func nameCursor(name string) string {
	if name == "" {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString([]byte(nameMark + name))
}

// namePage is page of a list that is ordered by names.
func namePage(ctx context.Context, limit int, cursor string) (core.Page, error) {
	p, err := page(ctx, limit, cursor)
	if err != nil || cursor == "" {
		return p, err
	}
	text, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	name, ours := strings.CutPrefix(string(text), nameMark)
	if err != nil || !ours || name == "" || !utf8.ValidString(name) || strings.ContainsAny(cursor+name, "\r\n\x00") { // line breaks the decoder passes over
		return p, fault("/cursor", intake.FaultInvalid, "is no next_cursor of this list")
	}
	p.Cursor = name
	return p, nil
}

func idOf(text string) (core.ID, error) {
	id, err := core.ParseID(text)
	if err != nil {
		return core.ID{}, core.ErrNotFound // what is no id names nothing
	}
	return id, nil
}

func (a *API) notificationOf(v *core.NotificationView) Notification {
	after := ""
	if v.FallbackAfter > 0 {
		after = v.FallbackAfter.String()
	}
	return Notification{Mode: v.Mode, FallbackAfter: after, Id: v.ID.String(), Status: string(core.StatusOf(&v.Notification, v.Counts, v.Begun, a.Notifications.Now())), CreatedAt: v.CreatedAt, SendAt: v.SendAt,
		ExpiresAt: v.ExpiresAt, Priority: string(v.Priority), Category: v.Category, CollapseKey: v.CollapseKey, Template: v.Template, Metadata: v.Metadata,
		Counts: countsOf(v.Counts), Skipped: skips(v.Skipped[:min(len(v.Skipped), core.MaxSkipShown)])}
}

// GetNotification implements StrictServerInterface.
func (a *API) GetNotification(ctx context.Context, q GetNotificationRequestObject) (GetNotificationResponseObject, error) {
	id, err := idOf(q.Id)
	if err != nil {
		return nil, err
	}
	v, err := a.Notifications.Notification(ctx, callOf(ctx).principal.App, id)
	if err != nil {
		return nil, err
	}
	return GetNotification200JSONResponse(a.notificationOf(v)), nil
}

// ListNotifications implements StrictServerInterface.
func (a *API) ListNotifications(ctx context.Context, q ListNotificationsRequestObject) (ListNotificationsResponseObject, error) {
	p, err := page(ctx, q.Params.Limit, q.Params.Cursor)
	if err != nil {
		return nil, err
	}
	campaign := core.ID{}
	if q.Params.Campaign != "" {
		if campaign, err = core.ParseID(q.Params.Campaign); err != nil {
			return nil, fault("/campaign", intake.FaultInvalid, "is no id of a campaign")
		}
	}
	vs, next, err := a.Notifications.Notifications(ctx, core.NotificationFilter{App: callOf(ctx).principal.App, Status: core.Status(q.Params.Status),
		Recipient: q.Params.Recipient, Campaign: campaign, Since: q.Params.Since, Page: p})
	if err != nil {
		return nil, err
	}
	out := ListNotifications200JSONResponse{Data: make([]Notification, 0, len(vs)), NextCursor: next}
	for i := range vs {
		out.Data = append(out.Data, a.notificationOf(&vs[i]))
	}
	return out, nil
}

// ListDeliveries implements StrictServerInterface.
func (a *API) ListDeliveries(ctx context.Context, q ListDeliveriesRequestObject) (ListDeliveriesResponseObject, error) {
	id, err := idOf(q.Id)
	if err != nil {
		return nil, err
	}
	p, err := page(ctx, q.Params.Limit, q.Params.Cursor)
	if err != nil {
		return nil, err
	}
	app := callOf(ctx).principal.App
	ds, next, err := a.Notifications.Deliveries(ctx, app, id, p)
	if err == nil && len(ds) == 0 {
		_, err = a.Notifications.Notification(ctx, app, id) // none of one that is there, or of none
	}
	if err != nil {
		return nil, err
	}
	out := ListDeliveries200JSONResponse{Data: make([]Delivery, 0, len(ds)), NextCursor: next}
	for i := range ds {
		d := &ds[i]
		out.Data = append(out.Data, Delivery{Id: d.ID.String(), Recipient: d.Recipient, Channel: d.Channel, Kind: d.Kind, Route: d.Route, Address: core.MaskAddress(d.Kind, d.Address),
			State: d.State.String(), Reason: d.Reason, Code: d.Code, Attempts: d.Attempts, UnknownAttempts: d.Unknowns, CreatedAt: d.CreatedAt, UpdatedAt: d.UpdatedAt, ProviderId: d.ProviderID})
	}
	return out, nil
}

// GetTimeline implements StrictServerInterface.
func (a *API) GetTimeline(ctx context.Context, q GetTimelineRequestObject) (GetTimelineResponseObject, error) {
	id, err := idOf(q.Id)
	if err != nil {
		return nil, err
	}
	steps, err := a.Notifications.Timeline(ctx, callOf(ctx).principal.App, id)
	if err != nil {
		return nil, err
	}
	out := GetTimeline200JSONResponse{Data: make([]Step, 0, len(steps))}
	for _, s := range steps {
		v := Step{At: s.At, Step: s.What, Recipient: s.Recipient, Channel: s.Channel, Route: s.Route, Worker: s.Worker, Attempt: s.Attempt, Code: s.Code, Reason: s.Reason, HeldTill: stamp(s.HeldTill)}
		if !s.Delivery.IsZero() {
			v.Delivery = s.Delivery.String()
		}
		if s.What == core.StepAttempt || s.What == core.StepLate {
			v.Outcome = s.Outcome.String()
		}
		v.State = s.State.String()
		out.Data = append(out.Data, v)
	}
	return out, nil
}

// CancelNotification implements StrictServerInterface.
func (a *API) CancelNotification(ctx context.Context, q CancelNotificationRequestObject) (CancelNotificationResponseObject, error) {
	id, err := idOf(q.Id)
	if err != nil {
		return nil, err
	}
	n, err := a.Notifications.Cancel(ctx, callOf(ctx).principal.App, id)
	if err != nil {
		return nil, err
	}
	return CancelNotification200JSONResponse{Id: q.Id, Cancelled: n}, nil
}

func stamp(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// pointerOf turns a validator's namespace, "SendNotificationRequestObject.Body.to[0].address", into a
// JSON pointer into the body or to the parameter.
func pointerOf(namespace string) string {
	_, rest, _ := strings.Cut(namespace, ".")
	rest = strings.TrimPrefix(strings.TrimPrefix(rest, "Body."), "Params.")
	return "/" + strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(rest, "[", "/"), "]", ""), ".", "/")
}

// explain says what a validation tag wanted.
func explain(e validator.FieldError) (code, detail string) {
	switch e.Tag() {
	case "required":
		return intake.FaultMissing, "is needed"
	case "oneof":
		return intake.FaultInvalid, "must be one of " + e.Param()
	case "min":
		return intake.FaultRange, bound(e, "at least")
	case "max":
		return intake.FaultTooMany, bound(e, "at most")
	case "number":
		return intake.FaultInvalid, "must be a whole number, in digits alone"
	case "unique":
		return intake.FaultConflict, "must not name anything twice"
	case "printascii":
		return intake.FaultInvalid, "must be printable ASCII"
	case "goduration":
		return intake.FaultInvalid, `must be a duration such as "90s" or "15m"`
	case "bcp47_language_tag":
		return intake.FaultInvalid, "must be a language tag such as fr-CA"
	case "timezone":
		return intake.FaultInvalid, "must be a time zone such as Europe/Berlin"
	default:
		return intake.FaultInvalid, "does not have the form it must have (" + e.Tag() + ")"
	}
}

// bound says what a length or a number may be.
func bound(e validator.FieldError, most string) string {
	switch e.Kind() {
	case reflect.Slice:
		return "must have " + most + " " + e.Param() + " entries"
	case reflect.String:
		return "must have " + most + " " + e.Param() + " characters"
	}
	return "must be " + most + " " + e.Param()
}

func countsOf(c core.Counts) Counts {
	return Counts{Pending: c.Pending, Sent: c.Sent, Delivered: c.Delivered, Failed: c.Failed, Expired: c.Expired, Cancelled: c.Cancelled, Suppressed: c.Suppressed}
}
