package client_test

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/core/client"
)

// TestDots: a name of dots is no way up in a path, to somebody else's: to take ann out of a topic ".." does not erase her.
func TestDots(t *testing.T) {
	t.Parallel()
	c, ctx := serve(t, nil), t.Context()
	if err := c.PutRecipient(ctx, &client.Recipient{ID: "ann"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".", ".."} {
		if err := c.DeleteTopicRecipient(ctx, name, "ann"); !client.IsNotFound(err) {
			t.Errorf("out of topic %s: %v", name, err)
		}
		var p *client.Problem
		if err := c.PutRecipient(ctx, &client.Recipient{ID: name}); !errors.As(err, &p) || p.Status != 422 {
			t.Errorf("recipient %s: %v", name, err)
		}
	}
	if _, err := c.Recipient(ctx, "ann"); err != nil {
		t.Errorf("ann is gone: %v", err)
	}
}

// TestBulkEndsEarly: where the server ends a stream within it, the caller hears that what follows was not taken.
func TestBulkEndsEarly(t *testing.T) {
	t.Parallel()
	c := serve(t, nil)
	long := hello("bob@example.com")
	long.Content["body"] = strings.Repeat("x", 300<<10)
	all := []*client.Notification{hello("ann@example.com"), long, hello("cid@example.com")}
	var got []int
	err := c.SendBulk(t.Context(), slices.Values(all), "", func(a client.BulkAnswer) error {
		got = append(got, a.Status)
		return nil
	})
	if !errors.Is(err, io.ErrUnexpectedEOF) || !slices.Equal(got, []int{202, 413}) {
		t.Errorf("answers %v of 3, %v", got, err)
	}
}
