package email_test

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/email"
	"github.com/carillon-notify/carillon/providers/porttest"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
)

func TestSession(t *testing.T) {
	t.Parallel()
	login := map[string]any{"username": user, "password": password}
	with := func(m map[string]any, k string, v any) map[string]any {
		out := map[string]any{k: v}
		for k, v := range m {
			out[k] = v
		}
		return out
	}
	for _, tt := range []struct {
		name      string
		configure func(*relay)
		settings  map[string]any
		want      providers.Outcome
		code      string
		plain     bool // plain text is what was asked for
	}{
		{"STARTTLS", nil, nil, providers.Accepted, "250 2.0.0", false},
		{"TLS", func(r *relay) { r.implicit = true }, map[string]any{"tls": "tls"}, providers.Accepted, "250 2.0.0", false},
		{"none", func(r *relay) { r.noTLS = true }, map[string]any{"tls": "none"}, providers.Accepted, "250 2.0.0", true},
		{"PLAIN", nil, login, providers.Accepted, "250 2.0.0", false},
		{"LOGIN", func(r *relay) { r.auth = "LOGIN" }, login, providers.Accepted, "250 2.0.0", false},
		{"LOGIN by name", nil, with(login, "auth", "login"), providers.Accepted, "250 2.0.0", false},
		{"wrong password", nil, map[string]any{"username": user, "password": "x"}, providers.Denied, "535 5.7.8", false},
		{"password cannot be checked", func(r *relay) { r.reply = at("AUTH", 1, "454 4.7.0 later") }, login, providers.Deferred, "454 4.7.0", false},
		{"hung up at AUTH", func(r *relay) { r.reply = at("AUTH", 1, hangUp) }, login, providers.Deferred, "connect", false},
		{"mechanism not offered", nil, with(login, "auth", "scram-sha-256"), providers.Denied, "AUTH", false},
		{"no mechanism that we know", func(r *relay) { r.auth = "GSSAPI" }, login, providers.Denied, "AUTH", false},
		{"no AUTH", func(r *relay) { r.auth = "" }, login, providers.Denied, "AUTH", false},
		{"STARTTLS stripped", func(r *relay) { r.noTLS = true }, nil, providers.Denied, "STARTTLS", false},
		{"STARTTLS stripped, password", func(r *relay) { r.noTLS = true }, login, providers.Denied, "STARTTLS", false},
		{"STARTTLS refused", func(r *relay) { r.reply = always("STARTTLS", "501 no") }, nil, providers.Denied, "501", false},
		{"STARTTLS later", func(r *relay) { r.reply = always("STARTTLS", "454 4.7.0 no") }, nil, providers.Deferred, "454 4.7.0", false},
		{"hung up at STARTTLS", func(r *relay) { r.reply = always("STARTTLS", hangUp) }, nil, providers.Deferred, "connect", false},
		{"certificate not trusted", nil, map[string]any{"ca_file": ""}, providers.Denied, "certificate", false},
		{"certificate not trusted, TLS", func(r *relay) { r.implicit = true }, map[string]any{"tls": "tls", "ca_file": ""}, providers.Denied, "certificate", false},
		{"TLS on a plain port", nil, map[string]any{"tls": "tls"}, providers.Denied, "tls", false},
		{"busy", func(r *relay) { r.reply = always("banner", "421 4.3.2 busy") }, nil, providers.Deferred, "421 4.3.2", false},
		{"no service", func(r *relay) { r.reply = always("banner", "554 5.3.2 no") }, nil, providers.Deferred, "554 5.3.2", false},
		{"hung up at once", func(r *relay) { r.reply = always("banner", hangUp) }, nil, providers.Deferred, "connect", false},
		{"silent", func(r *relay) { r.reply = always("banner", stall) }, map[string]any{"timeout": "200ms"}, providers.Deferred, "connect", false},
		{"EHLO refused", func(r *relay) {
			r.reply = func(ph string, _ int, _ string) string {
				if ph == "EHLO" || ph == "HELO" {
					return "550 5.7.1 listed"
				}
				return ""
			}
		}, nil, providers.Denied, "550 5.7.1", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := startRelay(t, tt.configure)
			p := r.provider(tt.settings)
			batch := batchOf(3)
			results, err := sandboxtest.Deliver(t.Context(), t, p, batch...)
			if err != nil || len(results) != 3 {
				t.Fatalf("%d results, error %v", len(results), err)
			}
			for _, m := range batch {
				res := results[m.ID]
				if res.Outcome != tt.want || res.Code != tt.code || strings.Contains(res.Reason, password) {
					t.Errorf("%+v\n%q", res, r.said())
				}
			}
			wantHealth := providers.HealthOK
			if tt.want == providers.Denied || tt.code == "connect" {
				wantHealth = providers.HealthDown
			}
			if h := p.Health(t.Context()); h.Status != wantHealth {
				t.Errorf("health is %+v, want %s", h, wantHealth)
			}
			if n := len(r.got()); n > 0 && tt.want != providers.Accepted {
				t.Errorf("%d mails arrived", n)
			}
		})
	}
}

func TestNothingInPlainText(t *testing.T) {
	t.Parallel()
	r := startRelay(t, func(r *relay) { r.noTLS = true })
	p := r.provider(map[string]any{"username": user, "password": password})
	if _, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(1)...); err != nil {
		t.Fatal(err)
	}
	for _, l := range r.said() {
		if verb, _, _ := strings.Cut(l, " "); verb != "EHLO" && verb != "QUIT" {
			t.Errorf("%s was said without TLS", verb)
		}
	}
}

func TestNobodyThere(t *testing.T) {
	t.Parallel()
	p := post(t, map[string]any{"addr": porttest.Addr(t)})
	results, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(20)...)
	if err != nil || len(results) != 20 {
		t.Fatalf("%d results, error %v", len(results), err)
	}
	for _, r := range results {
		if r.Outcome != providers.Deferred || r.Code != "connect" || r.After <= 0 {
			t.Errorf("%+v", r)
		}
	}
	if h := p.Health(t.Context()); h.Status != providers.HealthDown || h.Pool.Failed == 0 {
		t.Errorf("health is %+v", h)
	}
}

func TestMessagesOfASession(t *testing.T) {
	t.Parallel()
	r := startRelay(t, nil)
	p := r.provider(map[string]any{"max_messages": 3, "pool": map[string]any{"max": 1}})
	for range 2 {
		results, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(10)...)
		if err != nil || len(results) != 10 {
			t.Fatalf("%d results, %v", len(results), err)
		}
	}
	if n := len(r.got()); n != 20 {
		t.Errorf("%d mails", n)
	}
	if n := r.connections(); n != 7 && n != 8 {
		t.Errorf("%d connections for 20 messages of 3 each, want 7 or 8 (each batch ends with one)", n)
	}
	quits := 0
	for _, l := range r.said() {
		if l == "QUIT" {
			quits++
		}
	}
	if quits == 0 {
		t.Error("the sessions were not ended with QUIT")
	}
}

func TestServerLimitsASession(t *testing.T) {
	t.Parallel()
	r := startRelay(t, nil)
	r.replies(func(ph string, n int, _ string) string {
		if ph == "MAIL" && n%4 == 0 {
			return "421 4.7.0 enough for this connection"
		}
		return ""
	})
	results, err := sandboxtest.Deliver(t.Context(), t, r.provider(map[string]any{"pool": map[string]any{"max": 1}}), batchOf(20)...)
	if err != nil {
		t.Fatal(err)
	}
	for id, res := range results {
		if res.Outcome != providers.Accepted {
			t.Errorf("%s: %+v", id, res)
		}
	}
}

// A session that the server let go of while it was idle costs nothing.
func TestStaleSession(t *testing.T) {
	t.Parallel()
	for name, closing := range map[string]func(*relay) int{
		// One that is still being opened is not idle: to break that off is another story.
		"closed":   func(r *relay) int { r.drop(true); return 8 },
		"with 421": func(r *relay) int { r.replies(at("MAIL", 1, "421 4.4.2 idle for too long")); return 1 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := startRelay(t, nil)
			p := r.provider(map[string]any{"pool": map[string]any{"max": closing(r)}})
			r.replies(nil)
			for range 3 {
				batch := batchOf(20) // several sessions
				results, err := sandboxtest.Deliver(t.Context(), t, p, batch...)
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range batch {
					if res := results[m.ID]; res.Outcome != providers.Accepted {
						t.Errorf("%+v", res)
					}
				}
				_ = closing(r)
			}
			if n := len(r.got()); n != 60 {
				t.Errorf("%d mails arrived, want 60", n)
			}
		})
	}
}

// A connection that was cut short stays so, whatever deadline comes after.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	a, b := net.Pipe()
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	if err := email.InterruptThenRead(a, time.Now().Add(time.Minute)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a read on an interrupted connection: %v", err)
	}
}
