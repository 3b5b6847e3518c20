package core_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
)

func TestStatusOf(t *testing.T) {
	t.Parallel()
	now := core.Notification{SendAt: t0}
	ahead := core.Notification{SendAt: t0.Add(time.Hour)}
	cancelled := core.Notification{SendAt: t0, CancelledAt: t0}
	for name, c := range map[string]struct {
		n     core.Notification
		c     core.Counts
		begun bool
		want  core.Status
	}{
		"nothing began":                    {now, core.Counts{Pending: 2}, false, core.StatusAccepted},
		"due this instant":                 {core.Notification{SendAt: t0}, core.Counts{Pending: 1}, false, core.StatusAccepted},
		"not due":                          {ahead, core.Counts{Pending: 2}, false, core.StatusScheduled},
		"a first attempt was made":         {now, core.Counts{Pending: 2}, true, core.StatusProcessing},
		"begun although not due":           {ahead, core.Counts{Pending: 2}, true, core.StatusProcessing},
		"some sent":                        {now, core.Counts{Pending: 1, Sent: 1}, true, core.StatusProcessing},
		"one cancelled, one waits":         {ahead, core.Counts{Pending: 1, Cancelled: 1}, false, core.StatusProcessing},
		"all sent":                         {now, core.Counts{Sent: 2}, true, core.StatusCompleted},
		"all failed":                       {now, core.Counts{Failed: 2}, true, core.StatusCompleted},
		"all expired before an attempt":    {now, core.Counts{Expired: 1}, false, core.StatusCompleted},
		"a bit of everything":              {now, core.Counts{Sent: 1, Delivered: 1, Failed: 1, Expired: 1, Cancelled: 1, Suppressed: 1}, true, core.StatusCompleted},
		"all cancelled":                    {cancelled, core.Counts{Cancelled: 3}, false, core.StatusCancelled},
		"cancelled, but some were sent":    {cancelled, core.Counts{Cancelled: 2, Sent: 1}, true, core.StatusCompleted},
		"cancelled, one still on its way":  {cancelled, core.Counts{Cancelled: 2, Pending: 1}, true, core.StatusProcessing},
		"reaches nobody":                   {now, core.Counts{}, false, core.StatusCompleted},
		"reaches nobody, and is scheduled": {ahead, core.Counts{}, false, core.StatusCompleted},
		"reaches nobody, cancelled":        {cancelled, core.Counts{}, false, core.StatusCancelled},
	} {
		if got := core.StatusOf(&c.n, c.c, c.begun, t0); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// Every state has a counter of its own, and the total is their sum.
func TestCounts(t *testing.T) {
	t.Parallel()
	var c core.Counts
	total := 0
	for s := core.Pending; s <= core.Suppressed; s++ {
		n := 1 << s
		c.Add(s, n)
		total += n
	}
	c.Add(0, 1000)
	c.Add(core.Suppressed+1, 1000)
	if want := (core.Counts{Pending: 2, Sent: 4, Delivered: 8, Failed: 16, Expired: 32, Cancelled: 64, Suppressed: 128}); c != want {
		t.Errorf("got %+v, want %+v", c, want)
	}
	if c.Total() != total {
		t.Errorf("total %d, want %d", c.Total(), total)
	}
	if fields := reflect.TypeOf(c).NumField(); fields != int(core.Suppressed) {
		t.Errorf("%d counters for %d states", fields, core.Suppressed)
	}
}

func TestServesAndCan(t *testing.T) {
	t.Parallel()
	all, some := core.Route{}, core.Route{Apps: []string{"a", "b"}}
	if !all.Serves("x") || !some.Serves("b") || some.Serves("x") || some.Serves("") {
		t.Error("a route serves every app, or those that it lists")
	}
	for _, c := range []struct {
		scopes []string
		scope  string
		want   bool
	}{
		{nil, "send", false}, {[]string{"read"}, "send", false}, {[]string{"read", "send"}, "send", true},
		{[]string{"admin"}, "send", true}, {[]string{"send"}, "admin", false},
	} {
		if got := (core.Principal{Scopes: c.scopes}).Can(c.scope); got != c.want {
			t.Errorf("%v can %s: %v", c.scopes, c.scope, got)
		}
	}
}
