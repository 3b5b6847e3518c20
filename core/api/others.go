package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/carillon-notify/carillon/core"
)

//go:embed openapi.yaml
var document []byte

//go:embed docs.html
var docsPage []byte

// mountDocs serves the contract and a page about it.
func (a *API) mountDocs() error {
	if len(document) == 0 || !style.Match(docsPage) {
		return errors.New("api: the document is not there")
	}
	a.mux.HandleFunc("GET /openapi.yaml", func(w http.ResponseWriter, _ *http.Request) {
		text := document
		if a.Channels != nil {
			var err error
			if text, err = describedBy(document, a.Channels()); err != nil {
				a.Logger.Error("the channels cannot be described in the document", "error", err)
				text = document
			}
		}
		w.Header().Set("Content-Type", "application/yaml")
		w.Write(text)
	})
	rows, err := operationsOf(document)
	if err != nil {
		return fmt.Errorf("api: make the page about the document: %w", err)
	}
	docsPage := bytes.Replace(docsPage, []byte("{{operations}}"), rows, 1)
	sum := sha256.Sum256(style.FindSubmatch(docsPage)[1])
	policy := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; img-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
	a.mux.HandleFunc("GET /docs", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", policy)
		w.Write(bytes.ReplaceAll(docsPage, []byte("{{base}}"), []byte(base(r))))
	})
	return nil
}

var (
	style = regexp.MustCompile(`(?s)<style>(.*?)</style>`)
	host  = regexp.MustCompile(`^[A-Za-z0-9.:\[\]-]+$`)
)

// base is where the reader found us, for the lines to copy: harmless in HTML and in a shell.
func base(r *http.Request) string {
	if !host.MatchString(r.Host) {
		return "http://localhost:8080"
	}
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" {
		return "https://" + r.Host
	}
	return "http://" + r.Host
}

// Live implements StrictServerInterface.
func (a *API) Live(context.Context, LiveRequestObject) (LiveResponseObject, error) {
	return Live200TextResponse("ok\n"), nil
}

// Ready implements StrictServerInterface.
func (a *API) Ready(ctx context.Context, _ ReadyRequestObject) (ReadyResponseObject, error) {
	if a.Options.Ready != nil {
		if err := a.Options.Ready(ctx); err != nil {
			detail := "The store does not answer."
			if errors.Is(err, core.ErrStopping) {
				detail = "This process is stopping; another one takes requests."
			}
			return nil, &failure{status: http.StatusServiceUnavailable, detail: detail, retry: 1}
		}
	}
	return Ready200TextResponse("ok\n"), nil
}

// ErrNoChannel is the error of what needs an in-app channel where there is none, and is answered as such.
var ErrNoChannel = refuse(http.StatusNotFound, "There is no in-app channel here: configure a route of kind websocket.")

// MintToken implements StrictServerInterface.
func (a *API) MintToken(ctx context.Context, q MintTokenRequestObject) (MintTokenResponseObject, error) {
	if a.Tokens == nil {
		return nil, ErrNoChannel
	}
	if err := checkRecipientID(q.Id); err != nil {
		return nil, err
	}
	token, expires, err := a.Tokens.Mint(callOf(ctx).principal.App, q.Id, a.TokenTTL)
	if err != nil {
		return nil, fmt.Errorf("make a token: %w", err)
	}
	return MintToken200JSONResponse{Token: token, ExpiresAt: expires}, nil
}

// RefreshToken implements StrictServerInterface.
func (a *API) RefreshToken(ctx context.Context, _ RefreshTokenRequestObject) (RefreshTokenResponseObject, error) {
	if a.Refresh == nil || !a.Refresh() {
		return nil, refuse(http.StatusNotFound, "Refreshing is off; set refresh: true in the websocket route's settings, or have your own back end ask for a token.")
	}
	c := callOf(ctx)
	token, expires, err := a.Tokens.Mint(c.principal.App, c.recipient, a.TokenTTL)
	if err != nil {
		return nil, fmt.Errorf("make a token: %w", err)
	}
	return RefreshToken200JSONResponse{Token: token, ExpiresAt: expires}, nil
}

// ListInbox implements StrictServerInterface.
func (a *API) ListInbox(ctx context.Context, q ListInboxRequestObject) (ListInboxResponseObject, error) {
	p, err := page(ctx, q.Params.Limit, q.Params.Cursor)
	if err != nil {
		return nil, err
	}
	c := callOf(ctx)
	items, next, err := a.Inbox.Inbox(ctx, c.principal.App, c.recipient, p, q.Params.Archived)
	if err != nil {
		return nil, err
	}
	out := ListInbox200JSONResponse{Data: make([]InboxItem, 0, len(items)), NextCursor: next}
	for _, i := range items {
		data := i.Content.Data
		var block struct {
			Data json.RawMessage `json:"data"`
		}
		if json.Unmarshal(i.Content.Block, &block) == nil && len(block.Data) > 0 {
			if data, err = mergePatch(data, block.Data); err != nil {
				return nil, err
			}
		}
		out.Data = append(out.Data, InboxItem{Id: i.ID.String(), Title: i.Content.Title, Body: i.Content.Body, Url: i.Content.URL, Data: data, Category: i.Content.Category,
			CreatedAt: i.CreatedAt, SeenAt: stamp(i.SeenAt), ReadAt: stamp(i.ReadAt), ArchivedAt: stamp(i.ArchivedAt)})
	}
	return out, nil
}

// CountUnread implements StrictServerInterface.
func (a *API) CountUnread(ctx context.Context, _ CountUnreadRequestObject) (CountUnreadResponseObject, error) {
	c := callOf(ctx)
	n, err := a.Inbox.Unread(ctx, c.principal.App, c.recipient)
	if err != nil {
		return nil, err
	}
	return CountUnread200JSONResponse{Unread: n}, nil
}

// MarkInbox implements StrictServerInterface.
func (a *API) MarkInbox(ctx context.Context, q MarkInboxRequestObject) (MarkInboxResponseObject, error) {
	if !slices.Contains([]string{"read", "unread", "archive"}, q.Mark) {
		return nil, core.ErrNotFound
	}
	id, err := idOf(q.Id)
	if err != nil {
		return nil, err
	}
	c := callOf(ctx)
	if err := a.Inbox.MarkInbox(ctx, c.principal.App, c.recipient, id, q.Mark); err != nil {
		return nil, err
	}
	return MarkInbox204Response{}, nil
}

// ListRoutes implements StrictServerInterface.
func (a *API) ListRoutes(ctx context.Context, _ ListRoutesRequestObject) (ListRoutesResponseObject, error) {
	states, err := a.Routes.RouteStates(ctx)
	if err != nil {
		return nil, err
	}
	return ListRoutes200JSONResponse{Data: states}, nil
}

// ReloadRoutes implements StrictServerInterface.
func (a *API) ReloadRoutes(ctx context.Context, _ ReloadRoutesRequestObject) (ReloadRoutesResponseObject, error) {
	done, err := a.Routes.Reload(ctx)
	var wrong interface{ Mistakes() []string }
	if errors.As(err, &wrong) {
		return nil, refuse(http.StatusUnprocessableEntity, "The settings have mistakes, nothing was changed: "+strings.Join(wrong.Mistakes(), "; "))
	}
	if err != nil {
		return nil, err
	}
	return ReloadRoutes200JSONResponse(done), nil
}

// SteerRoute implements StrictServerInterface.
func (a *API) SteerRoute(ctx context.Context, q SteerRouteRequestObject) (SteerRouteResponseObject, error) {
	if q.Action != "pause" && q.Action != "resume" {
		return nil, core.ErrNotFound
	}
	if err := a.Routes.PauseRoute(ctx, q.Name, q.Action == "pause"); err != nil {
		return nil, err
	}
	return SteerRoute204Response{}, nil
}
