// Package host opens providers in processes of their own and supervises them: whatever such a process
// does — crash, hang, leak, lie, flood — costs only its own messages' time.
//
// Describe starts a plugin once to learn its providers.Kind; that Kind's Open starts the process that
// delivers, and from there on nobody needs to know that it is one. go-plugin brings the handshake, mutual
// TLS and the connection; everything that keeps a process in bounds is here.
package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/carillon-notify/carillon/plugins/wire"
	"github.com/carillon-notify/carillon/providers"
)

// Spec says which program plays a provider, and what it may take.
type Spec struct {
	// Name is the route's or plugin's name, for logs and errors.
	Name string
	// Command is the path of the executable, Args are its arguments. The file and its directory must
	// belong to root or to this process's user, and nobody else may write them.
	Command string
	Args    []string
	// SHA256 is the file's digest in hexadecimal; "" takes it as it is. The file that is digested is the
	// one that is run, but for a script, which its interpreter reads again.
	SHA256 string
	// Memory bounds the resident memory of the plugin and its children, in bytes; 0 does not. A plugin
	// that exceeds it is killed and started again.
	Memory int64
	// Dir is where the private directories of plugins are made; "" is os.TempDir(). Socket paths are
	// short: at most some 60 bytes.
	Dir string
	// Logger gets the plugin's log and the supervisor's; nil is slog.Default().
	Logger *slog.Logger
	// Timing is the supervisor's; zero fields take DefaultTiming's.
	Timing Timing
}

// Timing is how patient the supervisor is.
type Timing struct {
	Start       time.Duration // from exec to an open provider
	Ping        time.Duration // between two questions whether the process answers
	PingTimeout time.Duration // for the answer; two without one in a row, and it is killed
	Ready       time.Duration // how long a call waits for a process that is being started
	BackoffMin  time.Duration // before the second restart within Window; the first is at once
	BackoffMax  time.Duration // each further one waits twice as long, at most this
	Window      time.Duration // over which crashes and strikes are counted
	Crashes     int           // so many within Window, and the plugin is quarantined
	Strikes     int           // answers that break the contract, likewise
	Quarantine  time.Duration // the first time; twice as long each time in a row
	MaxQuarant  time.Duration
}

// DefaultTiming notices a stopped process within 10 s, restarts a crashed one at once, and quarantines one
// that crashed five times, or broke the contract three times, within a minute.
var DefaultTiming = Timing{
	Start: 15 * time.Second, Ping: 2 * time.Second, PingTimeout: 3 * time.Second, Ready: 2 * time.Second,
	BackoffMin: 250 * time.Millisecond, BackoffMax: 30 * time.Second, Window: time.Minute, Crashes: 5, Strikes: 3,
	Quarantine: time.Minute, MaxQuarant: 30 * time.Minute,
}

func (t Timing) filled() Timing {
	d := DefaultTiming
	set := func(to *time.Duration, from time.Duration) {
		if from > 0 {
			*to = from
		}
	}
	set(&d.Start, t.Start)
	set(&d.Ping, t.Ping)
	set(&d.PingTimeout, t.PingTimeout)
	set(&d.Ready, t.Ready)
	set(&d.BackoffMin, t.BackoffMin)
	set(&d.BackoffMax, t.BackoffMax)
	set(&d.Window, t.Window)
	set(&d.Quarantine, t.Quarantine)
	set(&d.MaxQuarant, t.MaxQuarant)
	if t.Crashes > 0 {
		d.Crashes = t.Crashes
	}
	if t.Strikes > 0 {
		d.Strikes = t.Strikes
	}
	return d
}

func (s Spec) filled() Spec {
	if s.Logger == nil {
		s.Logger = slog.Default()
	}
	s.Logger = s.Logger.With("plugin", s.Name)
	s.Timing = s.Timing.filled()
	return s
}

// checkTimeout bounds how long an accept waits for a plugin to look at a message.
const checkTimeout = 500 * time.Millisecond

// Describe starts a plugin to learn what it is, and stops it again. The Kind's Open starts a process that
// is kept running until its Close; its settings are wrong if Open returns an error, and a process that
// will not start is a matter of Health. The Kind's Check asks a process that is open in this host; where
// there is none, or it does not answer within half a second, the message passes.
func Describe(ctx context.Context, spec Spec) (providers.Kind, error) {
	spec = spec.filled()
	inst, err := launch(ctx, &spec, func(s string) string { return s }) // it knows nothing yet
	if err != nil {
		return providers.Kind{}, fmt.Errorf("start plugin %s: %w", spec.Name, err)
	}
	defer inst.end()
	return kindOf(inst, spec), nil
}

// Isolate returns a kind of this program that is opened in a process of its own: spec.Command with
// spec.Args must be a program that calls sdk.Serve with the same kind. It starts nothing, and messages
// are checked in this process.
func Isolate(kind providers.Kind, spec Spec) providers.Kind {
	spec = spec.filled()
	kind.Open = func(ctx context.Context, settings []byte) (providers.Provider, error) {
		return open(ctx, spec, kind, settings, nil)
	}
	return kind
}

// kindOf gives a described kind its functions.
func kindOf(inst *instance, spec Spec) providers.Kind {
	kind := inst.kind
	var latest atomic.Pointer[Process]
	if inst.features.Check {
		kind.Check = func(m *providers.Message) error {
			if p := latest.Load(); p != nil {
				return p.check(m)
			}
			return nil
		}
	}
	described := kind
	kind.Open = func(ctx context.Context, settings []byte) (providers.Provider, error) {
		return open(ctx, spec, described, settings, &latest)
	}
	return kind
}

// open starts the process and its supervisor.
func open(ctx context.Context, spec Spec, kind providers.Kind, settings []byte, latest *atomic.Pointer[Process]) (providers.Provider, error) {
	p := newProcess(spec, kind, settings)
	first, err := p.start(ctx)
	var wrong *wire.ProviderError
	if errors.As(err, &wrong) {
		return nil, fmt.Errorf("the settings of plugin %s: %s", spec.Name, p.scrub.secret(wrong.Text))
	}
	if ctx.Err() != nil {
		if first != nil {
			first.end()
		}
		return nil, fmt.Errorf("start plugin %s: %w", spec.Name, ctx.Err())
	}
	p.supervise(first, err)
	if latest != nil {
		latest.Store(p)
	}
	if first != nil && first.http != "" {
		return &server{p}, nil
	}
	return p, nil
}

var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// checkKind says what is wrong with how a plugin describes itself.
func checkKind(k *providers.Kind) error {
	if !namePattern.MatchString(k.Name) {
		return fmt.Errorf("its kind's name %.70q is not of lower-case letters, digits, '-' and '_'", k.Name)
	}
	if !namePattern.MatchString(k.Channel) {
		return fmt.Errorf("its channel's name %.70q is not of lower-case letters, digits, '-' and '_'", k.Channel)
	}
	if k.MaxBatch < 1 || k.MaxBatch > 100 {
		return fmt.Errorf("its batches are of %d messages; they must be of 1 to 100", k.MaxBatch)
	}
	if _, err := regexp.Compile(k.Address); err != nil {
		return fmt.Errorf("its address pattern: %w", err)
	}
	if k.Content != nil {
		var schema map[string]any
		if err := json.Unmarshal(k.Content, &schema); err != nil {
			return fmt.Errorf("its content schema is no JSON object: %w", err)
		}
	}
	types := []providers.SettingType{providers.String, providers.Int, providers.Bool, providers.Duration, providers.Choice, providers.File, providers.List}
	names := map[string]bool{}
	for _, s := range k.Settings {
		if names[s.Name] {
			return fmt.Errorf("its setting %.70q is there twice", s.Name)
		}
		names[s.Name] = true
		if s.Name == "" || !slices.Contains(types, s.Type) {
			return fmt.Errorf("its setting %.70q is of the type %.20q, which is none of %v", s.Name, s.Type, types)
		}
	}
	return nil
}
