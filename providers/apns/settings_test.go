package apns_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/apns"
)

func TestSettings(t *testing.T) {
	t.Parallel()
	_, files := credentials(t)
	pem, err := os.ReadFile(files["key_file"])
	if err != nil {
		t.Fatal(err)
	}
	junk := filepath.Join(t.TempDir(), "junk")
	if err := os.WriteFile(junk, []byte("junk-secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	byKey := map[string]any{"key_file": files["key_file"], "key_id": "K", "team_id": "T", "topic": "com.example.app"}
	byCert := map[string]any{"cert_file": files["cert_file"]}
	for _, tt := range []struct {
		name string
		base map[string]any
		more map[string]any
		want string // "" opens
	}{
		{"key file", byKey, nil, ""},
		{"key itself", byKey, map[string]any{"key_file": nil, "key": string(pem)}, ""},
		{"certificate", byCert, nil, ""},
		{"everything", byKey, map[string]any{"endpoint": "https://api.push.apple.com:2197", "timeout": "3s", "ca_file": files["ca_file"],
			"pool": map[string]any{"max": 2, "idle": 0, "idle_timeout": "1m", "max_lifetime": "1h", "streams": 100}}, ""},
		{"nothing", nil, nil, "credentials are missing"},
		{"unknown", byKey, map[string]any{"key_flie": "x"}, "key_flie"},
		{"unknown in pool", byKey, map[string]any{"pool": map[string]any{"size": 3}}, "pool.size is not a setting"},
		{"wrong type", byKey, map[string]any{"topic": 3}, "topic must be a string"},
		{"no topic", byKey, map[string]any{"topic": nil}, "topic is missing"},
		{"bad topic", byKey, map[string]any{"topic": "com.example/../x"}, "topic must be a bundle id"},
		{"no key id", byKey, map[string]any{"key_id": nil}, "key_id and team_id are required"},
		{"no team id", byKey, map[string]any{"team_id": nil}, "key_id and team_id are required"},
		{"both keys", byKey, map[string]any{"key": string(pem)}, "either key or key_file"},
		{"key and certificate", byKey, byCert, "either a key or cert_file"},
		{"no such key file", byKey, map[string]any{"key_file": "/nowhere.p8"}, "read key_file: open /nowhere.p8"},
		{"key file of junk", byKey, map[string]any{"key_file": junk}, "key_file is not a signing key"},
		{"key of junk", byKey, map[string]any{"key_file": nil, "key": "junk-secret"}, "key is not a signing key"},
		{"certificate of junk", byCert, map[string]any{"cert_file": junk}, "neither PEM nor a PKCS #12"},
		{"certificate without key", byCert, map[string]any{"cert_file": files["ca_file"]}, "does not hold a certificate with its private key"},
		{"authority of junk", byKey, map[string]any{"ca_file": junk}, "holds no certificate in PEM"},
		{"plain http", byKey, map[string]any{"endpoint": "http://localhost"}, "endpoint must be https"},
		{"endpoint with a path", byKey, map[string]any{"endpoint": "https://api.push.apple.com/3"}, "endpoint must be https"},
		{"endpoint with a user", byKey, map[string]any{"endpoint": "https://u:secret@api.push.apple.com"}, "endpoint must be https"},
		{"timeout", byKey, map[string]any{"timeout": "1ms"}, "timeout must be a duration"},
		{"timeout a number", byKey, map[string]any{"timeout": 10}, "timeout must be a string"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, err := apns.Kind().Open(context.Background(), laid(t, tt.base, tt.more))
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("error %v, want %q", err, tt.want)
				}
				if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "BEGIN") {
					t.Fatalf("the error tells a secret: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if h := p.Health(t.Context()); h.Status != providers.HealthOK || h.Pool.Open != 0 {
				t.Errorf("health of an unused provider: %+v", h)
			}
			if err := p.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// laid lays settings over each other; nil takes one away.
func laid(t *testing.T, parts ...map[string]any) []byte {
	t.Helper()
	s := map[string]any{}
	for _, part := range parts {
		for name, v := range part {
			if s[name] = v; v == nil {
				delete(s, name)
			}
		}
	}
	raw, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestSettingsThatAreNone(t *testing.T) {
	t.Parallel()
	for _, raw := range []string{`{`, `[]`, `{} {}`, `"x"`} {
		if _, err := apns.Kind().Open(context.Background(), []byte(raw)); err == nil {
			t.Errorf("settings %s were taken", raw)
		}
	}
}

func TestKind(t *testing.T) {
	t.Parallel()
	k := apns.Kind()
	address := regexp.MustCompile(k.Address)
	for a, ok := range map[string]bool{token: true, strings.ToUpper(token): true, token[:63]: false, token + "/": false,
		strings.Repeat("a", 200): true, strings.Repeat("a", 201): false, token[:60] + "/../": false, "": false} {
		if address.MatchString(a) != ok {
			t.Errorf("address %q: want %v", a, ok)
		}
	}
	names := map[string]bool{}
	for _, s := range k.Settings {
		if names[s.Name] || s.Doc == "" {
			t.Errorf("setting %s is there twice or has no doc", s.Name)
		}
		names[s.Name] = true
		if s.Secret != (s.Name == "key" || s.Name == "cert_password") {
			t.Errorf("setting %s: secret is %v", s.Name, s.Secret)
		}
	}
	if k.Name != "apns" || k.Channel != "push" || k.MaxBatch != 100 || !k.Secret {
		t.Errorf("kind %+v", k)
	}
}
