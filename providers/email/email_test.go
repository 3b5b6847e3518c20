package email_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/email"
)

// at answers s at the n-th time of a phase, and as usual else.
func at(ph string, n int, s string) func(string, int, string) string {
	return func(p string, i int, _ string) string {
		if p == ph && i == n {
			return s
		}
		return ""
	}
}

// always answers s at a phase.
func always(ph, s string) func(string, int, string) string {
	return func(p string, _ int, _ string) string {
		if p == ph {
			return s
		}
		return ""
	}
}

func noPipelining(r *relay) { r.extension = []string{"ENHANCEDSTATUSCODES"} }

func TestDeliver(t *testing.T) {
	t.Parallel()
	for name, configure := range map[string]func(*relay){"pipelined": nil, "lock-step": noPipelining} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := startRelay(t, configure)
			p := r.provider(nil)
			batch := batchOf(20)
			results, err := deliver(t.Context(), t, p, batch...)
			if err != nil {
				t.Fatal(err)
			}
			mails := map[string]mailed{}
			for _, m := range r.got() {
				mails[m.to] = m
			}
			for _, m := range batch {
				if diff := cmp.Diff(providers.Result{ID: m.ID, Outcome: providers.Accepted, Code: "250 2.0.0", ProviderID: "4ZQ1"}, results[m.ID]); diff != "" {
					t.Errorf("result (-want +got):\n%s", diff)
				}
				got := mails["RCPT TO:<"+m.Address+">"]
				if !strings.HasPrefix(got.from, "MAIL FROM:<no-reply@example.com>") || !strings.Contains(got.data, "Message-ID: <"+m.ID+"@example.com>\r\n") {
					t.Errorf("%s arrived as %+v", m.ID, got)
				}
			}
			if n := len(r.got()); n != 20 {
				t.Errorf("%d mails arrived, want 20", n)
			}
			s := p.Health(t.Context())
			if s.Status != providers.HealthOK || s.Pool.Open == 0 || s.Pool.Open > 4 || s.Pool.InUse != 0 {
				t.Errorf("health is %+v", s)
			}
			if slices.ContainsFunc(r.said(), func(l string) bool { return l == "NOOP" || l == "RSET" }) {
				t.Errorf("commands that cost time: %q", r.said())
			}
		})
	}
}

// With PIPELINING the commands of the next message go along with the text of the one before.
func TestPipelining(t *testing.T) {
	t.Parallel()
	first := make(chan struct{})
	r := startRelay(t, func(r *relay) {
		r.reply = func(ph string, n int, _ string) string {
			if ph == "DATA" && n == 2 {
				close(first)
			}
			return ""
		}
	})
	if _, err := deliver(t.Context(), t, r.provider(map[string]any{"pool": map[string]any{"max": 1}}), batchOf(3)...); err != nil {
		t.Fatal(err)
	}
	<-first
	want := []string{"MAIL", "RCPT", "DATA", "MAIL", "RCPT", "DATA", "MAIL", "RCPT", "DATA"}
	var got []string
	for _, l := range r.said() {
		if verb, _, _ := strings.Cut(l, " "); slices.Contains(want, verb) {
			got = append(got, verb)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Each phase's answers, over the wire, alone and between two messages that are fine.
func TestAnswersOverTheWire(t *testing.T) {
	t.Parallel()
	for _, row := range answerRows {
		if !slices.Contains([]string{"MAIL", "RCPT", "DATA", "final dot"}, row.phase) || row.want == providers.Accepted {
			continue
		}
		for mode, configure := range map[string]func(*relay){"pipelined": nil, "lock-step": noPipelining, "eager": func(r *relay) { r.eager = true }} {
			t.Run(fmt.Sprintf("%s/%s %s %d", mode, row.rule, row.phase, row.code), func(t *testing.T) {
				t.Parallel()
				r := startRelay(t, configure)
				p := r.provider(map[string]any{"pool": map[string]any{"max": 1}})
				r.replies(at(row.phase, 2, fmt.Sprintf("%d %s", row.code, row.text)))
				batch := batchOf(3)
				results, err := deliver(t.Context(), t, p, batch...)
				if err != nil {
					t.Fatal(err)
				}
				want := providers.Result{ID: batch[1].ID, Outcome: row.want, Code: row.wantCode}
				if row.code == 421 && row.phase == "MAIL" {
					want.Outcome, want.Code = providers.Accepted, "250 2.0.0" // another session takes it
				}
				if diff := cmp.Diff(want, results[batch[1].ID], cmpopts.IgnoreFields(providers.Result{}, "Reason", "ProviderID")); diff != "" {
					t.Errorf("result (-want +got):\n%s", diff)
				}
				for _, i := range []int{0, 2} {
					if results[batch[i].ID].Outcome != providers.Accepted {
						t.Errorf("the message beside it: %+v\n%q", results[batch[i].ID], r.said())
					}
				}
				arrived := map[string]int{}
				for _, m := range r.got() {
					arrived[m.to]++
				}
				for i, m := range batch {
					n := 1
					if i == 1 && want.Outcome != providers.Accepted {
						n = 0
					}
					if got := arrived["RCPT TO:<"+m.Address+">"]; got != n {
						t.Errorf("message %d arrived %d times, want %d", i, got, n)
					}
				}
			})
		}
	}
}

func TestConnectionBreaks(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, phase, reply string
		want               providers.Outcome
		reported           bool
		taken              int
	}{
		{"at MAIL", "MAIL", hangUp, providers.Deferred, true, 0},
		{"at RCPT", "RCPT", hangUp, providers.Deferred, true, 0},
		{"at DATA", "DATA", hangUp, providers.Deferred, true, 0},
		{"at the dot, not taken", "final dot", hangUp, providers.Unknown, false, 0},
		{"at the dot, taken", "final dot", hangUpLate, providers.Unknown, false, 1},
		{"silence at MAIL", "MAIL", stall, providers.Deferred, true, 0},
		{"silence at the dot", "final dot", stall, providers.Unknown, false, 1},
		{"nonsense at MAIL", "MAIL", "hello", providers.Deferred, true, 0},
		{"nonsense at the dot", "final dot", "hello", providers.Unknown, false, 0},
		{"a flood", "MAIL", "250 " + strings.Repeat("x", 1<<20), providers.Deferred, true, 0},
		{"a flood of lines", "MAIL", strings.Repeat("250-x\r\n", 1<<16), providers.Deferred, true, 0},
	} {
		for mode, configure := range map[string]func(*relay){"pipelined": nil, "lock-step": noPipelining} {
			t.Run(tt.name+" "+mode, func(t *testing.T) {
				t.Parallel()
				r := startRelay(t, configure)
				r.replies(at(tt.phase, 1, tt.reply))
				p := r.provider(map[string]any{"timeout": "500ms"})
				m := batchOf(1)[0]
				results, err := deliver(t.Context(), t, p, m)
				res, reported := results[m.ID]
				if reported != tt.reported || res.Outcome != tt.want || (err != nil) == tt.reported {
					t.Errorf("reported %v: %+v, error %v", reported, res, err)
				}
				if err != nil && strings.Contains(err.Error(), m.Address) {
					t.Errorf("the error names the address: %v", err)
				}
				if n := len(r.got()); n != tt.taken {
					t.Errorf("%d mails were taken, want %d", n, tt.taken)
				}
				if s := p.Health(t.Context()).Pool; s.Idle != 0 && s.Open != 0 {
					t.Errorf("the broken session is kept: %+v", s)
				}
				results, err = deliver(t.Context(), t, p, m)
				if err != nil || results[m.ID].Outcome != providers.Accepted {
					t.Errorf("the next attempt: %v, %v", results, err)
				}
			})
		}
	}
}

// A session that the server let go of while it was idle costs nothing.
func TestStaleSession(t *testing.T) {
	t.Parallel()
	for name, closing := range map[string]func(*relay) int{
		"closed":   func(r *relay) int { r.drop(); return 8 },
		"with 421": func(r *relay) int { r.replies(at("MAIL", 1, "421 4.4.2 idle for too long")); return 1 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := startRelay(t, nil)
			p := r.provider(map[string]any{"pool": map[string]any{"max": closing(r)}})
			r.replies(nil)
			for range 3 {
				batch := batchOf(20) // several sessions
				results, err := deliver(t.Context(), t, p, batch...)
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

func TestMessagesOfASession(t *testing.T) {
	t.Parallel()
	r := startRelay(t, nil)
	p := r.provider(map[string]any{"max_messages": 3, "pool": map[string]any{"max": 1}})
	for range 2 {
		results, err := deliver(t.Context(), t, p, batchOf(10)...)
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
	results, err := deliver(t.Context(), t, r.provider(map[string]any{"pool": map[string]any{"max": 1}}), batchOf(20)...)
	if err != nil {
		t.Fatal(err)
	}
	for id, res := range results {
		if res.Outcome != providers.Accepted {
			t.Errorf("%s: %+v", id, res)
		}
	}
}

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
			results, err := deliver(t.Context(), t, p, batch...)
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
	if _, err := deliver(t.Context(), t, p, batchOf(1)...); err != nil {
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
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	p := post(t, map[string]any{"addr": ln.Addr().String()})
	results, err := deliver(t.Context(), t, p, batchOf(20)...)
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

func TestContextEnds(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		phase    string
		reported int
	}{{"banner", 4}, {"MAIL", 4}, {"DATA", 4}, {"final dot", 3}} {
		t.Run(tt.phase, func(t *testing.T) {
			t.Parallel()
			r := startRelay(t, nil)
			ctx, cancel := context.WithCancel(t.Context())
			r.replies(func(ph string, _ int, _ string) string {
				if ph == tt.phase {
					cancel()
					return stall
				}
				return ""
			})
			start := time.Now()
			results, err := deliver(ctx, t, r.provider(map[string]any{"pool": map[string]any{"max": 1}}), batchOf(4)...)
			if len(results) != tt.reported || (err != nil) != (tt.reported == 3) {
				t.Errorf("%d results, error %v", len(results), err)
			}
			for _, res := range results {
				if res.Outcome != providers.Deferred {
					t.Errorf("%+v", res)
				}
			}
			if d := time.Since(start); d > 3*time.Second {
				t.Errorf("it took %v to stop", d)
			}
		})
	}
}

func TestServersLimits(t *testing.T) {
	t.Parallel()
	r := startRelay(t, func(r *relay) { r.extension = []string{"PIPELINING", "SIZE 2000"} })
	batch := batchOf(3)
	batch[0].Address = "用户@例え.jp"
	batch[1].Body = strings.Repeat("x", 2000)
	results, err := deliver(t.Context(), t, r.provider(nil), batch...)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []providers.Result{{Outcome: providers.Rejected, Code: "SMTPUTF8"}, {Outcome: providers.Rejected, Code: "SIZE"}, {Outcome: providers.Accepted, Code: "250", ProviderID: "4ZQ1"}} {
		want.ID = batch[i].ID
		if want.Outcome == providers.Accepted {
			want.Code = "250 2.0.0"
		}
		if diff := cmp.Diff(want, results[batch[i].ID], cmpopts.IgnoreFields(providers.Result{}, "Reason")); diff != "" {
			t.Error(diff)
		}
	}
	r = startRelay(t, nil)
	if _, err := deliver(t.Context(), t, r.provider(nil), batch[0]); err != nil {
		t.Fatal(err)
	}
	if got := r.got(); len(got) != 1 || !strings.HasSuffix(got[0].from, " BODY=8BITMIME SMTPUTF8") || got[0].to != "RCPT TO:<用户@xn--r8jz45g.jp>" {
		t.Errorf("%+v", got)
	}
}

func TestTestMessagesStayHere(t *testing.T) {
	t.Parallel()
	r := startRelay(t, nil)
	batch := batchOf(3)
	batch[0].Test, batch[1].Test = true, true
	batch[1].Title = "a\nb"
	results, err := deliver(t.Context(), t, r.provider(nil), batch...)
	if err != nil || len(r.got()) != 1 {
		t.Fatalf("%d mails, error %v", len(r.got()), err)
	}
	if r := results[batch[0].ID]; r.Outcome != providers.Accepted || r.Code != "test" {
		t.Errorf("%+v", r)
	}
	if r := results[batch[1].ID]; r.Outcome != providers.Rejected {
		t.Errorf("%+v", r)
	}
}

func TestUnbuildableIsRejected(t *testing.T) {
	t.Parallel()
	r := startRelay(t, nil)
	batch := batchOf(3)
	batch[0].Content = json.RawMessage(`{"headers":{"Bcc":"x@example.com"}}`)
	batch[2].Address = "a@b.example> ORCPT=x"
	results, err := deliver(t.Context(), t, r.provider(nil), batch...)
	if err != nil || len(r.got()) != 1 {
		t.Fatalf("%d mails, error %v", len(r.got()), err)
	}
	for i, want := range []providers.Outcome{providers.Rejected, providers.Accepted, providers.Rejected} {
		if results[batch[i].ID].Outcome != want {
			t.Errorf("%d: %+v", i, results[batch[i].ID])
		}
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	r := startRelay(t, nil)
	ca := filepath.Join(r.dir, "ca.pem")
	for _, tt := range []struct {
		name string
		with map[string]any
		want string
	}{
		{"as they are", nil, ""},
		{"no addr", map[string]any{"addr": ""}, "addr"},
		{"no port", map[string]any{"addr": "smtp.example.com"}, "addr"},
		{"tls", map[string]any{"tls": "maybe"}, "tls"},
		{"auth", map[string]any{"auth": "magic"}, "auth"},
		{"password alone", map[string]any{"password": password}, "username"},
		{"no from", map[string]any{"from": ""}, "from"},
		{"bad from", map[string]any{"from": "Example"}, "from"},
		{"two from", map[string]any{"from": "a@example.com, b@example.com"}, "from"},
		{"from with a line break", map[string]any{"from": "A\r\nB: c <a@example.com>"}, "from"},
		{"envelope_from", map[string]any{"envelope_from": "x"}, "envelope_from"},
		{"reply_to", map[string]any{"reply_to": "x"}, "reply_to"},
		{"no such CA", map[string]any{"ca_file": ca + "x"}, "ca_file"},
		{"no CA", map[string]any{"ca_file": "email_test.go"}, "ca_file"},
		{"helo", map[string]any{"helo": "a b"}, "helo"},
		{"helo with a line break", map[string]any{"helo": "a\r\nMAIL"}, "helo"},
		{"helo literal", map[string]any{"helo": "[192.0.2.1]"}, ""},
		{"message_id_domain", map[string]any{"message_id_domain": "a>b"}, "message_id_domain"},
		{"list_unsubscribe", map[string]any{"list_unsubscribe": "javascript:x"}, "list_unsubscribe"},
		{"list_unsubscribe that injects", map[string]any{"list_unsubscribe": "mailto:a@b>,<x"}, "list_unsubscribe"},
		{"dkim without a key", map[string]any{"dkim": map[string]any{"domain": "example.com", "selector": "s"}}, "dkim.key"},
		{"dkim without a selector", map[string]any{"dkim": map[string]any{"domain": "example.com"}}, "dkim.selector"},
		{"dkim with a certificate", map[string]any{"dkim": map[string]any{"domain": "example.com", "selector": "s", "key_file": ca}}, "dkim.key"},
		{"max_messages", map[string]any{"max_messages": 0}, "max_messages"},
		{"timeout", map[string]any{"timeout": "11m"}, "timeout"},
		{"pool", map[string]any{"pool": map[string]any{"max": 0}}, "pool.max"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, err := email.Kind().Open(t.Context(), r.settings(tt.with))
			if err == nil {
				if err := p.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error is %v, want one about %q", err, tt.want)
			case err != nil && strings.Contains(err.Error(), password):
				t.Errorf("the error quotes the password: %v", err)
			}
		})
	}
}

func TestKind(t *testing.T) {
	t.Parallel()
	k := email.Kind()
	if k.Name != "email" || k.Channel != "email" || k.MaxBatch != 20 || k.Secret || !json.Valid(k.Content) {
		t.Errorf("kind is %+v", k)
	}
	address := regexp.MustCompile(k.Address)
	for a, want := range map[string]bool{
		"ann@example.org": true, "a.b+c@x.example": true, "用户@例え.jp": true, "o'neil@example.org": true, "root@localhost": true,
		"ann": false, "@example.org": false, "ann@": false, "a@b@c": false, "a b@example.org": false, "ann@example.org\n": false, "a\r@b": false,
		"<ann@example.org>": false, "a,b@example.org": false, `"a"@example.org`: false, "ann@[1.2.3.4]": false, "": false,
		strings.Repeat("a", 65) + "@example.org": false,
	} {
		if got := address.MatchString(a); got != want {
			t.Errorf("address %q matches: %v", a, got)
		}
	}
	names := map[string]bool{}
	for _, s := range k.Settings {
		if names[s.Name] || s.Doc == "" {
			t.Errorf("setting %q is doubled or has no doc", s.Name)
		}
		names[s.Name] = true
	}
	if !names["pool.max"] || names["pool.streams"] {
		t.Error("the pool's settings are not those of sessions")
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	r := startRelay(t, nil)
	p, err := email.Kind().Open(t.Context(), r.settings(nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := deliver(t.Context(), t, p, batchOf(1)...); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	results, err := deliver(t.Context(), t, p, batchOf(2)...)
	if err != nil || len(results) != 2 {
		t.Fatalf("%d results, error %v", len(results), err)
	}
	for _, res := range results {
		if res.Outcome != providers.Deferred {
			t.Errorf("%+v", res)
		}
	}
	if !slices.Contains(r.said(), "QUIT") {
		t.Error("the session was not ended with QUIT")
	}
}
