package queue_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hibiken/asynq"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/coretest"
	"github.com/carillon-notify/carillon/core/queue"
)

// TestAnnouncements tells what is announced of several wakes of a queue: that there are some, with the latest due time, once.
func TestAnnouncements(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_790_000_000, 0)
	type ring = queue.Announced
	for name, tc := range map[string]struct {
		rings []ring
		want  map[string]int64
	}{
		"none":                      {nil, map[string]int64{}},
		"at once":                   {[]ring{{"a", time.Time{}}, {"a", time.Time{}}}, map[string]int64{"a": 0}},
		"later":                     {[]ring{{"a", at}}, map[string]int64{"a": at.Unix()}},
		"later, then at once":       {[]ring{{"a", at}, {"a", time.Time{}}}, map[string]int64{"a": at.Unix()}},
		"later, then not so late":   {[]ring{{"a", at}, {"a", at.Add(-time.Minute)}}, map[string]int64{"a": at.Unix()}},
		"of two queues":             {[]ring{{"a", at}, {"b", time.Time{}}}, map[string]int64{"a": at.Unix(), "b": 0}},
		"at once, then much later":  {[]ring{{"a", time.Time{}}, {"a", at}}, map[string]int64{"a": at.Unix()}},
		"one after another of them": {[]ring{{"a", at}, {"a", at.Add(time.Second)}}, map[string]int64{"a": at.Unix() + 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, second := queue.Announcements(tc.rings...)
			if diff := cmp.Diff(tc.want, first); diff != "" {
				t.Error(diff)
			}
			if len(second) != 0 {
				t.Errorf("announced twice: %v", second)
			}
		})
	}
}

// TestOwnAnnouncement tells that a process does not ring for what it announced itself: it has.
func TestOwnAnnouncement(t *testing.T) {
	t.Parallel()
	addr := coretest.Redis(t)
	q := open(t, queue.Options{URL: "redis://" + addr})
	got := make(inbox, 10)
	s := serveAs(t, q, queue.ServeOptions{Handler: got.handle, Concurrency: map[core.Lane]int{"normal": 1, "bulk": 1}})
	c := client(t, addr)
	sub := c.Subscribe(t.Context(), "carillon:doorbell")
	t.Cleanup(func() { _ = sub.Close() })
	if _, err := sub.Receive(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is subscribed", func() bool {
		n, err := c.PubSubNumSub(t.Context(), "carillon:doorbell").Result()
		return err == nil && n["carillon:doorbell"] == 2
	})
	enqueue(t, q, wake())
	got.next(t)
	select {
	case m := <-sub.Channel():
		if !strings.HasSuffix(m.Payload, " 0 a.normal") {
			t.Errorf("announced: %q", m.Payload)
		}
	case <-time.After(soon):
		t.Fatal("it is not announced")
	}
	// What comes after it was heard later.
	if err := c.Publish(t.Context(), "carillon:doorbell", "x 0 a.bulk").Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another's is heard", func() bool { return s.Rung("bulk") > 0 })
	if n := s.Rung("normal"); n != 1 {
		t.Errorf("it rang %d times for one wake", n)
	}
}

// TestAnnouncedTogether tells that an announcement of wakes due later rings as well: others that are due at once may be
// announced with them.
func TestAnnouncedTogether(t *testing.T) {
	t.Parallel()
	addr := coretest.Redis(t)
	q := open(t, queue.Options{URL: "redis://" + addr})
	waiting := make(chan string, 100)
	q.DoNotPoll()
	q.TellWaiting(func(q string) { waiting <- q })
	got := make(inbox, 10)
	serve(t, q, got.handle)
	select {
	case <-waiting:
	case <-time.After(soon):
		t.Fatal("the dequeue does not wait for its bell")
	}
	c := client(t, addr)
	eventually(t, "it is subscribed", func() bool {
		n, err := c.PubSubNumSub(t.Context(), "carillon:doorbell").Result()
		return err == nil && n["carillon:doorbell"] == 1
	})
	w := wake()
	body := fmt.Sprintf(`{"b":"%s","f":1}`, w.Batch)
	if _, err := asynq.NewClientFromRedisClient(c).EnqueueContext(t.Context(), asynq.NewTask(queue.TaskType, []byte(body)), asynq.Queue("a.normal")); err != nil {
		t.Fatal(err)
	}
	if err := c.Publish(t.Context(), "carillon:doorbell", fmt.Sprintf("x %d a.normal", time.Now().Add(time.Minute).Unix())).Err(); err != nil {
		t.Fatal(err)
	}
	if g := got.next(t); g != w {
		t.Errorf("%+v came", g)
	}
}
