package sandbox

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"net/textproto"
	"strings"
	"unicode/utf8"
)

// message decodes an entry.
func (e *entry) message() Message {
	m := Message{
		Seq: e.seq, Service: e.service, ID: e.id, Address: e.address, At: e.at, Content: string(e.content),
		Answered: e.answered, Copy: e.copy,
	}
	if e.lost.Load() {
		m.Answered = ""
	}
	switch e.service {
	case APNs:
		m.Headers = map[string]string{}
		for _, f := range e.header {
			if strings.HasPrefix(f.name, "apns-") {
				m.Headers[f.name] = f.value
			}
		}
		m.Title = pushTitle(e.content)
	case FCM:
		var v fcmRequest
		if json.Unmarshal(e.content, &v) == nil && v.Message != nil && v.Message.Notification != nil {
			m.Title = v.Message.Notification.Title
		}
	case SMTP:
		m.Headers = map[string]string{}
		if msg, err := mail.ReadMessage(bytes.NewReader(e.content)); err == nil {
			for name, values := range msg.Header {
				m.Headers[name] = strings.Join(values, ", ")
			}
			m.Title = decodeWords(msg.Header.Get("Subject"))
		}
	}
	return m
}

// pushTitle is a payload's alert: its title, else its text.
func pushTitle(payload []byte) string {
	var v struct {
		APS struct {
			Alert json.RawMessage `json:"alert"`
		} `json:"aps"`
	}
	var text string
	var alert struct{ Title, Body string }
	switch {
	case json.Unmarshal(payload, &v) != nil:
		return ""
	case json.Unmarshal(v.APS.Alert, &text) == nil:
		return text
	case json.Unmarshal(v.APS.Alert, &alert) == nil && alert.Title != "":
		return alert.Title
	}
	return alert.Body
}

func decodeWords(s string) string {
	if text, err := new(mime.WordDecoder).DecodeHeader(s); err == nil {
		return text
	}
	return s // an unknown charset: as it came
}

// Part is one leaf of a mail's MIME tree, decoded.
type Part struct {
	Type     string // "text/plain", in lower case
	Filename string // "" for what is no attachment
	Text     string // of text parts, in UTF-8; "" otherwise
	Size     int    // bytes after decoding
}

const maxDepth = 16 // multiparts within multiparts

// MailParts decodes the leaves of a mail as it came over the wire, in their order. Parts that cannot be
// decoded are shown as they came.
func MailParts(content string) []Part {
	msg, err := mail.ReadMessage(strings.NewReader(content))
	if err != nil {
		return []Part{{Type: "text/plain", Text: strings.ToValidUTF8(content, "\uFFFD"), Size: len(content)}}
	}
	return parts(nil, textproto.MIMEHeader(msg.Header), msg.Body, maxDepth)
}

func parts(found []Part, header textproto.MIMEHeader, body io.Reader, depth int) []Part {
	kind, params, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil {
		kind = "text/plain" // RFC 2045, section 5.2
	}
	if strings.HasPrefix(kind, "multipart/") && params["boundary"] != "" && depth > 0 {
		for r := multipart.NewReader(body, params["boundary"]); ; {
			p, err := r.NextRawPart()
			if err != nil { // the end, or what follows cannot be told apart
				return found
			}
			found = parts(found, p.Header, p, depth-1)
		}
	}
	switch strings.ToLower(header.Get("Content-Transfer-Encoding")) {
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	}
	data, _ := io.ReadAll(body) // as far as it can be decoded
	p := Part{Type: kind, Size: len(data)}
	if _, d, err := mime.ParseMediaType(header.Get("Content-Disposition")); err == nil {
		p.Filename = decodeWords(d["filename"])
	}
	if strings.HasPrefix(kind, "text/") && p.Filename == "" {
		p.Text = decodeText(data, params["charset"])
	}
	return append(found, p)
}

// decodeText reads the charsets that mail of today is sent in; others stay as far as they are UTF-8.
func decodeText(data []byte, charset string) string {
	if strings.EqualFold(charset, "iso-8859-1") && !utf8.Valid(data) {
		runes := make([]rune, len(data))
		for i, b := range data {
			runes[i] = rune(b)
		}
		return string(runes)
	}
	return strings.ToValidUTF8(string(data), "\uFFFD")
}
