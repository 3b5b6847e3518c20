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

	"golang.org/x/time/rate"
)

// The pace of a plugin's log: what comes faster is counted and dropped, so that a flood costs neither disk
// nor time.
const (
	linesPerSecond = 100
	linesAtOnce    = 500
)

// output takes what a plugin writes to the host's log. A line in the format of hclog, which is what the
// SDK writes, keeps its level and its fields; any other one is logged at debug, for it may hold anything.
type output struct {
	log     *slog.Logger
	limiter *rate.Limiter

	mu      sync.Mutex
	dropped int
}

func newOutput(log *slog.Logger) *output {
	return &output{log: log, limiter: rate.NewLimiter(linesPerSecond, linesAtOnce)}
}

// drain logs lines until the reader ends.
func (o *output) drain(r io.Reader, stream string) {
	lines, ok := r.(*bufio.Reader)
	if !ok {
		lines = bufio.NewReaderSize(r, maxLine)
	}
	for {
		line, err := readLine(lines)
		if len(line) > 0 {
			o.line(stream, line)
		}
		if err != nil {
			return
		}
	}
}

// readLine returns the next line without its end, cut to the reader's size however long it is.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	line = bytes.Clone(bytes.TrimRight(line, "\r\n"))
	for errors.Is(err, bufio.ErrBufferFull) {
		_, err = r.ReadSlice('\n')
	}
	return line, err
}

func (o *output) line(stream string, line []byte) {
	if !o.limiter.Allow() {
		o.mu.Lock()
		o.dropped++
		o.mu.Unlock()
		return
	}
	o.flush()
	level, message, attrs, ok := parse(line)
	if !ok {
		o.log.Debug("the plugin wrote", "stream", stream, "text", string(line))
		return
	}
	o.log.LogAttrs(context.Background(), level, message, attrs...)
}

// flush tells how many lines were dropped since it was last told.
func (o *output) flush() {
	o.mu.Lock()
	n := o.dropped
	o.dropped = 0
	o.mu.Unlock()
	if n > 0 {
		o.log.Warn("the plugin wrote faster than it is logged", "dropped", n)
	}
}

var levels = map[string]slog.Level{"trace": slog.LevelDebug - 4, "debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}

// parse reads a line in the format of hclog.
func parse(line []byte) (level slog.Level, message string, attrs []slog.Attr, ok bool) {
	if len(line) == 0 || line[0] != '{' {
		return 0, "", nil, false
	}
	var fields map[string]any
	if json.Unmarshal(line, &fields) != nil {
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
		if !strings.HasPrefix(key, "@") {
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
			w.rest = append(w.rest, b[:min(len(b), maxLine-min(len(w.rest), maxLine))]...)
			return n, nil
		}
		if line := append(w.rest, b[:min(i, maxLine)]...); len(line) > 0 {
			w.o.line(w.stream, line)
		}
		w.rest, b = w.rest[:0], b[i+1:]
	}
}
