package main

import (
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/plugins/examples/sms/smstest"
	"github.com/carillon-notify/carillon/plugins/plugintest"
	"github.com/carillon-notify/carillon/providers"
)

// TestExam is the examination that every provider sits. It watches this process, so nothing runs beside it.
func TestExam(t *testing.T) {
	service := smstest.New(smstest.Options{Key: testKey, Secret: testSecret, Retry: 10 * time.Millisecond})
	t.Cleanup(service.Close)
	var silent atomic.Bool
	url := server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if silent.Load() { // until the body is read, the server does not see its client leave
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
			return
		}
		service.ServeHTTP(w, r)
	}))
	// The stand-in answers by the number's last three digits.
	ending := func(three string) plugintest.Provoke {
		return plugintest.Provoke{Message: func(m *providers.Message) { m.Address = m.Address[:len(m.Address)-3] + three }}
	}
	throttled := ending("429")
	throttled.After = 2 * time.Second
	plugintest.Run(t, plugintest.Exam{
		Kind:     kind(),
		Settings: map[string]any{"endpoint": url, "key": testKey, "from": "Carillon"},
		Message: func(i int) providers.Message {
			return providers.Message{Address: fmt.Sprintf("+49151%06d123", i), Title: "Heron over the marsh", Body: "Pelicans were seen at the north pier."}
		},
		Outcomes: map[providers.Outcome]plugintest.Provoke{
			providers.Deferred:  ending("408"),
			providers.Throttled: throttled,
			providers.Rejected:  ending("400"),
			providers.Gone:      ending("404"),
			providers.Denied:    ending("403"),
			providers.Unknown:   ending("000"),
		},
		Silence: plugintest.Provoke{Service: func(testing.TB) func() {
			silent.Store(true)
			return func() { silent.Store(false) }
		}},
		Down: plugintest.Provoke{Settings: map[string]any{"endpoint": "http://127.0.0.1:1"}},
		Taken: func(id string) int {
			for _, m := range service.Messages() {
				if m.Reference == id {
					return m.Requests
				}
			}
			return 0
		},
	})
}
