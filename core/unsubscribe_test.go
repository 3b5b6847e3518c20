package core_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/carillon-notify/carillon/core"
)

func TestUnsubscribe(t *testing.T) {
	t.Parallel()
	key := []byte(strings.Repeat("k", 32))
	u := core.NewUnsubscriber(key, "https://n.example.com")
	want := core.Unsubscription{App: "shop", Recipient: "u_42 ü", Category: "news", Channel: "email"}
	link := u.Link(want)
	token, ok := strings.CutPrefix(link, "https://n.example.com/unsubscribe/")
	if !ok || strings.ContainsAny(token, "/+=?& ") {
		t.Fatalf("link %q", link)
	}
	if got, err := u.Read(token); err != nil || got != want {
		t.Errorf("read %+v, %v", got, err)
	}
	if _, err := core.NewUnsubscriber([]byte(strings.Repeat("x", 32)), "").Read(token); !errors.Is(err, core.ErrUnsubscribe) {
		t.Errorf("another key's link: %v", err)
	}
	for i := range token {
		c := byte('A')
		if token[i] == c {
			c = 'B'
		}
		if got, err := u.Read(token[:i] + string(c) + token[i+1:]); err == nil {
			t.Errorf("with character %d changed it reads %+v", i, got)
		}
	}
	for _, bad := range []string{"", "x", token[:21], token[:len(token)-1], token + "A", token + "=", "\n" + token} {
		if _, err := u.Read(bad); !errors.Is(err, core.ErrUnsubscribe) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for name, s := range map[string]core.Unsubscription{
		"no recipient": {App: "a", Category: "news", Channel: "email"}, "no category": {App: "a", Recipient: "u", Channel: "email"},
		"too long": {App: "a", Recipient: strings.Repeat("ü", 255), Category: strings.Repeat("ü", 128), Channel: "email"},
	} {
		if got := u.Link(s); got != "" {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := (*core.Unsubscriber)(nil).Link(want); got != "" {
		t.Errorf("without an unsubscriber: %q", got)
	}
}
