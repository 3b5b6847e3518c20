package plugintest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// sound is a provider as it should be, and flaw is what is deliberately wrong with it. It is asked about
// where a provider of that name would go wrong.
type sound struct {
	flaw      flaw
	url, key  string
	max       int
	client    *http.Client
	transport *http.Transport

	calls  sync.RWMutex // held for reading by Deliver; taken for good by Close
	closer sync.Once
	closed chan struct{}
	life   context.Context
	die    context.CancelFunc

	open, inUse    atomic.Int64
	opened, reused atomic.Uint64
	trouble        atomic.Pointer[string]
	lock           sync.Mutex // of the flaw "health waits"

	receipts sync.RWMutex
	report   func(providers.Receipt) error
}

type flaw string

// soundKind is the kind of a provider with a flaw, "" for none.
func soundKind(f flaw) providers.Kind {
	return providers.Kind{
		Name: "sound", Channel: "test", Doc: "Delivers to the stand-in of a test.", MaxBatch: 10, Address: `^\+[0-9]{3,15}[a-z]*$`,
		Content: []byte(`{"type":"object","properties":{"text":{"type":"string"}},"additionalProperties":false}`),
		Settings: []providers.Setting{
			{Name: "url", Type: providers.String, Required: true, Doc: "Where the service is."},
			{Name: "token", Type: providers.String, Required: true, Secret: true, Doc: "What the service knows us by."},
			{Name: "mode", Type: providers.Choice, Values: []string{"fast", "safe"}, Default: "fast", Doc: "How to deliver."},
			{Name: "tags", Type: providers.List, Doc: "What to tag messages with."},
			{Name: "loud", Type: providers.Bool, Default: "false", Doc: "Whether to be loud."},
			{Name: "note_file", Type: providers.File, Doc: "A note."},
			{Name: "timeout", Type: providers.Duration, Default: "10s", Doc: "How long an answer may take, 100ms to 1m."},
			{Name: "pool.max", Type: providers.Int, Default: "4", Doc: "Connections at once, 1 to 100."},
		},
		Check: func(m *providers.Message) error { return soundCheck(f, m) },
		Open:  func(_ context.Context, raw []byte) (providers.Provider, error) { return openSound(f, raw) },
	}
}

const maxText = 64 << 10

func soundCheck(f flaw, m *providers.Message) error {
	switch {
	case f == "check changes" && m.Title != "":
		m.Title = strings.ToUpper(m.Title)
	case f == "check panics" && len(m.Data) > 0 && m.Data[0] == '[':
		var object map[string]any
		_ = json.Unmarshal(m.Data, &object)
		object["seen"] = true // it is nil
	case f == "check is slow" && len(m.Body) > 1000:
		<-time.After(600 * time.Millisecond)
	case f == "check repeats" && len(m.Body) > maxText:
		return fmt.Errorf("%q is too long", m.Body)
	case f == "check tells the address" && len(m.Body) > maxText:
		return fmt.Errorf("the text for %s is too long", m.Address)
	}
	if n := len(m.Body); n > maxText {
		return fmt.Errorf("the text has %d bytes and may have %d: shorten it", n, maxText)
	}
	if len(m.Data) > 0 && !json.Valid(m.Data) {
		return errors.New("data is not JSON")
	}
	return nil
}

type soundSettings struct {
	URL      string   `json:"url"`
	Token    string   `json:"token"`
	Mode     string   `json:"mode"`
	Tags     []string `json:"tags"`
	Loud     bool     `json:"loud"`
	NoteFile string   `json:"note_file"`
	Timeout  string   `json:"timeout"`
	Pool     struct {
		Max int `json:"max"`
	} `json:"pool"`
}

func openSound(f flaw, raw []byte) (providers.Provider, error) {
	s := soundSettings{Mode: "fast", Timeout: "10s"}
	s.Pool.Max = 4
	if f == "other default" {
		s.Pool.Max = 5
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		var wrong *json.UnmarshalTypeError
		switch {
		case f == "garbage repeated":
			return nil, fmt.Errorf("cannot read %s", raw)
		case f == "wrong type without a name":
			return nil, errors.New("something has the wrong type")
		case f == "wrong type ignored":
		case errors.As(err, &wrong):
			return nil, fmt.Errorf("%s: must be a %s", wrong.Field, wrong.Type)
		default:
			return nil, errors.New("the settings are no JSON object")
		}
	}
	if f == "unknown inconsistent" && bytes.Contains(raw, []byte(`"pool":{"no_such_setting"`)) {
		return nil, errors.New("pool.no_such_setting: there is no such setting")
	}
	if s.URL == "" && f != "required ignored" {
		if f == "required without a name" {
			return nil, errors.New("a setting is missing")
		}
		return nil, errors.New("url: set it to where the service is")
	}
	if s.Token == "" {
		return nil, errors.New("token: is needed")
	}
	if f == "secret in the error of open" && s.Token != token {
		return nil, fmt.Errorf("token %q: is not the right one", s.Token)
	}
	if s.Mode != "fast" && s.Mode != "safe" || f == "choice refused" && s.Mode == "safe" {
		return nil, errors.New("mode: must be fast or safe")
	}
	timeout, err := time.ParseDuration(s.Timeout)
	if err != nil || timeout < 100*time.Millisecond || timeout > time.Minute {
		return nil, errors.New("timeout: must be a duration from 100ms to 1m")
	}
	if f == "default refused" && bytes.Contains(raw, []byte(`"10s"`)) {
		return nil, errors.New("timeout: must not be 10s")
	}
	if s.Pool.Max < 1 || s.Pool.Max > 100 {
		return nil, errors.New("pool.max: must be from 1 to 100")
	}
	if s.NoteFile != "" {
		if _, err := os.ReadFile(s.NoteFile); err != nil {
			return nil, fmt.Errorf("note_file: %w", err)
		}
	}
	p := &sound{flaw: f, url: s.URL, key: s.Token, max: s.Pool.Max, closed: make(chan struct{})}
	p.life, p.die = context.WithCancel(context.Background())
	limit := p.max
	if f == "pool without bounds" {
		limit = 0
	}
	p.transport = &http.Transport{DialContext: p.dial, MaxConnsPerHost: limit, MaxIdleConnsPerHost: p.max, DisableCompression: true}
	p.client = &http.Client{Transport: p.transport, Timeout: timeout}
	if f == "open asks the service" {
		resp, err := p.client.Get(p.url)
		if err != nil {
			return nil, errors.New("url: the service does not answer")
		}
		_ = resp.Body.Close()
	}
	if f == "secret in the log" {
		slog.Debug("opened", "settings", s)
	}
	return p, nil
}

func (p *sound) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	p.opened.Add(1)
	p.open.Add(1)
	return &countedConn{Conn: c, end: sync.OnceFunc(func() { p.open.Add(-1) })}, nil
}

type countedConn struct {
	net.Conn
	end func()
}

func (c *countedConn) Close() error {
	c.end()
	return c.Conn.Close()
}

// Deliver implements providers.Provider.
func (p *sound) Deliver(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	if p.flaw == "deliver after close" || p.flaw == "close does not wait" {
	} else if !p.calls.TryRLock() {
		for i := range batch {
			report(providers.Result{ID: batch[i].ID, Outcome: providers.Deferred, Code: "closed", Reason: "the provider is closed"})
		}
		return nil
	} else {
		defer p.calls.RUnlock()
	}
	if p.flaw == "health waits" {
		p.lock.Lock()
		defer p.lock.Unlock()
	}
	if p.flaw == "changes the batch" && len(batch) > 0 {
		batch[0].Body = strings.TrimSpace(batch[0].Body + " ")
		batch[0].Attempt++
	}
	if p.flaw == "empty batch fails" && len(batch) == 0 {
		return errors.New("the batch is empty")
	}
	return p.deliverAll(ctx, batch, p.misreport(report))
}

// misreport is where the flaws of reporting are.
func (p *sound) misreport(report func(providers.Result)) func(providers.Result) {
	switch p.flaw {
	case "reports twice":
		return func(r providers.Result) { report(r); report(r) }
	case "reports others":
		return func(r providers.Result) { report(r); r.ID = "another"; report(r) }
	case "reports late":
		return func(r providers.Result) {
			go func() {
				<-time.After(30 * time.Millisecond)
				report(r)
			}()
		}
	case "no id":
		return func(r providers.Result) { r.ID = ""; report(r) }
	case "control characters":
		return func(r providers.Result) { r.Reason = "a\r\nb"; report(r) }
	case "negative wait":
		return func(r providers.Result) { r.After = -time.Second; report(r) }
	}
	return report
}

func (p *sound) deliverAll(ctx context.Context, batch []providers.Message, report func(providers.Result)) error {
	if p.flaw == "context ignored" {
		ctx = context.WithoutCancel(ctx)
	}
	if p.flaw == "poison" {
		for i := range batch {
			if len(batch[i].Data) > 0 && !json.Valid(batch[i].Data) {
				return errors.New("the batch cannot be encoded")
			}
		}
	}
	var mu sync.Mutex
	var held []providers.Result
	silent := 0
	var all sync.WaitGroup
	for i := range batch {
		all.Go(func() {
			r, err := p.send(ctx, &batch[i])
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent++
				return
			}
			r.ID = batch[i].ID
			if p.flaw == "address in the reason" {
				r.Reason = batch[i].Address
			}
			if p.flaw == "holds results" {
				held = append(held, r)
				return
			}
			report(r)
		})
	}
	all.Wait()
	for _, r := range held {
		report(r)
	}
	switch {
	case p.flaw == "error for nothing":
		return errors.New("all is well")
	case p.flaw == "silence unexplained":
		return nil
	case silent > 0 && p.flaw == "secret in the error of deliver":
		return fmt.Errorf("with the token %s: %d messages were sent and not answered", p.key, silent)
	case silent > 0:
		return fmt.Errorf("%d of %d messages were sent and not answered", silent, len(batch))
	}
	return nil
}

var errSilent = errors.New("sent and not answered")

// send makes one attempt. An error is that nobody knows what became of it.
func (p *sound) send(ctx context.Context, m *providers.Message) (providers.Result, error) {
	if err := soundCheck("", m); err != nil {
		return providers.Result{Outcome: providers.Rejected, Code: "content", Reason: err.Error()}, nil
	}
	if m.Test && p.flaw != "test delivered" {
		return providers.Result{Outcome: providers.Accepted, Code: "test"}, nil
	}
	if p.flaw == "accepted without sending" {
		return providers.Result{Outcome: providers.Accepted}, nil
	}
	switch p.flaw {
	case "address in the log":
		slog.Info("a message is sent", "to", m.Address)
	case "content in the log":
		slog.Warn("a message is sent", "text", m.Body)
	}
	p.inUse.Add(1)
	defer p.inUse.Add(-1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.life, cancel)()
	r, err := p.post(ctx, m)
	if err == nil && p.flaw == "sends twice" {
		return p.post(ctx, m)
	}
	return r, err
}

func (p *sound) post(ctx context.Context, m *providers.Message) (providers.Result, error) {
	body, err := json.Marshal(map[string]string{"id": m.ID, "to": m.Address, "text": m.Body})
	if err != nil {
		return providers.Result{Outcome: providers.Rejected, Code: "content"}, nil
	}
	var handed atomic.Bool
	trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		if i.Reused {
			p.reused.Add(1)
		}
	}, WroteHeaders: func() { handed.Store(true) }}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), http.MethodPost, p.url, bytes.NewReader(body))
	if err != nil {
		return providers.Result{}, err
	}
	req.Header.Set("Authorization", "Bearer "+p.key)
	resp, err := p.client.Do(req)
	if err != nil {
		return p.unanswered(err, handed.Load())
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, resp.Body)
	return p.meaning(resp), nil
}

func (p *sound) unanswered(err error, handed bool) (providers.Result, error) {
	if handed && p.flaw != "deferred although sent" {
		return providers.Result{}, errSilent
	}
	why := "the service cannot be reached"
	p.trouble.Store(&why)
	r := providers.Result{Outcome: providers.Deferred, Code: "connect", Reason: why}
	switch p.flaw {
	case "down is rejected":
		r.Outcome = providers.Rejected
	case "secret in the reason":
		r.Reason = fmt.Sprintf("%v with token %s", err, p.key)
	case "secret in health":
		why := "the service does not know " + p.key
		p.trouble.Store(&why)
	}
	return r, nil
}

func (p *sound) meaning(resp *http.Response) providers.Result {
	p.trouble.Store(nil)
	r := providers.Result{Code: strconv.Itoa(resp.StatusCode), ProviderID: resp.Header.Get("Service-Id")}
	switch resp.StatusCode {
	case http.StatusAccepted:
		r.Outcome, r.Code = providers.Accepted, ""
	case http.StatusGone:
		r.Outcome, r.Since = providers.Gone, time.Now()
		switch p.flaw {
		case "gone is rejected":
			r.Outcome = providers.Rejected
		case "gone tomorrow":
			r.Since = r.Since.Add(24 * time.Hour)
		}
	case http.StatusTooManyRequests:
		n, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		r.Outcome, r.After = providers.Throttled, time.Duration(n)*time.Second
		if p.flaw == "retry-after ignored" {
			r.After = 0
		}
	case http.StatusUnauthorized:
		r.Outcome, r.Reason = providers.Denied, "the service refuses the token"
		p.trouble.Store(&r.Reason)
	case http.StatusServiceUnavailable:
		r.Outcome = providers.Deferred
	case http.StatusBadRequest:
		r.Outcome = providers.Rejected
	default:
		r.Outcome = providers.Unknown
	}
	return r
}

// Health implements providers.Provider.
func (p *sound) Health(ctx context.Context) providers.Health {
	switch p.flaw {
	case "health asks the service":
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, strings.NewReader(`{"id":"health","to":"+4711","text":"Are you well?"}`))
		if err == nil {
			req.Header.Set("Authorization", "Bearer "+p.key)
			if resp, err := p.client.Do(req); err == nil {
				_ = resp.Body.Close()
			}
		}
	case "health waits":
		p.lock.Lock()
		defer p.lock.Unlock()
	case "health of no status":
		return providers.Health{}
	case "health says ok and why":
		return providers.Health{Status: providers.HealthOK, Reason: "all is well"}
	}
	h := providers.Health{Status: providers.HealthOK, Pool: providers.PoolStats{Max: p.max, Opened: p.opened.Load(), Reused: p.reused.Load()}}
	h.Pool.Open = int(p.open.Load())
	h.Pool.InUse = min(int(p.inUse.Load()), h.Pool.Open)
	h.Pool.Closed = h.Pool.Opened - min(uint64(h.Pool.Open), h.Pool.Opened)
	if p.flaw == "waiting for ever" && h.Pool.Opened > 0 {
		h.Pool.Waiting = 1
	}
	if why := p.trouble.Load(); why != nil {
		h.Status, h.Reason = providers.HealthDegraded, *why
	}
	return h
}

// Close implements providers.Provider.
func (p *sound) Close(ctx context.Context) error {
	switch p.flaw {
	case "close twice panics":
		close(p.closed)
		p.die()
		p.transport.CloseIdleConnections()
		p.calls.Lock()
		return nil
	case "close leaves connections":
		p.closer.Do(p.calls.Lock)
		return nil
	case "close does not wait":
		p.die()
		p.transport.CloseIdleConnections()
		return nil
	case "close waits for ever":
		ctx = context.WithoutCancel(ctx)
	case "goroutine left behind":
		go func() { select {} }()
	case "file left behind":
		if f, err := os.Open(os.DevNull); err == nil {
			left.mu.Lock()
			defer left.mu.Unlock()
			left.files = append(left.files, f) // nobody collects it
		}
	}
	p.closer.Do(func() {
		go func() {
			p.calls.Lock()
			close(p.closed)
		}()
	})
	defer p.transport.CloseIdleConnections()
	select {
	case <-p.closed:
		if p.flaw != "deliver after close" {
			p.die()
		}
		return nil
	case <-ctx.Done():
		p.die()
		return fmt.Errorf("wait for what is in flight: %w", ctx.Err())
	}
}

// left is what the flaw "file left behind" leaves.
var left struct {
	mu    sync.Mutex
	files []*os.File
}

// Handler implements providers.Server: the service reports here what became of a message.
func (p *sound) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /connection/receipts/{id}", func(w http.ResponseWriter, r *http.Request) {
		p.receipts.RLock()
		defer p.receipts.RUnlock()
		id := r.PathValue("id")
		if p.flaw == "receipt of nothing" {
			id = ""
		}
		if p.report == nil || p.report(providers.Receipt{ID: id, Event: providers.EventDelivered, At: time.Now()}) != nil {
			if p.flaw != "receipt lost" {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		}
	})
	return mux
}

// Receive implements providers.Receiver.
func (p *sound) Receive(ctx context.Context, report func(providers.Receipt) error) error {
	if p.flaw == "receive begins late" {
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil
		}
	}
	p.receipts.Lock()
	p.report = report
	p.receipts.Unlock()
	if p.flaw == "receive ends" {
		return nil
	}
	if p.flaw == "receive goes on" {
		ctx = p.life
	}
	<-ctx.Done()
	p.receipts.Lock()
	p.report = nil
	p.receipts.Unlock()
	return nil
}
