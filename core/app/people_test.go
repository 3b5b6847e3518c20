package app_test

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/config"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

var oneClick = regexp.MustCompile(`(?s)List-Unsubscribe: *\s*<https?://[^/>]*(/unsubscribe/[^>]+)>`)

// TestUnsubscribe presses the button of a mail as a mail program does: the next mail of that category is
// skipped, others go on.
func TestUnsubscribe(t *testing.T) {
	t.Parallel()
	a, c := startApp(t, func(cfg *config.Config) {
		cfg.PublicURL = "https://notify.example.com"
		cfg.Categories = map[string]config.Category{"security": {Mandatory: true}}
	})
	c.must(http.MethodPut, "/v1/recipients/u_42", `{"endpoints":[{"kind":"email","address":"ann@example.com"}]}`, nil, http.StatusCreated)
	sent := 0
	send := func(category string, deliveries int) string {
		t.Helper()
		var got accepted
		c.must(http.MethodPost, "/v1/notifications", `{"to":[{"recipient":"u_42"}],"channels":["email"],"content":{"title":"Hello","body":"There is news"},"category":"`+category+`"}`, &got, http.StatusAccepted)
		if got.Deliveries != deliveries {
			t.Fatalf("%s: %d deliveries, want %d", category, got.Deliveries, deliveries)
		}
		if sent += deliveries; deliveries == 0 {
			return ""
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := a.Sandbox().Wait(ctx, sandbox.SMTP, sent); err != nil {
			t.Fatal(err)
		}
		for _, m := range a.Sandbox().Messages(sandbox.Filter{Service: sandbox.SMTP, ID: c.deliveries(got.ID)[0].ID}) {
			return m.Content
		}
		t.Fatalf("%s: no mail", category)
		return ""
	}
	mail := send("news", 1)
	link := oneClick.FindStringSubmatch(strings.ReplaceAll(mail, "\r\n ", ""))
	if link == nil || !strings.Contains(mail, "List-Unsubscribe-Post: List-Unsubscribe=One-Click") {
		t.Fatalf("the mail has no one-click link:\n%s", mail)
	}
	if mail := send("security", 1); strings.Contains(mail, "List-Unsubscribe") {
		t.Errorf("a mandatory mail offers to unsubscribe:\n%s", mail)
	}
	resp, err := c.http.Post(c.base+link[1], "application/x-www-form-urlencoded", strings.NewReader("List-Unsubscribe=One-Click"))
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != http.StatusOK {
		t.Fatalf("one click answered %d", resp.StatusCode)
	}
	send("news", 0)
	send("orders", 1)
	send("security", 1)
}

// TestFallback goes the whole way with a released centrifuge client: in-app, and when nobody says that it came,
// push, and then mail; what is acknowledged goes no further.
func TestFallback(t *testing.T) {
	t.Parallel()
	_, c := startApp(t, nil)
	for id, phone := range map[string]string{"u_42": "phone-of-ann", "u_away": "dead-phone"} {
		c.must(http.MethodPut, "/v1/recipients/"+id, `{"endpoints":[{"kind":"fcm","address":"`+phone+`"},{"kind":"email","address":"`+id+`@example.com"}]}`, nil, http.StatusCreated)
	}
	var minted struct{ Token string }
	c.must(http.MethodPost, "/v1/recipients/u_42/token", nil, &minted, http.StatusOK)
	js := startJS(t, c.base)
	js.do(`{"cmd":"connect"}`)
	js.want("getToken")
	js.do(fmt.Sprintf(`{"cmd":"token","token":%q}`, minted.Token))
	js.want("subscribed")
	tell := func(who, after string) string {
		t.Helper()
		var got accepted
		c.must(http.MethodPost, "/v1/notifications", `{"to":[{"recipient":"`+who+`"}],"mode":"fallback","fallback_after":"`+after+`","content":{"title":"Hello","body":"Somebody is at the door"}}`, &got, http.StatusAccepted)
		if got.Deliveries != 3 {
			t.Fatalf("%d deliveries, want one for each channel", got.Deliveries)
		}
		return got.ID
	}
	become := func(id string, want ...string) {
		t.Helper()
		got := map[string]string{}
		eventually(t, time.Minute, strings.Join(want, ", "), func() bool {
			same := true
			for i, d := range c.deliveries(id) { // in_app, push, email
				got[d.Channel] = strings.TrimSpace(d.State + " " + d.Code)
				same = same && strings.HasPrefix(got[d.Channel], want[i])
			}
			return same
		})
	}
	ack := func(id string) {
		js.do(fmt.Sprintf(`{"cmd":"rpc","method":"ack","data":{"ids":[%q]}}`, id))
		js.want("rpc")
	}

	// At once: nothing else goes.
	id := tell("u_42", "1m")
	ack(js.want("publication").ID)
	become(id, "delivered", "cancelled acknowledged", "cancelled acknowledged")

	// Late: the push went meanwhile, the mail does not.
	id = tell("u_42", "3s")
	live := js.want("publication").ID
	become(id, "sent", "sent", "pending")
	ack(live)
	become(id, "delivered", "sent", "cancelled acknowledged")
	var steps struct {
		Data []struct{ Step, Channel, Code, Recipient string }
	}
	c.must(http.MethodGet, "/v1/notifications/"+id+"/timeline", nil, &steps, http.StatusOK)
	var mail []string
	for _, s := range steps.Data {
		if s.Channel == "email" {
			mail = append(mail, strings.TrimSpace(s.Step+" "+s.Code))
		}
	}
	if got := strings.Join(mail, ", "); got != "resolved, held fallback, cancelled acknowledged" {
		t.Errorf("the timeline says of the mail: %s", got)
	}

	// Nobody is there: the push goes at once, long before its time. The service says that the phone is gone,
	// and the mail goes at once as well.
	id = tell("u_away", "1h")
	become(id, "sent", "failed", "sent")

	// Nobody has a device any more, and the mail is next.
	var preview struct {
		Decisions []struct{ Channel, Decision, Reason string }
	}
	c.must(http.MethodPost, "/v1/notifications/preview", `{"to":[{"recipient":"u_away"}],"mode":"fallback","content":{"title":"Hello","body":"Once more"}}`, &preview, http.StatusOK)
	if got := fmt.Sprint(preview.Decisions); got != "[{in_app deliver } {push skip no_endpoint} {email wait fallback}]" {
		t.Errorf("the preview after the device was dropped: %s", got)
	}
}

// TestTopics sends to two topics that share recipients, to one of them by name beside them, and to an address:
// each gets it once, and who joins later does not.
func TestTopics(t *testing.T) {
	t.Parallel()
	a, c := startApp(t, nil)
	importPeople(c, 500, func(i int) string { // more than a page
		return fmt.Sprintf(`{"id":"u%03d","endpoints":[{"kind":"fcm","address":"phone-of-u%03d"}],"topics":[%q%s]}`, i, i, []string{"even", "odd"}[i%2], map[bool]string{true: `,"odd"`}[i%10 == 0])
	})
	c.must(http.MethodPut, "/v1/recipients/u002/preferences", `{"news":{"push":false}}`, nil, http.StatusOK)
	var got accepted
	c.must(http.MethodPost, "/v1/notifications", `{"to":[{"topic":"even"},{"recipient":"u001"},{"topic":"odd"},{"fcm":"a-phone-of-nobody"}],"channels":["push"],"category":"news","delay":"1s","content":{"title":"To all"}}`, &got, http.StatusAccepted)
	if got.Deliveries != 2 || got.Status != "scheduled" {
		t.Errorf("accepted %+v: a topic is resolved afterwards", got)
	}
	eventually(t, 60*time.Second, "everybody has it", func() bool {
		var n notification
		c.must(http.MethodGet, "/v1/notifications/"+got.ID, nil, &n, http.StatusOK)
		return n.Status == "completed"
	})
	var n notification
	c.must(http.MethodGet, "/v1/notifications/"+got.ID, nil, &n, http.StatusOK)
	if n.Counts.Sent != 500 { // of 500 one opted out, and an address is nobody's
		t.Errorf("counts %+v", n.Counts)
	}
	if f := a.Sandbox().Counts(sandbox.FCM); f.Distinct != 500 || f.Duplicates != 0 {
		t.Errorf("the service got %+v", f)
	}
	by := map[string]int{}
	for _, m := range a.Sandbox().Messages(sandbox.Filter{Service: sandbox.FCM}) {
		by[m.Address]++
	}
	if len(by) != 500 || by["phone-of-u002"] != 0 || by["a-phone-of-nobody"] != 1 {
		t.Errorf("%d addresses got it; who opted out %d times", len(by), by["phone-of-u002"])
	}
	var steps struct {
		Data []struct{ Step, Code, Recipient string }
	}
	c.must(http.MethodGet, "/v1/notifications/"+got.ID+"/timeline", nil, &steps, http.StatusOK)
	told := false
	for _, s := range steps.Data {
		told = told || s.Step == "skipped" && s.Code == "preference" && s.Recipient == "u002"
	}
	if !told {
		t.Error("the timeline does not say why u002 was skipped")
	}
}

// TestUnsubscribeURL: a template has the link of the mail's header for its text; where there is none it can tell.
func TestUnsubscribeURL(t *testing.T) {
	t.Parallel()
	a, c := startApp(t, func(cfg *config.Config) {
		cfg.PublicURL = "https://notify.example.com"
		cfg.Categories = map[string]config.Category{"security": {Mandatory: true}}
	})
	c.must(http.MethodPut, "/v1/recipients/u_42", `{"endpoints":[{"kind":"email","address":"ann@example.com"}]}`, nil, http.StatusCreated)
	c.must(http.MethodPut, "/v1/templates/news", `{"locales":{"default":{"title":"News","email":{"subject":"News",
		"html":"<p>x{% if unsubscribe_url %}<a href=\"{{ unsubscribe_url }}\">leave</a>{% else %}you cannot leave{% endif %}</p>",
		"text":"{% if unsubscribe_url %}Leave: {{ unsubscribe_url }} .{% endif %}"}}}}`, nil, http.StatusCreated)
	for i, category := range []string{"news", "security"} {
		var got accepted
		c.must(http.MethodPost, "/v1/notifications", `{"to":[{"recipient":"u_42"}],"channels":["email"],"template":"news","category":"`+category+`"}`, &got, http.StatusAccepted)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if err := a.Sandbox().Wait(ctx, sandbox.SMTP, i+1); err != nil {
			t.Fatal(err)
		}
		mail := a.Sandbox().Messages(sandbox.Filter{Service: sandbox.SMTP, ID: c.deliveries(got.ID)[0].ID})[0].Content
		link := oneClick.FindStringSubmatch(strings.ReplaceAll(mail, "\r\n ", ""))
		body := strings.ReplaceAll(mail, "=\r\n", "")
		switch {
		case category == "security" && (link != nil || !strings.Contains(body, "you cannot leave")):
			t.Errorf("a mandatory mail offers to leave:\n%s", mail)
		case category == "news" && (link == nil || !strings.Contains(body, "https://notify.example.com"+link[1]+"\">leave") || !strings.Contains(body, "Leave: https://notify.example.com"+link[1]+" .")):
			t.Errorf("the mail's text has not the link of its header:\n%s", mail)
		}
	}
}

// TestTopicIsTried: what a template lacks for a topic's recipients is a fault at once, as for anybody else; what one
// of them may lack is not.
func TestTopicIsTried(t *testing.T) {
	t.Parallel()
	_, c := startApp(t, nil)
	c.must(http.MethodPut, "/v1/templates/order", `{"locales":{"default":{"title":"{{ recipient.attributes.name }}","body":"{{ order }}"}}}`, nil, http.StatusCreated)
	c.must(http.MethodPut, "/v1/templates/strict", `{"locales":{"default":{"title":"{{ order }}"}},"schema":{"type":"object","required":["order"],"properties":{"order":{"type":"integer"}}}}`, nil, http.StatusCreated)
	for _, x := range []struct {
		body   string
		status int
	}{
		{`{"to":[{"topic":"vip"}],"template":"order"}`, http.StatusUnprocessableEntity},
		{`{"to":[{"topic":"vip"}],"template":"order","data":{"order":7}}`, http.StatusAccepted},
		{`{"to":[{"topic":"vip"}],"template":"strict","data":{"order":"seven"}}`, http.StatusUnprocessableEntity},
		{`{"to":[{"topic":"vip"}],"template":"strict","data":{"order":7}}`, http.StatusAccepted},
	} {
		c.must(http.MethodPost, "/v1/notifications", x.body, nil, x.status)
	}
}
