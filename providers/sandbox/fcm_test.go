package sandbox_test

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

// tokenSource fetches access tokens with the service account's file.
func tokenSource(t testing.TB, s *sandbox.Sandbox) oauth2.TokenSource {
	t.Helper()
	data, err := os.ReadFile(s.ServiceAccountFile())
	if err != nil {
		t.Fatal(err)
	}
	config, err := google.JWTConfigFromJSON(data, "https://www.googleapis.com/auth/firebase.messaging")
	if err != nil {
		t.Fatal(err)
	}
	return config.TokenSource(context.WithValue(t.Context(), oauth2.HTTPClient, h2(t, s)))
}

// googleClient is an HTTP/2 client with those tokens.
func googleClient(t testing.TB, s *sandbox.Sandbox) *http.Client {
	t.Helper()
	return oauth2.NewClient(context.WithValue(t.Context(), oauth2.HTTPClient, h2(t, s)), tokenSource(t, s))
}

func sendRequest(t testing.TB, s *sandbox.Sandbox, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
		s.FCMURL()+"/v1/projects/"+sandbox.Project+"/messages:send", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	return r
}

func fcmBody(t testing.TB, token, id string) string {
	t.Helper()
	b, err := json.Marshal(map[string]any{"message": map[string]any{
		"token": token, "notification": map[string]string{"title": "Hi", "body": "there"}, "data": map[string]string{"delivery_id": id},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFCMTakesAMessage(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	a, err := do(t, googleClient(t, s), sendRequest(t, s, fcmBody(t, "fcm-token-1", "d-1")))
	if err != nil {
		t.Fatal(err)
	}
	if a.Status != 200 || !strings.HasPrefix(a.Body, `{"name":"projects/`+sandbox.Project+`/messages/`) {
		t.Fatalf("answered %+v", a)
	}
	m := s.Messages(sandbox.Filter{Service: sandbox.FCM})
	if len(m) != 1 || m[0].ID != "d-1" || m[0].Address != "fcm-token-1" || m[0].Title != "Hi" || m[0].Answered != "200" {
		t.Errorf("ledger has %+v", m)
	}
}
