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

// cancelHeld: what is cancelled while it waits does not go down in history as if it had ended for what it waited for.
// A service's last word stays.
func cancelHeld(t *testing.T, s *store.Store) {
	cancel := func(a *core.Acceptance) {
		t.Helper()
		if n, err := s.Cancel(t.Context(), "shop", a.Notification.ID); n != len(a.Deliveries) || err != nil {
			t.Fatalf("cancelled %d: %v", n, err)
		}
	}
	hold := func(st *core.Settlement, code string) {
		for i := range st.Verdicts {
			st.Verdicts[i] = st.Verdicts[i].Delivery.Hold(code, st.At.Add(30*time.Second), st.At)
		}
	}
	ended := func(what string, a *core.Acceptance, code, reason string) {
		t.Helper()
		ds, _, err := s.Deliveries(t.Context(), "shop", a.Notification.ID, core.Page{})
		if err != nil || len(ds) != len(a.Deliveries) {
			t.Fatalf("%s: %+v %v", what, ds, err)
		}
		for _, d := range ds {
			if d.State != core.Cancelled || d.Code != code || d.Reason != reason {
				t.Errorf("%s: it is %s, code %q, reason %q; want %q, %q", what, d.State, d.Code, d.Reason, code, reason)
			}
		}
	}
	greylisted := func(int) providers.Result {
		return providers.Result{Outcome: providers.Deferred, Code: "451", Reason: "greylisted"}
	}
	for _, code := range core.WaitingCodes {
		for n := 1; n <= 5; n += 4 { // one is written otherwise than several
			waits := record(t, s, ask{n: n})
			st := judge(claim(t, s, wakeOf(waits)), greylisted)
			hold(st, code)
			settle(t, s, st)
			cancel(waits)
			ended(code+", and cancelled", waits, "", "")

			goes := record(t, s, ask{n: n})
			st = judge(claim(t, s, wakeOf(goes)), greylisted)
			cancel(goes)
			hold(st, code)
			settle(t, s, st)
			ended("cancelled during its round, then "+code, goes, "", "")
		}
	}
	waits, goes := record(t, s, ask{n: 5}), record(t, s, ask{n: 5})
	settle(t, s, judge(claim(t, s, wakeOf(waits)), greylisted))
	cancel(waits)
	ended("put off, and cancelled", waits, "451", "greylisted")
	st := judge(claim(t, s, wakeOf(goes)), greylisted)
	cancel(goes)
	settle(t, s, st)
	ended("cancelled, and put off", goes, "451", "greylisted")
}
