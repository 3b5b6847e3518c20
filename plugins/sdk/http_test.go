package sdk_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/plugins/sdk"
	"github.com/carillon-notify/carillon/providers"
)

func closeHTTP(t *testing.T, h *sdk.HTTP) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := h.Close(ctx); err != nil {
		t.Error(err)
	}
}

func post(ctx context.Context, t *testing.T, h *sdk.HTTP, url, body string) (status int, handed bool, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, handed, err := h.Do(req)
	if err != nil {
		return 0, handed, err
	}
	if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
	return resp.StatusCode, handed, nil
}

// flaky is an HTTP server that ends connections wherever it likes, and knows which requests it got whole.
type flaky struct {
	net.Listener
	mu      sync.Mutex
	rng     *rand.Rand
	arrived map[string]int
}

func (f *flaky) roll(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rng.IntN(n)
}

func (f *flaky) serve(c net.Conn) {
	defer c.Close()
	if f.roll(20) == 0 {
		return // before anything
	}
	r := bufio.NewReader(c)
	for {
		if f.roll(20) == 0 {
			_, _ = r.Discard(f.roll(2000)) // in the middle
			return
		}
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		id, _, _ := bytes.Cut(body, []byte(" "))
		f.mu.Lock()
		f.arrived[string(id)]++
		f.mu.Unlock()
		if f.roll(20) == 0 {
			return // instead of an answer
		}
		if _, err := io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n"); err != nil || f.roll(10) == 0 {
			return // behind its back: the client keeps the connection
		}
	}
}

// TestHanded: what Do says was not handed over has not arrived, and nothing arrives twice.
func TestHanded(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &flaky{Listener: l, rng: rand.New(rand.NewPCG(seed, 1)), arrived: map[string]int{}}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { f.serve(c) })
		}
	})
	h := sdk.NewHTTP(sdk.HTTPOptions{MaxPerHost: 8})
	type outcome struct{ answered, handed bool }
	var mu sync.Mutex
	outcomes := map[string]outcome{}
	var clients sync.WaitGroup
	for n := range 12 {
		rng := rand.New(rand.NewPCG(seed, uint64(n)+2))
		clients.Go(func() {
			for i := range 250 {
				// Some end while they are being written, some before, some are larger than a buffer.
				within := 300 * time.Millisecond
				if rng.IntN(3) == 0 {
					within = time.Duration(rng.IntN(600)) * time.Microsecond
				}
				id := fmt.Sprintf("%d-%d", n, i)
				ctx, cancel := context.WithTimeout(t.Context(), within)
				_, handed, err := post(ctx, t, h, "http://"+l.Addr().String(), id+" "+strings.Repeat("x", rng.IntN(3)*3000))
				cancel()
				mu.Lock()
				outcomes[id] = outcome{err == nil, handed}
				mu.Unlock()
			}
		})
	}
	clients.Wait()
	closeHTTP(t, h)
	l.Close()
	serving.Wait()
	counts := map[outcome]int{}
	for id, o := range outcomes {
		counts[o]++
		switch n := f.arrived[id]; {
		case n > 1:
			t.Errorf("%s arrived %d times", id, n)
		case n == 1 && !o.handed:
			t.Errorf("%s arrived, and was said not to", id)
		case n == 0 && o.answered:
			t.Errorf("%s was answered, and did not arrive", id)
		}
	}
	t.Logf("answered %d, unknown %d, not handed over %d", counts[outcome{true, true}], counts[outcome{false, true}], counts[outcome{false, false}])
	if counts[outcome{false, false}] == 0 || counts[outcome{false, true}] == 0 {
		t.Error("the server was not flaky enough to show anything")
	}
	if s := h.Stats(); s.Open != 0 || s.InUse != 0 || s.Waiting != 0 || s.Opened != s.Closed || s.Reused == 0 {
		t.Errorf("after close: %+v", s)
	}
}

// TestNotHanded: what ends before there is a connection is not handed over.
func TestNotHanded(t *testing.T) {
	t.Parallel()
	busy, release := make(chan struct{}), make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { busy <- struct{}{}; <-release }))
	t.Cleanup(s.Close)
	shut := httptest.NewServer(nil)
	shut.Close()
	forbidden := errors.New("not there")
	h := sdk.NewHTTP(sdk.HTTPOptions{MaxPerHost: 1, Control: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		if address != s.Listener.Addr().String() && address != shut.Listener.Addr().String() {
			return forbidden
		}
		return nil
	}})
	first := make(chan error, 1)
	go func() {
		_, _, err := post(t.Context(), t, h, s.URL, "")
		first <- err
	}()
	<-busy
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	for _, tt := range []struct {
		name, url string
		ctx       context.Context
		want      error
	}{
		{"over already", s.URL, ended, context.Canceled},
		{"no connection free", s.URL, short, context.DeadlineExceeded},
		{"nobody listens", shut.URL, t.Context(), syscall.ECONNREFUSED},
		{"not allowed", "http://127.0.0.1:1/secret-path", t.Context(), forbidden},
	} {
		_, handed, err := post(tt.ctx, t, h, tt.url, "")
		if handed || !errors.Is(err, tt.want) || strings.Contains(fmt.Sprint(err), "secret-path") {
			t.Errorf("%s: handed %t, error %v", tt.name, handed, err)
		}
	}
	if s := h.Stats(); s.Open != 1 || s.InUse != 1 || s.Waiting != 0 || s.Max != 1 || s.Failed != 2 {
		t.Errorf("%+v", s)
	}
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
	closeHTTP(t, h)
	if _, handed, err := post(t.Context(), t, h, s.URL, ""); handed || !errors.Is(err, sdk.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}

// TestHTTPClose: Close waits for what is in flight, and not longer than it is told to.
func TestHTTPClose(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}), make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		arrived <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(s.Close)
	for _, patient := range []bool{true, false} {
		h := sdk.NewHTTP(sdk.HTTPOptions{})
		status := make(chan int, 1)
		go func() {
			n, handed, _ := post(t.Context(), t, h, s.URL, "")
			if !handed {
				t.Error("it was not handed over")
			}
			status <- n
		}()
		<-arrived
		ctx, cancel := context.WithCancel(t.Context())
		closed := make(chan error, 1)
		go func() { closed <- h.Close(ctx) }()
		want := 0
		if patient {
			want = 200
			release <- struct{}{}
		} else {
			cancel()
		}
		if err := <-closed; (err == nil) != patient {
			t.Errorf("patient %t: %v", patient, err)
		}
		cancel()
		if got := <-status; got != want {
			t.Errorf("patient %t: status %d", patient, got)
		}
		closeHTTP(t, h) // again
	}
}

// TestAnswer: no redirect is followed, a long answer is not read to its end, a short one's connection is
// used again.
func TestAnswer(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	stopped := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		switch r.URL.Path {
		case "/redirect":
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		case "/long":
			defer close(stopped)
			for block := make([]byte, 32<<10); ; {
				if _, err := w.Write(block); err != nil {
					return
				}
			}
		}
	}))
	t.Cleanup(s.Close)
	h := sdk.NewHTTP(sdk.HTTPOptions{})
	for _, tt := range []struct {
		path   string
		status int
	}{{"/redirect", 307}, {"/redirect", 307}, {"/long", 200}} {
		if status, _, err := post(t.Context(), t, h, s.URL+tt.path, ""); err != nil || status != tt.status {
			t.Errorf("%s: %d, %v", tt.path, status, err)
		}
	}
	<-stopped
	if n := asked.Load(); n != 3 {
		t.Errorf("%d requests were made", n)
	}
	closeHTTP(t, h)
	if s := h.Stats(); s.Opened != 1 || s.Closed != 1 || s.Reused != 2 {
		t.Errorf("%+v", s)
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		value       string
		least, most time.Duration
	}{
		{"", 0, 0},
		{"0", 0, 0},
		{"7", 7 * time.Second, 7 * time.Second},
		{" 7 ", 7 * time.Second, 7 * time.Second},
		{"3600", time.Hour, time.Hour},
		{"3601", time.Hour, time.Hour},
		{"99999999999999999999", time.Hour, time.Hour},
		{"-7", 0, 0},
		{"7.5", 0, 0},
		{"soon", 0, 0},
		{time.Now().Add(time.Minute).UTC().Format(http.TimeFormat), 50 * time.Second, time.Minute},
		{time.Now().Add(100 * time.Hour).UTC().Format(http.TimeFormat), time.Hour, time.Hour},
		{time.Now().Add(-time.Minute).UTC().Format(http.TimeFormat), 0, 0},
	} {
		if got := sdk.RetryAfter(http.Header{"Retry-After": {tt.value}}); got < tt.least || got > tt.most {
			t.Errorf("%q: %s, want %s to %s", tt.value, got, tt.least, tt.most)
		}
	}
}

func TestEach(t *testing.T) {
	t.Parallel()
	var batch []providers.Message
	for i := range 5 {
		batch = append(batch, providers.Message{ID: strconv.Itoa(i)})
	}
	var met sync.WaitGroup // all are called at once
	met.Add(len(batch))
	var mu sync.Mutex
	got := map[string]providers.Outcome{}
	err := sdk.Each(t.Context(), batch, func(r providers.Result) {
		mu.Lock()
		defer mu.Unlock()
		got[r.ID] = r.Outcome
	}, func(_ context.Context, m *providers.Message) (providers.Result, error) {
		met.Done()
		met.Wait()
		switch m.ID {
		case "1":
			return providers.Result{}, errors.New("no answer")
		case "3":
			panic("secret")
		}
		return providers.Result{ID: "another's", Outcome: providers.Accepted}, nil
	})
	if d := cmp.Diff(map[string]providers.Outcome{"0": providers.Accepted, "2": providers.Accepted, "4": providers.Accepted}, got); d != "" {
		t.Error(d)
	}
	if want := "2 of 5 messages were handed over and not answered, the first: no answer"; err == nil || err.Error() != want {
		t.Errorf("error is %v, want %s", err, want)
	}
	if err := sdk.Each(t.Context(), batch, func(providers.Result) {}, func(context.Context, *providers.Message) (providers.Result, error) {
		return providers.Result{}, nil
	}); err != nil {
		t.Error(err)
	}
}
