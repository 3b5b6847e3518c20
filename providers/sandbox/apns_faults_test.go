package sandbox_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

func TestAPNsRefusals(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	good, client := providerToken(t, s, nil), h2(t, s)
	path := func(p string) func(*http.Request) { return func(r *http.Request) { r.URL.Path = p } }
	body := func(b string) func(*http.Request) {
		return func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader(b)), int64(len(b)) }
	}
	padded := func(n int) string {
		return `{"aps":{},"x":"` + strings.Repeat("x", n-len(`{"aps":{},"x":""}`)) + `"}`
	}
	for _, tc := range []struct {
		name   string
		status int
		reason string
		header []string
		change func(*http.Request)
	}{
		{"good", 200, "", nil, nil},
		{"no id", 200, "", []string{"apns-id: "}, nil},
		{"silent", 200, "", []string{"apns-push-type: background", "apns-priority: 5"}, body(`{"aps":{"content-available":1}}`)},
		{"voip", 200, "", []string{"apns-push-type: voip", "apns-topic: " + sandbox.Topic + ".voip"}, body(padded(5120))},
		{"live activity", 200, "", []string{"apns-push-type: liveactivity", "apns-topic: " + sandbox.Topic + ".push-type.liveactivity"}, nil},
		{"mdm", 200, "", []string{"apns-push-type: mdm"}, body(`{"mdm":"x"}`)},
		{"largest", 200, "", nil, body(padded(4096))},
		{"aps last, strange spacing", 200, "", nil, body("{\"a\":[{\"aps\":1}],\"b\":\"\\\"aps\\\":{\",\"aps\" :\n {}}")},
		{"method", 405, "MethodNotAllowed", nil, func(r *http.Request) { r.Method = "PUT" }},
		{"path", 404, "BadPath", nil, path("/2/device/" + device)},
		{"no device", 400, "MissingDeviceToken", nil, path("/3/device/")},
		{"device not hex", 400, "BadDeviceToken", nil, path("/3/device/xyz" + device[3:])},
		{"device with a path", 400, "BadDeviceToken", nil, path("/3/device/00/../" + device)},
		{"no topic", 400, "MissingTopic", []string{"apns-topic: "}, nil},
		{"other topic", 400, "TopicDisallowed", []string{"apns-topic: com.example.other"}, nil},
		{"topic without its suffix", 400, "BadTopic", []string{"apns-push-type: voip"}, nil},
		{"push type", 400, "InvalidPushType", []string{"apns-push-type: shout"}, nil},
		{"no push type", 400, "InvalidPushType", []string{"apns-push-type: "}, nil},
		{"priority", 400, "BadPriority", []string{"apns-priority: 7"}, nil},
		{"urgent background", 400, "BadPriority", []string{"apns-push-type: background", "apns-priority: 10"}, nil},
		{"expiration", 400, "BadExpirationDate", []string{"apns-expiration: tomorrow"}, nil},
		{"id", 400, "BadMessageId", []string{"apns-id: 7"}, nil},
		{"collapse id of 64", 200, "", []string{"apns-collapse-id: " + strings.Repeat("c", 64)}, nil},
		{"collapse id of 65", 400, "BadCollapseId", []string{"apns-collapse-id: " + strings.Repeat("c", 65)}, nil},
		{"doubled header", 400, "DuplicateHeaders", nil, func(r *http.Request) { r.Header.Add("apns-priority", "5") }},
		{"empty", 400, "PayloadEmpty", nil, body("")},
		{"no aps", 400, "PayloadEmpty", nil, body(`{"a":{"aps":{}}}`)},
		{"an array", 400, "PayloadEmpty", nil, body(`[{"aps":{}}]`)},
		{"a word", 400, "PayloadEmpty", nil, body(`"aps"`)},
		{"not JSON", 400, "PayloadEmpty", nil, body(`{"aps":{}`)},
		{"too large", 413, "PayloadTooLarge", nil, body(padded(4097))},
		{"far too large", 413, "PayloadTooLarge", nil, body(padded(3 << 20))},
		{"dead", 410, "Unregistered", nil, path("/3/device/DEAD" + device[4:])},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := pushRequest(t.Context(), t, s, good, tc.header...)
			if tc.change != nil {
				tc.change(r)
			}
			a, err := do(t, client, r)
			if err != nil {
				t.Fatal(err)
			}
			if a.Status != tc.status || a.Reason != tc.reason {
				t.Errorf("answered %d %q, want %d %q", a.Status, a.Reason, tc.status, tc.reason)
			}
			if id := r.Header.Get("apns-id"); a.Header.Get("apns-id") == "" || id != "" && a.Header.Get("apns-id") != id {
				t.Errorf("apns-id is %q", a.Header.Get("apns-id"))
			}
			if (a.Timestamp != 0) != (tc.status == 410) {
				t.Errorf("timestamp %d", a.Timestamp)
			}
		})
	}
	c := s.Counts(sandbox.APNs)
	if c.Taken != c.Answers["200"] || c.Taken != 9 || c.Answers["BadPriority"] != 2 {
		t.Errorf("counts are %+v", c)
	}
}

func TestAPNsProviderTokens(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	client := h2(t, s)
	claim := func(name string, v any) string {
		return providerToken(t, s, func(j *jwt.Token) { j.Claims.(jwt.MapClaims)[name] = v }) //nolint:errcheck // it is one
	}
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	j := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"iss": sandbox.TeamID, "iat": time.Now().Unix()})
	j.Header["kid"] = sandbox.KeyID
	forged, err := j.SignedString(stranger)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, token, reason string }{
		{"garbage", "x.y.z", "InvalidProviderToken"},
		{"none", "", "MissingProviderToken"},
		{"forged", forged, "InvalidProviderToken"},
		{"other team", claim("iss", "OTHERTEAM1"), "InvalidProviderToken"},
		{"other key id", providerToken(t, s, func(j *jwt.Token) { j.Header["kid"] = "OTHERKEY01" }), "InvalidProviderToken"},
		{"of tomorrow", claim("iat", time.Now().Add(24*time.Hour).Unix()), "InvalidProviderToken"},
		{"old", claim("iat", time.Now().Add(-61*time.Minute).Unix()), "ExpiredProviderToken"},
	} {
		header := "authorization: bearer " + tc.token
		if tc.token == "" {
			header = "authorization: "
		}
		a, err := do(t, client, pushRequest(t.Context(), t, s, "", header))
		if err != nil || a.Status != 403 || a.Reason != tc.reason {
			t.Errorf("%s: answered %+v, %v", tc.name, a, err)
		}
	}
}

func TestAPNsCertificate(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	pair, err := tls.LoadX509KeyPair(s.ClientCertFile(), s.ClientCertFile())
	if err != nil {
		t.Fatal(err)
	}
	config := trust(t, s)
	config.Certificates = []tls.Certificate{pair}
	tr := &http2.Transport{TLSClientConfig: config}
	t.Cleanup(tr.CloseIdleConnections)
	a, err := do(t, &http.Client{Transport: tr}, pushRequest(t.Context(), t, s, "", "authorization: ", "apns-topic: "))
	if err != nil || a.Status != 200 {
		t.Errorf("answered %+v, %v", a, err)
	}
}

func TestAPNsScriptedErrors(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	token, client := providerToken(t, s, nil), h2(t, s)
	since := time.Now().Add(-48 * time.Hour).Truncate(time.Millisecond)
	for _, tc := range []struct {
		code   string
		status int
		reason string
	}{
		{"BadDeviceToken", 400, "BadDeviceToken"}, {"Unregistered", 410, "Unregistered"}, {"ExpiredToken", 410, "ExpiredToken"},
		{"TooManyRequests", 429, "TooManyRequests"}, {"429", 429, "TooManyRequests"}, {"500", 500, "InternalServerError"},
		{"503", 503, "ServiceUnavailable"}, {"Shutdown", 503, "Shutdown"}, {"403", 403, "InvalidProviderToken"},
		{"ExpiredProviderToken", 403, "ExpiredProviderToken"}, {"502", 502, ""}, {"504", 504, ""},
	} {
		err := s.Script(sandbox.APNs, sandbox.Script{Errors: map[string]float64{tc.code: 1}, RetryAfter: 1500 * time.Millisecond, GoneSince: since})
		if err != nil {
			t.Fatal(err)
		}
		a, err := do(t, client, pushRequest(t.Context(), t, s, token))
		if err != nil {
			t.Fatal(err)
		}
		retry := ""
		if tc.status == 429 || tc.status == 503 {
			retry = "2"
		}
		if a.Status != tc.status || a.Reason != tc.reason || a.Header.Get("Retry-After") != retry {
			t.Errorf("%s: answered %+v", tc.code, a)
		}
		if tc.status == 410 && a.Timestamp != since.UnixMilli() {
			t.Errorf("%s: timestamp %d, want %d", tc.code, a.Timestamp, since.UnixMilli())
		}
		if tc.reason == "" && !strings.HasPrefix(a.Body, "<html>") {
			t.Errorf("%s: body %q", tc.code, a.Body)
		}
	}
	if n := len(s.Messages(sandbox.Filter{})); n != 0 {
		t.Errorf("%d messages were taken", n)
	}
}

func TestScriptIsChecked(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	for _, tc := range []struct {
		service sandbox.Service
		script  sandbox.Script
		want    string
	}{
		{"carrier-pigeon", sandbox.Script{}, "no service"},
		{sandbox.APNs, sandbox.Script{Stall: 1.1}, "stall"},
		{sandbox.APNs, sandbox.Script{DropAfter: -1}, "drop_after"},
		{sandbox.APNs, sandbox.Script{Latency: -1}, "negative"},
		{sandbox.APNs, sandbox.Script{Errors: map[string]float64{"Nonsense": 1}}, "Nonsense"},
		{sandbox.APNs, sandbox.Script{Errors: map[string]float64{"429": 0.6, "503": 0.6}}, "more than 1"},
		{sandbox.FCM, sandbox.Script{Errors: map[string]float64{"BadDeviceToken": 1}}, "BadDeviceToken"},
		{sandbox.SMTP, sandbox.Script{Errors: map[string]float64{"250 fine": 1}}, "250"},
		{sandbox.SMTP, sandbox.Script{Errors: map[string]float64{"451 a\r\n250 b": 1}}, "451"},
	} {
		err := s.Script(tc.service, tc.script)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s %+v: %v", tc.service, tc.script, err)
		}
	}
}

func TestAPNsDrops(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		script sandbox.Script
		taken  uint64
	}{
		{"before", sandbox.Script{DropBefore: 1}, 0},
		{"after", sandbox.Script{DropAfter: 1}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, sandbox.Options{})
			if err := s.Script(sandbox.APNs, tc.script); err != nil {
				t.Fatal(err)
			}
			a, err := do(t, h2(t, s), pushRequest(t.Context(), t, s, providerToken(t, s, nil)))
			if err == nil {
				t.Fatalf("answered %+v", a)
			}
			c := s.Counts(sandbox.APNs)
			if c.Taken != tc.taken || c.Requests == 0 || len(c.Answers) != 0 {
				t.Errorf("counts are %+v", c)
			}
			for _, m := range s.Messages(sandbox.Filter{}) {
				if m.Answered != "" {
					t.Errorf("ledger has %+v", m)
				}
			}
		})
	}
}

func TestAPNsStall(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	if err := s.Script(sandbox.APNs, sandbox.Script{Stall: 1}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		if s.Wait(t.Context(), sandbox.APNs, 1) == nil { // it was taken: now the client gives up
			cancel()
		}
	}()
	token, client := providerToken(t, s, nil), h2(t, s)
	if a, err := do(t, client, pushRequest(ctx, t, s, token)); !errors.Is(err, context.Canceled) {
		t.Fatalf("answered %+v, %v", a, err)
	}
	if m := s.Messages(sandbox.Filter{}); len(m) != 1 || m[0].Answered != "" {
		t.Errorf("ledger has %+v", m)
	}
	if err := s.Script(sandbox.APNs, sandbox.Script{}); err != nil {
		t.Fatal(err)
	}
	if a, err := do(t, client, pushRequest(t.Context(), t, s, token)); err != nil || a.Status != 200 {
		t.Errorf("the connection is of no use any more: %+v, %v", a, err)
	}
	if c := s.Counts(sandbox.APNs); c.Conns != 1 {
		t.Errorf("%d connections", c.Conns)
	}
}

func TestTakenAnyway(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	if err := s.Script(sandbox.APNs, sandbox.Script{Errors: map[string]float64{"503": 1}, TakenAnyway: 1}); err != nil {
		t.Fatal(err)
	}
	token, client := providerToken(t, s, nil), h2(t, s)
	r := pushRequest(t.Context(), t, s, token)
	id := r.Header.Get("apns-id")
	for range 3 {
		a, err := do(t, client, pushRequest(t.Context(), t, s, token, "apns-id: "+id))
		if err != nil || a.Status != 503 {
			t.Fatalf("answered %+v, %v", a, err)
		}
	}
	if diff := cmp.Diff(map[string]int{id: 3}, s.Duplicates(sandbox.APNs)); diff != "" {
		t.Error(diff)
	}
	c := s.Counts(sandbox.APNs)
	if c.Taken != 3 || c.Distinct != 1 || c.Duplicates != 2 {
		t.Errorf("counts are %+v", c)
	}
	m := s.Messages(sandbox.Filter{ID: id})
	if len(m) != 3 || m[2].Copy != 3 || m[0].Answered != "503" {
		t.Errorf("ledger has %+v", m)
	}
}

// TestFaultsAreRepeatable sends the same number of pushes to two sandboxes of one seed.
func TestFaultsAreRepeatable(t *testing.T) {
	t.Parallel()
	script := sandbox.Script{Errors: map[string]float64{"503": 0.1, "TooManyRequests": 0.05}, TakenAnyway: 0.5}
	fates := func(s *sandbox.Sandbox) (all string) {
		if err := s.Script(sandbox.APNs, script); err != nil {
			t.Fatal(err)
		}
		token, client := providerToken(t, s, nil), h2(t, s)
		for range 300 {
			a, err := do(t, client, pushRequest(t.Context(), t, s, token))
			if err != nil {
				t.Fatal(err)
			}
			all += strconv.Itoa(a.Status) + " "
		}
		return all
	}
	one, two, other := start(t, sandbox.Options{Seed: 7}), start(t, sandbox.Options{Seed: 7}), start(t, sandbox.Options{Seed: 8})
	first := fates(one)
	if diff := cmp.Diff(first, fates(two)); diff != "" {
		t.Error(diff)
	}
	if first == fates(other) {
		t.Error("another seed has the same faults")
	}
	if n := strings.Count(first, "503"); n < 15 || n > 50 {
		t.Errorf("%d of 300 were a 503, at a rate of 0.1", n)
	}
	one.Reset()
	if first != fates(one) {
		t.Error("after Reset the faults are others")
	}
}

func TestLatency(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	const latency = 40 * time.Millisecond
	if err := s.Script(sandbox.APNs, sandbox.Script{Latency: latency, Jitter: 10 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	token, client := providerToken(t, s, nil), h2(t, s)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			began := time.Now()
			if a, err := do(t, client, pushRequest(t.Context(), t, s, token)); err != nil || a.Status != 200 || time.Since(began) < latency {
				t.Errorf("answered %+v, %v after %s", a, err, time.Since(began))
			}
		})
	}
	wg.Wait()
}

// TestGoAway has connections end all the time; no push may be lost or doubled by it.
func TestGoAway(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	if err := s.Script(sandbox.APNs, sandbox.Script{GoAwayEvery: 10, Latency: time.Millisecond, Jitter: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	token, client := providerToken(t, s, nil), h2(t, s)
	var wg sync.WaitGroup
	var n atomic.Int64
	for range 8 {
		wg.Go(func() {
			for n.Add(1) <= 500 {
				if a, err := do(t, client, pushRequest(t.Context(), t, s, token)); err != nil || a.Status != 200 {
					t.Errorf("answered %+v, %v", a, err)
				}
			}
		})
	}
	wg.Wait()
	c := s.Counts(sandbox.APNs)
	if c.Distinct != 500 || c.Duplicates != 0 || c.Conns < 50 {
		t.Errorf("counts are %+v", c)
	}
}

// TestMaxStreams runs more callers than there are streams on connections that announce few.
func TestMaxStreams(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	if err := s.Script(sandbox.APNs, sandbox.Script{MaxStreams: 5, Latency: 2 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	token, client := providerToken(t, s, nil), h2(t, s)
	if a, err := do(t, client, pushRequest(t.Context(), t, s, token)); err != nil || a.Status != 200 { // it knows the limit now
		t.Fatalf("answered %+v, %v", a, err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if a, err := do(t, client, pushRequest(t.Context(), t, s, token)); err != nil || a.Status != 200 {
					t.Errorf("answered %+v, %v", a, err)
				}
			}
		})
	}
	wg.Wait()
	if c := s.Counts(sandbox.APNs); c.Distinct != 161 || c.Duplicates != 0 || c.Conns < 2 {
		t.Errorf("counts are %+v", c)
	}
}

func TestCredentialFiles(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	for _, file := range []string{s.KeyFile(), s.ClientCertFile(), s.ServiceAccountFile()} {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", file, info.Mode())
		}
	}
}
