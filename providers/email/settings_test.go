package email_test

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/providers/email"
)

func TestSettings(t *testing.T) {
	t.Parallel()
	r := startRelay(t, nil)
	ca := filepath.Join(r.dir, "ca.pem")
	for _, tt := range []struct {
		name string
		with map[string]any
		want string
	}{
		{"as they are", nil, ""},
		{"no addr", map[string]any{"addr": ""}, "addr"},
		{"no port", map[string]any{"addr": "smtp.example.com"}, "addr"},
		{"tls", map[string]any{"tls": "maybe"}, "tls"},
		{"auth", map[string]any{"auth": "magic"}, "auth"},
		{"password alone", map[string]any{"password": password}, "username"},
		{"no from", map[string]any{"from": ""}, "from"},
		{"bad from", map[string]any{"from": "Example"}, "from"},
		{"two from", map[string]any{"from": "a@example.com, b@example.com"}, "from"},
		{"from with a line break", map[string]any{"from": "A\r\nB: c <a@example.com>"}, "from"},
		{"envelope_from", map[string]any{"envelope_from": "x"}, "envelope_from"},
		{"reply_to", map[string]any{"reply_to": "x"}, "reply_to"},
		{"no such CA", map[string]any{"ca_file": ca + "x"}, "ca_file"},
		{"no CA", map[string]any{"ca_file": "email_test.go"}, "ca_file"},
		{"helo", map[string]any{"helo": "a b"}, "helo"},
		{"helo with a line break", map[string]any{"helo": "a\r\nMAIL"}, "helo"},
		{"helo literal", map[string]any{"helo": "[192.0.2.1]"}, ""},
		{"message_id_domain", map[string]any{"message_id_domain": "a>b"}, "message_id_domain"},
		{"list_unsubscribe", map[string]any{"list_unsubscribe": "javascript:x"}, "list_unsubscribe"},
		{"list_unsubscribe that injects", map[string]any{"list_unsubscribe": "mailto:a@b>,<x"}, "list_unsubscribe"},
		{"dkim without a key", map[string]any{"dkim": map[string]any{"domain": "example.com", "selector": "s"}}, "dkim.key"},
		{"dkim without a selector", map[string]any{"dkim": map[string]any{"domain": "example.com"}}, "dkim.selector"},
		{"dkim with a certificate", map[string]any{"dkim": map[string]any{"domain": "example.com", "selector": "s", "key_file": ca}}, "dkim.key"},
		{"max_messages", map[string]any{"max_messages": 0}, "max_messages"},
		{"timeout", map[string]any{"timeout": "11m"}, "timeout"},
		{"pool", map[string]any{"pool": map[string]any{"max": 0}}, "pool.max"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, err := email.Kind().Open(t.Context(), r.settings(tt.with))
			if err == nil {
				if err := p.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error is %v, want one about %q", err, tt.want)
			case err != nil && strings.Contains(err.Error(), password):
				t.Errorf("the error quotes the password: %v", err)
			}
		})
	}
}

func TestKind(t *testing.T) {
	t.Parallel()
	k := email.Kind()
	if k.Name != "email" || k.Channel != "email" || k.MaxBatch != 20 || k.Secret || !json.Valid(k.Content) {
		t.Errorf("kind is %+v", k)
	}
	address := regexp.MustCompile(k.Address)
	for a, want := range map[string]bool{
		"ann@example.org": true, "a.b+c@x.example": true, "用户@例え.jp": true, "o'neil@example.org": true, "root@localhost": true,
		"ann": false, "@example.org": false, "ann@": false, "a@b@c": false, "a b@example.org": false, "ann@example.org\n": false, "a\r@b": false,
		"<ann@example.org>": false, "a,b@example.org": false, `"a"@example.org`: false, "ann@[1.2.3.4]": false, "": false,
		strings.Repeat("a", 65) + "@example.org": false,
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
	if !names["pool.max"] || names["pool.streams"] {
		t.Error("the pool's settings are not those of sessions")
	}
}
