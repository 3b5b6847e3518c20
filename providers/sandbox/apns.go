package sandbox

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The rules and reasons are those of Apple's "Sending notification requests to APNs" and "Handling
// notification responses from APNs", developer.apple.com/documentation/usernotifications.

// apnsReasons are Apple's reasons and the status that goes with each.
var apnsReasons = map[string]int{
	"BadCollapseId": 400, "BadDeviceToken": 400, "BadExpirationDate": 400, "BadMessageId": 400, "BadPriority": 400,
	"BadTopic": 400, "DeviceTokenNotForTopic": 400, "DuplicateHeaders": 400, "IdleTimeout": 400, "InvalidPushType": 400,
	"MissingDeviceToken": 400, "MissingTopic": 400, "PayloadEmpty": 400, "TopicDisallowed": 400,
	"BadCertificate": 403, "BadCertificateEnvironment": 403, "ExpiredProviderToken": 403, "Forbidden": 403,
	"InvalidProviderToken": 403, "MissingProviderToken": 403, "UnrelatedKeyIdInToken": 403, "BadEnvironmentKeyIdInToken": 403,
	"BadPath": 404, "MethodNotAllowed": 405, "ExpiredToken": 410, "Unregistered": 410, "PayloadTooLarge": 413,
	"TooManyProviderTokenUpdates": 429, "TooManyRequests": 429, "InternalServerError": 500,
	"ServiceUnavailable": 503, "Shutdown": 503,
}

// apnsStatuses are the reasons meant by a bare status in a Script.
var apnsStatuses = map[string]string{
	"400": "BadDeviceToken", "403": "InvalidProviderToken", "404": "BadPath", "405": "MethodNotAllowed",
	"410": "Unregistered", "413": "PayloadTooLarge", "429": "TooManyRequests", "500": "InternalServerError",
	"503": "ServiceUnavailable",
}

// gatewayError is the body of a 502 or 504: not the service's own, and no JSON.
const gatewayError = "<html><head><title>Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>\n"

type apnsAnswer struct {
	status int
	reason string // "" for a gateway's error
}

// apnsError finds the answer that an error code of a Script stands for.
func apnsError(code string) (apnsAnswer, bool) {
	if reason, ok := apnsStatuses[code]; ok {
		code = reason
	}
	if status, ok := apnsReasons[code]; ok {
		return apnsAnswer{status, code}, true
	}
	status, _ := strconv.Atoi(code)
	return apnsAnswer{status: status}, code == "502" || code == "504"
}

// pushTypes are the values of apns-push-type and what each adds to the topic.
var pushTypes = map[string]string{
	"alert": "", "background": "", "controls": "", "mdm": "", "location": ".location-query", "voip": ".voip",
	"complication": ".complication", "fileprovider": ".pushkit.fileprovider", "liveactivity": ".push-type.liveactivity",
	"pushtotalk": ".voip-ptt", "widgets": ".push-type.widgets",
}

const (
	maxPayload     = 4096
	maxVoIPPayload = 5120
	maxCollapseID  = 64
)

// push serves one request to APNs.
func (s *Sandbox) push(p *peer, r *request) verdict {
	plan, book := s.plans[APNs].Load(), s.ledger.books[APNs]
	book.requests.Add(1)
	f := plan.next()
	if f.dropBefore {
		return verdict{drop: true}
	}
	v := verdict{apnsID: r.get("apns-id"), delay: f.delay}
	if v.apnsID == "" {
		v.apnsID = newUUID()
	}
	token, reason := s.checkPush(p, r)
	switch {
	case reason != "":
		s.apnsRefuse(&v, plan, apnsAnswer{apnsReasons[reason], reason})
		return v
	case plan.DeadAddress(token):
		s.apnsRefuse(&v, plan, apnsAnswer{410, "Unregistered"})
		return v
	}
	e := &entry{at: time.Now(), service: APNs, id: v.apnsID, address: token, header: r.header, content: r.body}
	if f.err != "" {
		answer, _ := apnsError(f.err)
		s.apnsRefuse(&v, plan, answer)
		if f.takenAnyway {
			e.answered, v.entry = f.err, e
			s.ledger.take(e)
		}
		return v
	}
	v.silent, v.drop = f.stall, f.dropAfter && !f.stall
	if !v.silent && !v.drop {
		v.status, v.entry, e.answered = 200, e, "200"
		book.answer("200")
	}
	s.ledger.take(e)
	return v
}

func (s *Sandbox) apnsRefuse(v *verdict, p *plan, a apnsAnswer) {
	v.status, v.retryAfter = a.status, p.retryAfter(a.status)
	if a.reason == "" {
		v.contentType, v.body = "text/html", []byte(gatewayError)
		s.ledger.books[APNs].answer(strconv.Itoa(a.status))
		return
	}
	v.contentType = "application/json"
	if a.status == 410 {
		since := p.GoneSince
		if since.IsZero() {
			since = time.Now()
		}
		v.body = fmt.Appendf(nil, `{"reason":%q,"timestamp":%d}`, a.reason, since.UnixMilli())
	} else {
		v.body = fmt.Appendf(nil, `{"reason":%q}`, a.reason)
	}
	s.ledger.books[APNs].answer(a.reason)
}

// checkPush says which device a request is for, or the reason why APNs would not take it.
func (s *Sandbox) checkPush(p *peer, r *request) (token, reason string) {
	if r.method != "POST" {
		return "", "MethodNotAllowed"
	}
	token, ok := strings.CutPrefix(r.path, "/3/device/")
	switch {
	case !ok:
		return "", "BadPath"
	case token == "":
		return "", "MissingDeviceToken"
	}
	if reason := s.checkProvider(p, r); reason != "" {
		return "", reason
	}
	if reason := checkPushHeader(p, r); reason != "" {
		return "", reason
	}
	if !isToken(token) {
		return "", "BadDeviceToken"
	}
	limit, pushType := maxPayload, r.get("apns-push-type")
	if pushType == "voip" {
		limit = maxVoIPPayload
	}
	switch {
	case len(r.body) > limit:
		return "", "PayloadTooLarge"
	case !json.Valid(r.body), pushType != "mdm" && !hasObject(r.body, "aps"):
		// Apple names no reason for a payload that is no JSON or has no aps.
		return "", "PayloadEmpty"
	}
	return token, ""
}

// checkProvider looks at who is sending: a provider token, or else a client certificate.
func (s *Sandbox) checkProvider(p *peer, r *request) string {
	token := bearer(r.get("authorization"))
	if token == "" {
		if p.certificate {
			return ""
		}
		return "MissingProviderToken"
	}
	now := time.Now()
	if token == p.token && now.Before(p.good) {
		return ""
	}
	c, err := verifyJWT(token, s.keys.apnsKey)
	switch {
	case err != nil, c.KeyID != KeyID, c.Iss != TeamID, c.issued().After(now.Add(5 * time.Minute)):
		return "InvalidProviderToken"
	case now.Sub(c.issued()) > time.Hour:
		return "ExpiredProviderToken"
	}
	p.token, p.good = token, c.issued().Add(time.Hour)
	return ""
}

// checkPushHeader looks at the apns-* fields.
func checkPushHeader(p *peer, r *request) string {
	var id, topic, pushType, priority, expiration, collapse string
	for _, f := range r.header {
		var to *string
		switch f.name {
		case "apns-id":
			to = &id
		case "apns-topic":
			to = &topic
		case "apns-push-type":
			to = &pushType
		case "apns-priority":
			to = &priority
		case "apns-expiration":
			to = &expiration
		case "apns-collapse-id":
			to = &collapse
		default:
			continue
		}
		if *to != "" {
			return "DuplicateHeaders"
		}
		*to = f.value
	}
	suffix, known := pushTypes[pushType]
	switch {
	case id != "" && !isUUID(id):
		return "BadMessageId"
	case !known: // Apple lets old senders leave it out; a sender of today that does has a fault
		return "InvalidPushType"
	case topic == "" && (!p.certificate || r.get("authorization") != ""):
		return "MissingTopic"
	case topic != "" && topic != Topic && !strings.HasPrefix(topic, Topic+"."):
		return "TopicDisallowed"
	case topic != "" && topic != Topic+suffix:
		return "BadTopic"
	case priority != "" && priority != "10" && priority != "5" && priority != "1",
		priority == "10" && pushType == "background":
		return "BadPriority"
	case len(collapse) > maxCollapseID:
		return "BadCollapseId"
	}
	if n, err := strconv.ParseInt(expiration, 10, 64); expiration != "" && (err != nil || n < 0) {
		return "BadExpirationDate"
	}
	return ""
}

// isToken accepts what Apple's tokens look like: hexadecimal, of no fixed length.
func isToken(s string) bool {
	if len(s) < 8 || len(s) > 512 || len(s)%2 != 0 {
		return false
	}
	for i := range len(s) {
		if !isHex(s[i]) {
			return false
		}
	}
	return true
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if s[i] != '-' {
				return false
			}
		} else if !isHex(s[i]) {
			return false
		}
	}
	return true
}

func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) //nolint:errcheck // crypto/rand.Read never fails since Go 1.24
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// hasObject says whether valid JSON is an object whose member name is an object. It looks without
// decoding, which would cost more than all else that is done for a push.
func hasObject(data []byte, name string) bool {
	depth := 0
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '{', '[':
			if depth == 0 && data[i] == '[' {
				return false
			}
			depth++
		case '}', ']':
			depth--
		case '"':
			start := i + 1
			for i++; data[i] != '"'; i++ {
				if data[i] == '\\' {
					i++
				}
			}
			if depth != 1 || string(data[start:i]) != name {
				continue
			}
			j := skipSpace(data, i+1)
			if data[j] != ':' { // a value, not a name
				continue
			}
			return data[skipSpace(data, j+1)] == '{'
		}
	}
	return false
}

func skipSpace(data []byte, i int) int {
	for i < len(data)-1 && (data[i] == ' ' || data[i] == '\n' || data[i] == '\t' || data[i] == '\r') {
		i++
	}
	return i
}
