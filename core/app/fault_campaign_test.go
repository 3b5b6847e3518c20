package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// A house's campaigns go to so many people, at a rate that has each last for half a minute, and so for several
// faults.
const (
	crowdN    = 240
	crowdRate = "15/s"
	// lookEvery is how often somebody looks how far a campaign is.
	lookEvery = 100 * time.Millisecond
)

// campaigns are what is said to everybody that a house knows while faults strike: one campaign after the other,
// some of them paused for a while or cancelled on their way.
type campaigns struct {
	h     *house
	rng   *rand.Rand
	acked []*campaignWorld // of the goroutine that runs them, and of whoever comes after it
	moves atomic.Int64     // how often a campaign was seen to have got on
	over  chan struct{}    // closed when none is begun any more
}

// crowd imports those whom a house's campaigns are for: some with two addresses, some with one, with a dead one, or
// with none.
func (h *house) crowd() {
	h.t.Helper()
	importPeople(h.c, crowdN, func(i int) string {
		mail, phone := fmt.Sprintf(`{"kind":"email","address":"c%d@example.com"}`, i), fmt.Sprintf(`{"kind":"apns","address":"c%063x"}`, i)
		var to []string
		switch {
		case i%40 == 9:
		case crowdDead(i):
			to = []string{fmt.Sprintf(`{"kind":"apns","address":%q}`, deadToken(i))}
		case i%3 == 0:
			to = []string{mail, phone}
		case i%3 == 1:
			to = []string{mail, fmt.Sprintf(`{"kind":"fcm","address":"fcm-token-of-crowd-%d"}`, i)}
		default:
			to = []string{mail}
		}
		return fmt.Sprintf(`{"id":"c_%d","endpoints":[%s]}`, i, strings.Join(to, ","))
	})
}

// crowdDead are those whose only address is dead.
func crowdDead(i int) bool { return i%48 == 7 }

// load runs campaigns until the function it returns is called; the last one is cancelled then.
func (c *campaigns) load() (stop func()) {
	ctx, cancel := context.WithCancel(c.h.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for n := 1; ctx.Err() == nil; n++ {
			c.run(ctx, n)
		}
	}()
	return func() {
		close(c.over)
		cancel()
		<-ended
	}
}

// run has a campaign go to its end. Once it was asked for it is seen to be acknowledged, whatever ends meanwhile.
func (c *campaigns) run(ctx context.Context, n int) {
	w := &campaignWorld{t: c.h.t, c: c.h.c, world: c.h.world, n: crowdN}
	act, at, rest := []string{"", "", "pause", "pause", "cancel"}[c.rng.IntN(5)], crowdN*(20+c.rng.IntN(60))/100, time.Duration(1000+c.rng.IntN(2000))*time.Millisecond
	body := fmt.Sprintf(`{"name":"fault %d","audience":{"all":true},"channels":["email","push"],"content":{"title":"To all %d","body":"of the fault test"},"rate":%q,"now":true}`, n, n, crowdRate)
	var v campaignView
	if !c.ask("/v1/campaigns", fmt.Sprintf("campaign-%d", n), body, &v) {
		return
	}
	w.id = v.ID
	c.acked = append(c.acked, w)
	for got := -1; c.h.t.Context().Err() == nil; pause(c.h.t.Context(), lookEvery) {
		if !c.look(w, &v) {
			continue
		}
		p := &v.Progress
		if now := p.Expanded + p.sum() - p.Pending; now != got { // both only grow
			got = now
			c.moves.Add(1)
		}
		if v.over() || p.Audience > 0 && p.Expanded == p.Audience {
			return
		}
		if ctx.Err() != nil {
			act, at = "cancel", 1
		}
		if act != "" && p.Audience > 0 && p.Expanded >= at {
			c.steer(w, act)
			if act == "pause" {
				pause(ctx, rest)
				c.steer(w, "resume")
			}
			act = ""
		}
	}
}

// over reports whether a campaign makes no more deliveries.
func (v *campaignView) over() bool { return v.State == "completed" || v.State == "cancelled" }

// steer pauses, resumes or cancels a campaign, unless it is over.
func (c *campaigns) steer(w *campaignWorld, action string) {
	if c.ask("/v1/campaigns/"+w.id+"/"+action, "", "", nil) {
		c.moves.Add(1)
	}
}

// ask posts until it is done, by each API in turn. False: the campaign is over, or two minutes were not enough.
func (c *campaigns) ask(path, key, body string, out any) bool {
	ctx, cancel := context.WithTimeout(c.h.t.Context(), 2*time.Minute)
	defer cancel()
	apis := c.h.apis()
	for try := 0; ctx.Err() == nil; try++ {
		a := c.h.ledger.exchange(ctx, http.MethodPost, apis[try%len(apis)]+path, key, body)
		switch {
		case a == nil:
		case a.status == http.StatusOK || a.status == http.StatusCreated:
			if out != nil {
				if err := json.Unmarshal(a.text, out); err != nil {
					c.h.t.Errorf("POST %s was answered %s", path, a.text)
				}
			}
			return true
		case a.status == http.StatusConflict && strings.Contains(string(a.text), "the campaign is completed"):
			return false
		default:
			c.h.ledger.refused("POST "+path, a)
		}
		pause(ctx, again)
	}
	c.h.t.Errorf("POST %s was not acknowledged within two minutes", path)
	return false
}

// look asks how far a campaign is, by each API in turn: one of them may be kept down for as long as the other is to
// plan. A process that is just coming back does not say.
func (c *campaigns) look(w *campaignWorld, v *campaignView) bool {
	for _, api := range c.h.apis() {
		a := c.h.ledger.exchange(c.h.t.Context(), http.MethodGet, api+"/v1/campaigns/"+w.id, "", "")
		switch {
		case a == nil:
		case a.status == http.StatusNotFound:
			c.h.t.Errorf("lost: campaign %s was acknowledged and is not there", w.id)
		case a.status == http.StatusOK:
			if err := json.Unmarshal(a.text, v); err != nil {
				c.h.t.Errorf("campaign %s was shown as %s", w.id, a.text)
			}
			return true
		}
	}
	return false
}

// getsOn waits until a campaign gets on from where it was. What is not due yet by its rate cannot be terminal, but
// it must not stand still.
func (c *campaigns) getsOn(ctx context.Context, from int64) error {
	for c.moves.Load() < from+2 { // one may have been before and seen now
		select {
		case <-c.over:
			return nil
		default:
		}
		if pause(ctx, lookEvery); ctx.Err() != nil {
			return fmt.Errorf("the campaign under way does not get on: %w", ctx.Err())
		}
	}
	return nil
}

// settle waits until nothing of any campaign is pending.
func (c *campaigns) settle(ctx context.Context) error {
	for _, w := range c.acked {
		var v campaignView
		for !c.look(w, &v) || v.Progress.Pending > 0 {
			if pause(ctx, lookEvery); ctx.Err() != nil {
				return fmt.Errorf("campaign %s is %s and at %+v: %w", w.id, v.State, v.Progress, ctx.Err())
			}
		}
	}
	return nil
}

// compare holds what each campaign counts, its results and what arrived against each other, and says which
// deliveries it knows. Nothing may be under way.
func (c *campaigns) compare(taken map[string]map[string]int, known map[string]bool) {
	t := c.h.t
	t.Helper()
	all := map[string]int{}
	for _, ids := range taken {
		for id, n := range ids {
			all[strings.ToLower(id)] += n
		}
	}
	states, sum := map[string]int{}, totals{}
	for _, w := range c.acked {
		byID := w.reckon()
		arrived := map[string]int{}
		for id, r := range byID {
			known[id] = true
			if n := all[id]; n > 0 {
				arrived[id] = n
			}
			if i := 0; r.state == "failed" {
				if _, err := fmt.Sscanf(r.recipient, "c_%d", &i); err != nil || !crowdDead(i) {
					t.Errorf("campaign %s failed to reach %s, who is there: %s", w.id, r.recipient, r.code)
				}
				sum.failed++
			} else if r.state == "sent" {
				sum.sent++
			}
			sum.arrived += arrived[id]
			sum.unknowns += r.unknown
			if arrived[id] > 1 {
				sum.duplicates += arrived[id] - 1
				c.fences(w, id, r)
			}
		}
		sum.deliveries += len(byID)
		w.match(byID, arrived)
		states[c.view(w).State]++
	}
	if len(c.acked) == 0 {
		t.Error("there was no campaign")
	}
	t.Logf("%d campaigns to %d people each, as they ended: %v; %+v", len(c.acked), crowdN, states, sum)
}

func (c *campaigns) view(w *campaignWorld) (v campaignView) {
	c.h.ledger.get("/v1/campaigns/"+w.id, &v)
	return v
}

// fences checks the copies of a delivery against the rounds of the page that it is on.
func (c *campaigns) fences(w *campaignWorld, id string, r result) {
	var pages struct{ Data []notification }
	c.h.ledger.get("/v1/notifications?campaign="+w.id+"&recipient="+r.recipient, &pages)
	if len(pages.Data) != 1 {
		c.h.t.Errorf("%s is on %d pages of campaign %s", r.recipient, len(pages.Data), w.id)
	}
	for _, page := range pages.Data {
		c.h.ledger.fences(&request{id: page.ID}, delivery{ID: id, Route: r.route})
	}
}
