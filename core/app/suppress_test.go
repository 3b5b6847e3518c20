package app_test

import (
	"net/http"
	"testing"
	"time"

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
	var s struct{ Kind, Channel, Recipient, Code string }
	c.must(http.MethodGet, "/v1/suppressions/email/dead@example.com", nil, &s, http.StatusOK)
	if s.Kind != "email" || s.Channel != "email" || s.Recipient != "u_1" || s.Code == "" {
		t.Errorf("the suppression: %+v", s)
	}
	var list struct{ Data []struct{ Kind string } }
	if c.must(http.MethodGet, "/v1/suppressions", nil, &list, http.StatusOK); len(list.Data) != 1 {
		t.Errorf("the list: %+v", list)
	}
	c.must(http.MethodDelete, "/v1/suppressions/email/dead@example.com", nil, nil, http.StatusNoContent)
	c.must(http.MethodGet, "/v1/suppressions/email/dead@example.com", nil, nil, http.StatusNotFound)
	send(mail, counts{Failed: 1}) // tried again
}
