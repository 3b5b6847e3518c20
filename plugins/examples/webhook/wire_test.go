package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/carillon-notify/carillon/plugins/host"
	"github.com/carillon-notify/carillon/providers"
)

// logged keeps all that is logged, from debug on.
type logged struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

// TestProcess is all of it as it is used: the program built, started by the host, and spoken to over gRPC.
func TestProcess(t *testing.T) {
	t.Parallel()
	binary := filepath.Join(t.TempDir(), "webhook")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	dir, err := os.MkdirTemp("", "hooks") // short: a socket goes into it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	log := &logged{}
	described, err := host.Describe(t.Context(), host.Spec{Name: "hooks", Command: binary, Dir: dir, Timing: host.Timing{Start: time.Minute},
		Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(kind(), described, cmpopts.IgnoreFields(providers.Kind{}, "Check", "Open")); d != "" {
		t.Errorf("the kind is another one over the wire: %s", d)
	}

	bodies := make(chan string, 10)
	s := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		bodies <- string(body)
		if r.URL.Path == "/gone" {
			w.WriteHeader(http.StatusGone)
		}
	}, nil)
	p, err := described.Open(t.Context(), settingsFor(t, s, nil))
	if err != nil {
		t.Fatal(err)
	}
	m, gone, forbidden := message(s.URL+"/"+token), message(s.URL+"/gone?"+token), message("https://169.254.169.254/"+token)
	m.Content, m.Data = json.RawMessage(`{"event":"order.shipped"}`), json.RawMessage(`{"order":7}`)
	gone.ID, forbidden.ID = "id-gone", "id-forbidden"
	got, err := deliver(t, p, 30*time.Second, m, gone, forbidden)
	if err != nil {
		t.Fatal(err)
	}
	outcomes := map[string]providers.Outcome{}
	for id, r := range got {
		outcomes[id] = r.Outcome
	}
	if d := cmp.Diff(map[string]providers.Outcome{m.ID: providers.Accepted, gone.ID: providers.Gone, forbidden.ID: providers.Rejected}, outcomes); d != "" {
		t.Error(d)
	}
	if both := <-bodies + <-bodies; !strings.Contains(both, `"event":"order.shipped"`) || !strings.Contains(both, `"data":{"order":7}`) {
		t.Errorf("the requests are %s", both)
	}
	if h := p.Health(t.Context()); h.Status != providers.HealthOK {
		t.Errorf("health is %+v", h)
	}

	bad := message("https://example.com/%zz" + token)
	if err := described.Check(&bad); !errors.Is(err, providers.ErrAddress) || strings.Contains(err.Error(), token) {
		t.Errorf("a broken URL: %v", err)
	}
	if err := described.Check(&m); err != nil {
		t.Errorf("a good URL: %v", err)
	}
	_, err = described.Open(t.Context(), settingsFor(t, s, map[string]any{"secrets": []string{strings.TrimPrefix(oldSecret, "whsec_")}}))
	if err == nil || !strings.Contains(err.Error(), "secrets[0]") {
		t.Errorf("a wrong secret: %v", err)
	} else {
		discreet(t, err.Error())
	}

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		t.Error(err)
	}
	if log.String() == "" {
		t.Error("nothing was logged: the next check sees nothing")
	}
	for line := range strings.Lines(log.String()) {
		discreet(t, line)
	}
}

// TestByHand: who starts it without a host is told what it is.
func TestByHand(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "run", ".").CombinedOutput()
	if err == nil || !strings.Contains(string(out), fmt.Sprintf("%q, a provider plugin of Carillon", kind().Name)) {
		t.Errorf("%v: %s", err, out)
	}
}
