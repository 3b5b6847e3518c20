package config_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core/config"
)

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "carillon.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestDocumentedIsTheDefault(t *testing.T) {
	t.Parallel()
	c, warnings, err := config.Load(config.Source{File: write(t, config.Documented)})
	if err != nil || len(warnings) > 0 {
		t.Fatalf("Load: %v, warnings %v", err, warnings)
	}
	if diff := cmp.Diff(config.Default(), c); diff != "" {
		t.Errorf("`orchestrator config` does not print the defaults (-default +printed):\n%s", diff)
	}
}

func TestLoadLayers(t *testing.T) {
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(secret, []byte("from-a-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, warnings, err := config.Load(config.Source{
		File: write(t, "listen: 127.0.0.1:1\ndata: ./file\nroutes:\n  mail:\n    kind: email\n    rate: 500/m\n    timeout: 20s\n    settings: {addr: 'a:25', username: '${USER_NAME}', max_messages: 5}\n"),
		Environ: []string{"USER_NAME=ann", "CARILLON_DATA=./env", "CARILLON_LISTEN=127.0.0.1:2", "CARILLON_ROUTES__MAIL__SETTINGS__PASSWORD_FILE=" + secret,
			"CARILLON_ROUTES__MAIL__SETTINGS__CA_FILE=/ca.pem", "CARILLON_CHANNELS__EMAIL=mail", "CARILLON_NONSENSE=1", "CARILLON_REQUIRE_SERVERS=1", "OTHER=1"},
		Flags: map[string]string{"listen": "127.0.0.1:3", "workers": "true"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"CARILLON_NONSENSE is no setting of Carillon and is passed over"}, warnings); diff != "" {
		t.Error(diff)
	}
	if c.Listen != "127.0.0.1:3" || c.Data != "./env" {
		t.Errorf("listen %s, data %s: flags go over the environment, the environment over the file", c.Listen, c.Data)
	}
	want := config.Route{Kind: "email", Rate: "500/m", Timeout: 20 * time.Second,
		Settings: config.Settings{"addr": "a:25", "username": "ann", "password": "from-a-file", "ca_file": "/ca.pem", "max_messages": 5}}
	if diff := cmp.Diff(want, c.Routes["mail"]); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"mail"}, c.Channels["email"]); diff != "" {
		t.Error(diff)
	}
}

func TestFaultsAreNamedAllAtOnce(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		file string
		env  []string
		want []string
	}{
		"unknown keys": {file: "lissten: x\nroutes: {a: {kind: apns, ratee: 1/s}}", want: []string{"lissten: there is no such setting", "ratee: there is no such setting"}},
		"wrong forms":  {file: "workers: [1]\nroutes: {a: {kind: apns, timeout: soon}}", want: []string{"workers: must be true or false", "routes.a.timeout: must be a number with a unit"}},
		"wrong kinds": {file: "drain_delay: 3\nshutdown_timeout: true\nretention: 30d\nroutes: {a: {kind: apns, concurrency: 1.5, retry: {max_attempts: true, min: 1.5}, breaker: {ratio: x}, apps: {a: b}}}\n" +
			"categories: {news: {mandatory: 3, defaults: {push: 1}}, ads: 3}\nchannels: 4\nplugins: x\ndata: [a, b]",
			want: []string{"drain_delay: must be a number with a unit, such as 500ms, 3s,", "shutdown_timeout: must be a number with", "retention: must be settings of its own: {finished: …, idempotency: …}",
				"routes.a.concurrency: must be a whole number", "routes.a.retry.max_attempts: must be a whole number", "routes.a.retry.min: must be a number with", "routes.a.breaker.ratio: must be a number",
				"categories.news.mandatory: must be true or false", "categories.news.defaults.push: must be true or false", "categories.ads: must be settings of its own: {mandatory: …, defaults: …}",
				"channels: must be names with their values", "plugins: must be settings of its own: {dir: …}", "data: must be a text"}},
		"no unit in the environment": {env: []string{"CARILLON_DRAIN_DELAY=3", "CARILLON_WORKERS=maybe"}, want: []string{"drain_delay: must be a number with a unit", "workers: must be true or false"}},
		"cannot be": {file: "data: ''\nlisten: 127.0.0.1:99999\nmetrics_listen: ':x'\nroutes: {a: {kind: apns, retry: {min: 10m, max: 1s}, breaker: {min: 2s, max: 1s}}, b: {kind: apns, retry: {min: 20m}, breaker: {window: -1s}}}",
			want: []string{"data: must name a directory", "listen: \"127.0.0.1:99999\" is no host:port", "metrics_listen: \":x\" is no", "routes.a.retry: min, 10m0s, must not be longer than max, 1s",
				"routes.a.breaker: min, 2s, must not", "routes.b.retry: min, 20m0s, must not be longer than max, 10m0s", "routes.b.breaker: no member may be negative"}},
		"bad values": {file: "listen: nowhere\nstore: mysql://x/y\nqueue: amqp://x\nsandbox: maybe\nlog_level: loud\napi_key: short\ndrain_delay: -1s\nshutdown_timeout: 1ms\nretention: {finished: 1ms, idempotency: 0s}",
			want: []string{"drain_delay:", "shutdown_timeout:", "retention.finished:", "retention.idempotency:", "listen:", "store:", "queue:", "sandbox:", "log_level:", "api_key:"}},
		"bad routes": {file: "routes: {a: {rate: fast, timeout: 1ms, isolation: jail}, B: {kind: apns}}\nchannels: {push: [c]}",
			want: []string{"routes.a.kind", "routes.a.rate", "routes.a.timeout", "routes.a.isolation", "routes.B", "channels.push"}},
		"no YAML":                  {file: "a: [", want: []string{"is no YAML"}},
		"absent reference":         {file: "data: ${NOWHERE}", want: []string{"${NOWHERE}"}},
		"absent file":              {env: []string{"CARILLON_API_KEY_FILE=/does/not/exist"}, want: []string{"CARILLON_API_KEY_FILE"}},
		"workers off on embedded":  {file: "workers: false", want: []string{"workers: false needs a queue"}},
		"workers off on one store": {file: "workers: false\nqueue: redis://h:1/0", want: []string{"workers: false needs a store"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, _, err := config.Load(config.Source{File: write(t, tc.file), Environ: tc.env})
			if err == nil {
				t.Fatal("Load took it")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
		})
	}
}

// TestSameAddress: what the kernel refuses to the second of two listeners, and no more.
func TestSameAddress(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		a, b string
		want bool
	}{
		{"127.0.0.1:8080", "127.0.0.1:8080", true},
		{"127.0.0.1:8080", "127.0.0.1:9090", false},
		{"127.0.0.1:8080", "127.0.0.2:8080", false},
		{"0.0.0.0:8080", "127.0.0.1:8080", true},
		{":8080", "127.0.0.1:8080", true},
		{"[::]:8080", "0.0.0.0:8080", true},
		{"0.0.0.0:8080", "[::1]:8080", true},
		{"localhost:8080", "127.0.0.1:8080", true},
		{"127.0.0.1:http", "127.0.0.1:80", true},
		{"a.example.com:8080", "0.0.0.0:8080", true},
		{"a.example.com:8080", "127.0.0.1:8080", false},
		{"a.example.com:8080", "a.example.com:8080", true},
		{"127.0.0.1:0", "127.0.0.1:0", false},
		{"127.0.0.1:8080", "", false},
	} {
		if config.SameAddress(tc.a, tc.b) != tc.want || config.SameAddress(tc.b, tc.a) != tc.want {
			t.Errorf("%s and %s: want %t", tc.a, tc.b, tc.want)
		}
	}
}

// TestOverlook: what the file says for others is passed over, whatever it is; the process's own environment and flags are not.
func TestOverlook(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		file    string
		environ []string
		flags   map[string]string
		want    bool
	}{
		"file":        {file: "workers: false\nqueue: redis://h/0\nstore: postgres://h/db", want: true},
		"file, wrong": {file: "workers: 3", want: true},
		"environment": {file: "queue: redis://h/0\nstore: postgres://h/db", environ: []string{"CARILLON_WORKERS=false"}},
		"flag":        {file: "queue: redis://h/0\nstore: postgres://h/db", flags: map[string]string{"workers": "false"}},
	} {
		c, _, err := config.Load(config.Source{File: write(t, tc.file), Environ: tc.environ, Flags: tc.flags, Overlook: []string{"workers"}})
		if err != nil || c.Workers != tc.want {
			t.Errorf("%s: workers is %t (%v), want %t", name, c.Workers, err, tc.want)
		}
	}
}

// TestZeroNeedsNoUnit: 0 is the same in every unit; whole numbers may be written as YAML writes them.
func TestZeroNeedsNoUnit(t *testing.T) {
	t.Parallel()
	c, _, err := config.Load(config.Source{File: write(t, "drain_delay: 0\nretention: {finished: 0}\nworkers: 'true'\nroutes: {a: {kind: apns, concurrency: 2.0, breaker: {ratio: 1}}}")})
	if err != nil || c.Retention.Finished != 0 || c.Routes["a"].Concurrency != 2 || c.Routes["a"].Breaker.Ratio != 1 {
		t.Errorf("%v: %+v", err, c)
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	t.Parallel()
	c := config.Default()
	c.APIKey, c.Store = "hunter2hunter2hunter2", "postgres://u:hunter2@h/db"
	c.Routes["a"] = config.Route{Settings: config.Settings{"password": "hunter2"}}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("settings", "key", c.APIKey, "config", c)
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{fmt.Sprint(c), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", c), fmt.Sprintf("%s %q", c.APIKey, c.APIKey), string(text), log.String()} {
		if strings.Contains(out, "hunter2") {
			t.Errorf("a secret is shown in %s", out)
		}
	}
}

func TestParseRate(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]float64{"": 0, "1000/s": 1000, "30/m": 0.5, "36/h": 0.01, "0.5/s": 0.5} {
		if got, err := config.ParseRate(in); err != nil || got != want {
			t.Errorf("ParseRate(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"fast", "5", "0/s", "-1/s", "5/d", "1e99/s", "/s"} {
		if _, err := config.ParseRate(in); err == nil {
			t.Errorf("ParseRate(%q) took it", in)
		}
	}
}

func TestChanged(t *testing.T) {
	t.Parallel()
	before, after := config.Default(), config.Default()
	if got := config.Changed(before, after); len(got) > 0 {
		t.Errorf("nothing changed, and yet %v", got)
	}
	after.APIKey, after.Retention.Finished, after.Categories, after.Templates.Dir = "a key of length 20..", time.Hour, map[string]config.Category{"news": {Mandatory: true}}, "/else"
	if diff := cmp.Diff([]string{"api_key", "retention.finished", "categories", "templates.dir"}, config.Changed(before, after)); diff != "" {
		t.Error(diff)
	}
}
