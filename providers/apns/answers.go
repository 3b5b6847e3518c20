package apns

import (
	"net/http"
	"strconv"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// follow is what has to be done about an answer beside reporting it.
type follow uint8

const (
	nothing follow = iota
	// reconnect: this connection is of no more use; the message was not taken and is asked again at
	// once, one time, on another.
	reconnect
	// renewToken: make a new provider token and ask again, one time.
	renewToken
	// keepToken: make no new provider token for a while.
	keepToken
)

// answer is what a status and a reason of APNs mean.
type answer struct {
	status  int
	reason  string // "" is any reason that has no line of its own
	outcome providers.Outcome
	follow  follow
	after   time.Duration // where APNs says nothing by Retry-After
	means   string        // for people
}

const (
	perDevice  = 60 * time.Second // before the same device is tried again
	tokenPause = 20 * time.Minute // Apple: no new provider token more often than this
)

// answers says what each answer means: status first, then reason, then the status's line without a
// reason, which is what a new or missing reason means. Source of statuses and reasons: Apple, "Handling
// notification responses from APNs", table "Values for the APNs JSON reason key"; the lines marked + are
// not in that table but were seen (environment keys) or come from whatever stands in between.
// Configuration that can differ between messages (topics) refuses the message, not the route.
var answers = []answer{
	{200, "", providers.Accepted, nothing, 0, "taken by APNs"},

	{400, "BadCollapseId", providers.Rejected, nothing, 0, "the collapse id is too long"},
	{400, "BadDeviceToken", providers.Gone, nothing, 0, "the device token is not valid, or belongs to the other environment (development or production)"},
	{400, "BadExpirationDate", providers.Rejected, nothing, 0, "the expiration is not valid"},
	{400, "BadMessageId", providers.Rejected, nothing, 0, "the apns-id is not valid"},
	{400, "BadPriority", providers.Rejected, nothing, 0, "the priority is not valid for this push"},
	{400, "BadTopic", providers.Rejected, nothing, 0, "the topic is not valid: check the route's topic"},
	{400, "DeviceTokenNotForTopic", providers.Rejected, nothing, 0, "the device token belongs to another topic: check the route's topic"},
	{400, "DuplicateHeaders", providers.Rejected, nothing, 0, "a header was repeated"},
	{400, "IdleTimeout", providers.Deferred, reconnect, 0, "the connection was idle for too long"},
	{400, "InvalidPushType", providers.Rejected, nothing, 0, "the push type is not valid"},
	{400, "MissingDeviceToken", providers.Rejected, nothing, 0, "the device token is missing"},
	{400, "MissingTopic", providers.Rejected, nothing, 0, "the topic is missing: set the route's topic"},
	{400, "PayloadEmpty", providers.Rejected, nothing, 0, "the payload is empty"},
	{400, "TopicDisallowed", providers.Rejected, nothing, 0, "pushing to this topic is not allowed: check the route's topic and its credentials"},
	{400, "", providers.Rejected, nothing, 0, "APNs refuses the push"},

	{401, "", providers.Denied, nothing, 0, "the credentials are refused"}, // +

	{403, "BadCertificate", providers.Denied, nothing, 0, "the certificate is not valid"},
	{403, "BadCertificateEnvironment", providers.Denied, nothing, 0, "the certificate is for the other environment: check the route's endpoint"},
	{403, "ExpiredProviderToken", providers.Denied, renewToken, 0, "the provider token is too old: check this machine's clock"},
	{403, "Forbidden", providers.Denied, nothing, 0, "the action is not allowed"},
	{403, "InvalidProviderToken", providers.Denied, nothing, 0, "the provider token is not valid: check key, key_id and team_id"},
	{403, "MissingProviderToken", providers.Denied, nothing, 0, "neither a certificate nor a provider token was given"},
	{403, "UnrelatedKeyIdInToken", providers.Denied, nothing, 0, "the key id is not the one this connection began with"},
	{403, "BadEnvironmentKeyIdInToken", providers.Denied, nothing, 0, "the key is not for this environment: check the route's endpoint"},
	{403, "BadEnvironmentKeyInToken", providers.Denied, nothing, 0, "the key is not for this environment: check the route's endpoint"}, // +
	{403, "", providers.Denied, nothing, 0, "the credentials are refused"},

	{404, "BadPath", providers.Rejected, nothing, 0, "the request's path is not valid"},
	{404, "", providers.Rejected, nothing, 0, "the request's path is not valid"},
	{405, "MethodNotAllowed", providers.Rejected, nothing, 0, "the request's method is not POST"},
	{405, "", providers.Rejected, nothing, 0, "the request's method is not POST"},
	{407, "", providers.Denied, nothing, 0, "a proxy asks for credentials"},            // +
	{408, "", providers.Deferred, nothing, 0, "the request took too long to arrive"},   // +
	{421, "", providers.Deferred, reconnect, 0, "the connection leads somewhere else"}, // +

	{410, "ExpiredToken", providers.Gone, nothing, 0, "the device token has expired"},
	{410, "Unregistered", providers.Gone, nothing, 0, "the device token is no longer active for the topic"},
	{410, "", providers.Gone, nothing, 0, "the device token is no longer active for the topic"},

	{413, "PayloadTooLarge", providers.Rejected, nothing, 0, "the payload is too large"},
	{413, "", providers.Rejected, nothing, 0, "the payload is too large"},

	{429, "TooManyProviderTokenUpdates", providers.Throttled, keepToken, tokenPause, "the provider token was renewed too often"},
	{429, "TooManyRequests", providers.Deferred, nothing, perDevice, "too many pushes to the same device"},
	{429, "", providers.Throttled, nothing, perDevice, "too many requests"},

	// Apple does not say that a push answered by 500 was not taken; what a gateway passed on is not known either.
	{500, "InternalServerError", providers.Unknown, nothing, 0, "an error inside APNs"},
	{500, "", providers.Unknown, nothing, 0, "an error inside APNs"},
	{502, "", providers.Unknown, nothing, 0, "a gateway before APNs got no good answer"}, // +
	{503, "ServiceUnavailable", providers.Deferred, nothing, time.Second, "APNs is not available"},
	{503, "Shutdown", providers.Deferred, reconnect, time.Second, "this APNs server is shutting down"},
	{503, "", providers.Deferred, nothing, time.Second, "APNs is not available"},
	{504, "", providers.Unknown, nothing, 0, "a gateway before APNs got no answer in time"}, // +
}

// meaning finds the line for a status and a reason.
func meaning(status int, reason string) answer {
	var general *answer
	for i := range answers {
		a := &answers[i]
		if a.status != status {
			continue
		}
		if a.reason == reason {
			return *a
		}
		if a.reason == "" {
			general = a
		}
	}
	if general != nil {
		return *general
	}
	return unlisted(status)
}

// unlisted is what a status means that APNs does not use: something else has answered.
func unlisted(status int) answer {
	a := answer{status: status, outcome: providers.Unknown, means: "an answer that is not one of APNs: check the route's endpoint"}
	switch {
	case status >= 300 && status < 400: // a redirection, which is not followed
		a.outcome = providers.Denied
	case status >= 400 && status < 500:
		a.outcome = providers.Rejected
	}
	return a
}

// result reports an answer for a message. retryAfter is the header of that name, or "".
func (a answer) result(id, reason, retryAfter string) providers.Result {
	r := providers.Result{ID: id, Outcome: a.outcome, Reason: a.means, After: a.after, Code: code(a.status, reason)}
	wait, asked := delay(retryAfter)
	if !asked || a.outcome != providers.Deferred && a.outcome != providers.Throttled && a.outcome != providers.Unknown {
		return r
	}
	r.After = wait
	if a.status == http.StatusServiceUnavailable {
		r.Outcome = providers.Throttled // it asks for a pause: no attempt is burnt on it
	}
	return r
}

// code is the service's word for an answer: its reason if it can be shown, else the status; 200 has none.
func code(status int, reason string) string {
	if reason != "" && len(reason) <= 64 && printable(reason) {
		return reason
	}
	if status == http.StatusOK {
		return ""
	}
	return strconv.Itoa(status)
}

// delay reads a Retry-After header (RFC 9110, 10.2.3), at most a day.
func delay(s string) (time.Duration, bool) {
	if s == "" {
		return 0, false
	}
	var d time.Duration
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		d = time.Duration(n) * time.Second //nolint:gosec // 31 bits
	} else if at, err := http.ParseTime(s); err == nil {
		d = time.Until(at)
	} else {
		return 0, false
	}
	return min(max(d, 0), 24*time.Hour), true
}
