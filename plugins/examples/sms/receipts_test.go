package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/carillon-notify/carillon/plugins/examples/sms/smstest"
	"github.com/carillon-notify/carillon/providers"
)

// TestReceipts: what becomes of messages comes back over HTTP, is offered again until it is kept, and then
// not any more.
func TestReceipts(t *testing.T) {
	t.Parallel()
	service := smstest.New(smstest.Options{Key: testKey, Secret: testSecret, Retry: 10 * time.Millisecond})
	t.Cleanup(service.Close)
	p := opened(t, settingsWith(t, server(t, service), withCallbacks(t)))
	got, err := deliver(t, p, 30*time.Second, message("m1", number+"123"), message("m2", number+"001"), message("m3", number+"002"))
	if err != nil || len(got) != 3 {
		t.Fatal(got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	receipts := make(chan providers.Receipt)
	done := make(chan error, 1)
	var mu sync.Mutex
	refused := map[string]int{}
	go func() {
		done <- p.(providers.Receiver).Receive(ctx, func(r providers.Receipt) error {
			mu.Lock()
			defer mu.Unlock()
			if refused[r.ID]++; refused[r.ID] <= 2 {
				return errors.New("the store is down")
			}
			receipts <- r
			return nil
		})
	}()
	heard := map[string]providers.Receipt{}
	for range 2 {
		r := <-receipts
		if time.Since(r.At).Abs() > time.Minute {
			t.Errorf("it happened at %s", r.At)
		}
		heard[r.ID] = r
	}
	want := map[string]providers.Receipt{
		"m1": {ID: "m1", ProviderID: got["m1"].ProviderID, Event: providers.EventDelivered},
		"m2": {ID: "m2", ProviderID: got["m2"].ProviderID, Event: providers.EventFailed, Code: "absent_subscriber"},
	}
	if d := cmp.Diff(want, heard, cmpopts.IgnoreFields(providers.Receipt{}, "At")); d != "" {
		t.Error(d)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// send plays the service: it calls the plugin back.
func send(p *provider, secret string, now time.Time, change func(*http.Request), body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/receipts", strings.NewReader(body))
	smstest.Sign(r.Header, secret, []byte(body), now)
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	p.takeCallback(w, r)
	return w
}

const delivered = `{"id":"a1","reference":"m1","status":"delivered","at":"2026-11-26T10:00:00Z"}`

func TestCallbacks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, err := open(settingsWith(t, "https://sms.example", nil))
		if err != nil {
			t.Fatal(err)
		}
		p.settings.CallbackSecret = testSecret
		ctx, cancel := context.WithCancel(t.Context())
		var heard []providers.Receipt
		var mu sync.Mutex
		go func() {
			_ = p.Receive(ctx, func(r providers.Receipt) error {
				mu.Lock()
				defer mu.Unlock()
				heard = append(heard, r)
				return nil
			})
		}()
		at := time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC)
		for _, tt := range []struct {
			name   string
			secret string
			age    time.Duration
			change func(*http.Request)
			body   string
			status int
			want   *providers.Receipt
		}{
			{"delivered", testSecret, 0, nil, delivered, 204, &providers.Receipt{ID: "m1", ProviderID: "a1", Event: providers.EventDelivered, At: at}},
			{"failed", testSecret, 0, nil, `{"id":"a1","reference":"m1","status":"failed","code":"blocked"}`, 204, &providers.Receipt{ID: "m1", ProviderID: "a1", Event: providers.EventFailed, Code: "blocked"}},
			{"expired", testSecret, 0, nil, `{"id":"a1","reference":"m1","status":"expired"}`, 204, &providers.Receipt{ID: "m1", ProviderID: "a1", Event: providers.EventFailed}},
			{"a code that says too much", testSecret, 0, nil, `{"id":"a1","reference":"m1","status":"rejected","code":"no route to +491511234"}`, 204, &providers.Receipt{ID: "m1", ProviderID: "a1", Event: providers.EventFailed}},
			{"a little old", testSecret, 4 * time.Minute, nil, delivered, 204, &providers.Receipt{ID: "m1", ProviderID: "a1", Event: providers.EventDelivered, At: at}},
			{"on its way", testSecret, 0, nil, `{"id":"a1","reference":"m1","status":"sent"}`, 204, nil},
			{"another secret", "another-secret-of-callbacks", 0, nil, delivered, 401, nil},
			{"no secret", "", 0, nil, delivered, 401, nil},
			{"old", testSecret, 6 * time.Minute, nil, delivered, 401, nil},
			{"from the future", testSecret, -6 * time.Minute, nil, delivered, 401, nil},
			{"no timestamp", testSecret, 0, func(r *http.Request) { r.Header.Del("X-Sms-Timestamp") }, delivered, 401, nil},
			{"no signature", testSecret, 0, func(r *http.Request) { r.Header.Del("X-Sms-Signature") }, delivered, 401, nil},
			{"another body", testSecret, 0, func(r *http.Request) {
				r.Body = io.NopCloser(strings.NewReader(strings.Replace(delivered, "m1", "m2", 1)))
			}, delivered, 401, nil},
			{"a large body", testSecret, 0, nil, delivered + strings.Repeat(" ", maxAnswer), 400, nil},
			{"no JSON", testSecret, 0, nil, `id=a1`, 400, nil},
		} {
			mu.Lock()
			heard = nil
			mu.Unlock()
			w := send(p, tt.secret, time.Now().Add(-tt.age), tt.change, tt.body)
			if w.Code != tt.status {
				t.Errorf("%s: answered with %d, want %d", tt.name, w.Code, tt.status)
			}
			discreet(t, w.Body.String())
			mu.Lock()
			var want []providers.Receipt
			if tt.want != nil {
				want = []providers.Receipt{*tt.want}
			}
			if d := cmp.Diff(want, heard); d != "" {
				t.Errorf("%s: %s", tt.name, d)
			}
			mu.Unlock()
		}
		cancel()
	})
}

// TestNotKept: whoever calls back hears that a receipt was not kept, in bounded time, and sends it again.
func TestNotKept(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		do   func(p *provider, ctx context.Context, cancel context.CancelFunc) // beside the callback
		tell func(tries int) bool                                              // whether a try is kept
		want int
		most time.Duration
	}{
		{"nobody receives", func(*provider, context.Context, context.CancelFunc) {}, nil, 503, keepFor},
		{"somebody does after a while", func(p *provider, ctx context.Context, _ context.CancelFunc) {
			time.Sleep(keepFor / 2) // the bubble's clock
			_ = p.Receive(ctx, func(providers.Receipt) error { return nil })
		}, nil, 204, keepFor/2 + time.Millisecond},
		{"the store is down", nil, func(int) bool { return false }, 503, keepFor},
		{"the store was down", nil, func(tries int) bool { return tries > 5 }, 204, 4 * time.Second},
		{"the host goes", func(p *provider, ctx context.Context, cancel context.CancelFunc) {
			time.AfterFunc(time.Second, cancel)
			_ = p.Receive(ctx, func(providers.Receipt) error { return errors.New("not now") })
		}, nil, 503, 2 * time.Second},
		{"the provider is closed", func(p *provider, ctx context.Context, _ context.CancelFunc) {
			time.Sleep(time.Second)
			_ = p.Close(ctx)
		}, nil, 503, 2 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p, err := open(settingsWith(t, "https://sms.example", nil))
				if err != nil {
					t.Fatal(err)
				}
				p.settings.CallbackSecret = testSecret
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				tries := 0
				if tt.do == nil {
					go func() {
						_ = p.Receive(ctx, func(providers.Receipt) error {
							if tries++; tt.tell(tries) {
								return nil
							}
							return errors.New("the store is down")
						})
					}()
				} else {
					go tt.do(p, ctx, cancel)
				}
				began := time.Now()
				w := send(p, testSecret, began, nil, delivered)
				if took := time.Since(began); w.Code != tt.want || took > tt.most {
					t.Errorf("answered with %d after %s, want %d within %s", w.Code, took, tt.want, tt.most)
				}
				if (w.Header().Get("Retry-After") != "") != (tt.want == 503) {
					t.Error("Retry-After is missing, or out of place")
				}
				if tt.tell != nil && (tries < 5 || tries > 20) {
					t.Errorf("tried %d times", tries)
				}
			})
		})
	}
}

// TestClose: the address of the callbacks is free again, and nothing goes out.
func TestClose(t *testing.T) {
	t.Parallel()
	with := withCallbacks(t)
	raw := settingsWith(t, "https://sms.example", with)
	for range 2 {
		p, err := kind().Open(t.Context(), raw)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.Get(with["callback_url"].(string))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("a callback without a signature is answered with %s", resp.Status)
		}
		for range 2 { // again
			if err := p.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if got, err := deliver(t, p, 30*time.Second, message("m1", number)); err != nil || got["m1"].Outcome != providers.Deferred || got["m1"].Code != "closed" {
			t.Errorf("after close: %v, %v", got, err)
		}
	}
}
