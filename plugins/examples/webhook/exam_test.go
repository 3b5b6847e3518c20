package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/plugins/plugintest"
	"github.com/carillon-notify/carillon/providers"
)

// hooks play the receivers of the exam. What a request's path ends in is how it is answered.
type hooks struct {
	mu    sync.Mutex
	taken map[string]int // by Webhook-Id
}

func (h *hooks) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Until the body is read, the server does not see its client leave.
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return
	}
	_, ending, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/exam/"), "/")
	if status, err := strconv.Atoi(ending); err == nil {
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(status)
		return
	}
	h.mu.Lock()
	h.taken[r.Header.Get("Webhook-Id")]++
	h.mu.Unlock()
	switch ending {
	case "reset": // taken, and no answer
		panic(http.ErrAbortHandler)
	case "hang":
		<-r.Context().Done()
	}
}

func (h *hooks) count(id string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.taken[id]
}

// TestExam is the examination that every provider sits. It watches this process, so nothing runs beside it.
func TestExam(t *testing.T) {
	h := &hooks{taken: map[string]int{}}
	s := receiver(t, h.ServeHTTP, nil)
	var with map[string]any
	if err := json.Unmarshal(settingsFor(t, s, nil), &with); err != nil {
		t.Fatal(err)
	}
	address := func(ending string) plugintest.Provoke {
		return plugintest.Provoke{Message: func(m *providers.Message) { m.Address += "/" + ending }}
	}
	deferred := address("503")
	deferred.Code, deferred.After = "503", 7*time.Second
	plugintest.Run(t, plugintest.Exam{
		Kind:     kind(),
		Settings: with,
		Message: func(i int) providers.Message {
			return providers.Message{Address: fmt.Sprintf("%s/exam/hook-%06d-of-a-receiver", s.URL, i), Title: "Heron over the marsh", Body: "Pelicans were seen at the north pier."}
		},
		Outcomes: map[providers.Outcome]plugintest.Provoke{
			providers.Deferred: deferred,
			providers.Rejected: address("400"),
			providers.Gone:     address("410"),
			providers.Unknown:  address("reset"),
		},
		Silence: address("hang"),
		Down:    plugintest.Provoke{Message: func(m *providers.Message) { m.Address = "https://127.0.0.1:1/exam/nobody-listens-here" }},
		Taken:   h.count,
		Except:  map[string]string{"open_defaults": "pool.max bounds the connections to one receiver; those to all together have no bound for Health to tell"},
	})
}
