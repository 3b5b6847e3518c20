package websocket_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ws "github.com/coder/websocket"
	"github.com/google/uuid"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/websocket"
)

const (
	secret  = "a secret of at least thirty-two bytes"
	waiting = 20 * time.Second // bounds every wait; none should come near it
)

// site is a gateway with a server in front of it.
type site struct {
	*websocket.Gateway
	url string
}

func testSettings(changes ...func(*websocket.Settings)) websocket.Settings {
	s := websocket.DefaultSettings()
	s.Secret = secret
	for _, change := range changes {
		change(&s)
	}
	return s
}

func open(t testing.TB, changes ...func(*websocket.Settings)) *site {
	t.Helper()
	g, err := websocket.New(testSettings(changes...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), waiting)
		defer cancel()
		if err := g.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	server := httptest.NewServer(g.Handler())
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	return &site{Gateway: g, url: server.URL}
}

// token mints a good token for app and recipient.
func token(t testing.TB, app, recipient string) string {
	t.Helper()
	tokens, err := websocket.NewTokens(secret)
	if err != nil {
		t.Fatal(err)
	}
	tok, _, err := tokens.Mint(app, recipient, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// reply is the part of the Centrifugo protocol's replies and pushes that the tests look at; see
// github.com/centrifugal/protocol/definitions/client.proto.
type reply struct {
	ID    int `json:"id"`
	Error *struct {
		Code      int    `json:"code"`
		Message   string `json:"message"`
		Temporary bool   `json:"temporary"`
	} `json:"error"`
	Connect *struct {
		Client  string             `json:"client"`
		Expires bool               `json:"expires"`
		TTL     int                `json:"ttl"`
		Ping    int                `json:"ping"`
		Session string             `json:"session"`
		Node    string             `json:"node"`
		Subs    map[string]subInfo `json:"subs"`
	} `json:"connect"`
	Refresh *struct {
		Expires bool `json:"expires"`
		TTL     int  `json:"ttl"`
	} `json:"refresh"`
	RPC *struct {
		Data json.RawMessage `json:"data"`
	} `json:"rpc"`
	Push *struct {
		Channel    string       `json:"channel"`
		Pub        *publication `json:"pub"`
		Disconnect *struct {
			Code int `json:"code"`
		} `json:"disconnect"`
	} `json:"push"`
}

type subInfo struct {
	Recoverable  bool          `json:"recoverable"`
	Epoch        string        `json:"epoch"`
	Offset       uint64        `json:"offset"`
	Recovered    bool          `json:"recovered"`
	Publications []publication `json:"publications"`
}

type publication struct {
	Offset uint64  `json:"offset"`
	Data   content `json:"data"`
}

type content struct {
	ID        string          `json:"id"`
	Title     string          `json:"title"`
	Body      string          `json:"body"`
	URL       string          `json:"url"`
	Data      json.RawMessage `json:"data"`
	Category  string          `json:"category"`
	CreatedAt time.Time       `json:"created_at"`
}

// conn is a client speaking the JSON protocol, over any transport.
type conn struct {
	t       testing.TB
	send    func(frame string) error
	replies chan reply
	ended   chan struct{} // closed when the transport ended
	code    int           // of the WebSocket close frame, or the disconnect push; read after ended
	cut     func()
	silent  atomic.Bool   // answers no pings
	pinged  chan struct{} // has room for one
	at      position
	sub     subInfo
	mu      sync.Mutex
	lastID  int
}

// dial opens a WebSocket without connecting.
func dial(t testing.TB, url string, header http.Header) (*conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), waiting)
	defer cancel()
	raw, resp, err := ws.Dial(ctx, strings.Replace(url, "http", "ws", 1)+"/connection/websocket", &ws.DialOptions{HTTPHeader: header})
	if err != nil {
		if resp != nil {
			return nil, fmt.Errorf("status %d: %w", resp.StatusCode, err)
		}
		return nil, err
	}
	raw.SetReadLimit(-1)
	alive, cut := context.WithCancel(context.Background())
	c := &conn{t: t, replies: make(chan reply, 10_000), ended: make(chan struct{}), pinged: make(chan struct{}, 1), cut: func() { _ = raw.CloseNow(); cut() }}
	c.send = func(frame string) error { return raw.Write(alive, ws.MessageText, []byte(frame)) }
	t.Cleanup(c.cut)
	go func() {
		defer close(c.ended)
		for {
			_, frame, err := raw.Read(alive)
			if err != nil {
				if code := ws.CloseStatus(err); code > 0 {
					c.code = int(code)
				}
				return
			}
			c.take(frame)
		}
	}()
	return c, nil
}

// take reads a frame of one or more replies, a line each.
func (c *conn) take(frame []byte) {
	for line := range bytes.Lines(frame) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		var r reply
		if err := json.Unmarshal(line, &r); err != nil {
			c.t.Errorf("not JSON from the server: %q", line)
			return
		}
		if string(line) == "{}" { // a ping; the pong looks the same
			if !c.silent.Load() {
				_ = c.send("{}")
			}
			select {
			case c.pinged <- struct{}{}:
			default:
			}
			continue
		}
		if r.Push != nil && r.Push.Disconnect != nil {
			c.code = r.Push.Disconnect.Code
		}
		c.replies <- r
	}
}

func mustDial(t testing.TB, s *site) *conn {
	t.Helper()
	c, err := dial(t, s.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// command sends one command and returns its id.
func (c *conn) command(member, body string) int {
	c.t.Helper()
	c.mu.Lock()
	c.lastID++
	id := c.lastID
	c.mu.Unlock()
	if err := c.send(fmt.Sprintf(`{"id":%d,%q:%s}`, id, member, body)); err != nil {
		c.t.Logf("send %s: %v", member, err) // the server may have cut us; the wait for the answer tells
	}
	return id
}

// next returns the next reply or push.
func (c *conn) next() reply {
	c.t.Helper()
	select {
	case r := <-c.replies:
		return r
	case <-time.After(waiting):
		c.t.Fatal("nothing came from the server")
	case <-c.ended:
		select {
		case r := <-c.replies:
			return r
		default:
			c.t.Fatalf("the connection ended with code %d", c.code)
		}
	}
	return reply{}
}

// ask sends a command and returns its reply, which must be the next thing to come.
func (c *conn) ask(member, body string) reply {
	c.t.Helper()
	id := c.command(member, body)
	r := c.next()
	if r.ID != id {
		c.t.Fatalf("got %+v, want the reply to command %d", r, id)
	}
	return r
}

// endsWith waits for the end and checks its code.
func (c *conn) endsWith(code int) {
	c.t.Helper()
	select {
	case <-c.ended:
	case <-time.After(waiting):
		c.t.Fatalf("the connection did not end; want code %d", code)
	}
	if c.code != code {
		c.t.Errorf("connection ended with code %d, want %d", c.code, code)
	}
}

// pub returns the next publication.
func (c *conn) pub() content {
	c.t.Helper()
	r := c.next()
	if r.Push == nil || r.Push.Pub == nil {
		c.t.Fatalf("got %+v, want a publication", r)
	}
	return r.Push.Pub.Data
}

// connect connects a new WebSocket with tok, from a position where one is given.
func connect(t testing.TB, s *site, tok string, from ...position) *conn {
	t.Helper()
	c := mustDial(t, s)
	c.connect(tok, from...)
	return c
}

type position struct {
	channel string
	epoch   string
	offset  uint64
}

func connectBody(tok string, from ...position) string {
	subs := map[string]any{}
	for _, p := range from {
		subs[p.channel] = map[string]any{"recover": true, "epoch": p.epoch, "offset": p.offset}
	}
	body, _ := json.Marshal(map[string]any{"token": tok, "subs": subs})
	return string(body)
}

func (c *conn) connect(tok string, from ...position) {
	c.t.Helper()
	c.connected(c.ask("connect", connectBody(tok, from...)))
}

// connected reads the reply to connect, which must subscribe to one channel.
func (c *conn) connected(r reply) {
	c.t.Helper()
	if r.Error != nil || r.Connect == nil || len(r.Connect.Subs) != 1 {
		c.t.Fatalf("connect was answered %+v", r)
	}
	for channel, sub := range r.Connect.Subs {
		c.at, c.sub = position{channel: channel, epoch: sub.Epoch, offset: sub.Offset}, sub
	}
}

// rpc calls a method until the answer is not a temporary error: Receive may not have begun yet.
func (c *conn) rpc(method, data string) reply {
	c.t.Helper()
	for {
		r := c.ask("rpc", fmt.Sprintf(`{"method":%q,"data":%s}`, method, data))
		if r.Error == nil || !r.Error.Temporary {
			return r
		}
	}
}

// message makes a message for a recipient.
func message(app, recipient, title string) providers.Message {
	return providers.Message{
		ID: uuid.Must(uuid.NewV7()).String(), App: app, Address: recipient, Title: title,
		CreatedAt: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC), Attempt: 1,
	}
}

// deliver delivers a batch and returns the results in the batch's order.
func deliver(t testing.TB, p providers.Provider, batch ...providers.Message) []providers.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waiting)
	defer cancel()
	var mu sync.Mutex
	byID := map[string]providers.Result{}
	err := p.Deliver(ctx, batch, func(r providers.Result) {
		mu.Lock()
		defer mu.Unlock()
		if _, twice := byID[r.ID]; twice {
			t.Errorf("message %s was reported twice", r.ID)
		}
		byID[r.ID] = r
	})
	if err != nil {
		t.Fatalf("Deliver: %v", err)
	}
	var results []providers.Result
	for _, m := range batch {
		results = append(results, byID[m.ID])
	}
	return results
}

func outcome(t testing.TB, p providers.Provider, m providers.Message) providers.Outcome {
	t.Helper()
	return deliver(t, p, m)[0].Outcome
}

// probe is the title of messages that only ask whether shop's u is there.
const probe = "probe"

// gone waits until shop's u is absent: a client's connection ends a little before its subscription.
func gone(t testing.TB, p providers.Provider) {
	t.Helper()
	eventually(t, "the client is gone", func() bool { return outcome(t, p, message("shop", "u", probe)) == providers.Absent })
}

// recovered are the titles that came with the subscription, without probes.
func (c *conn) recovered() []string {
	var titles []string
	for _, p := range c.sub.Publications {
		if p.Data.Title != probe {
			titles = append(titles, p.Data.Title)
		}
	}
	return titles
}

// eventually waits until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waiting)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("never happened: %s", what)
		}
	}
}

// receive runs Receive, with an answer for each receipt.
func receive(t testing.TB, s *site, answer func(providers.Receipt) error) <-chan providers.Receipt {
	t.Helper()
	got := make(chan providers.Receipt, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = s.Receive(ctx, func(r providers.Receipt) error {
			if err := answer(r); err != nil {
				return err
			}
			got <- r
			return nil
		})
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return got
}

func keep(providers.Receipt) error { return nil }

// stream opens an SSE or HTTP stream, connected with body, over plain net/http.
func stream(t testing.TB, s *site, transport, connectBody string) (*conn, reply) {
	t.Helper()
	ctx, cut := context.WithCancel(context.Background())
	first := `{"id":1,"connect":` + connectBody + `}`
	var req *http.Request
	var err error
	if transport == "sse" {
		req, err = http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/connection/sse", nil)
		if err == nil {
			req.URL.RawQuery = "cf_connect=" + strings.NewReplacer("{", "%7B", "}", "%7D", `"`, "%22").Replace(first)
		}
	} else {
		req, err = http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/connection/http_stream", strings.NewReader(first))
	}
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s was answered %s", transport, resp.Status)
	}
	c := &conn{t: t, replies: make(chan reply, 1000), ended: make(chan struct{}), pinged: make(chan struct{}, 1), cut: cut, lastID: 1}
	t.Cleanup(cut)
	session := make(chan reply, 1)
	c.send = func(frame string) error { // until the session is known there is nothing to answer
		r := <-session
		session <- r
		return emulate(s, r, frame)
	}
	go func() {
		defer close(c.ended)
		defer func() { _ = resp.Body.Close() }()
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			c.take(bytes.TrimPrefix(lines.Bytes(), []byte("data: ")))
		}
	}()
	r := c.next()
	session <- r
	return c, r
}

// emulate sends a frame for the session of a connected stream.
func emulate(s *site, connected reply, frame string) error {
	if connected.Connect == nil {
		return fmt.Errorf("not connected: %+v", connected)
	}
	body, err := json.Marshal(map[string]string{"session": connected.Connect.Session, "node": connected.Connect.Node, "data": frame})
	if err != nil {
		return err
	}
	resp, err := http.Post(s.url+"/connection/emulation", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("emulation was answered %s", resp.Status)
	}
	return nil
}
