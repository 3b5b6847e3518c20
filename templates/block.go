package templates

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	emailChannel = "email"
	// MaxBlockDepth bounds the nesting of data and of a channel's block.
	MaxBlockDepth = 32
	// MaxParts bounds the parts of one locale that have Liquid in them.
	MaxParts = 200
	// MaxSource bounds one locale's data and channel blocks, in bytes.
	MaxSource = 1 << 20
)

// block is a compiled JSON value: JSON text, interrupted by parts.
type block []segment

// segment is JSON text and then, unless part is nil, the rendered part as a JSON string.
type segment struct {
	json string
	part *part
	role role
}

// role says what a part of an e-mail is beyond a text.
type role uint8

const (
	ordinary    role = iota
	mailSubject      // email.subject
	mailHTML         // email.html, wrapped by the layout's HTML
	mailText         // email.text, wrapped by the layout's text
	madeText         // the same, made from email.html
)

// blockCompiler compiles one JSON value.
type blockCompiler struct {
	f     *faults
	dec   *json.Decoder
	out   block
	json  bytes.Buffer
	email bool
	text  *string // the e-mail's text, put behind the rest: it may have to be made from the HTML
	html  bool    // the e-mail has HTML that is not empty
}

func compileBlock(raw json.RawMessage, at string, email bool, f *faults) block {
	if len(raw) > MaxSource {
		f.add(at, CodeLimit, "the block is larger than %d KiB", MaxSource>>10)
		return nil
	}
	if !utf8.Valid(raw) {
		f.add(at, CodeEncoding, "the block is not UTF-8")
		return nil
	}
	c := &blockCompiler{f: f, dec: json.NewDecoder(bytes.NewReader(raw)), email: email}
	c.dec.UseNumber()
	if err := c.value(at, 0, ordinary); err != nil {
		f.add(at, CodeEncoding, "%s", err)
		return nil
	}
	c.out = append(c.out, segment{json: c.json.String()})
	return c.out
}

func (c *blockCompiler) value(at string, depth int, r role) error {
	tok, err := c.dec.Token()
	if err != nil {
		return fmt.Errorf("not JSON")
	}
	if r != ordinary {
		if _, ok := tok.(string); !ok && tok != nil {
			c.f.add(at, CodeType, "must be a string")
			r = ordinary
		}
	}
	switch t := tok.(type) {
	case json.Delim:
		if depth >= MaxBlockDepth {
			return fmt.Errorf("nested deeper than %d", MaxBlockDepth)
		}
		if t == '{' {
			return c.object(at, depth)
		}
		return c.array(at, depth)
	case string:
		c.leaf(t, at, r)
	case json.Number:
		c.json.WriteString(t.String())
	case bool:
		c.json.WriteString(strconv.FormatBool(t))
	case nil:
		c.json.WriteString("null")
	}
	return nil
}

func (c *blockCompiler) array(at string, depth int) error {
	c.json.WriteByte('[')
	for i := 0; c.dec.More(); i++ {
		if i > 0 {
			c.json.WriteByte(',')
		}
		if err := c.value(pointer(at, itoa(i)), depth+1, ordinary); err != nil {
			return err
		}
	}
	c.json.WriteByte(']')
	_, err := c.dec.Token()
	return err
}

func (c *blockCompiler) object(at string, depth int) error {
	c.json.WriteByte('{')
	seen := map[string]bool{}
	first := true
	for c.dec.More() {
		tok, err := c.dec.Token()
		if err != nil {
			return fmt.Errorf("not JSON")
		}
		name, _ := tok.(string)
		at := pointer(at, name)
		if seen[name] {
			c.f.add(at, CodeMember, "the member is there twice")
		}
		seen[name] = true
		if c.email && depth == 0 && name == "text" {
			if err := c.mailText(at); err != nil {
				return err
			}
			continue
		}
		if !first {
			c.json.WriteByte(',')
		}
		first = false
		c.json.Write(appendQuoted(nil, name))
		c.json.WriteByte(':')
		r := ordinary
		if c.email && depth == 0 {
			switch name {
			case "subject":
				r = mailSubject
			case "html":
				r = mailHTML
			case "mjml":
				c.f.add(at, CodeOffered, "mjml is not offered yet; use html")
			}
		}
		if err := c.value(at, depth+1, r); err != nil {
			return err
		}
	}
	if c.email && depth == 0 {
		c.endMail(at, first)
	}
	c.json.WriteByte('}')
	_, err := c.dec.Token()
	return err
}

// mailText reads the text of an e-mail and keeps it for endMail.
func (c *blockCompiler) mailText(at string) error {
	var raw json.RawMessage
	if err := c.dec.Decode(&raw); err != nil {
		return fmt.Errorf("not JSON")
	}
	s := text(raw, at, c.f)
	c.text = &s
	return nil
}

// endMail writes the text: the one that is there, else one made from the HTML.
func (c *blockCompiler) endMail(at string, first bool) {
	if c.text == nil && !c.html {
		return
	}
	if !first {
		c.json.WriteByte(',')
	}
	c.json.WriteString(`"text":`)
	at = pointer(at, "text")
	if c.html && (c.text == nil || strings.TrimSpace(*c.text) == "") {
		c.slot(&part{at: at}, madeText)
		return
	}
	c.leaf(*c.text, at, mailText)
}

func (c *blockCompiler) leaf(s, at string, r role) {
	p := &part{at: at, html: r == mailHTML, trim: r == mailSubject}
	parse(s, p, false, c.f)
	if r == mailHTML {
		c.html = strings.TrimSpace(s) != ""
		if !c.html {
			r = ordinary
		}
	}
	if p.nodes == nil && r == ordinary {
		c.json.Write(appendQuoted(nil, p.plain))
		return
	}
	c.slot(p, r)
}

func (c *blockCompiler) slot(p *part, r role) {
	c.out = append(c.out, segment{json: c.json.String(), part: p, role: r})
	c.json.Reset()
}

func itoa(i int) string { return strconv.Itoa(i) }

// asIs are the bytes that a JSON string has as they are.
var asIs = func() (t [256]bool) {
	for b := byte(' '); b < utf8.RuneSelf; b++ {
		t[b] = b != '"' && b != '\\'
	}
	return t
}()

// appendQuoted appends s as a JSON string (RFC 8259 section 7). It escapes what must be escaped, and
// U+2028 and U+2029, but not <, > and &, which would make HTML half as long again.
func appendQuoted[T string | []byte](dst []byte, s T) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); {
		b := s[i]
		if asIs[b] {
			i++
			continue
		}
		if b < utf8.RuneSelf {
			dst = append(dst, s[from:i]...)
			switch b {
			case '"', '\\':
				dst = append(dst, '\\', b)
			case '\n':
				dst = append(dst, '\\', 'n')
			case '\r':
				dst = append(dst, '\\', 'r')
			case '\t':
				dst = append(dst, '\\', 't')
			default:
				dst = append(dst, '\\', 'u', '0', '0', hex[b>>4], hex[b&15])
			}
			i++
			from = i
			continue
		}
		r, n := utf8.DecodeRuneInString(string(s[i:min(len(s), i+utf8.UTFMax)]))
		if r == utf8.RuneError && n == 1 || r == '\u2028' || r == '\u2029' {
			dst = append(dst, s[from:i]...)
			if n == 1 {
				dst = append(dst, "\uFFFD"...)
			} else {
				dst = append(dst, '\\', 'u', '2', '0', '2', hex[r&15])
			}
			from = i + n
		}
		i += n
	}
	return append(append(dst, s[from:]...), '"')
}
