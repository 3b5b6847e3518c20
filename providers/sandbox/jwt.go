package sandbox

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"strings"
	"time"
)

// claims are the members of JWTs that somebody here looks at (RFC 7519, section 4.1).
type claims struct {
	Alg   string  `json:"-"`
	KeyID string  `json:"-"`
	Iss   string  `json:"iss"`
	Sub   string  `json:"sub"`
	Aud   string  `json:"aud"`
	Scope string  `json:"scope"`
	Iat   float64 `json:"iat"`
	Exp   float64 `json:"exp"`
}

func (c *claims) issued() time.Time  { return time.Unix(int64(c.Iat), 0) }
func (c *claims) expires() time.Time { return time.Unix(int64(c.Exp), 0) }

var errToken = errors.New("sandbox: the token is not one of ours")

// verifyJWT checks the signature of a compact JWS, ES256 or RS256 as the key asks (RFC 7518, section 3).
func verifyJWT(token string, key crypto.PublicKey) (*claims, error) {
	signed, sig64, ok := cutLast(token)
	head64, body64, ok2 := strings.Cut(signed, ".")
	if !ok || !ok2 {
		return nil, errToken
	}
	c := &claims{}
	var head struct{ Alg, Kid string }
	sig, err := base64.RawURLEncoding.DecodeString(sig64)
	if err = errors.Join(err, decodePart(head64, &head), decodePart(body64, c)); err != nil {
		return nil, err
	}
	c.Alg, c.KeyID = head.Alg, head.Kid
	sum := sha256.Sum256([]byte(signed))
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		ok = head.Alg == "ES256" && len(sig) == 64 &&
			ecdsa.Verify(k, sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))
	case *rsa.PublicKey:
		ok = head.Alg == "RS256" && rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], sig) == nil
	default:
		ok = false
	}
	if !ok {
		return nil, errToken
	}
	return c, nil
}

func cutLast(s string) (before, after string, found bool) {
	i := strings.LastIndexByte(s, '.')
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

func decodePart(part string, v any) error {
	data, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// bearer takes the token out of an Authorization field; the scheme's case does not matter (RFC 9110,
// section 11.1).
func bearer(authorization string) string {
	const scheme = "bearer "
	if len(authorization) < len(scheme) || !strings.EqualFold(authorization[:len(scheme)], scheme) {
		return ""
	}
	return strings.TrimSpace(authorization[len(scheme):])
}
