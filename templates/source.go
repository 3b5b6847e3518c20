package templates

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"sort"
)

// Source is one version of a template as it was written: the body of PUT /v1/templates/{name}, or a file.
type Source struct {
	// Name is the template's; it is not part of the JSON.
	Name string
	// Locales holds one document for each locale: "default", which must be there, and BCP 47 tags.
	Locales map[string]Parts
	// Schema is the JSON Schema (draft 2020-12) that the data must satisfy, nil for none.
	Schema json.RawMessage
	// Layout names the layout around the e-mail's parts, "" for none.
	Layout string
}

// Parts is the document of one locale, and also the shape of a request's own content.
type Parts struct {
	Title, Body, URL string
	// Data is a JSON object for the receiving client, or nil. Its string values are Liquid, too.
	Data json.RawMessage
	// Channels holds a JSON object for each channel that has a block of its own. String values are
	// Liquid; members' names are not.
	Channels map[string]json.RawMessage
}

// Layout wraps the parts of an e-mail: {{ content }} stands for the part.
type Layout struct {
	HTML string // around email.html; "" wraps nothing
	Text string // around email.text; "" wraps nothing
}

// UnmarshalJSON reads the JSON form; a member that has no meaning is refused. Its error is an *Error,
// unless b is no JSON at all.
func (s *Source) UnmarshalJSON(b []byte) error {
	var f faults
	members, ok := object(b)
	if !ok {
		f.add("", CodeType, "a template is a JSON object")
		return f.err()
	}
	out := Source{Name: s.Name, Locales: map[string]Parts{}}
	for _, name := range sorted(members) {
		raw := members[name]
		switch name {
		case "layout":
			out.Layout = text(raw, "/layout", &f)
		case "schema":
			if !null(raw) {
				out.Schema = raw
			}
		case "locales":
			locales, ok := object(raw)
			if !ok {
				f.add("/locales", CodeType, "locales is an object with one member for each locale")
			}
			for _, tag := range sorted(locales) {
				out.Locales[tag] = parseParts(locales[tag], pointer("/locales", tag), &f)
			}
		default:
			f.add(pointer("", name), CodeMember, "unknown member %q: a template has locales, schema and layout", name)
		}
	}
	if err := f.err(); err != nil {
		return err
	}
	*s = out
	return nil
}

// MarshalJSON writes the JSON form that UnmarshalJSON reads.
func (s Source) MarshalJSON() ([]byte, error) {
	return encode(struct {
		Locales map[string]Parts `json:"locales"`
		Schema  json.RawMessage  `json:"schema,omitempty"`
		Layout  string           `json:"layout,omitempty"`
	}{s.Locales, s.Schema, s.Layout})
}

// UnmarshalJSON reads title, body, url and data; every other member is a channel's block.
func (p *Parts) UnmarshalJSON(b []byte) error {
	var f faults
	out := parseParts(b, "", &f)
	if err := f.err(); err != nil {
		return err
	}
	*p = out
	return nil
}

// MarshalJSON writes the JSON form that UnmarshalJSON reads; what is empty is left out.
func (p Parts) MarshalJSON() ([]byte, error) {
	out := map[string]any{}
	for name, block := range p.Channels {
		out[name] = block
	}
	for name, s := range map[string]string{"title": p.Title, "body": p.Body, "url": p.URL} {
		if s != "" {
			out[name] = s
		}
	}
	if p.Data != nil {
		out["data"] = p.Data
	}
	return encode(out)
}

func parseParts(b []byte, at string, f *faults) Parts {
	members, ok := object(b)
	if !ok {
		f.add(at, CodeType, "the document of a locale is a JSON object")
		return Parts{}
	}
	var p Parts
	for _, name := range sorted(members) {
		raw, at := members[name], pointer(at, name)
		switch name {
		case "title":
			p.Title = text(raw, at, f)
		case "body":
			p.Body = text(raw, at, f)
		case "url":
			p.URL = text(raw, at, f)
		case "data":
			if null(raw) {
				continue
			}
			if _, ok := object(raw); !ok {
				f.add(at, CodeType, "data is a JSON object")
			}
			p.Data = raw
		default:
			if null(raw) {
				continue
			}
			if _, ok := object(raw); !ok {
				f.add(at, CodeMember, "%q is none of title, body, url and data, so it is a channel's block and must be an object", name)
				continue
			}
			if p.Channels == nil {
				p.Channels = map[string]json.RawMessage{}
			}
			p.Channels[name] = raw
		}
	}
	return p
}

func object(b []byte) (map[string]json.RawMessage, bool) {
	var m map[string]json.RawMessage
	err := json.Unmarshal(b, &m)
	return m, err == nil && m != nil
}

// stringOf reads a string; null is the empty one.
func stringOf(b []byte) (string, bool) {
	var s string
	err := json.Unmarshal(b, &s)
	return s, err == nil
}

func text(b []byte, at string, f *faults) string {
	if null(b) {
		return ""
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		f.add(at, CodeType, "must be a string")
	}
	return s
}

func null(b []byte) bool { return string(bytes.TrimSpace(b)) == "null" }

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// encode is json.Marshal without its escaping of HTML, which would change every template's look.
func encode(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode a template: %w", err)
	}
	return bytes.TrimRight(buf.Bytes(), "\n"), nil
}

// Inline turns the content of a request, which is no template, into Content: word for word, but that
// an e-mail with HTML and no text gets a text part made from the HTML. The error is an *Error.
func Inline(p Parts) (Content, error) {
	c := Content{Title: p.Title, Body: p.Body, URL: p.URL, Data: p.Data}
	if len(p.Channels) > 0 {
		c.Channels = make(map[string]json.RawMessage, len(p.Channels))
	}
	for name, block := range p.Channels {
		if name == emailChannel {
			var err error
			if block, err = withText(block); err != nil {
				return Content{}, err
			}
		}
		c.Channels[name] = block
	}
	return c, nil
}

// withText adds the text part to an e-mail's block.
func withText(block json.RawMessage) (json.RawMessage, error) {
	members, ok := object(block)
	if !ok {
		return block, nil // what it ought to be is the channel's schema's to say
	}
	var f faults
	refuseMJML(members, pointer("", emailChannel), &f)
	if err := f.err(); err != nil {
		return nil, err
	}
	html, _ := stringOf(members["html"])
	plain, ok := stringOf(members["text"])
	if html == "" || plain != "" || !ok && members["text"] != nil {
		return block, nil
	}
	quoted := appendQuoted(nil, PlainText(html))
	if _, ok := members["text"]; !ok {
		// Keep the block byte for byte and add one member at its end.
		end := bytes.LastIndexByte(block, '}')
		out := append([]byte(nil), block[:end]...)
		out = append(out, `,"text":`...)
		return append(append(out, quoted...), '}'), nil
	}
	members["text"] = quoted
	out, err := encode(members)
	if err != nil {
		return nil, err
	}
	return out, nil
}

func refuseMJML(members map[string]json.RawMessage, at string, f *faults) {
	if _, ok := members["mjml"]; ok {
		f.add(pointer(at, "mjml"), CodeOffered, "mjml is not offered yet; use html")
	}
}

// strictDecode reads one JSON value and refuses what follows it.
func strictDecode(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("more than one JSON value")
	}
	return nil
}
