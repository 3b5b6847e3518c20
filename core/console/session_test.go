package console_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/core"
	"github.com/carillon-notify/carillon/core/console"
)

func TestLogin(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for _, c := range []struct {
		name, key string
		status    int
		says      string
	}{
		{"admin", adminKey, http.StatusSeeOther, ""},
		{"reader", readKey, http.StatusSeeOther, ""},
		{"with spaces around it", " " + readKey + "\n", http.StatusSeeOther, ""},
		{"sender only", onlySendKey, http.StatusForbidden, "lacks the scope read"},
		{"nobody's", "car_wrong", http.StatusUnauthorized, "nobody's API key"},
		{"none", "", http.StatusUnauthorized, "nobody's API key"},
		{"too long a form", strings.Repeat("x", 5000), http.StatusUnauthorized, "nobody's API key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp := r.do(visit{method: http.MethodPost, path: "/console/login", form: url.Values{"key": {c.key}}})
			text := read(t, resp)
			if resp.StatusCode != c.status || !strings.Contains(shown(t, text, ""), c.says) {
				t.Errorf("answered %d, want %d and %q: %s", resp.StatusCode, c.status, c.says, text)
			}
			if in := len(resp.Cookies()) > 0; in != (c.says == "") {
				t.Errorf("cookies %v", resp.Cookies())
			}
			if c.key != "" && strings.Contains(text, strings.TrimSpace(c.key)) {
				t.Error("the page shows the key")
			}
		})
	}
}

// TestCookie: scripts and other sites do not get at the session, and it tells nothing of the key.
func TestCookie(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for name, c := range map[string]struct {
		header map[string]string
		secure bool
	}{"plain": {nil, false}, "behind a TLS proxy": {map[string]string{"X-Forwarded-Proto": "https"}, true}} {
		resp := r.do(visit{method: http.MethodPost, path: "/console/login", form: url.Values{"key": {readKey}}, header: c.header})
		if len(resp.Cookies()) != 1 {
			t.Fatalf("%s: cookies %v", name, resp.Cookies())
		}
		k := resp.Cookies()[0]
		if !k.HttpOnly || k.SameSite != http.SameSiteStrictMode || k.Path != "/console" || k.Domain != "" || k.Secure != c.secure || k.MaxAge <= 0 || k.MaxAge > 24*3600 {
			t.Errorf("%s: the cookie is %+v", name, k)
		}
		raw, err := base64.RawURLEncoding.DecodeString(k.Value)
		hash := sha256.Sum256([]byte(readKey))
		if err != nil || strings.Contains(string(raw), readKey) || strings.Contains(string(raw), string(hash[:])) {
			t.Errorf("%s: the cookie's value tells of the key: %q %v", name, raw, err)
		}
	}
	if a, b := r.login(readKey), r.login(readKey); a == b {
		t.Error("two sessions have the same cookie")
	}
}

func TestSession(t *testing.T) {
	t.Parallel()
	withdrawn := false
	r := newRig(t, func(o *console.Options) {
		principal := o.Principal
		o.Principal = func(ctx context.Context, hash [32]byte, remote string) (core.Principal, error) {
			if withdrawn {
				return core.Principal{}, core.ErrNotFound
			}
			return principal(ctx, hash, remote)
		}
	})
	other := newRig(t, func(o *console.Options) { o.Secret = []byte("another secret of thirty-two bytes") })
	good, hash := r.login(readKey), sha256.Sum256([]byte(readKey))
	flipped := []byte(good)
	flipped[len(flipped)/2] ^= 1
	for _, c := range []struct {
		name, cookie string
		in           bool
	}{
		{"good", good, true},
		{"about to end", r.console.Cookie(hash, time.Now().Add(time.Minute)), true},
		{"ended", r.console.Cookie(hash, time.Now().Add(-time.Second)), false},
		{"of nobody's key", r.console.Cookie(sha256.Sum256([]byte("x")), time.Now().Add(time.Hour)), false},
		{"of a key that may not read", r.console.Cookie(sha256.Sum256([]byte(onlySendKey)), time.Now().Add(time.Hour)), false},
		{"tampered with", string(flipped), false},
		{"of another secret", other.login(readKey), false},
		{"cut", good[:20], false},
		{"no base64", "a.b", false},
		{"none", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp := r.do(visit{path: "/console/", cookie: c.cookie})
			if in := resp.StatusCode == http.StatusOK; in != c.in {
				t.Fatalf("answered %d", resp.StatusCode)
			}
			if !c.in && resp.Header.Get("Location") != "/console/login" {
				t.Errorf("sent to %q", resp.Header.Get("Location"))
			}
			if dropped := len(resp.Cookies()) == 1 && resp.Cookies()[0].MaxAge < 0; dropped != (!c.in && c.cookie != "") {
				t.Errorf("cookies %v", resp.Cookies())
			}
		})
	}
	withdrawn = true
	if resp := r.do(visit{path: "/console/", cookie: good}); resp.StatusCode != http.StatusSeeOther {
		t.Errorf("the session of a withdrawn key is answered %d", resp.StatusCode)
	}
}

func TestLogout(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	resp := r.do(visit{method: http.MethodPost, path: "/console/logout", cookie: r.login(readKey)})
	if resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != "/console/login" {
		t.Errorf("answered %d to %q", resp.StatusCode, resp.Header.Get("Location"))
	}
	if k := resp.Cookies(); len(k) != 1 || k[0].Name != "carillon_session" || k[0].Value != "" || k[0].MaxAge >= 0 || k[0].Path != "/console" {
		t.Errorf("the cookie is not deleted: %+v", k)
	}
	if resp := r.do(visit{path: "/console/logout"}); resp.StatusCode == http.StatusOK || len(resp.Cookies()) > 0 {
		t.Errorf("a link logs out: %d %v", resp.StatusCode, resp.Cookies())
	}
}

// TestNext: after the login a browser goes where it was sent from, and never to another site.
func TestNext(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for next, want := range map[string]string{
		"":                                     "/console/",
		"/console/live?recipient=u_7":          "/console/live?recipient=u_7",
		"/console/queues/":                     "/console/queues/",
		"/console/notifications":               "/console/notifications",
		"/console/login":                       "/console/",
		"/v1/notifications":                    "/console/",
		"//evil.example/console/":              "/console/",
		"https://evil.example/console/":        "/console/",
		"/console/..//evil.example":            "/console/",
		`/console/\evil.example`:               "/console/",
		"javascript:alert(1)":                  "/console/",
		"/console/%2e%2e/%2e%2e//evil.example": "/console/",
		"\x00":                                 "/console/",
	} {
		resp := r.do(visit{method: http.MethodPost, path: "/console/login", form: url.Values{"key": {readKey}, "next": {next}}})
		if got := resp.Header.Get("Location"); got != want {
			t.Errorf("next=%q leads to %q, want %q", next, got, want)
		}
	}
	resp := r.do(visit{path: "/console/live?recipient=u_7"})
	login, err := url.Parse(resp.Header.Get("Location"))
	if err != nil || login.Query().Get("next") != "/console/live?recipient=u_7" {
		t.Errorf("sent to %q", resp.Header.Get("Location"))
	}
	if page := read(t, r.do(visit{path: login.String()})); !strings.Contains(page, `name="next" value="/console/live?recipient=u_7"`) {
		t.Errorf("the form does not carry the page on: %s", page)
	}
}

// TestGuessing: wrong keys are counted by address, together with the API's; who is known passes.
func TestGuessing(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	const guesser, behindSame, elsewhere = "198.51.100.7:1", "198.51.100.7:2", "198.51.100.8:1"
	try := func(key, from string) int {
		return r.do(visit{method: http.MethodPost, path: "/console/login", form: url.Values{"key": {key}}, from: from}).StatusCode
	}
	session := r.login(readKey) // from another address; from now on the key is known
	refused := 0
	for i := range 40 {
		switch got := try(fmt.Sprint("car_guess_", i), guesser); got {
		case http.StatusUnauthorized:
		case http.StatusTooManyRequests:
			refused++
		default:
			t.Fatalf("guess %d answered %d", i, got)
		}
	}
	if refused < 9 || refused > 10 { // one more comes back each minute, by fractions
		t.Errorf("%d of 40 guesses were refused unseen, want those after the 30th", refused)
	}
	for _, c := range []struct {
		name, key, from string
		want            int
	}{
		{"a key that was not seen before", adminKey, behindSame, http.StatusTooManyRequests},
		{"a key that is known", readKey, behindSame, http.StatusSeeOther},
		{"another address", sendKey, elsewhere, http.StatusSeeOther},
	} {
		if got := try(c.key, c.from); got != c.want {
			t.Errorf("%s answered %d, want %d", c.name, got, c.want)
		}
	}
	if got := r.do(visit{path: "/console/", cookie: session, from: behindSame}).StatusCode; got != http.StatusOK {
		t.Errorf("a session beside the guesser is answered %d", got)
	}
	hash := sha256.Sum256([]byte(otherKey))
	if got := r.do(visit{path: "/console/", cookie: r.console.Cookie(hash, time.Now().Add(time.Hour)), from: behindSame}); got.StatusCode != http.StatusTooManyRequests || len(got.Cookies()) > 0 {
		t.Errorf("a session that cannot be checked now is answered %d and loses its cookie: %v", got.StatusCode, got.Cookies())
	}
}

// TestStoreAway: a store that cannot answer is no wrong key, and its error is for the log alone.
func TestStoreAway(t *testing.T) {
	t.Parallel()
	away := false
	r := newRig(t, func(o *console.Options) {
		principal := o.Principal
		o.Principal = func(ctx context.Context, hash [32]byte, remote string) (core.Principal, error) {
			if away {
				return core.Principal{}, errors.New("dial 10.0.0.5: secret detail")
			}
			return principal(ctx, hash, remote)
		}
	})
	session := r.login(readKey)
	away = true
	for _, v := range []visit{{method: http.MethodPost, path: "/console/login", form: url.Values{"key": {readKey}}}, {path: "/console/", cookie: session}} {
		resp := r.do(v)
		if text := read(t, resp); resp.StatusCode != http.StatusServiceUnavailable || strings.Contains(text, "secret detail") || len(resp.Cookies()) > 0 {
			t.Errorf("%s answered %d %v: %s", v.path, resp.StatusCode, resp.Cookies(), text)
		}
	}
	if !strings.Contains(r.log.String(), "secret detail") {
		t.Errorf("the log does not tell: %s", r.log)
	}
}
