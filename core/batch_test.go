package core_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/providers"
)

func always(core.Wake) bool       { return true }
func never(core.Wake) bool        { return false }
func upTo(n int) func(string) int { return func(string) int { return n } }

// accept makes an acceptance with a delivery on each route, ids set.
func accept(app string, lane core.Lane, sendAt time.Time, routes ...string) *core.Acceptance {
	a := &core.Acceptance{Notification: core.Notification{App: app, Priority: lane, SendAt: sendAt}}
	for _, id := range core.NewIDs(t0, len(routes)) {
		a.Deliveries = append(a.Deliveries, core.Delivery{ID: id, App: app, Route: routes[len(a.Deliveries)]})
	}
	return a
}

// members counts the deliveries of each batch.
func members(as []*core.Acceptance) map[core.ID]int {
	n := map[core.ID]int{}
	for _, a := range as {
		for i := range a.Deliveries {
			n[a.Deliveries[i].Batch]++
		}
	}
	return n
}

type packed struct {
	App, Route string
	Lane       core.Lane
	State      core.BatchState
	Due, Run   time.Duration // from t0
	N          int
	Wake       bool
}

func TestPack(t *testing.T) {
	t.Parallel()
	const n, b = providers.Normal, providers.Bulk
	at := func(d time.Duration) time.Time { return t0.Add(d) }
	queued := func(p packed) packed {
		p.App, p.State, p.Wake = "a", core.BatchQueued, true
		if p.Lane == "" {
			p.Lane = n
		}
		p.Run = max(p.Due, 0) + core.DispatchTimeout
		return p
	}
	for name, c := range map[string]struct {
		in   []*core.Acceptance
		max  int
		wake func(core.Wake) bool
		want []packed
	}{
		"nothing":                       {nil, 10, always, nil},
		"reaches nobody":                {[]*core.Acceptance{accept("a", n, t0)}, 10, always, nil},
		"one":                           {[]*core.Acceptance{accept("a", n, t0, "r")}, 10, always, []packed{queued(packed{Route: "r", N: 1})}},
		"accepted together share":       {[]*core.Acceptance{accept("a", n, t0, "r"), accept("a", n, t0, "r", "r")}, 10, always, []packed{queued(packed{Route: "r", N: 3})}},
		"at once, whatever millisecond": {[]*core.Acceptance{accept("a", n, at(-time.Hour), "r"), accept("a", n, at(-1), "r"), accept("a", n, t0, "r"), accept("a", n, time.Time{}, "r")}, 10, always, []packed{queued(packed{Route: "r", N: 4})}},
		"routes apart":                  {[]*core.Acceptance{accept("a", n, t0, "r", "s", "r")}, 10, always, []packed{queued(packed{Route: "r", N: 2}), queued(packed{Route: "s", N: 1})}},
		"lanes apart":                   {[]*core.Acceptance{accept("a", n, t0, "r"), accept("a", b, t0, "r")}, 10, always, []packed{queued(packed{Route: "r", N: 1}), queued(packed{Route: "r", N: 1, Lane: b})}},
		"full batches":                  {[]*core.Acceptance{accept("a", n, t0, "r", "r", "r"), accept("a", n, t0, "r", "r")}, 2, always, []packed{queued(packed{Route: "r", N: 2}), queued(packed{Route: "r", N: 2}), queued(packed{Route: "r", N: 1})}},
		"a limit of none is one":        {[]*core.Acceptance{accept("a", n, t0, "r", "r")}, 0, always, []packed{queued(packed{Route: "r", N: 1}), queued(packed{Route: "r", N: 1})}},
		"the same second, due with the latest": {[]*core.Acceptance{accept("a", n, at(time.Minute+200*time.Millisecond), "r"), accept("a", n, at(time.Minute+900*time.Millisecond), "r"), accept("a", n, at(time.Minute), "r")}, 10, always,
			[]packed{queued(packed{Route: "r", N: 3, Due: time.Minute + 900*time.Millisecond})}},
		"another second":              {[]*core.Acceptance{accept("a", n, at(time.Minute), "r"), accept("a", n, at(time.Minute+time.Second), "r")}, 10, always, []packed{queued(packed{Route: "r", N: 1, Due: time.Minute}), queued(packed{Route: "r", N: 1, Due: time.Minute + time.Second})}},
		"at once and within a second": {[]*core.Acceptance{accept("a", n, t0, "r"), accept("a", n, at(500*time.Millisecond), "r")}, 10, always, []packed{queued(packed{Route: "r", N: 1}), queued(packed{Route: "r", N: 1, Due: 500 * time.Millisecond})}},
		"just near enough":            {[]*core.Acceptance{accept("a", n, at(core.Near), "r")}, 10, always, []packed{queued(packed{Route: "r", N: 1, Due: core.Near})}},
		"too far ahead":               {[]*core.Acceptance{accept("a", n, at(core.Near+1), "r")}, 10, always, []packed{{App: "a", Route: "r", Lane: n, State: core.BatchPending, N: 1, Due: core.Near + 1, Run: core.Near + 1}}},
		"no room":                     {[]*core.Acceptance{accept("a", n, t0, "r")}, 10, never, []packed{{App: "a", Route: "r", Lane: n, State: core.BatchPending, N: 1}}},
		"room for one app, route and lane": {[]*core.Acceptance{accept("a", n, t0, "r", "s"), accept("b", n, t0, "r"), accept("a", b, t0, "r")}, 10,
			func(w core.Wake) bool { return w.App == "a" && w.Route == "r" && w.Lane == n },
			[]packed{queued(packed{Route: "r", N: 1}), {App: "a", Route: "s", Lane: n, State: core.BatchPending, N: 1}, {App: "b", Route: "r", Lane: n, State: core.BatchPending, N: 1}, {App: "a", Route: "r", Lane: b, State: core.BatchPending, N: 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			batches, wakes := core.Pack(c.in, t0, upTo(c.max), c.wake)
			count := members(c.in)
			var got []packed
			for _, b := range batches {
				w, woken := wakes[b.ID]
				if woken {
					if diff := cmp.Diff(core.Wake{Batch: b.ID, Fence: 1, App: b.App, Route: b.Route, Lane: b.Lane, At: b.DueAt}, w); diff != "" {
						t.Errorf("wake: -want +got\n%s", diff)
					}
				}
				if b.Fence != 1 || !b.Parent.IsZero() {
					t.Errorf("a new batch has fence %d, parent %s", b.Fence, b.Parent)
				}
				got = append(got, packed{b.App, b.Route, b.Lane, b.State, b.DueAt.Sub(t0), b.RunAt.Sub(t0), count[b.ID], woken})
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

// Every delivery is in exactly one batch of its own app, route and lane, no batch is over the limit or
// due before a member, and what has no wake is found by its alarm clock in time.
func TestPackProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var as []*core.Acceptance
		for range rapid.IntRange(0, 20).Draw(t, "acceptances") {
			due := t0.Add(time.Duration(rapid.Int64Range(-int64(time.Second), int64(3*time.Second)).Draw(t, "due")))
			if rapid.Bool().Draw(t, "far") {
				due = due.Add(core.Near)
			}
			as = append(as, accept(rapid.SampledFrom([]string{"a", "b"}).Draw(t, "app"), rapid.SampledFrom(core.Lanes).Draw(t, "lane"), due,
				rapid.SliceOfN(rapid.SampledFrom([]string{"r", "s"}), 0, 5).Draw(t, "routes")...))
		}
		limit := rapid.IntRange(0, 7).Draw(t, "limit")
		room := func(w core.Wake) bool { return w.App != "b" || w.Route == "s" }
		batches, wakes := core.Pack(as, t0, upTo(limit), room)
		byID := map[core.ID]*core.Batch{}
		for i := range batches {
			b := &batches[i]
			if byID[b.ID] != nil {
				t.Fatalf("two batches have the id %s", b.ID)
			}
			byID[b.ID] = b
			_, woken := wakes[b.ID]
			if want := room(core.Wake{App: b.App, Route: b.Route, Lane: b.Lane}) && b.DueAt.Sub(t0) <= core.Near; woken != want || (b.State == core.BatchQueued) != want {
				t.Fatalf("batch %+v: wake %v, want %v", b, woken, want)
			}
			if b.RunAt.Before(b.DueAt) || b.RunAt.Sub(b.DueAt) > core.DispatchTimeout {
				t.Fatalf("batch due at %s is looked at, at %s", b.DueAt, b.RunAt)
			}
		}
		for id, n := range members(as) {
			if byID[id] == nil || n > max(1, limit) {
				t.Fatalf("batch %s: %d deliveries, limit %d, known %v", id, n, limit, byID[id] != nil)
			}
		}
		if len(members(as)) != len(batches) || len(wakes) > len(batches) {
			t.Fatalf("%d batches, %d of them with deliveries, %d wakes", len(batches), len(members(as)), len(wakes))
		}
		for _, a := range as {
			for _, d := range a.Deliveries {
				b := byID[d.Batch]
				late := b.DueAt.Sub(a.Notification.SendAt)
				if !a.Notification.SendAt.After(t0) {
					late = b.DueAt.Sub(t0)
				}
				if b.App != d.App || b.Route != d.Route || b.Lane != a.Notification.Priority || late < 0 || late >= time.Second {
					t.Fatalf("delivery of %s %s %s, due %s, is in batch %+v", d.App, d.Route, a.Notification.Priority, a.Notification.SendAt, b)
				}
			}
		}
	})
}

// verdicts makes one verdict for each wait from t0; a negative one is settled.
func verdicts(b core.ID, waits ...time.Duration) []core.Verdict {
	vs := make([]core.Verdict, len(waits))
	for i, id := range core.NewIDs(t0, len(waits)) {
		vs[i] = core.Verdict{Delivery: core.Delivery{ID: id, Batch: b, State: core.Sent}}
		if waits[i] >= 0 {
			vs[i].Delivery.State, vs[i].Held, vs[i].DueAt = core.Pending, true, t0.Add(waits[i])
		}
	}
	return vs
}

func TestSplit(t *testing.T) {
	t.Parallel()
	const s, ms = time.Second, time.Millisecond
	const settled = -s
	type group struct {
		State    core.BatchState
		Due, Run time.Duration
		Members  []int
		Wake     bool
	}
	done := group{State: core.BatchDone}
	for name, c := range map[string]struct {
		waits []time.Duration
		full  bool
		stay  group
		moves []group
	}{
		"nothing claimed":                      {nil, false, done, nil},
		"nothing held":                         {[]time.Duration{settled, settled}, false, done, nil},
		"all held":                             {[]time.Duration{s, s}, false, group{core.BatchQueued, s, 11 * s, []int{0, 1}, true}, nil},
		"the same second, due with the latest": {[]time.Duration{s, s + 999*ms, s + 5*ms}, false, group{core.BatchQueued, s + 999*ms, 11*s + 999*ms, []int{0, 1, 2}, true}, nil},
		"one goes elsewhere":                   {[]time.Duration{settled, 5 * s, 5 * s, 2 * s}, false, group{core.BatchQueued, 5 * s, 15 * s, []int{1, 2}, true}, []group{{core.BatchQueued, 2 * s, 12 * s, []int{3}, true}}},
		"of equal groups the earliest stays":   {[]time.Duration{9 * s, 3 * s, 6 * s}, false, group{core.BatchQueued, 3 * s, 13 * s, []int{1}, true}, []group{{core.BatchQueued, 6 * s, 16 * s, []int{2}, true}, {core.BatchQueued, 9 * s, 19 * s, []int{0}, true}}},
		"no room":                              {[]time.Duration{5 * s, 2 * s}, true, group{core.BatchPending, 2 * s, 2 * s, []int{1}, false}, []group{{core.BatchPending, 5 * s, 5 * s, []int{0}, false}}},
		"near and far":                         {[]time.Duration{core.Near + s, core.Near + s, core.Near}, false, group{core.BatchPending, core.Near + s, core.Near + s, []int{0, 1}, false}, []group{{core.BatchQueued, core.Near, core.Near + 10*s, []int{2}, true}}},
		"due already":                          {[]time.Duration{0}, false, group{core.BatchQueued, 0, 10 * s, []int{0}, true}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			batch := core.Batch{ID: core.NewID(t0), App: "a", Route: "r", Lane: providers.Bulk, State: core.BatchSending, Fence: 7, Parent: core.NewID(t0), DueAt: t0.Add(-time.Hour), RunAt: t0.Add(time.Hour)}
			st := core.Settlement{Batch: batch, Verdicts: verdicts(batch.ID, c.waits...), Moves: []core.Move{{}}}
			wakes := st.Split(t0, !c.full)
			woken := map[core.ID]core.Wake{}
			for _, w := range wakes {
				woken[w.Batch] = w
			}
			see := func(b core.Batch) group {
				w, ok := woken[b.ID]
				if ok && (w.Fence != b.Fence || w.Route != "r" || w.Lane != providers.Bulk || !w.At.Equal(b.DueAt)) {
					t.Errorf("wake %+v of batch %+v", w, b)
				}
				if b.App != "a" || b.Route != "r" || b.Lane != providers.Bulk {
					t.Errorf("batch %+v", b)
				}
				g := group{State: b.State, Wake: ok}
				if b.State != core.BatchDone {
					g.Due, g.Run = b.DueAt.Sub(t0), b.RunAt.Sub(t0)
				}
				for i := range st.Verdicts {
					if v := &st.Verdicts[i]; v.Held && v.Delivery.Batch == b.ID {
						g.Members = append(g.Members, i)
					}
				}
				return g
			}
			if diff := cmp.Diff(c.stay, see(st.Stay)); diff != "" {
				t.Errorf("stays: -want +got\n%s", diff)
			}
			if st.Stay.ID != batch.ID || st.Stay.Fence != 8 || st.Stay.Parent != batch.Parent {
				t.Errorf("the batch itself became %+v", st.Stay)
			}
			var moves []group
			for _, m := range st.Moves {
				moves = append(moves, see(m.Batch))
				if m.Batch.Fence != 1 || m.Batch.Parent != batch.ID || m.Batch.ID == batch.ID {
					t.Errorf("moved to %+v", m.Batch)
				}
				for j, i := range moves[len(moves)-1].Members {
					if m.Deliveries[j] != st.Verdicts[i].Delivery.ID {
						t.Errorf("move %d lists delivery %s", i, m.Deliveries[j])
					}
				}
			}
			if diff := cmp.Diff(c.moves, moves); diff != "" {
				t.Errorf("moves: -want +got\n%s", diff)
			}
			if diff := cmp.Diff(batch, st.Batch); diff != "" {
				t.Errorf("the batch as claimed was changed:\n%s", diff)
			}
		})
	}
}

// Every held verdict is in exactly one batch, none is due earlier than it asked for and none a second
// later, and every batch with something left to do has an alarm clock and, at most, one wake.
func TestSplitProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		batch := core.Batch{ID: core.NewID(t0), App: "a", Route: "r", Lane: providers.Normal, State: core.BatchSending, Fence: rapid.Int64Range(1, 1<<60).Draw(t, "fence")}
		waits := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) time.Duration {
			return time.Duration(rapid.Int64Range(-1, 4).Draw(t, "s"))*time.Second + time.Duration(rapid.Int64Range(0, 999_999_999).Draw(t, "ns"))
		}), 0, 100).Draw(t, "waits")
		st := core.Settlement{Batch: batch, Verdicts: verdicts(batch.ID, waits...)}
		wakes := st.Split(t0, rapid.Bool().Draw(t, "room"))
		all := map[core.ID]core.Batch{st.Stay.ID: st.Stay}
		listed := map[core.ID]core.ID{}
		for _, m := range st.Moves {
			if _, twice := all[m.Batch.ID]; twice || len(m.Deliveries) == 0 {
				t.Fatalf("batch %s was made twice, or for nobody", m.Batch.ID)
			}
			all[m.Batch.ID] = m.Batch
			for _, id := range m.Deliveries {
				if _, twice := listed[id]; twice {
					t.Fatalf("delivery %s moves twice", id)
				}
				listed[id] = m.Batch.ID
			}
		}
		count := map[core.ID]int{}
		for _, v := range st.Verdicts {
			to, moved := listed[v.Delivery.ID]
			if !v.Held {
				if moved {
					t.Fatalf("a settled delivery moves")
				}
				continue
			}
			b, ok := all[v.Delivery.Batch]
			if !ok || moved != (b.ID != batch.ID) || (moved && to != b.ID) {
				t.Fatalf("delivery %s points at %s and is listed in %s", v.Delivery.ID, v.Delivery.Batch, to)
			}
			if wait := b.DueAt.Sub(v.DueAt); wait < 0 || wait >= time.Second {
				t.Fatalf("held till %s, batch due at %s", v.DueAt, b.DueAt)
			}
			count[b.ID]++
		}
		for id, b := range all {
			if count[id] > count[st.Stay.ID] {
				t.Fatalf("a group of %d moves and one of %d stays", count[id], count[st.Stay.ID])
			}
			if (count[id] == 0) != (b.State == core.BatchDone) || b.RunAt.IsZero() {
				t.Fatalf("batch with %d deliveries is %+v", count[id], b)
			}
		}
		if st.Stay.Fence != batch.Fence+1 || len(wakes) > len(all) {
			t.Fatalf("fence %d from %d, %d wakes for %d batches", st.Stay.Fence, batch.Fence, len(wakes), len(all))
		}
		for _, w := range wakes {
			if b := all[w.Batch]; w.Fence != b.Fence || b.State != core.BatchQueued || !w.At.Equal(b.DueAt) {
				t.Fatalf("wake %+v of batch %+v", w, b)
			}
		}
	})
}
