package fcm_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/fcm"
)

// fcmBody is an error as FCM v1 writes it.
func fcmBody(status int, canonical, code, details string) string {
	if code != "" {
		details = `{"@type":"type.googleapis.com/google.firebase.fcm.v1.FcmError","errorCode":"` + code + `"}` + details
	}
	return fmt.Sprintf(`{"error":{"code":%d,"message":"m","status":%q,"details":[%s]}}`, status, canonical, details)
}

const (
	badToken   = `,{"@type":"type.googleapis.com/google.rpc.BadRequest","fieldViolations":[{"field":"message.token","description":"Invalid registration token"}]}`
	badTTL     = `,{"@type":"type.googleapis.com/google.rpc.BadRequest","fieldViolations":[{"field":"message.android.ttl","description":"Illegal format 'secret'"}]}`
	deviceFull = `,{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"subject":"device:1","description":"Device message rate exceeded"}]}`
	topicFull  = `,{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"subject":"topic:1","description":"Topic message rate exceeded"}]}`
	rateFull   = `,{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"subject":"project:1","description":"Message rate exceeded"}]}`
)

// answerRows has a row for each code of the table, and for what comes without one.
var answerRows = []struct {
	name, key  string // key: the row of the table in the code
	status     int
	body       string
	retryAfter string
	want       providers.Result
}{
	{"accepted", "", 200, `{"name":"projects/p/messages/1"}`, "", providers.Result{Outcome: providers.Accepted, ProviderID: "projects/p/messages/1"}},
	{"accepted without a name", "", 200, `<html>`, "", providers.Result{Outcome: providers.Accepted}},
	{"unregistered", "UNREGISTERED", 404, fcmBody(404, "NOT_FOUND", "UNREGISTERED", ""), "", providers.Result{Outcome: providers.Gone, Code: "UNREGISTERED"}},
	{"other project's token", "SENDER_ID_MISMATCH", 403, fcmBody(403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH", ""), "", providers.Result{Outcome: providers.Gone, Code: "SENDER_ID_MISMATCH"}},
	{"bad token by field", "INVALID_ARGUMENT token", 400, fcmBody(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", badToken), "", providers.Result{Outcome: providers.Gone, Code: "INVALID_ARGUMENT"}},
	{"bad token by words", "INVALID_ARGUMENT token", 400, `{"error":{"code":400,"message":"The registration token is not a valid FCM registration token","status":"INVALID_ARGUMENT"}}`, "", providers.Result{Outcome: providers.Gone, Code: "INVALID_ARGUMENT"}},
	{"other field", "INVALID_ARGUMENT", 400, fcmBody(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", badTTL), "", providers.Result{Outcome: providers.Rejected, Code: "INVALID_ARGUMENT"}},
	{"too big", "INVALID_ARGUMENT", 400, `{"error":{"code":400,"message":"Request contains an invalid argument.","status":"INVALID_ARGUMENT"}}`, "", providers.Result{Outcome: providers.Rejected, Code: "INVALID_ARGUMENT"}},
	{"precondition", "FAILED_PRECONDITION", 400, fcmBody(400, "FAILED_PRECONDITION", "", ""), "", providers.Result{Outcome: providers.Rejected, Code: "FAILED_PRECONDITION"}},
	{"out of range", "OUT_OF_RANGE", 400, fcmBody(400, "OUT_OF_RANGE", "", ""), "", providers.Result{Outcome: providers.Rejected, Code: "OUT_OF_RANGE"}},
	{"project's rate", "QUOTA_EXCEEDED", 429, fcmBody(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", rateFull), "7", providers.Result{Outcome: providers.Throttled, Code: "QUOTA_EXCEEDED", After: 7 * time.Second}},
	{"project's rate, no header", "QUOTA_EXCEEDED", 429, fcmBody(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", ""), "", providers.Result{Outcome: providers.Throttled, Code: "QUOTA_EXCEEDED", After: time.Minute}},
	{"device's rate", "QUOTA_EXCEEDED device", 429, fcmBody(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", deviceFull), "", providers.Result{Outcome: providers.Deferred, Code: "QUOTA_EXCEEDED", After: time.Minute}},
	{"topic's rate", "QUOTA_EXCEEDED topic", 429, fcmBody(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", topicFull), "120", providers.Result{Outcome: providers.Deferred, Code: "QUOTA_EXCEEDED", After: 2 * time.Minute}},
	{"API quota", "RESOURCE_EXHAUSTED", 429, fcmBody(429, "RESOURCE_EXHAUSTED", "", ""), "", providers.Result{Outcome: providers.Throttled, Code: "RESOURCE_EXHAUSTED", After: time.Minute}},
	{"unavailable", "UNAVAILABLE", 503, fcmBody(503, "UNAVAILABLE", "UNAVAILABLE", ""), "", providers.Result{Outcome: providers.Unknown, Code: "UNAVAILABLE"}},
	{"unavailable, later", "UNAVAILABLE", 503, fcmBody(503, "UNAVAILABLE", "UNAVAILABLE", ""), "Tue, 24 Nov 2026 12:00:30 GMT", providers.Result{Outcome: providers.Unknown, Code: "UNAVAILABLE", After: 30 * time.Second}},
	{"internal", "INTERNAL", 500, fcmBody(500, "INTERNAL", "INTERNAL", ""), "", providers.Result{Outcome: providers.Unknown, Code: "INTERNAL"}},
	{"unknown", "UNKNOWN", 500, fcmBody(500, "UNKNOWN", "", ""), "", providers.Result{Outcome: providers.Unknown, Code: "UNKNOWN"}},
	{"gateway's deadline", "DEADLINE_EXCEEDED", 504, fcmBody(504, "DEADLINE_EXCEEDED", "", ""), "", providers.Result{Outcome: providers.Unknown, Code: "DEADLINE_EXCEEDED"}},
	{"cancelled", "CANCELLED", 499, fcmBody(499, "CANCELLED", "", ""), "", providers.Result{Outcome: providers.Unknown, Code: "CANCELLED"}},
	{"aborted", "ABORTED", 409, fcmBody(409, "ABORTED", "", ""), "", providers.Result{Outcome: providers.Unknown, Code: "ABORTED"}},
	{"data loss", "DATA_LOSS", 500, fcmBody(500, "DATA_LOSS", "", ""), "", providers.Result{Outcome: providers.Unknown, Code: "DATA_LOSS"}},
	{"platform's key", "THIRD_PARTY_AUTH_ERROR", 401, fcmBody(401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR", ""), "", providers.Result{Outcome: providers.Deferred, Code: "THIRD_PARTY_AUTH_ERROR", After: time.Minute}},
	{"platform's key, old name", "APNS_AUTH_ERROR", 401, fcmBody(401, "UNAUTHENTICATED", "APNS_AUTH_ERROR", ""), "", providers.Result{Outcome: providers.Deferred, Code: "APNS_AUTH_ERROR", After: time.Minute}},
	{"unauthenticated", "UNAUTHENTICATED", 401, fcmBody(401, "UNAUTHENTICATED", "", ""), "", providers.Result{Outcome: providers.Denied, Code: "UNAUTHENTICATED"}},
	{"permission", "PERMISSION_DENIED", 403, fcmBody(403, "PERMISSION_DENIED", "", ""), "", providers.Result{Outcome: providers.Denied, Code: "PERMISSION_DENIED"}},
	{"no such project", "NOT_FOUND", 404, fcmBody(404, "NOT_FOUND", "", ""), "", providers.Result{Outcome: providers.Denied, Code: "NOT_FOUND"}},
	{"no such method", "UNIMPLEMENTED", 501, fcmBody(501, "UNIMPLEMENTED", "", ""), "", providers.Result{Outcome: providers.Denied, Code: "UNIMPLEMENTED"}},
	{"unspecified 500", "INTERNAL", 500, fcmBody(500, "INTERNAL", "UNSPECIFIED_ERROR", ""), "", providers.Result{Outcome: providers.Unknown, Code: "INTERNAL"}},
	{"a code of tomorrow, 400", "", 400, fcmBody(400, "ODD", "NEW", ""), "", providers.Result{Outcome: providers.Rejected, Code: "HTTP 400"}},
	{"a code of tomorrow, 503", "", 503, fcmBody(503, "ODD", "NEW", ""), "3", providers.Result{Outcome: providers.Unknown, Code: "HTTP 503", After: 3 * time.Second}},
	{"bare 401", "", 401, "", "", providers.Result{Outcome: providers.Denied, Code: "HTTP 401"}},
	{"bare 403", "", 403, "", "", providers.Result{Outcome: providers.Denied, Code: "HTTP 403"}},
	{"bare 404", "", 404, "<html>", "", providers.Result{Outcome: providers.Denied, Code: "HTTP 404"}},
	{"bare 405", "", 405, "", "", providers.Result{Outcome: providers.Denied, Code: "HTTP 405"}},
	{"moved", "", 302, "", "", providers.Result{Outcome: providers.Denied, Code: "HTTP 302"}},
	{"bare 408", "", 408, "", "", providers.Result{Outcome: providers.Unknown, Code: "HTTP 408"}},
	{"bare 413", "", 413, "", "", providers.Result{Outcome: providers.Rejected, Code: "HTTP 413"}},
	{"bare 429", "", 429, "", "", providers.Result{Outcome: providers.Throttled, Code: "HTTP 429", After: time.Minute}},
	{"bad gateway's page", "", 502, "<!DOCTYPE html><title>Error 502</title>", "", providers.Result{Outcome: providers.Unknown, Code: "HTTP 502"}},
}

// noon is the moment of every answer.
var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func TestAnswers(t *testing.T) {
	t.Parallel()
	rows := map[string]bool{}
	for _, row := range answerRows {
		rows[row.key] = true
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			header := http.Header{}
			if row.retryAfter != "" {
				header.Set("Retry-After", row.retryAfter)
			}
			got := fcm.Classify(row.status, header, []byte(row.body), noon)
			if diff := cmp.Diff(row.want, got, cmpopts.IgnoreFields(providers.Result{}, "Reason")); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			if (got.Reason == "") != (got.Outcome == providers.Accepted) {
				t.Errorf("reason is %q", got.Reason)
			}
		})
	}
	for _, code := range fcm.AnswerCodes() {
		if !rows[code] {
			t.Errorf("no row for %s", code)
		}
	}
}

func TestRefusedFieldIsNamedButNotQuoted(t *testing.T) {
	t.Parallel()
	got := fcm.Classify(400, nil, []byte(fcmBody(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", badTTL)), noon)
	if want := "FCM refuses a field of the message: message.android.ttl"; got.Reason != want {
		t.Errorf("reason is %q, want %q", got.Reason, want)
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for v, want := range map[string]time.Duration{
		"":                              0,
		"0":                             0,
		"5":                             5 * time.Second,
		" 5 ":                           5 * time.Second,
		"-5":                            0,
		"5s":                            0,
		"1.5":                           0,
		"3600":                          time.Hour,
		"3601":                          time.Hour,
		"99999999999999999999999999":    time.Hour,
		"Tue, 24 Nov 2026 12:00:10 GMT": 10 * time.Second,
		"Tue, 24 Nov 2026 11:00:00 GMT": 0,
		"Tue, 24 Nov 2037 12:00:00 GMT": time.Hour,
		"soon":                          0,
	} {
		if got := fcm.RetryAfter(v, noon); got != want {
			t.Errorf("RetryAfter(%q) = %v, want %v", v, got, want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"", "5", "-1", "99999999999999999999", "Tue, 24 Nov 2026 12:00:10 GMT", "Tuesday, 24-Nov-99 12:00:10 GMT"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d := fcm.RetryAfter(s, noon); d < 0 || d > time.Hour {
			t.Errorf("RetryAfter(%q) = %v", s, d)
		}
	})
}

func FuzzClassify(f *testing.F) {
	for _, row := range answerRows {
		f.Add(row.status, row.retryAfter, []byte(row.body))
	}
	f.Fuzz(func(t *testing.T, status int, after string, body []byte) {
		r := fcm.Classify(status, http.Header{"Retry-After": {after}}, body, noon)
		if r.After < 0 || r.After > time.Hour {
			t.Errorf("after is %v", r.After)
		}
		if (r.Outcome == providers.Accepted) != (status >= 200 && status < 300) {
			t.Errorf("status %d is %v", status, r.Outcome)
		}
	})
}
