package queue_test

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core/queue"
)

// TestEmbeddedAsksNobody: the Redis in this process has no name that could be looked up. It runs before
// the parallel tests, as it watches the resolver of them all.
func TestEmbeddedAsksNobody(t *testing.T) {
	was := net.DefaultResolver
	defer func() { net.DefaultResolver = was }()
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		t.Error("a name was asked of DNS")
		return nil, errors.New("nobody is to be asked")
	}}
	q, err := queue.Open(t.Context(), queue.Options{URL: queue.Embedded, Routes: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	client := q.ConnOpt().MakeRedisClient().(*redis.Client)
	if err := errors.Join(client.Ping(t.Context()).Err(), client.Close(), q.Close()); err != nil {
		t.Error(err)
	}
}
