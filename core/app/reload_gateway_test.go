package app_test

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/providers/websocket"
)

// TestReloadGateway: tokens, their refresh and the paths of live connections follow the WebSocket route of the file: its
// secret is exchanged while clients come and go, it goes, and it comes again.
func TestReloadGateway(t *testing.T) {
	t.Parallel()
	const first, second = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
	file := writeConfig(t, startSandbox(t), "data: "+t.TempDir())
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const route = "  websocket: {kind: websocket, settings: {secret: " + first + "}}\n"
	p := startProcess(t, "orchestrator", []string{"-config", file}, nil)
	c := newCaller(t, p.base)
	reload := func(by string) {
		t.Helper()
		if !strings.Contains(string(text), route) {
			t.Fatal("the file has no such route")
		}
		if err := os.WriteFile(file, []byte(strings.Replace(string(text), route, by, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		c.must(http.MethodPost, "/v1/routes/reload", nil, nil, http.StatusOK)
	}
	mint := func(secret string) string {
		t.Helper()
		var made struct{ Token string }
		c.must(http.MethodPost, "/v1/recipients/ann/token", nil, &made, http.StatusOK)
		tokens, err := websocket.NewTokens(secret)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tokens.Verify(made.Token); err != nil {
			t.Errorf("the gateway does not take the token: %v", err)
		}
		return made.Token
	}
	as := func(token, method, path string, want int) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, p.base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s %s: %d, want %d", method, path, resp.StatusCode, want)
		}
	}
	const inbox, refresh, live = "/v1/inbox/unread", "/v1/token/refresh", "/connection/websocket"
	old := mint(first)
	as(old, http.MethodPost, refresh, http.StatusNotFound)

	reload(fmt.Sprintf("  websocket: {kind: websocket, settings: {secret: %s, previous_secrets: [%s], refresh: true}}\n", second, first))
	fresh := mint(second)
	as(old, http.MethodGet, inbox, http.StatusOK)
	as(old, http.MethodPost, refresh, http.StatusOK)

	reload(fmt.Sprintf("  websocket: {kind: websocket, settings: {secret: %s}}\n", second))
	as(old, http.MethodGet, inbox, http.StatusUnauthorized)
	as(fresh, http.MethodGet, inbox, http.StatusOK)
	as(fresh, http.MethodGet, live, http.StatusBadRequest) // it is served, and this is no handshake

	reload("")
	c.must(http.MethodPost, "/v1/recipients/ann/token", nil, nil, http.StatusNotFound)
	as(fresh, http.MethodGet, inbox, http.StatusNotFound)
	as(fresh, http.MethodGet, live, http.StatusNotFound)

	reload("  live: {kind: websocket, settings: {secret: " + first + "}}\n")
	as(mint(first), http.MethodGet, inbox, http.StatusOK)
	as(old, http.MethodGet, live, http.StatusBadRequest)
}
