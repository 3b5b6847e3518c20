package plugintest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// ErrFailed says that a plugin did not pass; the report says where.
var ErrFailed = errors.New("the plugin did not pass")

// Trial is what is known of a built plugin from outside.
type Trial struct {
	// Path is the executable, Args are its arguments. Needed.
	Path string
	Args []string
	// Settings are those of a route; nil where there are none to try, and then only what can be seen
	// without a provider is examined, unless the plugin needs none.
	Settings map[string]any
	// Address is where test messages go, which ask the service to check and not to deliver. Whether it
	// obeys is the plugin's affair, so let it be an address of your own. "" sends nothing.
	Address string
	// Soon is as in Exam.
	Soon time.Duration
}

// Command examines a built plugin as far as it can be from outside, and writes a report. The plugin is
// started many times, with wrong settings too, and once killed. The error wraps ErrFailed where it did not
// pass; what is wrong is in the report.
func Command(ctx context.Context, trial Trial, w io.Writer) error {
	e := Exam{Command: trial.Path, Args: trial.Args, Settings: trial.Settings, Soon: trial.Soon}
	if e.Soon <= 0 {
		e.Soon = 3 * time.Second
	}
	if trial.Address != "" {
		e.Message = func(int) providers.Message {
			return providers.Message{Address: trial.Address, Title: "Carillon", Body: "This is a test."}
		}
	}
	s := newSitting(&e, &tally{}, inOwnProcess)
	s.gentle = true
	r := &report{w: w}
	restore := s.witness.listen()
	defer restore()
	if err := s.reach(); err != nil {
		r.printf("%s does not start as a plugin: %v\n", trial.Path, err)
		for _, line := range s.witness.log() {
			r.printf("    %s\n", line)
		}
		return errors.Join(fmt.Errorf("%w: %s", ErrFailed, trial.Path), r.err)
	}
	s.witness.know(s.kind.Settings, flatten(s.Settings))
	r.kind(&s.kind)
	s.tryWithout()
	sub := recording("", r.check)
	for _, c := range s.checks() {
		if c.run == nil || ctx.Err() != nil {
			continue
		}
		sub(c.name, func(t testing.TB, _ runner) {
			if why := s.skips(&c); why != "" {
				t.Skip(why)
			}
			c.run(t, s)
		})
	}
	r.skips()
	r.printf("\n%d passed, %d failed, %d not examined.\n", r.passed, r.failed, r.skipped)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("examine %s: %w", trial.Path, ctx.Err())
	case r.failed > 0:
		return errors.Join(fmt.Errorf("%w: %d of its checks failed", ErrFailed, r.failed), r.err)
	}
	return r.err
}

// tryWithout finds out whether the plugin opens without settings, where none were given.
func (s *sitting) tryWithout() {
	if s.Settings != nil {
		return
	}
	recording("", func(r record) {
		if r.failed {
			s.refused = strings.Join(r.lines, "; ")
		}
	})("open", func(t testing.TB, _ runner) {
		if _, err := s.tryOpen(t, []byte("{}")); err != nil {
			t.Errorf("it wants settings (%v)", err)
		}
	})
}

// report writes for a person.
type report struct {
	w                       io.Writer
	err                     error // of w, the first
	passed, failed, skipped int

	reason  string   // why unasked were not examined
	unasked []string // one after the other
}

func (r *report) printf(format string, args ...any) {
	if _, err := fmt.Fprintf(r.w, format, args...); err != nil && r.err == nil {
		r.err = fmt.Errorf("write the report: %w", err)
	}
}

func (r *report) kind(k *providers.Kind) {
	r.printf("Kind %s of the channel %s, batches of %d.\n%s\n", k.Name, k.Channel, k.MaxBatch, k.Doc)
	secret := ""
	if k.Secret {
		secret = ", shown masked"
	}
	r.printf("Addresses match %s%s.\n\nSettings:\n", k.Address, secret)
	for i := range k.Settings {
		s := &k.Settings[i]
		notes := []string{string(s.Type)}
		if len(s.Values) > 0 {
			notes = append(notes, strings.Join(s.Values, "|"))
		}
		if s.Required {
			notes = append(notes, "required")
		}
		if s.Secret {
			notes = append(notes, "secret")
		}
		if s.Default != "" {
			notes = append(notes, "default "+s.Default)
		}
		r.printf("  %-20s %s: %s\n", s.Name, strings.Join(notes, ", "), s.Doc)
	}
	if len(k.Settings) == 0 {
		r.printf("  none\n")
	}
	r.printf("\n")
}

func (r *report) check(c record) {
	if c.skipped && !c.failed && len(c.lines) == 1 {
		if r.reason != c.lines[0] {
			r.skips()
		}
		r.reason, r.unasked = c.lines[0], append(r.unasked, c.name)
		r.skipped++
		return
	}
	r.skips()
	word := "ok"
	switch {
	case c.failed:
		word = "FAILED"
		r.failed++
	case c.skipped:
		word = "-"
		r.skipped++
	default:
		r.passed++
	}
	r.printf("%-7s %s\n", word, c.name)
	for _, line := range c.lines {
		r.printf("        %s\n", strings.ReplaceAll(line, "\n", "\n        "))
	}
}

// skips tells what was not examined for one reason.
func (r *report) skips() {
	if len(r.unasked) > 0 {
		r.printf("%-7s %s: %s\n", "-", strings.Join(r.unasked, ", "), r.reason)
	}
	r.unasked = nil
}

// maxLog is how much of a plugin's log is shown.
const maxLog = 20

// log is what was logged, without what must not be shown.
func (w *witness) log() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, line := range slices.Sorted(maps.Keys(w.logs)) {
		if len(out) == maxLog {
			break
		}
		if w.logs[line] >= slog.LevelDebug {
			_, masked := w.given(line, true)
			out = append(out, strings.TrimSpace(masked))
		}
	}
	return out
}
