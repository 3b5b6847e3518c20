package app_test

import (
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

// TestHangupCategories: SIGHUP has accept, preview, what may be chosen and the links of mails follow the file's
// categories; which other settings have changed is told in one line, and a file with a mistake, wherever it is, changes
// nothing and is told of.
func TestHangupCategories(t *testing.T) {
	t.Parallel()
	world := startSandbox(t)
	const more = "categories: {news: {defaults: {email: true}}}\npublic_url: https://notify.example.com\ndata: "
	file := writeConfig(t, world, more+t.TempDir())
	p := startProcess(t, "orchestrator", []string{"-config", file}, nil)
	c := newCaller(t, p.base)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	hangup := func(replace, by, says string) {
		t.Helper()
		from := len(p.said())
		if !strings.Contains(string(text), replace) {
			t.Fatalf("the file has no %q", replace)
		}
		if err := os.WriteFile(file, []byte(strings.Replace(string(text), replace, by, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, time.Minute, "the log says "+says, func() bool { return strings.Contains(p.said()[from:], says) })
	}
	c.must(http.MethodPut, "/v1/recipients/u_1", `{"endpoints":[{"kind":"email","address":"ann@example.com"}]}`, nil, http.StatusCreated)
	const optOut = `{"news":{"email":false}}`
	// expect looks at a category that the person has turned off or not, by every way that asks the categories.
	expect := func(when, decision string, mayTurnOff bool) {
		t.Helper()
		const body = `{"to":[{"recipient":"u_1"}],"channels":["email"],"category":"news","content":{"title":"x"}}`
		var preview struct {
			Decisions []struct{ Decision, Reason string }
		}
		c.must(http.MethodPost, "/v1/notifications/preview", body, &preview, http.StatusOK)
		if len(preview.Decisions) != 1 || preview.Decisions[0].Decision != decision {
			t.Errorf("%s: the preview is %+v, want %s", when, preview, decision)
		}
		var got accepted
		c.must(http.MethodPost, "/v1/notifications", body, &got, http.StatusAccepted)
		if want := map[string]int{"deliver": 1, "skip": 0}[decision]; got.Deliveries != want {
			t.Errorf("%s: %d deliveries, want %d", when, got.Deliveries, want)
		}
		if got.Deliveries == 1 {
			id := c.deliveries(got.ID)[0].ID
			eventually(t, time.Minute, "the mail is there", func() bool { return len(world.Messages(sandbox.Filter{Service: sandbox.SMTP, ID: id})) == 1 })
			mail := world.Messages(sandbox.Filter{Service: sandbox.SMTP, ID: id})[0].Content
			if strings.Contains(mail, "List-Unsubscribe") != mayTurnOff {
				t.Errorf("%s: may be turned off %v, and the mail is\n%s", when, mayTurnOff, mail)
			}
		}
		if mayTurnOff {
			c.must(http.MethodPut, "/v1/recipients/u_1/preferences", optOut, nil, http.StatusOK)
			return
		}
		// Another channel: what is kept from before may be put back.
		c.must(http.MethodPut, "/v1/recipients/u_1/preferences", `{"news":{"email":false,"push":false}}`, nil, http.StatusUnprocessableEntity)
	}
	expect("at the start", "deliver", true) // turned off at the end of it
	expect("turned off", "skip", true)

	const now = "{news: {defaults: {email: true}}}"
	hangup(now, "{news: {mandatory: true}, \"*\": {defaults: {email: false}}}", `categories reloaded" changed="[* news]"`)
	expect("mandatory", "deliver", false)
	if strings.Contains(p.said(), "take a restart") {
		t.Errorf("a restart is asked for:\n%s", p.said())
	}
	for mistake, says := range map[string][2]string{
		"a value that is none": {"{news: {}}\nlog_level: loud", "log_level"},
		"another category's":   {`{news: {}, "*": {mandatory: true}}`, "categories.*.mandatory"},
		"no YAML":              {"{news: {}", "is no YAML"},
		"a route's setting":    {"{news: {}}\nchannels: {email: [email], push: [email]}", "channel push"},
	} {
		hangup(now, says[0], says[1])
		expect(mistake, "deliver", false)
	}
	hangup(now, "{news: {}}\nchannels: {email: [email], push: [email]}", "channel push")
	c.must(http.MethodPost, "/v1/routes/reload", nil, nil, http.StatusUnprocessableEntity)
	if strings.Contains(p.said(), "take a restart") || len(c.routes()) != 4 {
		t.Errorf("a file with mistakes was looked at for more, or changed the routes: %v\n%s", c.routes(), p.said())
	}
	hangup(now, now+"\nlog_level: debug\nretention: {finished: 48h}", `settings="[log_level retention.finished]"`)
	var done struct{ Restart []string }
	c.must(http.MethodPost, "/v1/routes/reload", nil, &done, http.StatusOK)
	if diff := cmp.Diff([]string{"log_level", "retention.finished"}, done.Restart); diff != "" {
		t.Error("what takes a restart: ", diff)
	}
	expect("as at the start again, and other settings changed", "skip", true)
}
