package storetest

import (
	"errors"
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
