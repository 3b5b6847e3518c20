package app_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

// TestTopicIsExact: a notification to a topic, whose orchestrator is killed while it is resolved and sent,
// reaches everybody who was in it, and nobody twice without an unknown attempt on record.
func TestTopicIsExact(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, on backing) {
		w := &topicWorld{t: t, world: startSandbox(t)}
		w.file = writeConfig(t, w.world, on.yaml(t.TempDir()))
		w.exact()
	})
}

// topicPeople are in the topic: many pages.
const topicPeople = 3000

type topicWorld struct {
	t     *testing.T
	world *sandbox.Sandbox
	file  string
	front *process
	c     *caller
}

func (w *topicWorld) start() {
	w.front = startProcess(w.t, "orchestrator", []string{"-config", w.file}, nil)
	if w.c == nil {
		w.c = newCaller(w.t, "")
	}
	w.c.base = w.front.base
}

func (w *topicWorld) exact() {
	t := w.t
	slow(t, w.world, 50*time.Millisecond)
	w.start()
	importPeople(w.c, topicPeople, func(i int) string { return person(i, `,"topics":["vip"]`) })
	var sent accepted
	w.c.must(http.MethodPost, "/v1/notifications", `{"to":[{"topic":"vip"}],"channels":["push"],"content":{"title":"To all"}}`, &sent, http.StatusAccepted)
	var n notification
	made := func() int { return n.Counts.Pending + n.Counts.Sent + n.Counts.Failed }
	// The first time at once: the topic is hardly begun.
	for i, share := range []int{0, topicPeople / 10, topicPeople / 2} {
		eventually(t, time.Minute, fmt.Sprintf("%d deliveries", share), func() bool {
			status, err := w.c.do(t.Context(), http.MethodGet, "/v1/notifications/"+sent.ID, nil, &n)
			return err == nil && status == http.StatusOK && made() >= share
		})
		w.front.kill()
		t.Logf("kill %d: %+v", i+1, n.Counts)
		w.start()
	}
	eventually(t, 2*time.Minute, "all is terminal", func() bool {
		w.c.must(http.MethodGet, "/v1/notifications/"+sent.ID, nil, &n, http.StatusOK)
		return n.Status == "completed"
	})
	if want := (counts{Sent: topicPeople}); n.Counts != want {
		t.Errorf("counts %+v, want %+v", n.Counts, want)
	}
	w.compare(sent.ID)
}

// compare holds what the store says against what arrived.
func (w *topicWorld) compare(id string) {
	t := w.t
	arrived := map[string]int{}
	for id, copies := range w.world.IDs(sandbox.APNs) {
		arrived[strings.ToLower(id)] = copies
	}
	whom, unknowns, twice := map[string]int{}, 0, 0
	for cursor := ""; ; {
		var page struct {
			Data []struct {
				delivery
				Recipient string
			}
			NextCursor string `json:"next_cursor"`
		}
		w.c.must(http.MethodGet, "/v1/notifications/"+id+"/deliveries?limit=200&cursor="+cursor, nil, &page, http.StatusOK)
		for _, d := range page.Data {
			whom[d.Recipient]++
			copies := arrived[d.ID]
			delete(arrived, d.ID)
			if d.Unknown > 0 {
				unknowns++
			}
			if copies > 1 {
				twice++
			}
			if copies == 0 || copies > 1+d.Unknown {
				t.Errorf("%s arrived %d times with %d unknown attempts", d.ID, copies, d.Unknown)
			}
		}
		if cursor = page.NextCursor; cursor == "" {
			break
		}
	}
	if len(arrived) > 0 {
		t.Errorf("%d arrived that the store does not know", len(arrived))
	}
	if len(whom) != topicPeople {
		t.Errorf("%d people have a delivery, want %d", len(whom), topicPeople)
	}
	for who, n := range whom {
		if n != 1 {
			t.Errorf("%s has %d deliveries", who, n)
		}
	}
	t.Logf("%d with an unknown attempt, %d arrived twice", unknowns, twice)
}
