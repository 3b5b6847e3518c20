package app_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/mail"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

// TestBadInput sends what is meant to break something to a running orchestrator: nothing of it is sent,
// and what may be said for all its looks arrives as it was said, once.
func TestBadInput(t *testing.T) {
	t.Parallel()
	a, c := startApp(t, nil)
	world := a.Sandbox()
	words := `"content":{"title":"x"}`
	for name, body := range map[string]string{
		"malformed":             `{"to":[`,
		"a hundred deep":        `{"to":[{"email":"ann@example.com"}],"content":{"title":"x","data":` + strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100) + `}}`,
		"a megabyte":            `{"to":[{"email":"ann@example.com"}],"content":{"title":"` + strings.Repeat("x", 1<<20) + `"}}`,
		"broken UTF-8":          "{\"to\":[{\"email\":\"ann@example.com\"}],\"content\":{\"title\":\"\xff\"}}",
		"NUL":                   `{"to":[{"email":"ann@example.com"}],"content":{"title":"a\u0000b"}}`,
		"a name twice":          `{"to":[{"email":"ann@example.com"}],"to":[{"email":"bob@example.com"}],` + words + `}`,
		"a token with a path":   `{"to":[{"apns":"` + token64 + `/../x"}],` + words + `}`,
		"a line in an address":  `{"to":[{"email":"ann@example.com\r\nRCPT TO:<bob@example.com>"}],` + words + `}`,
		"a line in the subject": `{"to":[{"email":"ann@example.com"}],"content":{"email":{"subject":"a\r\nBcc: b@example.com","text":"t"}}}`,
		"a line in a header":    `{"to":[{"email":"ann@example.com"}],"content":{"email":{"headers":{"X-A":"a\r\nBcc: b@example.com"},"text":"t"}}}`,
		"ttl zero":              `{"to":[{"email":"ann@example.com"}],"ttl":"0s",` + words + `}`,
		"too large for APNs":    `{"to":[{"apns":"` + token64 + `"}],"content":{"body":"` + strings.Repeat("x", 5000) + `"}}`,
	} {
		var problem struct {
			Status int
			Detail string
		}
		status, err := c.do(t.Context(), http.MethodPost, "/v1/notifications", body, &problem)
		if err != nil || status < 400 || status >= 500 || problem.Status != status || problem.Detail == "" {
			t.Errorf("%s: %d %+v, %v; want a problem of the request", name, status, problem, err)
		}
	}

	const text = "One\r\n.\r\nMAIL FROM:<eve@example.com>\r\n..two\rthree\nfour \u202e\u2028five"
	c.must(http.MethodPut, "/v1/recipients/ann", `{"attributes":{"name":"Ann \"A\" <x@example.com>\r\nBcc: eve@example.com"},"endpoints":[
		{"kind":"email","address":"ann@example.com"},{"kind":"apns","address":"`+token64+`"},{"kind":"fcm","address":"fcm-token-of-a-phone"}]}`, nil, http.StatusCreated)
	body, _ := json.Marshal(text)
	c.must(http.MethodPost, "/v1/notifications", fmt.Sprintf(`{"to":[{"recipient":"ann"}],"collapse_key":"a\r\nb: c","category":"a\r\nb: c","metadata":{"a\r\nb":"c"},
		"content":{"title":"\ud83d\udd14 <script>{{ x }}</script>","body":%s,"data":{"n":1e400,"\r\n":"\r\n"}}}`, body), nil, http.StatusAccepted)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, s := range []sandbox.Service{sandbox.SMTP, sandbox.APNs, sandbox.FCM} {
		if err := world.Wait(ctx, s, 1); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		m := world.Messages(sandbox.Filter{Service: s})
		if len(m) != 1 || m[0].Title != "\U0001f514 <script>{{ x }}</script>" {
			t.Fatalf("%s received %+v", s, m)
		}
		if s == sandbox.SMTP {
			checkMail(t, m[0].Content, text)
		}
	}
	hundredAtOnce(t, c)
	if err := world.Wait(ctx, sandbox.SMTP, 2); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "nothing left to do", func() bool {
		var list struct{ Data []notification }
		c.must(http.MethodGet, "/v1/notifications", nil, &list, http.StatusOK)
		return len(list.Data) == 2 && list.Data[0].Status == "completed" && list.Data[1].Status == "completed"
	})
	for s, want := range map[sandbox.Service]int{sandbox.SMTP: 2, sandbox.APNs: 1, sandbox.FCM: 1} {
		if got := len(world.Messages(sandbox.Filter{Service: s})); got != want {
			t.Errorf("%s received %d messages, want %d", s, got, want)
		}
	}
}

// checkMail holds a mail as it came over the wire against who it was for and what it says.
func checkMail(t *testing.T, content, text string) {
	t.Helper()
	m, err := mail.ReadMessage(strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	to, err := m.Header.AddressList("To")
	if err != nil || len(to) != 1 || to[0].Address != "ann@example.com" || to[0].Name != `Ann "A" <x@example.com> Bcc: eve@example.com` {
		t.Errorf("To is %q, %v", m.Header.Get("To"), err)
	}
	for _, name := range []string{"Bcc", "Cc", "B"} {
		if m.Header.Get(name) != "" {
			t.Errorf("there is a field %s: %s", name, m.Header.Get(name))
		}
	}
	lines := strings.NewReplacer("\r\n", "\n", "\r", "\n")
	got := lines.Replace(sandbox.MailParts(content)[0].Text)
	if d := cmp.Diff(lines.Replace(text), strings.TrimRight(got, "\n")); d != "" {
		t.Errorf("text (-want +got):\n%s", d)
	}
}

// hundredAtOnce asks for one mail a hundred times at once under one key.
func hundredAtOnce(t *testing.T, c *caller) {
	t.Helper()
	const body = `{"to":[{"email":"bob@example.com"}],"content":{"title":"once"}}`
	ask := func(body string) (*http.Response, []byte) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.base+"/v1/notifications", strings.NewReader(body))
		if err != nil {
			t.Error(err)
			return nil, nil
		}
		req.Header.Set("Authorization", "Bearer "+testKey)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", "once")
		resp, err := c.http.Do(req)
		if err != nil {
			t.Error(err)
			return nil, nil
		}
		defer resp.Body.Close()
		var text bytes.Buffer
		if _, err := text.ReadFrom(resp.Body); err != nil {
			t.Error(err)
		}
		return resp, text.Bytes()
	}
	var mu sync.Mutex
	answers := map[string]int{}
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			resp, text := ask(body)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case resp == nil:
			case resp.StatusCode == http.StatusAccepted:
				answers[string(text)]++
			case resp.StatusCode != http.StatusConflict || resp.Header.Get("Retry-After") == "":
				t.Errorf("= %d %v %s", resp.StatusCode, resp.Header, text)
			}
		})
	}
	wg.Wait()
	if resp, _ := ask(body); resp == nil || resp.StatusCode != http.StatusAccepted || resp.Header.Get("Idempotency-Replayed") != "true" || len(answers) != 1 {
		t.Errorf("asked again: %v; there were the answers %v", resp, answers)
	}
	if resp, text := ask(strings.Replace(body, "once", "twice", 1)); resp == nil || resp.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("another body: %s", text)
	}
}
