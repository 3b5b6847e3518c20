package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/carillon-notify/carillon/providers"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	pattern := regexp.MustCompile(kind().Address)
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(kind().Content)))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("mem:///webhook", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("mem:///webhook")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, address, content string
		body                   int
		want                   string // who refuses it
	}{
		{"plain", "https://example.com/hooks/" + token, ``, 0, ""},
		{"no path", "https://example.com", ``, 0, ""},
		{"port and query", "https://example.com:8443?a=b&c=" + token, ``, 0, ""},
		{"IPv6", "https://[2001:db8::1]/", ``, 0, ""},
		{"event", "https://example.com/", `{"event":"order.shipped"}`, 0, ""},
		{"http", "http://example.com/" + token, ``, 0, "address check"},
		{"other scheme", "file:///etc/passwd", ``, 0, "address check"},
		{"no host", "https:///" + token, ``, 0, "address check"},
		{"user", "https://a:" + token + "@example.com/", ``, 0, "address check"},
		{"fragment", "https://example.com/#" + token, ``, 0, "address check"},
		{"space", "https://example.com/a b", ``, 0, "address"},
		{"line break", "https://example.com/\r\nX-Evil: 1", ``, 0, "address check"},
		{"backslash in the host", `https://example.com\@evil.example/`, ``, 0, "address check"},
		{"zone", "https://[fe80::1%25eth0]/", ``, 0, "address"},
		{"not ASCII", "https://exämple.com/", ``, 0, "address"},
		{"a port that is none", "https://example.com:x/", ``, 0, "check"},
		{"broken escape", "https://example.com/%zz", ``, 0, "check"},
		{"too long", "https://example.com/" + strings.Repeat("x", 2048), ``, 0, "check"},
		{"too big", "https://example.com/", ``, 256 << 10, "check"},
		{"event with a space", "https://example.com/", `{"event":"order shipped"}`, 0, "schema"},
		{"event of another type", "https://example.com/", `{"event":7}`, 0, "schema check"},
		{"unknown member", "https://example.com/", `{"headers":{}}`, 0, "schema"},
	} {
		var by []string
		m := message(tt.address)
		m.Body = strings.Repeat("b", tt.body)
		if !pattern.MatchString(tt.address) {
			by = append(by, "address")
		}
		if tt.content != "" {
			m.Content = json.RawMessage(tt.content)
			v, err := jsonschema.UnmarshalJSON(strings.NewReader(tt.content))
			if err != nil {
				t.Fatal(err)
			}
			if schema.Validate(v) != nil {
				by = append(by, "schema")
			}
		}
		if err := kind().Check(&m); err != nil {
			discreet(t, err.Error())
			if ours := checkURL(tt.address) != nil; errors.Is(err, providers.ErrAddress) != ours {
				t.Errorf("%s: %v; is it the address? %t", tt.name, err, ours)
			}
			by = append(by, "check")
		}
		if got := strings.Join(by, " "); got != tt.want {
			t.Errorf("%s: refused by %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	s := receiver(t, func(http.ResponseWriter, *http.Request) {}, nil)
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		with map[string]any
		want string // "": it opens
	}{
		{"as they are", nil, ""},
		{"a pool", map[string]any{"pool": map[string]any{"max": 3, "idle": 1, "idle_timeout": "1m0s"}}, ""},
		{"no secret", map[string]any{"secrets": []string{}}, "secrets"},
		{"no prefix", map[string]any{"secrets": []string{"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}}, "secrets[0]"},
		{"a short one", map[string]any{"secrets": []string{oldSecret, "whsec_MfKQ9r8G"}}, "secrets[1]"},
		{"no base64", map[string]any{"secrets": []string{"whsec_MfKQ9r8G!!!!"}}, "secrets[0]"},
		{"no network", map[string]any{"allow": []string{"10.0.0.0/8", "10.0.0"}}, "allow[1]"},
		{"no such file", map[string]any{"ca_file": "/none/such"}, "ca_file"},
		{"no certificate", map[string]any{"ca_file": empty}, "ca_file"},
		{"pool.max", map[string]any{"pool": map[string]any{"max": 0}}, "pool"},
		{"pool.idle", map[string]any{"pool": map[string]any{"idle": 0}}, "pool"},
		{"pool.idle_timeout", map[string]any{"pool": map[string]any{"idle_timeout": "0s"}}, "pool.idle_timeout"},
		{"another type", map[string]any{"secrets": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}, "settings"},
	} {
		p, err := kind().Open(t.Context(), settingsFor(t, s, tt.with))
		if err == nil {
			if err := p.Close(t.Context()); err != nil {
				t.Errorf("%s: close: %v", tt.name, err)
			}
		} else {
			discreet(t, err.Error())
		}
		if (tt.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error is %v, want one about %q", tt.name, err, tt.want)
		}
	}
}
