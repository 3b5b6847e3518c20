package app

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/carillon-notify/carillon/core/api"
	"github.com/carillon-notify/carillon/providers/websocket"
)

// gateway is the first route with live clients as it is now: it has the public paths, and recipients' tokens are signed
// as it signs. Further ones are other routes of the same kind.
type gateway struct {
	slot    *slot
	handler http.Handler
	tokens  *websocket.Tokens
	refresh bool
}

// findGateway has tokens and live connections follow the routes as they are now.
func (a *App) findGateway() error {
	for _, name := range a.routes.names() {
		r := a.routes.get(name)
		if r == nil || r.Kind != websocketKind || r.slot == nil {
			continue
		}
		var s struct {
			Secret          string
			PreviousSecrets []string `json:"previous_secrets"`
			Refresh         bool
		}
		if err := json.Unmarshal(r.settings, &s); err != nil {
			return fmt.Errorf("read the settings of route %s: %w", name, err)
		}
		t, err := websocket.NewTokens(s.Secret, s.PreviousSecrets...)
		if err != nil {
			return fmt.Errorf("the secret of route %s: %w", name, err)
		}
		g := &gateway{slot: r.slot, tokens: t, refresh: s.Refresh}
		if had := a.gateway.Load(); had != nil && had.slot == r.slot {
			g.handler = had.handler // it knows who is in the slot
		} else {
			g.handler = r.slot.Handler()
		}
		a.gateway.Store(g)
		return nil
	}
	a.gateway.Store(nil)
	return nil
}

// live serves the clients of the gateway, and leaves to rest what there is without one.
func (a *App) live(rest http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if g := a.gateway.Load(); g != nil {
			g.handler.ServeHTTP(w, r)
			return
		}
		rest.ServeHTTP(w, r)
	})
}

// refreshes reports whether clients may exchange their tokens.
func (a *App) refreshes() bool {
	g := a.gateway.Load()
	return g != nil && g.refresh
}

// tokens are the recipients' own, by the gateway as it is now.
type tokens struct{ a *App }

// Mint makes a token for a recipient's client.
func (t tokens) Mint(app, recipient string, ttl time.Duration) (string, time.Time, error) {
	g := t.a.gateway.Load()
	if g == nil {
		return "", time.Time{}, api.ErrNoChannel
	}
	return g.tokens.Mint(app, recipient, ttl)
}

// Verify reads a recipient's token.
func (t tokens) Verify(token string) (app, recipient string, expires time.Time, err error) {
	g := t.a.gateway.Load()
	if g == nil {
		return "", "", time.Time{}, api.ErrNoChannel
	}
	c, err := g.tokens.Verify(token)
	return c.App, c.Recipient, c.ExpiresAt, err
}
