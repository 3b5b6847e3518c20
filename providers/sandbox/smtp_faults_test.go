package sandbox_test

import (
	"encoding/base64"
	"errors"
	"io"
	"net/textproto"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers/sandbox"
)

const (
	mailFrom = "MAIL FROM:<a@b.example>\r\n"
	rcptTo   = "RCPT TO:<ann@example.com>\r\n"
)

// code is the first words of a client's error.
func code(err error) string {
	var reply *textproto.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &reply):
		enhanced, _, _ := strings.Cut(reply.Msg, " ")
		return strconv.Itoa(reply.Code) + " " + enhanced
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "EOF"
	}
	return err.Error()
}

func TestSMTPFaults(t *testing.T) {
	t.Parallel()
	errorsOf := func(text string) map[string]float64 { return map[string]float64{text: 1} }
	for _, tc := range []struct {
		name   string
		script sandbox.Script
		to     string
		want   string // what the client hears
		after  string // and for the next mail on the same session
		taken  uint64
		count  string // in Answers
	}{
		{"none", sandbox.Script{}, "ann@example.com", "", "", 1, "250"},
		{"dead", sandbox.Script{}, "dead.ann@example.com", "550 5.1.1", "", 0, "550 5.1.1"},
		{"greylist", sandbox.Script{Errors: errorsOf("451 4.7.1 greylisted")}, "ann@example.com", "451 4.7.1", "", 0, "451 4.7.1"},
		{"too many", sandbox.Script{Errors: errorsOf("452 4.5.3")}, "ann@example.com", "452 4.5.3", "", 0, "452 4.5.3"},
		{"bare code", sandbox.Script{Errors: errorsOf("550")}, "ann@example.com", "550 5.0.0", "", 0, "550 5.0.0"},
		{"shut down", sandbox.Script{Errors: errorsOf("421 4.3.2 going down")}, "ann@example.com", "421 4.3.2", "EOF", 0, "421 4.3.2"},
		{"sender refused", sandbox.Script{Errors: errorsOf("mail:550 5.7.1 go away")}, "ann@example.com", "550 5.7.1", "", 0, "550 5.7.1"},
		{"content refused", sandbox.Script{Errors: errorsOf("data:554 5.7.1 spam")}, "ann@example.com", "554 5.7.1", "", 0, "554 5.7.1"},
		{"refused but taken", sandbox.Script{Errors: errorsOf("data:451 4.3.0 oops"), TakenAnyway: 1}, "ann@example.com", "451 4.3.0", "", 1, "451 4.3.0"},
		{"421 after the dot", sandbox.Script{Errors: errorsOf("data:421 4.3.2 bye")}, "ann@example.com", "421 4.3.2", "EOF", 0, "421 4.3.2"},
		{"drop before", sandbox.Script{DropBefore: 1}, "ann@example.com", "EOF", "", 0, ""},
		{"drop after", sandbox.Script{DropAfter: 1}, "ann@example.com", "EOF", "", 1, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, sandbox.Options{})
			c := login(t, s)
			check(t, s.Script(sandbox.SMTP, tc.script))
			if got := code(sendMail(c, tc.to, mailText("m"))); got != tc.want {
				t.Errorf("answered %q, want %q", got, tc.want)
			}
			got := s.Counts(sandbox.SMTP)
			if got.Taken != tc.taken || got.Requests != 1 || tc.count != "" && got.Answers[tc.count] != 1 {
				t.Errorf("counts are %+v", got)
			}
			for _, m := range s.Messages(sandbox.Filter{}) {
				want := tc.count
				if m.Answered != want {
					t.Errorf("ledger says %q, want %q", m.Answered, want)
				}
			}
			if tc.want == "EOF" {
				return
			}
			check(t, s.Script(sandbox.SMTP, sandbox.Script{}))
			if tc.after == "" {
				check(t, c.Reset())
			}
			if got := code(sendMail(c, "ann@example.com", mailText("next"))); got != tc.after {
				t.Errorf("the next mail was answered %q, want %q", got, tc.after)
			}
		})
	}
}

// TestSMTPDropBefore sees that both places to drop a mail at come up.
func TestSMTPDropBefore(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{OpenRelay: true, Seed: 1})
	check(t, s.Script(sandbox.SMTP, sandbox.Script{DropBefore: 1}))
	atMail, atDot := 0, 0
	for range 30 {
		m := dialPlain(t, s)
		check(t, m.exchange("EHLO me\r\n", "250"))
		if m.exchange(mailFrom+rcptTo+"DATA\r\n", "250", "250", "354") != nil {
			atMail++
			continue
		}
		if m.exchange(string(mailText("m"))+".\r\n", "250") == nil {
			t.Error("it was answered")
		}
		atDot++
	}
	if atMail == 0 || atDot == 0 || s.Counts(sandbox.SMTP).Taken != 0 {
		t.Errorf("%d at MAIL, %d at the dot, counts %+v", atMail, atDot, s.Counts(sandbox.SMTP))
	}
}

func TestSMTPStall(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	m := dialMail(t, s)
	check(t, s.Script(sandbox.SMTP, sandbox.Script{Stall: 1}))
	check(t, m.exchange(mailFrom+rcptTo+"DATA\r\n", "250", "250", "354"))
	check(t, m.exchange(string(mailText("m"))+".\r\n"))
	check(t, s.Wait(t.Context(), sandbox.SMTP, 1))
	check(t, m.conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	if reply, err := m.reply(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("answered %q, %v", reply, err)
	}
	if got := s.Messages(sandbox.Filter{}); len(got) != 1 || got[0].Answered != "" {
		t.Errorf("ledger has %+v", got)
	}
}

func TestSMTPLatency(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	m := dialMail(t, s)
	const latency = 20 * time.Millisecond
	check(t, s.Script(sandbox.SMTP, sandbox.Script{Latency: latency}))
	began := time.Now()
	check(t, m.exchange(mailFrom+rcptTo+"DATA\r\n", "250", "250", "354"), m.exchange(string(mailText("m"))+".\r\n", "250"))
	if took := time.Since(began); took < 2*latency || took > 2*latency+time.Second {
		t.Errorf("two round trips took %s", took)
	}
}

func TestSMTPGoAway(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	c := login(t, s)
	check(t, s.Script(sandbox.SMTP, sandbox.Script{GoAwayEvery: 2}))
	check(t, sendMail(c, "ann@example.com", mailText("1")), sendMail(c, "ann@example.com", mailText("2")))
	if got := code(sendMail(c, "ann@example.com", mailText("3"))); got != "421 4.7.0" {
		t.Errorf("the third mail was answered %q", got)
	}
	check(t, sendMail(login(t, s), "ann@example.com", mailText("3")))
}

// TestSMTPDialogues holds the server to the RFCs, a line at a time.
func TestSMTPDialogues(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	open := start(t, sandbox.Options{OpenRelay: true})
	b64 := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	long := strings.Repeat("x", 3000)
	type step struct {
		send string
		want []string
	}
	for _, tc := range []struct {
		name  string
		dial  func(testing.TB, *sandbox.Sandbox) *rawMail
		s     *sandbox.Sandbox
		steps []step
	}{
		{"plain text", dialPlain, s, []step{
			{"EHLO me\r\nAUTH PLAIN x\r\n" + mailFrom, []string{"250", "538 5.7.11", "530 5.7.0"}},
			{"HELO me\r\n", []string{"250 " + sandbox.Domain}},
		}},
		{"injection before TLS", dialPlain, s, []step{{"EHLO me\r\nSTARTTLS\r\nEHLO me\r\n", []string{"250", "501"}}}},
		{"order", dialPlain, open, []step{
			{mailFrom, []string{"503"}}, {"EHLO\r\nEHLO me\r\n", []string{"501", "250"}},
			{rcptTo, []string{"503"}}, {"DATA\r\n", []string{"503"}},
			{mailFrom + mailFrom + "DATA\r\nRSET\r\n" + rcptTo, []string{"250", "503", "554 5.5.1", "250", "503"}},
			{"NOOP\r\nVRFY ann\r\nHELP\r\n" + long + "\r\nQUIT\r\n", []string{"250", "252", "500", "500", "221"}},
		}},
		{"addresses", dialPlain, open, []step{
			{"EHLO me\r\n", []string{"250"}},
			{"MAIL FROM:a@b.example\r\nMAIL FROM:<a@b> X=Y\r\nMAIL FROM:<a@b> SIZE=99999999\r\nMAIL FROM:<ä@b>\r\n", []string{"501", "555", "552 5.3.4", "553 5.6.7"}},
			{"MAIL FROM:<> BODY=8BITMIME SIZE=100\r\n", []string{"250"}},
			{"RCPT TO:<nobody>\r\nRCPT TO:<a@b@c d>\r\nRCPT TO:<ü@b.example>\r\nRCPT TO:<a@b.example> NOTIFY=NEVER\r\n", []string{"501", "501", "553", "555"}},
			{"rcpt to: <\"a>b\"@b.example>\r\nRSET\r\nMAIL FROM:<ä@b.example> SMTPUTF8\r\nRCPT TO:<ü@b.example>\r\n", []string{"250", "250", "250", "250"}},
		}},
		{"too many recipients", dialPlain, open, []step{
			{"EHLO me\r\n" + mailFrom + strings.Repeat(rcptTo, 101), append(append([]string{"250", "250"}, strings.Fields(strings.Repeat("250 ", 100))...), "452 4.5.3")},
		}},
		{"too many errors", dialPlain, open, []step{{strings.Repeat("?\r\n", 21), append(strings.Fields(strings.Repeat("500 ", 20)), "421 4.7.0")}}},
		{"too large", dialPlain, open, []step{
			{"EHLO me\r\n" + mailFrom + rcptTo + "DATA\r\n", []string{"250", "250", "250", "354"}},
			{strings.Repeat(strings.Repeat("x", 1022)+"\r\n", 26<<10) + ".\r\n", []string{"552 5.3.4"}},
			{mailFrom, []string{"250"}},
		}},
		{"login twice", dialMail, s, []step{
			{"AUTH PLAIN " + b64("\x00"+sandbox.Username+"\x00"+sandbox.Password) + "\r\nSTARTTLS\r\n", []string{"503", "503"}},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			m := tc.dial(t, tc.s)
			for _, step := range tc.steps {
				check(t, m.exchange(step.send, step.want...))
			}
		})
	}
}

func TestSMTPAuth(t *testing.T) {
	t.Parallel()
	s := start(t, sandbox.Options{})
	b64 := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	user, password := b64(sandbox.Username), b64(sandbox.Password)
	m := dialTLS(t, s)
	for _, tc := range []struct {
		send string
		want []string
	}{
		{mailFrom, []string{"530 5.7.0"}},
		{"AUTH CRAM-MD5\r\n", []string{"504"}},
		{"AUTH PLAIN !!!\r\n", []string{"501"}},
		{"AUTH PLAIN =\r\n", []string{"535"}},
		{"AUTH PLAIN " + b64("\x00"+sandbox.Username+"\x00wrong") + "\r\n", []string{"535 5.7.8"}},
		{"AUTH LOGIN\r\n" + user + "\r\n" + b64("wrong") + "\r\n", []string{"334 " + b64("Username:"), "334 " + b64("Password:"), "535"}},
		{"AUTH LOGIN " + user + "\r\n" + password + "\r\n", []string{"334", "235"}},
		{mailFrom, []string{"250"}},
	} {
		check(t, m.exchange(tc.send, tc.want...))
	}
	m = dialTLS(t, s)
	check(t, m.exchange("AUTH PLAIN\r\n"+b64("\x00"+sandbox.Username+"\x00"+sandbox.Password)+"\r\n", "334", "235"))
}

// TestSMTPContent sees what of a mail is kept, and that nothing but CRLF.CRLF ends one.
func TestSMTPContent(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, sent, kept, id string
	}{
		{"dots", "Message-ID: <a@b>\r\n\r\n..\r\n...two\r\n", "Message-ID: <a@b>\r\n\r\n.\r\n..two\r\n", "a"},
		{"smuggling", "MESSAGE-id:\r\n <c@d>\r\n\r\nx\n.\nMAIL FROM:<x@y>\n.\r\n\r.\r\n", "MESSAGE-id:\r\n <c@d>\r\n\r\nx\n.\nMAIL FROM:<x@y>\n.\r\n\r.\r\n", "c"},
		{"a dot and a bare line feed", "Message-ID: <c@d>\r\n\r\n.\nMAIL FROM:<x@y>\r\n", "Message-ID: <c@d>\r\n\r\n\nMAIL FROM:<x@y>\r\n", "c"},
		{"id in the body", "Subject: x\r\n\r\nMessage-ID: <e@f>\r\n", "Subject: x\r\n\r\nMessage-ID: <e@f>\r\n", ""},
		{"long lines", "Message-ID: <g@h>\r\n\r\n" + strings.Repeat("y", 40000) + "\r\n", "Message-ID: <g@h>\r\n\r\n" + strings.Repeat("y", 40000) + "\r\n", "g"},
		{"empty", "", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, sandbox.Options{OpenRelay: true})
			m := dialPlain(t, s)
			check(t, m.exchange("EHLO me\r\n"+mailFrom+rcptTo+"RCPT TO:<bob@example.com>\r\nDATA\r\n", "250", "250", "250", "250", "354"))
			check(t, m.exchange(tc.sent+".\r\n", "250"))
			got := s.Messages(sandbox.Filter{})
			if len(got) != 1 || got[0].Content != tc.kept || got[0].Address != "ann@example.com, bob@example.com" ||
				tc.id != "" && got[0].ID != tc.id || got[0].ID == "" {
				t.Errorf("ledger has %+v", got)
			}
		})
	}
}
