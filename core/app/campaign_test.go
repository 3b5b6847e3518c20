package app_test

import (
	"encoding/csv"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

var campaignN = flag.Int("campaign.n", 2000, "recipients of the campaign test, a mail and a push each; the long form is 1,000,000 with -campaign.rate=''")

var campaignRate = flag.String("campaign.rate", "500/s", "its rate")

// campaignWorld is a campaign's test: the processes, who it is for, and the world that it goes to.
type campaignWorld struct {
	t     *testing.T
	c     *caller
	world *sandbox.Sandbox
	file  string
	args  []string // of the orchestrator
	split bool     // a worker of its own delivers
	front *process
	back  *process
	id    string
	n     int // who it is for
}

type campaignView struct {
	ID, State, Reason string
	Progress          campaignProgress
}

type campaignProgress struct {
	Audience, Expanded, Pending, Sent, Delivered, Failed, Expired, Cancelled, Suppressed, Skipped int
	Deliveries                                                                                    counts
}

func (p campaignProgress) sum() int {
	return p.Pending + p.Sent + p.Delivered + p.Failed + p.Expired + p.Cancelled + p.Suppressed + p.Skipped
}

func (w *campaignWorld) start() {
	w.front = startProcess(w.t, "orchestrator", append([]string{"-config", w.file}, w.args...), nil)
	if w.c == nil {
		w.c = newCaller(w.t, "")
	}
	w.c.base = w.front.base
}

func (w *campaignWorld) startWorker() {
	w.back = startProcess(w.t, "worker", []string{"-config", w.file}, nil)
}

// load stores the recipients and the template: a mail of 8 KB of HTML, and a push.
func (w *campaignWorld) load(n int) {
	w.t.Helper()
	w.c.must(http.MethodPut, "/v1/templates/spring", map[string]any{"locales": map[string]any{"default": map[string]any{
		"title": "Spring, {{ recipient.attributes.name }}", "body": "It is here", "email": map[string]any{"subject": "Spring", "html": campaignHTML}}}}, nil, http.StatusCreated)
	importPeople(w.c, n, func(i int) string { return person(i, "") })
}

// until waits until a part of the audience was expanded.
func (w *campaignWorld) until(share float64) campaignView {
	w.t.Helper()
	var v campaignView
	eventually(w.t, 10*time.Minute, fmt.Sprintf("%.0f %% of the audience expanded", 100*share), func() bool {
		status, err := w.c.do(w.t.Context(), http.MethodGet, "/v1/campaigns/"+w.id, nil, &v)
		return err == nil && status == http.StatusOK && float64(v.Progress.Expanded) >= share*float64(*campaignN)
	})
	return v
}

func (w *campaignWorld) act(action string) (v campaignView) {
	w.t.Helper()
	w.c.must(http.MethodPost, "/v1/campaigns/"+w.id+"/"+action, nil, &v, http.StatusOK)
	return v
}

// arrived is how many requests the world has seen.
func (w *campaignWorld) arrived() (n uint64) {
	for _, s := range []sandbox.Service{sandbox.APNs, sandbox.SMTP} {
		n += w.world.Counts(s).Requests
	}
	return n
}

// still checks that nothing more arrives: not in a time in which a hundred would have.
func (w *campaignWorld) still(what string) {
	w.t.Helper()
	before := w.arrived()
	pause(w.t.Context(), 1500*time.Millisecond)
	if after := w.arrived(); after != before {
		w.t.Errorf("%d attempts began after the answer to %s", after-before, what)
	}
}

// TestCampaignIsExact: a campaign that is killed, paused, resumed and cancelled on its way reaches nobody
// twice and loses nobody: what it counts, its results and what arrived agree.
func TestCampaignIsExact(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, on backing) { newCampaignWorld(t, on).exact() })
}

// newCampaignWorld has one process where the store is one process's, else one that accepts and one that delivers.
func newCampaignWorld(t *testing.T, on backing) *campaignWorld {
	t.Helper()
	w := &campaignWorld{t: t, world: startSandbox(t), split: on.store != "", n: *campaignN}
	w.file = writeConfig(t, w.world, on.yaml(t.TempDir()))
	if w.split {
		w.args = []string{"-workers=false"}
		w.startWorker()
	}
	return w
}

func (w *campaignWorld) exact() {
	t := w.t
	w.start()
	w.load(*campaignN)
	var v campaignView
	w.c.must(http.MethodPost, "/v1/campaigns", map[string]any{"name": "spring", "audience": map[string]any{"all": true}, "template": "spring", "channels": []string{"email", "push"},
		"rate": *campaignRate, "now": true}, &v, http.StatusCreated)
	w.id = v.ID
	w.until(0.1)
	w.front.kill()
	w.start()
	w.until(0.2)
	if w.split {
		w.back.kill()
		w.startWorker()
	} else {
		w.front.kill()
		w.start()
	}
	w.until(0.3)
	v = w.act("pause")
	if v.State != "paused" {
		t.Errorf("paused: %+v", v)
	}
	w.still("pause")
	w.front.kill() // a pause outlives it
	w.start()
	if v = w.act("resume"); v.State != "running" {
		t.Errorf("resumed: %+v", v)
	}
	w.until(0.45)
	w.front.kill()
	w.start()
	w.until(0.6)
	if v = w.act("cancel"); v.State != "cancelled" {
		t.Errorf("cancelled: %+v", v)
	}
	w.still("cancel")
	byID := w.reckon()
	arrived := w.world.IDs(sandbox.APNs)
	maps.Copy(arrived, w.world.IDs(sandbox.SMTP))
	w.match(byID, arrived)
}

// result is what a campaign's results say of a delivery.
type result struct {
	recipient, channel, route, state, code string
	unknown                                int
}

// results reads the results; a line without a delivery is under "".
func (w *campaignWorld) results() (byID map[string]result, without []result) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, w.c.base+"/v1/campaigns/"+w.id+"/results.csv", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testKey)
	resp, err := w.c.http.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	lines, err := csv.NewReader(resp.Body).ReadAll()
	if err != nil || resp.StatusCode != http.StatusOK {
		w.t.Fatalf("results: %d %v", resp.StatusCode, err)
	}
	byID = map[string]result{}
	for _, l := range lines[1:] {
		r := result{recipient: l[0], channel: l[1], route: l[2], state: l[4], code: l[5]}
		r.unknown, _ = strconv.Atoi(l[8]) // empty: none
		if l[9] == "" {
			without = append(without, r)
			continue
		}
		byID[l[9]] = r
	}
	return byID, without
}

// reckon holds a campaign's counts against its results, and gives back those that have a delivery, by its id.
func (w *campaignWorld) reckon() map[string]result {
	t := w.t
	t.Helper()
	var v campaignView
	eventually(t, time.Minute, "nothing pending", func() bool {
		w.c.must(http.MethodGet, "/v1/campaigns/"+w.id, nil, &v, http.StatusOK)
		return v.Progress.Pending == 0
	})
	p := v.Progress
	t.Logf("progress: %+v", p)
	if p.Audience != w.n || p.sum() != p.Audience {
		t.Errorf("the audience is %d, the states sum to %d: %+v", p.Audience, p.sum(), p)
	}
	byID, without := w.results()
	people, seen, states := map[string]string{}, map[string]int{}, counts{}
	rank := map[string]int{"pending": 0, "delivered": 1, "sent": 2, "failed": 3, "expired": 4, "cancelled": 5}
	for _, r := range byID {
		if seen[r.recipient+" "+r.channel]++; seen[r.recipient+" "+r.channel] > 1 {
			t.Errorf("%s has two deliveries on %s", r.recipient, r.channel)
		}
		switch r.state {
		case "sent":
			states.Sent++
		case "cancelled":
			states.Cancelled++
		case "failed":
			states.Failed++
		default:
			t.Errorf("%s on %s is %s", r.recipient, r.channel, r.state)
		}
		if old, ok := people[r.recipient]; !ok || rank[r.state] < rank[old] {
			people[r.recipient] = r.state
		}
	}
	if states != p.Deliveries {
		t.Errorf("the results have %+v, the campaign %+v", states, p.Deliveries)
	}
	for _, r := range without { // who has another channel may be skipped on one
		old, expanded := people[r.recipient]
		switch {
		case r.state != "cancelled" && r.state != "skipped", expanded && r.state == "cancelled":
			t.Errorf("%s is %q, and was not expanded: %+v", r.recipient, old, r)
		case !expanded:
			people[r.recipient] = r.state
		}
	}
	count := map[string]int{}
	for _, state := range people {
		count[state]++
	}
	want := map[string]int{"sent": p.Sent, "cancelled": p.Cancelled, "failed": p.Failed, "skipped": p.Skipped}
	maps.DeleteFunc(want, func(_ string, n int) bool { return n == 0 })
	if !maps.Equal(count, want) || len(people) != w.n {
		t.Errorf("the results' people are %v of %d, the campaign's %v", count, len(people), want)
	}
	return byID
}

// match holds the results against what arrived: nothing but what they know, nothing more often than once and
// for each unknown attempt on record, and everything that they call sent.
func (w *campaignWorld) match(byID map[string]result, arrived map[string]int) {
	t := w.t
	t.Helper()
	unknowns, twice := 0, 0
	for id, copies := range arrived {
		r, known := byID[strings.ToLower(id)]
		switch {
		case !known:
			t.Errorf("%s arrived and is in no result", id)
		case r.state != "sent" && r.unknown == 0:
			t.Errorf("%s arrived and is %s without an unknown attempt", id, r.state)
		case copies > 1+r.unknown:
			t.Errorf("%s arrived %d times with %d unknown attempts", id, copies, r.unknown)
		}
		if copies > 1 {
			twice++
		}
	}
	for id, r := range byID {
		if r.unknown > 0 {
			unknowns++
		}
		if r.state == "sent" && arrived[id] == 0 {
			t.Errorf("%s is called sent and did not arrive", id)
		}
	}
	t.Logf("%d arrived of %d deliveries, %d with an unknown attempt, %d twice", len(arrived), len(byID), unknowns, twice)
}
