package plugintest_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/plugins/plugintest"
	"github.com/carillon-notify/carillon/providers"
)

// In the tests of a plugin this is func TestExam(t *testing.T). What is left out is skipped; Kind, Settings
// and Message are what it cannot do without.
func ExampleRun() {
	exam := func(t *testing.T) {
		service := newStandIn(t) // plays the service that the plugin delivers to
		plugintest.Run(t, plugintest.Exam{
			Kind:     soundKind(""),
			Settings: map[string]any{"url": service.URL, "token": "the-token-of-the-stand-in", "pool.max": 4},
			Message: func(i int) providers.Message {
				return providers.Message{Address: fmt.Sprintf("+49151%07d", i), Body: "Your parcel is on its way."}
			},
			// What the plugin claims to tell apart: by a message, a state of the service, other settings.
			Outcomes: map[providers.Outcome]plugintest.Provoke{
				providers.Gone:      {Message: func(m *providers.Message) { m.Address = "+49151999gone" }, Code: "410"},
				providers.Throttled: {Service: service.overloaded, After: 7 * time.Second},
				providers.Denied:    {Settings: map[string]any{"token": "a-wrong-token-of-the-test"}},
			},
			Silence: plugintest.Provoke{Message: func(m *providers.Message) { m.Address = "+49151888silent" }},
			Down:    plugintest.Provoke{Settings: map[string]any{"url": "http://127.0.0.1:1"}},
			// Whom to ask what really arrived.
			Taken:       service.taken,
			Connections: service.connections,
		})
	}
	_ = exam
}
