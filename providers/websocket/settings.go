package websocket

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"reflect"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// Duration is a time.Duration whose JSON form is a Go duration in a string: "90s".
type Duration time.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return errNoDuration()
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return errNoDuration()
	}
	*d = Duration(v)
	return nil
}

// errNoDuration is of a type in which encoding/json names the member.
func errNoDuration() error {
	return &json.UnmarshalTypeError{Value: "value", Type: reflect.TypeFor[Duration]()}
}

// settingsError says which member has the wrong type, without its value, which may be a secret.
func settingsError(err error) error {
	wrong, ok := errors.AsType[*json.UnmarshalTypeError](err)
	switch {
	case !ok:
		return fmt.Errorf("read websocket settings: %w", err)
	case wrong.Type == reflect.TypeFor[Duration]():
		return fmt.Errorf(`websocket settings: %s: must be a duration in a string, such as "90s"`, wrong.Field)
	}
	return fmt.Errorf("websocket settings: %s: must be a %s", wrong.Field, wrong.Type)
}

// Settings are a gateway's settings; Kind documents each. Start from DefaultSettings.
type Settings struct {
	Secret          string   `json:"secret"`
	PreviousSecrets []string `json:"previous_secrets"`
	Refresh         bool     `json:"refresh"`
	Origins         []string `json:"origins"`
	Serve           bool     `json:"serve"`

	HistorySize int      `json:"history_size"`
	HistoryTTL  Duration `json:"history_ttl"`

	MaxConnections             int `json:"max_connections"`
	MaxConnectionsPerRecipient int `json:"max_connections_per_recipient"`
	MaxMessageSize             int `json:"max_message_size"`
	ClientQueueMaxSize         int `json:"client_queue_max_size"`

	StaleTimeout Duration `json:"stale_timeout"`
	PingInterval Duration `json:"ping_interval"`
	PongTimeout  Duration `json:"pong_timeout"`
	WriteTimeout Duration `json:"write_timeout"`
	WriteDelay   Duration `json:"write_delay"`
	ExpiredGrace Duration `json:"expired_grace"`
	AckTimeout   Duration `json:"ack_timeout"`

	Redis       string `json:"redis"`
	RedisPrefix string `json:"redis_prefix"`
}

// DefaultSettings are the settings when nothing is said; a secret is still needed to serve.
func DefaultSettings() Settings {
	return Settings{
		Serve:                      true,
		HistorySize:                100,
		HistoryTTL:                 Duration(time.Hour),
		MaxConnections:             20_000,
		MaxConnectionsPerRecipient: 20,
		MaxMessageSize:             16 << 10,
		ClientQueueMaxSize:         1 << 20,
		StaleTimeout:               Duration(10 * time.Second),
		PingInterval:               Duration(25 * time.Second),
		PongTimeout:                Duration(10 * time.Second),
		WriteTimeout:               Duration(5 * time.Second),
		ExpiredGrace:               Duration(25 * time.Second),
		AckTimeout:                 Duration(10 * time.Second),
		RedisPrefix:                "carillon.websocket",
	}
}

// ParseSettings reads a JSON object over DefaultSettings and checks it. Unknown members are refused.
func ParseSettings(raw []byte) (Settings, error) {
	s := DefaultSettings()
	if len(bytes.TrimSpace(raw)) > 0 {
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&s); err != nil {
			return Settings{}, settingsError(err)
		}
		if _, err := dec.Token(); !errors.Is(err, io.EOF) {
			return Settings{}, errors.New("read websocket settings: more than one JSON value")
		}
	}
	if err := s.validate(); err != nil {
		return Settings{}, fmt.Errorf("websocket settings: %w", err)
	}
	return s, nil
}

func (s *Settings) validate() error {
	var errs []error
	number := func(name string, v, low, high int) {
		if v < low || v > high {
			errs = append(errs, fmt.Errorf("%s: %d is not between %d and %d", name, v, low, high))
		}
	}
	span := func(name string, v Duration, low, high time.Duration) {
		if d := time.Duration(v); d < low || d > high {
			errs = append(errs, fmt.Errorf("%s: %v is not between %v and %v", name, d, low, high))
		}
	}
	number("history_size", s.HistorySize, 1, 10_000)
	number("max_connections", s.MaxConnections, 1, 1_000_000)
	number("max_connections_per_recipient", s.MaxConnectionsPerRecipient, 1, 10_000)
	number("max_message_size", s.MaxMessageSize, 5<<10, 1<<20)
	number("client_queue_max_size", s.ClientQueueMaxSize, 2*MaxPayload, 64<<20)
	span("history_ttl", s.HistoryTTL, time.Second, 30*24*time.Hour)
	span("stale_timeout", s.StaleTimeout, 100*time.Millisecond, 5*time.Minute)
	span("ping_interval", s.PingInterval, time.Second, 10*time.Minute)
	span("pong_timeout", s.PongTimeout, 100*time.Millisecond, 5*time.Minute)
	span("write_timeout", s.WriteTimeout, 100*time.Millisecond, time.Minute)
	span("write_delay", s.WriteDelay, 0, time.Second)
	span("expired_grace", s.ExpiredGrace, time.Second, 5*time.Minute)
	span("ack_timeout", s.AckTimeout, 10*time.Millisecond, time.Minute)
	if s.PongTimeout >= s.PingInterval {
		errs = append(errs, errors.New("pong_timeout: must be shorter than ping_interval"))
	}
	if s.Serve && s.Secret == "" {
		errs = append(errs, errors.New("secret: is needed to serve clients; make one with: openssl rand -hex 32"))
	}
	if !s.Serve && s.Redis == "" {
		errs = append(errs, errors.New("serve: false publishes through Redis only, so redis must be set"))
	}
	if s.RedisPrefix == "" || strings.ContainsAny(s.RedisPrefix, "{}\r\n ") {
		errs = append(errs, errors.New("redis_prefix: must not be empty or hold braces or blanks"))
	}
	for _, o := range s.Origins {
		if _, err := parseOrigin(o); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// parseOrigin checks an entry of origins and brings it to the form in which a browser sends it (RFC 6454
// section 6.2): lower case, no path, no default port. "*" stays what it is.
func parseOrigin(s string) (string, error) {
	if s == "*" {
		return s, nil
	}
	u, err := url.Parse(s)
	bad := err != nil || u.Scheme == "" || u.Hostname() == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil ||
		strings.Contains(u.Host, "*") || strings.HasSuffix(u.Host, ":")
	if bad {
		return "", fmt.Errorf("origins: %q is not scheme://host[:port]; there are no patterns but the single \"*\"", s)
	}
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	switch {
	case scheme == "https":
		host = strings.TrimSuffix(host, ":443")
	case scheme == "http":
		host = strings.TrimSuffix(host, ":80")
	}
	return scheme + "://" + host, nil
}

func settingDocs() []providers.Setting {
	return []providers.Setting{
		{Name: "secret", Type: providers.String, Secret: true, Doc: "Key of the recipients' tokens (HS256), at least 32 bytes; the server supplies one when empty."},
		{Name: "previous_secrets", Type: providers.List, Secret: true, Doc: "Keys that are still accepted, but no longer signed with, while secret changes."},
		{Name: "refresh", Type: providers.Bool, Default: "false", Doc: "Clients may exchange a still valid token for a new one and go on; otherwise a connection ends with its token and the client comes back with one from the app's own back end."},
		{Name: "origins", Type: providers.List, Doc: `Web origins allowed to connect, each exactly scheme://host[:port], or "*" for any; the server's own host and clients that send no Origin always are.`},
		{Name: "serve", Type: providers.Bool, Default: "true", Doc: "Serve clients; false only publishes through redis, as a worker does."},
		{Name: "history_size", Type: providers.Int, Default: "100", Doc: "Messages kept per recipient for clients that come back, 1 to 10000."},
		{Name: "history_ttl", Type: providers.Duration, Default: "1h", Doc: "How long they are kept, 1s to 720h; what is older is in the inbox."},
		{Name: "max_connections", Type: providers.Int, Default: "20000", Doc: "Connections open at once in this process, 1 to 1000000; about 25 KB each."},
		{Name: "max_connections_per_recipient", Type: providers.Int, Default: "20", Doc: "Connections of one recipient in this process, 1 to 10000."},
		{Name: "max_message_size", Type: providers.Int, Default: "16384", Doc: "Bytes of the largest frame or body taken from a client, 5120 to 1048576."},
		{Name: "client_queue_max_size", Type: providers.Int, Default: "1048576", Doc: "Bytes waiting for a slow client before it is cut, 131072 to 67108864."},
		{Name: "stale_timeout", Type: providers.Duration, Default: "10s", Doc: "A connection that has not shown a token by then is closed, 100ms to 5m."},
		{Name: "ping_interval", Type: providers.Duration, Default: "25s", Doc: "How often an idle client is pinged, 1s to 10m."},
		{Name: "pong_timeout", Type: providers.Duration, Default: "10s", Doc: "A client that does not answer a ping by then is closed, 100ms to 5m and less than ping_interval."},
		{Name: "write_timeout", Type: providers.Duration, Default: "5s", Doc: "A WebSocket client that does not take a frame by then is closed, 100ms to 1m."},
		{Name: "write_delay", Type: providers.Duration, Default: "0s", Doc: "How long messages to one client are collected into one frame, 0s to 1s; saves CPU under bursts."},
		{Name: "expired_grace", Type: providers.Duration, Default: "25s", Doc: "How long after its token's end a connection may still refresh, 1s to 5m; only with refresh."},
		{Name: "ack_timeout", Type: providers.Duration, Default: "10s", Doc: "How long an acknowledgement may wait for its turn before the client is asked to try again, 10ms to 1m."},
		{Name: "redis", Type: providers.String, Secret: true, Doc: "URL of the Redis that joins several gateways: redis://, rediss://, redis-sentinel://, redis-cluster:// (secret, as it may hold a password); empty keeps everything in this process."},
		{Name: "redis_prefix", Type: providers.String, Default: "carillon.websocket", Doc: "What every key and channel in that Redis begins with."},
	}
}
