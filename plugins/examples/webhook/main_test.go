package main

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/porttest"
)

const (
	oldSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	newSecret = "whsec_bmV3ZXIta2V5LW9mLXRoaXJ0eS10d28tYnl0ZXM="
	token     = "hook-token-of-a-receiver" // stands in every test URL: it must show up nowhere else
)

// receiver is a real HTTPS server that plays somebody's webhook. watch may be nil.
func receiver(t *testing.T, h http.HandlerFunc, watch func(http.ConnState)) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if watch != nil {
		s.Config.ConnState = func(_ net.Conn, state http.ConnState) { watch(state) }
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// settingsFor trusts a server and lets it be reached.
func settingsFor(t *testing.T, s *httptest.Server, with map[string]any) []byte {
	t.Helper()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	all := map[string]any{"secrets": []string{newSecret, oldSecret}, "allow": []string{"127.0.0.0/8"}, "ca_file": ca}
	maps.Copy(all, with)
	raw, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func opened(t *testing.T, raw []byte) providers.Provider {
	t.Helper()
	p, err := kind().Open(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := p.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return p
}

func message(url string) providers.Message {
	return providers.Message{ID: "0199a2b4-0000-7000-8000-000000000001", Address: url, Title: "private title", Body: "private body",
		CreatedAt: time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC), ExpiresAt: time.Now().Add(time.Hour), Attempt: 1}
}

// deliver sends a batch and returns the results by id. Whatever is said must hold nothing private.
func deliver(t *testing.T, p providers.Provider, within time.Duration, batch ...providers.Message) (map[string]providers.Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	return deliverIn(ctx, t, p, batch...)
}

func deliverIn(ctx context.Context, t *testing.T, p providers.Provider, batch ...providers.Message) (map[string]providers.Result, error) {
	t.Helper()
	var mu sync.Mutex
	got := map[string]providers.Result{}
	err := p.Deliver(ctx, batch, func(r providers.Result) {
		mu.Lock()
		defer mu.Unlock()
		if _, twice := got[r.ID]; twice {
			t.Errorf("%s is reported twice", r.ID)
		}
		got[r.ID] = r
		discreet(t, r.Code+" "+r.Reason)
	})
	if err != nil {
		discreet(t, err.Error())
	}
	return got, err
}

func discreet(t *testing.T, said string) {
	t.Helper()
	for _, private := range []string{token, "127.0.0.1", "whsec_Mf", "MfKQ9r8G", "bmV3ZXIt", "private"} {
		if strings.Contains(strings.ReplaceAll(said, "a private or reserved address", ""), private) {
			t.Errorf("%q holds %q", said, private)
		}
	}
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	var followed atomic.Int64
	s := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		status, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		if r.URL.Query().Get("token") != token || err != nil {
			followed.Add(1)
			return
		}
		w.Header().Set("Location", "/elsewhere")
		if after := r.URL.Query().Get("after"); after != "" {
			w.Header().Set("Retry-After", after)
		}
		w.WriteHeader(status)
	}, nil)
	p := opened(t, settingsFor(t, s, nil))

	date := func(in time.Duration) string {
		return strings.ReplaceAll(time.Now().Add(in).UTC().Format(http.TimeFormat), " ", "+")
	}
	for _, tt := range []struct {
		status  int
		after   string
		outcome providers.Outcome
		wait    time.Duration
	}{
		{200, "", providers.Accepted, 0},
		{201, "", providers.Accepted, 0},
		{202, "120", providers.Accepted, 0},
		{204, "", providers.Accepted, 0},
		{299, "", providers.Accepted, 0},
		{300, "", providers.Rejected, 0},
		{301, "", providers.Rejected, 0},
		{302, "", providers.Rejected, 0},
		{304, "", providers.Rejected, 0},
		{307, "", providers.Rejected, 0},
		{308, "", providers.Rejected, 0},
		{400, "", providers.Rejected, 0},
		{401, "", providers.Rejected, 0},
		{403, "", providers.Rejected, 0},
		{404, "30", providers.Rejected, 0},
		{405, "", providers.Rejected, 0},
		{408, "", providers.Deferred, 0},
		{409, "", providers.Rejected, 0},
		{410, "30", providers.Gone, 0},
		{413, "", providers.Rejected, 0},
		{421, "", providers.Deferred, 0},
		{422, "", providers.Rejected, 0},
		{425, "", providers.Deferred, 0},
		{429, "", providers.Deferred, 0},
		{429, "120", providers.Deferred, 2 * time.Minute},
		{429, "0", providers.Deferred, 0},
		{429, "-5", providers.Deferred, 0},
		{429, "soon", providers.Deferred, 0},
		{429, "3601", providers.Deferred, time.Hour},
		{429, "99999999999999999999", providers.Deferred, time.Hour},
		{429, date(10 * time.Minute), providers.Deferred, 10 * time.Minute},
		{429, date(48 * time.Hour), providers.Deferred, time.Hour},
		{429, date(-time.Hour), providers.Deferred, 0},
		{500, "", providers.Deferred, 0},
		{501, "", providers.Deferred, 0},
		{502, "", providers.Deferred, 0},
		{503, "", providers.Deferred, 0},
		{503, "7", providers.Deferred, 7 * time.Second},
		{504, "", providers.Deferred, 0},
		{599, "", providers.Deferred, 0},
		{600, "", providers.Rejected, 0},
	} {
		t.Run(fmt.Sprint(tt.status, " ", tt.after), func(t *testing.T) {
			t.Parallel()
			m := message(fmt.Sprintf("%s/%d?token=%s&after=%s", s.URL, tt.status, token, tt.after))
			got, err := deliver(t, p, 30*time.Second, m)
			if err != nil {
				t.Fatal(err)
			}
			r := got[m.ID]
			// A date has come nearer by the time it is read.
			late := time.Duration(0)
			if strings.Contains(tt.after, "GMT") {
				late = min(tt.wait, time.Minute)
			}
			if r.Outcome != tt.outcome || r.After > tt.wait || r.After < tt.wait-late {
				t.Errorf("got %s after %s, want %s after %s", r.Outcome, r.After, tt.outcome, tt.wait)
			}
			if r.Code != strconv.Itoa(tt.status) {
				t.Errorf("the code is %q", r.Code)
			}
		})
	}
	t.Cleanup(func() {
		if n := followed.Load(); n > 0 {
			t.Errorf("%d redirects were followed", n)
		}
	})
}

// TestSign: the example that the reference implementations of Standard Webhooks test themselves with.
func TestSign(t *testing.T) {
	t.Parallel()
	keys, err := parseSecrets([]string{oldSecret})
	if err != nil {
		t.Fatal(err)
	}
	got := signature(keys[0], "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("the signature is %s, want %s", got, want)
	}
}

func TestRequest(t *testing.T) {
	t.Parallel()
	type request struct {
		header http.Header
		body   string
	}
	seen := make(chan request, 2)
	s := receiver(t, func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost {
			t.Errorf("%s, %v", r.Method, err)
		}
		seen <- request{r.Header, string(body)}
	}, nil)
	p := opened(t, settingsFor(t, s, nil))
	m := message(s.URL + "/" + token)
	m.URL, m.Category = "https://example.com/orders/7", "orders"
	m.Data, m.Content = json.RawMessage(`{"order":7}`), json.RawMessage(`{"event":"order.shipped"}`)
	for attempt := 1; attempt <= 2; attempt++ {
		m.Attempt = attempt
		if got, err := deliver(t, p, 30*time.Second, m); err != nil || got[m.ID].Outcome != providers.Accepted {
			t.Fatal(got, err)
		}
	}
	for range 2 {
		r := <-seen
		want := `{"id":"0199a2b4-0000-7000-8000-000000000001","event":"order.shipped","title":"private title","body":"private body",` +
			`"url":"https://example.com/orders/7","data":{"order":7},"category":"orders","created_at":"2026-11-26T10:00:00Z"}`
		if d := cmp.Diff(want, r.body); d != "" {
			t.Error(d)
		}
		if id := r.header.Get("Webhook-Id"); id != m.ID {
			t.Errorf("webhook-id is %q", id)
		}
		stamp := r.header.Get("Webhook-Timestamp")
		if at, err := strconv.ParseInt(stamp, 10, 64); err != nil || time.Since(time.Unix(at, 0)).Abs() > 10*time.Second {
			t.Errorf("webhook-timestamp is %q", stamp)
		}
		keys, err := parseSecrets([]string{newSecret, oldSecret})
		if err != nil {
			t.Fatal(err)
		}
		both := signature(keys[0], m.ID, stamp, []byte(r.body)) + " " + signature(keys[1], m.ID, stamp, []byte(r.body))
		if got := r.header.Get("Webhook-Signature"); got != both {
			t.Errorf("webhook-signature is %q, want %q", got, both)
		}
		if got := r.header.Get("Content-Type"); got != "application/json" {
			t.Errorf("content-type is %q", got)
		}
	}
	// Nothing is left out when there is nothing: a receiver need not ask which members there are.
	bare := message(s.URL + "/" + token)
	if _, err := deliver(t, p, 30*time.Second, bare); err != nil {
		t.Fatal(err)
	}
	want := `{"id":"0199a2b4-0000-7000-8000-000000000001","title":"private title","body":"private body","url":"","data":{},"category":"","created_at":"2026-11-26T10:00:00Z"}`
	if d := cmp.Diff(want, (<-seen).body); d != "" {
		t.Error(d)
	}
}

// TestSilence: who got the request and does not answer leaves the message without a report; who did not
// get it leaves it Deferred.
func TestSilence(t *testing.T) {
	t.Parallel()
	reached := make(chan struct{}, 1) // then the call may end
	s := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Query().Get("do") {
		case "hang":
			_, _ = io.Copy(io.Discard, r.Body)
			reached <- struct{}{}
			<-r.Context().Done()
		case "cut":
			panic(http.ErrAbortHandler)
		case "headers":
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			for err == nil { // for ever, if it were listened to
				_, err = io.WriteString(c, "X-More: "+strings.Repeat("x", 1000)+"\r\n")
			}
		}
	}, nil)
	mute, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	go func() {
		c, err := mute.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = c.Read(make([]byte, 1)) // the client's part of the handshake
		reached <- struct{}{}
		_, _ = io.Copy(io.Discard, c)
	}()
	for _, tt := range []struct {
		name, url string
		with      map[string]any
		code      string // "": no report
	}{
		{"no answer", s.URL + "/?do=hang&" + token, nil, ""},
		{"cut off", s.URL + "/?do=cut&" + token, nil, ""},
		{"headers without end", s.URL + "/?do=headers&" + token, nil, ""},
		{"no handshake", "https://" + mute.Addr().String() + "/" + token, nil, "timeout"},
		{"nobody there", "https://" + porttest.Addr(t) + "/" + token, nil, "connect"},
		{"a stranger's certificate", s.URL + "/" + token, map[string]any{"ca_file": ""}, "tls"},
		{"no such name", "https://a..b/" + token, nil, "dns"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := opened(t, settingsFor(t, s, tt.with))
			m := message(tt.url)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			go func() {
				select {
				case <-reached:
					cancel()
				case <-ctx.Done():
				}
			}()
			got, err := deliverIn(ctx, t, p, m)
			r, reported := got[m.ID]
			if tt.code == "" {
				if reported || err == nil {
					t.Errorf("want no report and an error, got %+v and %v", r, err)
				}
				return
			}
			if err != nil || r.Outcome != providers.Deferred || r.Code != tt.code {
				t.Errorf("got %+v and %v, want Deferred with the code %s", r, err, tt.code)
			}
		})
	}
}

// TestLongAnswer: a body without end costs neither memory nor the answer that came before it.
func TestLongAnswer(t *testing.T) {
	t.Parallel()
	var sent atomic.Int64
	stopped := make(chan struct{})
	s := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		defer close(stopped)
		block := []byte(strings.Repeat("x", 32<<10))
		for {
			n, err := w.Write(block)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	}, nil)
	p := opened(t, settingsFor(t, s, nil))
	m := message(s.URL + "/" + token)
	if got, err := deliver(t, p, 30*time.Second, m); err != nil || got[m.ID].Outcome != providers.Accepted {
		t.Error(got, err)
	}
	<-stopped
	if n := sent.Load(); n > 32<<20 { // what the sockets' buffers swallow
		t.Errorf("%d bytes of the answer were taken", n)
	}
}

// TestPool: there are as many connections as the pool may have, and they are used again and again.
func TestPool(t *testing.T) {
	t.Parallel()
	var h providers.Health
	// net/http gives up a connection whose request it does not see written within 50 ms of the answer: not three times.
	for range 3 {
		const all, most = 30, 2
		if h = pooled(t, all, most); h.Pool.Opened == most && h.Pool.Reused == all-most {
			break
		}
	}
	if h.Status != providers.HealthOK || h.Pool.InUse != 0 || h.Pool.Waiting != 0 || h.Pool.Open != 2 || h.Pool.Idle != 2 || h.Pool.Opened != 2 || h.Pool.Reused != 28 {
		t.Errorf("health is %+v", h)
	}
}

// pooled delivers all messages in three batches over at most so many connections, and returns the health after it.
func pooled(t *testing.T, all, most int) providers.Health {
	t.Helper()
	var now, came atomic.Int64
	met := make(chan struct{}) // when as many as may be at once are: one after the other, they would share a connection
	s := receiver(t, func(_ http.ResponseWriter, r *http.Request) {
		if n := now.Add(1); n > int64(most) {
			t.Errorf("%d requests were there at once", n)
		}
		defer now.Add(-1)
		if came.Add(1) == int64(most) {
			close(met)
		}
		select {
		case <-met:
		case <-r.Context().Done():
		}
		_, _ = io.Copy(io.Discard, r.Body)
	}, nil)
	p := opened(t, settingsFor(t, s, map[string]any{"pool": map[string]any{"max": most}}))
	batch := make([]providers.Message, all/3)
	for i := range batch {
		batch[i] = message(s.URL + "/" + token)
		batch[i].ID = fmt.Sprintf("id-%d", i)
	}
	for range 3 {
		got, err := deliver(t, p, 30*time.Second, batch...)
		if err != nil || len(got) != len(batch) {
			t.Fatal(len(got), err)
		}
	}
	return p.Health(t.Context())
}

// TestClose: it waits for what is in flight, and not longer than it is told to; then nothing goes out.
func TestClose(t *testing.T) {
	t.Parallel()
	arrived, release, gone := make(chan struct{}, 2), make(chan struct{}), make(chan struct{}, 2)
	s := receiver(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		arrived <- struct{}{}
		<-release
	}, func(state http.ConnState) {
		if state == http.StateClosed {
			gone <- struct{}{}
		}
	})
	for _, tt := range []struct {
		name     string
		patience time.Duration
		answered bool
	}{{"in time", 30 * time.Second, true}, {"too late", time.Millisecond, false}} {
		p, err := kind().Open(t.Context(), settingsFor(t, s, nil))
		if err != nil {
			t.Fatal(err)
		}
		m := message(s.URL + "/" + token)
		delivered := make(chan bool, 1)
		go func() {
			got, _ := deliver(t, p, 60*time.Second, m)
			delivered <- got[m.ID].Outcome == providers.Accepted
		}()
		<-arrived
		if h := p.Health(t.Context()); h.Pool.InUse != 1 || h.Pool.Open != 1 {
			t.Errorf("%s: in flight: %+v", tt.name, h.Pool)
		}
		ctx, cancel := context.WithTimeout(t.Context(), tt.patience)
		closed := make(chan error, 1)
		go func() { closed <- p.Close(ctx) }()
		if tt.answered {
			release <- struct{}{}
		}
		if err := <-closed; (err == nil) != tt.answered {
			t.Errorf("%s: close: %v", tt.name, err)
		}
		cancel()
		if got := <-delivered; got != tt.answered {
			t.Errorf("%s: answered: %t", tt.name, got)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Errorf("%s: close again: %v", tt.name, err)
		}
		if got, err := deliver(t, p, 30*time.Second, m); err != nil || got[m.ID].Outcome != providers.Deferred || got[m.ID].Code != "closed" {
			t.Errorf("%s: after close: %+v, %v", tt.name, got, err)
		}
		if !tt.answered {
			release <- struct{}{} // or the server would not notice
		}
		<-gone
		if h := p.Health(t.Context()); h.Pool.Open != 0 {
			t.Errorf("%s: after close: %+v", tt.name, h.Pool)
		}
	}
}

func TestTestMessage(t *testing.T) {
	t.Parallel()
	s := receiver(t, func(http.ResponseWriter, *http.Request) { t.Error("it was sent") }, nil)
	p := opened(t, settingsFor(t, s, nil))
	m := message(s.URL + "/" + token)
	m.Test = true
	if got, err := deliver(t, p, 30*time.Second, m); err != nil || got[m.ID].Outcome != providers.Accepted || got[m.ID].Code != "test" {
		t.Error(got, err)
	}
}
