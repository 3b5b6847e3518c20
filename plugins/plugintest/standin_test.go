package plugintest_test

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers/porttest"
)

const token = "the-token-of-the-stand-in"

// standIn is a service over HTTP: POST / with {id,to,text} delivers. Whom a message is for decides what
// is answered.
type standIn struct {
	*httptest.Server

	mu     sync.Mutex
	got    map[string]int
	conns  map[net.Conn]struct{}
	busy   bool
	silent bool
	end    chan struct{} // of the silence
}

func newStandIn(t testing.TB) *standIn {
	s := &standIn{got: map[string]int{}, conns: map[net.Conn]struct{}{}, end: make(chan struct{})}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.Config.ConnState = func(c net.Conn, state http.ConnState) {
		s.mu.Lock()
		defer s.mu.Unlock()
		switch state {
		case http.StateNew:
			s.conns[c] = struct{}{}
		case http.StateClosed, http.StateHijacked:
			delete(s.conns, c)
		}
	}
	s.Start()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (s *standIn) serve(w http.ResponseWriter, r *http.Request) {
	var m struct{ ID, To, Text string }
	if json.NewDecoder(r.Body).Decode(&m) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	busy, silent, end := s.busy, s.silent, s.end
	refused := r.Header.Get("Authorization") != "Bearer "+token
	status := http.StatusAccepted
	switch {
	case refused:
		status = http.StatusUnauthorized
	case busy:
		status = http.StatusTooManyRequests
	case strings.HasSuffix(m.To, "gone"):
		status = http.StatusGone
	case strings.HasSuffix(m.To, "later"):
		status = http.StatusServiceUnavailable
	case strings.HasSuffix(m.To, "refused") || m.To == "" || m.Text == "":
		status = http.StatusBadRequest
	default:
		s.got[m.ID]++
	}
	s.mu.Unlock()
	if silent || strings.HasSuffix(m.To, "silent") {
		select {
		case <-end:
		case <-r.Context().Done():
		}
		return
	}
	if status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "7")
	}
	w.Header().Set("Service-Id", "s-"+m.ID)
	w.WriteHeader(status)
}

// taken is plugintest.Exam.Taken.
func (s *standIn) taken(id string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got[id]
}

// connections is plugintest.Exam.Connections.
func (s *standIn) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// overloaded answers 429 while it lasts.
func (s *standIn) overloaded(testing.TB) func() {
	s.set(func() { s.busy = true })
	return func() { s.set(func() { s.busy = false }) }
}

// quiet takes messages and answers nothing while it lasts.
func (s *standIn) quiet(testing.TB) func() {
	s.set(func() { s.silent, s.end = true, make(chan struct{}) })
	return func() { s.set(func() { s.silent = false; close(s.end) }) }
}

func (s *standIn) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// nowhere is an address where nobody listens.
func nowhere(t testing.TB) string {
	t.Helper()
	return "http://" + porttest.Addr(t)
}

// short is how soon is soon for providers that are to fail.
const short = 500 * time.Millisecond

// total is how many messages were taken.
func (s *standIn) total() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.got)
}
