package app_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/app"
	"github.com/carillon-notify/carillon/core/config"
)

// TestUncleanPath: the API's word on a path that leads up is that there is nothing; nobody is sent on to another thing.
func TestUncleanPath(t *testing.T) {
	t.Parallel()
	_, c := startApp(t, nil)
	c.must(http.MethodPut, "/v1/recipients/ann", "{}", nil, http.StatusCreated)
	for _, path := range []string{"/v1/topics/../recipients/ann", "/v1//recipients/ann"} {
		c.must(http.MethodDelete, path, nil, nil, http.StatusNotFound)
	}
	c.must(http.MethodGet, "/v1/recipients/ann", nil, nil, http.StatusOK)
}

// TestStopWithEvents: somebody who watches a campaign does not hold up a stop.
func TestStopWithEvents(t *testing.T) {
	t.Parallel()
	cfg := config.Default()
	cfg.Listen, cfg.Data, cfg.APIKey, cfg.ShutdownTimeout = "127.0.0.1:0", t.TempDir(), testKey, time.Minute
	cfg.Templates.Dir, cfg.Plugins.Dir = filepath.Join(cfg.Data, "templates.d"), filepath.Join(cfg.Data, "plugins.d")
	a, err := app.Start(t.Context(), cfg, app.Orchestrator, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	defer cancel()
	c := newCaller(t, a.URL())
	var made struct{ ID string }
	c.must(http.MethodPost, "/v1/campaigns", `{"name":"x","audience":{"all":true},"content":{"title":"x"}}`, &made, http.StatusCreated)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, a.URL()+"/v1/campaigns/"+made.ID+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testKey)
	resp, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	began := time.Now()
	cancel()
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Errorf("the stream was cut: %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > cfg.ShutdownTimeout/2 { // it would be held up for all of it
		t.Errorf("the stop took %s", took)
	}
}
