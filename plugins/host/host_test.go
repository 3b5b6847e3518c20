package host_test

import (
	"context"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/plugins/host"
	"github.com/carillon-notify/carillon/providers"
)

func open(t testing.TB, s host.Spec, settings string) providers.Provider {
	t.Helper()
	kind, err := host.Describe(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	p, err := kind.Open(t.Context(), []byte(settings))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := p.Close(ctx); err != nil {
			t.Logf("close: %v", err)
		}
	})
	return p
}

func deliver(t testing.TB, p providers.Provider, timeout time.Duration, batch []providers.Message) (map[string]providers.Outcome, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	var mu sync.Mutex
	got := map[string]providers.Outcome{}
	err := p.Deliver(ctx, batch, func(r providers.Result) {
		mu.Lock()
		defer mu.Unlock()
		got[r.ID] = r.Outcome
	})
	return got, err
}

func TestDeliver(t *testing.T) {
	t.Parallel()
	p := open(t, spec(t, "obedient"), `{"greeting":"hello"}`)
	got, err := deliver(t, p, 5*time.Second, messages("a", "b", "c"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]providers.Outcome{"id-0": providers.Accepted, "id-1": providers.Accepted, "id-2": providers.Accepted}, got); d != "" {
		t.Error(d)
	}
	if h := p.Health(t.Context()); h.Status != providers.HealthOK || h.Pool.Max != 3 {
		t.Errorf("health is %+v", h)
	}
}

// TestCrash kills a process in the middle of a batch: the answers given so far are kept, the next batch
// is delivered within a second.
func TestCrash(t *testing.T) {
	t.Parallel()
	p := open(t, spec(t, "obedient"), `{}`)
	got := map[string]providers.Outcome{}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	err := p.Deliver(ctx, messages("a", "hang", "c"), func(r providers.Result) {
		got[r.ID] = r.Outcome
		pid, _ := strconv.Atoi(r.ProviderID)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	})
	if err == nil {
		t.Error("a call whose process died has no error")
	}
	if d := cmp.Diff(map[string]providers.Outcome{"id-0": providers.Accepted}, got); d != "" {
		t.Error(d)
	}
	began := time.Now()
	if got, err = deliver(t, p, 5*time.Second, messages("a")); err != nil || got["id-0"] != providers.Accepted {
		t.Errorf("after the restart: %v, %v", got, err)
	}
	t.Logf("delivered again after %s", time.Since(began))
}

func TestHang(t *testing.T) {
	t.Parallel()
	p := open(t, spec(t, "obedient"), `{}`)
	began := time.Now()
	got, err := deliver(t, p, time.Second, messages("a", "hang"))
	if d := cmp.Diff(map[string]providers.Outcome{"id-0": providers.Accepted}, got); d != "" || err == nil {
		t.Error(d, err)
	}
	t.Logf("%v after %s", err, time.Since(began))
}

func TestWrongSettings(t *testing.T) {
	t.Parallel()
	kind, err := host.Describe(t.Context(), spec(t, "obedient"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kind.Open(t.Context(), []byte(`{"greeting":"wrong"}`)); err == nil {
		t.Error("wrong settings were taken")
	} else {
		t.Log(err)
	}
}

func BenchmarkDeliver(b *testing.B) {
	p := open(b, spec(b, "obedient"), `{}`)
	batch := messages(make([]string, 100)...)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			got, err := deliver(b, p, 5*time.Second, batch)
			if err != nil || len(got) != 100 {
				b.Error(len(got), err)
			}
		}
	})
	b.ReportMetric(float64(b.N)*100/b.Elapsed().Seconds(), "msgs/s")
}
