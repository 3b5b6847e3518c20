package app_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestConfigCheck: what a start would refuse, or take for something else, is told by `config check`, in words that say
// what to write and hold no secret.
func TestConfigCheck(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"queue: 'redis://u:geheim@h/0?tls=1'":                                            "queue: the parameter tls must be true or false",
		"queue: 'redis://u:geheim@h/0?tsl=true'":                                         "queue: there is no parameter tsl for redis://; there are tls, ca_file",
		"queue: 'redis://u:geheim@h/0?tls=true'":                                         "",
		"queue: 'redis://u:ge#heim@h/0'":                                                 "queue: must be \"embedded\" or a URL such as redis://host:6379/0, in which a character such as @ : / ? # % of a user's name or password is written as %40",
		"queue: 'redis-cluster://u:geheim@h/3'":                                          "queue: a Redis Cluster has one database",
		"store: 'postgres://u:ge%heim@h/d'":                                              "store: must be \"sqlite\" or a URL such as postgres://user:pass@host/db, in which a character such as @ : / ? # % of a user's name",
		"store: 'postgres://u:geheim@h/d?pool_max_conns=1'":                              "store: the store's URL says pool_max_conns=1: it must be at least 2",
		"store: 'postgres://u:geheim@h/d?pool_max_conns=x'":                              "store: the parameter pool_max_conns of the store's URL must be a whole number",
		"store: 'postgres://u:geheim@h/d?sslmode=verifyfull&port=5432'":                  "store: the parameter sslmode of the store's URL must be disable,",
		"store: 'postgres://u:geheim@h/d?connect_timeout=5s'":                            "store: the parameter connect_timeout of the store's URL must be a whole number of seconds",
		"store: 'postgres://u:geheim@h/d?sslmode=verify-full&sslrootcert=/nope/ca.pem'":  "store: read what the parameter sslrootcert of the store's URL names: stat /nope/ca.pem: no such file",
		"store: 'postgres://u:geheim@h/d?sslmode=verify-full&sslrootcert=carillon.yaml'": "store: the parameter sslrootcert of the store's URL must be a file of certificates in PEM form",
		"store: 'postgres://u:99/geheim@h/d'":                                            "store: must be \"sqlite\" or a URL such as postgres://user:pass@host/db, in which",
		"store: 'postgres://u:99?geheim@h/d'":                                            "store: must be \"sqlite\" or a URL such as postgres://user:pass@host/db, in which",
		"store: 'postgres:///d?host=/run&user=u&password=ge@heim'":                       "",
		"queue: 'redis://u:99/geheim@h/0'":                                               "queue: must be \"embedded\" or a URL such as",
		"store: 'postgres://u:geheim@h:99999/d'":                                         "store: the store's PostgreSQL URL cannot be read",
		"store: 'postgres://u:geheim@h/d?pool_max_conns=2'":                              "",
		"listen: ':9090'\nmetrics_listen: '127.0.0.1:9090'":                              "metrics_listen: is the address of listen",
		"listen: '127.0.0.1:9091'\nmetrics_listen: '127.0.0.1:9090'":                     "",
		"channels: {push: [nope]}":                                                       "channels.push: there is no route \"nope\"",
		"sandbox: false\nchannels: {push: [apns]}":                                       "channels.push: there is no route \"apns\"",
		"channels: {push: [apns, fcm], in_app: [websocket]}":                             "",
		"categories: {news: {defaults: {telegram: true}}}":                               "categories.news.defaults.telegram: there is no such channel; there are email, in_app, push",
		"categories: {news: {defaults: {push: false}}}":                                  "",
		"routes: {ws: {kind: websocket, settings: {histroy_ttl: 5m}}}":                   "routes.ws.settings.histroy_ttl: kind websocket has no such setting",
		"routes: {ws: {kind: websocket, settings: {history_ttl: 5}}}":                    "routes.ws.settings.history_ttl: must be a duration",
		"drain_delay: 3": "drain_delay: must be a number with a unit, such as 500ms, 3s,",
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "carillon.yaml"), []byte(text+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := runCommand(t, dir, "config", "check")
			if (err != nil) != (want != "") || !strings.Contains(out, want) || strings.Contains(out, "geheim") {
				t.Errorf("it says %q, %v; want %q", out, err, want)
			}
		})
	}
}
