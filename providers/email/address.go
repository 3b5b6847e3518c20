package email

import (
	"errors"
	"fmt"
	"net/mail"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

const (
	maxAddress = 254 // RFC 5321, 4.5.3.1.3: a path of 256 with its angle brackets
	maxLocal   = 64  // RFC 5321, 4.5.3.1.1
	maxName    = 200 // characters of a display name; the rest is cut off
)

// mailbox is a parsed address. What goes on the wire is put together from it, never copied from what
// was given (GHSA-wpwj-69cm-q9c5: a quoted local part can smuggle ESMTP parameters and recipients).
type mailbox struct {
	name   string
	local  string
	domain string // in A-labels
}

// parse reads one address, with a display name or without.
func parse(s string) (mailbox, error) {
	if err := clean(s); err != nil {
		return mailbox{}, err
	}
	a, err := mail.ParseAddress(s)
	if err != nil {
		return mailbox{}, errors.New("not an e-mail address (RFC 5322)")
	}
	return split(a)
}

// parseBare reads an address without a display name or comment.
func parseBare(s string) (mailbox, error) {
	m, err := parse(s)
	if err == nil && (m.name != "" || strings.ContainsAny(s, "<>() ")) {
		err = errors.New("an address alone is wanted, without a name")
	}
	return m, err
}

func split(a *mail.Address) (mailbox, error) {
	at := strings.LastIndexByte(a.Address, '@')
	if at < 1 {
		return mailbox{}, errors.New("not an e-mail address (RFC 5322)")
	}
	m := mailbox{name: tidy(a.Name, maxName), local: a.Address[:at]}
	if err := clean(m.local); err != nil {
		return mailbox{}, err
	}
	if len(m.local) > maxLocal {
		return mailbox{}, fmt.Errorf("the part before the @ has more than %d bytes", maxLocal)
	}
	domain, err := idna.Lookup.ToASCII(a.Address[at+1:])
	if err != nil || domain == "" || strings.ContainsAny(domain, "[]:") {
		return mailbox{}, errors.New("the part after the @ is no domain name")
	}
	m.domain = domain
	if len(m.addr()) > maxAddress {
		return mailbox{}, fmt.Errorf("an address has at most %d bytes", maxAddress)
	}
	return m, nil
}

// addr is the address as it stands in a header and on the envelope, its local part quoted where needed.
func (m mailbox) addr() string {
	s := (&mail.Address{Address: m.local + "@" + m.domain}).String()
	return s[1 : len(s)-1]
}

// path is the address as SMTP wants it.
func (m mailbox) path() string { return "<" + m.addr() + ">" }

// header is the address as net/mail's type, for the header fields.
func (m mailbox) header() *mail.Address {
	return &mail.Address{Name: m.name, Address: m.local + "@" + m.domain}
}

// ascii says whether the address needs no SMTPUTF8 (RFC 6531).
func (m mailbox) ascii() bool { return isASCII(m.local) }

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

var errControl = errors.New("holds a control character, such as a line break")

// clean refuses what could end a header field or a command: CR, LF, NUL and the other control
// characters, and what is not UTF-8.
func clean(s string) error {
	if !utf8.ValidString(s) {
		return errors.New("is not valid UTF-8")
	}
	if strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }) {
		return errControl
	}
	return nil
}

// tidy makes one line of s, its spaces single, of at most n characters: for words that are nobody's
// fault in this request, such as the name of a recipient that was stored long ago.
func tidy(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if utf8.RuneCountInString(s) > n {
		s = strings.TrimSpace(string([]rune(s)[:n]))
	}
	return s
}
