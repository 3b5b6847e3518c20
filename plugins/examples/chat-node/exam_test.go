package chat_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/plugins/plugintest"
	"github.com/carillon-notify/carillon/providers"
)

// TestExam is the examination that every provider sits. It watches this process, so nothing runs beside it.
func TestExam(t *testing.T) {
	if testing.Short() {
		t.Skip("some forty processes are started, half a second of CPU each")
	}
	s := serve(t, false)
	s.discard(t)
	address := func(to string) plugintest.Provoke {
		return plugintest.Provoke{Message: func(m *providers.Message) { m.Address = to }}
	}
	throttled := address("exam/429.rate_limited.7")
	throttled.Code, throttled.After = "rate_limited", 7*time.Second
	plugintest.Run(t, plugintest.Exam{
		Command:  installed(t),
		Settings: map[string]any{"base_url": s.hooks(), "token": "a-secret-of-the-exam", "timeout": "1s"},
		Message: func(i int) providers.Message {
			return providers.Message{Address: fmt.Sprintf("exam/hook-%06d", i), Title: "Heron over the marsh", Body: "Pelicans were seen at the north pier."}
		},
		Outcomes: map[providers.Outcome]plugintest.Provoke{
			providers.Deferred:  address("exam/503"),
			providers.Throttled: throttled,
			providers.Rejected:  address("exam/400.invalid_payload"),
			providers.Gone:      address("exam/410.channel_is_archived"),
			providers.Denied:    address("exam/401"),
			providers.Unknown:   address("exam/reset"),
		},
		Silence: address("exam/hang"),
		Down:    plugintest.Provoke{Settings: map[string]any{"base_url": "http://127.0.0.1:1/"}},
		Taken:   s.taken,
		Soon:    15 * time.Second,
	})
}
