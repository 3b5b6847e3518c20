package fcm

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

const (
	// maxAfter bounds what a Retry-After can ask for.
	maxAfter = time.Hour
	// quotaAfter is the pause after QUOTA_EXCEEDED without Retry-After: "default to 60 seconds"
	// (https://firebase.google.com/docs/cloud-messaging/scale-fcm, "Handling retries").
	quotaAfter = time.Minute
	// setupAfter is the pause of a message whose platform's key Firebase cannot use: somebody has to
	// replace it in the Firebase console.
	setupAfter = time.Minute
)

// answer is what one code of FCM means for us.
type answer struct {
	outcome providers.Outcome
	reason  string
	after   time.Duration // where the service gives no Retry-After
}

// answers is every code that FCM v1 documents, with the codes of Google's API front ends where they mean
// something else here. A code is the errorCode of a FcmError detail, or else the error's canonical status.
//
// Sources: https://firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode (marked E),
// https://firebase.google.com/docs/cloud-messaging/scale-fcm (S),
// https://cloud.google.com/apis/design/errors, "Error codes" (G).
var answers = map[string]answer{
	// E: 404. The app was removed, or its token replaced.
	"UNREGISTERED": {providers.Gone, "the app instance is not registered with FCM any more", 0},
	// E: 403. The token belongs to another Firebase project.
	"SENDER_ID_MISMATCH": {providers.Gone, "the registration token belongs to another Firebase project", 0},
	// E: 400.
	"INVALID_ARGUMENT":       {providers.Rejected, "FCM refuses a field of the message", 0},
	"INVALID_ARGUMENT token": {providers.Gone, "not a registration token of FCM", 0},
	"FAILED_PRECONDITION":    {providers.Rejected, "FCM refuses the message", 0}, // G: 400
	"OUT_OF_RANGE":           {providers.Rejected, "FCM refuses a value of the message", 0},
	// E: 429, with the quota in a QuotaFailure detail. S: without Retry-After, 60 s.
	"QUOTA_EXCEEDED":        {providers.Throttled, "the project's sending quota is used up", quotaAfter},
	"QUOTA_EXCEEDED device": {providers.Deferred, "too many messages to this device", quotaAfter},
	"QUOTA_EXCEEDED topic":  {providers.Deferred, "too many messages to this topic", quotaAfter},
	"RESOURCE_EXHAUSTED":    {providers.Throttled, "the project's quota of API requests is used up", quotaAfter}, // G: 429
	// E: 503 and 500. Firebase has delivered messages that it answered 503 (firebase-admin-node #1248).
	"UNAVAILABLE":       {providers.Unknown, "FCM is overloaded; it may have taken the message", 0},
	"INTERNAL":          {providers.Unknown, "FCM had an internal error; it may have taken the message", 0},
	"UNKNOWN":           {providers.Unknown, "FCM had an unknown error; it may have taken the message", 0},   // G: 500
	"DEADLINE_EXCEEDED": {providers.Unknown, "FCM did not finish in time; it may have taken the message", 0}, // G: 504
	"CANCELLED":         {providers.Unknown, "the request was cancelled; FCM may have taken the message", 0}, // G: 499
	"ABORTED":           {providers.Unknown, "FCM aborted the request; it may have taken the message", 0},    // G: 409
	"DATA_LOSS":         {providers.Unknown, "FCM had an internal error; it may have taken the message", 0},  // G: 500
	// E: 401. Only the devices behind that key are cut off, so the route is not Denied: Android goes on.
	"THIRD_PARTY_AUTH_ERROR": {providers.Deferred, "Firebase cannot use its APNs key or web push key; renew it in the Firebase console", setupAfter},
	"APNS_AUTH_ERROR":        {providers.Deferred, "Firebase cannot use its APNs key; renew it in the Firebase console", setupAfter},
	// G: 401 and 403.
	"UNAUTHENTICATED":   {providers.Denied, "FCM refuses our access token; check the service account and the clock", 0},
	"PERMISSION_DENIED": {providers.Denied, "the service account may not send for this Firebase project, or its FCM API is disabled", 0},
	// G: 404 without UNREGISTERED speaks of the project and not of the token.
	"NOT_FOUND":     {providers.Denied, "there is no such Firebase project at this endpoint", 0},
	"UNIMPLEMENTED": {providers.Denied, "the endpoint does not know FCM's send method", 0}, // G: 501
}

// byStatus answers for a response without a code that we know.
func byStatus(status int) answer {
	switch {
	case status == http.StatusUnauthorized:
		return answers["UNAUTHENTICATED"]
	case status == http.StatusForbidden:
		return answers["PERMISSION_DENIED"]
	case status == http.StatusTooManyRequests:
		return answers["RESOURCE_EXHAUSTED"]
	case status == http.StatusNotFound, status == http.StatusMethodNotAllowed, status >= 300 && status < 400:
		return answer{providers.Denied, "what answers at the endpoint is not FCM; check endpoint and project", 0}
	case status == http.StatusRequestTimeout, status == http.StatusConflict, status >= 500:
		return answer{providers.Unknown, "FCM is in trouble; it may have taken the message", 0}
	case status >= 400:
		return answer{providers.Rejected, "FCM refuses the message", 0}
	}
	return answer{providers.Unknown, "an answer that FCM does not give; it may have taken the message", 0}
}

// reply is the body of an FCM response: the name of the message, or the error.
type reply struct {
	Name  string `json:"name"`
	Error struct {
		Status  string `json:"status"`
		Message string `json:"message"`
		Details []struct {
			Type            string `json:"@type"`
			ErrorCode       string `json:"errorCode"`
			FieldViolations []struct {
				Field       string `json:"field"`
				Description string `json:"description"`
			} `json:"fieldViolations"`
			Violations []struct {
				Subject     string `json:"subject"`
				Description string `json:"description"`
			} `json:"violations"`
		} `json:"details"`
	} `json:"error"`
}

const fcmError = "type.googleapis.com/google.firebase.fcm.v1.FcmError"

// classify says what a response means for the message.
func classify(status int, header http.Header, body []byte, now time.Time) providers.Result {
	var r reply
	_ = json.Unmarshal(body, &r) // a body that is not JSON leaves the status to speak
	if status >= 200 && status < 300 {
		return providers.Result{Outcome: providers.Accepted, ProviderID: r.Name}
	}
	code := r.Error.Status
	for _, d := range r.Error.Details {
		if d.Type == fcmError && d.ErrorCode != "" && d.ErrorCode != "UNSPECIFIED_ERROR" {
			code = d.ErrorCode
		}
	}
	a, known := answers[code+r.scope(code)]
	if !known {
		a = byStatus(status)
	}
	if _, documented := answers[code]; !documented {
		code = "HTTP " + strconv.Itoa(status)
	}
	res := providers.Result{Outcome: a.outcome, Code: code, Reason: a.reason, After: a.after}
	if code == "INVALID_ARGUMENT" && a.outcome == providers.Rejected {
		res.Reason += r.field()
	}
	if status == http.StatusTooManyRequests || status >= 500 {
		if after := retryAfter(header.Get("Retry-After"), now); after > 0 {
			res.After = after
		}
	}
	return res
}

// scope tells apart what one code says of two things.
func (r *reply) scope(code string) string {
	switch code {
	case "INVALID_ARGUMENT":
		// Google names the field, or says it in words alone ("The registration token is not a valid FCM
		// registration token"); both are in FCM's documentation of errors.
		if strings.Contains(strings.ToLower(r.Error.Message), "registration token") {
			return " token"
		}
		for _, d := range r.Error.Details {
			for _, v := range d.FieldViolations {
				if v.Field == "message.token" {
					return " token"
				}
			}
		}
	case "QUOTA_EXCEEDED":
		for _, d := range r.Error.Details {
			for _, v := range d.Violations {
				said := strings.ToLower(v.Subject + " " + v.Description)
				for _, of := range []string{"device", "topic"} {
					if strings.Contains(said, of) {
						return " " + of
					}
				}
			}
		}
	}
	return ""
}

var fieldName = regexp.MustCompile(`^[A-Za-z0-9_.\[\]]{1,100}$`)

// field names the field that FCM refuses. Its description is left out: it quotes the value.
func (r *reply) field() string {
	for _, d := range r.Error.Details {
		for _, v := range d.FieldViolations {
			if fieldName.MatchString(v.Field) {
				return ": " + v.Field
			}
		}
	}
	return ""
}

// retryAfter reads a Retry-After header, in seconds or as a date (RFC 9110, 10.2.3): 0 where there is
// none or it makes no sense, an hour at most.
func retryAfter(v string, now time.Time) time.Duration {
	v = strings.TrimSpace(v)
	if v == "" {
		return 0
	}
	if digits(v) {
		n, err := strconv.ParseInt(v, 10, 32)
		if err != nil { // more digits than anybody's patience
			return maxAfter
		}
		return min(time.Duration(n)*time.Second, maxAfter)
	}
	t, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	return min(max(t.Sub(now), 0), maxAfter)
}

func digits(s string) bool { return strings.Trim(s, "0123456789") == "" }
