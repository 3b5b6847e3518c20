package core_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/carillon-notify/carillon/core"
)

func TestMaskAddress(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ kind, address, want string }{
		{"email", "ann@example.com", "a***@example.com"},
		{"email", "émile@example.com", "é***@example.com"},
		{"apns", strings.Repeat("0123456789abcdef", 4), "0123***cdef"},
		{"sms", "+4915112345678", "+491***5678"},
		{"sms", "+4915112", "***"},
		{"chat", "@ann:example.com", "@ann***.com"},
		{"websocket", "u_42", "u_42"},
		{"email", "", ""},
	} {
		if got := core.MaskAddress(c.kind, c.address); got != c.want {
			t.Errorf("%s %q is shown as %q, want %q", c.kind, c.address, got, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) { // never the whole of it, and text stays text
		address := rapid.StringN(4, 80, -1).Draw(t, "address")
		got := core.MaskAddress("sms", address)
		if strings.Contains(got, address) || !utf8.ValidString(got) {
			t.Fatalf("%q is shown as %q", address, got)
		}
	})
}
