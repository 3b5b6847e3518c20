package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/carillon-notify/carillon/core"
)

const (
	keyTTL   = 10 * time.Second // how long a withdrawn key may still be good
	knownTTL = time.Hour        // how long a key that was good passes an empty bucket
	maxKnown = 10_000
	// The bucket of failures of one address: 30 at once, one more each minute.
	failBurst = 30
	failEvery = time.Minute
)

// Authenticator finds who holds an API key. Keys are 256 random bits, looked up by their SHA-256, so that
// no comparison's time tells anything about one. It counts failures by the caller's address: whoever
// takes keys shares one, so that a guesser has one budget for all doors.
type Authenticator struct {
	keys    Keys
	mu      sync.Mutex
	known   map[[32]byte]knownKey
	buckets map[netip.Prefix]bucket
}

type knownKey struct {
	principal core.Principal
	checked   time.Time
}

type bucket struct {
	spent float64
	at    time.Time
}

// NewAuthenticator returns an Authenticator over the keys given.
func NewAuthenticator(keys Keys) *Authenticator {
	return &Authenticator{keys: keys, known: map[[32]byte]knownKey{}, buckets: map[netip.Prefix]bucket{}}
}

var (
	errUnauthorized = &failure{status: http.StatusUnauthorized, detail: "Give a valid key or token as Authorization: Bearer <...>."}
	errTooMany      = &failure{status: http.StatusTooManyRequests, detail: "Too many failed attempts from this address.", retry: 60}
)

// authorize finds the caller and checks the scope ("" lets anybody in).
func (a *API) authorize(r *http.Request, c *call, scope string) error {
	if scope == "" {
		return nil
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return errUnauthorized // nothing was tried, so nothing is counted
	}
	from, now := source(r.RemoteAddr), time.Now()
	if scope == recipientScope {
		return a.authorizeRecipient(c, token, from, now)
	}
	p, err := a.Auth.principal(r.Context(), sha256.Sum256([]byte(token)), from, now)
	switch {
	case errors.Is(err, core.ErrNotFound):
		return errUnauthorized
	case errors.Is(err, core.ErrTooManyFailures):
		return errTooMany
	case err != nil:
		return err
	}
	if !p.Can(scope) {
		return refuse(http.StatusForbidden, "The key lacks the scope "+scope+".")
	}
	c.principal = p
	return nil
}

func (a *API) authorizeRecipient(c *call, token string, from netip.Prefix, now time.Time) error {
	if a.Tokens == nil {
		return ErrNoChannel
	}
	app, recipient, expires, err := a.Tokens.Verify(token)
	if errors.Is(err, ErrNoChannel) {
		return ErrNoChannel
	}
	if err != nil || !expires.After(now) || recipient == "" {
		if a.Auth.fail(from, now) {
			return errTooMany
		}
		return errUnauthorized
	}
	c.principal, c.recipient = core.Principal{App: app}, recipient
	return nil
}

// Principal says whom a key's SHA-256 stands for: core.ErrNotFound for nobody, which counts as a failure
// of the remote address (host:port), core.ErrTooManyFailures where that address has had too many. What
// it says may be 10 s old.
func (au *Authenticator) Principal(ctx context.Context, hash [32]byte, remote string) (core.Principal, error) {
	return au.principal(ctx, hash, source(remote), time.Now())
}

func (au *Authenticator) principal(ctx context.Context, hash [32]byte, from netip.Prefix, now time.Time) (core.Principal, error) {
	au.mu.Lock()
	k, known := au.known[hash]
	known = known && now.Sub(k.checked) < knownTTL
	empty := !known && au.spent(from, now) >= failBurst
	au.mu.Unlock()
	switch {
	case known && now.Sub(k.checked) < keyTTL:
		return k.principal, nil
	case empty:
		return core.Principal{}, core.ErrTooManyFailures
	}
	p, err := au.keys.Principal(ctx, hash)
	if errors.Is(err, core.ErrNotFound) {
		au.forget(hash)
		if au.fail(from, now) {
			return core.Principal{}, core.ErrTooManyFailures
		}
		return core.Principal{}, core.ErrNotFound
	}
	if err != nil {
		return core.Principal{}, fmt.Errorf("find the API key: %w", err)
	}
	au.mu.Lock()
	defer au.mu.Unlock()
	if len(au.known) >= maxKnown {
		clear(au.known)
	}
	au.known[hash] = knownKey{p, now}
	return p, nil
}

func (au *Authenticator) forget(hash [32]byte) {
	au.mu.Lock()
	delete(au.known, hash)
	au.mu.Unlock()
}

// fail counts a failure and reports whether the address has had too many.
func (au *Authenticator) fail(from netip.Prefix, now time.Time) bool {
	au.mu.Lock()
	defer au.mu.Unlock()
	if len(au.buckets) >= maxKnown {
		clear(au.buckets)
	}
	spent := au.spent(from, now)
	if spent >= failBurst {
		return true
	}
	au.buckets[from] = bucket{spent + 1, now}
	return false
}

// spent is how much of an address's bucket is used; au.mu is held.
func (au *Authenticator) spent(from netip.Prefix, now time.Time) float64 {
	b := au.buckets[from]
	return max(0, b.spent-float64(now.Sub(b.at))/float64(failEvery))
}

// source is the network that a caller is counted as: an IPv4 address, an IPv6 /64.
func source(remote string) netip.Prefix {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Prefix{}
	}
	ip = ip.Unmap().WithZone("")
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
