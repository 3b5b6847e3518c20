package host_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/plugins/host"
	"github.com/carillon-notify/carillon/providers"
)

// TestClose drains what is in flight, answers what comes later, and ends the process.
func TestClose(t *testing.T) {
	t.Parallel()
	p := open(t, spec(t, "obedient"), `{}`)
	gate := filepath.Join(t.TempDir(), "gate")
	begun, ended := make(chan int, 1), make(chan error, 1)
	go func() {
		got, err := deliverTold(t, p, patient, messages("a", "gate:"+gate), func(r providers.Result) {
			if r.ID == "id-0" {
				pid, _ := strconv.Atoi(r.ProviderID)
				begun <- pid
			}
		})
		if err == nil && len(got) != 2 {
			err = errors.New("the call in flight was not answered")
		}
		ended <- err
	}()
	pid := <-begun
	closed := make(chan error, 2)
	for range 2 {
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), patient)
			defer cancel()
			closed <- p.Close(ctx)
		}()
	}
	var got answers
	eventually(t, "it takes no more", func() bool {
		var err error
		if got, err = deliver(t, p, patient, messages("late")); err != nil {
			t.Error(err)
		}
		return got["id-0"].Outcome == providers.Throttled
	})
	if got["id-0"].Code != host.CodeStopping {
		t.Errorf("what comes late is answered %+v", got["id-0"])
	}
	select {
	case err := <-closed:
		t.Errorf("closed with a call in flight: %v", err)
	default:
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-ended, <-closed, <-closed); err != nil {
		t.Error(err)
	}
	if !gone(pid) {
		t.Error("the process lives on")
	}
	if h := p.Health(t.Context()); h.Status != providers.HealthDown {
		t.Errorf("health is %+v", h)
	}
	if rec, ok := p.(providers.Receiver); !ok || rec.Receive(t.Context(), func(providers.Receipt) error { return nil }) != nil {
		t.Error("it receives on")
	}
}

// TestCloseHasAnEnd closes what does not want to: a call and a process that hang, one in quarantine, one
// that is being started, one whose provider has an error.
func TestCloseHasAnEnd(t *testing.T) {
	t.Parallel()
	brief := func(p providers.Provider) error {
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		defer cancel()
		return p.Close(ctx)
	}
	t.Run("a call that hangs", func(t *testing.T) {
		t.Parallel()
		p := open(t, spec(t, "obedient"), `{}`)
		begun, ended := make(chan int, 1), make(chan error, 1)
		go func() {
			_, err := deliverTold(t, p, patient, messages("a", "deaf"), func(r providers.Result) {
				pid, _ := strconv.Atoi(r.ProviderID)
				begun <- pid
			})
			ended <- err
		}()
		pid := <-begun
		began := time.Now()
		_ = brief(p)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("closed after %s", took)
		}
		if err := <-ended; err == nil || !gone(pid) {
			t.Errorf("the call ended with %v", err)
		}
	})
	t.Run("a process that is stopped", func(t *testing.T) {
		t.Parallel()
		s := spec(t, "obedient")
		s.Timing.Ping = time.Hour
		p := open(t, s, `{}`)
		pid := pidOf(t, p)
		kill(t, pid, syscall.SIGSTOP)
		if err := brief(p); err == nil {
			t.Error("closed without an error")
		}
		if !gone(pid) {
			t.Error("the stopped process is still there")
		}
	})
	t.Run("in quarantine", func(t *testing.T) {
		t.Parallel()
		p := openKind(t, host.Isolate(obedientKind(), spec(t, "exit")), `{}`)
		eventually(t, "the quarantine", func() bool {
			got, _ := deliver(t, p, patient, messages("a"))
			return got["id-0"].Outcome == providers.Denied
		})
		if err := brief(p); err != nil {
			t.Error(err)
		}
	})
	t.Run("while it starts", func(t *testing.T) {
		t.Parallel()
		s := spec(t, "mute")
		s.Timing.Start = 300 * time.Millisecond
		p := openKind(t, host.Isolate(obedientKind(), s), `{}`)
		if err := brief(p); err != nil {
			t.Error(err)
		}
	})
	t.Run("a provider that refuses", func(t *testing.T) {
		t.Parallel()
		p := open(t, spec(t, "raw", "close"), `{}`)
		if err := p.Close(t.Context()); err == nil || err.Error() != "close the plugin raw: I will not" {
			t.Errorf("closed: %v", err)
		}
	})
}

// TestReceive has a plugin hear back: a receipt is offered until it is kept, across restarts of the
// process and of the listening.
func TestReceive(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := open(t, spec(t, "receiver", dir), `{"key":"sesame-sesame"}`)
	var mu sync.Mutex
	refuse := map[string]int{"a": 3, "b": 1 << 30} // how often each is still refused
	kept, offered, from := map[string]int{}, map[string]int{}, map[string]bool{}
	report := func(r providers.Receipt) error {
		mu.Lock()
		defer mu.Unlock()
		if r.Event != providers.EventDelivered || r.Code != "key is ***, for ***" {
			t.Errorf("the receipt %+v", r)
		}
		offered[r.ID]++
		from[r.ProviderID] = true
		if refuse[r.ID]--; refuse[r.ID] >= 0 {
			return errors.New("the store is busy")
		}
		kept[r.ID]++
		return nil
	}
	is := func(what string, f func() bool) {
		t.Helper()
		eventually(t, what, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return f()
		})
	}
	rec := p.(providers.Receiver)
	listen := func() (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- rec.Receive(ctx, report) }()
		return func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("receive: %v", err)
			}
		}
	}
	stop := listen()
	lay(t, dir, map[string]file{"a": {mode: 0o600}, "b": {mode: 0o600}})
	is("a is kept", func() bool { return kept["a"] == 1 })
	is("a was offered until then", func() bool { return offered["a"] >= 4 })
	pid := pidOf(t, p)
	kill(t, pid, syscall.SIGKILL)
	is("b is offered by another process", func() bool { return len(from) == 2 })
	stop()
	mu.Lock()
	refuse["b"] = 0
	mu.Unlock()
	stop = listen()
	is("b is kept", func() bool { return kept["b"] == 1 })
	lay(t, dir, map[string]file{"c": {mode: 0o600}})
	is("c is kept", func() bool { return kept["c"] == 1 })
	eventually(t, "all are settled", func() bool {
		left, err := os.ReadDir(dir)
		return err == nil && len(left) == 0
	})
	stop()
	if d := cmp.Diff(map[string]int{"a": 1, "b": 1, "c": 1}, kept); d != "" {
		t.Error(d)
	}
}
