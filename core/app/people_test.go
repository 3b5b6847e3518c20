package app_test

import (
	"context"
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
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
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
