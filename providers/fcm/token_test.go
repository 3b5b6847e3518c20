package fcm_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

func TestUntrustedCertificate(t *testing.T) {
	t.Parallel()
	g := startGoogle(t)
	results, err := sandboxtest.Deliver(t.Context(), t, g.open(map[string]any{"ca_file": ""}), batchOf(1)...)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if r.Outcome != providers.Denied {
			t.Errorf("the token endpoint's certificate is not trusted: %+v", r)
		}
	}
	if len(g.got()) != 0 {
		t.Error("a message was sent all the same")
	}
}

func TestAccessToken(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		grant func(w http.ResponseWriter, n int)
		want  providers.Outcome
		code  string
	}{
		{"refused", func(w http.ResponseWriter, _ int) {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"error":"invalid_grant","error_description":"Invalid JWT Signature."}`)
		}, providers.Denied, "invalid_grant"},
		{"refused with a page", func(w http.ResponseWriter, _ int) { w.WriteHeader(http.StatusForbidden); fmt.Fprint(w, `<html>`) }, providers.Denied, "token"},
		{"down", func(w http.ResponseWriter, _ int) { w.WriteHeader(http.StatusServiceUnavailable) }, providers.Deferred, "token"},
		{"busy", func(w http.ResponseWriter, _ int) { w.WriteHeader(http.StatusTooManyRequests) }, providers.Deferred, "token"},
		{"dropped", func(http.ResponseWriter, int) { panic(http.ErrAbortHandler) }, providers.Deferred, "token"},
		{"not JSON", func(w http.ResponseWriter, _ int) { fmt.Fprint(w, "hello") }, providers.Deferred, "token"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := startGoogle(t)
			g.grant = tt.grant
			p := g.open(nil)
			results, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(20)...)
			if err != nil || len(results) != 20 {
				t.Fatalf("%d results, error %v", len(results), err)
			}
			for _, r := range results {
				if r.Outcome != tt.want || r.Code != tt.code {
					t.Errorf("%+v", r)
				}
			}
			if len(g.got()) != 0 {
				t.Error("a message was sent without a token")
			}
			if h := p.Health(t.Context()); h.Status != providers.HealthDown {
				t.Errorf("health is %+v", h)
			}
		})
	}
}

func TestDeadAccessTokenIsReplaced(t *testing.T) {
	t.Parallel()
	g := startGoogle(t)
	g.answers(func(w http.ResponseWriter, r request) {
		if r.header.Get("Authorization") == "Bearer access-1" {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, fcmBody(401, "UNAUTHENTICATED", "", ""))
			return
		}
		fmt.Fprint(w, `{}`)
	})
	results, err := sandboxtest.Deliver(t.Context(), t, g.open(nil), batchOf(30)...)
	if err != nil {
		t.Fatal(err)
	}
	for id, r := range results {
		if r.Outcome != providers.Accepted {
			t.Errorf("%s: %+v", id, r)
		}
	}
	if g.granted() != 2 {
		t.Errorf("%d tokens were fetched, want 2", g.granted())
	}
}

func TestTokenEndpointStalls(t *testing.T) {
	t.Parallel()
	g := startGoogle(t)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	ctx, cancel := context.WithCancel(t.Context())
	g.grant = func(http.ResponseWriter, int) { cancel(); <-release }
	results, err := sandboxtest.Deliver(ctx, t, g.open(nil), batchOf(1)...)
	if err != nil || len(results) != 1 {
		t.Fatalf("results %v, error %v", results, err)
	}
	for _, r := range results {
		if r.Outcome != providers.Deferred {
			t.Errorf("%+v", r)
		}
	}
}

func TestAccessTokenIsReplacedInTime(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name           string
		seconds        int
		grants         int    // for three messages, one after the other
		second, atLast string // which token the second and a later message carry
	}{
		{"good for an hour", 3600, 1, "Bearer access-1", "Bearer access-1"},
		{"about to end: replaced behind the messages' back", 120, 2, "Bearer access-1", "Bearer access-2"},
		{"as good as over: not used", 20, 3, "Bearer access-2", "Bearer access-3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := startGoogle(t)
			g.grant = func(w http.ResponseWriter, n int) {
				seconds := tt.seconds
				if n > 1 && tt.seconds == 120 {
					seconds = 3600
				}
				w.Header().Set("Content-Type", "application/json")
				fmt.Fprintf(w, `{"access_token":"access-%d","token_type":"Bearer","expires_in":%d}`, n, seconds)
			}
			p := g.open(nil)
			for i := range 2 {
				if _, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(1)...); err != nil {
					t.Fatal(err)
				}
				if i == 0 && g.granted() != 1 {
					t.Errorf("%d tokens for the first message", g.granted())
				}
			}
			last := func() string {
				if _, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(1)...); err != nil {
					t.Fatal(err)
				}
				got := g.got()
				return got[len(got)-1].header.Get("Authorization")
			}
			if tt.seconds == 20 {
				if got := last(); got != tt.atLast {
					t.Errorf("the third message has %q", got)
				}
			} else {
				sandboxtest.Eventually(t, func() bool { return last() == tt.atLast })
			}
			if got := g.got()[1].header.Get("Authorization"); got != tt.second {
				t.Errorf("the second message has %q, want %q", got, tt.second)
			}
			if n := g.granted(); n != tt.grants {
				t.Errorf("%d tokens were fetched, want %d", n, tt.grants)
			}
		})
	}
}

// TestTokenWithoutAnEnd has a token endpoint that does not say how long its tokens are good for (RFC 6749,
// 5.1, does not make it): one is used until FCM refuses it.
func TestTokenWithoutAnEnd(t *testing.T) {
	t.Parallel()
	g := startGoogle(t)
	g.grant = func(w http.ResponseWriter, n int) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":"access-%d","token_type":"Bearer"}`, n)
	}
	p := g.open(nil)
	for range 5 {
		if results, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(1)...); err != nil || len(results) != 1 {
			t.Fatalf("%v, %v", results, err)
		}
	}
	if n := g.granted(); n != 1 {
		t.Errorf("%d tokens were fetched for 5 messages", n)
	}
}
