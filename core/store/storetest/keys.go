package storetest

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
)

// keys are listed by their age, and one that is withdrawn is nobody's.
func keys(t *testing.T, s *store.Store) {
	t.Helper()
	other := core.Principal{App: "mail", Scopes: []string{"admin"}}
	for _, p := range []core.Principal{{App: "mail", Scopes: []string{"read"}}, other} { // kept again: its age stays
		if err := s.PutKey(t.Context(), [32]byte{3}, p); err != nil {
			t.Fatal(err)
		}
	}
	want := []core.APIKey{{Hash: [32]byte{1}, Principal: core.Principal{App: "shop", Scopes: []string{"send", "read"}}}, {Hash: [32]byte{3}, Principal: other}}
	got, err := s.Keys(t.Context())
	for i := range got {
		if age := s.Now().Sub(got[i].CreatedAt); age < 0 || age > time.Hour {
			t.Errorf("key %s was kept %s ago", got[i].ID(), age)
		}
		got[i].CreatedAt = time.Time{}
	}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("the keys: %v %s", err, d)
	}
	if err := s.DeleteKey(t.Context(), [32]byte{1}); err != nil {
		t.Error(err)
	}
	if err := s.DeleteKey(t.Context(), [32]byte{1}); !errors.Is(err, core.ErrNotFound) {
		t.Errorf("a key is withdrawn twice: %v", err)
	}
	if _, err := s.Principal(t.Context(), [32]byte{1}); !errors.Is(err, core.ErrNotFound) {
		t.Errorf("a withdrawn key: %v", err)
	}
	if got, err := s.Principal(t.Context(), [32]byte{3}); err != nil || !cmp.Equal(got, other) {
		t.Errorf("the other key: %+v %v", got, err)
	}
}

func idempotency(t *testing.T, s *store.Store) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	answers := map[string]int{}
	recorded := 0
	for range 100 {
		wg.Go(func() {
			a := build(s, ask{n: 1, key: "k"})
			r, err := s.Record(t.Context(), a)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				t.Error(err)
			case r.Replayed:
				answers[string(r.Answer)]++
			default:
				recorded++
				answers[string(a.Answer)]++
			}
		})
	}
	wg.Wait()
	if recorded != 1 || len(answers) != 1 {
		t.Errorf("%d recorded, %d answers", recorded, len(answers))
	}
	other := build(s, ask{n: 1, key: "k"})
	other.BodyHash[0]++
	if _, err := s.Record(t.Context(), other); !errors.Is(err, core.ErrKeyReused) {
		t.Errorf("another body: %v", err)
	}
	for answer := range answers {
		if got, err := s.Answered(t.Context(), "shop", "k", build(s, ask{n: 1, key: "k"}).BodyHash); err != nil || string(got) != answer {
			t.Errorf("answered %q, %v; want %q", got, err, answer)
		}
	}
	if _, err := s.Answered(t.Context(), "shop", "k", other.BodyHash); !errors.Is(err, core.ErrKeyReused) {
		t.Errorf("answered to another body: %v", err)
	}
	for _, free := range [][2]string{{"shop", "free"}, {"other", "k"}} {
		if _, err := s.Answered(t.Context(), free[0], free[1], other.BodyHash); !errors.Is(err, core.ErrNotFound) {
			t.Errorf("answered to key %s of %s: %v", free[1], free[0], err)
		}
	}
	list, _, err := s.Notifications(t.Context(), core.NotificationFilter{App: "shop"})
	if err != nil || len(list) != 1 {
		t.Errorf("%d notifications, %v", len(list), err)
	}
}
