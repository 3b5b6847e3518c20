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

// mostSaid is how much is remembered of what was said.
const mostSaid = 256

// said is what was said within sayAgain.
type said struct {
	mu sync.Mutex
	at map[string]time.Time
}

// again reports whether something was said within sayAgain. If not, it is now.
func (s *said) again(what string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last, ok := s.at[what]; ok && time.Since(last) < sayAgain {
		return true
	}
	if s.at == nil || len(s.at) >= mostSaid {
		s.at = map[string]time.Time{}
	}
	s.at[what] = time.Now()
	return false
}

// logger hands the log lines of one asynq server on, each kind of complaint once in sayAgain; what another queue's
// said in the same words, as they all do while Redis is away, not at all.
type logger struct {
	log   *slog.Logger
	queue string
	kinds said  // of this server: by how the line begins
	words *said // of all of them
}

// repeated reports whether a line's like was said within sayAgain. Lines of one kind differ by an error
// or an id, which come after the first colon or equals sign.
func (l *logger) repeated(text string) bool {
	kind := text
	if i := strings.IndexAny(text, ":="); i > 0 {
		kind = text[:i]
	}
	return l.words.again(strings.ReplaceAll(text, l.queue, "")) || l.kinds.again(kind)
}

func (l *logger) say(level slog.Level, args []any) {
	text := fmt.Sprint(args...)
	if level > slog.LevelDebug && l.repeated(text) {
		level = slog.LevelDebug
	}
	l.log.Log(context.Background(), level, "asynq: "+text, "queue", l.queue)
}

func (l *logger) Debug(args ...any) { l.say(slog.LevelDebug, args) }
func (l *logger) Info(args ...any)  { l.say(slog.LevelInfo, args) }
func (l *logger) Warn(args ...any)  { l.say(slog.LevelWarn, args) }
func (l *logger) Error(args ...any) { l.say(slog.LevelError, args) }
func (l *logger) Fatal(args ...any) { l.say(slog.LevelError, args) }
