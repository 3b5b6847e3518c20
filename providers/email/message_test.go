package email_test

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"
	"github.com/google/go-cmp/cmp"

	"github.com/carillon-notify/carillon/providers"
	"github.com/carillon-notify/carillon/providers/email"
)

// post is a provider that is only asked to write.
func post(t testing.TB, with map[string]any) providers.Provider {
	m := map[string]any{"addr": "127.0.0.1:25", "from": "Example <no-reply@example.com>"}
	for k, v := range with {
		m[k] = v
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return openWith(t, b)
}

func block(t testing.TB, v map[string]any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// written is what a server makes of a message.
type written struct {
	from, to string
	utf8     bool
	raw      []byte
	mail     *mail.Message
	parts    []part // leaves, in order
}

type part struct {
	path        string // of media types: "multipart/mixed > text/plain"
	disposition string
	filename    string
	cid         string
	body        string
}

func write(t testing.TB, p providers.Provider, m *providers.Message, now time.Time) written {
	t.Helper()
	if err := email.Kind().Check(m); err != nil {
		t.Fatalf("Check: %v", err)
	}
	from, to, data, utf8, err := email.Write(p, m, now)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := textproto.NewReader(bufio.NewReader(bytes.NewReader(data))).ReadDotBytes()
	if err != nil {
		t.Fatal(err)
	}
	raw = bytes.ReplaceAll(raw, []byte("\n"), []byte("\r\n"))
	msg, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("%v in\n%s", err, raw)
	}
	w := written{from: from, to: to, utf8: utf8, raw: raw, mail: msg}
	w.walk(t, textproto.MIMEHeader(msg.Header), msg.Body, "")
	return w
}

func (w *written) walk(t testing.TB, h textproto.MIMEHeader, body io.Reader, path string) {
	mediaType, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	if path != "" {
		path += " > "
	}
	path += mediaType
	if strings.HasPrefix(mediaType, "multipart/") {
		for r := multipart.NewReader(body, params["boundary"]); ; {
			p, err := r.NextRawPart()
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Fatalf("%v in\n%s", err, w.raw)
			}
			w.walk(t, p.Header, p, path)
		}
	}
	switch h.Get("Content-Transfer-Encoding") {
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	}
	b, err := io.ReadAll(body)
	if err != nil {
		t.Fatalf("%v in\n%s", err, w.raw)
	}
	text := strings.ReplaceAll(string(b), "\r\n", "\n")
	if !strings.Contains(path, " > ") {
		text = strings.TrimSuffix(text, "\n") // the line end before the final dot
	}
	out := part{path: path, body: text, cid: h.Get("Content-Id")}
	if d := h.Get("Content-Disposition"); d != "" {
		kind, params, err := mime.ParseMediaType(d)
		if err != nil {
			t.Fatal(err)
		}
		out.disposition = kind
		if out.filename, err = new(mime.WordDecoder).DecodeHeader(params["filename"]); err != nil {
			t.Fatal(err)
		}
	}
	w.parts = append(w.parts, out)
}

func (w *written) header(t testing.TB, name string) string {
	t.Helper()
	s, err := new(mime.WordDecoder).DecodeHeader(w.mail.Header.Get(name))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const html = `<p>Grüße, <a href="https://example.com/o/7">7</a> <img src="cid:logo.png"></p>`

func attached(name, kind, content string, inline bool) map[string]any {
	return map[string]any{"filename": name, "content_type": kind, "content": base64.StdEncoding.EncodeToString([]byte(content)), "inline": inline}
}

var messageRows = []struct {
	name    string
	with    func(*providers.Message)
	content map[string]any
	headers map[string]string
	parts   []part
}{
	{"text", nil, nil, map[string]string{
		"From": `"Example" <no-reply@example.com>`, "To": `"Ann" <ann@example.org>`, "Subject": "Hi", "Reply-To": "",
		"Message-Id": "<01998a3e-5b1c-7d00-8000-000000000001@example.com>", "Date": "Tue, 24 Nov 2026 12:00:00 +0000",
		"Mime-Version": "1.0", "Auto-Submitted": "auto-generated", "User-Agent": "", "X-Mailer": "", "List-Unsubscribe": "",
	}, []part{{path: "text/plain", body: "Text"}}},
	{"text with a link", func(m *providers.Message) { m.URL = "https://example.com/o/7" }, nil, nil,
		[]part{{path: "text/plain", body: "Text\n\nhttps://example.com/o/7"}}},
	{"the link is there", func(m *providers.Message) {
		m.URL, m.Body = "https://example.com/o/7", "See https://example.com/o/7 now"
	}, nil, nil,
		[]part{{path: "text/plain", body: "See https://example.com/o/7 now"}}},
	{"link alone", func(m *providers.Message) { m.URL, m.Body = "https://example.com/o/7", "" }, nil, nil,
		[]part{{path: "text/plain", body: "https://example.com/o/7"}}},
	{"text and HTML", nil, map[string]any{"subject": "Größe", "html": html, "reply_to": "Help <help@example.com>", "from": `"Ann, née B" <ann@other.example>`},
		map[string]string{"Subject": "Größe", "Reply-To": `"Help" <help@example.com>`, "From": `"Ann, née B" <ann@other.example>`},
		[]part{{path: "multipart/alternative > text/plain", body: "Text"}, {path: "multipart/alternative > text/html", body: html}}},
	{"text instead of the body", nil, map[string]any{"text": "Other"}, nil, []part{{path: "text/plain", body: "Other"}}},
	{"HTML alone", func(m *providers.Message) { m.Body = "" }, map[string]any{"html": html}, nil, []part{{path: "text/html", body: html}}},
	{"subject alone", func(m *providers.Message) { m.Body = "" }, nil, nil, []part{{path: "text/plain", body: ""}}},
	{"everything", nil, map[string]any{"html": html, "headers": map[string]string{"x-order": "7", "In-Reply-To": "<a@b>", "X-Words": "Größe"},
		"attachments": []any{attached("logo.png", "image/png", "\x89PNG\r\n\x00", true), attached("Rechnung Größe.pdf", "", "%PDF", false), attached("in.ics", "text/calendar; method=REQUEST", "BEGIN", false)}},
		map[string]string{"X-Order": "7", "In-Reply-To": "<a@b>", "X-Words": "Größe"},
		[]part{
			{path: "multipart/mixed > multipart/related > multipart/alternative > text/plain", body: "Text"},
			{path: "multipart/mixed > multipart/related > multipart/alternative > text/html", body: html},
			{path: "multipart/mixed > multipart/related > image/png", disposition: "inline", filename: "logo.png", cid: "<logo.png>", body: "\x89PNG\n\x00"},
			{path: "multipart/mixed > application/pdf", disposition: "attachment", filename: "Rechnung Größe.pdf", body: "%PDF"},
			{path: "multipart/mixed > text/calendar", disposition: "attachment", filename: "in.ics", body: "BEGIN"},
		}},
	{"dots, odd line ends and bytes", func(m *providers.Message) { m.Body = ".\r\n..\rfrom\n.\n\x00\u2028 end \n.\n" }, nil, nil,
		[]part{{path: "text/plain", body: ".\n..\nfrom\n.\n\x00\u2028 end \n."}}},
	{"mostly not ASCII", func(m *providers.Message) { m.Body = strings.Repeat("漢字", 200) }, nil, nil,
		[]part{{path: "text/plain", body: strings.Repeat("漢字", 200)}}},
	{"unsubscribe", func(m *providers.Message) { m.Unsubscribe = "https://n.example/u?t=1" }, nil,
		map[string]string{"List-Unsubscribe": "<https://n.example/u?t=1>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"},
		[]part{{path: "text/plain", body: "Text"}}},
	{"unsubscribe without TLS", func(m *providers.Message) { m.Unsubscribe = "http://n.example/u" }, nil,
		map[string]string{"List-Unsubscribe": "<http://n.example/u>", "List-Unsubscribe-Post": ""},
		[]part{{path: "text/plain", body: "Text"}}},
	{"a name that tries", func(m *providers.Message) { m.Name = "Ann\r\nBcc: x@example.com\x00 \"q\" <y@example.com>" }, nil,
		map[string]string{"To": `"Ann Bcc: x@example.com \"q\" <y@example.com>" <ann@example.org>`, "Bcc": ""},
		[]part{{path: "text/plain", body: "Text"}}},
	{"long words", func(m *providers.Message) { m.Title = strings.Repeat("x", 900); m.Body = strings.Repeat("y", 5000) }, map[string]any{"headers": map[string]string{"X-Long": strings.Repeat("z", 900)}},
		map[string]string{"Subject": strings.Repeat("x", 900)}, []part{{path: "text/plain", body: strings.Repeat("y", 5000)}}},
	{"many spaces", func(m *providers.Message) {
		m.Title = " a  " + strings.Repeat("b", 74) + "  " + strings.Repeat("c", 74) + " "
	}, nil,
		map[string]string{"Subject": "a " + strings.Repeat("b", 74) + " " + strings.Repeat("c", 74)}, []part{{path: "text/plain", body: "Text"}}},
}

func TestMessage(t *testing.T) {
	t.Parallel()
	for _, tt := range messageRows {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := post(t, nil)
			m := message(tt.with)
			if tt.content != nil {
				m.Content = block(t, tt.content)
			}
			w := write(t, p, m, noon.Add(time.Minute))
			if w.from != "<no-reply@example.com>" || w.to != "<ann@example.org>" || w.utf8 {
				t.Errorf("envelope is %s %s %v", w.from, w.to, w.utf8)
			}
			for name, want := range tt.headers {
				got := w.header(t, name)
				if slices.Contains([]string{"From", "To", "Reply-To"}, name) && want != "" {
					a, err := mail.ParseAddress(w.mail.Header.Get(name))
					if err != nil {
						t.Fatal(err)
					}
					wanted, err := mail.ParseAddress(want)
					if err != nil {
						t.Fatal(err)
					}
					got, want = a.String(), wanted.String()
				}
				if got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
			if diff := cmp.Diff(tt.parts, w.parts, cmp.AllowUnexported(part{})); diff != "" {
				t.Errorf("parts (-want +got):\n%s\n%s", diff, w.raw)
			}
			wellFormed(t, p, m)
			again := write(t, p, m, noon.Add(2*time.Minute))
			if !bytes.Equal(w.raw, again.raw) {
				t.Errorf("a second attempt is another message:\n%s", cmp.Diff(string(w.raw), string(again.raw)))
			}
		})
	}
}

// wellFormed looks at the bytes as they go over the wire.
func wellFormed(t testing.TB, p providers.Provider, m *providers.Message) {
	t.Helper()
	from, to, data, utf8, err := email.Write(p, m, noon)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{from, to} {
		if strings.ContainsAny(path[1:len(path)-1], " \t\r\n<>\x00") && !strings.Contains(path, `"`) {
			t.Errorf("path is %q", path)
		}
	}
	head := true
	lines := strings.SplitAfter(string(data), "\n")
	if lines[len(lines)-1] != "" || lines[len(lines)-2] != ".\r\n" {
		t.Errorf("the message does not end with a dot: %q", lines[max(0, len(lines)-3):])
	}
	for i, l := range lines[:len(lines)-2] {
		text, ok := strings.CutSuffix(l, "\r\n")
		if !ok || strings.ContainsAny(text, "\r\n\x00") {
			t.Errorf("line %d has an odd end or byte: %q", i, l)
		}
		if text == "." {
			t.Errorf("line %d ends the message before its end", i)
		}
		if len(text) > 998 {
			t.Errorf("line %d has %d bytes, RFC 5322 allows 998", i, len(text))
		}
		for j := range len(text) {
			if text[j] >= 0x80 && !utf8 {
				t.Errorf("line %d is not ASCII: %q", i, text)
				break
			}
		}
		if head && text != "" && strings.TrimSpace(text) == "" {
			t.Errorf("line %d of the header is blank but for spaces", i)
		}
		head = head && text != ""
	}
}

func TestDateIsHonest(t *testing.T) {
	t.Parallel()
	p := post(t, nil)
	m := message(nil)
	for age, want := range map[time.Duration]string{
		-time.Second: "Tue, 24 Nov 2026 11:59:59 +0000", 0: "Tue, 24 Nov 2026 12:00:00 +0000",
		15 * time.Minute: "Tue, 24 Nov 2026 12:00:00 +0000", 72 * time.Hour: "Fri, 27 Nov 2026 12:00:00 +0000",
	} {
		w := write(t, p, m, noon.Add(age))
		if got := w.header(t, "Date"); got != want {
			t.Errorf("after %v: dated %s, want %s", age, got, want)
		}
	}
}

func TestSenderSettings(t *testing.T) {
	t.Parallel()
	p := post(t, map[string]any{"from": "Büro <info@bücher.example>", "envelope_from": "bounce@mail.example.com", "reply_to": "help@example.com",
		"message_id_domain": "mail.example.com", "list_unsubscribe": "mailto:unsubscribe@example.com?subject=stop"})
	w := write(t, p, message(func(m *providers.Message) { m.Unsubscribe = "https://n.example/u" }), noon)
	if w.from != "<bounce@mail.example.com>" {
		t.Errorf("envelope from is %s", w.from)
	}
	for name, want := range map[string]string{
		"From": `Büro <info@xn--bcher-kva.example>`, "Reply-To": "<help@example.com>", "Message-Id": "<01998a3e-5b1c-7d00-8000-000000000001@mail.example.com>",
		"List-Unsubscribe": "<https://n.example/u>, <mailto:unsubscribe@example.com?subject=stop>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
	} {
		if got := w.header(t, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	w = write(t, p, message(nil), noon)
	if got := w.header(t, "List-Unsubscribe") + w.header(t, "List-Unsubscribe-Post"); got != "<mailto:unsubscribe@example.com?subject=stop>" {
		t.Errorf("without a URL of the recipient's own: %q", got)
	}
}

func TestInternationalAddresses(t *testing.T) {
	t.Parallel()
	p := post(t, nil)
	w := write(t, p, message(func(m *providers.Message) { m.Address = "ann@bücher.example" }), noon)
	if w.to != "<ann@xn--bcher-kva.example>" || w.utf8 {
		t.Errorf("an international domain: %s, SMTPUTF8 %v", w.to, w.utf8)
	}
	m := message(func(m *providers.Message) { m.Address, m.Name = "用户@例え.jp", "" })
	w = write(t, p, m, noon)
	if w.to != "<用户@xn--r8jz45g.jp>" || !w.utf8 {
		t.Errorf("an international mailbox: %s, SMTPUTF8 %v", w.to, w.utf8)
	}
	wellFormed(t, p, m)
}

func TestDKIM(t *testing.T) {
	t.Parallel()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	edPublic, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaPublic, err := x509.MarshalPKIXPublicKey(rsaKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		key    any
		record string
	}{
		{"RSA", rsaKey, "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(rsaPublic)},
		{"Ed25519", edKey, "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(edPublic)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			der, err := x509.MarshalPKCS8PrivateKey(tt.key)
			if err != nil {
				t.Fatal(err)
			}
			p := post(t, map[string]any{"dkim": map[string]any{"domain": "example.com", "selector": "s1", "key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))}})
			m := message(func(m *providers.Message) {
				m.Unsubscribe, m.Body = "https://n.example/u", ".\r\nGrüße \n\n..\n  \n"
				m.Content = block(t, map[string]any{"html": html, "attachments": []any{map[string]any{"filename": "a.txt", "content": "aGk="}}})
			})
			wellFormed(t, p, m)
			w := write(t, p, m, noon)
			lookup := func(domain string) ([]string, error) {
				if domain != "s1._domainkey.example.com" {
					t.Errorf("looked up %s", domain)
				}
				return []string{tt.record}, nil
			}
			verify := func(raw []byte) error {
				vs, err := dkim.VerifyWithOptions(bytes.NewReader(raw), &dkim.VerifyOptions{LookupTXT: lookup})
				if err != nil || len(vs) != 1 {
					t.Fatalf("%d signatures, %v", len(vs), err)
				}
				for _, h := range []string{"From", "To", "Subject", "Date", "Message-ID", "List-Unsubscribe", "List-Unsubscribe-Post", "Reply-To"} {
					if !slices.ContainsFunc(vs[0].HeaderKeys, func(k string) bool { return strings.EqualFold(k, h) }) {
						t.Errorf("%s is not signed", h)
					}
				}
				return vs[0].Err
			}
			if err := verify(w.raw); err != nil {
				t.Errorf("%v\n%s", err, w.raw)
			}
			for _, change := range [][2]string{{"https://n.example/u", "https://evil.example/u"}, {"Gr=C3=BC", "Gr=C3=BB"}, {"\r\nTo:", "\r\nReply-To: x@evil.example\r\nTo:"}} {
				changed := bytes.Replace(w.raw, []byte(change[0]), []byte(change[1]), 1)
				if bytes.Equal(changed, w.raw) {
					t.Fatalf("%q is not there", change[0])
				}
				if verify(changed) == nil {
					t.Errorf("%q was changed and nobody noticed", change[0])
				}
			}
		})
	}
}

// content sets one member of the block.
func content(key string, v any) func(*providers.Message) {
	return func(m *providers.Message) {
		b, err := json.Marshal(map[string]any{key: v})
		if err != nil {
			panic(err)
		}
		m.Content = b
	}
}

func file(name, kind, content string) map[string]any {
	return map[string]any{"filename": name, "content_type": kind, "content": content}
}

func files(f ...any) func(*providers.Message) { return content("attachments", f) }

var threeMiB = base64.StdEncoding.EncodeToString(make([]byte, 3<<20))

var refusedRows = []struct {
	name string
	with func(*providers.Message)
	want string
}{
	{"nothing to say", func(m *providers.Message) { m.Title, m.Body = "", "" }, "needs a subject"},
	{"line break in the title", func(m *providers.Message) { m.Title = "Hi\r\nBcc: x@example.com" }, "subject"},
	{"bare LF in the subject", content("subject", "Hi\nBcc: x@example.com"), "subject"},
	{"bare CR in the subject", content("subject", "Hi\rBcc: x@example.com"), "subject"},
	{"NUL in the subject", content("subject", "Hi\x00"), "subject"},
	{"line separator in the subject", content("subject", "Hi\u2028x"), "subject"},
	{"next line in the subject", content("subject", "Hi\u0085x"), "subject"},
	{"long subject", content("subject", strings.Repeat("x", 901)), "900"},
	{"line break in the address", func(m *providers.Message) { m.Address = "ann@example.org\r\nRCPT TO:<x@example.com>" }, "address"},
	{"NUL in the address", func(m *providers.Message) { m.Address = "ann\x00@example.org" }, "address"},
	{"name in the address", func(m *providers.Message) { m.Address = "Ann <ann@example.org>" }, "address"},
	{"two addresses", func(m *providers.Message) { m.Address = "a@example.org, b@example.org" }, "address"},
	{"comment in the address", func(m *providers.Message) { m.Address = "a@example.org (x)" }, "address"},
	{"no @", func(m *providers.Message) { m.Address = "ann" }, "address"},
	{"no domain", func(m *providers.Message) { m.Address = "ann@" }, "address"},
	{"no mailbox", func(m *providers.Message) { m.Address = "@example.org" }, "address"},
	{"literal", func(m *providers.Message) { m.Address = "ann@[127.0.0.1]" }, "address"},
	{"bad domain", func(m *providers.Message) { m.Address = "ann@exa_mple..org" }, "address"},
	{"long mailbox", func(m *providers.Message) { m.Address = strings.Repeat("a", 65) + "@example.org" }, "64"},
	{"long address", func(m *providers.Message) { m.Address = "a@" + strings.Repeat("abcdefgh.", 28) + "example" }, "254"},
	{"a quoted mailbox that smuggles", func(m *providers.Message) { m.Address = `"a> ORCPT=x@example.com"@example.org` }, "address"},
	{"bad from", content("from", "nobody"), "email.from"},
	{"two from", content("from", "a@example.com, b@example.com"), "email.from"},
	{"line break in from", content("from", "A\r\nBcc: x@example.com <a@example.com>"), "email.from"},
	{"bad reply_to", content("reply_to", "x"), "email.reply_to"},
	{"international reply_to", content("reply_to", "用户@example.com"), "email.reply_to"},
	{"header to", content("headers", map[string]string{"To": "x@example.com"}), "To cannot be set"},
	{"header bcc", content("headers", map[string]string{"bCC": "x@example.com"}), "Bcc cannot be set"},
	{"header from", content("headers", map[string]string{"From": "x@example.com"}), "cannot be set"},
	{"header message-id", content("headers", map[string]string{"Message-ID": "<x@y>"}), "cannot be set"},
	{"header DKIM", content("headers", map[string]string{"DKIM-Signature": "v=1"}), "cannot be set"},
	{"header content-type", content("headers", map[string]string{"Content-Type": "text/html"}), "cannot be set"},
	{"header received", content("headers", map[string]string{"Received": "x"}), "cannot be set"},
	{"header list-unsubscribe", content("headers", map[string]string{"List-Unsubscribe": "<x>"}), "cannot be set"},
	{"header name with a colon", content("headers", map[string]string{"X-A: b\r\nBcc": "x"}), "a name has"},
	{"header name empty", content("headers", map[string]string{"": "x"}), "a name has"},
	{"header twice", content("headers", map[string]string{"X-A": "1", "x-a": "2"}), "twice"},
	{"header value with a line break", content("headers", map[string]string{"X-A": "1\r\nBcc: x@example.com"}), "X-A"},
	{"header value folded", content("headers", map[string]string{"X-A": "1\r\n 2"}), "X-A"},
	{"header value long", content("headers", map[string]string{"X-A": strings.Repeat("x", 901)}), "900"},
	{"attachments too big", files(file("a", "", threeMiB), file("b", "", threeMiB)), "5 MiB"},
	{"not base64", files(file("a", "", "?")), "base64"},
	{"no filename", files(file("", "", "")), "filename"},
	{"path in the filename", files(file("../a", "", "")), "filename"},
	{"line break in the filename", files(file("a\r\nX: y", "", "")), "filename"},
	{"long filename", files(file(strings.Repeat("x", 201), "", "")), "filename"},
	{"bad type", files(file("a", "pdf", "")), "content_type"},
	{"type that injects", files(file("a", "text/plain\r\nX: y", "")), "content_type"},
	{"type that nests", files(file("a", "multipart/mixed; boundary=x", "")), "content_type"},
	{"type of a message", files(file("a", "message/rfc822", "")), "content_type"},
	{"two inline of one name", files(map[string]any{"filename": "a", "content": "", "inline": true}, map[string]any{"filename": "a", "content": "", "inline": true}), "same name"},
	{"unknown member", content("subjct", "x"), "subjct"},
	{"member of the wrong type", content("subject", 5), "email.subject cannot be a number"},
	{"not an object", func(m *providers.Message) { m.Content = json.RawMessage(`[]`) }, "content"},
	{"two objects", func(m *providers.Message) { m.Content = json.RawMessage(`{}{}`) }, "one JSON object"},
	{"unsubscribe that injects", func(m *providers.Message) { m.Unsubscribe = "https://x/\r\nBcc: y" }, "unsubscribe"},
	{"unsubscribe that closes", func(m *providers.Message) { m.Unsubscribe = "https://x/>,<mailto:y@z" }, "unsubscribe"},
	{"unsubscribe by script", func(m *providers.Message) { m.Unsubscribe = "javascript:alert(1)" }, "unsubscribe"},
}

func TestCheckRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range refusedRows {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := message(tt.with)
			before, _ := json.Marshal(m)
			err := email.Kind().Check(m)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Check says %v, want something about %q", err, tt.want)
			}
			if after, _ := json.Marshal(m); string(after) != string(before) {
				t.Error("Check changed the message")
			}
		})
	}
}

func TestStuff(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                 "\r\n.\r\n"[2:],
		"a":                "a\r\n.\r\n",
		"a\r\n":            "a\r\n.\r\n",
		".\r\n":            "..\r\n.\r\n",
		"a\n.\nb":          "a\r\n..\r\nb\r\n.\r\n",
		"a\r.\rb":          "a\r\n..\r\nb\r\n.\r\n",
		"a\n\r.\r\n":       "a\r\n\r\n..\r\n.\r\n",
		"a\r\n.\nMAIL\r\n": "a\r\n..\r\nMAIL\r\n.\r\n",
		"..a":              "...a\r\n.\r\n",
	} {
		if got := string(email.Stuff([]byte(in))); got != want {
			t.Errorf("Stuff(%q) = %q, want %q", in, got, want)
		}
	}
}

// Whatever Check takes is one well-formed message to one recipient, and nothing in it became a header
// field, a recipient or a command.
func FuzzMessage(f *testing.F) {
	f.Add("ann@example.org", "Ann", "Hi", "Text", "X-A", "1", "a.txt", "text/plain", "https://n.example/u")
	f.Add(`"a b"@example.org`, "A\r\nBcc: x@y.zz", "Hi\r\nBcc: x@y.zz", ".\r\nMAIL FROM:<x>\r\n", "X-A: 1\r\nBcc", "1\r\nBcc: x", "a\"; x=\"b", "text/plain; a=\"b\r\nc\"", "https://x/>, <y")
	f.Add("用户@例え.jp", "=?utf-8?q?x=0D=0ABcc:_y?=", "=?utf-8?q?x=0D=0ABcc:_y?=", "\r.\r", "X-", "\u2028", "\xff", "a/b", "http://x")
	p := post(f, nil)
	f.Fuzz(func(t *testing.T, address, name, title, body, key, value, filename, mediaType, unsubscribe string) {
		m := message(func(m *providers.Message) {
			m.Address, m.Name, m.Title, m.Body, m.Unsubscribe = address, name, title, body, unsubscribe
		})
		m.Content = block(t, map[string]any{"headers": map[string]string{key: value}, "attachments": []any{map[string]any{"filename": filename, "content_type": mediaType, "content": "aGk="}}})
		if email.Kind().Check(m) != nil {
			return
		}
		wellFormed(t, p, m)
		w := write(t, p, m, noon)
		known := []string{"From", "To", "Subject", "Message-Id", "Date", "Mime-Version", "Auto-Submitted", "Content-Type", "Content-Transfer-Encoding",
			"List-Unsubscribe", "List-Unsubscribe-Post", textproto.CanonicalMIMEHeaderKey(key)}
		for k, v := range w.mail.Header {
			if !slices.Contains(known, k) || len(v) != 1 {
				t.Errorf("header field %s: %q", k, v)
			}
		}
		to, err := w.mail.Header.AddressList("To")
		if err != nil || len(to) != 1 {
			t.Fatalf("To is %q: %v", w.mail.Header.Get("To"), err)
		}
		if got := (&mail.Address{Address: to[0].Address}).String(); got != w.to {
			t.Errorf("To is %s, the envelope %s", got, w.to)
		}
		if n := len(w.parts); n != 2 {
			t.Errorf("%d parts", n)
		}
	})
}
