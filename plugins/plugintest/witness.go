package plugintest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"log"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/carillon-notify/carillon/providers"
)

// The lengths in bytes below which a text is too common to be looked for.
const (
	minSecret  = 6
	minAddress = 6
	minContent = 12
)

// witness remembers what a provider said and what it must not have said.
type witness struct {
	mu        sync.Mutex
	secrets   map[string]string   // what gives a secret away -> the setting's name
	addresses map[string]struct{} // of messages that were sent
	contents  map[string]struct{} // likewise
	texts     map[string]string   // what was said -> where
	logs      map[string]slog.Level
}

func newWitness() *witness {
	return &witness{secrets: map[string]string{}, addresses: map[string]struct{}{}, contents: map[string]struct{}{},
		texts: map[string]string{}, logs: map[string]slog.Level{}}
}

// know takes in the secrets among the settings, in each form in which one might be repeated.
func (w *witness) know(settings []providers.Setting, values map[string]any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range settings {
		if !s.Secret {
			continue
		}
		for _, value := range texts(values[s.Name]) {
			forms := []string{value, url.QueryEscape(value), url.PathEscape(value), base64.StdEncoding.EncodeToString([]byte(value))}
			if quoted, err := json.Marshal(value); err == nil {
				forms = append(forms, strings.Trim(string(quoted), `"`))
			}
			if lines := strings.Split(value, "\n"); len(lines) > 1 {
				for _, line := range lines { // of a key in PEM
					if len(line) >= 16 && !strings.HasPrefix(line, "-----") {
						forms = append(forms, line)
					}
				}
			}
			for _, f := range forms {
				if len(f) >= minSecret {
					w.secrets[f] = s.Name
				}
			}
		}
	}
}

// texts are the texts in a setting's value.
func texts(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []string:
		return v
	case []any:
		var out []string
		for _, one := range v {
			out = append(out, texts(one)...)
		}
		return out
	}
	return nil
}

// sent takes in a message.
func (w *witness) sent(m *providers.Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(m.Address) >= minAddress {
		w.addresses[m.Address] = struct{}{}
	}
	for _, text := range []string{m.Title, m.Body, m.Name, m.Unsubscribe} {
		if len(text) >= minContent {
			w.contents[text] = struct{}{}
		}
	}
}

// saw takes in what the provider said.
func (w *witness) saw(where, text string) {
	if text == "" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.texts[text]; !ok {
		w.texts[text] = where
	}
}

// accuse fails the test for each thing that was said and should not have been.
func (w *witness) accuse(t testing.TB) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, text := range slices.Sorted(maps.Keys(w.texts)) {
		if what, masked := w.given(text, true); what != "" {
			t.Errorf("%s holds %s: %.300q", w.texts[text], what, masked)
		}
	}
	for _, line := range slices.Sorted(maps.Keys(w.logs)) {
		// What a person switches on to see more may name whom it is about; a secret is never logged.
		if what, masked := w.given(line, w.logs[line] > slog.LevelDebug); what != "" {
			t.Errorf("a log line at %s holds %s: %.300q", w.logs[line], what, masked)
		}
	}
}

// given says what a text gives away, "" if nothing, and returns the text without it.
func (w *witness) given(text string, private bool) (what, masked string) {
	masked = text
	find := func(needle, is string) {
		if strings.Contains(masked, needle) {
			what, masked = is, strings.ReplaceAll(masked, needle, "***")
		}
	}
	if private {
		for content := range w.contents {
			find(content, "the content of a message")
		}
		for address := range w.addresses {
			find(address, "the address of a message")
		}
	}
	for secret, setting := range w.secrets {
		find(secret, "the secret setting "+setting)
	}
	return what, masked
}

// listen puts the witness in the place of the default logger, and returns what undoes that.
func (w *witness) listen() (restore func()) {
	logger, out, flags := slog.Default(), log.Writer(), log.Flags()
	slog.SetDefault(slog.New(w.handler()))
	return func() {
		slog.SetDefault(logger)
		log.SetOutput(out) // which SetDefault has led to slog
		log.SetFlags(flags)
	}
}

// handler takes in log records.
func (w *witness) handler() slog.Handler {
	line := &logLine{}
	return &logHandler{w: w, line: line, Handler: slog.NewTextHandler(line, &slog.HandlerOptions{Level: slog.LevelDebug - 4})}
}

// logLine is the text of one record.
type logLine struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (l *logLine) Write(b []byte) (int, error) { return l.text.Write(b) }

// logHandler is a slog.Handler that writes each record to a line and hands that to a witness.
type logHandler struct {
	slog.Handler
	w    *witness
	line *logLine
}

// Handle implements slog.Handler.
func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	h.line.mu.Lock()
	h.line.text.Reset()
	err := h.Handler.Handle(ctx, r)
	text := h.line.text.String()
	h.line.mu.Unlock()
	if _, rest, ok := strings.Cut(text, " level="); ok { // without the time, equal lines are one
		text = "level=" + rest
	}
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if old, ok := h.w.logs[text]; !ok || old < r.Level {
		h.w.logs[text] = r.Level
	}
	return err
}

// WithAttrs implements slog.Handler.
func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logHandler{Handler: h.Handler.WithAttrs(attrs), w: h.w, line: h.line}
}

// WithGroup implements slog.Handler.
func (h *logHandler) WithGroup(name string) slog.Handler {
	return &logHandler{Handler: h.Handler.WithGroup(name), w: h.w, line: h.line}
}

// secrets holds what was said during the whole exam against what must not be said.
func secrets(t testing.TB, s *sitting) {
	if len(s.witness.secrets) == 0 {
		t.Logf("no secret setting has a value of %d bytes or more: only addresses and contents were looked for", minSecret)
	}
	s.witness.accuse(t)
}

// lateResults looks back on the whole exam.
func lateResults(t testing.TB, s *sitting) {
	eventually(s.Soon/10, func() bool { return s.late.Load() > 0 }) // those of the last calls
	if n := s.late.Load(); n > 0 {
		t.Errorf("%d results came after their Deliver had returned", n)
	}
}
