package queue_test

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/queue"
)

// TestLost: wakes that Redis did not take are told of once it takes writes again, and then no more.
func TestLost(t *testing.T) {
	t.Parallel()
	r := coretest.StartRedis(t)
	q := open(t, queue.Options{URL: "redis://" + r.Addr})
	enqueue(t, q, wake())
	if lost, err := q.Lost(limit(t)); len(lost) != 0 || err != nil {
		t.Errorf("lost, with nothing amiss: %v, %v", lost, err)
	}
	r.Do("CONFIG", "SET", "maxmemory", "1")
	want := []core.Wake{wake(), wake()}
	for _, w := range want {
		if err := q.Wake(limit(t), w); err == nil {
			t.Fatal("a full Redis took a wake")
		}
	}
	if lost, err := q.Lost(limit(t)); len(lost) != 0 || err == nil {
		t.Errorf("lost, while Redis is full: %v, %v", lost, err)
	}
	r.Do("CONFIG", "SET", "maxmemory", "0")
	lost, err := q.Lost(limit(t))
	if err != nil || !slices.Equal(lost, want) {
		t.Errorf("lost: %v, not %v; %v", lost, want, err)
	}
	if lost, err := q.Lost(limit(t)); len(lost) != 0 || err != nil {
		t.Errorf("lost twice: %v, %v", lost, err)
	}
}

// TestLostMany: of very many wakes that a full Redis does not take few are tried, and as many are remembered as there is
// room for.
func TestLostMany(t *testing.T) {
	t.Parallel()
	const most = 10_000
	r := coretest.StartRedis(t)
	q := open(t, queue.Options{URL: "redis://" + r.Addr})
	r.Do("CONFIG", "SET", "maxmemory", "1")
	for _, n := range []int{most - 10, 100, 1} {
		if err := q.Wake(limit(t), many("a", n, time.Time{})...); err == nil {
			t.Fatal("a full Redis took wakes")
		}
	}
	info, err := client(t, r.Addr).Info(t.Context(), "errorstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	if m := regexp.MustCompile(`errorstat_OOM:count=(\d+)`).FindStringSubmatch(info); len(m) != 2 {
		t.Errorf("nothing was refused: %s", info)
	} else if refused, _ := strconv.Atoi(m[1]); refused > 1000 {
		t.Errorf("%d commands were refused one after the other", refused)
	}
	r.Do("CONFIG", "SET", "maxmemory", "0")
	if lost, err := q.Lost(limit(t)); len(lost) != most || err != nil {
		t.Errorf("%d are remembered, %v", len(lost), err)
	}
}

// TestLostInPart: where the connection breaks in the middle of many wakes, each of them is in Redis or told of as lost, and
// hardly one is both.
func TestLostInPart(t *testing.T) {
	t.Parallel()
	const n = 5000
	r := coretest.StartRedis(t)
	link := coretest.StartProxy(t, r.Addr)
	q := open(t, queue.Options{URL: "redis://" + link.Addr})
	c := client(t, r.Addr)
	link.Slow(time.Millisecond, 0)
	ws := many("a", n, time.Time{})
	done := make(chan error, 1)
	go func() { done <- q.Wake(limit(t), ws...) }()
	eventually(t, "some are enqueued", func() bool { return c.LLen(t.Context(), "asynq:{a.normal}:pending").Val() > 100 })
	link.Cut()
	if err := <-done; err == nil {
		t.Fatal("all went through")
	}
	link.Heal()
	var lost []core.Wake
	eventually(t, "Redis takes writes", func() bool {
		var err error
		lost, err = q.Lost(limit(t))
		return err == nil && len(lost) > 0
	})
	ids, err := c.LRange(context.Background(), "asynq:{a.normal}:pending", 0, -1).Result()
	if err != nil {
		t.Fatal(err)
	}
	where := map[string]int{}
	for _, id := range ids {
		where[id]++
	}
	both := 0
	for i := range lost {
		id := fmt.Sprint(lost[i].Batch, ":1")
		if where[id]++; where[id] > 1 {
			both++
		}
	}
	if len(where) != n || both > 100 {
		t.Errorf("%d are in Redis and %d lost: %d of %d, %d are both", len(ids), len(lost), len(where), n, both)
	}
}
