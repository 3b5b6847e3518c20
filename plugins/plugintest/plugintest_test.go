package plugintest_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/plugins/plugintest"
	"github.com/carillon-notify/carillon/plugins/sdk"
	"github.com/carillon-notify/carillon/providers"
)

// TestMain lets the test binary play the plugins: called as "play KIND" it is one.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "play" {
		play(os.Args[2])
		return
	}
	var err error
	if scratch, err = os.MkdirTemp("", "plugintest"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(scratch)
	os.Exit(code)
}

func play(what string) {
	if kind, ok := builtins()[what]; ok {
		sdk.Serve(kind)
		return
	}
	sdk.Serve(soundKind(flaw(what)))
}

// examOf is all that an author can supply, for the provider with a flaw.
func examOf(t testing.TB, f flaw) plugintest.Exam { return examAt(t, newStandIn(t), f) }

func examAt(t testing.TB, s *standIn, f flaw) plugintest.Exam {
	to := func(end string) func(*providers.Message) {
		return func(m *providers.Message) { m.Address += end }
	}
	front := &front{t: t, servers: map[providers.Provider]*httptest.Server{}}
	return plugintest.Exam{
		Kind:     soundKind(f),
		Settings: map[string]any{"url": s.URL, "token": token},
		Message: func(i int) providers.Message {
			return providers.Message{Address: fmt.Sprintf("+49151%07d", i), Title: "The title of message", Body: fmt.Sprintf("The text of message %d", i)}
		},
		Outcomes: map[providers.Outcome]plugintest.Provoke{
			providers.Unknown:   {Message: to("silent")},
			providers.Deferred:  {Message: to("later"), Code: "503"},
			providers.Throttled: {Service: s.overloaded, Code: "429", After: 7 * time.Second},
			providers.Rejected:  {Message: to("refused")},
			providers.Gone:      {Message: to("gone"), Code: "410"},
			providers.Denied:    {Settings: map[string]any{"token": "a-wrong-token-of-the-test"}},
		},
		Silence:     plugintest.Provoke{Message: to("silent")},
		Down:        plugintest.Provoke{Settings: map[string]any{"url": nowhere(t)}},
		Taken:       s.taken,
		Connections: s.connections,
		Receipt:     front.receipt,
		Soon:        time.Second,
	}
}

// front serves the handlers of providers.
type front struct {
	t       testing.TB
	mu      sync.Mutex
	servers map[providers.Provider]*httptest.Server
}

var errNotKept = errors.New("the provider says that the receipt was not kept")

func (f *front) receipt(t testing.TB, p providers.Provider, m providers.Message) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	server := f.servers[p]
	if server == nil {
		server = httptest.NewServer(p.(providers.Server).Handler())
		f.t.Cleanup(server.Close)
		f.servers[p] = server
	}
	resp, err := http.Post(server.URL+"/connection/receipts/"+m.ID, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errNotKept
	}
	return nil
}

// TestSound: a provider that is right passes, in process and through the wire.
func TestSound(t *testing.T) {
	plugintest.Run(t, examOf(t, ""))
}

// TestReceiveBeginsLate: as long as nobody listens to a provider it keeps nothing, and says so. That is right.
func TestReceiveBeginsLate(t *testing.T) {
	if got := plugintest.RecordsOf(t, examOf(t, "receive begins late"), "receive")["receive"]; got != "passed" {
		t.Errorf("the exam: %q", got)
	}
}

// TestSoundInItsProcess: so does the built plugin. Here the Silence is the service's.
func TestSoundInItsProcess(t *testing.T) {
	s := newStandIn(t)
	e := examAt(t, s, "")
	e.Kind, e.Command, e.Args = providers.Kind{}, self(t), []string{"play", "sound"}
	e.Silence = plugintest.Provoke{Service: s.quiet}
	e.Except = map[string]string{}
	for _, name := range []string{"open_types", "open_unknown", "open_defaults", "open_garbage"} {
		e.Except[name] = "each value starts a process, and TestCommand does that"
	}
	plugintest.Run(t, e)
}

// TestNothing: an exam that examines nothing fails.
func TestNothing(t *testing.T) {
	for name, e := range map[string]plugintest.Exam{
		"nothing at all": {},
		"no message":     {Kind: soundKind(""), Settings: map[string]any{"url": "http://127.0.0.1:1", "token": token}, Soon: short},
		"no settings":    {Kind: soundKind(""), Soon: short},
		"no plugin":      {Command: "/no/such/plugin", Soon: short},
	} {
		t.Run(name, func(t *testing.T) {
			if got := plugintest.Records(t, e)["exam"]; !strings.HasPrefix(got, "failed") {
				t.Errorf("the exam: %q", got)
			}
		})
	}
}
