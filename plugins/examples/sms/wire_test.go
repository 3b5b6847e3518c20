package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/carillon-notify/carillon/plugins/examples/sms/smstest"
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
	binary := filepath.Join(t.TempDir(), "sms")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	dir, err := os.MkdirTemp("", "texts") // short: a socket goes into it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	log := &logged{}
	described, err := host.Describe(t.Context(), host.Spec{Name: "texts", Command: binary, Dir: dir, Timing: host.Timing{Start: time.Minute},
		Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(kind(), described, cmpopts.IgnoreFields(providers.Kind{}, "Check", "Open")); d != "" {
		t.Errorf("the kind is another one over the wire: %s", d)
	}

	service := smstest.New(smstest.Options{Key: testKey, Secret: testSecret, Retry: 10 * time.Millisecond})
	t.Cleanup(service.Close)
	with := withCallbacks(t)
	with["max_segments"] = 2
	p, err := described.Open(t.Context(), settingsWith(t, server(t, service), with))
	if err != nil {
		t.Fatal(err)
	}
	batch := []providers.Message{message("delivered", number+"123"), message("failed", number+"001"), message("gone", number+"404"), message("lost", number+"000")}
	got, err := deliver(t, p, 30*time.Second, batch...)
	if err == nil || !strings.Contains(err.Error(), "1 of 4") {
		t.Errorf("the error about the lost answer is %v", err)
	}
	ids := map[string]string{}
	for _, m := range service.Messages() {
		ids[m.Reference] = m.ID
	}
	want := map[string]providers.Result{
		"delivered": {ID: "delivered", Outcome: providers.Accepted, ProviderID: ids["delivered"], Parts: 1},
		"failed":    {ID: "failed", Outcome: providers.Accepted, ProviderID: ids["failed"], Parts: 1},
		"gone":      {ID: "gone", Outcome: providers.Gone, Code: "404 unknown_number", Reason: "nobody has the number"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}

	// What becomes of them is kept at the second try.
	ctx, cancel := context.WithCancel(t.Context())
	receipts, done := make(chan providers.Receipt), make(chan error, 1)
	var mu sync.Mutex
	tried := map[string]bool{}
	go func() {
		done <- p.(providers.Receiver).Receive(ctx, func(r providers.Receipt) error {
			mu.Lock()
			defer mu.Unlock()
			if !tried[r.ID] {
				tried[r.ID] = true
				return errors.New("the store is down")
			}
			receipts <- r
			return nil
		})
	}()
	events := map[string]providers.Event{}
	for range 3 {
		r := <-receipts
		events[r.ID] = r.Event
	}
	if d := cmp.Diff(map[string]providers.Event{"delivered": providers.EventDelivered, "failed": providers.EventFailed, "lost": providers.EventDelivered}, events); d != "" {
		t.Error(d)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}

	long := message("long", number+"123")
	long.Body = strings.Repeat("a", 400)
	if err := described.Check(&long); err == nil || !strings.Contains(err.Error(), "takes 3 SMS, and 2 are allowed") {
		t.Errorf("a long text: %v", err)
	}
	_, err = described.Open(t.Context(), settingsWith(t, "http://sms.example", nil))
	if err == nil || !strings.Contains(err.Error(), "endpoint") {
		t.Errorf("a plain endpoint: %v", err)
	}

	ctx, cancel = context.WithTimeout(t.Context(), 5*time.Second)
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
