package app_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/dispatch"
	"github.com/carillon-notify/carillon/core/gate"
	"github.com/carillon-notify/carillon/core/queue"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// engine is store, queue, relay and workers of one route, "mail", whose provider takes everything and
// notes the apps in the order of their messages. A batch holds one delivery.
type engine struct {
	store  *store.Store
	queue  *queue.Queue
	relay  *dispatch.Relay
	server *queue.Server

	mu    sync.Mutex
	order []string
	heard *sync.Cond
}

func (e *engine) Deliver(_ context.Context, batch []providers.Message, report func(providers.Result)) error {
	for i := range batch {
		report(providers.Result{ID: batch[i].ID, Outcome: providers.Accepted})
		e.mu.Lock()
		e.order = append(e.order, batch[i].App)
		e.heard.Broadcast()
		e.mu.Unlock()
	}
	return nil
}

func (e *engine) Health(context.Context) providers.Health { return providers.Health{} }
func (e *engine) Close(context.Context) error             { return nil }

func (e *engine) Provider(string) (providers.Provider, dispatch.Limits, bool) {
	return e, dispatch.Limits{Timeout: 10 * time.Second, Policy: core.DefaultPolicy}, true
}

func (e *engine) Policy(string) core.Policy { return core.DefaultPolicy }

// sent is how many messages of an app went, and the last one's place among all.
func (e *engine) sent(app string) (n, last int) {
	for i, a := range e.order {
		if a == app {
			n, last = n+1, i
		}
	}
	return n, last
}

// await waits until n messages of an app went and returns the last one's place among all.
func (e *engine) await(app string, n int) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		if got, last := e.sent(app); got >= n {
			return last
		}
		e.heard.Wait()
	}
}

func (e *engine) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.order)
}

const fairWorkers = 4

func newEngine(t *testing.T, storeURL, queueURL string) *engine {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	e := &engine{}
	e.heard = sync.NewCond(&e.mu)
	var err error
	if e.queue, err = queue.Open(t.Context(), queue.Options{URL: queueURL, Routes: []string{"mail"}, Logger: log}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.queue.Close() })
	one := func(string) int { return 1 }
	if e.store, err = store.Open(t.Context(), store.Options{URL: storeURL, Room: e.queue.Room, MaxBatch: one, Logger: log}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.store.Close() })
	return e
}

// start starts workers and relay.
func (e *engine) start(t *testing.T) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	d := dispatch.New(dispatch.Options{Store: e.store, Queue: e.queue, Gate: gate.New(map[string]gate.Config{"mail": {}}), Routes: e, Logger: log, Worker: "w"})
	e.relay = dispatch.NewRelay(dispatch.RelayOptions{Overdue: e.store, Dispatcher: d, Routes: []string{"mail"}, Logger: log})
	var err error
	if e.server, err = e.queue.Serve(context.Background(), queue.ServeOptions{Route: "mail", Timeout: 20 * time.Second,
		Concurrency: map[core.Lane]int{providers.Normal: fairWorkers}, Handler: d.Deliver}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { e.relay.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if err := e.server.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// accept records n deliveries of an app, in as many batches, and wakes those that it may: after how many messages that had
// gone.
func (e *engine) accept(t *testing.T, app string, n int) (woken, after int) {
	t.Helper()
	now := e.store.Now()
	a := &core.Acceptance{Contents: []core.Content{{Title: "Hello", Body: "It is here."}}, Notification: core.Notification{
		ID: core.NewID(now), App: app, CreatedAt: now, SendAt: now, ExpiresAt: now.Add(time.Hour), Priority: providers.Normal, Mode: "all"}}
	for _, id := range core.NewIDs(now, n) {
		a.Deliveries = append(a.Deliveries, core.Delivery{ID: id, Notification: a.Notification.ID, App: app, Channel: "email", Kind: "email",
			Route: "mail", Address: "a@example.com", State: core.Pending, CreatedAt: now, UpdatedAt: now, ExpiresAt: now.Add(time.Hour)})
	}
	r, err := e.store.Record(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	after = e.count() // and not before it was recorded, which takes its time on a busy machine
	if err := e.queue.Wake(t.Context(), r.Wakes...); err != nil {
		t.Fatal(err)
	}
	return len(r.Wakes), after
}

// TestFairness: one app has fifty thousand batches waiting and sends more, another sends ten messages.
// Each of the ten enters the queue's window at once, and no more of the flood goes before it than one
// app's share of the window and what the workers are at. What the flood sends anew does not overtake
// what it sent before.
func TestFairness(t *testing.T) {
	t.Parallel()
	for name, urls := range map[string]func(t *testing.T) (string, string){
		"embedded": func(t *testing.T) (string, string) {
			return "sqlite:" + filepath.Join(t.TempDir(), "carillon.db"), queue.Embedded
		},
		"servers": func(t *testing.T) (string, string) { return coretest.Postgres(t), "redis://" + coretest.Redis(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storeURL, queueURL := urls(t)
			e := newEngine(t, storeURL, queueURL)
			for range 50 {
				e.accept(t, "flood", 1000)
			}
			e.start(t)
			e.await("flood", 2*queue.Share) // the relay brings it in
			worst := 0
			for i := range 10 {
				woken, before := e.accept(t, "lone", 1)
				if woken != 1 {
					t.Errorf("message %d did not enter the window at once", i)
				}
				worst = max(worst, e.await("lone", i+1)-before)
				if n, _ := e.accept(t, "flood", 1); n != 0 {
					t.Error("a new message of the flood overtakes those that wait")
				}
			}
			t.Logf("at most %d messages of the flood went before one of the other app", worst)
			if worst > queue.Share+10*fairWorkers {
				t.Errorf("%d messages of the flood went before one of the other app", worst)
			}
		})
	}
}
