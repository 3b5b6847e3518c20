package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strconv"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/intake"
)

// YesNo is a bool that null is not.
type YesNo bool

// UnmarshalJSON implements json.Unmarshaler.
func (y *YesNo) UnmarshalJSON(b []byte) error {
	switch string(b) {
	case "true", "false":
		*y = string(b) == "true"
		return nil
	}
	return errors.New("must be true or false")
}

// GetPreferences implements StrictServerInterface.
func (a *API) GetPreferences(ctx context.Context, q GetPreferencesRequestObject) (GetPreferencesResponseObject, error) {
	r, err := a.Recipients.Recipient(ctx, callOf(ctx).principal.App, q.Id)
	if err != nil {
		return nil, err
	}
	return GetPreferences200JSONResponse(preferencesOf(r.Preferences)), nil
}

// PutPreferences implements StrictServerInterface.
func (a *API) PutPreferences(ctx context.Context, q PutPreferencesRequestObject) (PutPreferencesResponseObject, error) {
	if err := checkRecipientID(q.Id); err != nil {
		return nil, err
	}
	p, app := chosen(*q.Body), callOf(ctx).principal.App
	if err := a.checkPreferences(p, nil, ""); err != nil {
		had, readErr := a.Recipients.Recipient(ctx, app, q.Id)
		switch {
		case errors.Is(readErr, core.ErrNotFound):
			return nil, err
		case readErr != nil:
			return nil, readErr
		}
		if err := a.checkPreferences(p, had.Preferences, ""); err != nil {
			return nil, err
		}
	}
	if err := a.Recipients.PutPreferences(ctx, app, q.Id, p, a.rules()); err != nil {
		return nil, err
	}
	return PutPreferences200JSONResponse(preferencesOf(p)), nil
}

// categories are those of the notifications as they are now.
func (a *API) categories() core.Categories {
	if a.Categories == nil {
		return nil
	}
	return a.Categories()
}

// rules are what decides by them.
func (a *API) rules() *core.Rules { return &core.Rules{Categories: a.categories()} }

// checkPreferences names what is wrong with preferences of who had others, below a pointer.
func (a *API) checkPreferences(p, had core.Preferences, at string) error {
	found := p.Check(a.categories(), a.Addresses.Channels(), had)
	if len(found) == 0 {
		return nil
	}
	var f []intake.Fault
	for _, category := range slices.Sorted(maps.Keys(found)) {
		pointer := at
		if category != "" {
			pointer += "/" + escapePointer(category)
		}
		f = append(f, intake.Fault{Pointer: pointer, Code: intake.FaultInvalid, Detail: found[category]})
	}
	return invalid(f)
}

func chosen(in Preferences) core.Preferences {
	p := core.Preferences{}
	for category, by := range in {
		p[category] = map[string]bool{}
		for channel, on := range by {
			p[category][channel] = bool(on)
		}
	}
	return p
}

func preferencesOf(p core.Preferences) Preferences {
	out := Preferences{}
	for category, by := range p {
		out[category] = map[string]YesNo{}
		for channel, on := range by {
			out[category][channel] = YesNo(on)
		}
	}
	return out
}

//go:embed unsubscribe.html
var unsubscribeText string

var (
	unsubscribePage   = template.Must(template.New("unsubscribe").Parse(unsubscribeText))
	unsubscribePolicy = func() string {
		sum := sha256.Sum256([]byte(style.FindStringSubmatch(unsubscribeText)[1]))
		return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
	}()
)

// unsubscribed is what the page says.
type unsubscribed struct {
	status    int
	Category  string // "" if the link is not valid
	Channel   string
	Mandatory bool // it cannot be turned off
	Done      bool
}

// show writes the page.
func (u *unsubscribed) show(w http.ResponseWriter) error {
	var page bytes.Buffer
	if err := unsubscribePage.Execute(&page, u); err != nil {
		return fmt.Errorf("make the unsubscribe page: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", unsubscribePolicy)
	h.Set("Content-Length", strconv.Itoa(page.Len()))
	w.WriteHeader(u.status)
	_, err := page.WriteTo(w)
	return err
}

// VisitConfirmUnsubscribeResponse implements ConfirmUnsubscribeResponseObject.
func (u *unsubscribed) VisitConfirmUnsubscribeResponse(w http.ResponseWriter) error { return u.show(w) }

// VisitUnsubscribeResponse implements UnsubscribeResponseObject.
func (u *unsubscribed) VisitUnsubscribeResponse(w http.ResponseWriter) error { return u.show(w) }

// unsubscription reads a link's token. refused is what there is to say instead of going on: it is none of ours, or the
// category has become mandatory since.
func (a *API) unsubscription(token string) (u core.Unsubscription, refused *unsubscribed) {
	if a.Unsubscriber == nil {
		return u, &unsubscribed{status: http.StatusNotFound}
	}
	u, err := a.Unsubscriber.Read(token)
	switch {
	case err != nil:
		return u, &unsubscribed{status: http.StatusNotFound}
	case a.categories().Mandatory(u.Category):
		return u, &unsubscribed{status: http.StatusConflict, Category: u.Category, Channel: u.Channel, Mandatory: true}
	}
	return u, nil
}

// ConfirmUnsubscribe implements StrictServerInterface.
func (a *API) ConfirmUnsubscribe(_ context.Context, q ConfirmUnsubscribeRequestObject) (ConfirmUnsubscribeResponseObject, error) {
	u, refused := a.unsubscription(q.Token)
	if refused != nil {
		return refused, nil
	}
	return &unsubscribed{status: http.StatusOK, Category: u.Category, Channel: u.Channel}, nil
}

// Unsubscribe implements StrictServerInterface.
func (a *API) Unsubscribe(ctx context.Context, q UnsubscribeRequestObject) (UnsubscribeResponseObject, error) {
	u, refused := a.unsubscription(q.Token)
	if refused != nil {
		return refused, nil
	}
	err := a.Recipients.Unsubscribe(ctx, u, a.rules())
	if err != nil && !errors.Is(err, core.ErrNotFound) { // who was erased gets nothing any more
		return nil, err
	}
	return &unsubscribed{status: http.StatusOK, Category: u.Category, Channel: u.Channel, Done: true}, nil
}
