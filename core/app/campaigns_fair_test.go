package app_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/config"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

// arrivals is the order in which mails of different titles arrive.
type arrivals struct {
	mu     sync.Mutex
	heard  *sync.Cond
	titles []string
	at     []time.Time
}

// hearken notes what arrives from now on, until the test ends.
func hearken(t *testing.T, world *sandbox.Sandbox, service sandbox.Service) *arrivals {
	t.Helper()
	a := &arrivals{}
	a.heard = sync.NewCond(&a.mu)
	messages, cancel := world.Subscribe(service, 1<<17)
	done := make(chan struct{})
	stop := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case m := <-messages:
				a.mu.Lock()
				a.titles, a.at = append(a.titles, m.Title), append(a.at, m.At)
				a.heard.Broadcast()
				a.mu.Unlock()
			case <-stop:
				return
			}
		}
	}()
	t.Cleanup(func() { cancel(); close(stop); <-done })
	return a
}

func (a *arrivals) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.titles)
}

// await waits until n mails of a title arrived, and says how many of others did after the first `from`.
func (a *arrivals) await(title string, n, from int) (others int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for {
		got := 0
		for i := from; i < len(a.titles); i++ {
			if a.titles[i] != title {
				continue
			}
			if got++; got == n {
				return i + 1 - from - n
			}
		}
		a.heard.Wait()
	}
}

// fairHuge is the audience of the campaigns that must not be in anybody's way.
const fairHuge = 4000

// importMany stores recipients, each with a mailbox and a device.
func importMany(c *caller, n int) {
	c.t.Helper()
	importPeople(c, n, func(i int) string {
		return fmt.Sprintf(`{"id":"u_%d","endpoints":[{"kind":"email","address":"u%d@example.com"},{"kind":"fcm","address":"device-token-%d"}]}`, i, i, i)
	})
}

func (c *caller) campaign(spec map[string]any) (id string) {
	c.t.Helper()
	var v campaignView
	spec["now"] = true
	c.must(http.MethodPost, "/v1/campaigns", spec, &v, http.StatusCreated)
	return v.ID
}

func (c *caller) campaignView(id string) (v campaignView) {
	c.t.Helper()
	c.must(http.MethodGet, "/v1/campaigns/"+id, nil, &v, http.StatusOK)
	return v
}

// TestCampaignsSideBySide: three campaigns to everybody over one route, one whose service stalls, one at 1/s
// and one whose template fails for everyone; fourteen small ones go between, one after the other. None waits
// for more than what workers have in hand and a few batches of each campaign before it.
func TestCampaignsSideBySide(t *testing.T) {
	t.Parallel()
	onBoth(t, sideBySide)
}

func sideBySide(t *testing.T, on backing) {
	world := startSandbox(t)
	if err := world.Script(sandbox.FCM, sandbox.Script{Stall: 1}); err != nil {
		t.Fatal(err)
	}
	const rate, concurrency, mails = 400, 4, 20 // messages a second; rounds at a time; mails of a batch
	_, c := startApp(t, func(cfg *config.Config) {
		on.set(cfg)
		cfg.Routes = map[string]config.Route{"websocket": {Kind: "websocket"}}
		for kind, rate := range map[string]string{"email": fmt.Sprintf("%d/s", rate), "fcm": ""} {
			text, _ := world.Settings(kind)
			settings := config.Settings{}
			if err := json.Unmarshal(text, &settings); err != nil {
				t.Fatal(err)
			}
			cfg.Routes[kind] = config.Route{Kind: kind, Rate: rate, Concurrency: concurrency, Settings: settings}
		}
	})
	importMany(c, fairHuge)
	c.must(http.MethodPut, "/v1/templates/broken", `{"locales":{"default":{"title":"{{ recipient.attributes.nope }}","body":"x"}}}`, nil, http.StatusCreated)
	heard := hearken(t, world, sandbox.SMTP)
	mail := func(name, rate string, audience map[string]any) string {
		return c.campaign(map[string]any{"name": name, "audience": audience, "channels": []string{"email"}, "content": map[string]any{"title": name, "body": "x"}, "rate": rate})
	}
	all := map[string]any{"all": true}
	var huge []string
	for i := range 3 {
		huge = append(huge, mail(fmt.Sprintf("huge-%d", i), "", all))
	}
	slow := mail("slow", "1/s", all)
	stalled := c.campaign(map[string]any{"name": "stalled", "audience": all, "channels": []string{"push"}, "content": map[string]any{"title": "stalled"}})
	broken := c.campaign(map[string]any{"name": "broken", "audience": all, "channels": []string{"email"}, "template": "broken"})
	for i := range huge {
		heard.await(fmt.Sprintf("huge-%d", i), 1, 0)
	}
	var people []string
	for i := range 20 {
		people = append(people, fmt.Sprintf("u_%d", i))
	}
	var waited []int
	for i := range 8 {
		title, from := fmt.Sprintf("small-%d", i), heard.count()
		mail(title, "", map[string]any{"recipients": people})
		waited = append(waited, heard.await(title, len(people), from))
	}
	t.Logf("before each of the small ones went so many others: %d", waited)
	for _, id := range append(huge, slow, stalled) {
		if v := c.campaignView(id); v.State != "running" {
			t.Fatalf("campaign %s is %s: too small to be in the way", id, v.State)
		}
	}
	eventually(t, time.Minute, "the broken campaign is through with everybody", func() bool {
		v := c.campaignView(broken)
		return v.State == "completed" && v.Progress.Skipped == fairHuge
	})
	// What the route does in a second, and another for the planner on a busy machine; what its workers have in hand, and the batches that wait in any case.
	if slices.Sort(waited); waited[len(waited)/2] > 2*rate+concurrency*mails+4*len(huge)*mails {
		t.Errorf("a small campaign waits for %d others", waited[len(waited)/2])
	}
}
