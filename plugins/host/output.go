package host

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// The pace of a plugin's log: what comes faster is counted and dropped, so that a flood costs neither disk
// nor time. It is read on all the same: a plugin never waits for its log.
const (
	linesPerSecond = 100
	linesAtOnce    = 500
	tellDropped    = 10 * time.Second // how often it is told how many were dropped
)

const (
	maxLine  = 8 << 10  // how much of one line is kept
	readSize = 64 << 10 // how much is read at once
	maxLast  = 300      // how much is kept of the last line before Open
)

// output takes what a plugin writes to the host's log. A line in the format of hclog, which is what the
// SDK writes, keeps its level and its fields; any other one is logged at debug, for it may hold anything.
type output struct {
	log     *slog.Logger
	scrub   func(string) string
	limiter *rate.Limiter

	mu      sync.Mutex
	dropped int
	told    time.Time
	trusted bool   // it was given nothing yet that it could tell
	last    string // what it wrote last while it was trusted
}

// newOutput returns an output whose lines go through scrub.
func newOutput(log *slog.Logger, scrub func(string) string) *output {
	return &output{log: log, scrub: scrub, limiter: rate.NewLimiter(linesPerSecond, linesAtOnce), trusted: true}
}

// lastWords is what the plugin wrote last before it was given any settings: they say why it does not
// start, and can hold no secret of ours.
func (o *output) lastWords() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last
}

// distrust forgets the last words, and keeps none from now on.
func (o *output) distrust() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.trusted, o.last = false, ""
}

// drain logs lines until the reader, of readSize, ends.
func (o *output) drain(r *bufio.Reader, stream string) {
	for {
		if _, err := r.Peek(1); err != nil {
			return
		}
		if !o.allow() {
			o.skip(r)
			continue
		}
		line, err := readLine(r)
		if len(line) > 0 {
			o.line(stream, line)
		}
		if err != nil {
			return
		}
	}
}

// skip drops all lines that were read already, or the rest of one.
func (o *output) skip(r *bufio.Reader) {
	b, _ := r.Peek(r.Buffered())
	end := bytes.LastIndexByte(b, '\n') + 1
	if end == 0 {
		_, _ = readLine(r) // its error comes again
		return
	}
	o.drop(bytes.Count(b[:end], []byte{'\n'}) - 1) // allow counted one
	_, _ = r.Discard(end)
}

// readLine returns the next line without its end, cut to maxLine however long it is.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	line = bytes.Clone(bytes.TrimRight(line[:min(len(line), maxLine)], "\r\n"))
	for errors.Is(err, bufio.ErrBufferFull) {
		_, err = r.ReadSlice('\n')
	}
	return line, err
}

// allow reports whether a line may be logged now; one that may not is counted.
func (o *output) allow() bool {
	if o.limiter.Allow() {
		return true
	}
	o.drop(1)
	return false
}

// drop counts lines, and tells how many they are now and then.
func (o *output) drop(n int) {
	o.mu.Lock()
	o.dropped += n
	due := time.Since(o.told) > tellDropped
	o.mu.Unlock()
	if due {
		o.flush()
	}
}

// flush tells how many lines were dropped since it was last told.
func (o *output) flush() {
	o.mu.Lock()
	n := o.dropped
	o.dropped, o.told = 0, time.Now()
	o.mu.Unlock()
	if n > 0 {
		o.log.Warn("the plugin wrote faster than it is logged", "dropped", n)
	}
}

// line logs a line that was allowed.
func (o *output) line(stream string, line []byte) {
	level, message, attrs, ok := parse(string(line))
	if !ok {
		level, message = slog.LevelDebug, string(line)
	}
	o.mu.Lock()
	if o.trusted {
		o.last = message[:min(len(message), maxLast)]
	}
	o.mu.Unlock()
	if !o.log.Enabled(context.Background(), level) {
		return
	}
	text := o.scrub(string(line))
	if ok && text != string(line) {
		level, message, attrs, ok = parse(text)
	}
	if !ok {
		o.log.Debug("the plugin wrote", "stream", stream, "text", text)
		return
	}
	o.log.LogAttrs(context.Background(), level, message, attrs...)
}

var levels = map[string]slog.Level{"trace": slog.LevelDebug - 4, "debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}

// taken are names of attributes that the host writes itself.
var taken = []string{slog.TimeKey, slog.LevelKey, slog.MessageKey, slog.SourceKey, "plugin"}

// parse reads a line in the format of hclog.
func parse(line string) (level slog.Level, message string, attrs []slog.Attr, ok bool) {
	if !strings.HasPrefix(line, "{") {
		return 0, "", nil, false
	}
	var fields map[string]any
	if json.Unmarshal([]byte(line), &fields) != nil {
		return 0, "", nil, false
	}
	message, ok = fields["@message"].(string)
	if !ok {
		return 0, "", nil, false
	}
	name, _ := fields["@level"].(string)
	level, known := levels[name]
	if !known {
		level = slog.LevelInfo
	}
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		switch {
		case strings.HasPrefix(key, "@"):
		case slices.Contains(taken, key):
			attrs = append(attrs, slog.Any("its_"+key, fields[key]))
		default:
			attrs = append(attrs, slog.Any(key, fields[key]))
		}
	}
	return level, message, attrs, true
}

// writer takes what comes over go-plugin's own stream of a plugin's output.
func (o *output) writer(stream string) io.Writer { return &lineWriter{o: o, stream: stream} }

type lineWriter struct {
	o      *output
	stream string
	rest   []byte
}

// Write implements io.Writer. It is called from one goroutine.
func (w *lineWriter) Write(b []byte) (int, error) {
	n := len(b)
	for {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			w.rest = append(w.rest, b[:min(len(b), maxLine-len(w.rest))]...)
			return n, nil
		}
		if !w.o.allow() {
			i = bytes.LastIndexByte(b, '\n')
			w.o.drop(bytes.Count(b[:i], []byte{'\n'}))
		} else if line := append(w.rest, b[:min(i, maxLine-len(w.rest))]...); len(line) > 0 {
			w.o.line(w.stream, line)
		}
		w.rest, b = w.rest[:0], b[i+1:]
	}
}
