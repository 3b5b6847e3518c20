package api

import (
	"context"

	"github.com/carillon-notify/carillon/core"
)

func suppressionOf(s core.Suppression) Suppression {
	return Suppression{Kind: s.Kind, Channel: s.Channel, Recipient: s.Recipient, Code: s.Code, Since: s.Since}
}

// ListSuppressions implements StrictServerInterface.
func (a *API) ListSuppressions(ctx context.Context, q ListSuppressionsRequestObject) (ListSuppressionsResponseObject, error) {
	p, err := page(ctx, q.Params.Limit, q.Params.Cursor)
	if err != nil {
		return nil, err
	}
	all, next, err := a.Recipients.Suppressions(ctx, callOf(ctx).principal.App, p)
	if err != nil {
		return nil, err
	}
	out := ListSuppressions200JSONResponse{Data: make([]Suppression, 0, len(all)), NextCursor: next}
	for _, s := range all {
		out.Data = append(out.Data, suppressionOf(s))
	}
	return out, nil
}

// GetSuppression implements StrictServerInterface.
func (a *API) GetSuppression(ctx context.Context, q GetSuppressionRequestObject) (GetSuppressionResponseObject, error) {
	of := core.AddressOf{App: callOf(ctx).principal.App, Kind: q.Kind, Address: q.Address}
	found, err := a.Recipients.SuppressedAddresses(ctx, []core.AddressOf{of})
	if err != nil {
		return nil, err
	}
	s, ok := found[of]
	if !ok {
		return nil, core.ErrNotFound
	}
	return GetSuppression200JSONResponse(suppressionOf(s)), nil
}

// LiftSuppression implements StrictServerInterface.
func (a *API) LiftSuppression(ctx context.Context, q LiftSuppressionRequestObject) (LiftSuppressionResponseObject, error) {
	if err := a.Recipients.LiftSuppression(ctx, core.AddressOf{App: callOf(ctx).principal.App, Kind: q.Kind, Address: q.Address}); err != nil {
		return nil, err
	}
	return LiftSuppression204Response{}, nil
}
