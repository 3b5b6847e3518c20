package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// childEnv makes the test binary the process that is killed.
const childEnv = "CARILLON_STORE_TEST_CHILD"

func acceptance(s *store.Store, n int) *core.Acceptance {
	now := s.Now()
	a := &core.Acceptance{Contents: []core.Content{{Title: "Hello", Body: strings.Repeat("It is here. ", 40)}}}
	a.Notification = core.Notification{ID: core.NewID(now), App: "shop", CreatedAt: now, SendAt: now, ExpiresAt: now.Add(time.Hour), Priority: providers.Normal, Mode: "all"}
	for _, id := range core.NewIDs(now, n) {
		a.Deliveries = append(a.Deliveries, core.Delivery{ID: id, Notification: a.Notification.ID, App: "shop", Channel: "email", Kind: "email",
			Route: "mail", Address: "a@example.com", State: core.Pending, CreatedAt: now, UpdatedAt: now, ExpiresAt: now.Add(time.Hour)})
	}
	return a
}

// child accepts and claims, says so for each, and never ends.
func child(path string) {
	ctx := context.Background()
	s, err := store.Open(ctx, store.Options{URL: "sqlite:" + path})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	for i := 0; ; i++ {
		a := acceptance(s, 2)
		if _, err := s.Record(ctx, a); err != nil {
			fmt.Println("error", err)
			return
		}
		if i == 0 {
			if r, err := s.Claim(ctx, core.Wake{Batch: a.Deliveries[0].Batch, Fence: 1}, "child", time.Hour); err != nil || r == nil {
				fmt.Println("error", r, err)
				return
			}
		}
		fmt.Println(a.Notification.ID)
	}
}

// TestKilled kills a process in the middle of its work: everything it said to have accepted is there,
// and its lease is void for the next process, though it had an hour to go.
func TestKilled(t *testing.T) {
	t.Parallel()
	url := sqliteURL(t)
	path := strings.TrimPrefix(url, "sqlite:")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	var said []core.ID
	for lines.Scan() {
		id, err := core.ParseID(lines.Text())
		if err != nil {
			if len(said) >= 50 {
				break // the line it was killed in
			}
			t.Fatalf("the child says %q", lines.Text())
		}
		if said = append(said, id); len(said) == 25 {
			if _, err := store.Open(t.Context(), store.Options{URL: url}); !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), "PostgreSQL") {
				t.Errorf("a second process: %v", err)
			}
		}
		if len(said) == 50 {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait()
	s := open(t, store.Options{URL: url})
	for _, id := range said {
		if v, err := s.Notification(t.Context(), "shop", id); err != nil || v.Counts.Total() != 2 {
			t.Errorf("accepted and lost: %s %+v %v", id, v, err)
		}
	}
	rounds, err := s.Lapsed(t.Context(), 10, time.Minute)
	if err != nil || len(rounds) != 1 || len(rounds[0].Deliveries) != 2 {
		t.Errorf("the dead process's lease is not void: %+v %v", rounds, err)
	}
	steps, err := s.Timeline(t.Context(), "shop", said[0])
	if err != nil || steps[len(steps)-1].What != core.StepStarted || steps[len(steps)-1].Worker != "child" {
		t.Errorf("the round of the dead process is not on record: %+v %v", steps, err)
	}
}

// TestVoidQueued: with the embedded queue gone, what was queued is due at once after a restart.
func TestVoidQueued(t *testing.T) {
	t.Parallel()
	url := sqliteURL(t)
	s, err := store.Open(t.Context(), store.Options{URL: url, Room: func(core.Wake) int { return 1 }})
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Record(t.Context(), acceptance(s, 1))
	if err != nil || len(r.Wakes) != 1 {
		t.Fatalf("with room there is a wake: %+v %v", r, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Record(t.Context(), &core.Acceptance{}); !errors.Is(err, core.ErrUnavailable) {
		t.Errorf("after Close: %v", err)
	}
	s = open(t, store.Options{URL: url, VoidQueued: true})
	if ws, err := s.Due(t.Context(), "mail", providers.Normal, 10, nil); len(ws) != 1 || err != nil || ws[0].Fence != 2 {
		t.Errorf("%+v %v", ws, err)
	}
}

// TestVoidQueuedLater: what was queued for later when the embedded queue went comes back at its time. Before, it would be
// handed to the queue again and again: its alarm clock would ring each time before it is due.
func TestVoidQueuedLater(t *testing.T) {
	t.Parallel()
	url := sqliteURL(t)
	s, err := store.Open(t.Context(), store.Options{URL: url, Room: func(core.Wake) int { return 1 }})
	if err != nil {
		t.Fatal(err)
	}
	a := acceptance(s, 1)
	a.Notification.SendAt = s.Now().Add(core.Near / 2).Truncate(time.Microsecond)
	if r, err := s.Record(t.Context(), a); err != nil || len(r.Wakes) != 1 {
		t.Fatalf("with room there is a wake: %+v %v", r, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, store.Options{URL: url, VoidQueued: true})
	if ws, err := s.Due(t.Context(), "mail", providers.Normal, 10, nil); len(ws) != 0 || err != nil {
		t.Errorf("long before its time it is due: %+v %v", ws, err)
	}
	if n := count(t, raw(t, url), fmt.Sprintf("SELECT count(*) FROM batches WHERE run_at = %d", a.Notification.SendAt.UnixMicro())); n != 1 {
		t.Error("its alarm clock does not ring at its time")
	}
}

// TestRequeueLater: a wake due later that the queue lost comes back at its time, not before.
func TestRequeueLater(t *testing.T) {
	t.Parallel()
	for name, url := range map[string]string{"sqlite": sqliteURL(t), "postgres": coretest.Postgres(t)} {
		s := open(t, store.Options{URL: url, Room: func(core.Wake) int { return 1 }})
		a := acceptance(s, 1)
		a.Notification.SendAt = s.Now().Add(time.Second)
		if r, err := s.Record(t.Context(), a); err != nil || len(r.Wakes) != 1 {
			t.Fatalf("%s: %+v %v", name, r, err)
		}
		if n, err := s.Requeue(t.Context()); n != 1 || err != nil {
			t.Errorf("%s: %d %v", name, n, err)
		}
		for {
			ws, err := s.Due(t.Context(), "mail", providers.Normal, 10, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(ws) == 0 {
				continue
			}
			if now := s.Now(); now.Before(a.Notification.SendAt) || ws[0].Fence != 2 {
				t.Errorf("%s: %+v came back %v early", name, ws, a.Notification.SendAt.Sub(now))
			}
			break
		}
	}
}

func TestSharedBatchHasOneWake(t *testing.T) {
	t.Parallel()
	for name, url := range map[string]string{"sqlite": sqliteURL(t), "postgres": coretest.Postgres(t)} {
		s := open(t, store.Options{URL: url, Room: func(core.Wake) int { return 1000 }})
		var mu sync.Mutex
		wakes, batches := map[core.ID]int{}, map[core.ID]int{}
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				a := acceptance(s, 1)
				r, err := s.Record(t.Context(), a)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				batches[a.Deliveries[0].Batch]++
				for _, w := range r.Wakes {
					wakes[w.Batch]++
				}
			})
		}
		wg.Wait()
		if len(wakes) != len(batches) {
			t.Errorf("%s: %d batches, %d woken", name, len(batches), len(wakes))
		}
		for id, n := range wakes {
			if n != 1 {
				t.Errorf("%s: batch %s has %d wakes", name, id, n)
			}
		}
		if len(batches) >= 200 {
			t.Errorf("%s: 200 concurrent notifications share no batch", name)
		}
	}
}

func TestUnwritable(t *testing.T) {
	t.Parallel()
	if _, err := store.Open(t.Context(), store.Options{URL: "sqlite:/proc/carillon/x.db"}); err == nil || !strings.Contains(err.Error(), "data directory") {
		t.Errorf("%v", err)
	}
	if _, err := store.Open(t.Context(), store.Options{URL: "mysql://x"}); err == nil {
		t.Error("another database was taken")
	}
	_, err := store.Open(t.Context(), store.Options{URL: "postgres://u:geheim@h:port/x"})
	if err == nil || strings.Contains(err.Error(), "geheim") {
		t.Errorf("%v", err)
	}
}
