package app_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/config"
)

// TestRetention: what is finished is removed after the time that is configured, what waits is not.
func TestRetention(t *testing.T) {
	t.Parallel()
	_, c := startApp(t, func(cfg *config.Config) { cfg.Retention.Finished = time.Second })
	var done, waiting accepted
	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"email":"a@example.com"}],"content":{"title":"soon old"}}`, &done, http.StatusAccepted)
	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"email":"a@example.com"}],"content":{"title":"later"},"delay":"1h","ttl":"2h"}`, &waiting, http.StatusAccepted)
	eventually(t, time.Minute, "the finished one is removed", func() bool {
		status, err := c.do(t.Context(), http.MethodGet, "/v1/notifications/"+done.ID, nil, nil)
		return err == nil && status == http.StatusNotFound
	})
	var v notification
	c.must(http.MethodGet, "/v1/notifications/"+waiting.ID, nil, &v, http.StatusOK)
	if v.Counts.Pending != 1 {
		t.Errorf("%+v", v)
	}
}
