package storetest

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/store"
	"github.com/carillon-notify/carillon/providers"
)

// couple is a notification to two who share a batch, of whom the first is to be erased.
type couple struct {
	t *testing.T
	s *store.Store
	a *core.Acceptance
}

func newCouple(t *testing.T, s *store.Store) *couple {
	t.Helper()
	put(t, s, "ann", "ann@example.com")
	put(t, s, "bob", "bob@example.com")
	a := build(s, ask{n: 2})
	for i, id := range []string{"ann", "bob"} {
		a.Deliveries[i].Recipient, a.Deliveries[i].Address = id, id+"@example.com"
	}
	if _, err := s.Record(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	return &couple{t, s, a}
}

func (c *couple) erase() {
	c.t.Helper()
	if err := c.s.DeleteRecipient(c.t.Context(), "shop", "ann"); err != nil {
		c.t.Fatal(err)
	}
}

// quoting is what a service says that repeats whom it is about.
func quoting(r *core.Round, o providers.Outcome) func(int) providers.Result {
	return func(i int) providers.Result {
		a := r.Deliveries[i].Address
		return providers.Result{Outcome: o, Code: "x", Reason: "no mailbox " + a, ProviderID: "id of " + a}
	}
}

// saying is a settlement of a round with a service's words in its results.
func saying(r *core.Round, o providers.Outcome) *core.Settlement {
	st := judge(r, quoting(r, o))
	for i := range st.Results {
		st.Results[i].Reason = st.Verdicts[i].Delivery.Reason
	}
	return st
}

// says reports how often timeline and deliveries name a person by what a service said.
func (c *couple) says(name string) (n int) {
	c.t.Helper()
	steps, err := c.s.Timeline(c.t.Context(), "shop", c.a.Notification.ID)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, x := range steps {
		if strings.Contains(x.Reason, name+"@") {
			n++
		}
	}
	ds, _, err := c.s.Deliveries(c.t.Context(), "shop", c.a.Notification.ID, core.Page{})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, d := range ds {
		for _, text := range []string{d.Reason, d.ProviderID} {
			if strings.Contains(text, name+"@") {
				n++
			}
		}
	}
	return n
}

// next claims what is due.
func (c *couple) next() *core.Round {
	c.t.Helper()
	var wakes []core.Wake
	until(c.t, "the batch to be due", func() bool {
		var err error
		if wakes, err = c.s.Due(c.t.Context(), "mail", providers.Normal, 10, nil); err != nil {
			c.t.Fatal(err)
		}
		return len(wakes) > 0
	})
	return claim(c.t, c.s, wakes[0])
}

// erasedStaysErased: a service's words may quote an address. They go with the person, from the results of rounds too, and
// no settlement brings them back; who shared a batch keeps theirs.
func erasedStaysErased(t *testing.T, s *store.Store) {
	for _, x := range []struct {
		name string
		play func(c *couple)
		says int // of the one who stays
	}{
		{"settled before", func(c *couple) {
			settle(t, s, saying(claim(t, s, wakeOf(c.a)), providers.Rejected))
			c.erase()
		}, 3},
		{"tried twice before", func(c *couple) {
			settle(t, s, saying(claim(t, s, wakeOf(c.a)), providers.Deferred))
			r := c.next()
			settle(t, s, judge(r, all(providers.Accepted)))
			c.erase()
		}, 2},
		{"tried before, in batches apart since", func(c *couple) {
			r := claim(t, s, wakeOf(c.a))
			st := saying(r, providers.Deferred)
			st.Verdicts[0].DueAt = st.Verdicts[0].DueAt.Add(2 * time.Second)
			st.Split(st.At, false)
			if len(st.Moves) != 1 {
				t.Fatalf("%d moves", len(st.Moves))
			}
			settle(t, s, st)
			for range 2 {
				settle(t, s, judge(c.next(), all(providers.Accepted)))
			}
			c.erase()
		}, 2},
		{"in a round", func(c *couple) {
			r := claim(t, s, wakeOf(c.a))
			c.erase()
			settle(t, s, saying(r, providers.Rejected))
		}, 3},
		{"in a round of a silent service", func(c *couple) {
			r := claim(t, s, wakeOf(c.a))
			c.erase()
			st := saying(r, providers.Rejected)
			st.Silent = true
			settle(t, s, st)
		}, 3},
		{"in a round that is held", func(c *couple) {
			r := claim(t, s, wakeOf(c.a))
			c.erase()
			settle(t, s, saying(r, providers.Deferred))
		}, 3},
		{"before a round that was given up is settled", func(c *couple) {
			late := c.lapse()
			c.erase()
			if !settle(t, s, late) {
				t.Error("it is not late")
			}
		}, 1},
		{"after a round that was given up was settled", func(c *couple) {
			late := c.lapse()
			if !settle(t, s, late) {
				t.Error("it is not late")
			}
			c.erase()
		}, 1},
		{"before the answer to a settlement is asked for again", func(c *couple) {
			st := saying(claim(t, s, wakeOf(c.a)), providers.Rejected)
			settle(t, s, st)
			c.erase()
			if settle(t, s, st) {
				t.Error("what was settled before is late")
			}
		}, 3},
	} {
		c := newCouple(t, s)
		x.play(c)
		if diff := cmp.Diff([]int{0, x.says}, []int{c.says("ann"), c.says("bob")}); diff != "" {
			t.Errorf("%s: how often ann, who was erased, and bob are named: %s", x.name, diff)
		}
	}
}

// lapse claims for no time, has the round given up and settled, and returns what its worker would settle.
func (c *couple) lapse() *core.Settlement {
	c.t.Helper()
	r, err := c.s.Claim(c.t.Context(), wakeOf(c.a), "w1", time.Millisecond)
	if err != nil || r == nil {
		c.t.Fatal(r, err)
	}
	var lapsed []*core.Round
	until(c.t, "the lease to end", func() bool {
		if lapsed, err = c.s.Lapsed(c.t.Context(), 10, lease); err != nil {
			c.t.Fatal(err)
		}
		return len(lapsed) > 0
	})
	settle(c.t, c.s, judge(lapsed[0], all(providers.Rejected)))
	return saying(r, providers.Rejected)
}

// eraseSkippedByMany: a person is taken out of all notifications that skipped it, however many those are.
func eraseSkippedByMany(t *testing.T, s *store.Store) {
	const many = 501 // more than are looked at at once
	put(t, s, "ann", "ann@example.com")
	as := make([]*core.Acceptance, many)
	var all sync.WaitGroup
	for i := range as {
		as[i] = build(s, ask{n: 1})
		as[i].Notification.Skipped = []core.Skip{{Recipient: "ann", Channel: "push", Reason: core.SkipNoEndpoint}}
		all.Go(func() {
			if _, err := s.Record(t.Context(), as[i]); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := s.DeleteRecipient(t.Context(), "shop", "ann"); err != nil {
		t.Fatal(err)
	}
	for _, a := range as {
		n, err := s.Notification(t.Context(), "shop", a.Notification.ID)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]core.Skip{{Channel: "push", Reason: core.SkipNoEndpoint}}, n.Skipped); diff != "" {
			t.Fatalf("what %s skipped: %s", a.Notification.ID, diff)
		}
	}
}
