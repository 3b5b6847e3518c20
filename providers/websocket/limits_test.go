package websocket_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	ws "github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/porttest"
	"github.com/carillon-notify/carillon/providers/websocket"
)

func TestSilentConnectionIsClosed(t *testing.T) {
	t.Parallel()
	s := open(t, func(s *websocket.Settings) { s.StaleTimeout = websocket.Duration(2 * time.Second) })
	start := time.Now()
	c := mustDial(t, s)
	if h := s.Health(t.Context()); h.Pool.Open != 1 || h.Pool.Idle != 1 || h.Pool.InUse != 0 {
		t.Errorf("pool %+v, want one idle connection", h.Pool)
	}
	c.endsWith(3502)
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("closed after %v", took)
	}
	eventually(t, "its slot is free", func() bool {
		pool := s.Health(t.Context()).Pool
		return pool.Open == 0 && pool.Opened == 1 && pool.Closed == 1
	})
}

func TestDeadClientIsClosed(t *testing.T) {
	t.Parallel()
	s := open(t, func(s *websocket.Settings) {
		s.PingInterval, s.PongTimeout = websocket.Duration(3*time.Second), websocket.Duration(2500*time.Millisecond) // for one who lives on a busy machine
	})
	dead, alive := mustDial(t, s), mustDial(t, s)
	dead.silent.Store(true)
	dead.connect(token(t, "shop", "dead"))
	alive.connect(token(t, "shop", "alive"))
	dead.endsWith(3012)
	eventually(t, "the dead client is absent", func() bool {
		return outcome(t, s, message("shop", "dead", "")) == providers.Absent
	})
	deliver(t, s, message("shop", "alive", "still here"))
	if got := alive.pub().Title; got != "still here" {
		t.Errorf("the living client got %q", got)
	}
}

func TestSlowClientIsCut(t *testing.T) {
	t.Parallel()
	s := open(t, func(s *websocket.Settings) {
		s.ClientQueueMaxSize = 2 * websocket.MaxPayload
		s.WriteTimeout = websocket.Duration(2 * time.Second) // also bounds the last write to a client that is cut
	})
	// A client with a small receive buffer, which reads its connect reply and nothing more.
	raw, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), waiting)
	defer cancel()
	slow, _, err := ws.Dial(ctx, strings.Replace(s.url, "http", "ws", 1)+"/connection/websocket", &ws.DialOptions{
		HTTPClient: &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return raw, nil }}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = slow.CloseNow() }()
	if err := slow.Write(ctx, ws.MessageText, []byte(`{"id":1,"connect":`+connectBody(token(t, "shop", "slow"))+`}`)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := slow.Read(ctx); err != nil {
		t.Fatal(err)
	}
	quick := connect(t, s, token(t, "shop", "quick"))
	body := strings.Repeat("x", websocket.MaxPayload-1000)
	sent := 0
	eventually(t, "the slow client is cut", func() bool {
		m := message("shop", "slow", "")
		m.Body = body
		sent++
		if outcome(t, s, m) == providers.Absent {
			return true
		}
		start := time.Now()
		deliver(t, s, message("shop", "quick", fmt.Sprint(sent)))
		if got := quick.pub().Title; got != fmt.Sprint(sent) || time.Since(start) > 5*time.Second {
			t.Fatalf("the quick client got %q after %v", got, time.Since(start))
		}
		return false
	})
	t.Logf("cut after %d messages of %d bytes", sent, len(body))
	eventually(t, "its connection is closed", func() bool { return s.Health(t.Context()).Pool.Open == 1 })
	if codes := disconnects(t, s); codes["3008"] != 1 || len(codes) != 1 {
		t.Errorf("clients were disconnected with %v, want one 3008 (slow)", codes)
	}
}

// TestQueueLimit fills a client's queue within the time in which its messages are collected.
func TestQueueLimit(t *testing.T) {
	t.Parallel()
	s := open(t, func(s *websocket.Settings) {
		s.ClientQueueMaxSize, s.WriteDelay = 3*websocket.MaxPayload, websocket.Duration(time.Second)
	})
	c := connect(t, s, token(t, "shop", "u"))
	m := message("shop", "u", "")
	m.Body = strings.Repeat("x", websocket.MaxPayload-1000)
	eventually(t, "it is cut", func() bool { // a machine may be too busy for four messages within that time
		batch := []providers.Message{m, m, m, m}
		for i := range batch {
			batch[i].ID = message("shop", "u", "").ID
		}
		deliver(t, s, batch...)
		select {
		case <-c.ended:
			return true
		case <-time.After(100 * time.Millisecond): // to hear of it
			return false
		}
	})
	c.endsWith(3008) // below 3500: an SDK comes back and recovers
}

// disconnects counts the disconnects by the server, by code.
func disconnects(t *testing.T, s *site) map[string]float64 {
	t.Helper()
	families, err := s.Gather()
	if err != nil {
		t.Fatal(err)
	}
	codes := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "carillon_websocket_client_num_server_disconnects" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "code" && m.GetCounter().GetValue() > 0 {
					codes[l.GetValue()] += m.GetCounter().GetValue()
				}
			}
		}
	}
	return codes
}

func TestConnectionLimits(t *testing.T) {
	t.Parallel()
	s := open(t, func(s *websocket.Settings) { s.MaxConnections, s.MaxConnectionsPerRecipient = 4, 2 })
	first := connect(t, s, token(t, "shop", "u"))
	connect(t, s, token(t, "shop", "u"))
	third := mustDial(t, s)
	third.command("connect", connectBody(token(t, "shop", "u")))
	third.endsWith(3504)
	connect(t, s, token(t, "other", "u")) // the same id in another app is another recipient
	eventually(t, "the refused connection's slot is free", func() bool { return s.Health(t.Context()).Pool.Open == 3 })
	stream(t, s, "sse", connectBody(token(t, "shop", "v")))
	if _, err := dial(t, s.url, nil); err == nil || !strings.Contains(err.Error(), "status 503") {
		t.Errorf("the fifth connection: %v, want status 503", err)
	}
	resp, err := http.Post(s.url+"/connection/http_stream", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("the fifth stream is answered %s", resp.Status)
	}
	first.cut()
	eventually(t, "there is room again", func() bool { return s.Health(t.Context()).Pool.Open == 3 })
	connect(t, s, token(t, "shop", "u"))
	if pool := s.Health(t.Context()).Pool; pool.Max != 4 || pool.InUse != 4 || pool.Failed != 2 {
		t.Errorf("pool %+v, want 4 of 4 in use and 2 refused", pool)
	}
}

func TestMessageSizeLimit(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := connect(t, s, token(t, "shop", "u"))
	c.command("rpc", `{"method":"ack","data":{"ids":["`+strings.Repeat("x", 17<<10)+`"]}}`)
	c.endsWith(1009) // RFC 6455 section 7.4.1: message too big
	for _, path := range []string{"http_stream", "emulation"} {
		resp, err := http.Post(s.url+"/connection/"+path, "application/json", strings.NewReader(strings.Repeat(" ", 17<<10)))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}

func TestOrigins(t *testing.T) {
	t.Parallel()
	listed := open(t, func(s *websocket.Settings) {
		s.Origins = []string{"https://App.example.com:443", "http://localhost:3000"}
	})
	anyone := open(t, func(s *websocket.Settings) { s.Origins = []string{"*"} })
	none := open(t)
	for _, row := range []struct {
		s      *site
		origin string
		ok     bool
	}{
		{listed, "", true}, {listed, "https://app.example.com", true}, {listed, "http://localhost:3000", true},
		{listed, listed.url, true}, {none, none.url, true}, {none, "", true},
		{listed, "http://app.example.com", false}, {listed, "https://app.example.com:444", false},
		{listed, "https://app.example.com.evil.com", false}, {listed, "https://evil.com/https://app.example.com", false},
		{listed, "https://xapp.example.com", false}, {listed, "null", false}, {listed, "http://localhost:3001", false},
		{listed, "https://app.example.com@evil.com", false},
		{none, strings.Replace(none.url, "http://", "http://evil.", 1), false}, {none, none.url + "0", false},
		{none, "https://evil.com", false}, {anyone, "https://evil.com", true}, {anyone, "null", true},
	} {
		header := http.Header{}
		if row.origin != "" {
			header.Set("Origin", row.origin)
		}
		if _, err := dial(t, row.s.url, header); (err == nil) != row.ok || err != nil && !strings.Contains(err.Error(), "status 403") {
			t.Errorf("WebSocket from %q: %v, want ok %v", row.origin, err, row.ok)
		}
		for _, req := range []struct{ method, path string }{
			{"POST", "http_stream"}, {"GET", "sse"}, {"POST", "emulation"}, {"OPTIONS", "http_stream"}, {"OPTIONS", "emulation"},
		} {
			r, err := http.NewRequestWithContext(t.Context(), req.method, row.s.url+"/connection/"+req.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header = header
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if (resp.StatusCode != http.StatusForbidden) != row.ok {
				t.Errorf("%s %s from %q: %s, want ok %v", req.method, req.path, row.origin, resp.Status, row.ok)
			}
			foreign := row.origin != "" && row.origin != row.s.url
			if allowed := resp.Header.Get("Access-Control-Allow-Origin"); (allowed == row.origin) != row.ok && foreign {
				t.Errorf("%s %s from %q: CORS allows %q", req.method, req.path, row.origin, allowed)
			}
			if resp.Header.Get("Access-Control-Allow-Credentials") != "" {
				t.Error("CORS allows credentials")
			}
		}
	}
}

// TestServerTimeoutsDoNotCutStreams runs a stream behind a server whose timeouts are shorter than the
// time between two pings.
func TestServerTimeoutsDoNotCutStreams(t *testing.T) {
	t.Parallel()
	g, err := websocket.New(testSettings(func(s *websocket.Settings) {
		s.PingInterval, s.PongTimeout = websocket.Duration(5*time.Second), websocket.Duration(4*time.Second)
	}))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(g.Handler())
	server.Config.ReadTimeout, server.Config.WriteTimeout, server.Config.IdleTimeout = 2*time.Second, 2*time.Second, time.Minute
	server.Start()
	t.Cleanup(func() { _ = g.Close(context.Background()); server.Close() })
	s := &site{Gateway: g, url: server.URL}
	for _, transport := range []string{"sse", "http_stream"} {
		c, r := stream(t, s, transport, connectBody(token(t, "shop", transport)))
		c.connected(r)
		select {
		case <-c.pinged:
		case <-time.After(waiting):
			t.Fatalf("%s: no ping", transport)
		case <-c.ended:
			t.Fatalf("%s: the server's timeouts ended the stream", transport)
		}
		deliver(t, s, message("shop", transport, "after the ping"))
		if got := c.pub().Title; got != "after the ping" {
			t.Errorf("%s: got %q", transport, got)
		}
	}
}

// shortLife is that of a token whose end is waited for. It may be a second less, and is long enough to connect with on a busy machine.
const shortLife = 5 * time.Second

func shortToken(t *testing.T, app, recipient string) string {
	t.Helper()
	tokens, err := websocket.NewTokens(secret)
	if err != nil {
		t.Fatal(err)
	}
	tok, _, err := tokens.Mint(app, recipient, shortLife)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestConnectionEndsWithItsToken(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := mustDial(t, s)
	r := c.ask("connect", connectBody(shortToken(t, "shop", "u")))
	c.connected(r)
	if r.Connect.Expires {
		t.Error("the client is told to refresh, which this gateway refuses")
	}
	c.endsWith(3005) // below 3500: an SDK reconnects, is answered 109, and asks for a new token
}

func TestRefresh(t *testing.T) {
	t.Parallel()
	s := open(t, func(s *websocket.Settings) { s.Refresh, s.ExpiredGrace = true, websocket.Duration(time.Second) })
	lazy := connect(t, s, shortToken(t, "shop", "lazy"))
	c := mustDial(t, s)
	r := c.ask("connect", connectBody(shortToken(t, "shop", "u")))
	c.connected(r)
	if !r.Connect.Expires || r.Connect.TTL > int(shortLife.Seconds()) {
		t.Errorf("the client is told %+v, want that its token expires", r.Connect)
	}
	r = c.ask("refresh", fmt.Sprintf(`{"token":%q}`, token(t, "shop", "u")))
	if r.Error != nil || r.Refresh == nil || !r.Refresh.Expires || r.Refresh.TTL < 3000 {
		t.Fatalf("refresh was answered %+v", r)
	}
	for _, bad := range []string{token(t, "shop", "other"), token(t, "other", "u"), "x"} {
		thief := connect(t, s, token(t, "shop", "u"))
		thief.command("refresh", fmt.Sprintf(`{"token":%q}`, bad))
		thief.endsWith(3500)
	}
	lazy.endsWith(3005)
	deliver(t, s, message("shop", "u", "later"))
	if got := c.pub().Title; got != "later" {
		t.Errorf("after the first token's end: got %q", got)
	}
}

// TestLogs runs a gateway through its mistakes and failures and looks for what must not be logged. It
// changes the default logger, so it does not run beside the others.
func TestLogs(t *testing.T) { //nolint:paralleltest // changes slog's default
	var out lockedBuffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	defer slog.SetDefault(before)
	s := open(t)
	tok := token(t, "shop", "the-recipient")
	c := connect(t, s, tok)
	m := message("shop", "the-recipient", "the-title")
	deliver(t, s, m)
	c.pub()
	c.ask("rpc", `{"method":"the-method","data":{"the":"data"}}`)
	c.ask("subscribe", `{"channel":"shop/the-victim"}`)
	_ = c.send("the-garbage")
	c.endsWith(3501)
	resp, err := http.Post(s.url+"/connection/emulation", "application/json", strings.NewReader(`{"the-garbage":`))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	logged := out.String()
	if !strings.Contains(logged, "centrifuge: ") {
		t.Errorf("nothing of centrifuge is logged at debug:\n%s", logged)
	}
	for _, private := range []string{tok, secret, "the-recipient", "the-title", "the-victim", "the-garbage", "the-method"} {
		if strings.Contains(logged, private) {
			t.Errorf("logged %q:\n%s", private, logged)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestReceiveEndsAfterItsReports(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := connect(t, s, token(t, "shop", "u"))
	begun, finish := make(chan struct{}), make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	var once sync.Once
	go func() {
		ended <- s.Receive(ctx, func(providers.Receipt) error {
			once.Do(func() { close(begun) })
			<-finish
			return nil
		})
	}()
	eventually(t, "a receipt is being reported", func() bool {
		select {
		case <-begun:
			return true
		default:
			c.command("rpc", `{"method":"ack","data":{"ids":["0199aaaa-0000-7000-8000-000000000000"]}}`)
			return false
		}
	})
	stop()
	select {
	case <-ended:
		t.Fatal("Receive returned while a receipt was being reported")
	case <-time.After(100 * time.Millisecond): // nothing tells that it is still waiting
	}
	close(finish)
	select {
	case err := <-ended:
		if diff := cmp.Diff(context.Canceled.Error(), err.Error()); diff != "" {
			t.Error(diff)
		}
	case <-time.After(waiting):
		t.Fatal("Receive did not return")
	}
}

// Close does not wait long for a client that hears nothing: neither 5 s, as the library does, nor until its own
// time is over.
func TestCloseCutsTheDeaf(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx, cancel := context.WithTimeout(t.Context(), waiting)
	defer cancel()
	deaf, _, err := ws.Dial(ctx, strings.Replace(s.url, "http", "ws", 1)+"/connection/websocket", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = deaf.CloseNow() }()
	if err := deaf.Write(ctx, ws.MessageText, []byte(`{"id":1,"connect":`+connectBody(token(t, "shop", "deaf"))+`}`)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := deaf.Read(ctx); err != nil { // and no more after this, so that no close frame is answered
		t.Fatal(err)
	}
	began := time.Now()
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("Close took %s", took)
	}
	if pool := s.Health(ctx).Pool; pool.Open != 0 {
		t.Errorf("after Close, pool %+v", pool)
	}
}

// TestRedisAwayIsSaidOnce: what centrifuge says again and again while Redis is away is in the log once, above debug.
// It changes the default logger, so it does not run beside the others.
func TestRedisAwayIsSaidOnce(t *testing.T) { //nolint:paralleltest // changes slog's default
	program(t, "redis-server")
	var out lockedBuffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	defer slog.SetDefault(before)
	port := porttest.Free(t)
	stop := startRedis(t, port)
	s := open(t, onRedis(port))
	deliver(t, s, message("shop", "u", "first"))
	stop()
	message := regexp.MustCompile(`level=(\S+) msg="(centrifuge: [^"]*)"`)
	loud, all := map[string]int{}, map[string]int{}
	eventually(t, "something is complained of ten times", func() bool {
		clear(loud)
		clear(all)
		for _, m := range message.FindAllStringSubmatch(out.String(), -1) {
			all[m[2]]++
			if m[1] != "DEBUG" {
				loud[m[2]]++
			}
		}
		for what, n := range all {
			if n >= 10 && loud[what] > 0 {
				return true
			}
		}
		return false
	})
	for what, n := range loud {
		if n > 1 {
			t.Errorf("said %d times: %s", n, what)
		}
	}
	t.Log(all, loud)
	if err := s.Close(t.Context()); err != nil {
		t.Log(err) // with Redis away it may be
	}
}
