package app_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/carillon-notify/carillon/core/config"
	"github.com/carillon-notify/carillon/plugins/sdk"
	"github.com/carillon-notify/carillon/providers"
)

// playPager is a third party's plugin: it writes what it delivers into a file, one line each.
func playPager(version, ledger string) {
	if version == "broken" {
		os.Exit(3)
	}
	sdk.Serve(providers.Kind{
		Name: "pager", Channel: "beep", Doc: "Writes messages down.", MaxBatch: 10, Address: `[0-9]{4}`,
		Content: []byte(`{"type":"object","properties":{"beeps":{"type":"integer","maximum":3},"text":{"type":"string"}},"additionalProperties":false}`),
		Check: func(m *providers.Message) error {
			if len(m.Title)+len(m.Body) > 40 {
				return errors.New("a pager shows 40 characters; say less")
			}
			return nil
		},
		Open: func(context.Context, []byte) (providers.Provider, error) {
			f, err := os.OpenFile(ledger, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			return &pager{version, f}, err
		},
	})
}

type pager struct {
	version string
	ledger  *os.File
}

func (p *pager) Deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	if p.version == "crashing" {
		os.Exit(4)
	}
	select { // it takes its time, so that an exchange finds calls under way
	case <-time.After(20 * time.Millisecond):
	case <-ctx.Done():
		return ctx.Err()
	}
	for i := range batch {
		if _, err := fmt.Fprintf(p.ledger, "%s %s %s %s\n", batch[i].ID, p.version, batch[i].Address, batch[i].Content); err != nil {
			return err
		}
		report(providers.Result{ID: batch[i].ID, Outcome: providers.Accepted, ProviderID: p.version})
	}
	return nil
}

func (p *pager) Health(context.Context) providers.Health {
	return providers.Health{Status: providers.HealthOK, Pool: providers.PoolStats{Max: 1, Open: 1}}
}

func (p *pager) Close(context.Context) error { return p.ledger.Close() }

// putPager puts a version of the plugin into a directory as its author would: whole, by a rename.
func putPager(t *testing.T, dir, version, ledger string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("#!/bin/sh\nexec %s play %s %s\n", self, version, ledger)
	if err := os.WriteFile(filepath.Join(dir, ".new"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, ".new"), filepath.Join(dir, "pager")); err != nil {
		t.Fatal(err)
	}
}

// lines are the ledger's, in fields.
func lines(t *testing.T, ledger string) [][]string {
	t.Helper()
	text, err := os.ReadFile(ledger)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var out [][]string
	for line := range strings.Lines(string(text)) {
		out = append(out, strings.SplitN(strings.TrimSpace(line), " ", 4))
	}
	return out
}

type routeState struct {
	Name, Kind, State, Reason, Circuit, Isolation string
	Channels                                      []string
	Processes                                     int
	Pool                                          struct{ Max, Open int }
}

func (c *caller) routes() map[string]routeState {
	c.t.Helper()
	var list struct{ Data []routeState }
	c.must(http.MethodGet, "/v1/routes", nil, &list, http.StatusOK)
	out := map[string]routeState{}
	for _, r := range list.Data {
		out[r.Name] = r
	}
	return out
}

// TestIsolation runs all four built-in kinds in processes of their own, by configuration alone; the
// WebSocket gateway is reached through the proxy, and what a client acknowledges comes back.
func TestIsolation(t *testing.T) {
	t.Parallel()
	world := startSandbox(t)
	_, c := startApp(t, func(cfg *config.Config) {
		cfg.Routes = map[string]config.Route{"websocket": {Kind: "websocket", Isolation: config.IsolationProcess}}
		for _, kind := range []string{"apns", "fcm", "email"} {
			text, _ := world.Settings(kind)
			var settings config.Settings
			if err := json.Unmarshal(text, &settings); err != nil {
				t.Fatal(err)
			}
			cfg.Routes[kind] = config.Route{Kind: kind, Isolation: config.IsolationProcess, Settings: settings}
		}
	})
	arrived := live(t, c, "u_42")
	var got accepted
	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"email":"ann@example.com"},{"apns":"`+token64+`"},{"fcm":"fcm-token-of-a-phone"},{"websocket":"u_42"}],
		"content":{"title":"Hello","body":"from four processes"}}`, &got, http.StatusAccepted)
	select {
	case data := <-arrived:
		if data["title"] != "Hello" {
			t.Errorf("the live client got %v", data)
		}
	case <-time.After(time.Minute):
		t.Fatal("nothing arrived live")
	}
	eventually(t, time.Minute, "all are sent and the live one is delivered", func() bool {
		var n notification
		c.must(http.MethodGet, "/v1/notifications/"+got.ID, nil, &n, http.StatusOK)
		return n.Counts == counts{Sent: 3, Delivered: 1}
	})
	eventually(t, time.Minute, "each route is isolated, well, and has a connection", func() bool {
		for name, r := range c.routes() { // their figures are asked for now and then
			if r.Isolation != config.IsolationProcess || r.State != "ok" || r.Pool.Open == 0 && name != "websocket" {
				return false
			}
		}
		return true
	})
}

// TestPluginOfTheDirectory: a file in the plugins directory is a route, and its channel is usable.
func TestPluginOfTheDirectory(t *testing.T) {
	t.Parallel()
	ledger := filepath.Join(t.TempDir(), "ledger")
	_, c := startApp(t, func(cfg *config.Config) { putPager(t, cfg.Plugins.Dir, "v1", ledger) })
	if r := c.routes()["pager"]; r.Kind != "pager" || r.State != "ok" || !slices.Equal(r.Channels, []string{"beep"}) {
		t.Fatalf("the route is %+v", r)
	}
	var got accepted
	c.must(http.MethodPut, "/v1/recipients/u_7", `{"endpoints":[{"kind":"pager","address":"0007"}]}`, nil, http.StatusCreated)
	c.must(http.MethodPut, "/v1/templates/page", `{"locales":{"default":{"title":"{{n}}","beep":{"text":"ring {{n}}"}}}}`, nil, http.StatusCreated)
	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"kind":"pager","address":"0001"}],"content":{"title":"x","beep":{"beeps":2}}}`, &got, http.StatusAccepted)
	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"recipient":"u_7"}],"channels":["beep"],"template":"page","data":{"n":5}}`, &got, http.StatusAccepted)
	eventually(t, time.Minute, "both are written down", func() bool { return len(lines(t, ledger)) == 2 })
	blocks := map[string]string{}
	for _, l := range lines(t, ledger) {
		blocks[l[2]] = l[3]
	}
	if d := cmp.Diff(map[string]string{"0001": `{"beeps":2}`, "0007": `{"text":"ring 5"}`}, blocks); d != "" {
		t.Error(d)
	}
	for name, body := range map[string]string{
		"address":    `{"to":[{"kind":"pager","address":"12"}],"content":{"title":"x"}}`,
		"schema":     `{"to":[{"kind":"pager","address":"0001"}],"content":{"title":"x","beep":{"beeps":9}}}`,
		"limit":      `{"to":[{"kind":"pager","address":"0001"}],"content":{"title":"` + strings.Repeat("x", 50) + `"}}`,
		"other kind": `{"to":[{"kind":"fax","address":"0001"}],"content":{"title":"x"}}`,
	} {
		var problem struct{ Errors []struct{ Detail string } }
		c.must(http.MethodPost, "/v1/notifications", body, &problem, http.StatusUnprocessableEntity)
		if len(problem.Errors) != 1 {
			t.Errorf("%s: %+v", name, problem)
		}
	}
	document(t, c)
	c.must(http.MethodPut, "/v1/templates/page", `{"locales":{"default":{"title":"x","beep":{"txt":"x"}}}}`, nil, http.StatusUnprocessableEntity)
}

// document checks that /openapi.yaml describes the plugin's channel.
func document(t *testing.T, c *caller) {
	t.Helper()
	resp, err := http.Get(c.base + "/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var doc struct {
		Components struct {
			Schemas struct {
				Content struct {
					Properties map[string]struct {
						Properties map[string]map[string]any
					}
				} `yaml:"Content"`
				Target struct {
					Properties struct {
						Kind struct {
							Kinds map[string]struct{ Address string } `yaml:"x-kinds"`
						}
					}
				} `yaml:"Target"`
			}
		}
	}
	if err := yaml.NewDecoder(resp.Body).Decode(&doc); err != nil {
		t.Fatal(err)
	}
	s := doc.Components.Schemas
	if got := s.Content.Properties["beep"].Properties["beeps"]["type"]; got != "integer" {
		t.Errorf("content.beep.beeps is of the type %v", got)
	}
	if got := s.Target.Properties.Kind.Kinds["pager"].Address; got != `[0-9]{4}` {
		t.Errorf("the pager's address is %q", got)
	}
}

// TestReload exchanges the plugin's version while messages flow: each is delivered once.
func TestReload(t *testing.T) {
	t.Parallel()
	ledger, dir := filepath.Join(t.TempDir(), "ledger"), ""
	_, c := startApp(t, func(cfg *config.Config) {
		dir = cfg.Plugins.Dir
		putPager(t, dir, "v1", ledger)
	})
	const least, most = 300, 10_000 // before the exchange; and addresses
	var sending sync.WaitGroup
	accepts := make(chan string, most)
	var enough atomic.Int64 // messages
	enough.Store(most)
	under := make(chan struct{}) // closed when they flow
	sending.Go(func() {
		for i := range most {
			if i == least {
				close(under)
			}
			if int64(i) >= enough.Load() {
				return
			}
			var got accepted
			c.must(http.MethodPost, "/v1/notifications", fmt.Sprintf(`{"to":[{"kind":"pager","address":"%04d"}],"content":{"title":"x"}}`, i), &got, http.StatusAccepted)
			accepts <- got.ID
		}
	})
	<-under
	eventually(t, time.Minute, "the first version delivers", func() bool { return len(lines(t, ledger)) > 0 })
	putPager(t, dir, "v2", ledger)
	var done struct {
		Added, Changed, Removed []string
		Faults                  []any
	}
	c.must(http.MethodPost, "/v1/routes/reload", nil, &done, http.StatusOK)
	if !slices.Equal(done.Changed, []string{"pager"}) || len(done.Added)+len(done.Removed)+len(done.Faults) > 0 {
		t.Errorf("the reload came to %+v", done)
	}
	enough.Store(int64(len(accepts)) + least) // after it
	sending.Wait()
	close(accepts)
	all := len(accepts)
	for id := range accepts {
		eventually(t, time.Minute, id+" is sent", func() bool {
			var n notification
			c.must(http.MethodGet, "/v1/notifications/"+id, nil, &n, http.StatusOK)
			return n.Counts == counts{Sent: 1}
		})
	}
	seen, versions := map[string]int{}, map[string]int{}
	for _, l := range lines(t, ledger) {
		seen[l[0]]++
		versions[l[1]]++
	}
	if len(seen) != all || versions["v1"]+versions["v2"] != all || versions["v1"] == 0 || versions["v2"] == 0 {
		t.Errorf("%d messages of %d were delivered as %v", len(seen), all, versions)
	}
	// Nothing has changed: nothing is done.
	c.must(http.MethodPost, "/v1/routes/reload", nil, &done, http.StatusOK)
	if len(done.Changed)+len(done.Added)+len(done.Removed) > 0 {
		t.Errorf("a reload of nothing came to %+v", done)
	}
}

// TestBrokenPlugin: what cannot be started is no reason not to start; mended, it is there. One that breaks
// later holds its messages until it is mended.
func TestBrokenPlugin(t *testing.T) {
	t.Parallel()
	ledger, dir := filepath.Join(t.TempDir(), "ledger"), ""
	_, c := startApp(t, func(cfg *config.Config) {
		dir = cfg.Plugins.Dir
		putPager(t, dir, "broken", ledger)
	})
	if r := c.routes()["pager"]; r.State != "down" || !strings.Contains(r.Reason, "exit code 3") {
		t.Errorf("the broken plugin's route is %+v", r)
	}
	putPager(t, dir, "crashing", ledger)
	c.must(http.MethodPost, "/v1/routes/reload", nil, nil, http.StatusOK)
	var got accepted
	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"kind":"pager","address":"0001"}],"unknown":"retry","content":{"title":"x"}}`, &got, http.StatusAccepted)
	eventually(t, time.Minute, "the crash is on record", func() bool {
		d := c.deliveries(got.ID)
		return len(d) == 1 && d[0].Unknown > 0
	})
	putPager(t, dir, "v3", ledger)
	c.must(http.MethodPost, "/v1/routes/reload", nil, nil, http.StatusOK)
	eventually(t, 30*time.Second, "it is delivered after all", func() bool { return len(lines(t, ledger)) == 1 })
	// A broken successor: the one before goes on.
	putPager(t, dir, "broken", ledger)
	var done struct {
		Faults []struct{ Route, Reason string }
	}
	c.must(http.MethodPost, "/v1/routes/reload", nil, &done, http.StatusOK)
	if len(done.Faults) != 1 || done.Faults[0].Route != "pager" {
		t.Errorf("the reload came to %+v", done)
	}
	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"kind":"pager","address":"0002"}],"content":{"title":"x"}}`, &got, http.StatusAccepted)
	eventually(t, time.Minute, "the version before delivers", func() bool { return len(lines(t, ledger)) == 2 })
}

// TestStandIn: while the first of two routes of a kind is paused, the second one takes what comes.
func TestStandIn(t *testing.T) {
	t.Parallel()
	world := startSandbox(t)
	_, c := startApp(t, func(cfg *config.Config) {
		text, _ := world.Settings("email")
		var settings config.Settings
		if err := json.Unmarshal(text, &settings); err != nil {
			t.Fatal(err)
		}
		cfg.Routes = map[string]config.Route{"first": {Kind: "email", Settings: settings}, "second": {Kind: "email", Settings: settings}}
	})
	send := func() string {
		var got accepted
		c.must(http.MethodPost, "/v1/notifications", `{"to":[{"email":"ann@example.com"}],"content":{"title":"x","body":"y"}}`, &got, http.StatusAccepted)
		return c.deliveries(got.ID)[0].Route
	}
	var routes []string
	routes = append(routes, send())
	c.must(http.MethodPost, "/v1/routes/first/pause", nil, nil, http.StatusNoContent)
	routes = append(routes, send())
	c.must(http.MethodPost, "/v1/routes/second/pause", nil, nil, http.StatusNoContent)
	routes = append(routes, send())
	c.must(http.MethodPost, "/v1/routes/first/resume", nil, nil, http.StatusNoContent)
	routes = append(routes, send())
	if d := cmp.Diff([]string{"first", "second", "first", "first"}, routes); d != "" {
		t.Error(d)
	}
}
