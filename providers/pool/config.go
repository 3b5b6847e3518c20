// Package pool keeps the connections to one service open, bounded, healthy and counted, and lets the
// idle ones go. Exclusive is for connections that serve one user at a time (SMTP sessions), Shared for
// those that carry many uses at once (HTTP/2).
package pool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// ErrClosed is returned by Acquire of a pool that was closed.
var ErrClosed = errors.New("pool is closed")

// OpenError says that a connection could not be opened. It is also the answer, without another try,
// while the pool waits after a failure.
type OpenError struct {
	// Err is why.
	Err error
	// RetryIn is how long the pool will not try again.
	RetryIn time.Duration
}

// Error implements error.
func (e *OpenError) Error() string { return "open connection: " + e.Err.Error() }

// Unwrap gives the reason.
func (e *OpenError) Unwrap() error { return e.Err }

// Config bounds a pool. Its JSON form is the member "pool" of a provider's settings; decoding lays what
// the JSON says over the values already there, so start from Defaults.
type Config struct {
	// Max is how many connections may be open, 1 to 1000.
	Max int
	// Idle is how many idle connections outlive IdleTimeout, 0 to Max.
	Idle int
	// IdleTimeout is how long a connection may stay unused before it is let go; 0 is for ever.
	IdleTimeout time.Duration
	// MaxLifetime is how old a connection may become, less up to a tenth so that those opened together
	// do not end together; 0 is no limit.
	MaxLifetime time.Duration
	// HealthEvery is how long a connection may be silent before it is checked; 0 is never.
	HealthEvery time.Duration
	// OpenTimeout bounds the opening of one connection; 0 is no limit.
	OpenTimeout time.Duration
	// MaxUses is how often a connection may be used; 0 is no limit.
	MaxUses int
	// Streams is how many uses of one connection may run at once, 1 to 10000; only Shared looks at it.
	Streams int
}

// Bounds of the settings, refused beyond.
const (
	maxMax     = 1000
	maxUses    = 1_000_000_000
	maxStreams = 10_000
	maxPeriod  = 7 * 24 * time.Hour
)

// Defaults fills in what is zero in c, but for Idle, MaxUses and Streams whose zero has a meaning of its
// own: 4 connections, 90 s idle, 1 h old, a check after 30 s of silence, 10 s to open one.
func Defaults(c Config) Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	if c.Max == 0 {
		c.Max = 4
	}
	def(&c.IdleTimeout, 90*time.Second)
	def(&c.MaxLifetime, time.Hour)
	def(&c.HealthEvery, 30*time.Second)
	def(&c.OpenTimeout, 10*time.Second)
	return c
}

// field is one member of the settings object.
type field struct {
	name, doc string
	min, max  int64
	number    func(*Config) *int
	period    func(*Config) *time.Duration
}

var fields = []field{
	{name: "max", doc: "Connections open at once, 1 to 1000.", min: 1, max: maxMax,
		number: func(c *Config) *int { return &c.Max }},
	{name: "idle", doc: "Idle connections kept after idle_timeout, 0 to max.", max: maxMax,
		number: func(c *Config) *int { return &c.Idle }},
	{name: "idle_timeout", doc: "How long a connection may stay unused before it is let go; 0s is for ever.", max: int64(maxPeriod),
		period: func(c *Config) *time.Duration { return &c.IdleTimeout }},
	{name: "max_lifetime", doc: "How old a connection may become; 0s is no limit.", max: int64(maxPeriod),
		period: func(c *Config) *time.Duration { return &c.MaxLifetime }},
	{name: "health_every", doc: "How long a connection may be silent before it is checked; 0s is never.", max: int64(maxPeriod),
		period: func(c *Config) *time.Duration { return &c.HealthEvery }},
	{name: "open_timeout", doc: "How long the opening of a connection may take, 10ms to 5m.", min: int64(10 * time.Millisecond), max: int64(5 * time.Minute),
		period: func(c *Config) *time.Duration { return &c.OpenTimeout }},
	{name: "max_uses", doc: "How many messages one connection may carry in its life; 0 is no limit.", max: maxUses,
		number: func(c *Config) *int { return &c.MaxUses }},
	{name: "streams", doc: "Messages in flight on one connection at once, 1 to 10000; the service's own limit may be lower.", min: 1, max: maxStreams,
		number: func(c *Config) *int { return &c.Streams }},
}

// Settings documents the members that UnmarshalJSON understands, as "pool.max" and so on, for a Kind;
// "pool.streams" only where defaults has Streams.
func Settings(defaults Config) []providers.Setting {
	var out []providers.Setting
	for _, f := range fields {
		if f.name == "streams" && defaults.Streams == 0 {
			continue
		}
		s := providers.Setting{Name: "pool." + f.name, Doc: f.doc, Type: providers.Int}
		if f.period != nil {
			s.Type, s.Default = providers.Duration, short(*f.period(&defaults))
		} else {
			s.Default = strconv.Itoa(*f.number(&defaults))
		}
		out = append(out, s)
	}
	return out
}

// UnmarshalJSON reads an object such as {"max":4,"idle":1,"idle_timeout":"90s","max_lifetime":"1h"}
// over what c holds. Members it does not know are refused; c is unchanged after an error.
func (c *Config) UnmarshalJSON(b []byte) error {
	if bytes.Equal(bytes.TrimSpace(b), []byte("null")) {
		return nil
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(b, &members); err != nil {
		return errors.New(`pool must be an object such as {"max":4,"idle_timeout":"90s"}`)
	}
	next := *c
	for name, raw := range members {
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == name })
		if i < 0 {
			return fmt.Errorf("pool.%s is not a setting; there are %s", name, names())
		}
		if err := fields[i].set(&next, raw); err != nil {
			return fmt.Errorf("pool.%s: %w", name, err)
		}
	}
	if next.Idle > next.Max {
		if _, said := members["idle"]; said {
			return fmt.Errorf("pool.idle is %d and must not be more than pool.max, which is %d", next.Idle, next.Max)
		}
		next.Idle = next.Max
	}
	*c = next
	return nil
}

func (f field) set(c *Config, raw json.RawMessage) error {
	if f.number != nil {
		var n int
		if err := json.Unmarshal(raw, &n); err != nil {
			return fmt.Errorf("must be a whole number from %d to %d", f.min, f.max)
		}
		if int64(n) < f.min || int64(n) > f.max {
			return fmt.Errorf("is %d and must be from %d to %d", n, f.min, f.max)
		}
		*f.number(c) = n
		return nil
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return errors.New(`must be a duration in a string, such as "90s"`)
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf(`%q is not a duration such as "90s" or "1h"`, s)
	}
	if int64(d) < f.min || int64(d) > f.max {
		return fmt.Errorf("is %s and must be from %s to %s", s, short(time.Duration(f.min)), short(time.Duration(f.max)))
	}
	*f.period(c) = d
	return nil
}

func names() string {
	out := make([]string, len(fields))
	for i, f := range fields {
		out[i] = f.name
	}
	return strings.Join(out, ", ")
}

// short writes a duration without the zero parts that Duration.String appends ("1h0m0s").
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
