package email

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/emersion/go-msgauth/dkim"
	gomail "github.com/wneessen/go-mail"

	"github.com/carillon-notify/carillon/providers"
)

// dateKept is how long after the acceptance of a notification its e-mail is dated then. Retries of that
// time are the same to the byte, while one that was scheduled for next week, or held for hours, is not
// sorted far down by the reader's mail program.
const dateKept = 15 * time.Minute

// signedHeaders are what a DKIM signature covers. RFC 6376, 5.4 recommends most; RFC 8058, 4 requires
// the two of one-click unsubscribe. Those that a message does not have are covered too: nobody can add
// them later.
var signedHeaders = []string{
	"From", "To", "Reply-To", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type", "Content-Transfer-Encoding",
	"In-Reply-To", "References", "List-Id", "List-Unsubscribe", "List-Unsubscribe-Post", "Auto-Submitted", "Feedback-ID",
}

// sender is what a route says about every message of its own.
type sender struct {
	from, envelope mailbox
	replyTo        *mailbox
	messageDomain  string
	unsubscribe    string            // a mailto: or https: URI, or ""
	dkim           *dkim.SignOptions // nil: not signed
}

// job is a message ready for the wire.
type job struct {
	msg      *providers.Message
	from, to string // paths, in angle brackets
	data     []byte // dot-stuffed, with the final dot
	size     int    // octets of the message, for SIZE
	utf8     bool   // needs SMTPUTF8
	again    bool   // was handed from one session to another already
}

// write makes the e-mail of one message as it is at now.
func (s *sender) write(m *providers.Message, now time.Time) (*job, error) {
	l, err := compose(m)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.Grow(4096 + len(l.text) + 2*len(l.html))
	if _, err := s.msg(m, l, now).WriteTo(&b); err != nil {
		return nil, fmt.Errorf("write the message: %w", err)
	}
	raw := b.Bytes()
	if len(l.files) > 0 {
		rename(raw, m.ID)
	}
	if s.dkim != nil {
		if raw, err = s.sign(raw); err != nil {
			return nil, err
		}
	}
	return &job{
		msg: m, from: s.envelope.path(), to: l.to.path(),
		data: stuff(raw), size: len(raw), utf8: !l.to.ascii(),
	}, nil
}

// msg fills the library's message.
func (s *sender) msg(m *providers.Message, l *letter, now time.Time) *gomail.Msg {
	opts := []gomail.MsgOption{gomail.WithNoDefaultUserAgent()}
	if len(l.files) == 0 {
		opts = append(opts, gomail.WithBoundary(boundary(m.ID, 0)))
	}
	msg := gomail.NewMsg(opts...)
	from, replyTo := s.from, s.replyTo
	if l.from != nil {
		from = *l.from
	}
	if l.replyTo != nil {
		replyTo = l.replyTo
	}
	msg.FromMailAddress(from.header())
	msg.ToMailAddress(l.to.header())
	if replyTo != nil {
		msg.ReplyToMailAddress(replyTo.header())
	}
	msg.SetMessageIDWithValue(m.ID + "@" + s.messageDomain)
	msg.SetDateWithValue(dateOf(m, now))
	if l.subject != "" {
		msg.Subject(l.subject)
	}
	// RFC 3834, 5: nobody's holiday answers this.
	msg.SetGenHeader("Auto-Submitted", "auto-generated")
	for _, h := range l.headers {
		msg.SetGenHeader(gomail.Header(h[0]), h[1])
	}
	s.listHeaders(msg, l.unsubscribe)
	writeParts(msg, l)
	return msg
}

// listHeaders are RFC 2369's and, where a browser can reach us safely, RFC 8058's one click.
func (s *sender) listHeaders(msg *gomail.Msg, one string) {
	var uris []string
	for _, u := range []string{one, s.unsubscribe} {
		if u != "" {
			uris = append(uris, "<"+u+">")
		}
	}
	if len(uris) > 0 {
		msg.SetGenHeader(gomail.HeaderListUnsubscribe, uris...)
	}
	if strings.HasPrefix(one, "https://") {
		msg.SetGenHeader(gomail.HeaderListUnsubscribePost, "List-Unsubscribe=One-Click")
	}
}

func writeParts(msg *gomail.Msg, l *letter) {
	switch {
	case l.html == "":
		msg.SetBodyString(gomail.TypeTextPlain, l.text, encoding(l.text))
	case l.text == "":
		msg.SetBodyString(gomail.TypeTextHTML, l.html, encoding(l.html))
	default:
		msg.SetBodyString(gomail.TypeTextPlain, l.text, encoding(l.text))
		msg.AddAlternativeString(gomail.TypeTextHTML, l.html, encoding(l.html))
	}
	for _, f := range l.files {
		kind := gomail.WithFileContentType(gomail.ContentType(f.mediaType))
		if f.inline {
			msg.EmbedReadSeeker(f.name, bytes.NewReader(f.data), kind)
		} else {
			msg.AttachReadSeeker(f.name, bytes.NewReader(f.data), kind)
		}
	}
}

// encoding is quoted-printable, or base64 where that would more than double the size.
func encoding(s string) gomail.PartOption {
	high := 0
	for i := range len(s) {
		if s[i] >= 0x80 {
			high++
		}
	}
	if high*3 > len(s) {
		return gomail.WithPartEncoding(gomail.EncodingB64)
	}
	return gomail.WithPartEncoding(gomail.EncodingQP)
}

func dateOf(m *providers.Message, now time.Time) time.Time {
	if age := now.Sub(m.CreatedAt); age >= 0 && age <= dateKept {
		return m.CreatedAt.UTC()
	}
	return now.UTC()
}

// boundary is a delivery's n-th MIME boundary, the same on every attempt.
func boundary(id string, n int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", id, n))
	return hex.EncodeToString(sum[:30])
}

// rename gives nested multiparts boundaries that depend on the delivery alone. The library can be told
// one boundary for all levels only, which is wrong for more than one, so it makes up its own, of 60
// hexadecimal digits; they are replaced by others of that length. No body holds "boundary=" with a
// literal '=': quoted-printable and base64 do not have it.
func rename(raw []byte, id string) {
	key := []byte(" boundary=")
	for n, from := 1, 0; ; n++ {
		i := bytes.Index(raw[from:], key)
		if i < 0 {
			return
		}
		from += i + len(key)
		if len(raw) < from+60 {
			return
		}
		old := bytes.Clone(raw[from : from+60])
		if _, err := hex.Decode(make([]byte, 30), old); err != nil {
			continue // the words of somebody's subject
		}
		renamed := []byte(boundary(id, n))
		for at := 0; ; {
			j := bytes.Index(raw[at:], old)
			if j < 0 {
				break
			}
			copy(raw[at+j:], renamed)
			at += j + 60
		}
	}
}

// sign puts a DKIM-Signature before the message. go-mail can sign too, but version 0.8.1 folds a long h=
// in the middle of a name and signs it unfolded, so that nobody can verify it.
func (s *sender) sign(raw []byte) ([]byte, error) {
	signer, err := dkim.NewSigner(s.dkim)
	if err != nil {
		return nil, fmt.Errorf("sign the message: %w", err)
	}
	_, err = signer.Write(raw)
	if e := signer.Close(); err == nil {
		err = e
	}
	if err != nil {
		return nil, fmt.Errorf("sign the message: %w", err)
	}
	return append([]byte(signer.Signature()), raw...), nil
}

// stuff makes of a message what follows DATA: every line ends with CRLF and nothing else does (bare CR
// and LF are how mail is smuggled past a server, CVE-2023-51764), a line that begins with a dot gets
// another (RFC 5321, 4.5.2), and a dot alone ends it.
func stuff(raw []byte) []byte {
	out := make([]byte, 0, len(raw)+len(raw)/64+5)
	start := true
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if start && c == '.' {
			out = append(out, '.')
		}
		start = false
		switch c {
		case '\r':
			if i+1 < len(raw) && raw[i+1] == '\n' {
				i++
			}
			fallthrough
		case '\n':
			out = append(out, '\r', '\n')
			start = true
		default:
			out = append(out, c)
		}
	}
	if !start {
		out = append(out, '\r', '\n')
	}
	return append(out, '.', '\r', '\n')
}
