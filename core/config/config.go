// Package config reads Carillon's settings: one YAML file, over it the environment, over it flags,
// into one typed Config. Unknown keys are errors; secrets are never printed.
package config

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/core"
)

// Config is every setting. Its zero value is not usable; start from Default or Load.
type Config struct {
	Listen   string `koanf:"listen"`
	APIKey   Secret `koanf:"api_key"`
	Data     string `koanf:"data"`
	Store    Secret `koanf:"store"` // a URL may hold a password
	Queue    Secret `koanf:"queue"`
	Workers  bool   `koanf:"workers"`
	Sandbox  string `koanf:"sandbox"`
	LogLevel string `koanf:"log_level"`
	// MetricsListen is where /metrics, /livez and /readyz are served besides, host:port; "" is nowhere. It is
	// the only place where a worker serves them.
	MetricsListen string `koanf:"metrics_listen"`
	// DrainDelay is how long a process that is told to stop goes on taking requests while /readyz says that
	// it will not: what a load balancer needs to notice.
	DrainDelay time.Duration `koanf:"drain_delay"`
	// ShutdownTimeout bounds the rest of a stop: what is not done by then is handed back.
	ShutdownTimeout time.Duration       `koanf:"shutdown_timeout"`
	Retention       Retention           `koanf:"retention"`
	Routes          map[string]Route    `koanf:"routes"`
	Channels        map[string][]string `koanf:"channels"`
	// PublicURL is where recipients reach this server, "https://notify.example.com"; "" leaves one-click
	// unsubscribe links out of mails.
	PublicURL  string              `koanf:"public_url"`
	Categories map[string]Category `koanf:"categories"`
	Plugins    Dir                 `koanf:"plugins"`
	Templates  Dir                 `koanf:"templates"`
}

// Retention is how long what is done with is kept.
type Retention struct {
	// Finished is for notifications of which nothing is pending, since the last that was heard of them; 0 is
	// for ever.
	Finished time.Duration `koanf:"finished"`
	// Idempotency is for idempotency keys, since their first use.
	Idempotency time.Duration `koanf:"idempotency"`
}

// Dir is a directory of the user's files.
type Dir struct {
	Dir string `koanf:"dir"`
}

// Category is what holds for a category of notifications; "*" is for those without an entry of their own.
type Category struct {
	Mandatory bool            `koanf:"mandatory"` // recipients cannot turn it off
	Defaults  map[string]bool `koanf:"defaults"`  // by channel, for recipients who chose nothing; not named: true
}

// Rules are the categories as the domain takes them.
func (c *Config) Rules() core.Rules {
	r := core.Rules{Categories: core.Categories{}}
	for name, one := range c.Categories {
		r.Categories[name] = core.Category{Mandatory: one.Mandatory, Defaults: one.Defaults}
	}
	return r
}

// Route is one configured provider instance.
type Route struct {
	Kind        string         `koanf:"kind"`
	Command     string         `koanf:"command"` // a third party's plugin
	SHA256      string         `koanf:"sha256"`
	Isolation   string         `koanf:"isolation"` // none | process; a command is always a process
	Memory      string         `koanf:"memory"`    // most resident memory of the process, "256MiB"; "" is no limit
	Settings    Settings       `koanf:"settings"`
	Rate        string         `koanf:"rate"` // "1000/s", "500/m"; "" is unlimited
	Apps        []string       `koanf:"apps"`
	Timeout     time.Duration  `koanf:"timeout"`     // of one call; 0 is DefaultTimeout
	Concurrency int            `koanf:"concurrency"` // rounds at a time in each lane; 0 is DefaultConcurrency
	Pool        map[string]any `koanf:"pool"`
	Retry       Retry          `koanf:"retry"`
	Breaker     Breaker        `koanf:"breaker"`
}

// Retry is how a route tries again; zero fields take core.DefaultPolicy's.
type Retry struct {
	MaxAttempts int           `koanf:"max_attempts"`
	MaxUnknown  int           `koanf:"max_unknown"`
	Min         time.Duration `koanf:"min"`
	Max         time.Duration `koanf:"max"`
}

// Breaker is when a route's circuit opens; zero fields take the gate's defaults.
type Breaker struct {
	Ratio  float64       `koanf:"ratio"`  // share of failures, 0 to 1
	Least  int           `koanf:"least"`  // fewer results than that never open it
	Window time.Duration `koanf:"window"` // over which they are counted
	Min    time.Duration `koanf:"min"`    // the first time it stays open
	Max    time.Duration `koanf:"max"`    // the longest
}

// Defaults of a route.
const (
	DefaultTimeout     = 10 * time.Second
	DefaultConcurrency = 16
)

// Values of Route.Isolation.
const (
	IsolationNone    = "none"
	IsolationProcess = "process"
)

// Values of Store, Queue and Sandbox.
const (
	StoreSQLite   = "sqlite"
	QueueEmbedded = "embedded"
	SandboxAuto   = "auto"
	SandboxOn     = "true"
	SandboxOff    = "false"
)

// Default returns the settings of a start without any.
func Default() Config {
	return Config{
		Listen: "127.0.0.1:8080", Data: "./data", Store: StoreSQLite, Queue: QueueEmbedded, Workers: true,
		Sandbox: SandboxAuto, LogLevel: "info", Routes: map[string]Route{}, Channels: map[string][]string{},
		Categories:      map[string]Category{},
		ShutdownTimeout: 45 * time.Second, Retention: Retention{Finished: 30 * 24 * time.Hour, Idempotency: 24 * time.Hour},
		Plugins: Dir{"./plugins.d"}, Templates: Dir{"./templates.d"},
	}
}

// Settings are a provider's own, by name. They may hold secrets and are never shown.
type Settings map[string]any

// String returns a mask.
func (s Settings) String() string { return fmt.Sprintf("%d settings", len(s)) }

// GoString returns a mask.
func (s Settings) GoString() string { return s.String() }

// MarshalJSON returns a mask.
func (s Settings) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// LogValue returns a mask.
func (s Settings) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Secret is a text that is never shown: printed, logged or encoded it is "***" (or nothing if empty).
type Secret string

// String returns the mask.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "***"
}

// GoString returns the mask.
func (s Secret) GoString() string { return fmt.Sprintf("%q", s.String()) }

// MarshalText returns the mask.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue returns the mask.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Reveal returns the text itself.
func (s Secret) Reveal() string { return string(s) }

// SandboxRuns reports whether the sandbox is to be started.
func (c *Config) SandboxRuns() bool {
	return c.Sandbox == SandboxOn || c.Sandbox == SandboxAuto && len(c.Routes) == 0
}

// IsSQLite reports whether the store is the one-process one.
func (c *Config) IsSQLite() bool { return c.Store.Reveal() == StoreSQLite }

// Error is everything wrong with a configuration.
type Error struct{ Faults []string }

// Error lists the faults, one a line if there are several.
func (e *Error) Error() string {
	if len(e.Faults) == 1 {
		return e.Faults[0]
	}
	return "the configuration has faults:\n  " + strings.Join(e.Faults, "\n  ")
}

// Mistakes are the faults. None of them repeats a setting's value that may be secret.
func (e *Error) Mistakes() []string { return e.Faults }

// Check reports every setting that cannot be used, all at once, as an *Error.
func (c *Config) Check() error {
	var f []string
	add := func(format string, args ...any) { f = append(f, fmt.Sprintf(format, args...)) }
	if c.Data == "" {
		add("data: must name a directory, such as ./data")
	}
	if !isHostPort(c.Listen) {
		add("listen: %q is no host:port such as 127.0.0.1:8080", c.Listen)
	}
	if c.MetricsListen != "" && !isHostPort(c.MetricsListen) {
		add("metrics_listen: %q is no host:port such as 127.0.0.1:9090", c.MetricsListen)
	}
	if c.DrainDelay < 0 || c.DrainDelay > 10*time.Minute {
		add("drain_delay: must be 0s to 10m")
	}
	if c.ShutdownTimeout < time.Second || c.ShutdownTimeout > 30*time.Minute {
		add("shutdown_timeout: must be 1s to 30m")
	}
	if c.Retention.Finished != 0 && c.Retention.Finished < time.Second {
		add("retention.finished: must be 0s, which keeps everything, or 1s and more")
	}
	if c.Retention.Idempotency < time.Second {
		add("retention.idempotency: must be 1s or more")
	}
	if !c.IsSQLite() && !hasScheme(c.Store, "postgres", "postgresql") {
		add("store: must be %q or a URL such as postgres://user:pass@host/db%s", StoreSQLite, escapes(c.Store))
	}
	if c.Queue.Reveal() != QueueEmbedded && !hasScheme(c.Queue, "redis", "rediss", "redis-sentinel", "redis-cluster") {
		add("queue: must be %q or a URL such as redis://host:6379/0%s", QueueEmbedded, escapes(c.Queue))
	}
	if !slices.Contains([]string{SandboxAuto, SandboxOn, SandboxOff}, c.Sandbox) {
		add("sandbox: %q must be auto, true or false", c.Sandbox)
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel) {
		add("log_level: %q must be debug, info, warn or error", c.LogLevel)
	}
	if k := c.APIKey.Reveal(); k != "" && len(k) < 16 {
		add("api_key: must have at least 16 characters; leave it empty to have one made")
	}
	if !c.Workers && c.Queue.Reveal() == QueueEmbedded {
		add("workers: false needs a queue that another process can reach; set queue to redis://… and store to postgres://…")
	} else if !c.Workers && c.IsSQLite() {
		add("workers: false needs a store that another process can open; set store to postgres://user:pass@host/db")
	}
	if u, err := url.Parse(c.PublicURL); c.PublicURL != "" && (err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(u.Path, "/")) {
		add("public_url: %q is no URL such as https://notify.example.com, without a slash at its end", c.PublicURL)
	}
	f = append(f, c.Rules().Categories.Check()...)
	for name, r := range c.Routes {
		f = append(f, r.check("routes."+name)...)
		if !validName(name) {
			add("routes.%s: a route's name is of lower-case letters, digits, '-' and '_'", name)
		}
	}
	for channel, routes := range c.Channels {
		for _, r := range routes {
			if _, ok := c.Routes[r]; !ok && len(c.Routes) > 0 {
				add("channels.%s: there is no route %q", channel, r)
			}
		}
	}
	if len(f) == 0 {
		return nil
	}
	slices.Sort(f)
	return &Error{f}
}

func (r *Route) check(at string) []string {
	var f []string
	add := func(key, format string, args ...any) {
		f = append(f, at+"."+key+": "+fmt.Sprintf(format, args...))
	}
	if (r.Kind == "") == (r.Command == "") {
		add("kind", "name a kind, or give a plugin's command, not both")
	}
	if !slices.Contains([]string{"", IsolationNone, IsolationProcess}, r.Isolation) {
		add("isolation", "must be none or process")
	}
	if r.Command != "" && r.Isolation == IsolationNone {
		add("isolation", "a command is a process of its own; leave isolation out")
	}
	if _, err := ParseSize(r.Memory); err != nil {
		add("memory", "%s", err)
	} else if r.Memory != "" && r.Isolation == IsolationNone {
		add("memory", "bounds a process of its own; set isolation to process")
	}
	if _, err := ParseRate(r.Rate); err != nil {
		add("rate", "%s", err)
	}
	if r.Timeout != 0 && (r.Timeout < time.Second || r.Timeout > 10*time.Minute) {
		add("timeout", "must be 1s to 10m")
	}
	if r.Concurrency < 0 || r.Concurrency > 10_000 {
		add("concurrency", "must be 1 to 10000")
	}
	if r.Retry.MaxAttempts < 0 || r.Retry.MaxUnknown < 0 || r.Retry.Min < 0 || r.Retry.Max < 0 {
		add("retry", "no member may be negative")
	}
	if least, most := cmp.Or(r.Retry.Min, core.DefaultPolicy.Min), cmp.Or(r.Retry.Max, core.DefaultPolicy.Max); least > most {
		add("retry", "min, %s, must not be longer than max, %s", least, most)
	}
	if b := r.Breaker; b.Least < 0 || b.Window < 0 || b.Min < 0 || b.Max < 0 {
		add("breaker", "no member may be negative")
	} else if b.Max > 0 && b.Min > b.Max {
		add("breaker", "min, %s, must not be longer than max, %s", b.Min, b.Max)
	}
	if r.Breaker.Ratio < 0 || r.Breaker.Ratio > 1 {
		add("breaker.ratio", "must be 0 to 1")
	}
	return f
}

// ParseRate reads a rate such as "1000/s", "500/m" or "20/h" as messages a second; "" is 0, unlimited.
func ParseRate(s string) (perSecond float64, err error) { return core.ParseRate(s) }

// sizes are the units of ParseSize.
var sizes = []struct {
	unit  string
	bytes int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}}

// ParseSize reads a number of bytes such as 256MiB or 1GB; "" is 0.
func ParseSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	for _, u := range sizes {
		count, ok := strings.CutSuffix(s, u.unit)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(count), 10, 64)
		if err == nil && n > 0 && n < 1<<20 {
			return n * u.bytes, nil
		}
	}
	return 0, fmt.Errorf("%q is no size such as 256MiB", s)
}

// escapes is what else may be wrong with what begins as a URL does.
func escapes(s Secret) string {
	if !strings.Contains(s.Reveal(), "://") {
		return ""
	}
	return ", in which a character such as @ : / ? # % of a user's name or password is written as %40 %3A %2F %3F %23 %25"
}

func hasScheme(s Secret, schemes ...string) bool {
	u, err := url.Parse(s.Reveal())
	// Behind a / or ? that a password has in clear there is the rest of it, which would be told as the database's name.
	if err == nil && u.User == nil && u.Host != "" && strings.Contains(u.Path+u.RawQuery, "@") {
		return false
	}
	// A PostgreSQL on a socket is named by a parameter, and has no host.
	return err == nil && slices.Contains(schemes, u.Scheme) && (u.Host != "" || u.RawQuery != "")
}

// isHostPort reports whether an address may be listened on, as far as its form goes.
func isHostPort(s string) bool {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	_, err = net.LookupPort("tcp", port) // a number, or a service's name
	return err == nil
}

// SameAddress reports whether two addresses, host:port, cannot both be listened on by one machine: they have one port,
// and one host or one that is all of them. Names other than localhost are not looked up. Port 0 is a free one each time.
func SameAddress(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil {
		return false
	}
	m, errA := net.LookupPort("tcp", portA)
	n, errB := net.LookupPort("tcp", portB)
	if errA != nil || errB != nil || m != n || m == 0 {
		return false
	}
	return covers(hostA, hostB) || covers(hostB, hostA)
}

// covers reports whether who listens on the host all listens on the host one, too. Go has 0.0.0.0 take IPv6 as well.
func covers(all, one string) bool {
	all, one = plainHost(all), plainHost(one)
	ip, other := net.ParseIP(all), net.ParseIP(one)
	return all == one || ip != nil && (ip.IsUnspecified() || ip.Equal(other))
}

// plainHost is the address that a host without a look-up stands for: none is all of them.
func plainHost(host string) string {
	switch host {
	case "":
		return "::"
	case "localhost":
		return "127.0.0.1"
	}
	return host
}

func validName(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}
