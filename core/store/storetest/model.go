package storetest

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// machine is what the model knows: who holds a good round, and what each delivery's terminal state is.
type machine struct {
	t        *testing.T
	s        *store.Store
	accepted []*core.Acceptance
	rounds   []*core.Round // in hand, perhaps fenced out meanwhile
	holder   map[core.ID]int64
	final    map[core.ID]core.State
	asked    map[core.ID]bool // cancelled notifications
}

// model runs random sequences of accept, wake, claim, settle, lapse and cancel, and checks after each
// that accepted is the sum of the states, that a terminal state never changes, that nobody claims what
// was cancelled, and that a settlement is stale exactly if its fence is not the latest.
func model(t *testing.T, s *store.Store) {
	m := &machine{t: t, s: s, holder: map[core.ID]int64{}, final: map[core.ID]core.State{}, asked: map[core.ID]bool{}}
	rapid.Check(t, func(rt *rapid.T) {
		rt.Repeat(map[string]func(*rapid.T){
			"accept": func(rt *rapid.T) {
				m.accepted = append(m.accepted, record(t, s, ask{n: rapid.IntRange(1, 4).Draw(rt, "n")}))
			},
			"claim":  m.claim,
			"settle": m.settle,
			"lapse":  m.lapse,
			"cancel": m.cancel,
			"":       m.check,
		})
		m.accepted, m.rounds = nil, nil
	})
}

func (m *machine) take(rt *rapid.T, r *core.Round) {
	for _, d := range r.Deliveries {
		if m.asked[d.Notification] && r.Contents != nil {
			rt.Fatalf("delivery %s of a cancelled notification was claimed", d.ID)
		}
		if st, ok := m.final[d.ID]; ok {
			rt.Fatalf("delivery %s was claimed though it is %s", d.ID, st)
		}
	}
	if old, ok := m.holder[r.ID]; ok && old >= r.Fence {
		rt.Fatalf("batch %s was given out under fence %d after %d", r.ID, r.Fence, old)
	}
	m.holder[r.ID] = r.Fence
	m.rounds = append(m.rounds, r)
}

func (m *machine) claim(rt *rapid.T) {
	ws, err := m.s.Due(m.t.Context(), "mail", providers.Normal, rapid.IntRange(1, 3).Draw(rt, "limit"), nil)
	if err != nil {
		rt.Fatal(err)
	}
	span := rapid.SampledFrom([]time.Duration{time.Nanosecond, lease}).Draw(rt, "lease")
	for _, w := range ws {
		r, err := m.s.Claim(m.t.Context(), w, "w1", span)
		if err != nil {
			rt.Fatal(err)
		}
		if r != nil {
			m.take(rt, r)
		}
		if again, err := m.s.Claim(m.t.Context(), w, "w2", span); err != nil || again != nil {
			rt.Fatalf("a wake was good twice: %v %v", again, err)
		}
	}
}

func (m *machine) settle(rt *rapid.T) {
	if len(m.rounds) == 0 {
		rt.Skip("no round in hand")
	}
	i := rapid.IntRange(0, len(m.rounds)-1).Draw(rt, "round")
	r := m.rounds[i]
	m.rounds = append(m.rounds[:i:i], m.rounds[i+1:]...)
	st := judge(r, func(int) providers.Result {
		o := rapid.SampledFrom([]providers.Outcome{providers.Accepted, providers.Deferred, providers.Unknown, providers.Rejected, providers.Throttled}).Draw(rt, "outcome")
		return providers.Result{Outcome: o}
	})
	st.At = r.Now.Add(-time.Hour) // so that what is held is due at once
	for j := range st.Verdicts {
		if v := &st.Verdicts[j]; v.Held {
			v.DueAt = st.At.Add(time.Duration(j) * time.Second)
		}
	}
	st.Split(st.At, false)
	want := m.holder[r.ID] != r.Fence
	stale, err := m.s.Settle(m.t.Context(), st)
	if err != nil || stale != want {
		rt.Fatalf("stale is %v, not %v (%v)", stale, want, err)
	}
	if !stale {
		m.holder[r.ID] = st.Stay.Fence - 1
		if st.Stay.State == core.BatchDone {
			m.holder[r.ID] = st.Stay.Fence
		}
	}
}

func (m *machine) lapse(rt *rapid.T) {
	rounds, err := m.s.Lapsed(m.t.Context(), 2, lease)
	if err != nil {
		rt.Fatal(err)
	}
	for _, r := range rounds {
		m.take(rt, r)
	}
}

func (m *machine) cancel(rt *rapid.T) {
	if len(m.accepted) == 0 {
		rt.Skip("nothing accepted")
	}
	a := rapid.SampledFrom(m.accepted).Draw(rt, "notification")
	if _, err := m.s.Cancel(m.t.Context(), "shop", a.Notification.ID); err != nil {
		rt.Fatal(err)
	}
	m.asked[a.Notification.ID] = true
}

func (m *machine) check(rt *rapid.T) {
	for _, a := range m.accepted {
		ds, _, err := m.s.Deliveries(m.t.Context(), "shop", a.Notification.ID, core.Page{})
		if err != nil {
			rt.Fatal(err)
		}
		if len(ds) != len(a.Deliveries) {
			rt.Fatalf("%d deliveries of %d", len(ds), len(a.Deliveries))
		}
		for _, d := range ds {
			if was, ok := m.final[d.ID]; ok && was != d.State {
				rt.Fatalf("delivery %s was %s and is %s", d.ID, was, d.State)
			}
			if !d.State.Open() {
				m.final[d.ID] = d.State
			}
		}
	}
}
