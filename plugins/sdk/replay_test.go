package sdk_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/carillon-notify/carillon/plugins/sdk"
)

// TestNothingIsRepeated: net/http sends a GET, or a request with an Idempotency-Key, again when a kept
// connection ends without an answer, be it that all of it was written. Nobody would know of the first one.
func TestNothingIsRepeated(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, method, key string
		gone              bool // the server, once it has the second request
	}{
		{"a GET", http.MethodGet, "", false},
		{"a GET that finds nobody the second time", http.MethodGet, "", true},
		{"a key", http.MethodPost, "Idempotency-Key", false},
		{"a key that finds nobody the second time", http.MethodPost, "Idempotency-Key", true},
		{"another key", http.MethodPost, "X-Idempotency-Key", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var arrived atomic.Int64
			var s *httptest.Server
			s = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, err := io.Copy(io.Discard, r.Body); err != nil {
					t.Error(err)
				}
				if arrived.Add(1) != 2 {
					w.WriteHeader(http.StatusNoContent)
					return
				}
				if tt.gone {
					_ = s.Listener.Close()
				}
				panic(http.ErrAbortHandler) // the connection ends
			}))
			s.StartTLS()
			t.Cleanup(s.Close)
			h := sdk.NewHTTP(sdk.HTTPOptions{TLS: s.Client().Transport.(*http.Transport).TLSClientConfig})
			t.Cleanup(func() { closeHTTP(t, h) })
			send := func() (handed bool, err error) {
				req, err := http.NewRequestWithContext(t.Context(), tt.method, s.URL, http.NoBody)
				if err != nil {
					t.Fatal(err)
				}
				if tt.key != "" {
					req.Header.Set(tt.key, "1")
				}
				resp, handed, err := h.Do(req)
				if err == nil {
					err = resp.Body.Close()
				}
				return handed, err
			}
			if _, err := send(); err != nil {
				t.Fatal(err)
			}
			handed, err := send()
			if n := arrived.Load(); err == nil || n != 2 || !handed {
				t.Errorf("%d requests arrived; the second was answered by handed %t, error %v", n, handed, err)
			}
			if _, err := send(); (err == nil) == tt.gone {
				t.Errorf("the next one: %v", err)
			}
		})
	}
}
