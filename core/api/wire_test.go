package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/core/api"
)

// serve runs a rig's handler behind the server that every edge has. Each request that is answered to its
// end, or given up, is told on the channel.
func serve(t *testing.T, r *rig) (url string, ended <-chan string) {
	t.Helper()
	done := make(chan string, 100)
	s := httptest.NewUnstartedServer(nil)
	s.Config = api.Server(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		defer func() { done <- q.Method + " " + q.URL.Path }()
		r.handler.ServeHTTP(w, q)
	}))
	s.Config.ErrorLog = log.New(failing{t}, "", 0)
	s.Start()
	t.Cleanup(s.Close) // waits for the connections
	return s.URL, done
}

// failing fails the test by what net/http has to say: that a handler panicked, or was used wrongly.
type failing struct{ t *testing.T }

func (f failing) Write(b []byte) (int, error) {
	f.t.Errorf("the server says: %s", b)
	return len(b), nil
}

// post sends a body with the send key and headers.
func post(ctx context.Context, t *testing.T, url string, body io.Reader, headers ...string) (*http.Response, error) {
	t.Helper()
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+sendKey)
	q.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(headers); i += 2 {
		q.Header.Set(headers[i], headers[i+1])
	}
	return http.DefaultClient.Do(q)
}

// TestWire: what goes wrong below JSON is answered where there is anybody to answer, and leaves nothing.
func TestWire(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	url, ended := serve(t, r)
	t.Run("all", func(t *testing.T) { overTheWire(t, url) })
	if n := r.notifications(t); n != 0 || len(ended) == 0 {
		t.Errorf("%d notifications are left of %d requests", n, len(ended))
	}
}

func overTheWire(t *testing.T, url string) {
	host := strings.TrimPrefix(url, "http://")
	head := "POST /v1/notifications HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer " + sendKey + "\r\nContent-Type: application/json\r\n"
	for name, c := range map[string]struct {
		raw    string
		status int
	}{
		"half a body":            {head + "Content-Length: 1000\r\n\r\n" + simple, http.StatusBadRequest},
		"no chunk":               {head + "Transfer-Encoding: chunked\r\n\r\nnone\r\n", http.StatusBadRequest},
		"half a chunk":           {head + "Transfer-Encoding: chunked\r\n\r\nff\r\n{", http.StatusBadRequest},
		"two lengths":            {head + "Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}", http.StatusBadRequest},
		"a length and chunks":    {head + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", http.StatusBadRequest},
		"a line break in a key":  {head + "Idempotency-Key: a\rb\r\nContent-Length: 2\r\n\r\n{}", http.StatusBadRequest},
		"20 KiB of headers":      {head + "X-Long: " + strings.Repeat("x", 20<<10) + "\r\nContent-Length: 2\r\n\r\n{}", http.StatusRequestHeaderFieldsTooLarge},
		"no HTTP":                {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", http.StatusBadRequest},
		"compressed":             {head + "Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00", http.StatusUnsupportedMediaType},
		"a form":                 {strings.Replace(head, "application/json", "application/x-www-form-urlencoded", 1) + "Content-Length: 2\r\n\r\n{}", http.StatusUnsupportedMediaType},
		"no body":                {head + "Content-Length: 0\r\n\r\n", http.StatusBadRequest},
		"a recipient elsewhere":  {"GET /v1/recipients/..%2f..%2fx HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer " + readKey + "\r\n\r\n", http.StatusNotFound},
		"a NUL in a path":        {"PUT /v1/recipients/a%00b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer " + sendKey + "\r\nContent-Length: 2\r\n\r\n{}", http.StatusBadRequest},
		"broken UTF-8 in a path": {"PUT /v1/recipients/%ff HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer " + sendKey + "\r\nContent-Length: 2\r\n\r\n{}", http.StatusBadRequest},
		"broken UTF-8 to find":   {"GET /v1/notifications?recipient=%ff&cursor=%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer " + readKey + "\r\n\r\n", http.StatusBadRequest},
		"an escape cut short":    {"GET /v1/notifications?recipient=%f HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer " + readKey + "\r\n\r\n", http.StatusBadRequest},
		"no cursor":              {"GET /v1/notifications?cursor=x HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer " + readKey + "\r\n\r\n", http.StatusUnprocessableEntity},
		"a key beyond ASCII":     {head + "Idempotency-Key: \xff\r\nContent-Length: " + strconv.Itoa(len(simple)) + "\r\n\r\n" + simple, http.StatusUnprocessableEntity},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", host)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, c.raw); err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(name, "half a ") { // to the others an end would mean that the client has left
				if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
					t.Fatal(err)
				}
			}
			a, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(a.Body)
			if err != nil || a.StatusCode != c.status {
				t.Fatalf("= %d %s (%v), want %d", a.StatusCode, body, err, c.status)
			}
			if a.Header.Get("X-Request-Id") != "" { // it came as far as us
				tellsNothing(t, body)
			}
		})
	}
	t.Run("too much", func(t *testing.T) {
		t.Parallel()
		for _, size := range []int{1 << 20, 9 << 20} {
			a, err := post(t.Context(), t, url+"/v1/notifications", strings.NewReader(mail(`"metadata":{"a":"`+strings.Repeat("x", size)+`"}`)))
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(a.Body)
			a.Body.Close()
			if a.StatusCode != http.StatusRequestEntityTooLarge || !strings.Contains(string(body), "KiB") {
				t.Errorf("%d bytes = %d %s", size, a.StatusCode, body)
			}
			tellsNothing(t, body)
		}
	})
	t.Run("a client that goes away", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		body, in := io.Pipe()
		go func() {
			_, _ = io.WriteString(in, simple[:20])
			cancel()
			_ = in.CloseWithError(io.ErrUnexpectedEOF) // net/http waits for whoever reads the body
		}()
		if a, err := post(ctx, t, url+"/v1/notifications?gone", body); err == nil {
			a.Body.Close()
			t.Errorf("= %d", a.StatusCode)
		}
	})
}

// bulkLine is a line of a bulk stream's answer.
type bulkLine struct {
	Line, Status int
	Replayed     bool
	Notification api.Accepted
	Problem      api.Problem
}

// lines reads a bulk stream's answer to its end.
func lines(t *testing.T, body io.Reader) (all []bulkLine) {
	t.Helper()
	s := bufio.NewScanner(body)
	for s.Scan() {
		var l bulkLine
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			t.Fatalf("%s: %v", s.Bytes(), err)
		}
		all = append(all, l)
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestBulkBadLines: each line is answered for itself; one that is too long is the last.
func TestBulkBadLines(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	url, _ := serve(t, r)
	type line struct {
		text    string
		status  int    // 0: no answer
		pointer string // of its only fault
	}
	sent := []line{
		{simple, 202, ""},
		{`{"to":[`, 400, ""},
		{mail(`"content":{"data":` + nested(100) + `}`), 400, ""},
		{"\xff\xfe", 400, ""},
		{"", 0, ""},
		{" \t\r", 0, ""},
		{one("email", "no address", `"content":{"title":"t"}`), 422, "/to/0/email"},
		{mail(`"content":{"title":"a\u0000"}`), 422, "/content/title"},
		{mail(`"content":{"title":"t"},"ttl":"0s"`), 422, "/ttl"},
		{mail(`"content":{"title":"t"},"ttl":"1h","ttl":"2h"`), 422, "/ttl"},
		{"[]", 422, ""},
		{"null", 422, ""},
		{simple + simple, 400, ""},
		{mail(`"content":{"title":"` + strings.Repeat("x", 800) + `","data":{"x":"` + strings.Repeat("x", api.MaxBody-1000) + `"}}`), 202, ""},
		{simple + "\r", 202, ""},
		{strings.Repeat(" ", api.MaxBody) + simple, 413, ""},
		{simple, 0, ""},
	}
	var body strings.Builder
	for _, l := range sent {
		body.WriteString(l.text + "\n")
	}
	a, err := post(t.Context(), t, url+"/v1/notifications/bulk", strings.NewReader(body.String()), "Content-Type", "application/x-ndjson")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	var want, got []string
	taken := 0
	for i, l := range sent {
		if l.status != 0 {
			want = append(want, fmt.Sprint(i+1, " ", l.status, " ", l.pointer))
		}
		if l.status == 202 {
			taken++
		}
	}
	for _, l := range lines(t, a.Body) {
		pointer := ""
		if len(l.Problem.Errors) > 0 {
			pointer = l.Problem.Errors[0].Pointer
		}
		if l.Status != 202 {
			text, _ := json.Marshal(l.Problem)
			tellsNothing(t, text)
			if l.Problem.Status != l.Status || l.Problem.RequestId != a.Header.Get("X-Request-Id") || len(l.Problem.Errors) > 1 {
				t.Errorf("line %d: %s", l.Line, text)
			}
		}
		got = append(got, fmt.Sprint(l.Line, " ", l.Status, " ", pointer))
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("answers (-want +got):\n%s", d)
	}
	if n := r.notifications(t); n != taken {
		t.Errorf("%d notifications, want %d", n, taken)
	}
}

// TestBulkClientGoesAway: what was answered is kept, the half line is not, and a second try under the same
// key brings each line once.
func TestBulkClientGoesAway(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	url, ended := serve(t, r)
	const n, read = 200, 20
	ctx, cancel := context.WithCancel(t.Context())
	body, in := io.Pipe()
	go func() {
		for range n {
			if _, err := io.WriteString(in, simple+"\n"); err != nil {
				return
			}
		}
		_, _ = io.WriteString(in, simple[:len(simple)/2])
	}()
	bulk := func(ctx context.Context, body io.Reader) *http.Response {
		a, err := post(ctx, t, url+"/v1/notifications/bulk", body, "Content-Type", "application/x-ndjson", "Idempotency-Key", "k")
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := bulk(ctx, body)
	answers := bufio.NewScanner(a.Body)
	for range read {
		if !answers.Scan() {
			t.Fatalf("the answers end: %v", answers.Err())
		}
	}
	cancel() // closes the connection
	a.Body.Close()
	<-ended
	kept := r.notifications(t)
	if kept < read || kept > n {
		t.Errorf("%d notifications are kept of %d lines, %d of them answered", kept, n, read)
	}
	a = bulk(t.Context(), strings.NewReader(strings.Repeat(simple+"\n", n)))
	defer a.Body.Close()
	replayed := 0
	for i, l := range lines(t, a.Body) {
		if l.Line != i+1 || l.Status != 202 {
			t.Errorf("line %d is answered %+v", i+1, l)
		}
		if l.Replayed {
			replayed++
		}
	}
	// Lines that were on their way when the client left were waited for.
	if got := r.notifications(t); got != n || replayed != kept {
		t.Errorf("%d notifications, %d replayed; want %d and %d", got, replayed, n, kept)
	}
}
