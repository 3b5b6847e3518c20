package sandbox_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

// account is the service account's file.
type account struct {
	ProjectID  string `json:"project_id"`
	PrivateKey string `json:"private_key"`
	Email      string `json:"client_email"`
	TokenURI   string `json:"token_uri"`
}

func readAccount(t testing.TB, s *sandbox.Sandbox) (a account) {
	t.Helper()
	data, err := os.ReadFile(s.ServiceAccountFile())
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &a); err != nil {
		t.Fatal(err)
	}
	return a
}

// assertion is a JWT of the service account, with changes.
func assertion(t testing.TB, a account, change jwt.MapClaims) string {
	t.Helper()
	key, err := jwt.ParseRSAPrivateKeyFromPEM([]byte(a.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	claims := jwt.MapClaims{
		"iss": a.Email, "aud": a.TokenURI, "scope": "https://www.googleapis.com/auth/firebase.messaging",
		"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
	}
	for name, v := range change {
		claims[name] = v
	}
	signed, err := jwt.NewWithClaims(jwt.SigningMethodRS256, claims).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func TestOAuth(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	a, client := readAccount(t, s), h2(t, s)
	if a.ProjectID != sandbox.Project || a.TokenURI != s.FCMURL()+"/token" {
		t.Errorf("account is %+v", a)
	}
	const grant = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	good := assertion(t, a, nil)
	for _, tc := range []struct {
		name, grant, assertion, want string
	}{
		{"good", grant, good, ""},
		{"cloud scope", grant, assertion(t, a, jwt.MapClaims{"scope": "a https://www.googleapis.com/auth/cloud-platform"}), ""},
		{"other grant", "password", good, "unsupported_grant_type"},
		{"forged", grant, good[:len(good)-8] + "AAAAAAAA", "invalid_grant"},
		{"none", grant, "", "invalid_grant"},
		{"other account", grant, assertion(t, a, jwt.MapClaims{"iss": "x@y"}), "invalid_grant"},
		{"other audience", grant, assertion(t, a, jwt.MapClaims{"aud": "https://example.com"}), "invalid_grant"},
		{"expired", grant, assertion(t, a, jwt.MapClaims{"iat": time.Now().Add(-2 * time.Hour).Unix(), "exp": time.Now().Add(-time.Hour).Unix()}), "invalid_grant"},
		{"too long", grant, assertion(t, a, jwt.MapClaims{"exp": time.Now().Add(3 * time.Hour).Unix()}), "invalid_grant"},
		{"other scope", grant, assertion(t, a, jwt.MapClaims{"scope": "https://www.googleapis.com/auth/drive"}), "invalid_scope"},
	} {
		resp, err := client.PostForm(a.TokenURI, url.Values{"grant_type": {tc.grant}, "assertion": {tc.assertion}})
		if err != nil {
			t.Fatal(err)
		}
		var v struct {
			Error       string `json:"error"`
			AccessToken string `json:"access_token"`
			ExpiresIn   int    `json:"expires_in"`
			TokenType   string `json:"token_type"`
		}
		check(t, json.NewDecoder(resp.Body).Decode(&v), resp.Body.Close())
		if v.Error != tc.want || (v.AccessToken == "") != (tc.want != "") || (resp.StatusCode == http.StatusOK) != (tc.want == "") {
			t.Errorf("%s: answered %d %+v", tc.name, resp.StatusCode, v)
		}
		if tc.want == "" && (v.ExpiresIn < 3000 || v.TokenType != "Bearer") {
			t.Errorf("%s: answered %+v", tc.name, v)
		}
	}
}

// googleError is the shape of google.rpc.Status that clients read.
type googleError struct {
	Error struct {
		Code    int    `json:"code"`
		Status  string `json:"status"`
		Details []struct {
			Type      string `json:"@type"`
			ErrorCode string `json:"errorCode"`
			Fields    []struct {
				Field string `json:"field"`
			} `json:"fieldViolations"`
		} `json:"details"`
	} `json:"error"`
}

func (g *googleError) code() string {
	for _, d := range g.Error.Details {
		if d.Type == "type.googleapis.com/google.firebase.fcm.v1.FcmError" {
			return d.ErrorCode
		}
	}
	return ""
}

func (g *googleError) field() string {
	for _, d := range g.Error.Details {
		if d.Type == "type.googleapis.com/google.rpc.BadRequest" && len(d.Fields) > 0 {
			return d.Fields[0].Field
		}
	}
	return ""
}

func TestFCMChecksMessages(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	client := googleClient(t, s)
	data := func(n int) string { return strings.Repeat("x", n) }
	for _, tc := range []struct {
		name, body, field string
	}{
		{"token", `{"message":{"token":"abc"}}`, ""},
		{"topic", `{"message":{"topic":"news","data":{"a":"b"}}}`, ""},
		{"condition", `{"message":{"condition":"'a' in topics"}}`, ""},
		{"everything", `{"message":{"token":"abc","name":"n","android":{"ttl":"3.5s","priority":"HIGH"},"apns":{"payload":{}},"webpush":{},"fcm_options":{}}}`, ""},
		{"largest", `{"message":{"token":"abc","data":{"k":"` + data(4095) + `"}}}`, ""},
		{"nothing", ``, "message"},
		{"not JSON", `{"message"`, "message"},
		{"no message", `{}`, "message"},
		{"unknown member", `{"message":{"token":"abc","tokens":[]}}`, "message"},
		{"no target", `{"message":{"data":{}}}`, "message"},
		{"two targets", `{"message":{"token":"abc","topic":"a"}}`, "message"},
		{"bad token", `{"message":{"token":"a b"}}`, "message.token"},
		{"number in data", `{"message":{"token":"abc","data":{"n":7}}}`, `message.data["n"]`},
		{"null in data", `{"message":{"token":"abc","data":{"n":null}}}`, `message.data["n"]`},
		{"reserved key", `{"message":{"token":"abc","data":{"google.x":"y"}}}`, "message.data"},
		{"android data", `{"message":{"token":"abc","android":{"data":{"n":7}}}}`, `message.android.data["n"]`},
		{"ttl too long", `{"message":{"token":"abc","android":{"ttl":"2419201s"}}}`, "message.android.ttl"},
		{"ttl of another kind", `{"message":{"token":"abc","android":{"ttl":"1h"}}}`, "message.android.ttl"},
		{"too big", `{"message":{"token":"abc","data":{"k":"` + data(4096) + `"}}}`, "message"},
		{"too big for a topic", `{"message":{"topic":"abc","data":{"k":"` + data(2048) + `"}}}`, "message"},
	} {
		a, err := do(t, client, sendRequest(t, s, tc.body))
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		var g googleError
		check(t, json.Unmarshal([]byte(a.Body), &g))
		want := 400
		if tc.field == "" {
			want = 200
		}
		if a.Status != want || g.field() != tc.field || want == 400 && (g.code() != "INVALID_ARGUMENT" || g.Error.Code != 400) {
			t.Errorf("%s: answered %d %s", tc.name, a.Status, a.Body)
		}
	}
	if c := s.Counts(sandbox.FCM); c.Taken != 5 || c.Answers["INVALID_ARGUMENT"] != 15 {
		t.Errorf("counts are %+v", c)
	}
}

func TestFCMErrors(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	client := googleClient(t, s)
	for _, tc := range []struct {
		script       string
		status       int
		rpc, code    string
		retry, field string
	}{
		{"UNREGISTERED", 404, "NOT_FOUND", "UNREGISTERED", "", ""},
		{"INVALID_ARGUMENT", 400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "", "message.token"},
		{"SENDER_ID_MISMATCH", 403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH", "", ""},
		{"QUOTA_EXCEEDED", 429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", "7", ""},
		{"429", 429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", "7", ""},
		{"RESOURCE_EXHAUSTED", 429, "RESOURCE_EXHAUSTED", "", "7", ""},
		{"503", 503, "UNAVAILABLE", "UNAVAILABLE", "7", ""},
		{"INTERNAL", 500, "INTERNAL", "INTERNAL", "", ""},
		{"THIRD_PARTY_AUTH_ERROR", 401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR", "", ""},
		{"401", 401, "UNAUTHENTICATED", "", "", ""},
		{"PERMISSION_DENIED", 403, "PERMISSION_DENIED", "", "", ""},
		{"NOT_FOUND", 404, "NOT_FOUND", "", "", ""},
		{"502", 502, "", "", "", ""},
	} {
		check(t, s.Script(sandbox.FCM, sandbox.Script{Errors: map[string]float64{tc.script: 1}, RetryAfter: 7 * time.Second}))
		resp, err := client.Do(sendRequest(t, s, fcmBody(t, "abc", "d")))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		check(t, err, resp.Body.Close())
		var g googleError
		if strings.HasPrefix(string(body), "{") {
			check(t, json.Unmarshal(body, &g))
		}
		if resp.StatusCode != tc.status || g.Error.Status != tc.rpc || g.code() != tc.code || g.field() != tc.field ||
			resp.Header.Get("Retry-After") != tc.retry {
			t.Errorf("%s: answered %d %s", tc.script, resp.StatusCode, body)
		}
	}
	check(t, s.Script(sandbox.FCM, sandbox.Script{}))
	a, err := do(t, client, sendRequest(t, s, fcmBody(t, "dead-token", "d")))
	check(t, err)
	if a.Status != 404 || !strings.Contains(a.Body, `"UNREGISTERED"`) {
		t.Errorf("a dead token: answered %+v", a)
	}
	if n := s.Counts(sandbox.FCM).Taken; n != 0 {
		t.Errorf("%d messages were taken", n)
	}
}

func TestFCMAuthorization(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	client := h2(t, s)
	for _, tc := range []struct {
		name, token string
		status      int
	}{
		{"none", "", 401},
		{"made up", "ya29.sandbox-" + base64.RawURLEncoding.EncodeToString(append([]byte{0, 0, 0, 0, 0xff}, make([]byte, 35)...)), 401},
		{"signed by the account itself", assertion(t, readAccount(t, s), nil), 200},
		{"the same for another API", assertion(t, readAccount(t, s), jwt.MapClaims{"scope": "", "aud": "https://pubsub.googleapis.com/"}), 401},
		{"expired", assertion(t, readAccount(t, s), jwt.MapClaims{"iat": 1, "exp": 2}), 401},
	} {
		r := sendRequest(t, s, fcmBody(t, "abc", "d"))
		if tc.token != "" {
			r.Header.Set("Authorization", "Bearer "+tc.token)
		}
		a, err := do(t, client, r)
		if err != nil || a.Status != tc.status {
			t.Errorf("%s: answered %+v, %v", tc.name, a, err)
		}
	}
	r := sendRequest(t, s, fcmBody(t, "abc", "d"))
	r.URL.Path = "/v1/projects/other/messages:send"
	if a, err := do(t, googleClient(t, s), r); err != nil || a.Status != 403 {
		t.Errorf("another project: answered %+v, %v", a, err)
	}
	for path, want := range map[string]int{"/": 404, "/v1/projects/a/b/messages:send": 404, "/batch": 404} {
		r := sendRequest(t, s, "{}")
		r.URL.Path = path
		if a, err := do(t, client, r); err != nil || a.Status != want {
			t.Errorf("%s: answered %+v, %v", path, a, err)
		}
	}
}

func TestFCMDryRun(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	client := googleClient(t, s)
	for _, member := range []string{"validate_only", "validateOnly"} {
		a, err := do(t, client, sendRequest(t, s, `{"`+member+`":true,"message":{"token":"abc"}}`))
		if err != nil || a.Status != 200 || !strings.Contains(a.Body, "fake_message_id") {
			t.Errorf("answered %+v, %v", a, err)
		}
	}
	if n := s.Counts(sandbox.FCM).Taken; n != 0 {
		t.Errorf("%d messages were taken", n)
	}
}

// TestFCMFaults tries the faults that end without an answer, in both versions of HTTP.
func TestFCMFaults(t *testing.T) {
	t.Parallel()
	for name, client := range map[string]func(testing.TB, *sandbox.Sandbox) *http.Client{
		"HTTP2": h2,
		"HTTP1": func(t testing.TB, s *sandbox.Sandbox) *http.Client {
			tr := &http.Transport{TLSClientConfig: trust(t, s)}
			t.Cleanup(tr.CloseIdleConnections)
			return &http.Client{Transport: tr}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, sandbox.Options{})
			c, token := client(t, s), assertion(t, readAccount(t, s), nil)
			send := func(ctx context.Context, id string) (answer, error) {
				r := sendRequest(t, s, fcmBody(t, "abc", id)).WithContext(ctx)
				r.Header.Set("Authorization", "Bearer "+token)
				return do(t, c, r)
			}
			if a, err := send(t.Context(), "plain"); err != nil || a.Status != 200 {
				t.Fatalf("answered %+v, %v", a, err)
			}
			check(t, s.Script(sandbox.FCM, sandbox.Script{DropBefore: 1}))
			if a, err := send(t.Context(), "before"); err == nil {
				t.Errorf("drop before: answered %+v", a)
			}
			check(t, s.Script(sandbox.FCM, sandbox.Script{DropAfter: 1}))
			if a, err := send(t.Context(), "after"); err == nil {
				t.Errorf("drop after: answered %+v", a)
			}
			for id, want := range map[string]int{"plain": 1, "before": 0, "after": 1} {
				if m := s.Messages(sandbox.Filter{ID: id}); len(m) != want || id == "after" && m[0].Answered != "" {
					t.Errorf("%s: ledger has %+v", id, m)
				}
			}
			for _, script := range []sandbox.Script{{Stall: 1}, {Latency: time.Hour}} {
				check(t, s.Script(sandbox.FCM, script))
				s.Reset()
				ctx, cancel := context.WithCancel(t.Context())
				go func() {
					if s.Wait(t.Context(), sandbox.FCM, 1) == nil {
						cancel()
					}
				}()
				if a, err := send(ctx, "silent"); !errors.Is(err, context.Canceled) {
					t.Errorf("stall: answered %+v, %v", a, err)
				}
				cancel()
			}
			check(t, s.Script(sandbox.FCM, sandbox.Script{Errors: map[string]float64{"503": 1}, TakenAnyway: 1, Latency: time.Millisecond}))
			if a, err := send(t.Context(), "anyway"); err != nil || a.Status != 503 {
				t.Errorf("taken anyway: answered %+v, %v", a, err)
			}
			m := s.Messages(sandbox.Filter{ID: "anyway"})
			if len(m) != 1 || m[0].Answered != "503" {
				t.Errorf("ledger has %+v", m)
			}
		})
	}
}
