package websocket

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

// The rules of a recipient's token.
const (
	// Audience is the `aud` that every token carries.
	Audience = "carillon"
	// DefaultTokenTTL is how long a token is valid when nothing is said.
	DefaultTokenTTL = 15 * time.Minute
	// MaxTokenTTL is the longest a token may be valid.
	MaxTokenTTL = 24 * time.Hour
	// MinSecret is the least length of a secret in bytes: RFC 7518 section 3.2 asks of HS256 a key as
	// long as its hash.
	MinSecret = 32
)

// clockSkew is how far the clock of an app's own back end, minting with the shared secret, may be off in
// `iat` and `nbf`. It does not lengthen `exp`.
const clockSkew = 30 * time.Second

var (
	// ErrTokenExpired is returned by Verify for a token that was good and is too old.
	ErrTokenExpired = errors.New("token expired")
	// ErrTokenInvalid is returned by Verify for anything else that is no token of ours.
	ErrTokenInvalid = errors.New("invalid token")
)

// Claims is what a token proves: who the client is, and until when.
type Claims struct {
	App, Recipient string
	ExpiresAt      time.Time
}

// Tokens mints and verifies recipients' tokens: JWTs signed with HS256 and nothing else. It is safe for
// concurrent use.
type Tokens struct {
	keys   []key
	parser *jwt.Parser
	now    func() time.Time
}

type key struct {
	id     string
	secret []byte
}

type jwtClaims struct {
	App string `json:"app"`
	jwt.RegisteredClaims
}

// NewTokens signs with secret and accepts tokens signed with it or, while secrets change, with one of
// previous. Each secret is at least MinSecret bytes long.
func NewTokens(secret string, previous ...string) (*Tokens, error) {
	t := &Tokens{now: time.Now}
	for i, s := range append([]string{secret}, previous...) {
		if len(s) < MinSecret {
			return nil, fmt.Errorf("secret %d of %d is shorter than %d bytes; make one with: openssl rand -hex 32", i+1, len(previous)+1, MinSecret)
		}
		t.keys = append(t.keys, key{id: keyID(s), secret: []byte(s)})
	}
	t.parser = jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}),
		jwt.WithAudience(Audience),
		jwt.WithExpirationRequired(),
		jwt.WithIssuedAt(),
		jwt.WithLeeway(clockSkew),
		jwt.WithTimeFunc(func() time.Time { return t.now() }),
	)
	return t, nil
}

// keyID names a secret in a token's `kid` without saying anything useful about it.
func keyID(secret string) string {
	sum := sha256.Sum256([]byte("carillon websocket kid\x00" + secret))
	return hex.EncodeToString(sum[:6])
}

// Mint makes a token for one recipient of one app, valid for ttl: 0 is DefaultTokenTTL, more than
// MaxTokenTTL is refused. The end is a whole second.
func (t *Tokens) Mint(app, recipient string, ttl time.Duration) (token string, expires time.Time, err error) {
	switch {
	case ttl == 0:
		ttl = DefaultTokenTTL
	case ttl < time.Second || ttl > MaxTokenTTL:
		return "", time.Time{}, fmt.Errorf("mint token: ttl of %v is not between 1s and %v", ttl, MaxTokenTTL)
	}
	if app == "" || !validRecipient(recipient) {
		return "", time.Time{}, errors.New("mint token: the app is empty, or the recipient's id is not 1 to 255 characters without '/' and control characters")
	}
	now := t.now().Truncate(time.Second)
	expires = now.Add(ttl).Truncate(time.Second)
	tok := jwt.NewWithClaims(jwt.SigningMethodHS256, jwtClaims{App: app, RegisteredClaims: jwt.RegisteredClaims{
		Subject:   recipient,
		Audience:  jwt.ClaimStrings{Audience},
		IssuedAt:  jwt.NewNumericDate(now),
		ExpiresAt: jwt.NewNumericDate(expires),
		ID:        uuid.NewString(),
	}})
	tok.Header["kid"] = t.keys[0].id
	token, err = tok.SignedString(t.keys[0].secret)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("mint token: %w", err)
	}
	return token, expires, nil
}

// Verify checks a token and says whom it names. An app's own back end may mint tokens with the shared
// secret: `aud`, `sub`, `app` and `exp` are required, `kid`, `iat` and `nbf` are not; `exp` may be at
// most MaxTokenTTL away from `iat` and from now. The error is ErrTokenExpired or ErrTokenInvalid, and
// says no more, because a client sees it.
func (t *Tokens) Verify(token string) (Claims, error) {
	var c jwtClaims
	if _, err := t.parser.ParseWithClaims(token, &c, t.keysFor); err != nil {
		if errors.Is(err, jwt.ErrTokenExpired) && !errors.Is(err, jwt.ErrTokenSignatureInvalid) && !errors.Is(err, jwt.ErrTokenInvalidAudience) {
			return Claims{}, ErrTokenExpired
		}
		return Claims{}, ErrTokenInvalid
	}
	now, exp := t.now(), c.ExpiresAt.Time
	switch {
	case !now.Before(exp): // the parser's leeway is not for `exp`
		return Claims{}, ErrTokenExpired
	case exp.Sub(now) > MaxTokenTTL+clockSkew:
		return Claims{}, ErrTokenInvalid
	case c.IssuedAt != nil && exp.Sub(c.IssuedAt.Time) > MaxTokenTTL:
		return Claims{}, ErrTokenInvalid
	case c.App == "" || !validRecipient(c.Subject):
		return Claims{}, ErrTokenInvalid
	}
	return Claims{App: c.App, Recipient: c.Subject, ExpiresAt: exp}, nil
}

// keysFor gives the key that a token's `kid` names, or all of them for a token without one.
func (t *Tokens) keysFor(tok *jwt.Token) (any, error) {
	kid, named := tok.Header["kid"]
	var set jwt.VerificationKeySet
	for _, k := range t.keys {
		if !named || kid == k.id {
			set.Keys = append(set.Keys, k.secret)
		}
	}
	if len(set.Keys) == 0 {
		return nil, jwt.ErrTokenUnverifiable
	}
	return set, nil
}
