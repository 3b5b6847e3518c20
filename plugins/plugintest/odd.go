package plugintest

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/carillon-notify/carillon/providers"
)

// checkTime is how long a Check may take: after that Carillon lets the message pass.
const checkTime = 500 * time.Millisecond

// odd is a message that nobody should send, and that must do no harm.
type odd struct {
	name   string
	change func(m *providers.Message)
}

const notUTF8 = "\xff\xfe\xc3("

// odds are those messages. The address stays, so that the rest is looked at.
func odds() []odd {
	huge := strings.Repeat("0123456789abcdef", 64<<10) // 1 MiB
	deep := []byte(strings.Repeat(`{"a":`, 10_000) + "1" + strings.Repeat("}", 10_000))
	content := func(raw string) func(*providers.Message) {
		return func(m *providers.Message) { m.Content = []byte(raw) }
	}
	data := func(raw string) func(*providers.Message) {
		return func(m *providers.Message) { m.Data = []byte(raw) }
	}
	return []odd{
		{"nothing in it", func(m *providers.Message) { *m = providers.Message{ID: m.ID, App: m.App, Address: m.Address} }},
		{"no address", func(m *providers.Message) { m.Address = "" }},
		{"an address that is none", func(m *providers.Message) { m.Address = "\x00\r\n../?#%zz" + notUTF8 }},
		{"a huge address", func(m *providers.Message) { m.Address = huge }},
		{"a huge title", func(m *providers.Message) { m.Title = huge }},
		{"a huge body", func(m *providers.Message) { m.Body = huge }},
		{"a huge link", func(m *providers.Message) { m.URL = "https://example.com/" + huge }},
		{"a link that is none", func(m *providers.Message) { m.URL = "ht tp://%zz\r\n" }},
		{"texts that are not UTF-8", func(m *providers.Message) { m.Title, m.Body, m.Name, m.Category = notUTF8, notUTF8, notUTF8, notUTF8 }},
		{"control characters", func(m *providers.Message) {
			m.Title, m.Body, m.Name = "a\x00b\r\nBcc: c", "\x1b[2J\u202e\u2028", "\r\nX: y"
			m.Category, m.CollapseKey, m.Unsubscribe = "a\r\nb", "a\r\nb\x00", "https://example.com/\r\nX: y"
		}},
		{"a huge collapse key", func(m *providers.Message) { m.CollapseKey = huge }},
		{"data that is not JSON", data(`{"a":`)},
		{"data that is no object", data(`[1,2]`)},
		{"data that is null", data(`null`)},
		{"deep data", data(string(deep))},
		{"odd data", data(`{"":"","a":1e400,"b":"\ud800","c":{"a":null},"from":1,"aps":7}`)},
		{"content that is not JSON", content(`{"a":`)},
		{"content that is no object", content(`"text"`)},
		{"content that is null", content(`null`)},
		{"deep content", content(string(deep))},
		{"no times", func(m *providers.Message) { m.CreatedAt, m.ExpiresAt = time.Time{}, time.Time{} }},
		{"times that are far off", func(m *providers.Message) {
			m.CreatedAt, m.ExpiresAt = time.Unix(math.MaxInt32*100, 0), time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
		}},
		{"odd figures", func(m *providers.Message) { m.Attempt, m.Priority = -1, "whenever" }},
	}
}

// checkMessages has Check look at what it should take, and at what should not hurt it.
func checkMessages(t testing.TB, s *sitting) {
	if s.way == inOwnProcess {
		s.open(t) // the host asks a process that is open
	}
	for _, m := range s.plainMessages(3) {
		if err := s.checkOne(t, "a message of the exam", m); err != nil {
			if s.gentle { // which nobody who knows the kind has made
				t.Logf("Check refuses a message like anybody's: %v", err)
				break
			}
			t.Errorf("Check refuses a message of the exam: %v", err)
		}
	}
	for _, o := range odds() {
		m := s.plainMessages(1)[0]
		o.change(&m)
		_ = s.checkOne(t, o.name, m) // it may pass or not
	}
}

// plainMessages are the author's, or such as anybody might send.
func (s *sitting) plainMessages(n int) []providers.Message {
	if s.Message != nil {
		return s.messages(n, nil)
	}
	out := make([]providers.Message, n)
	for i := range out {
		out[i] = providers.Message{ID: fmt.Sprintf("00000000-0000-7000-8000-%012d", i), App: "exam", Title: "Hello", Body: "This is a message of the exam.",
			Priority: providers.Normal, Attempt: 1, CreatedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour)}
	}
	return out
}

// checkOne asks Check about one message: in time, without a panic, and without a change to it.
func (s *sitting) checkOne(t testing.TB, name string, m providers.Message) error {
	t.Helper()
	if s.kind.Check == nil {
		return nil
	}
	given := clone([]providers.Message{m})
	var err error
	best := time.Duration(math.MaxInt64)
	for range 3 { // a busy machine is slow now and then
		began := time.Now()
		within(t, s.Soon, "Check of "+name, func() { err = s.kind.Check(&given[0]) })
		if best = min(best, time.Since(began)); best < checkTime/2 {
			break
		}
	}
	if best > checkTime {
		t.Errorf("Check of %s took %s; after %s Carillon does not wait for it any more", name, best, checkTime)
	}
	if !reflect.DeepEqual(given[0], m) {
		t.Errorf("Check changed %s", name)
	}
	var broken *brokenError
	if errors.As(err, &broken) {
		t.Errorf("Check of %s fails, instead of saying what is wrong with the message: %v", name, err)
		return nil
	}
	if err != nil {
		text := err.Error()
		if len(text) > maxReason {
			t.Errorf("the error of Check of %s has %d bytes, and is cut to %d: %.60q…", name, len(text), maxReason, text)
		}
		if len(m.Address) >= minAddress && strings.Contains(text, m.Address) {
			t.Errorf("the error of Check of %s repeats the message's address", name)
		}
	}
	return err
}

func needsCheck(s *sitting) string {
	if !s.features.check {
		return "the kind has no Check"
	}
	return ""
}

// oddMessages delivers what should never have got that far, in one batch with good messages, which must
// not suffer.
func oddMessages(t testing.TB, s *sitting) {
	p := s.open(t)
	bad := odds()
	if s.kind.MaxBatch == 1 {
		for _, o := range bad {
			m := s.message()
			o.change(&m)
			p.deliver([]providers.Message{m})
		}
		p.deliver(s.messages(1, nil)).only("after odd messages", "accepted")
		return
	}
	for group := range slices.Chunk(bad, min(s.kind.MaxBatch-1, 8)) {
		batch := s.messages(len(group)+1, nil)
		var odd []string
		for i, o := range group {
			o.change(&batch[i])
			odd = append(odd, o.name)
		}
		good := batch[len(group)].ID
		c := p.deliver(batch)
		if r, ok := c.result(good); !ok || r.Outcome != providers.Accepted {
			t.Errorf("a good message in one batch with odd ones (%s) came to %+v, and not to accepted; the error is %v", strings.Join(odd, ", "), r, c.err)
		}
	}
}
