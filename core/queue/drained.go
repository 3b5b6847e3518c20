package queue

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core"
)

// Drained says of which of some queues no wake is waiting that is due: all that was, somebody has taken. It
// asks Redis in one round trip. What is due later is told by this process's clock.
func (q *Queue) Drained(ctx context.Context, of []core.RouteLane) ([]core.RouteLane, error) {
	if len(of) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	pipe, now := q.client.Pipeline(), strconv.FormatInt(time.Now().Unix(), 10)
	counts := make([][2]*redis.IntCmd, len(of))
	for i, on := range of {
		key := q.key(name(on.Route, on.Lane))
		counts[i] = [2]*redis.IntCmd{pipe.LLen(ctx, key+"pending"), pipe.ZCount(ctx, key+"scheduled", "-inf", now)}
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("ask Redis at %s what waits in the queues: %w", q.url, err)
	}
	var drained []core.RouteLane
	for i, c := range counts {
		if c[0].Val() == 0 && c[1].Val() == 0 {
			drained = append(drained, of[i])
		}
	}
	return drained, nil
}
