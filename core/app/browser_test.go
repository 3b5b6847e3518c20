package app_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/app"
	"github.com/carillon-notify/carillon/core/config"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

// browse opens a tab that is logged in.
func browse(t *testing.T, base string) *coretest.Tab {
	t.Helper()
	p := coretest.Chromium(t)
	p.Go(base + "/console/")
	p.Type("#key", testKey+"\n")
	p.WaitText("header", "Log out")
	return p
}

// clean fails the test if a page had anything to complain of, or asked another host for anything.
func clean(t *testing.T, p *coretest.Tab, base string) {
	t.Helper()
	for _, problem := range p.Problems() {
		t.Errorf("the browser tells of %s", problem)
	}
	for _, host := range p.Hosts() {
		if host != strings.TrimPrefix(base, "http://") {
			t.Errorf("a page asked %s", host)
		}
	}
}

// everyKind is what reaches all four providers, with a content given as JSON.
func everyKind(content string) string {
	return `{"to":[{"email":"ann@example.com"},{"apns":"` + token64 + `"},{"fcm":"fcm-token-of-a-phone"},{"websocket":"u_42"}],"content":` + content + `}`
}

// TestBrowserLogin types keys: a wrong one is refused, the right one leads to the page that was asked for.
func TestBrowserLogin(t *testing.T) {
	t.Parallel()
	a, _ := startApp(t, nil)
	p := coretest.Chromium(t)
	p.Go(a.URL() + "/console/live?recipient=u_7")
	p.Type("#key", "car_wrong\n")
	p.WaitText(".error", "nobody's API key")
	p.Forget() // Chromium tells of a 401 in its console
	p.Type("#key", testKey+"\n")
	p.WaitText("#connection", "connected")
	var at, cookies string
	p.Eval("location.pathname + location.search", &at)
	if at != "/console/live?recipient=u_7" {
		t.Errorf("after the login the browser is at %s", at)
	}
	p.Eval("document.cookie", &cookies)
	if cookies != "" {
		t.Errorf("a script sees the cookie %q", cookies)
	}
	p.Click("header button") // log out
	p.WaitText("h1", "Log in")
	p.Go(a.URL() + "/console/")
	p.WaitText("h1", "Log in")
	clean(t, p, a.URL())
}

// TestBrowserOperator: an operator pauses a route, sees what waits, lets it go, and reads what became of
// it, all in pages that keep themselves up to date.
func TestBrowserOperator(t *testing.T) {
	t.Parallel()
	a, c := startApp(t, func(cfg *config.Config) { // as the sandbox would set it, with a rate
		world := startSandbox(t)
		cfg.Routes = map[string]config.Route{"websocket": {Kind: "websocket"}}
		for _, kind := range []string{"apns", "fcm", "email"} {
			text, _ := world.Settings(kind)
			settings := config.Settings{}
			if err := json.Unmarshal(text, &settings); err != nil {
				t.Fatal(err)
			}
			cfg.Routes[kind] = config.Route{Kind: kind, Rate: "500/s", Settings: settings}
		}
	})
	p := browse(t, a.URL())
	for _, route := range []string{"apns", "fcm", "email", "websocket"} {
		p.WaitText("#routes", route)
	}
	p.WaitText("#routes", "500/s")
	p.WaitText("#recent", "Nothing was sent yet")
	p.Click("#pause-apns")
	p.WaitText("#routes .warm", "paused")
	p.Wait(`document.querySelector("#resume-apns")`)
	var got accepted
	c.must(http.MethodPost, "/v1/notifications", everyKind(`{"title":"Hello","body":"Your first notification"}`), &got, http.StatusAccepted)
	short := got.ID[len(got.ID)-8:]
	p.WaitText("#recent", short) // without a reload
	p.WaitText("#recent", "3 sent")
	p.WaitText("#recent", "1 pending")
	p.Wait(`[...document.querySelectorAll("#routes tr")].find((e) => e.innerText.includes("apns")).innerText.includes("normal: 1 ")`)
	p.Shoot("overview")
	p.Click("#resume-apns")
	p.WaitText("#recent", "4 sent")
	p.Click("#recent a")
	p.WaitText("#timeline", "taken by APNs")
	for _, want := range []string{"accepted", "resolved", "started", "attempt", "250 2.0.0", "route apns", "a***@example.com"} {
		p.WaitText("#timeline", want)
	}
	if text := p.Text("body"); strings.Contains(text, "ann@example.com") || strings.Contains(text, token64) {
		t.Error("an address is shown in the clear")
	}
	p.Click("details summary") // what was sent
	p.WaitText("details", "Your first notification")
	p.Shoot("notification")

	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"email":"ann@example.com"}],"content":{"title":"later"},"delay":"1h"}`, &got, http.StatusAccepted)
	p.Go(a.URL() + "/console/notifications?status=scheduled")
	p.Click("#list a")
	p.Click("#state summary")
	p.Wait(`document.querySelector("#state details[open]")`)
	p.Click("#cancel")
	p.WaitText("#state", "1 cancelled")
	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"email":"dead@example.com"}],"content":{"title":"x"}}`, &got, http.StatusAccepted)
	p.Go(a.URL() + "/console/dead")
	p.WaitText("#list", "550 5.1.1")
	p.WaitText("#list", "d***@example.com")
	clean(t, p, a.URL())
}

// TestBrowserSuppressed: an operator asks why nothing comes to a mailbox, and lifts that, having been asked again; the list,
// which keeps itself up to date, shows no address.
func TestBrowserSuppressed(t *testing.T) {
	t.Parallel()
	a, c := startApp(t, nil)
	c.must(http.MethodPut, "/v1/recipients/u_1", `{"endpoints":[{"kind":"email","address":"dead@example.com"}]}`, nil, http.StatusCreated)
	p := browse(t, a.URL())
	p.Go(a.URL() + "/console/suppressions")
	p.WaitText("#list", "No address is suppressed")
	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"recipient":"u_1"}],"channels":["email"],"content":{"title":"Hello"}}`, nil, http.StatusAccepted)
	p.WaitText("#list", "550 5.1.1") // without a reload
	p.WaitText("#list", "u_1")
	if strings.Contains(p.Text("body"), "dead@") {
		t.Error("the list shows an address")
	}
	p.Type("#address", "Dead@Example.com\n")
	p.WaitText("#answer", "550 5.1.1")
	p.WaitText("#answer", "u_1")
	var at string
	p.Eval("location.href", &at)
	if at != a.URL()+"/console/suppressions" {
		t.Errorf("the browser is at %s, which goes into its history", at)
	}
	p.Shoot("suppressed")
	p.Wait(`!document.querySelector("#lift").checkVisibility()`)
	p.Click("#answer summary")
	p.Wait(`document.querySelector("#lift").checkVisibility()`)
	p.Click("#lift")
	p.WaitText("#list", "No address is suppressed")
	p.Type("#address", "dead@example.com\n")
	p.WaitText("#answer", "not suppressed")
	c.must(http.MethodGet, "/v1/suppressions/email/dead@example.com", nil, nil, http.StatusNotFound)
	clean(t, p, a.URL())
}

// TestBrowserLive: the live page gets what REST sends it, acknowledges it, and the delivery is delivered.
// When the orchestrator starts again the page comes back by itself.
func TestBrowserLive(t *testing.T) {
	t.Parallel()
	world := startSandbox(t)
	file := writeConfig(t, world, "data: "+t.TempDir())
	listen := coretest.FreeAddr(t) // nobody else has it while nobody listens there
	first := startProcess(t, "orchestrator", []string{"-config", file, "-listen", listen}, nil)
	p := browse(t, first.base)
	p.Go(first.base + "/console/live?recipient=u_42")
	send := func(title string) {
		t.Helper()
		c := newCaller(t, first.base)
		var got accepted
		c.must(http.MethodPost, "/v1/notifications", everyKind(`{"title":"`+title+`","body":"To a browser","url":"https://example.com/7","data":{"screen":"order"}}`), &got, http.StatusAccepted)
		p.WaitText("#messages li", title)
		p.WaitText("#messages li", "acknowledged")
		eventually(t, time.Minute, "the delivery is delivered", func() bool {
			for _, d := range c.deliveries(got.ID) {
				if d.Channel == "in_app" {
					return d.State == "delivered"
				}
			}
			return false
		})
	}
	p.WaitText("#connection", "connected")
	send("before")
	p.WaitText("#messages li", `{"screen":"order"}`)
	p.Shoot("live")
	clean(t, p, first.base)
	if err := first.interrupt(); err != nil {
		t.Fatalf("Ctrl-C: %v\n%s", err, first.said())
	}
	p.WaitText("#connection", "disconnected")
	startProcess(t, "orchestrator", []string{"-config", file, "-listen", listen}, nil)
	p.Wait(`document.querySelector("#connection").innerText === "connected"`)
	send("after")
}

// TestBrowserQueues: asynqmon renders in our frame: its queues, a queue's tasks with nothing but ids, and
// no complaint of the browser about what was taken out of its page.
func TestBrowserQueues(t *testing.T) {
	t.Parallel()
	a, c := startApp(t, nil)
	p := browse(t, a.URL())
	var got accepted
	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"email":"ann@example.com"}],"content":{"title":"s3cret"},"delay":"2m"}`, &got, http.StatusAccepted)
	p.Go(a.URL() + "/console/queues/")
	for _, route := range []string{"apns", "fcm", "email", "websocket"} {
		for _, lane := range []string{"critical", "normal", "bulk"} {
			p.WaitText("table", route+"."+lane)
		}
	}
	p.Shoot("queues")
	p.Go(a.URL() + "/console/queues/queues/email.normal?status=scheduled")
	p.WaitText("table", "batch ")
	if text := p.Text("body"); strings.Contains(text, "s3cret") || strings.Contains(text, "ann@") {
		t.Errorf("a task shows what is sent: %s", text)
	}
	p.Shoot("queue")
	for path, shows := range map[string]string{"servers": "email.normal", "redis": "Redis", "schedulers": "Scheduler"} {
		p.Go(a.URL() + "/console/queues/" + path)
		p.WaitText("#root", shows)
	}
	p.Click(`body > a[href="/console/"]`)
	p.WaitText("h1", "Overview")
	clean(t, p, a.URL())
}

// TestBrowserRunsNothing sends what would run if any page took it for markup, on every channel, and
// opens every page that shows it.
func TestBrowserRunsNothing(t *testing.T) {
	t.Parallel()
	a, c := startApp(t, nil)
	const evil = `<img src=x onerror="alert(1)"><script>alert(2)</script>"'><svg onload=alert(3)>`
	quoted, err := json.Marshal(evil)
	if err != nil {
		t.Fatal(err)
	}
	e := string(quoted)
	p := browse(t, a.URL())
	p.Go(a.URL() + "/console/live?recipient=u_42")
	p.WaitText("#connection", "connected")
	var got accepted
	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"email":"dead@example.com"},{"email":"ann@example.com"},{"apns":"`+token64+`"},{"fcm":"fcm-token-of-a-phone"},{"websocket":"u_42"}],
		"category":`+e+`,"collapse_key":"<script>alert(4)</script>","metadata":{"x":`+e+`},
		"content":{"title":`+e+`,"body":`+e+`,"url":"https://example.com/?q=%22%3E%3Cscript%3Ealert(5)%3C/script%3E","data":{"x":`+e+`},"email":{"subject":`+e+`,"html":`+e+`,"text":`+e+`}}}`, &got, http.StatusAccepted)
	p.WaitText("#messages li", "<script>alert(2)</script>")
	eventually(t, time.Minute, "all is settled", func() bool {
		var n notification
		c.must(http.MethodGet, "/v1/notifications/"+got.ID, nil, &n, http.StatusOK)
		return n.Status == "completed"
	})
	pages := []string{"/console/", "/console/notifications", "/console/notifications/" + got.ID, "/console/dead", "/console/notifications?recipient=%22%3E%3Cscript%3Ealert(7)%3C/script%3E", "/console/dead?route=%22%3E%3Cscript%3Ealert(8)%3C/script%3E", "/sandbox/", "/sandbox/?address=%22%3E%3Cscript%3Ealert(9)%3C/script%3E"}
	for i := range 3 {
		pages = append(pages, fmt.Sprintf("/sandbox/messages/%d", i+1))
	}
	for _, path := range pages {
		p.Go(a.URL() + path)
		p.Eval(`document.querySelectorAll("details").forEach((d) => d.open = true)`, nil)
		p.Eval("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))", nil)
		var foreign []string
		p.Eval(`[...document.querySelectorAll("script, img, svg, iframe")].filter((e) => !["/console/static/", "/sandbox/"].some((s) => (e.getAttribute("src") ?? "").startsWith(s))).map((e) => e.outerHTML)`, &foreign)
		if len(foreign) > 0 {
			t.Errorf("%s took content for markup: %v", path, foreign)
		}
	}
	p.Go(a.URL() + "/console/notifications/" + got.ID)
	if text := p.Text("body"); !strings.Contains(text, "<script>alert(4)</script>") {
		t.Error("the page does not show the content at all")
	}
	clean(t, p, a.URL())
}

// TestBrowserCurl runs the lines that the pages offer to copy.
func TestBrowserCurl(t *testing.T) {
	t.Parallel()
	installed(t, "curl")
	a, c := startApp(t, nil)
	var got accepted
	c.must(http.MethodPost, "/v1/notifications", everyKind(`{"title":"x"}`), &got, http.StatusAccepted)
	p := browse(t, a.URL())
	for path, want := range map[string]int{"/console/": 2, "/console/live?recipient=it%27s": 1, "/console/notifications/" + got.ID: 3, "/docs": 6} {
		p.Go(a.URL() + path)
		var lines []string
		p.Eval(`[...document.querySelectorAll("pre")].flatMap((e) => e.innerText.split("\n")).filter((l) => l.startsWith("curl "))`, &lines)
		if len(lines) != want {
			t.Errorf("%s offers %d lines, want %d: %q", path, len(lines), want, lines)
		}
		for _, line := range lines {
			cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.Replace(line, "curl ", "curl --fail-with-body ", 1))
			cmd.Env = append(os.Environ(), "CARILLON_API_KEY="+testKey)
			if out, err := cmd.CombinedOutput(); err != nil || !json.Valid(out) && len(out) > 0 {
				t.Errorf("%s: %s: %v: %s", path, line, err, out)
			}
		}
	}
	clean(t, p, a.URL())
}

// TestBrowserScreens opens every page on a desk and on a phone, light and dark: none is wider than the
// screen, and none complains.
func TestBrowserScreens(t *testing.T) {
	t.Parallel()
	a, c := startApp(t, nil)
	ids := fill(t, a, c)
	p := browse(t, a.URL())
	for name, page := range map[string]struct{ path, ready string }{
		"overview": {"/console/", "#recent tr"}, "notifications": {"/console/notifications", "#list tr"}, "dead": {"/console/dead", "#list tr"}, "suppressed": {"/console/suppressions", "#list tr"}, "live": {"/console/live", "#connection.good"},
		"held": {"/console/notifications/" + ids[0], "#timeline tr"}, "failed": {"/console/notifications/" + ids[1], "#timeline tr"},
		"sandbox": {"/sandbox/", "#messages tr"}, "message": {"/sandbox/messages/1", "pre"}, "docs": {"/docs", "pre"},
	} {
		for screen, s := range map[string]struct {
			width, height int
			dark          bool
		}{"desk": {1280, 800, false}, "desk-dark": {1280, 800, true}, "phone": {390, 844, false}, "phone-dark": {390, 844, true}} {
			p.Screen(s.width, s.height, s.dark)
			p.Go(a.URL() + page.path)
			p.Wait(fmt.Sprintf("document.querySelector(%q)", page.ready))
			p.Shoot(name + "-" + screen)
			var is struct {
				Width int
				Dark  bool
			}
			p.Eval(`({width: document.documentElement.scrollWidth, dark: getComputedStyle(document.body).backgroundColor.match(/\d+/g).every((c) => c < 64)})`, &is)
			if is.Width > s.width || is.Dark != s.dark {
				t.Errorf("%s on a %s is %d wide, dark: %v", name, screen, is.Width, is.Dark)
			}
		}
	}
	clean(t, p, a.URL())
}

// fill gives an orchestrator something to show: held, failed, scheduled, skipped, paused. The first two
// notifications' ids are returned.
func fill(t *testing.T, a *app.App, c *caller) (ids []string) {
	t.Helper()
	if err := a.Sandbox().Script(sandbox.FCM, sandbox.Script{Errors: map[string]float64{"UNAVAILABLE": 1}}); err != nil {
		t.Fatal(err)
	}
	c.must(http.MethodPut, "/v1/recipients/u_1", `{"locale":"fr-CA","attributes":{"name":"Ann"},"endpoints":[{"kind":"apns","address":"`+token64+`"},{"kind":"email","address":"ann@example.com"}]}`, nil, http.StatusCreated)
	for _, body := range []string{
		everyKind(`{"title":"A rather long title that goes on and on, for it has much to say","body":"And_a_word_without_any_place_to_break_it_at_which_is_longer_than_a_phone_is_wide"}`),
		`{"to":[{"apns":"dead` + token64[4:] + `"},{"email":"dead@example.com"},{"email":"ann@example.com"},{"recipient":"nobody"}],"priority":"critical","category":"orders","metadata":{"trace":"abc"},"content":{"title":"x"}}`,
		`{"to":[{"recipient":"u_1"}],"template":"order-shipped","data":{"order":7},"delay":"1h","channels":["push","email"]}`,
	} {
		var got accepted
		c.must(http.MethodPost, "/v1/notifications", body, &got, http.StatusAccepted)
		ids = append(ids, got.ID)
	}
	c.must(http.MethodPost, "/v1/routes/apns/pause", nil, nil, http.StatusNoContent)
	eventually(t, time.Minute, "something failed and something is held", func() bool {
		failed, held := c.deliveries(ids[1]), c.deliveries(ids[0])
		n := 0
		for _, d := range failed {
			if d.State == "failed" {
				n++
			}
		}
		for _, d := range held {
			if d.Unknown > 0 {
				n++
			}
		}
		return n == 3
	})
	return ids
}
