package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/store"
)

// TestPostgresClock: the time is not taken from an answer that was long on its way. Deliveries would be
// due, and leases over, by as much too early or too late.
func TestPostgresClock(t *testing.T) {
	t.Parallel()
	server := coretest.StartPostgres(t, "")
	link := coretest.StartProxy(t, "unix:"+server.Socket())
	s, err := store.Open(t.Context(), store.Options{URL: server.DSN(link.Addr)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	link.Mute()
	asked := make(chan error, 1)
	go func() { asked <- s.AskClock(t.Context()) }()
	const hung = 1500 * time.Millisecond
	<-time.After(hung)
	link.Heal()
	if err := <-asked; err != nil {
		t.Fatal(err)
	}
	if off := time.Since(s.Now()).Abs(); off > hung/3 {
		t.Errorf("after an answer that hung for %v its time is off by %v", hung, off)
	}
}

// TestPostgresAway: a server that cannot be reached, or takes nobody in, is away: clients come again.
func TestPostgresAway(t *testing.T) {
	t.Parallel()
	server := coretest.StartPostgres(t, "")
	link := coretest.StartProxy(t, "unix:"+server.Socket())
	s, err := store.Open(t.Context(), store.Options{URL: server.DSN(link.Addr)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	for name, gone := range map[string]func(){"cut": link.Cut, "killed": func() { server.Kill(); link.Heal() }} {
		gone()
		if _, err := s.Requeue(t.Context()); !errors.Is(err, core.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	server.Restart(t)
	link.Heal()
	if _, err := s.Requeue(t.Context()); err != nil {
		t.Errorf("it is back: %v", err)
	}
}
