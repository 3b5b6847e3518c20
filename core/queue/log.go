package queue

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// quiet hands go-redis's own words to slog, at debug: whatever fails is returned as an error too, and
// said once by whoever gets it.
var quiet = sync.OnceFunc(func() { redis.SetLogger(redisLog{}) })

type redisLog struct{}

// Printf implements go-redis's internal logger.
func (redisLog) Printf(ctx context.Context, format string, args ...any) {
	slog.DebugContext(ctx, "redis: "+fmt.Sprintf(format, args...))
}

// sayAgain is after how long asynq may repeat a complaint: it makes some of them twice a second while
// Redis is away.
const sayAgain = time.Minute

// logger hands the log lines of one asynq server on, each kind of complaint once in sayAgain.
type logger struct {
	log *slog.Logger

	mu   sync.Mutex
	said map[string]time.Time // by how the line begins
}

// repeated reports whether a line's like was said within sayAgain. Lines of one kind differ by an error
// or an id, which come after the first colon or equals sign.
func (l *logger) repeated(text string) bool {
	kind := text
	if i := strings.IndexAny(text, ":="); i > 0 {
		kind = text[:i]
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if last, ok := l.said[kind]; ok && time.Since(last) < sayAgain {
		return true
	}
	if l.said == nil {
		l.said = map[string]time.Time{}
	}
	l.said[kind] = time.Now()
	return false
}

func (l *logger) say(level slog.Level, args []any) {
	text := fmt.Sprint(args...)
	if level > slog.LevelDebug && l.repeated(text) {
		level = slog.LevelDebug
	}
	l.log.Log(context.Background(), level, "asynq: "+text)
}

func (l *logger) Debug(args ...any) { l.say(slog.LevelDebug, args) }
func (l *logger) Info(args ...any)  { l.say(slog.LevelInfo, args) }
func (l *logger) Warn(args ...any)  { l.say(slog.LevelWarn, args) }
func (l *logger) Error(args ...any) { l.say(slog.LevelError, args) }
func (l *logger) Fatal(args ...any) { l.say(slog.LevelError, args) }
