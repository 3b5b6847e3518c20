package sandbox

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"net/url"
	"strings"
	"time"
)

const (
	clientEmail = "carillon@" + Project + ".iam.gserviceaccount.com"
	tokenLife   = time.Hour
	tokenPrefix = "ya29.sandbox-"
	jwtGrant    = "urn:ietf:params:oauth:grant-type:jwt-bearer" // RFC 7523, section 2.1
)

// scopes are those that let a service account send messages.
var scopes = map[string]bool{
	"https://www.googleapis.com/auth/firebase.messaging": true, "https://www.googleapis.com/auth/cloud-platform": true,
}

// oauth serves the token endpoint (RFC 7523; errors of RFC 6749, section 5.2).
func (s *Sandbox) oauth(r *request) verdict {
	refuse := func(code, description string) verdict {
		body, err := json.Marshal(map[string]string{"error": code, "error_description": description})
		if err != nil {
			panic(err) // strings: cannot fail
		}
		return verdict{status: 400, contentType: jsonUTF8, body: body}
	}
	form, err := url.ParseQuery(string(r.body))
	switch {
	case r.method != "POST", err != nil:
		return refuse("invalid_request", "A form is expected.")
	case form.Get("grant_type") != jwtGrant:
		return refuse("unsupported_grant_type", "Invalid grant_type: "+form.Get("grant_type"))
	}
	c, err := verifyJWT(form.Get("assertion"), &s.keys.accountKey.PublicKey)
	now := time.Now()
	switch {
	case err != nil:
		return refuse("invalid_grant", "Invalid JWT Signature.")
	case c.Iss != clientEmail:
		return refuse("invalid_grant", "Invalid grant: account not found")
	case c.Aud != s.FCMURL()+"/token":
		return refuse("invalid_grant", "Invalid JWT: Failed audience check.")
	case c.issued().After(now.Add(5 * time.Minute)), !c.expires().After(now), c.expires().Sub(c.issued()) > tokenLife+time.Minute:
		return refuse("invalid_grant", "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your iat and exp values in the JWT claim.")
	case !mayMessage(c.Scope):
		return refuse("invalid_scope", "Invalid OAuth scope or ID token audience provided.")
	}
	body, err := json.Marshal(map[string]any{
		"access_token": s.accessToken(now.Add(tokenLife)), "expires_in": int(tokenLife/time.Second) - 1, "token_type": "Bearer",
	})
	if err != nil {
		panic(err) // strings and a number: cannot fail
	}
	return verdict{status: 200, contentType: jsonUTF8, body: body}
}

func mayMessage(list string) bool {
	for scope := range strings.FieldsSeq(list) {
		if scopes[scope] {
			return true
		}
	}
	return false
}

// accessToken makes an access token that says itself until when it is good, so that it outlives a
// restart as Google's do.
func (s *Sandbox) accessToken(until time.Time) string {
	b := binary.BigEndian.AppendUint64(nil, uint64(until.Unix()))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, s.tokenMAC(b)...))
}

func (s *Sandbox) tokenMAC(b []byte) []byte {
	mac := hmac.New(sha256.New, s.keys.accountKey.D.Bytes())
	mac.Write(b) //nolint:errcheck // a hash never fails
	return mac.Sum(nil)
}

// authorized says whether a request carries an access token of ours, or a JWT that the service account
// signed itself, which Google's APIs take too (developers.google.com/identity/protocols/oauth2/service-account#jwt-auth).
func (s *Sandbox) authorized(p *peer, r *request) bool {
	token := bearer(r.get("authorization"))
	if token == "" {
		return false
	}
	now := time.Now()
	if token == p.token && now.Before(p.good) {
		return true
	}
	var until time.Time
	if opaque, ok := strings.CutPrefix(token, tokenPrefix); ok {
		b, err := base64.RawURLEncoding.DecodeString(opaque)
		if err != nil || len(b) < 8 || !hmac.Equal(b[8:], s.tokenMAC(b[:8])) {
			return false
		}
		until = time.Unix(int64(binary.BigEndian.Uint64(b)), 0)
	} else {
		c, err := verifyJWT(token, &s.keys.accountKey.PublicKey)
		if err != nil || c.Iss != clientEmail || c.Aud != "https://fcm.googleapis.com/" && !mayMessage(c.Scope) ||
			c.expires().Sub(c.issued()) > tokenLife+time.Minute {
			return false
		}
		until = c.expires()
	}
	if !now.Before(until) {
		return false
	}
	p.token, p.good = token, until
	return true
}
