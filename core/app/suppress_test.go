package app_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core/client"
	"github.com/carillon-notify/carillon/providers/sandbox"
)

// TestSuppressed: to a mailbox that does not exist nothing is sent a second time, in a fallback the next channel
// goes at once, and preview and timeline say why, until an operator lifts it.
func TestSuppressed(t *testing.T) {
	t.Parallel()
	onBoth(t, suppress)
}

func suppress(t *testing.T, on backing) {
	a, c := startApp(t, on.set)
	c.must(http.MethodPut, "/v1/recipients/u_1", `{"endpoints":[{"kind":"email","address":"dead@example.com"},{"kind":"fcm","address":"a-device-token"}]}`, nil, http.StatusCreated)
	const mail = `{"to":[{"recipient":"u_1"}],"channels":["email"],"content":{"title":"Hello"}}`
	send := func(body string, want counts) (id string) {
		t.Helper()
		var got accepted
		c.must(http.MethodPost, "/v1/notifications", body, &got, http.StatusAccepted)
		eventually(t, 30*time.Second, "the deliveries are settled", func() bool {
			var v notification
			c.must(http.MethodGet, "/v1/notifications/"+got.ID, nil, &v, http.StatusOK)
			return v.Counts == want
		})
		return got.ID
	}
	send(mail, counts{Failed: 1})
	attempts := a.Sandbox().Counts(sandbox.SMTP).Requests
	id := send(mail, counts{Suppressed: 1})
	if d := c.deliveries(id)[0]; d.State != "suppressed" || d.Code != "suppressed" || d.Attempts != 0 || d.Reason == "" {
		t.Errorf("the second delivery: %+v", d)
	}
	var timeline struct {
		Data []struct{ Step, Code, Reason string }
	}
	c.must(http.MethodGet, "/v1/notifications/"+id+"/timeline", nil, &timeline, http.StatusOK)
	if last := timeline.Data[len(timeline.Data)-1]; last.Step != "suppressed" || last.Reason == "" {
		t.Errorf("the timeline: %+v", timeline)
	}
	var preview struct {
		Decisions []struct{ Channel, Decision, Reason string }
	}
	c.must(http.MethodPost, "/v1/notifications/preview", mail, &preview, http.StatusOK)
	if len(preview.Decisions) != 1 || preview.Decisions[0].Decision != "skip" || preview.Decisions[0].Reason != "suppressed" {
		t.Errorf("the preview: %+v", preview)
	}
	send(`{"to":[{"recipient":"u_1"}],"channels":["email","push"],"mode":"fallback","fallback_after":"1h","content":{"title":"Hello"}}`, counts{Suppressed: 1, Sent: 1})
	send(`{"to":[{"email":"Dead@Example.com"}],"content":{"title":"Hello"}}`, counts{Suppressed: 1})
	if again := a.Sandbox().Counts(sandbox.SMTP).Requests; again != attempts {
		t.Errorf("%d attempts were made at an address that is suppressed", again-attempts)
	}
	op, err := client.New(client.Options{URL: c.base, Key: testKey})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := op.Suppression(t.Context(), "email", "dead@example.com"); err != nil || s.Kind != "email" || s.Channel != "email" || s.Recipient != "u_1" || s.Code == "" {
		t.Errorf("the suppression: %+v, %v", s, err)
	}
	if list, next, err := op.Suppressions(t.Context(), client.Page{}); err != nil || len(list) != 1 || next != "" {
		t.Errorf("the list: %+v, %q, %v", list, next, err)
	}
	if err := op.LiftSuppression(t.Context(), "email", "dead@example.com"); err != nil {
		t.Error(err)
	}
	if s, err := op.Suppression(t.Context(), "email", "dead@example.com"); !client.IsNotFound(err) {
		t.Errorf("lifted, and yet %+v, %v", s, err)
	}
	send(mail, counts{Failed: 1}) // tried again
}
