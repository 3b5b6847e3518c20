package email

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/textproto"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/carillon-notify/carillon/providers"
	jsonv2 "github.com/go-json-experiment/json"
)

const (
	maxAttachments     = 5 << 20 // bytes of all attachments of a message, decoded
	maxAttachmentCount = 50
	maxFilename        = 200 // bytes
	maxHeaders         = 50
	maxHeaderValue     = 900 // bytes; with its name it stays below RFC 5322's 998 a line
	maxUnsubscribe     = 900 // bytes of an unsubscribe URL
)

// schema is the e-mail channel's content block. Check says the rest.
const schema = `{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "type": "object",
  "properties": {
    "subject": {"type": "string", "maxLength": 900, "pattern": "^[^\\x00-\\x1f\\x7f]*$", "description": "Empty takes the title."},
    "html": {"type": "string", "description": "The HTML part."},
    "text": {"type": "string", "description": "The text part; empty takes the body."},
    "from": {"type": "string", "maxLength": 500, "pattern": "^[^\\x00-\\x1f\\x7f]*$", "description": "Instead of the route's From; the envelope keeps the route's."},
    "reply_to": {"type": "string", "maxLength": 500, "pattern": "^[^\\x00-\\x1f\\x7f]*$"},
    "headers": {
      "type": "object", "maxProperties": 50,
      "propertyNames": {"pattern": "^[A-Za-z0-9-]{1,76}$"},
      "additionalProperties": {"type": "string", "maxLength": 900, "pattern": "^[^\\x00-\\x1f\\x7f]*$"},
      "description": "X-… and a few others, see the documentation."
    },
    "attachments": {
      "type": "array", "maxItems": 50,
      "items": {
        "type": "object",
        "properties": {
          "filename": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[^\\x00-\\x1f\\x7f/\\\\]*$"},
          "content_type": {"type": "string", "maxLength": 200, "pattern": "^[^\\x00-\\x1f\\x7f]*$"},
          "content": {"type": "string", "contentEncoding": "base64"},
          "inline": {"type": "boolean", "description": "Shown by the HTML part, which names it as cid:<filename>."}
        },
        "required": ["filename", "content"],
        "additionalProperties": false
      }
    }
  }
}`

// block is the e-mail channel's content.
type block struct {
	Subject     string            `json:"subject"`
	HTML        string            `json:"html"`
	Text        string            `json:"text"`
	From        string            `json:"from"`
	ReplyTo     string            `json:"reply_to"`
	Headers     map[string]string `json:"headers"`
	Attachments []attachment      `json:"attachments"`
}

type attachment struct {
	Filename    string `json:"filename"`
	ContentType string `json:"content_type"`
	Content     string `json:"content"`
	Inline      bool   `json:"inline"`
}

// letter is a message that was looked at and is known to be harmless: what remains is writing it.
type letter struct {
	to          mailbox
	from        *mailbox // nil: the route's
	replyTo     *mailbox // nil: the route's
	subject     string
	text, html  string
	headers     [][2]string // canonical names, sorted
	files       []file
	unsubscribe string
}

type file struct {
	name, mediaType string
	data            []byte
	inline          bool
}

// compose looks at everything that was given for one message.
func compose(m *providers.Message) (*letter, error) {
	var b block
	// encoding/json reads a mail's HTML three times over; it is asked what is wrong where something is.
	if len(m.Content) > 0 && jsonv2.Unmarshal(m.Content, &b, jsonv2.RejectUnknownMembers(true)) != nil {
		b = block{}
		d := json.NewDecoder(bytes.NewReader(m.Content))
		d.DisallowUnknownFields()
		if err := d.Decode(&b); err != nil {
			var wrong *json.UnmarshalTypeError // its text names our types
			if errors.As(err, &wrong) {
				return nil, fmt.Errorf("content: email.%s cannot be a %s", wrong.Field, wrong.Value)
			}
			return nil, fmt.Errorf("content: %w", err)
		}
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			return nil, errors.New("content: one JSON object is wanted")
		}
	}
	l := &letter{text: lines(b.Text), html: lines(b.HTML)}
	for _, step := range []func(*providers.Message, *block) error{l.address, l.words, l.customHeaders, l.attach} {
		if err := step(m, &b); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *letter) address(m *providers.Message, b *block) error {
	to, err := parseBare(m.Address)
	if err != nil {
		return fmt.Errorf("%w: %w", providers.ErrAddress, err)
	}
	to.name = tidy(m.Name, maxName)
	l.to = to
	for _, f := range []struct {
		name, value string
		into        **mailbox
	}{{"from", b.From, &l.from}, {"reply_to", b.ReplyTo, &l.replyTo}} {
		if f.value == "" {
			continue
		}
		a, err := parse(f.value)
		if err != nil {
			return fmt.Errorf("email.%s: %w", f.name, err)
		}
		if !a.ascii() {
			return fmt.Errorf("email.%s: the part before the @ must be ASCII", f.name)
		}
		*f.into = &a
	}
	if m.Unsubscribe != "" {
		if err := webURL(m.Unsubscribe); err != nil {
			return fmt.Errorf("the unsubscribe URL: %w", err)
		}
		l.unsubscribe = m.Unsubscribe
	}
	return nil
}

func (l *letter) words(m *providers.Message, b *block) error {
	subject := b.Subject
	if subject == "" {
		subject = m.Title
	}
	if err := clean(subject); err != nil {
		return fmt.Errorf("email.subject (or title): %w", err)
	}
	if len(subject) > maxHeaderValue {
		return fmt.Errorf("email.subject (or title): has %d bytes, at most %d fit", len(subject), maxHeaderValue)
	}
	l.subject = tidy(subject, maxHeaderValue)
	if l.text == "" {
		l.text = lines(m.Body)
	}
	if m.URL != "" && !strings.Contains(l.text, m.URL) && (l.text != "" || l.html == "") {
		if l.text != "" {
			l.text = strings.TrimRight(l.text, "\n") + "\n\n"
		}
		l.text += lines(m.URL) + "\n"
	}
	if l.subject == "" && l.text == "" && l.html == "" {
		return errors.New("an e-mail needs a subject, a text or HTML")
	}
	return nil
}

// allowedHeaders are those that a message may set besides X-…; all others are ours or the server's.
var allowedHeaders = []string{
	"Auto-Submitted", "Comments", "Content-Language", "Feedback-Id", "Importance", "In-Reply-To", "Keywords", "List-Archive", "List-Help",
	"List-Id", "List-Owner", "List-Post", "List-Subscribe", "Organization", "Precedence", "Priority", "References", "Sensitivity",
}

var headerName = regexp.MustCompile(`^[A-Za-z0-9-]{1,76}$`)

func (l *letter) customHeaders(_ *providers.Message, b *block) error {
	if len(b.Headers) > maxHeaders {
		return fmt.Errorf("email.headers: at most %d", maxHeaders)
	}
	seen := map[string]bool{}
	for name, value := range b.Headers {
		if !headerName.MatchString(name) {
			return errors.New("email.headers: a name has 1 to 76 letters, digits and '-'")
		}
		key := textproto.CanonicalMIMEHeaderKey(name)
		if !strings.HasPrefix(key, "X-") && !slices.Contains(allowedHeaders, key) {
			return fmt.Errorf("email.headers: %s cannot be set; X-… and %s can", key, strings.Join(allowedHeaders, ", "))
		}
		if seen[key] {
			return fmt.Errorf("email.headers: %s is there twice", key)
		}
		seen[key] = true
		if err := clean(value); err != nil {
			return fmt.Errorf("email.headers.%s: %w", key, err)
		}
		if len(value) > maxHeaderValue {
			return fmt.Errorf("email.headers.%s: has %d bytes, at most %d fit", key, len(value), maxHeaderValue)
		}
		if value = tidy(value, maxHeaderValue); value != "" {
			l.headers = append(l.headers, [2]string{key, value})
		}
	}
	slices.SortFunc(l.headers, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return nil
}

func (l *letter) attach(_ *providers.Message, b *block) error {
	if len(b.Attachments) > maxAttachmentCount {
		return fmt.Errorf("email.attachments: at most %d", maxAttachmentCount)
	}
	total := 0
	for i, a := range b.Attachments {
		if total += base64.StdEncoding.DecodedLen(len(a.Content)) - strings.Count(a.Content, "="); total > maxAttachments {
			return fmt.Errorf("email.attachments: more than %d MiB in all; send a link instead", maxAttachments>>20)
		}
		f, err := fileOf(a)
		if err != nil {
			return fmt.Errorf("email.attachments[%d]: %w", i, err)
		}
		if slices.ContainsFunc(l.files, func(o file) bool { return f.inline && o.inline && o.name == f.name }) {
			return fmt.Errorf("email.attachments[%d]: another inline file has the same name, and a cid: must mean one", i)
		}
		l.files = append(l.files, f)
	}
	return nil
}

func fileOf(a attachment) (file, error) {
	f := file{name: a.Filename, inline: a.Inline}
	if err := clean(a.Filename); err != nil {
		return f, fmt.Errorf("filename: %w", err)
	}
	if a.Filename == "" || len(a.Filename) > maxFilename || strings.ContainsAny(a.Filename, `/\`) {
		return f, fmt.Errorf(`filename: 1 to %d bytes without "/" and "\"`, maxFilename)
	}
	given := a.ContentType
	if given == "" {
		given = mime.TypeByExtension(path.Ext(a.Filename))
	}
	if given == "" {
		given = "application/octet-stream"
	}
	if err := clean(given); err != nil {
		return f, fmt.Errorf("content_type: %w", err)
	}
	mediaType, params, err := mime.ParseMediaType(given)
	if err != nil || !strings.Contains(mediaType, "/") || !isASCII(given) || len(given) > 200 {
		return f, errors.New(`content_type: not a media type such as "application/pdf"`)
	}
	if strings.HasPrefix(mediaType, "multipart/") || strings.HasPrefix(mediaType, "message/") {
		return f, errors.New("content_type: multipart/… and message/… cannot be attached (RFC 2045, 6.4: they must not be in base64)")
	}
	delete(params, "name") // made of the filename
	if f.mediaType = mime.FormatMediaType(mediaType, params); f.mediaType == "" {
		return f, errors.New(`content_type: not a media type such as "application/pdf"`)
	}
	if f.data, err = base64.StdEncoding.DecodeString(a.Content); err != nil {
		return f, errors.New("content: is not base64 (RFC 4648, 4)")
	}
	return f, nil
}

// webURL looks at a URL that becomes part of a header field.
func webURL(s string) error {
	if err := clean(s); err != nil {
		return err
	}
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || strings.ContainsAny(s, "<>, \"") || !isASCII(s) {
		return errors.New("is not an http or https URL, or has characters that must be escaped in one")
	}
	if len(s) > maxUnsubscribe {
		return fmt.Errorf("has %d bytes, at most %d fit", len(s), maxUnsubscribe)
	}
	return nil
}

var lineEnds = strings.NewReplacer("\r\n", "\n", "\r", "\n")

// lines makes every line end of s the same; CRLF comes when the message is written.
func lines(s string) string { return lineEnds.Replace(strings.ToValidUTF8(s, "\uFFFD")) }
