package storetest

import (
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// resuming makes due what the pause held back, and nothing else.
func resuming(t *testing.T, s *store.Store) {
	hold := func(a *core.Acceptance, code string) {
		r := claim(t, s, wakeOf(a))
		st := judge(r, all(providers.Deferred))
		until := st.At.Add(30 * time.Second)
		st.Verdicts[0] = r.Deliveries[0].Hold(code, until, st.At)
		st.Results[0] = core.Attempt{Delivery: r.Deliveries[0].ID, None: true, Code: code, State: core.Pending, HeldTill: until.UnixMilli()}
		st.Split(st.At, false)
		settle(t, s, st)
	}
	held, limited, elsewhere := record(t, s, ask{n: 1}), record(t, s, ask{n: 1, app: "b"}), record(t, s, ask{n: 1, route: "other"})
	record(t, s, ask{n: 1, in: time.Minute}) // not due yet
	if err := s.PauseRoute(t.Context(), "mail", true); err != nil {
		t.Fatal(err)
	}
	hold(held, core.CodePaused)
	hold(limited, core.CodeRate)
	hold(elsewhere, core.CodePaused)
	due := func() (out []core.Wake) {
		for _, route := range []string{"mail", "other"} {
			w, err := s.Due(t.Context(), route, providers.Normal, 10, nil)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, w...)
		}
		return out
	}
	if got := due(); len(got) > 0 {
		t.Errorf("due during the pause: %v", got)
	}
	if err := s.PauseRoute(t.Context(), "mail", false); err != nil {
		t.Fatal(err)
	}
	got := due()
	if len(got) != 1 {
		t.Fatalf("due after the pause: %v, want what it held back", got)
	}
	if r := claim(t, s, got[0]); r == nil || r.Paused || len(r.Deliveries) != 1 || r.Deliveries[0].ID != held.Deliveries[0].ID {
		t.Errorf("its round is %+v", r)
	}
}
