package app_test

import (
	"net/http"
	"testing"

	"github.com/carillon-notify/carillon/core/config"
)

// TestRefreshAsText: a value of the environment is a text, and means what it says.
func TestRefreshAsText(t *testing.T) {
	t.Parallel()
	_, c := startApp(t, func(cfg *config.Config) {
		cfg.Routes = map[string]config.Route{"live": {Kind: "websocket", Settings: config.Settings{"refresh": "true"}}}
	})
	var made struct{ Token string }
	c.must(http.MethodPost, "/v1/recipients/ann/token", nil, &made, http.StatusOK)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.base+"/v1/token/refresh", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+made.Token)
	resp, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("refresh: %d", resp.StatusCode)
	}
}
