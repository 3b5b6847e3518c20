package email_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/email"
)

// answerRows has a row for each row of the table at least.
var answerRows = []struct {
	rule, phase string
	code        int
	text        string
	want        providers.Outcome
	wantCode    string
}{
	{"", "final dot", 250, "2.0.0 Ok: queued as 4ZQ1", providers.Accepted, "250 2.0.0"},
	{"", "final dot", 250, "OK", providers.Accepted, "250"},
	{"", "final dot", 252, "taken", providers.Accepted, "252"},
	{"going away", "banner", 421, "busy", providers.Deferred, "421"},
	{"going away", "AUTH", 421, "4.7.0 busy", providers.Deferred, "421 4.7.0"},
	{"going away", "MAIL", 421, "4.3.2 shutting down", providers.Deferred, "421 4.3.2"},
	{"going away", "RCPT", 421, "4.7.0 too many", providers.Deferred, "421 4.7.0"},
	{"going away", "final dot", 421, "4.7.0 spam?", providers.Deferred, "421 4.7.0"},
	{"greeting refused", "banner", 554, "5.3.2 no service here", providers.Deferred, "554 5.3.2"},
	{"greeting refused", "banner", 450, "later", providers.Deferred, "450"},
	{"EHLO later", "EHLO", 450, "4.7.1 later", providers.Deferred, "450 4.7.1"},
	{"EHLO refused", "EHLO", 550, "5.7.1 your address is listed", providers.Denied, "550 5.7.1"},
	{"EHLO refused", "EHLO", 501, "bad name", providers.Denied, "501"},
	{"STARTTLS later", "STARTTLS", 454, "4.7.0 no TLS now", providers.Deferred, "454 4.7.0"},
	{"STARTTLS refused", "STARTTLS", 501, "no", providers.Denied, "501"},
	{"STARTTLS refused", "STARTTLS", 502, "5.5.1 no", providers.Denied, "502 5.5.1"},
	{"password must change", "AUTH", 432, "4.7.12 transition", providers.Denied, "432 4.7.12"},
	{"AUTH later", "AUTH", 454, "4.7.0 later", providers.Deferred, "454 4.7.0"},
	{"AUTH refused", "AUTH", 535, "5.7.8 bad", providers.Denied, "535 5.7.8"},
	{"AUTH refused", "AUTH", 534, "5.7.9 too weak", providers.Denied, "534 5.7.9"},
	{"AUTH refused", "AUTH", 538, "5.7.11 encrypt", providers.Denied, "538 5.7.11"},
	{"AUTH refused", "AUTH", 504, "5.5.4 unknown", providers.Denied, "504 5.5.4"},
	{"wants STARTTLS or AUTH", "MAIL", 530, "5.7.0 STARTTLS first", providers.Denied, "530 5.7.0"},
	{"wants STARTTLS or AUTH", "RCPT", 530, "5.7.1 login first", providers.Denied, "530 5.7.1"},
	{"password refused late", "MAIL", 535, "5.7.8 bad", providers.Denied, "535 5.7.8"},
	{"mechanism too weak", "MAIL", 534, "5.7.9 weak", providers.Denied, "534 5.7.9"},
	{"encryption wanted", "MAIL", 538, "5.7.11 encrypt", providers.Denied, "538 5.7.11"},
	{"password must change late", "MAIL", 432, "4.7.12 transition", providers.Denied, "432 4.7.12"},
	{"sender later", "MAIL", 451, "4.3.0 later", providers.Deferred, "451 4.3.0"},
	{"sender later", "MAIL", 452, "4.3.1 disk full", providers.Deferred, "452 4.3.1"},
	{"too big, announced", "MAIL", 552, "size", providers.Rejected, "552"},
	{"too big, enhanced", "MAIL", 554, "5.3.4 size", providers.Rejected, "554 5.3.4"},
	{"too big for the mailbox", "MAIL", 550, "5.2.3 size", providers.Rejected, "550 5.2.3"},
	{"parameters unknown", "MAIL", 555, "5.5.4 SIZE?", providers.Rejected, "555 5.5.4"},
	{"needs SMTPUTF8", "MAIL", 553, "5.6.7 ASCII only", providers.Rejected, "553 5.6.7"},
	{"command refused", "MAIL", 501, "5.5.4 syntax", providers.Rejected, "501 5.5.4"},
	{"command refused", "MAIL", 503, "5.5.1 sequence", providers.Rejected, "503 5.5.1"},
	{"sender refused", "MAIL", 550, "5.1.8 sender's domain", providers.Denied, "550 5.1.8"},
	{"sender refused", "MAIL", 553, "5.7.1 not your address", providers.Denied, "553 5.7.1"},
	{"sender refused", "MAIL", 550, "no", providers.Denied, "550"},
	{"mailbox full for good", "RCPT", 552, "5.2.2 full", providers.Deferred, "552 5.2.2"},
	{"mailbox full for good", "RCPT", 552, "too many recipients", providers.Deferred, "552"},
	{"mailbox full", "final dot", 554, "5.2.2 full", providers.Deferred, "554 5.2.2"},
	{"later", "RCPT", 450, "4.2.1 busy", providers.Deferred, "450 4.2.1"},
	{"later", "RCPT", 451, "4.7.1 greylisted", providers.Deferred, "451 4.7.1"},
	{"later", "RCPT", 452, "4.2.2 full", providers.Deferred, "452 4.2.2"},
	{"later", "RCPT", 452, "4.5.3 too many", providers.Deferred, "452 4.5.3"},
	{"later", "DATA", 451, "4.3.0 later", providers.Deferred, "451 4.3.0"},
	{"later", "final dot", 451, "4.3.0 later", providers.Deferred, "451 4.3.0"},
	{"later", "final dot", 454, "Throttling failure", providers.Deferred, "454"},
	{"no such mailbox", "RCPT", 550, "5.1.1 unknown", providers.Gone, "550 5.1.1"},
	{"no such mailbox", "final dot", 550, "5.1.1 unknown", providers.Gone, "550 5.1.1"},
	{"no such mailbox", "RCPT", 551, "5.1.1 not local", providers.Gone, "551 5.1.1"},
	{"no such domain", "RCPT", 550, "5.1.2 domain", providers.Gone, "550 5.1.2"},
	{"bad address", "RCPT", 553, "5.1.3 syntax", providers.Gone, "553 5.1.3"},
	{"moved", "RCPT", 551, "5.1.6 moved", providers.Gone, "551 5.1.6"},
	{"null MX", "RCPT", 556, "5.1.10 null MX", providers.Gone, "556 5.1.10"},
	{"mailbox disabled", "RCPT", 550, "5.2.1 disabled", providers.Gone, "550 5.2.1"},
	{"user not local", "RCPT", 551, "try elsewhere", providers.Gone, "551"},
	{"mailbox name not allowed", "RCPT", 553, "name", providers.Gone, "553"},
	{"domain takes no mail", "RCPT", 556, "no mail", providers.Gone, "556"},
	{"policy", "RCPT", 550, "5.7.1 blocked", providers.Rejected, "550 5.7.1"},
	{"policy", "RCPT", 554, "5.7.1 relay access denied", providers.Rejected, "554 5.7.1"},
	{"policy", "final dot", 550, "5.7.26 DMARC", providers.Rejected, "550 5.7.26"},
	{"policy", "DATA", 554, "5.7.0 no", providers.Rejected, "554 5.7.0"},
	{"routing", "RCPT", 550, "5.4.4 no route", providers.Rejected, "550 5.4.4"},
	{"too big", "final dot", 552, "5.3.4 size", providers.Rejected, "552 5.3.4"},
	{"too big for the recipient", "RCPT", 550, "5.2.3 size", providers.Rejected, "550 5.2.3"},
	{"too big, no enhanced code", "final dot", 552, "size", providers.Rejected, "552"},
	{"refused without a reason", "RCPT", 550, "no", providers.Rejected, "550"},
	{"refused without a reason", "final dot", 550, "spam", providers.Rejected, "550"},
	{"refused without a reason", "RCPT", 550, "4.1.1 a class that is not its code's", providers.Rejected, "550"},
	{"refused", "final dot", 554, "transaction failed", providers.Rejected, "554"},
	{"refused", "RCPT", 501, "5.5.4 syntax", providers.Rejected, "501 5.5.4"},
	{"refused", "RCPT", 553, "5.6.7 ASCII only", providers.Rejected, "553 5.6.7"},
	{"refused without a reason", "RCPT", 550, "5.1.10x not an enhanced code at all", providers.Rejected, "550"},
	{"odd answer in a transaction", "RCPT", 354, "what?", providers.Deferred, "354"},
	{"odd answer in a transaction", "DATA", 250, "done", providers.Deferred, "250"},
	{"odd answer at the end", "final dot", 354, "more?", providers.Unknown, "354"},
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	rows := map[string]bool{}
	for _, row := range answerRows {
		rows[row.rule] = true
		got := email.Classify(row.phase, row.code, row.text)
		want := providers.Result{Outcome: row.want, Code: row.wantCode}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(providers.Result{}, "Reason", "ProviderID")); diff != "" {
			t.Errorf("%s: %d %s (-want +got):\n%s", row.phase, row.code, row.text, diff)
		}
		if (got.Reason == "") != (got.Outcome == providers.Accepted) {
			t.Errorf("%s: %d %s: reason is %q", row.phase, row.code, row.text, got.Reason)
		}
		if got.Outcome == providers.Accepted {
			continue
		}
		if name := email.RuleFor(row.phase, row.code, row.text); name != row.rule {
			t.Errorf("%s: %d %s is decided by %q, want %q", row.phase, row.code, row.text, name, row.rule)
		}
	}
	for _, name := range email.RuleNames() {
		if !rows[name] {
			t.Errorf("no row for %q", name)
		}
	}
}

func TestQueueID(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"2.0.0 Ok: queued as 4ZQ1":                                   "4ZQ1",
		"OK id=1qXyZ-0001AB-Cd":                                      "1qXyZ-0001AB-Cd",
		"2.6.0 <x> Queued mail for delivery":                         "",
		"2.0.0 OK: queued with id <0100018f-1@eu-west-1.amazonses.c": "0100018f-1@eu-west-1.amazonses.c",
		"Ok": "",
	} {
		if got := email.Classify("final dot", 250, text).ProviderID; got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func FuzzClassify(f *testing.F) {
	for _, row := range answerRows {
		f.Add(row.phase, row.code, row.text)
	}
	f.Fuzz(func(t *testing.T, ph string, code int, text string) {
		if !slices.Contains(email.Phases, ph) || code < 100 || code > 999 {
			return
		}
		r := email.Classify(ph, code, text)
		if r.Outcome == providers.Accepted && (ph != "final dot" || code/100 != 2) {
			t.Errorf("%s %d is accepted", ph, code)
		}
		if r.Outcome == providers.Gone && code/100 != 5 {
			t.Errorf("%s %d drops the address", ph, code)
		}
		if len(r.Code) > 16 || strings.ContainsAny(r.ProviderID, "\r\n <>") {
			t.Errorf("the result holds what the server said: %+v", r)
		}
	})
}
