package apns_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/apns"
)

// answerRow is one answer of the service over the wire and what must come of it.
type answerRow struct {
	status  int
	reason  string
	outcome providers.Outcome
	after   time.Duration
	asked   int // requests in all; 0 is 1
	conns   int // connections in all; 0 is 1
}

// The rows follow facts/answers.md 6.1, in its order; then what that list leaves to "status first".
var answerRows = []answerRow{
	{status: 200, outcome: providers.Accepted},
	{status: 400, reason: "BadDeviceToken", outcome: providers.Gone},
	{status: 400, reason: "DeviceTokenNotForTopic", outcome: providers.Rejected},
	{status: 400, reason: "BadTopic", outcome: providers.Rejected},
	{status: 400, reason: "MissingTopic", outcome: providers.Rejected},
	{status: 400, reason: "TopicDisallowed", outcome: providers.Rejected},
	{status: 400, reason: "PayloadEmpty", outcome: providers.Rejected},
	{status: 400, reason: "BadExpirationDate", outcome: providers.Rejected},
	{status: 400, reason: "BadPriority", outcome: providers.Rejected},
	{status: 400, reason: "BadMessageId", outcome: providers.Rejected},
	{status: 400, reason: "BadCollapseId", outcome: providers.Rejected},
	{status: 400, reason: "DuplicateHeaders", outcome: providers.Rejected},
	{status: 400, reason: "InvalidPushType", outcome: providers.Rejected},
	{status: 400, reason: "MissingDeviceToken", outcome: providers.Rejected},
	{status: 404, reason: "BadPath", outcome: providers.Rejected},
	{status: 405, reason: "MethodNotAllowed", outcome: providers.Rejected},
	{status: 400, reason: "IdleTimeout", outcome: providers.Deferred, asked: 2, conns: 2},
	{status: 403, reason: "ExpiredProviderToken", outcome: providers.Denied}, // the token is too young to be renewed; see TestExpiredProviderToken
	{status: 403, reason: "InvalidProviderToken", outcome: providers.Denied},
	{status: 403, reason: "MissingProviderToken", outcome: providers.Denied},
	{status: 403, reason: "BadCertificate", outcome: providers.Denied},
	{status: 403, reason: "BadCertificateEnvironment", outcome: providers.Denied},
	{status: 403, reason: "Forbidden", outcome: providers.Denied},
	{status: 403, reason: "BadEnvironmentKeyInToken", outcome: providers.Denied},
	{status: 403, reason: "BadEnvironmentKeyIdInToken", outcome: providers.Denied},
	{status: 403, reason: "UnrelatedKeyIdInToken", outcome: providers.Denied},
	{status: 410, reason: "Unregistered", outcome: providers.Gone},
	{status: 410, reason: "ExpiredToken", outcome: providers.Gone},
	{status: 413, reason: "PayloadTooLarge", outcome: providers.Rejected},
	{status: 429, reason: "TooManyRequests", outcome: providers.Deferred, after: time.Minute},
	{status: 429, reason: "TooManyProviderTokenUpdates", outcome: providers.Throttled, after: 20 * time.Minute},
	{status: 500, reason: "InternalServerError", outcome: providers.Unknown},
	{status: 503, reason: "ServiceUnavailable", outcome: providers.Deferred, after: time.Second},
	{status: 503, reason: "Shutdown", outcome: providers.Deferred, after: time.Second, asked: 2, conns: 2},

	{status: 400, outcome: providers.Rejected},
	{status: 400, reason: "NewIn2030", outcome: providers.Rejected},
	{status: 401, outcome: providers.Denied},
	{status: 403, outcome: providers.Denied},
	{status: 403, reason: "NewIn2030", outcome: providers.Denied},
	{status: 404, outcome: providers.Rejected},
	{status: 405, outcome: providers.Rejected},
	{status: 407, outcome: providers.Denied},
	{status: 408, outcome: providers.Deferred},
	{status: 410, outcome: providers.Gone},
	{status: 410, reason: "NewIn2030", outcome: providers.Gone},
	{status: 413, outcome: providers.Rejected},
	{status: 418, outcome: providers.Rejected},
	{status: 421, outcome: providers.Deferred, asked: 2, conns: 2},
	{status: 429, outcome: providers.Throttled, after: time.Minute},
	{status: 429, reason: "NewIn2030", outcome: providers.Throttled, after: time.Minute},
	{status: 500, outcome: providers.Unknown},
	{status: 500, reason: "NewIn2030", outcome: providers.Unknown},
	{status: 502, outcome: providers.Unknown},
	{status: 503, outcome: providers.Deferred, after: time.Second},
	{status: 504, outcome: providers.Unknown},
	{status: 307, outcome: providers.Denied},
	{status: 202, outcome: providers.Unknown},
	{status: 599, outcome: providers.Unknown},
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	seen := map[apns.Listed]bool{}
	for _, row := range answerRows {
		seen[apns.Listed{Status: row.status, Reason: row.reason}] = true
		t.Run(fmt.Sprintf("%d %s", row.status, row.reason), func(t *testing.T) {
			t.Parallel()
			body := ""
			if row.reason != "" {
				body = fmt.Sprintf(`{"reason":%q}`, row.reason)
			}
			p := newPeer(t, func(c *peerConn, r *peerRequest) { c.answer(r, row.status, body) })
			pr := p.open(t, nil)
			got, err := deliver(t, within(t, 5*time.Second), pr, batch(1))
			if err != nil {
				t.Fatal(err)
			}
			r := got[id(0)]
			if r.Reason == "" {
				t.Error("the result explains nothing")
			}
			r.Reason = ""
			want := providers.Result{ID: id(0), Outcome: row.outcome, Code: row.reason, After: row.after, ProviderID: id(0)}
			if row.reason == "" && row.status != 200 {
				want.Code = fmt.Sprint(row.status)
			}
			if d := cmp.Diff(want, r); d != "" {
				t.Errorf("result (-want +got):\n%s", d)
			}
			conns, asked, _ := p.counts()
			if asked != max(row.asked, 1) || conns != max(row.conns, 1) {
				t.Errorf("%d requests on %d connections", asked, conns)
			}
			if h := pr.Health(t.Context()); (h.Status == providers.HealthDown) != (row.outcome == providers.Denied) {
				t.Errorf("health %+v", h)
			}
		})
	}
	for _, a := range apns.ListedAnswers() {
		if !seen[a] {
			t.Errorf("no row for %d %s", a.Status, a.Reason)
		}
	}
}

func TestAnswersBesideTheTable(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		status  int
		body    string
		headers []string
		want    providers.Result
	}{
		"410 with its time": {410, `{"reason":"Unregistered","timestamp":1700000000123}`, nil,
			providers.Result{Outcome: providers.Gone, Code: "Unregistered", Since: time.Unix(1700000000, 999e6)}},
		"410 with no time":    {410, `{"reason":"Unregistered","timestamp":0}`, nil, providers.Result{Outcome: providers.Gone, Code: "Unregistered"}},
		"410 with HTML":       {410, `<html>`, nil, providers.Result{Outcome: providers.Gone, Code: "410"}},
		"400 with a time":     {400, `{"reason":"BadDeviceToken","timestamp":1700000000123}`, nil, providers.Result{Outcome: providers.Gone, Code: "BadDeviceToken"}},
		"502 with HTML":       {502, "<html>Bad Gateway</html>", nil, providers.Result{Outcome: providers.Unknown, Code: "502"}},
		"503 with HTML":       {503, "<html>", []string{"retry-after", "7"}, providers.Result{Outcome: providers.Throttled, Code: "503", After: 7 * time.Second}},
		"503 Retry-After":     {503, `{"reason":"ServiceUnavailable"}`, []string{"retry-after", "120"}, providers.Result{Outcome: providers.Throttled, Code: "ServiceUnavailable", After: 2 * time.Minute}},
		"429 Retry-After":     {429, `{"reason":"TooManyRequests"}`, []string{"retry-after", "90"}, providers.Result{Outcome: providers.Deferred, Code: "TooManyRequests", After: 90 * time.Second}},
		"429 past date":       {429, `{"reason":"TooManyRequests"}`, []string{"retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"}, providers.Result{Outcome: providers.Deferred, Code: "TooManyRequests"}},
		"429 nonsense":        {429, `{"reason":"TooManyRequests"}`, []string{"retry-after", "soon"}, providers.Result{Outcome: providers.Deferred, Code: "TooManyRequests", After: time.Minute}},
		"429 for ever":        {429, `{"reason":"TooManyRequests"}`, []string{"retry-after", "99999999"}, providers.Result{Outcome: providers.Deferred, Code: "TooManyRequests", After: 24 * time.Hour}},
		"400 Retry-After":     {400, `{"reason":"BadTopic"}`, []string{"retry-after", "90"}, providers.Result{Outcome: providers.Rejected, Code: "BadTopic"}},
		"a redirection":       {307, "", []string{"location", "/3/device/elsewhere"}, providers.Result{Outcome: providers.Denied, Code: "307"}},
		"200 with half JSON":  {200, `{`, nil, providers.Result{Outcome: providers.Accepted}},
		"a reason that lies":  {400, `{"reason":"line\nbreak"}`, nil, providers.Result{Outcome: providers.Rejected, Code: "400"}},
		"a reason that is no": {400, `{"reason":7}`, nil, providers.Result{Outcome: providers.Rejected, Code: "400"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, func(c *peerConn, r *peerRequest) { c.answer(r, tt.status, tt.body, tt.headers...) })
			got, err := deliver(t, within(t, 5*time.Second), p.open(t, nil), batch(1))
			if err != nil {
				t.Fatal(err)
			}
			r := got[id(0)]
			r.ID, r.Reason, r.ProviderID = "", "", ""
			if _, asked, _ := p.counts(); asked != 1 {
				t.Errorf("%d requests", asked)
			}
			if d := cmp.Diff(tt.want, r); d != "" {
				t.Errorf("result (-want +got):\n%s", d)
			}
		})
	}
}

// A date far enough away is a delay.
func TestRetryAfterAsADate(t *testing.T) {
	t.Parallel()
	at := time.Now().Add(time.Hour)
	p := newPeer(t, func(c *peerConn, r *peerRequest) {
		c.answer(r, 503, "", "retry-after", at.UTC().Format(http.TimeFormat))
	})
	got, err := deliver(t, within(t, 5*time.Second), p.open(t, nil), batch(1))
	if err != nil {
		t.Fatal(err)
	}
	if r := got[id(0)]; r.Outcome != providers.Throttled || r.After < 59*time.Minute || r.After > time.Hour {
		t.Errorf("result %+v", r)
	}
}

// The clock was set back: APNs finds the token too old although we do not. One new token is made for
// all who hear of it, and none within 20 minutes.
func TestExpiredProviderToken(t *testing.T) {
	t.Parallel()
	var tokens, refused atomic.Int64
	var good atomic.Value
	good.Store("")
	p := newPeer(t, func(c *peerConn, r *peerRequest) {
		auth := r.header["authorization"]
		if strings.HasSuffix(auth, ".old") || good.Load() == "none" {
			refused.Add(1)
			c.answer(r, 403, `{"reason":"ExpiredProviderToken"}`)
			return
		}
		if good.Swap(auth) != auth {
			tokens.Add(1)
		}
		c.ok(r)
	})
	pr := p.open(t, nil)
	ctx := within(t, 10*time.Second)

	apns.AgeToken(pr, 19*time.Minute, false)
	got, err := deliver(t, ctx, pr, batch(20))
	if err != nil {
		t.Fatal(err)
	}
	wantOutcomes(t, got, map[string]int{"denied ExpiredProviderToken": 20})

	apns.AgeToken(pr, 2*time.Minute, false)
	if got, err = deliver(t, ctx, pr, batch(50)); err != nil {
		t.Fatal(err)
	}
	wantOutcomes(t, got, map[string]int{"accepted": 50})
	if tokens.Load() != 1 {
		t.Errorf("%d new tokens, want one", tokens.Load())
	}
	if h := pr.Health(t.Context()); h.Status != providers.HealthOK {
		t.Errorf("health after it was repaired: %+v", h)
	}

	// Refused for good: each message asks once more after a renewal, none goes round in circles.
	apns.AgeToken(pr, 21*time.Minute, false)
	good.Store("none")
	refused.Store(0)
	if got, err = deliver(t, ctx, pr, batch(10)); err != nil {
		t.Fatal(err)
	}
	wantOutcomes(t, got, map[string]int{"denied ExpiredProviderToken": 10})
	if n := refused.Load(); n > 20 {
		t.Errorf("%d requests for 10 messages", n)
	}

	// By the token's own age it is replaced before APNs minds.
	good.Store("")
	apns.AgeToken(pr, 51*time.Minute, true)
	refused.Store(0)
	if got, err = deliver(t, ctx, pr, batch(10)); err != nil {
		t.Fatal(err)
	}
	wantOutcomes(t, got, map[string]int{"accepted": 10})
	if refused.Load() != 0 {
		t.Error("an old token was sent")
	}

	apns.BreakToken(pr)
	if got, err = deliver(t, ctx, pr, batch(2)); err != nil {
		t.Fatal(err)
	}
	wantOutcomes(t, got, map[string]int{"denied no_token": 2})
	if h := pr.Health(t.Context()); h.Status != providers.HealthDown {
		t.Errorf("health without a key: %+v", h)
	}
}

// APNs asked for fewer token updates: none is made for 20 minutes.
func TestTooManyProviderTokenUpdates(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	p := newPeer(t, func(c *peerConn, r *peerRequest) {
		if n.Add(1) == 1 {
			c.answer(r, 429, `{"reason":"TooManyProviderTokenUpdates"}`)
			return
		}
		c.answer(r, 403, `{"reason":"ExpiredProviderToken"}`)
	})
	pr := p.open(t, nil)
	apns.AgeToken(pr, time.Hour, false)
	ctx := within(t, 5*time.Second)
	got, _ := deliver(t, ctx, pr, batch(1))
	wantOutcomes(t, got, map[string]int{"throttled TooManyProviderTokenUpdates": 1})
	got, _ = deliver(t, ctx, pr, batch(1))
	wantOutcomes(t, got, map[string]int{"denied ExpiredProviderToken": 1})
	if n.Load() != 2 {
		t.Errorf("%d requests: a token was renewed in the pause", n.Load())
	}
}
