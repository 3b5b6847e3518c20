package queue_test

import (
	"net"
	"slices"
	"strconv"
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

	at := func(n int) *redis.Client {
		c := redis.NewClient(&redis.Options{Addr: addrs[n]})
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	// Whoever has the queue dies.
	slot := at(0).ClusterKeySlot(t.Context(), "asynq:{a.normal}:pending").Val()
	owner, slots := ownerOf(t, at(0), slot)
	dead := slices.Index(addrs, owner)
	if dead < 0 {
		t.Fatalf("%s has slot %d, and not one of %s", owner, slot, addrs)
	}
	heir, other := at((dead+1)%3), at((dead+2)%3)
	nodes[dead].Kill()
	for _, line := range []string{"DELSLOTSRANGE", "ADDSLOTSRANGE"} {
		if err := heir.Do(t.Context(), "CLUSTER", line, slots.Start, slots.End).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := heir.Do(t.Context(), "CLUSTER", "BUMPEPOCH").Err(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*redis.Client{heir, other} {
		eventually(t, "the living know who has the slots", func() bool {
			info := c.ClusterInfo(t.Context()).Val()
			owner, _ := ownerOf(t, c, slot)
			return strings.Contains(info, "cluster_state:ok") && owner == addrs[(dead+1)%3]
		})
	}
	w := wake()
	eventually(t, "wakes are taken again", func() bool { return q.Wake(limit(t), w) == nil })
	for g := got.next(t); g != w; g = got.next(t) {
	}
}

// ownerOf is the address of the node that has a slot, by the word of another, and which slots it has beside.
func ownerOf(t *testing.T, c *redis.Client, slot int64) (addr string, slots redis.SlotRange) {
	t.Helper()
	shards, err := c.ClusterShards(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range shards {
		for _, r := range s.Slots {
			if r.Start <= slot && slot <= r.End {
				return net.JoinHostPort(s.Nodes[0].IP, strconv.FormatInt(s.Nodes[0].Port, 10)), r
			}
		}
	}
	return "", slots
}
