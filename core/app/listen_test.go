package app_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/app"
)

// TestListen: a port that a killed process holds for another moment is waited for; one that stays taken is said to be.
func TestListen(t *testing.T) {
	t.Parallel()
	taken := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	held := taken()
	time.AfterFunc(300*time.Millisecond, func() { _ = held.Close() })
	l, err := app.Listen(t.Context(), held.Addr().String())
	if err != nil {
		t.Fatalf("let go of after 300 ms: %v", err)
	}
	_ = l.Close()

	kept := taken()
	began := time.Now()
	if _, err := app.Listen(t.Context(), kept.Addr().String()); err == nil || !strings.Contains(err.Error(), kept.Addr().String()+" is in use by another program; stop it") {
		t.Errorf("taken for good: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("that took %s", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	began = time.Now()
	if _, err := app.Listen(ctx, kept.Addr().String()); err == nil || time.Since(began) > time.Second {
		t.Errorf("told to stop meanwhile: %v after %s", err, time.Since(began))
	}
}
