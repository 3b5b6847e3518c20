package console

import (
	"context"
	"encoding/hex"
	"errors"
	"net/http"

	"github.com/carillon-notify/carillon/core"
)

// Suppressions lists, finds and lifts suppressions. What is not suppressed is not in the map of SuppressedAddresses, and
// core.ErrNotFound from LiftSuppression.
type Suppressions interface {
	Suppressions(ctx context.Context, app string, p core.Page) (list []core.Suppression, next string, err error)
	SuppressedAddresses(ctx context.Context, all []core.AddressOf) (map[core.AddressOf]core.Suppression, error)
	LiftSuppression(ctx context.Context, a core.AddressOf) error
}

// maxAddressBody bounds a form with an address, in bytes: one of 4096 characters, escaped, and its kind.
const maxAddressBody = 16 << 10

type suppressionsBody struct {
	Rows  []core.Suppression
	More  string
	Asked *core.AddressOf   // nil: nobody asked for an address
	Found *core.Suppression // nil: what was asked for is not suppressed
}

func (c *Console) suppressions(w http.ResponseWriter, r *http.Request, s session) {
	c.showSuppressions(w, r, s, nil)
}

// findSuppression says whether an address is suppressed. It is asked for by POST: addresses do not go into the history of a
// browser, nor into the log of a proxy.
func (c *Console) findSuppression(w http.ResponseWriter, r *http.Request, s session) {
	of, err := addressIn(w, r, s)
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	c.showSuppressions(w, r, s, &of)
}

func (c *Console) showSuppressions(w http.ResponseWriter, r *http.Request, s session, asked *core.AddressOf) {
	at := core.Page{Cursor: r.URL.Query().Get("cursor"), Limit: perPage}
	if _, err := hex.DecodeString(at.Cursor); err != nil { // the store's own error is not for people
		c.fail(w, r, s, core.ErrNotFound)
		return
	}
	b := suppressionsBody{Asked: asked}
	rows, next, err := c.o.Suppressions.Suppressions(r.Context(), s.App, at)
	if err == nil && asked != nil {
		var found map[core.AddressOf]core.Suppression
		if found, err = c.o.Suppressions.SuppressedAddresses(r.Context(), []core.AddressOf{*asked}); err == nil {
			if x, ok := found[*asked]; ok {
				b.Found = &x
			}
		}
	}
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	b.Rows, b.More = rows, older(r, next)
	p := s.page("Suppressed", b)
	p.Refresh = at.Cursor == "" && asked == nil
	c.page(w, http.StatusOK, "suppressions.html", p)
}

// liftSuppression lets an address be sent to again.
func (c *Console) liftSuppression(w http.ResponseWriter, r *http.Request, s session) {
	of, err := addressIn(w, r, s)
	if err == nil {
		err = c.o.Suppressions.LiftSuppression(r.Context(), of)
	}
	if errors.Is(err, core.ErrNotFound) {
		err = &problem{http.StatusNotFound, "Not suppressed", "Nothing is kept against that address. Somebody else may have lifted it."}
	}
	if err != nil {
		c.fail(w, r, s, err)
		return
	}
	http.Redirect(w, r, "/console/suppressions", http.StatusSeeOther)
}

// addressIn reads a form's address, of the session's app.
func addressIn(w http.ResponseWriter, r *http.Request, s session) (core.AddressOf, error) {
	r.Body = http.MaxBytesReader(w, r.Body, maxAddressBody)
	of := core.AddressOf{App: s.App, Kind: r.PostFormValue("kind"), Address: r.PostFormValue("address")}
	if of.Kind == "" || of.Address == "" {
		return of, &problem{http.StatusBadRequest, "No address", "Name an address and its kind, such as email."}
	}
	return of, nil
}
