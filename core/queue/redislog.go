package queue

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

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
