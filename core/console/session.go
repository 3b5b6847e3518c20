package console

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/core"
)

const (
	cookieName   = "carillon_session"
	sessionSpan  = 12 * time.Hour
	maxLoginBody = 4 << 10
)

// session is who is logged in. The cookie holds the SHA-256 of the key and when the session ends, sealed:
// whose key that is and what it may do is asked each time, so that a withdrawn key's sessions end too.
type session struct{ core.Principal }

func newSeal(secret []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, secret, nil, "carillon console session", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func (c *Console) cookie(hash [32]byte, ends time.Time) string {
	text := binary.BigEndian.AppendUint64(hash[:], uint64(ends.Unix()))
	return base64.RawURLEncoding.EncodeToString(c.seal.Seal(nil, nil, text, nil))
}

// open returns the key's hash from a cookie's value.
func (c *Console) open(value string) (hash [32]byte, ok bool) {
	sealed, err := base64.RawURLEncoding.DecodeString(value)
	if err != nil {
		return hash, false
	}
	text, err := c.seal.Open(nil, nil, sealed, nil)
	if err != nil || len(text) != len(hash)+8 {
		return hash, false
	}
	copy(hash[:], text)
	return hash, time.Now().Unix() < int64(binary.BigEndian.Uint64(text[len(hash):]))
}

// session finds who sent a request; core.ErrNotFound for nobody who is logged in.
func (c *Console) session(r *http.Request) (session, error) {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return session{}, core.ErrNotFound
	}
	hash, ok := c.open(cookie.Value)
	if !ok {
		return session{}, core.ErrNotFound
	}
	p, err := c.o.Principal(r.Context(), hash, r.RemoteAddr)
	if err == nil && !p.Can("read") {
		err = core.ErrNotFound
	}
	return session{p}, err
}

// member lets in who is logged in with a scope, and sends who is not logged in to the login.
func (c *Console) member(scope string, next func(http.ResponseWriter, *http.Request, session)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := c.session(r)
		switch {
		case errors.Is(err, core.ErrTooManyFailures):
			c.fail(w, r, session{}, &problem{http.StatusTooManyRequests, "Wait a minute", tooMany})
		case errors.Is(err, core.ErrNotFound):
			if _, cookieErr := r.Cookie(cookieName); cookieErr == nil {
				http.SetCookie(w, emptyCookie(r)) // it is good for nothing any more, and is not tried again
			}
			if r.Method != http.MethodGet || strings.HasPrefix(r.URL.Path, Queues+"/api/") {
				http.Error(w, "log in at /console/login first", http.StatusUnauthorized)
				return
			}
			to := "/console/login"
			if r.URL.Path != Root {
				to += "?" + url.Values{"next": {r.URL.RequestURI()}}.Encode()
			}
			http.Redirect(w, r, to, http.StatusSeeOther)
		case err != nil:
			c.fail(w, r, session{}, err)
		case !s.Can(scope):
			c.fail(w, r, s, &problem{http.StatusForbidden, "Not allowed", "The key that you are logged in with lacks the scope " + scope + "."})
		default:
			next(w, r, s)
		}
	})
}

// within returns where to go after the login: a page of the console, whatever was asked for.
func within(next string) string {
	u, err := url.Parse(next)
	if err != nil || u.Scheme != "" || u.Host != "" || u.Opaque != "" || strings.Contains(u.Path, `\`) {
		return Root
	}
	clean := path.Clean(u.Path)
	if !strings.HasPrefix(clean, Root) || clean == "/console/login" {
		return Root
	}
	if strings.HasSuffix(u.Path, "/") {
		clean += "/"
	}
	return (&url.URL{Path: clean, RawQuery: u.RawQuery}).String()
}

const tooMany = "Too many wrong keys came from this address. Wait a minute, then try once more."

// loginBody is what the login page shows.
type loginBody struct{ Next, Error string }

func (c *Console) loginPage(w http.ResponseWriter, r *http.Request) {
	c.page(w, http.StatusOK, "login.html", page{Title: "Log in", Body: loginBody{Next: r.FormValue("next")}})
}

// login takes an API key with the scope read or admin as the password.
func (c *Console) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxLoginBody)
	key, next := strings.TrimSpace(r.PostFormValue("key")), r.PostFormValue("next")
	hash := sha256.Sum256([]byte(key))
	err := c.try(r.Context(), hash, r.RemoteAddr)
	var p *problem
	switch {
	case errors.As(err, &p):
		c.page(w, p.status, "login.html", page{Title: "Log in", Body: loginBody{next, p.about}})
	case err != nil:
		c.fail(w, r, session{}, err)
	default:
		cookie := emptyCookie(r)
		cookie.Value, cookie.MaxAge = c.cookie(hash, time.Now().Add(sessionSpan)), int(sessionSpan.Seconds())
		http.SetCookie(w, cookie)
		http.Redirect(w, r, within(next), http.StatusSeeOther)
	}
}

// try checks that a key may read.
func (c *Console) try(ctx context.Context, hash [32]byte, remote string) error {
	p, err := c.o.Principal(ctx, hash, remote)
	switch {
	case errors.Is(err, core.ErrNotFound):
		return &problem{status: http.StatusUnauthorized, about: "That is nobody's API key."}
	case errors.Is(err, core.ErrTooManyFailures):
		return &problem{status: http.StatusTooManyRequests, about: tooMany}
	case err == nil && !p.Can("read"):
		return &problem{status: http.StatusForbidden, about: "That key lacks the scope read."}
	}
	return err
}

func (c *Console) logout(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, emptyCookie(r))
	http.Redirect(w, r, "/console/login", http.StatusSeeOther)
}

// emptyCookie is the session's cookie without a session: it deletes the one that a browser has.
func emptyCookie(r *http.Request) *http.Cookie {
	return &http.Cookie{Name: cookieName, Path: "/console", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: isTLS(r)}
}

// isTLS reports whether the browser speaks TLS, to us or to a proxy before us. A client that says so
// without cause only gets a cookie that it will not send back.
func isTLS(r *http.Request) bool {
	return r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https"
}
