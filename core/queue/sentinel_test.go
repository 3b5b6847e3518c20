package queue_test

import (
	"net"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/queue"
)

// TestFailover tells that a queue that is reached by Sentinel goes on when its Redis is killed and a replica takes its
// place: what is enqueued then is worked on, and that wakes were lost is noticed or nothing was lost.
func TestFailover(t *testing.T) {
	t.Parallel()
	master := coretest.StartRedis(t)
	host, port, _ := net.SplitHostPort(master.Addr)
	replica := coretest.StartRedis(t, "--replicaof", host+" "+port, "--repl-diskless-sync-delay", "0")
	addr := coretest.StartSentinel(t)
	sentinel := redis.NewSentinelClient(&redis.Options{Addr: addr})
	t.Cleanup(func() { _ = sentinel.Close() })
	if err := sentinel.Monitor(t.Context(), "main", host, port, "1").Err(); err != nil {
		t.Fatal(err)
	}
	for option, value := range map[string]string{"down-after-milliseconds": "500", "failover-timeout": "5000"} {
		if err := sentinel.Set(t.Context(), "main", option, value).Err(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the sentinel knows the replica, and that is in step", func() bool {
		known, err := sentinel.Replicas(t.Context(), "main").Result()
		return err == nil && len(known) == 1 && known[0]["master-link-status"] == "ok"
	})
	q := open(t, queue.Options{URL: "redis-sentinel://" + addr + "?master=main"})
	got := make(inbox, 1000)
	serve(t, q, got.handle)
	enqueue(t, q, wake())
	got.next(t)
	master.Kill()
	eventually(t, "the replica took over", func() bool {
		at, err := sentinel.GetMasterAddrByName(t.Context(), "main").Result()
		return err == nil && net.JoinHostPort(at[0], at[1]) == replica.Addr
	})
	w := wake()
	eventually(t, "wakes are taken again", func() bool { return q.Wake(limit(t), w) == nil })
	for end := time.Now().Add(soon); ; {
		if g := got.next(t); g == w {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it never came")
		}
	}
	eventually(t, "the epoch can be asked for", func() bool { _, err := q.Epoch(limit(t)); return err == nil })
}
