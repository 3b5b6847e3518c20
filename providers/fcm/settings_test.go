package fcm_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/providers/fcm"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

func TestSettings(t *testing.T) {
	t.Parallel()
	g := startGoogle(t)
	g.write("not.pem", []byte("nothing"))
	g.write("plain.json", g.account(map[string]string{"token_uri": "http://127.0.0.1/token"}))
	g.write("noproject.json", g.account(map[string]string{"project_id": ""}))
	g.write("user.json", g.account(map[string]string{"type": "authorized_user"}))
	for _, tt := range []struct {
		name string
		with map[string]any
		want string // "" opens
	}{
		{"as they are", nil, ""},
		{"the key itself", map[string]any{"credentials_file": "", "credentials": string(g.account(nil))}, ""},
		{"both", map[string]any{"credentials": string(g.account(nil))}, "not both"},
		{"none", map[string]any{"credentials_file": ""}, "credentials_file"},
		{"no such file", map[string]any{"credentials_file": filepath.Join(g.dir, "none")}, "credentials_file"},
		{"no key", map[string]any{"credentials_file": filepath.Join(g.dir, "not.pem")}, "service account"},
		{"a person's key", map[string]any{"credentials_file": filepath.Join(g.dir, "user.json")}, "service account"},
		{"plain token endpoint", map[string]any{"credentials_file": filepath.Join(g.dir, "plain.json")}, "token_uri"},
		{"no project", map[string]any{"credentials_file": filepath.Join(g.dir, "noproject.json")}, "project"},
		{"project from the settings", map[string]any{"credentials_file": filepath.Join(g.dir, "noproject.json"), "project": "acme"}, ""},
		{"project with a path", map[string]any{"project": "acme/../evil"}, "project"},
		{"plain endpoint", map[string]any{"endpoint": "http://127.0.0.1"}, "endpoint"},
		{"endpoint with a path", map[string]any{"endpoint": "https://example.com/v1"}, "endpoint"},
		{"endpoint with a user", map[string]any{"endpoint": "https://a:b@example.com"}, "endpoint"},
		{"no such CA", map[string]any{"ca_file": filepath.Join(g.dir, "none")}, "ca_file"},
		{"no CA", map[string]any{"ca_file": filepath.Join(g.dir, "not.pem")}, "ca_file"},
		{"timeout", map[string]any{"timeout": "5"}, "timeout"},
		{"short timeout", map[string]any{"timeout": "1ms"}, "timeout"},
		{"long timeout", map[string]any{"timeout": "3m"}, "timeout"},
		{"pool", map[string]any{"pool": map[string]any{"max": 0}}, "pool.max"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, err := fcm.Kind().Open(t.Context(), g.settings(tt.with))
			if err == nil {
				err2 := p.Close(t.Context())
				if err2 != nil {
					t.Error(err2)
				}
			}
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error is %v, want one about %q", err, tt.want)
			case err != nil && strings.Contains(err.Error(), "PRIVATE KEY"):
				t.Errorf("the error quotes the key: %v", err)
			}
		})
	}
}

func TestKind(t *testing.T) {
	t.Parallel()
	k := fcm.Kind()
	if k.Name != "fcm" || k.Channel != "push" || k.MaxBatch != 100 || !k.Secret {
		t.Errorf("kind is %+v", k)
	}
	if !json.Valid(k.Content) {
		t.Error("the content's schema is not JSON")
	}
	address := regexp.MustCompile(k.Address)
	for a, want := range map[string]bool{
		someToken: true,
		"cVnZ3m0sQ0u1fJ:APA91bH" + strings.Repeat("aZ0_-", 28): true,
		"short":                 false,
		"dead-token-1":          true,
		"fcm/../token-12345":    false,
		"fcm token-12345":       false,
		"fcm-token-12345\n":     false,
		"fcm-token-12345\x00":   false,
		"fcm-tøken-1234567":     false,
		"fcm-token-12345?x=1&y": false,
	} {
		if got := address.MatchString(a); got != want {
			t.Errorf("address %q matches: %v", a, got)
		}
	}
	names := map[string]bool{}
	for _, s := range k.Settings {
		if names[s.Name] || s.Doc == "" {
			t.Errorf("setting %q is doubled or has no doc", s.Name)
		}
		names[s.Name] = true
	}
	for _, n := range []string{"credentials_file", "credentials", "project", "endpoint", "ca_file", "timeout", "pool.max", "pool.streams"} {
		if !names[n] {
			t.Errorf("no setting %q", n)
		}
	}
}

// The library's configuration is filled by reflection; see newMessaging.
func TestLibraryIsTheOneWeKnow(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), "firebase.google.com/go/v4 v4.19.0") {
		t.Error("another version of the FCM library: look at internal.MessagingConfig, at the retries in internal/http_client.go, and at sdkVersion")
	}
	g := startGoogle(t)
	if _, err := sandboxtest.Deliver(t.Context(), t, g.open(nil), batchOf(1)...); err != nil {
		t.Fatal(err)
	}
	for _, r := range g.got() {
		if v := r.header.Get("X-Firebase-Client"); v != "fire-admin-go/4.19.0" {
			t.Errorf("the library says it is %q", v)
		}
	}
}
