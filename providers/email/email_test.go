package email_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/email"
	"github.com/carillon-notify/carillon/providers/sandbox/sandboxtest"
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
			results, err := sandboxtest.Deliver(t.Context(), t, p, batch...)
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
	if _, err := sandboxtest.Deliver(t.Context(), t, r.provider(map[string]any{"pool": map[string]any{"max": 1}}), batchOf(3)...); err != nil {
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
				results, err := sandboxtest.Deliver(t.Context(), t, p, batch...)
				if err != nil {
					t.Fatal(err)
				}
				want := providers.Result{ID: batch[1].ID, Outcome: row.want, Code: row.wantCode}
				confused := mode != "lock-step" && (row.code == 503 || row.code == 250) // by PIPELINING, perhaps: without, it may be taken
				if row.code == 421 && row.phase == "MAIL" || confused {
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
				timeout := "20s"
				if strings.HasPrefix(tt.name, "silence") {
					timeout = "2s" // in which a busy machine says what it has to
				}
				p := r.provider(map[string]any{"timeout": timeout})
				m := batchOf(1)[0]
				results, err := sandboxtest.Deliver(t.Context(), t, p, m)
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
				results, err = sandboxtest.Deliver(t.Context(), t, p, m)
				if err != nil || results[m.ID].Outcome != providers.Accepted {
					t.Errorf("the next attempt: %v, %v", results, err)
				}
			})
		}
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
			results, err := sandboxtest.Deliver(ctx, t, r.provider(map[string]any{"pool": map[string]any{"max": 1}}), batchOf(4)...)
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

// A server that forgets that it refused the sender must not be given an empty mail to deliver.
func TestNoEmptyMail(t *testing.T) {
	t.Parallel()
	r := startRelay(t, func(r *relay) { r.lenient = true })
	p := r.provider(map[string]any{"pool": map[string]any{"max": 1}})
	r.replies(at("MAIL", 2, "451 4.3.0 later"))
	batch := batchOf(3)
	results, err := sandboxtest.Deliver(t.Context(), t, p, batch...)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []providers.Outcome{providers.Accepted, providers.Deferred, providers.Accepted} {
		if res := results[batch[i].ID]; res.Outcome != want {
			t.Errorf("%d: %+v", i, res)
		}
	}
	for _, m := range r.got() {
		if m.data == "" || m.from == "" {
			t.Errorf("an empty mail was delivered: %+v", m)
		}
	}
}

func TestServersLimits(t *testing.T) {
	t.Parallel()
	r := startRelay(t, func(r *relay) { r.extension = []string{"PIPELINING", "SIZE 2000"} })
	batch := batchOf(3)
	batch[0].Address = "用户@例え.jp"
	batch[1].Body = strings.Repeat("x", 2000)
	results, err := sandboxtest.Deliver(t.Context(), t, r.provider(nil), batch...)
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
	if _, err := sandboxtest.Deliver(t.Context(), t, r.provider(nil), batch[0]); err != nil {
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
	results, err := sandboxtest.Deliver(t.Context(), t, r.provider(nil), batch...)
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
	results, err := sandboxtest.Deliver(t.Context(), t, r.provider(nil), batch...)
	if err != nil || len(r.got()) != 1 {
		t.Fatalf("%d mails, error %v", len(r.got()), err)
	}
	for i, want := range []providers.Outcome{providers.Rejected, providers.Accepted, providers.Rejected} {
		if results[batch[i].ID].Outcome != want {
			t.Errorf("%d: %+v", i, results[batch[i].ID])
		}
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	r := startRelay(t, nil)
	p, err := email.Kind().Open(t.Context(), r.settings(nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(1)...); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	results, err := sandboxtest.Deliver(t.Context(), t, p, batchOf(2)...)
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
