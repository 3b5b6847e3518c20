package app_test

import (
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

// hooks are a third of the world: whom a third party's plugin, plugins/examples/webhook, delivers to. They misbehave
// as the sandbox does: a tenth of all requests meets an error, one in a hundred a dropped connection or no answer.
type hooks struct {
	addr, caFile string
	over         chan struct{} // closed when the world ends

	mu    sync.Mutex
	rng   *rand.Rand
	taken map[string][]time.Time // by the delivery's id
}

// hookSecret is what requests are signed with.
const hookSecret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="

// webhookPlugin builds the plugin once.
var webhookPlugin = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "carillon-plugin-")
	if err != nil {
		return "", err
	}
	buildMu.Lock()
	built = append(built, dir)
	buildMu.Unlock()
	out, err := exec.Command("go", "build", "-o", dir+"/", "github.com/carillon-notify/carillon/plugins/examples/webhook").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return filepath.Join(dir, "webhook"), nil
})

func startHooks(t *testing.T, seed uint64) *hooks {
	t.Helper()
	k := &hooks{over: make(chan struct{}), rng: rand.New(rand.NewPCG(seed, 1<<41)), taken: map[string][]time.Time{}, caFile: filepath.Join(t.TempDir(), "hooks.pem")}
	server := httptest.NewUnstartedServer(k)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // connections are cut all the time
	server.StartTLS()
	t.Cleanup(func() {
		close(k.over)
		server.Close()
	})
	k.addr = server.Listener.Addr().String()
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(k.caFile, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return k
}

// ServeHTTP takes a request, or does not, and answers it, or does not.
func (k *hooks) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return // it was not all there
	}
	if strings.HasPrefix(r.URL.Path, "/dead/") {
		w.WriteHeader(http.StatusGone)
		return
	}
	k.mu.Lock()
	fate := k.rng.Float64()
	if fate >= 0.105 {
		id := r.Header.Get("Webhook-Id")
		k.taken[id] = append(k.taken[id], time.Now())
	}
	k.mu.Unlock()
	switch {
	case fate < 0.05:
		w.WriteHeader(http.StatusServiceUnavailable)
	case fate < 0.1:
		w.WriteHeader(http.StatusInternalServerError)
	case fate < 0.105: // not taken
		panic(http.ErrAbortHandler)
	case fate < 0.11: // taken, and cut
		panic(http.ErrAbortHandler)
	case fate < 0.115: // taken, and silent until the client gives up
		select {
		case <-r.Context().Done():
		case <-k.over:
		}
	}
}

// route is the plugin's route, with more settings of any route.
func (k *hooks) route(plugin, more string) string {
	return fmt.Sprintf("  webhook: {command: %q, %s, settings: {secrets: [%s], allow: [127.0.0.0/8], ca_file: %q}}\n", plugin, more, hookSecret, k.caFile)
}

// ids are how often each delivery arrived.
func (k *hooks) ids() map[string]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[string]int{}
	for id, at := range k.taken {
		out[id] = len(at)
	}
	return out
}

// arrived is, by route, how often each delivery arrived.
func (h *house) arrived() map[string]map[string]int {
	out := map[string]map[string]int{"webhook": h.hooks.ids()}
	for route, s := range serviceOf {
		out[route] = h.world.IDs(s)
	}
	return out
}

// copies are when a delivery arrived over a route.
func (h *house) copies(route, id string) (at []time.Time) {
	if route == "webhook" {
		h.hooks.mu.Lock()
		defer h.hooks.mu.Unlock()
		return append(at, h.hooks.taken[id]...)
	}
	for _, m := range h.world.Messages(sandbox.Filter{Service: serviceOf[route], ID: id}) {
		at = append(at, m.At)
	}
	return at
}
