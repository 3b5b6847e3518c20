package queue_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/queue"
)

// TestClusterFailover tells that a queue in a Redis Cluster goes on soon after a node with a part of the slots is dead and
// another one has them. The dead one can say MOVED to nobody: it has to be looked for.
func TestClusterFailover(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*coretest.RedisServer){"dead": (*coretest.RedisServer).Kill, "hanging": (*coretest.RedisServer).Pause} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clusterFailover(t, lose)
		})
	}
}

func clusterFailover(t *testing.T, lose func(*coretest.RedisServer)) {
	nodes := coretest.StartRedisCluster(t, "--cluster-node-timeout", "500")
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.Addr)
	}
	q := open(t, queue.Options{URL: "redis-cluster://" + strings.Join(addrs, ",")})
	got := make(inbox, 1000)
	serve(t, q, got.handle)
	enqueue(t, q, wake())
	got.next(t)

	// Whoever has the queue dies.
	c := redis.NewClient(&redis.Options{Addr: addrs[0]})
	t.Cleanup(func() { _ = c.Close() })
	owner := ownerOf(t, c, c.ClusterKeySlot(t.Context(), "asynq:{a.normal}:pending").Val())
	dead := slices.Index(addrs, owner)
	if dead < 0 {
		t.Fatalf("%s has the queue, and not one of %s", owner, addrs)
	}
	coretest.LoseNode(t, nodes, dead, lose)
	w := wake()
	eventually(t, "wakes are taken again", func() bool { return q.Wake(limit(t), w) == nil })
	for g := got.next(t); g != w; g = got.next(t) {
	}
}

// ownerOf is the address of the node that has a slot.
func ownerOf(t *testing.T, c *redis.Client, slot int64) string {
	t.Helper()
	shards, err := c.ClusterShards(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range shards {
		for _, r := range s.Slots {
			if r.Start <= slot && slot <= r.End {
				return coretest.ShardAddr(s)
			}
		}
	}
	return ""
}
