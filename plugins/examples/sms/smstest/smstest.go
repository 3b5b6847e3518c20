// Package smstest is a stand-in of the SMS service that the plugin speaks to: it takes messages over HTTP
// as the service would, sends nothing to any phone, and reports back by signed callbacks. What becomes of
// a message is said by the last three digits of its number:
//
//	400 402 403 404 408 429 500 502 503 504   that HTTP status; 429 and 503 with Retry-After: 2
//	000   taken, but the answer to the first request is lost
//	001   taken, and reported failed
//	002   taken, and never reported
//
// Any other is taken, and reported delivered.
package smstest

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf16"
)

// Options say how a Service behaves.
type Options struct {
	Key    string        // the bearer key that requests must have
	Secret string        // what callbacks are signed with
	Delay  time.Duration // from taking a message to its first callback
	Retry  time.Duration // from a callback that was not answered with 2xx to the next, doubling; 0 is 1 s
	// Log, if not nil, is told what happens, in a line each.
	Log func(format string, args ...any)
}

// Message is one that was taken.
type Message struct {
	ID, To, From, Text, Reference string
	Segments                      int
	Requests                      int // how often it came
	Callbacks                     int // how often its status was reported, until it was taken
	Reported                      bool
}

// Service is the stand-in. It is an http.Handler, and safe for concurrent use.
type Service struct {
	opts Options

	mu       sync.Mutex
	messages []*Message
	byRef    map[string]*Message

	life      context.Context
	stop      context.CancelFunc
	reporting sync.WaitGroup
}

// tries is how often a status is reported at most.
const tries = 10

// codes are the statuses that a number can ask for, and the service's words for them.
var codes = map[string]string{"400": "invalid_text", "402": "no_credit", "403": "forbidden", "404": "unknown_number", "408": "timeout",
	"429": "too_many_requests", "500": "internal", "502": "", "503": "unavailable", "504": ""}

// New returns a Service.
func New(o Options) *Service {
	if o.Retry <= 0 {
		o.Retry = time.Second
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	s := &Service{opts: o, byRef: map[string]*Message{}}
	s.life, s.stop = context.WithCancel(context.Background())
	return s
}

// Close ends the callbacks.
func (s *Service) Close() {
	s.stop()
	s.reporting.Wait()
}

// Messages are those taken so far.
func (s *Service) Messages() []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Message, len(s.messages))
	for i, m := range s.messages {
		out[i] = *m
	}
	return out
}

// request is the body of a POST to /messages.
type request struct {
	To        string `json:"to"`
	From      string `json:"from"`
	Text      string `json:"text"`
	Reference string `json:"reference"`
	Callback  string `json:"callback"`
}

// ServeHTTP implements http.Handler.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || !strings.HasSuffix(r.URL.Path, "/messages") {
		http.NotFound(w, r)
		return
	}
	if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte("Bearer "+s.opts.Key)) != 1 {
		refuse(w, http.StatusUnauthorized, "unauthorized")
		return
	}
	var req request
	if err := json.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&req); err != nil || req.Text == "" || req.From == "" {
		refuse(w, http.StatusBadRequest, "invalid_request")
		return
	}
	if !strings.HasPrefix(req.To, "+") || len(req.To) < 8 {
		refuse(w, http.StatusBadRequest, "invalid_number")
		return
	}
	ending := req.To[len(req.To)-3:]
	if code, ok := codes[ending]; ok {
		s.opts.Log("to %s: answered with %s", req.To, ending)
		status, _ := strconv.Atoi(ending)
		refuse(w, status, code)
		return
	}
	m, again := s.take(&req)
	if ending == "000" && !again {
		s.opts.Log("to %s: taken, and the answer is lost", req.To)
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(map[string]any{"id": m.ID, "segments": m.Segments})
}

// refuse answers with an error.
func refuse(w http.ResponseWriter, status int, code string) {
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "2")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"code": code})
}

// take takes a message, once for each reference.
func (s *Service) take(req *request) (m Message, again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.byRef[req.Reference]; m != nil && req.Reference != "" {
		m.Requests++
		s.opts.Log("to %s: came again, and is not sent again", req.To)
		return *m, true
	}
	taken := &Message{ID: fmt.Sprintf("sms-%06d", len(s.messages)+1), To: req.To, From: req.From, Text: req.Text,
		Reference: req.Reference, Segments: segments(req.Text), Requests: 1}
	s.messages = append(s.messages, taken)
	s.byRef[req.Reference] = taken
	s.opts.Log("to %s from %s, %d SMS: %q", req.To, req.From, taken.Segments, req.Text)
	if req.Callback != "" && !strings.HasSuffix(req.To, "002") {
		s.reporting.Go(func() { s.report(taken, req.Callback) })
	}
	return *taken, false
}

// report sends the status of a message until it is taken.
func (s *Service) report(m *Message, url string) {
	status, code := "delivered", ""
	if strings.HasSuffix(m.To, "001") {
		status, code = "failed", "absent_subscriber"
	}
	body, err := json.Marshal(map[string]any{"id": m.ID, "reference": m.Reference, "status": status, "code": code, "at": time.Now().UTC()})
	if err != nil {
		s.opts.Log("to %s: %s", m.To, err)
		return
	}
	wait := s.opts.Delay
	for try := range tries {
		select {
		case <-time.After(wait):
		case <-s.life.Done():
			return
		}
		wait = s.opts.Retry << try
		err := s.post(url, body)
		s.mu.Lock()
		m.Callbacks++
		m.Reported = err == nil
		s.mu.Unlock()
		if err == nil {
			s.opts.Log("to %s: reported %s", m.To, status)
			return
		}
		s.opts.Log("to %s: %s could not be reported: %s", m.To, status, err)
	}
}

// post sends one callback.
func (s *Service) post(url string, body []byte) error {
	ctx, cancel := context.WithTimeout(s.life, 15*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make a callback: %w", err)
	}
	Sign(req.Header, s.opts.Secret, body, time.Now())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("the answer is %s", resp.Status)
	}
	return nil
}

// Sign sets the headers that a callback is known by: the time, and the HMAC-SHA256 of "time.body".
func Sign(h http.Header, secret string, body []byte, now time.Time) {
	stamp := strconv.FormatInt(now.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(stamp + "."))
	mac.Write(body)
	h.Set("Content-Type", "application/json")
	h.Set("X-Sms-Timestamp", stamp)
	h.Set("X-Sms-Signature", "v1="+hex.EncodeToString(mac.Sum(nil)))
}

// segments is what the service would bill. It counts ASCII as 7 bit and everything else as UTF-16, which
// is less exact than the plugin is.
func segments(text string) int {
	n, alone, inRow := len(text), 160, 153
	if strings.ContainsFunc(text, func(r rune) bool { return r > 126 }) {
		n, alone, inRow = len(utf16.Encode([]rune(text))), 70, 67
	}
	if n <= alone {
		return 1
	}
	return (n + inRow - 1) / inRow
}
